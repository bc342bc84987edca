"""Losses of tokens, their summary, paired differences, divergences: against numpy and scipy."""
from __future__ import annotations

import math
import threading

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from model_lib.analysis import language_loss
from model_lib.analysis.batches import in_batches, side_by_side
from model_lib.analysis.bootstrap import bootstrap, mean_bootstrap
from model_lib.errors import UserError
from tests.model_lib import gpt2_numpy
from tests.model_lib.bigram import bigram

pytestmark = pytest.mark.usefixtures('unoptimized')


def test_predictions_are_those_of_the_next_token():
  model, variables = gpt2_numpy.small()
  tokens = gpt2_numpy.windows(5)
  found = language_loss.predict(model, variables, tokens, batch=2)
  logp = gpt2_numpy.log_softmax(gpt2_numpy.forward(model, variables, tokens)['logits'])[:, :-1]
  loss = -np.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0]
  np.testing.assert_allclose(found.loss, loss, atol=1e-4)
  np.testing.assert_allclose(found.entropy, -(np.exp(logp) * logp).sum(-1), atol=1e-4)
  np.testing.assert_allclose(found.confidence, np.exp(logp).max(-1), atol=1e-4)
  np.testing.assert_array_equal(found.correct, logp.argmax(-1) == tokens[:, 1:])
  # The token that stands at the position itself is another one.
  unshifted = -np.take_along_axis(logp, tokens[:, :-1, None], -1)[..., 0]
  assert np.abs(found.loss - unshifted).max() > 1


def test_networks_side_by_side(monkeypatch):
  """In their order, the first one alone; a mistake in one is not lost."""
  monkeypatch.setenv('NPROC', '2')
  begun, both = [], threading.Barrier(2)

  def function(item):
    begun.append(item)
    if item:
      both.wait(timeout=30)  # passes only if two are under way
    return 10 * item, len(begun) if not item else 0

  assert side_by_side(function, [0, 1, 2, 3, 4]) == [(0, 1), *((10 * i, 0) for i in range(1, 5))]
  assert side_by_side(str, [7]) == ['7'] and side_by_side(str, []) == []
  with pytest.raises(ZeroDivisionError):
    side_by_side(lambda item: 1 / item, [1, 2, 0])


def test_the_last_batch_is_filled_and_cut():
  shapes = []

  def double(block):
    shapes.append(block['x'].shape)
    return {'y': 2 * block['x']}

  x = np.arange(21).reshape(7, 3)
  np.testing.assert_array_equal(in_batches(double, {'x': x}, 3)['y'], 2 * x)
  assert shapes == [(3, 3)] * 3
  shapes.clear()
  np.testing.assert_array_equal(in_batches(double, {'x': x}, 100)['y'], 2 * x)
  assert shapes == [(7, 3)]
  with pytest.raises(UserError, match='0 sequences in batches of 3'):
    in_batches(double, {'x': x[:0]}, 3)


def test_windows_of_one_token_predict_nothing():
  model, variables = bigram(np.zeros((3, 3)))
  with pytest.raises(UserError, match=r'T >= 2.*got \[4, 1\]'):
    language_loss.predict(model, variables, np.zeros((4, 1), np.int32))


def test_summary_shows_the_tail_that_a_mean_hides():
  loss = np.ones((100, 100))
  loss[3, 7], loss[5, 5], loss[5, 6] = 1e6, 51, 50
  found = language_loss.summary(loss)
  assert found['median'] == found['p97.5'] == found['p0.1'] == found['p99.9'] == 1
  assert (found['max'], found['above_50'], found['tokens']) == (1e6, 2, 10_000)
  assert found['mean'] == pytest.approx((1e6 + 101 + 9997) / 1e4)
  line = language_loss.summary(np.arange(1001.0))
  # Linear interpolation of 1,001 order statistics: the percentile p is the number 10 p.
  np.testing.assert_allclose(
      [line[f'p{p}'] for p in ('0.1', '2.5', '97.5', '99.9')], [1, 25, 975, 999])
  assert line['above_50'] == 950 and line['not_finite'] == 0
  broken = language_loss.summary(np.array([1.0, math.nan, math.inf]))
  assert math.isnan(broken['mean']) and math.isnan(broken['median'])
  assert broken['above_50'] == broken['not_finite'] == 2


