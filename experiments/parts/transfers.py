"""Transfer of a swept number from a small network to a large one: regrets, verdicts, table rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.parts import sweeps
from experiments.parts.sweeps import Sweep
from experiments.parts.verdicts import BESIDE, MIN_SEEDS, REGRET, missing, verdict
from launch.study.claims import Outcome
from launch.study.tables import Column, fixed, integer, interval
from model_lib.analysis import statistics


def by_size(rows: pd.DataFrame, guess: float, size: str = 'width') -> dict[tuple[str, int], Sweep]:
  """(family, size) -> its sweep, of the rows of one phase."""
  return {(name, int(value)): sweeps.sweep(each, guess)
          for (name, value), each in rows.groupby(['family', size], sort=False)}


def regret(found: Mapping[tuple[str, int], Sweep], family: str, source: int, target: int
           ) -> np.ndarray | None:
  """[S]: at one size, of the point tuned at another."""
  tuned = found[family, source]
  return found[family, target].regret(tuned.octaves[tuned.best])


def beside(found: Mapping[tuple[str, int], Sweep], first: int, last: int) -> dict[str, float]:
  """Family -> the point tuned at one size, for those whose sweep at the other lacks it."""
  tuned = {name: each.octaves[each.best] for (name, size), each in found.items() if size == first}
  return {name: float(octave) for name, octave in tuned.items()
          if found[name, last].at(octave) is None}


def problem_of(found: Mapping[tuple[str, int], Sweep], *families: str) -> str:
  """Why a claim on the sweeps of these families cannot be tested, or ''."""
  seeds = len(next(iter(found.values())).seeds)
  if seeds < MIN_SEEDS:
    return f'{seeds} seeds, {MIN_SEEDS} are needed'
  edges = [f'{name} {size}' for (name, size), each in found.items()
           if name in families and each.at_edge]
  return f'the best point lies at an edge of the grid: {", ".join(edges)}' if edges else ''


def transfers(found: Mapping[tuple[str, int], Sweep], sp: str, mup: str, first: int, last: int,
              claims: tuple[str, str]) -> dict[str, Outcome]:
  """Regret of muP from one size to another, and how much more the standard parametrization has."""
  one, other = claims
  regrets = {family: regret(found, family, first, last) for family in (sp, mup)}
  drift = ', '.join(
      f'{family} {found[family, last].minimum() - found[family, first].minimum():+.2f}'
      for family in (sp, mup))
  note = f'octaves by which the fitted rate drifts: {drift}'
  if regrets[mup] is None:
    return {claim: verdict(False, missing(), '', BESIDE) for claim in claims}
  own = sweeps.mean_regret(found[mup, first], found[mup, last])
  outcome = {one: verdict(own.mean <= REGRET, own, note, problem_of(found, mup))}
  if regrets[sp] is None:
    return outcome | {other: verdict(False, missing(), '', BESIDE)}
  gap = statistics.paired_difference(regrets[sp], regrets[mup])
  return outcome | {other: verdict(gap.low > 0, gap, note, problem_of(found, sp, mup))}


def swept_row(each: Sweep, lost: np.ndarray | None) -> dict[str, Any]:
  """What every table of sweeps says of one."""
  best, regrets = statistics.mean_interval(each.losses[each.best]), sweeps.mean_of(lost)
  return {'octave': each.octaves[each.best], 'argmin': each.minimum(), 'loss': best.mean,
          'loss_interval': (best.low, best.high), 'regret': regrets.mean,
          'regret_interval': (regrets.low, regrets.high), 'n': best.n,
          'edge': 'edge' if each.at_edge else ''}


def swept_columns(swept: str) -> tuple[Column, ...]:
  """The columns of `swept_row`."""
  return (Column('octave', f'best log2 {swept}', format=fixed(1)),
          Column('argmin', 'fitted', format=fixed(2)),
          Column('loss', 'log-loss', 'ln nats', fixed(2)),
          Column('loss_interval', '95 %', format=interval(2)),
          Column('regret', 'regret', 'ln nats', fixed(2)),
          Column('regret_interval', '95 %', format=interval(2)),
          Column('n', 'n', format=integer()), Column('edge', 'note', right=False))
