"""Patching against runs in numpy with values replaced, and against finite differences."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from model_lib.analysis import attribution_patching as ap
from model_lib.errors import UserError
from tests.model_lib import gpt2_numpy

pytestmark = pytest.mark.usefixtures('unoptimized')


def test_pairs_differ_in_one_byte_and_copy():
  pairs = ap.copy_pairs(20, 9, seed=1)
  assert pairs.clean.shape == pairs.corrupt.shape == (20, 9) and pairs.changed == 4
  np.testing.assert_array_equal(
    (pairs.clean != pairs.corrupt), np.broadcast_to(np.arange(9) == 4, (20, 9)))
  np.testing.assert_array_equal(pairs.clean[:, :4], pairs.clean[:, 5:])
  np.testing.assert_array_equal(pairs.answer, pairs.clean[:, 4])
  np.testing.assert_array_equal(pairs.wrong, pairs.corrupt[:, 4])
  assert all(len({*row, wrong}) == 6 for row, wrong in zip(pairs.clean, pairs.wrong))
  assert set(np.unique(pairs.clean)) <= set(ap.LETTERS)
  np.testing.assert_array_equal(pairs.clean, ap.copy_pairs(20, 9, seed=1).clean)
  assert (pairs.clean != ap.copy_pairs(20, 9, seed=2).clean).any()
  for length in (8, 1, 103):
    with pytest.raises(UserError, match=f'length {length}: it must be odd.*at most 101'):
      ap.copy_pairs(2, length)


@pytest.fixture(scope='module')
def case():
  model, variables = gpt2_numpy.small(spread=0.3)
  pairs = ap.copy_pairs(3, 7, alphabet=bytes(range(11)))
  return model, variables, pairs


@pytest.fixture(scope='module')
def found(case, unoptimized):
  return ap.patch(*case, batch=2)


def _metric(case, change=lambda place, layer, value: value, prompt='corrupt'):
  model, variables, pairs = case
  logits = gpt2_numpy.forward(model, variables, getattr(pairs, prompt), change)['logits'][:, -1]
  rows = np.arange(len(logits))
  return logits[rows, pairs.answer] - logits[rows, pairs.wrong]


def test_both_kinds_against_numpy(case, found):
  model, variables, pairs = case
  runs = [gpt2_numpy.forward(model, variables, tokens) for tokens in (pairs.clean, pairs.corrupt)]
  start = _metric(case)
  np.testing.assert_allclose(found.metric, _metric(case, prompt='clean'), atol=1e-4)
  np.testing.assert_allclose(found.total, _metric(case, prompt='clean') - start, atol=1e-4)
  for site in ap.SITES:
    assert found.activation[site].shape == (3, model.depth, 4)
    for layer in range(model.depth):
      clean, corrupt = (run[site][layer] for run in runs)
      np.testing.assert_array_equal(clean[:, :3], corrupt[:, :3])  # nothing before the byte
      for i, position in enumerate(range(3, 7)):
        def moved(share):
          def change(place, at, value):
            if (place, at) == (site, layer):
              value = value.copy()
              value[:, position] += share * (clean - corrupt)[:, position]
            return value
          return _metric(case, change) - start
        np.testing.assert_allclose(found.activation[site][:, layer, i], moved(1), atol=2e-4)
        slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
        np.testing.assert_allclose(found.attribution[site][:, layer, i], slope, atol=2e-4)
  # They are not the same thing here, so neither can stand in for the other.
  assert max(np.abs(found.activation[site] - found.attribution[site]).max()
             for site in ap.SITES) > 0.1


def test_the_changed_byte_in_the_first_stream_is_everything(found):
  np.testing.assert_allclose(found.activation['resid_pre'][:, 0, 0], found.total, atol=1e-4)
  assert np.abs(found.activation['resid_pre'][:, 1, 0] - found.total).max() > 1e-2


def _patches(gaps, total):
  gaps = np.asarray(gaps, np.float64)
  zeros = {'resid_pre': np.zeros_like(gaps)}
  return ap.Patches(zeros, {'resid_pre': gaps}, np.asarray(total), np.asarray(total))


def test_errors_and_their_comparison_by_hand():
  # Two layers of two positions: sums over positions 3 and 5, mean 4; totals 2 and -8.
  a = _patches([[[1, -2], [5, 0]], [[0, 2], [2, 0]]], [2.0, -8.0])
  np.testing.assert_allclose(ap.error(a, 'resid_pre'), [2, 0.25])
  np.testing.assert_allclose(ap.error(a, 'resid_pre', 'all'), [4 / 5, 2 / 5])
  b = _patches([[[1, 0], [0, 1]], [[0, 0], [0, 2]]], [2.0, -8.0])
  both = ap.compare(a, b, 'resid_pre')
  assert both.difference.mean == pytest.approx(((4 - 1) + (2 - 1)) / 2 / 5)
  assert (both.smaller_in_b, both.smaller_in_a) == (2, 0) and both.p == pytest.approx(0.5)


def test_the_sign_test_counts_signs_and_leaves_ties_out():
  rng = np.random.default_rng(0)
  gaps = rng.uniform(1, 2, (12, 1, 1))
  less = gaps - 0.1
  less[0], less[1] = gaps[0], gaps[1] + 1
  a, b = _patches(gaps, np.ones(12)), _patches(less, np.ones(12))
  both = ap.compare(a, b, 'resid_pre')
  assert (both.smaller_in_b, both.smaller_in_a) == (10, 1)
  # P(at most 1 or at least 10 of 11 heads).
  assert both.p == pytest.approx(2 * (1 + 11) / 2 ** 11)
  assert both.p == pytest.approx(2 * stats.binom.cdf(1, 11, 0.5))
  # One large difference the other way: the interval has 0 in it, and the signs still speak.
  assert both.difference.low < 0.1 < both.difference.high
  back = ap.compare(b, a, 'resid_pre')
  assert back.difference.mean == pytest.approx(-both.difference.mean) and back.p == both.p
  assert ap.compare(a, a, 'resid_pre').p == 1