def test_the_difference_is_paired_over_sequences():
  rng = np.random.default_rng(0)
  shared = rng.normal(0, 1, (60, 1))  # easy and hard texts, in both models
  a, b = (shared + rng.normal(mean, 0.1, (60, 8)) for mean in (0.05, 0.0))
  found = language_loss.difference(a, b)
  per_sequence = (a - b).mean(1)
  reference = stats.bootstrap((per_sequence,), np.mean, n_resamples=4000, method='percentile',
                              rng=np.random.default_rng(1)).confidence_interval
  error = per_sequence.std() / 60 ** 0.5
  assert found.mean == pytest.approx(per_sequence.mean()) and found.n == 60
  np.testing.assert_allclose((found.low, found.high), reference, atol=0.25 * error)
  assert found.sd == pytest.approx(error, rel=0.15)
  assert 0 < found.low < found.high
  # Without the pairs nothing would be seen; tokens taken as independent would see too much.
  loose = language_loss.difference(a, b[::-1])
  assert loose.low < 0 < loose.high
  tokens = mean_bootstrap((a - b[::-1]).ravel())
  assert tokens.high - tokens.low < 0.6 * (loose.high - loose.low)
  assert found == language_loss.difference(a, b)
  assert found != language_loss.difference(a, b, seed=1)
  with pytest.raises(ValueError, match='equal shapes'):
    language_loss.difference(a, b[:5])


def test_bootstrap_over_two_axes_is_wider_than_over_one():
  rng = np.random.default_rng(0)
  table = rng.normal(0, 1, (40, 1)) + rng.normal(0, 1, (1, 10))
  both = bootstrap(lambda rows, columns: table[rows][:, columns].mean(), table.shape)
  rows = bootstrap(lambda rows: table[rows].mean(), [40])
  # Standard errors by hand: rows and columns each add the variance of their mean.
  of_rows, of_columns = table.mean(1).var() / 40, table.mean(0).var() / 10
  assert both.sd == pytest.approx((of_rows + of_columns) ** 0.5, rel=0.1)
  assert rows.sd == pytest.approx(of_rows ** 0.5, rel=0.1) and both.sd > 1.5 * rows.sd
  assert math.isnan(mean_bootstrap(np.array([1.0])).low)
  assert math.isnan(mean_bootstrap(np.array([1.0, math.inf, 2.0])).high)


def test_divergence_is_the_square_of_scipys_distance():
  rng = np.random.default_rng(0)
  tables = rng.normal(0, 2, (2, 6, 6))
  tokens = rng.integers(0, 6, (3, 5), np.int32)
  found = language_loss.divergence(bigram(tables[0]), bigram(tables[1]), tokens, batch=2)
  p, q = (np.exp(gpt2_numpy.log_softmax(table))[tokens[:, :-1]] for table in tables)
  np.testing.assert_allclose(found, distance.jensenshannon(p, q, axis=-1) ** 2, atol=1e-6)
  assert found.min() > 1e-3
  same = language_loss.divergence(bigram(tables[0]), bigram(tables[0]), tokens)
  np.testing.assert_array_equal(same, 0)
  apart = [np.full((6, 6), -1e4), np.full((6, 6), -1e4)]
  apart[0][:, 0] = apart[1][:, 1] = 0
  disjoint = language_loss.divergence(*map(bigram, apart), tokens)
  np.testing.assert_allclose(disjoint, math.log(2), rtol=1e-6)


def test_entropy_of_certain_and_even_outputs():
  logp = np.array([[0.0, -np.inf, -np.inf, -np.inf], [-math.log(4)] * 4])
  np.testing.assert_allclose(language_loss.entropy(jax.numpy.asarray(logp)), [0, math.log(4)],
                             rtol=1e-6)
