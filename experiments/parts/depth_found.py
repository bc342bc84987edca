"""What the runs of the depth part of the depth-muP study give: tuned rates, sweeps, regrets."""

from __future__ import annotations

import functools
import math

import numpy as np

from experiments.parts import sweeps
from experiments.parts.depth_cohorts import chosen
from experiments.parts.depth_families import COMPUTED, FAMILIES
from experiments.parts.sweeps import Sweep
from model_lib.analysis.statistics import Interval

NOTHING = 0.05  # below guessing, in nats of log-loss


class Found(sweeps.Found):
  """The sweeps of a run."""

  @property
  def depths(self) -> tuple[int, ...]:
    return self.config.depth.depths

  @functools.cached_property
  def tuned(self) -> dict[str, tuple[float, float]]:
    """Function -> (a, octave) at the base depth."""
    own = self.rows[self.rows.phase == 'tune']
    return {name: chosen(each, self.guess) for name, each in own.groupby('family', sort=False)}

  @functools.cached_property
  def sweeps(self) -> dict[tuple[str, int], Sweep]:
    """(family, depth) -> its sweep; at the base depth that of the tuning, the same for all."""
    found = {}
    for name in self.config.depth.families:
      function = FAMILIES[name].function
      a = self.tuned[FAMILIES[name].tuned_as][0]
      own = self.rows[(self.rows.phase == 'tune') & (self.rows.family == function)
                      & (self.rows.a == a)]
      found[name, self.depths[0]] = sweeps.sweep(own, self.guess)
      swept = self.rows[(self.rows.phase == 'sweep') & (self.rows.family == name)]
      for depth, each in swept.groupby('depth'):
        found[name, int(depth)] = sweeps.sweep(each, self.guess)
    return found

  @property
  def shown(self) -> tuple[str, ...]:
    """Families of the tables and figures: those that were swept, and what is computed of them.

    (1/2, 0) is a relabelling of depth-muP only where the blocks alone are trained.
    """
    computed = () if self.config.depth.train_io else (COMPUTED,)
    return tuple(dict.fromkeys(['depth_mup', *computed, *self.config.depth.families]))

  def sweep(self, name: str, depth: int) -> Sweep:
    """The runs that a family is read from; their rates are its own less `shift` octaves."""
    return self.sweeps['depth_mup' if name == COMPUTED else name, depth]

  def best(self, name: str, depth: int) -> np.ndarray:
    """[S]: log-losses at the best rate."""
    found = self.sweep(name, depth)
    return found.losses[found.best]

  def paired(self, one: str, two: str) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(matrices, lowest log-losses [S] of blocks of one, of half as many of two), by depth."""
    if not {one, two} <= set(self.config.depth.families):
      return []
    return [(depth, self.best(one, depth), self.best(two, depth // 2))
            for depth in self.depths[1:]]

  def shift(self, name: str, source: int, target: int) -> float:
    """Octaves to add to a rate of a family where its own runs are those of another's labels.

    COMPUTED is read from depth_mup: a rate eta of (1/2, 0) is eta (L / L_b)^1/2 there.
    """
    return 0.5 * math.log2(target / source) if name == COMPUTED else 0.0

  def regret(self, name: str, source: int, target: int) -> np.ndarray | None:
    """[S]: of the rate tuned at one depth, at another.

    None where it is beside the grid, or where no run of one of them learned.
    """
    if not (self.learned(name, source) and self.learned(name, target)):
      return None
    tuned = self.sweep(name, source)
    octave = tuned.octaves[tuned.best] + self.shift(name, source, target)
    return self.sweep(name, target).regret(octave)

  def bootstrapped_regret(self, name: str, source: int, target: int) -> Interval:
    """`sweeps.mean_regret` of the rate tuned at one depth, at another."""
    return sweeps.mean_regret(self.sweep(name, source), self.sweep(name, target),
                              self.shift(name, source, target))

  def at_edge(self, *names: str) -> list[str]:
    """Sweeps of these families whose best rate is the first or the last."""
    return [f'{name} L={depth}' for (name, depth), found in self.sweeps.items()
            if name in names and found.at_edge]

  def learned(self, name: str, depth: int) -> bool:
    """Whether some rate is better than guessing; else a sweep has no best one."""
    return bool(self.sweep(name, depth).mean.min() < math.log(self.guess) - NOTHING)

  def exponent(self) -> Interval:
    """gamma-hat: minus the slope of log2 of (1/2, 0)'s best rate against log2 L, deepest three."""
    deepest = self.depths[-3:]
    octaves = np.log2(deepest)

    def statistic(seeds):
      minima = [self.sweeps['depth_mup', depth].drawn(seeds).minimum()
                - self.shift(COMPUTED, self.depths[0], depth) for depth in deepest]
      return -sweeps.slope(octaves, minima)

    return sweeps.over_seeds(statistic, len(self.sweeps['depth_mup', deepest[0]].seeds))
