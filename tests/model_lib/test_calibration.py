"""Calibration error by hand, and temperatures that are known because the tokens were drawn so."""
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from model_lib.analysis import calibration
from tests.model_lib.bigram import bigram
from tests.model_lib.gpt2_numpy import log_softmax

pytestmark = pytest.mark.usefixtures('unoptimized')


def test_calibration_error_by_hand():
  # Bins of a tenth: (0.2, 0.3] has 0.22 and 0.3, right once; (0.9, 1] has 0.95 three times, right
  # twice: 2/5 |0.5 - 0.26| + 3/5 |2/3 - 0.95|.
  confidence = [0.22, 0.3, 0.95, 0.95, 0.95]
  correct = [True, False, True, True, False]
  assert calibration.expected_calibration_error(confidence, correct) == pytest.approx(
      0.4 * 0.24 + 0.6 * (0.95 - 2 / 3))
  # Of fifteen bins 0.22 and 0.3 are in two.
  assert calibration.expected_calibration_error(confidence, correct, 15) == pytest.approx(
      0.2 * 0.78 + 0.2 * 0.3 + 0.6 * (0.95 - 2 / 3))
  # One bin: only the means count.
  assert calibration.expected_calibration_error([0.1, 0.9], [True, False], 1) == 0
  assert math.isnan(calibration.expected_calibration_error([math.nan], [True]))
  with pytest.raises(ValueError, match='2 confidences and 1 outcomes'):
    calibration.expected_calibration_error([0.1, 0.2], [True])


@pytest.mark.parametrize('bins', [10, 15])
def test_calibration_error_of_calibrated_and_of_confident_outputs(bins):
  rng = np.random.default_rng(0)
  chance = rng.uniform(0.3, 0.7, 40_000)
  right = rng.uniform(size=chance.size) < chance
  assert calibration.expected_calibration_error(chance, right, bins) < 0.012
  confident = calibration.expected_calibration_error(chance + 0.25, right, bins)
  assert confident == pytest.approx(0.25, abs=0.012)


def _chain(table, count, length, seed=0):
  """Windows drawn from a bigram model."""
  rng = np.random.default_rng(seed)
  p = np.exp(log_softmax(table)).cumsum(-1)
  tokens = [rng.integers(0, len(table), count)]
  for _ in range(length - 1):
    tokens.append((p[tokens[-1]] < rng.uniform(size=(count, 1))).sum(-1))
  return np.stack(tokens, 1).astype(np.int32)


@pytest.mark.parametrize('factor', [0.4, 1.0, 2.5])
def test_the_temperature_of_scaled_logits_is_found(factor):
  table = np.random.default_rng(1).normal(0, 1.5, (7, 7))
  tokens = _chain(table, 50, 120)
  found = calibration.best_temperature(*bigram(factor * table), tokens, batch=20)
  # A minimum of the loss, by another method.
  def loss(log_t):
    logp = log_softmax(factor * table / math.exp(log_t))
    return -logp[tokens[:, :-1], tokens[:, 1:]].mean()
  best = math.exp(optimize.minimize_scalar(loss, (-1, 1)).x)
  assert found == pytest.approx(best, rel=1e-3)
  # The tokens follow the unscaled table, so over-confident logits (factor > 1) ask for T > 1.
  assert found == pytest.approx(factor, rel=0.05)


def test_temperatures_without_a_minimum():
  tokens = np.tile(np.arange(4, dtype=np.int32), 6).reshape(2, 12)
  right = np.roll(np.eye(4), 1, axis=1) * 3
  assert calibration.best_temperature(*bigram(right), tokens) == 0
  assert calibration.best_temperature(*bigram(-right), tokens) == math.inf
  broken = right.copy()
  broken[0, 0] = math.nan
  assert math.isnan(calibration.best_temperature(*bigram(broken), tokens))
