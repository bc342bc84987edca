"""The table of arms against a reference: order, numbers, and what it leaves out."""
from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from launch.study import comparison
from model_lib.analysis import selection
from model_lib.analysis.selection import Choice

SEEDS = 8
SHIFTS = {'relu': 0.0, 'gelu': -0.03, 'tanh': 0.05, 'lost': 0.0}
CHOICES = {'relu': Choice(1.0, 0.1, 0), 'gelu': Choice(9.0, 0.1, 1), 'tanh': Choice(0.1, 0.1, -1),
           'lost': Choice(1.0, 0.1, 0)}


@pytest.fixture
def fresh() -> pd.DataFrame:
  """Four arms of eight seeds; 'lost' always diverged, 'tanh' at the seed 3."""
  rng = np.random.default_rng(0)
  shared = rng.normal(size=SEEDS)
  rows = [dict(arm=arm, seed=seed, learning_rate=0.01234567, cost_ratio=1 + shift,
               diverged_step=4 if arm == 'lost' or (arm, seed) == ('tanh', 3) else -1,
               test_loss=0.2 + shift + 0.1 * shared[seed] + 0.01 * rng.normal(),
               test_accuracy=0.9 - shift + 0.01 * rng.normal())
          for arm, shift in SHIFTS.items() for seed in range(SEEDS)]
  return pd.DataFrame(rows).sample(frac=1, random_state=1)  # the order of rows does not matter


def table(fresh, **options):
  return comparison.comparison_table('On digits', 'arm', 'relu', fresh, CHOICES, ['A note.'],
                                     **options)


def by_arm(made) -> dict:
  return {row['arm']: row for row in made.rows}


def test_the_best_comes_first_and_arms_without_a_run_last(fresh):
  made = table(fresh)
  assert [row['arm'] for row in made.rows] == ['gelu', 'relu', 'tanh', 'lost']
  assert [row['rank'] for row in made.rows] == [1, 2, 3, 4]
  compared = selection.compare(fresh, list(SHIFTS), 'relu', 'test_loss', 'arm')
  assert comparison.ranking(compared) == ['gelu', 'relu', 'tanh', 'lost']
  last = by_arm(made)['lost']
  assert math.isnan(last['loss']) and (last['n'], last['diverged']) == (0, SEEDS)
  worse = fresh.assign(test_loss=-fresh.test_loss)
  assert [row['arm'] for row in table(worse).rows] == ['tanh', 'relu', 'gelu', 'lost']


def test_numbers_are_those_of_scipy(fresh):
  made = by_arm(table(fresh))
  values = fresh.pivot(index='seed', columns='arm', values='test_loss')
  alive = values.index != 3
  gelu = stats.ttest_rel(values.gelu, values.relu)
  tanh = stats.ttest_rel(values.tanh[alive], values.relu[alive])
  assert made['gelu']['difference'] == pytest.approx((values.gelu - values.relu).mean())
  assert made['gelu']['difference_interval'] == pytest.approx(tuple(gelu.confidence_interval()))
  assert made['tanh']['difference_interval'] == pytest.approx(tuple(tanh.confidence_interval()))
  # The family has three comparisons; the one that could not be made counts as well.
  small, large = sorted((gelu.pvalue, tanh.pvalue))
  assert sorted(made[a]['p'] for a in ('gelu', 'tanh')) == pytest.approx([3 * small, 2 * large])
  assert (made['tanh']['n'], made['tanh']['diverged']) == (SEEDS - 1, 1)
  loss = values.relu
  half = stats.t.ppf(0.975, SEEDS - 1) * loss.std() / math.sqrt(SEEDS)
  assert made['relu']['loss_interval'] == pytest.approx((loss.mean() - half, loss.mean() + half))
  accuracy = fresh[(fresh.arm == 'tanh') & (fresh.seed != 3)].test_accuracy
  assert made['tanh']['accuracy'] == pytest.approx(100 * accuracy.mean())
  assert made['relu']['difference'] == 0 and math.isnan(made['relu']['p'])


def test_rates_at_an_edge_have_a_star(fresh):
  rates = {arm: row['rate'] for arm, row in by_arm(table(fresh)).items()}
  assert rates == {'relu': '0.0123', 'gelu': '0.0123*', 'tanh': '0.0123*', 'lost': '0.0123'}


def test_what_is_printed(fresh):
  made = table(fresh)
  lines = made.to_text().splitlines()
  assert lines[0] == 'On digits' and 'A note.' in lines
  assert 'test log-loss (nats)' in lines[1] and 'difference to relu (nats)' in lines[1]
  row = next(line for line in lines if ' gelu ' in line)
  difference = by_arm(made)['gelu']['difference']
  assert f' {difference:+.4f} ' in row and row.split()[-1] == '0.97'
  assert comparison.EXPLAINED in made.notes[-1]
  for text, star in ((made.to_markdown(), r'0.0123\*'), (made.to_latex(), '0.0123*')):
    assert 'On digits' in text and 'A note.' in text and star in text
  lost = next(line for line in lines if ' lost ' in line).split()
  assert lost[3:9] == ['-'] * 6


def test_without_ranks_neither_rank_nor_p_is_anywhere(fresh):
  full, bare = table(fresh), table(fresh, named=False)
  assert {c.key for c in full.columns} - {c.key for c in bare.columns} == {'rank', 'p'}
  assert all(set(row) == {c.key for c in bare.columns} for row in bare.rows)
  assert [row['arm'] for row in bare.rows] == [row['arm'] for row in full.rows]


def test_an_arm_with_two_runs_of_one_seed_is_no_comparison(fresh):
  with pytest.raises(ValueError, match='gelu has two runs of one seed'):
    table(fresh.assign(seed=fresh.seed.where(fresh.arm != 'gelu', 0)))
