"""Choosing a learning rate per arm on validation runs, and comparing arms on fresh ones.

The protocol: every arm is run at a few factors of a base rate; the factor with the
lowest mean validation loss is chosen; an arm whose best factor is the smallest or
the largest is run one step further out; the chosen factor is then trained again
with seeds that took no part in the choice, and only those runs are compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from model_lib.analysis import statistics


@dataclasses.dataclass(frozen=True)
class Choice:
  """The factor chosen for one arm.

  Attributes:
    factor: with the lowest mean validation loss; nan when every factor diverged.
    loss: that mean.
    edge: -1 or 1 where it is the smallest or the largest factor that was run, else 0.
  """

  factor: float
  loss: float
  edge: int


def choose(rows: pd.DataFrame, arm: Sequence[str]) -> dict[Hashable, Choice]:
  """{arm: Choice}. A factor at which any run diverged is not eligible.

  Args:
    rows: columns lr_factor, val_loss, diverged_step and those of `arm`.
    arm: names of the columns that tell the arms apart.
  """
  choices = {}
  for key, group in rows.groupby(list(arm), sort=False):
    means = {}
    for factor, runs in group.groupby('lr_factor'):
      alive = (runs.diverged_step < 0).all() and np.isfinite(runs.val_loss).all()
      means[float(factor)] = float(runs.val_loss.mean()) if alive else math.inf
    factors = sorted(means)
    # Between equals the one nearest to the middle: the edge needs a reason.
    middle = (len(factors) - 1) / 2
    best = min(factors, key=lambda f: (means[f], abs(factors.index(f) - middle), f))
    if math.isinf(means[best]):
      choices[key] = Choice(math.nan, math.inf, 0)
    else:
      edge = -1 if best == factors[0] else 1 if best == factors[-1] else 0
      edge *= len(factors) > 1  # one factor is no choice
      choices[key] = Choice(best, means[best], edge)
  return choices


def beyond(choice: Choice, factors: Sequence[float]) -> tuple[float, ...]:
  """The factor one step beyond the edge at which a choice lies; none where it lies inside.

  Args:
    choice: of an arm.
    factors: those that all arms were run at, ascending; the last step among them is repeated.
  """
  if not choice.edge:
    return ()
  return (choice.factor * (factors[-1] / factors[-2])**choice.edge,)


@dataclasses.dataclass(frozen=True)
class Compared:
  """One arm against the reference, over fresh seeds.

  Attributes:
    mean: interval of the measure over the runs that did not diverge.
    paired: arm minus reference over the seeds at which neither diverged.
    p_adjusted: Holm-corrected over all arms but the reference.
    diverged: number of diverged runs.
  """

  mean: statistics.Interval
  paired: statistics.Paired
  p_adjusted: float
  diverged: int


def compare(rows: pd.DataFrame, arms: Sequence[str], reference: str, measure: str,
            column: str = 'activation') -> dict[str, Compared]:
  """Each arm's measure and its paired difference to the reference.

  Args:
    rows: fresh runs: columns `column`, seed, diverged_step and `measure`.
    arms: values of `column`, the reference among them.

  Raises:
    ValueError: an arm has two runs of one seed.
  """
  tables = {}
  for name in arms:
    own = rows[rows[column] == name]
    if own.seed.duplicated().any():
      raise ValueError(f'{name} has two runs of one seed')
    values = own.set_index('seed')[measure].where(own.set_index('seed').diverged_step < 0)
    tables[name] = values
  base = tables[reference]
  paired = {}
  for name in arms:
    both = pd.concat([tables[name], base], axis=1, keys=['own', 'base']).dropna()
    paired[name] = statistics.paired_difference(both.own.to_numpy(), both.base.to_numpy())
  others = [name for name in arms if name != reference]
  adjusted = dict(zip(others, statistics.holm([paired[n].p for n in others]), strict=True))
  return {name: Compared(statistics.mean_interval(tables[name].dropna().to_numpy()), paired[name],
                         float(adjusted.get(name, math.nan)), int(tables[name].isna().sum()))
          for name in arms}


def null_line(rows: pd.DataFrame, reference: pd.DataFrame, measure: str) -> tuple[float, int]:
  """The largest difference that copies of the reference show among themselves.

  Args:
    rows: fresh runs of the copies: columns copy, seed, diverged_step and `measure`.
    reference: the reference's own fresh runs.

  Returns:
    (max over copies of |mean over common seeds of copy - reference|, number of copies).
  """
  base = reference[reference.diverged_step < 0].set_index('seed')[measure]
  largest, count = 0.0, 0
  for _, copy in rows[rows.diverged_step < 0].groupby('copy'):
    own = copy.set_index('seed')[measure]
    both = own.index.intersection(base.index)
    if len(both):
      largest = max(largest, abs(float((own[both] - base[both]).mean())))
      count += 1
  return largest, count


def share_at_edge(choices: Mapping[Hashable, Choice]) -> float:
  """Share of the arms whose chosen factor lies at the end of the factors that were run."""
  return sum(c.edge != 0 for c in choices.values()) / len(choices)
