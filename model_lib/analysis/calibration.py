"""Calibration of a language model: expected calibration error, and the temperature that fits best.

Source of both: Guo et al. 2017, "On calibration of modern neural networks" (arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis.batches import in_batches
from model_lib.analysis.language_loss import logits

# Temperatures outside of [1 / this, this] are not told apart from 0 and infinity.
_LIMIT = 100.0
_POINTS = 11  # of a pass; the next one looks into a tenth of its range


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray,
                               bins: int = 10) -> float:
  """sum over bins of (share of the predictions in it) |accuracy - mean confidence|.

  Args:
    confidence: largest probability of each prediction, any shape.
    correct: whether the most probable class was right, same shape.
    bins: of equal width in (0, 1]; a bin holds its upper end.

  Returns:
    A number from 0 to 1; nan where a confidence is no number.
  """
  confidence = np.asarray(confidence, np.float64).ravel()
  correct = np.asarray(correct, np.float64).ravel()
  if confidence.size != correct.size:
    raise ValueError(f'{confidence.size} confidences and {correct.size} outcomes')
  if np.isnan(confidence).any():
    return math.nan
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  # |sum of correct - sum of confidence| of a bin is its count times the gap.
  gaps = np.bincount(place, correct - confidence, minlength=bins)
  return float(np.abs(gaps).sum() / confidence.size)


def best_temperature(model: nn.Module, variables: Mapping, tokens: np.ndarray,
                     batch: int = 16) -> float:
  """The temperature T that minimises the mean cross-entropy of softmax(logits / T).

  T > 1 means that the model is over-confident: its logits must shrink. With b = 1 / T the loss is
  convex, and its slope, mean(sum_v p_v z_v - z_token), has one root. Three passes over the tokens,
  each at 11 values of log b within a tenth of the range before, find it to 1e-4 relative.

  Args:
    model, variables: logits z [B, T, V] of `model.apply(variables, tokens, train=False)`.
    tokens: [N, T]; position p predicts token p + 1.
    batch: windows at a time.

  Returns:
    T; 0.0 or inf where the loss still falls at T = 0.01 or 100 (every token is the most probable
    one, or no better than a guess); nan where a logit is not finite.
  """
  def slopes(log_b: np.ndarray) -> np.ndarray:
    per_window = in_batches(
        lambda block: _slopes(logits(model, variables, block), block[:, 1:], np.exp(log_b)),
        tokens, batch)
    return np.mean(per_window, 0, dtype=np.float64)

  log_b = np.linspace(-math.log(_LIMIT), math.log(_LIMIT), _POINTS)
  found = slopes(log_b)
  if not np.isfinite(found[[0, -1]]).all():
    return math.nan
  if found[0] >= 0 or found[-1] <= 0:
    return math.inf if found[0] >= 0 else 0.0
  for _ in range(2):
    log_b = np.linspace(*log_b[_around_0(found)], _POINTS)
    found = slopes(log_b)
  here = _around_0(found)
  return math.exp(-np.interp(0.0, found[here], log_b[here]))


def _around_0(rising: np.ndarray) -> slice:
  """The last number at most 0 before the first above, and that one."""
  above = int(np.argmax(rising > 0))
  return slice(above - 1, above + 1)


@jax.jit
def _slopes(z, targets, b_k):
  """The slope of each window at each b, [B, K]."""
  token = jnp.take_along_axis(z, targets[..., None], axis=-1)  # [B, T - 1, 1]
  # Of differences to the token's own logit: no cancellation of large logits.
  def slope(b):
    return jnp.mean(jnp.sum(jax.nn.softmax(b * z) * (z - token), -1), -1)

  return jax.lax.map(slope, b_k.astype(z.dtype)).T
