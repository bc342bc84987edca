"""The table of arms compared with a reference over fresh seeds, used by every such study."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence

import pandas as pd

from launch.study.tables import Column, Table, fixed, integer, interval, p_value
from model_lib.analysis import selection
from model_lib.analysis.selection import Choice, Compared

EXPLAINED = ('Intervals: 95 % t intervals over the seeds. Difference: paired with the reference of '
             'the same seed. p: Holm-corrected over all arms.')
COST = "Cost: time of a training step over the reference's, median of interleaved rounds."


def ranking(compared: Mapping[str, Compared]) -> list[str]:
  """The arms by their mean, lowest first; those without a surviving run last."""
  return sorted(compared, key=lambda arm: (math.isnan(compared[arm].mean.mean),
                                           compared[arm].mean.mean))


def comparison_table(title: str, arm: str, reference: str, fresh: pd.DataFrame,
                     choices: Mapping[str, Choice] = types.MappingProxyType({}),
                     notes: Sequence[str] = (), named: bool = True) -> Table:
  """One row per arm, best mean test log-loss first.

  Args:
    title: of the table; it shows the data set.
    arm: the column of `fresh` that tells the arms apart.
    reference: the arm that all are paired with.
    fresh: rows of the compared runs, with test_loss, test_accuracy, seed, diverged_step;
      learning_rate and cost_ratio are shown where the rows have them.
    choices: the learning rate's choice of each arm, where it was chosen; a star marks one at
      the edge.
    notes: lines below.
    named: False leaves out rank and p where the seeds are too few for either.
  """
  arms = list(dict.fromkeys(fresh[arm]))
  loss = selection.compare(fresh, arms, reference, 'test_loss', arm)
  accuracy = selection.compare(fresh, arms, reference, 'test_accuracy', arm)
  shown = {'rate': 'learning_rate' in fresh, 'cost': 'cost_ratio' in fresh,
           'rank': named, 'p': named}
  rows = []
  for rank, name in enumerate(ranking(loss), 1):
    own, hits = loss[name], accuracy[name].mean
    runs = fresh[fresh[arm] == name]
    edge = name in choices and choices[name].edge
    rows.append({
        'rank': rank, arm: name,
        'rate': f'{runs.learning_rate.iloc[0]:.3g}' + '*' * bool(edge) if shown['rate'] else None,
        'loss': own.mean.mean, 'loss_interval': (own.mean.low, own.mean.high),
        'difference': own.paired.mean, 'difference_interval': (own.paired.low, own.paired.high),
        'p': own.p_adjusted, 'accuracy': 100 * hits.mean,
        'accuracy_interval': (100 * hits.low, 100 * hits.high), 'n': own.mean.n,
        'diverged': own.diverged,
        'cost': float(runs.cost_ratio.iloc[0]) if shown['cost'] else None})
  columns = [
      Column('rank', 'rank', format=integer()), Column(arm, arm, right=False),
      Column('rate', 'learning rate'), Column('loss', 'test log-loss', 'nats', fixed(4)),
      Column('loss_interval', '95 %', format=interval(4)),
      Column('difference', f'difference to {reference}', 'nats', fixed(4, signed=True)),
      Column('difference_interval', '95 %', format=interval(4, signed=True)),
      Column('p', 'p', format=p_value()), Column('accuracy', 'test accuracy', '%', fixed(2)),
      Column('accuracy_interval', '95 %', format=interval(2)),
      Column('n', 'n', format=integer()), Column('diverged', 'diverged', format=integer()),
      Column('cost', 'cost', f'x {reference}', fixed(2))]
  columns = [c for c in columns if shown.get(c.key, True)]
  kept = {c.key for c in columns}
  return Table(title, columns, [{k: v for k, v in row.items() if k in kept} for row in rows],
               [*notes, f'{EXPLAINED} {COST}' if shown['cost'] else EXPLAINED])
