"""Sweeps of one number on an octave grid, by seed: best point, fitted minimum, regret.

Pure functions of rows. The measure is the logarithm of `last_loss`, the mean training loss of the
last steps. Guessing bounds it: a run that diverged, or that ended above the loss of guessing,
counts as guessing, so that neither a mean nor a regret grows with how badly a run exploded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pandas as pd

from model_lib.analysis import statistics
from model_lib.analysis.bootstrap import bootstrap
from model_lib.analysis.statistics import Interval

FITTED = 5  # points about the minimum
LEAST = 1e-30  # of a loss that is 0 in float32


def log_losses(rows: pd.DataFrame, guessing: float, column: str = 'last_loss') -> np.ndarray:
  """ln of the losses, at most ln of what guessing costs, which a diverged run has too."""
  loss = rows[column].to_numpy(float)
  loss = np.where(np.isfinite(loss) & (rows.diverged_step.to_numpy() < 0), loss, np.inf)
  return np.log(np.clip(loss, LEAST, guessing))


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Log-losses on a grid.

  Attributes:
    octaves: [R] log2 of the swept number, ascending.
    seeds: [S].
    losses: [R, S] ln of the loss.
  """

  octaves: np.ndarray
  seeds: np.ndarray
  losses: np.ndarray

  @functools.cached_property
  def mean(self) -> np.ndarray:
    """[R]: over seeds."""
    return self.losses.mean(1)

  @functools.cached_property
  def best(self) -> int:
    """Place of the lowest mean; between equal ones the one nearest to the middle."""
    lowest = np.flatnonzero(self.mean == self.mean.min())
    middle = (len(self.octaves) - 1) / 2
    return int(lowest[np.argmin(np.abs(lowest - middle))])

  @property
  def at_edge(self) -> bool:
    """Whether the best place is the first or the last one: the grid does not hold the minimum."""
    return self.best in (0, len(self.octaves) - 1)

  def drawn(self, seeds: np.ndarray) -> Sweep:
    """The sweep with the seeds at these places, which may repeat."""
    return dataclasses.replace(self, seeds=self.seeds[seeds], losses=self.losses[:, seeds])

  def minimum(self) -> float:
    """log2 of the minimum of a parabola, fitted to the means of 5 points about the best one.

    Where the fit opens downwards, or the grid has fewer than 3 points, it is the best point of the
    grid; where the minimum lies beyond the points of the fit, their end on that side.
    """
    count = min(FITTED, len(self.octaves))
    first = min(max(self.best - count // 2, 0), len(self.octaves) - count)
    x, y = self.octaves[first:first + count], self.mean[first:first + count]
    if count < 3:
      return float(self.octaves[self.best])
    square, linear, _ = np.polyfit(x - x[0], y, 2)
    if not square > 0:
      return float(self.octaves[self.best])
    return float(np.clip(x[0] - linear / (2 * square), x[0], x[-1]))

  def at(self, octave: float) -> np.ndarray | None:
    """[S]: the log-losses at a point of the grid; None beside it."""
    near = np.flatnonzero(np.abs(self.octaves - octave) < 1e-6)
    return self.losses[near[0]] if len(near) else None

  def regret(self, octave: float) -> np.ndarray | None:
    """[S]: log-loss at a point minus that at the best one; None beside the grid."""
    found = self.at(octave)
    return None if found is None else found - self.losses[self.best]


def sweep(rows: pd.DataFrame, guessing: float, by: str = 'octave', column: str = 'last_loss'
          ) -> Sweep:
  """The sweep of runs with the columns `by`, seed, diverged_step and `column`.

  Raises:
    ValueError: no runs, two runs of one seed at a point, or a seed that a point lacks.
  """
  table = (rows.assign(loss=log_losses(rows, guessing, column))
           .pivot(index=by, columns='seed', values='loss').sort_index())
  if not table.size or table.isna().any(axis=None):
    raise ValueError('a sweep needs the same seeds at every point of its grid')
  return Sweep(table.index.to_numpy(float), table.columns.to_numpy(), table.to_numpy(float))


def over_seeds(statistic: Callable[[np.ndarray], float], seeds: int) -> Interval:
  """A statistic of places of seeds, with its percentile bootstrap interval over them."""
  return bootstrap(statistic, (seeds,))


def mean_of(values: Sequence[float] | None) -> Interval:
  """Mean and t interval over seeds; nan where there are no values."""
  return statistics.mean_interval([] if values is None else np.asarray(values, float))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
  """Least-squares slope of y against x."""
  return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


def mean_regret(first: Sweep, last: Sweep, moved: float = 0.0) -> Interval:
  """Mean regret at `last` of the best point of `first`, with its bootstrap interval over seeds.

  In every draw both best points are chosen anew: over fixed ones the interval of a regret is a
  single 0 where the places agree. nan where the point lies beside the grid, limits nan where it
  does in a draw.

  Args:
    moved: octaves to add to the point.
  """
  def statistic(seeds):
    tuned, found = first.drawn(seeds), last.drawn(seeds)
    regret = found.regret(tuned.octaves[tuned.best] + moved)
    return math.nan if regret is None else regret.mean()

  return over_seeds(statistic, len(first.seeds))


def widened(found: Sweep, count: int) -> list[float]:
  """`count` more points beyond the edge at which the best one lies; none where it lies inside."""
  if not found.at_edge or len(found.octaves) < 2:
    return []
  step = found.octaves[1] - found.octaves[0]
  if found.best == 0:
    return [float(found.octaves[0] - step * i) for i in range(count, 0, -1)]
  return [float(found.octaves[-1] + step * i) for i in range(1, count + 1)]


def octaves(lowest: float, count: int, step: float = 0.5) -> tuple[float, ...]:
  """An even grid of log2."""
  return tuple(lowest + step * i for i in range(count))


def guessing(classes: int) -> float:
  """Nats that guessing among so many classes costs."""
  return math.log(classes)


@dataclasses.dataclass(frozen=True)
class Found:
  """What the runs of a part of the study are read from.

  Attributes:
    rows: of the part.
    config: of the study.
  """

  rows: pd.DataFrame
  config: Any

  @property
  def guess(self) -> float:
    """Nats that guessing costs on the study's images."""
    return guessing(self.config.classes)
