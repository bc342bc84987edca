"""Choosing learning rates, and comparing on fresh runs."""
from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from model_lib.analysis import selection


def runs(losses: dict, diverged=()) -> pd.DataFrame:
  """losses: {(arm, factor): [loss of each seed]}; diverged: set of (arm, factor, seed)."""
  return pd.DataFrame([
    {'arm': arm, 'lr_factor': factor, 'seed': seed, 'val_loss': loss,
     'diverged_step': 3 if (arm, factor, seed) in diverged else -1}
    for (arm, factor), values in losses.items() for seed, loss in enumerate(values)])


def test_the_lowest_mean_is_chosen():
  """By the mean: the best single run (0.1, at 4) does not decide."""
  losses = {('a', 0.25): [1.0, 1.2], ('a', 1.0): [0.5, 0.7], ('a', 4.0): [0.1, 1.9]}
  choice = selection.choose(runs(losses), ['arm'])['a',]
  assert (choice.factor, choice.edge) == (1.0, 0) and choice.loss == pytest.approx(0.6)


@pytest.mark.parametrize('best, edge', [(0.25, -1), (1.0, 0), (4.0, 1)])
def test_edges(best, edge):
  losses = {('a', f): [0.1 if f == best else 1.0] for f in (1.0, 4.0, 0.25)}
  choice = selection.choose(runs(losses), ['arm'])['a',]
  assert (choice.factor, choice.edge) == (best, edge)


def test_one_step_beyond_the_edge():
  factors = (1 / 3, 1.0, 3.0)
  for factor, edge, wanted in ((1 / 3, -1, (1 / 9,)), (1.0, 0, ()), (3.0, 1, (9.0,))):
    assert selection.beyond(selection.Choice(factor, 0.1, edge), factors) == pytest.approx(wanted)
  # With one factor, or where every one diverged, there is no edge.
  assert selection.beyond(selection.Choice(1.0, 0.1, 0), (1.0,)) == ()


def test_a_factor_with_a_diverged_run_is_not_eligible():
  losses = {('a', 1.0): [0.9, 0.9], ('a', 4.0): [0.1, 0.1], ('b', 1.0): [0.9], ('b', 4.0): [0.1]}
  found = selection.choose(runs(losses, {('a', 4.0, 1)}), ['arm'])
  assert found['a',].factor == 1.0 and found['b',].factor == 4.0
  # A loss that is not finite counts as diverged, even where no step was marked.
  losses['a', 4.0] = [0.1, math.nan]
  assert selection.choose(runs(losses), ['arm'])['a',].factor == 1.0


def test_every_factor_diverged():
  choice = selection.choose(runs({('a', 1.0): [1.0]}, {('a', 1.0, 0)}), ['arm'])['a',]
  assert math.isnan(choice.factor) and math.isinf(choice.loss) and choice.edge == 0


def test_equal_losses_take_the_middle_factor_then_the_smaller():
  alike = {('a', f): [1.0] for f in (3.0, 1.0, 9.0)}
  assert selection.choose(runs(alike), ['arm'])['a',].factor == 3
  assert selection.choose(runs({('a', 2.0): [1.0], ('a', 1.0): [1.0]}), ['arm'])['a',].factor == 1


def test_share_at_edge():
  choices = {i: selection.Choice(1.0, 1.0, edge) for i, edge in enumerate([-1, 0, 0, 1])}
  assert selection.share_at_edge(choices) == 0.5


def fresh(seed: int = 0, n: int = 12) -> pd.DataFrame:
  """Three arms; seeds share a large common part, as paired runs do."""
  rng = np.random.default_rng(seed)
  common = rng.normal(0, 5, n)
  offsets = {'relu': 0.0, 'better': -1.0, 'same': 0.0}
  return pd.DataFrame([
    {'activation': name, 'seed': s, 'diverged_step': -1,
     'loss': common[s] + offset + rng.normal(0, 0.3)}
    for name, offset in offsets.items() for s in rng.permutation(n)])


def values(rows, name, column='loss'):
  return rows[rows.activation == name].sort_values('seed')[column].to_numpy()


def test_compare_pairs_by_seed():
  """Against scipy's paired t test; unpaired, the difference would drown in the seeds."""
  rows = fresh()
  found = selection.compare(rows, ['relu', 'better', 'same'], 'relu', 'loss')
  p = {}
  for name in ('better', 'same'):
    own, base = values(rows, name), values(rows, 'relu')
    test = stats.ttest_rel(own, base)
    p[name] = test.pvalue
    paired = found[name].paired
    assert paired.mean == pytest.approx((own - base).mean())
    assert (paired.low, paired.high) == pytest.approx(tuple(test.confidence_interval()))
    assert found[name].mean.mean == pytest.approx(own.mean()) and found[name].diverged == 0
  low, high = sorted(p, key=p.get)
  assert found[low].p_adjusted == pytest.approx(2 * p[low])
  assert found[high].p_adjusted == pytest.approx(max(p[high], 2 * p[low]))
  assert found['better'].p_adjusted < 1e-3 < 0.05 < found['same'].p_adjusted
  assert stats.ttest_ind(values(rows, 'better'), values(rows, 'relu')).pvalue > 0.05
  assert math.isnan(found['relu'].p_adjusted)


def test_diverged_runs_leave_the_pair_out():
  rows = fresh()
  rows.loc[(rows.activation == 'better') & (rows.seed == 3), ['diverged_step', 'loss']] = [7, 1e9]
  rows.loc[(rows.activation == 'relu') & (rows.seed == 5), ['diverged_step', 'loss']] = [7, -1e9]
  found = selection.compare(rows, ['relu', 'better', 'same'], 'relu', 'loss')
  assert (found['better'].paired.n, found['same'].paired.n) == (10, 11)
  assert (found['better'].mean.n, found['better'].diverged, found['relu'].diverged) == (11, 1, 1)
  assert abs(found['better'].paired.mean + 1) < 0.3


def test_two_runs_of_one_seed_are_an_error():
  rows = fresh()
  with pytest.raises(ValueError, match='same has two runs of one seed'):
    selection.compare(pd.concat([rows, rows[rows.activation == 'same'][:1]]),
                      ['relu', 'same'], 'relu', 'loss')


def test_null_line():
  """The copy that is furthest away counts, by its mean and not by one seed."""
  base = pd.DataFrame({'seed': [0, 1, 2], 'loss': [1.0, 2.0, 3.0], 'diverged_step': -1})
  shifts = {1: [0.5, -0.5, 0.0], 2: [-0.2, -0.2, -0.2], 3: [0.1, 0.1, 0.1]}
  copies = pd.concat([base.assign(copy=c, loss=base.loss + s) for c, s in shifts.items()])
  line, count = selection.null_line(copies, base, 'loss')
  assert line == pytest.approx(0.2) and count == 3
  copies.loc[(copies['copy'] == 2), 'diverged_step'] = 4
  assert selection.null_line(copies, base, 'loss') == (pytest.approx(0.1), 2)
  assert selection.null_line(base.assign(copy=1), base, 'loss') == (0.0, 1)
