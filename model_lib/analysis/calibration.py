"""Calibration of a language model: expected calibration error, and the temperature that fits best.

Source of both: Guo et al. 2017, "On calibration of modern neural networks" (arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy

from model_lib.analysis.batches import in_batches

# Temperatures outside of [1 / this, this] are not told apart from 0 and infinity.
_LIMIT = 100.0


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
  convex, and its slope, mean(sum_v p_v z_v - z_token), has one root, which Brent's method finds to
  1e-4 relative; each step is a pass over the tokens.

  Args:
    model, variables: logits z [B, T, V] of `model.apply(variables, tokens, train=False)`.
    tokens: [N, T]; position p predicts token p + 1.
    batch: windows at a time.

  Returns:
    T; 0.0 or inf where the loss still falls at T = 0.01 or 100 (every token is the most probable
    one, or no better than a guess); nan where a logit is not finite.
  """
  def slope(log_b: float) -> float:
    per_window = in_batches(
        lambda block: _slope(model, variables, block, jnp.asarray(math.exp(log_b))), tokens, batch)
    return float(np.mean(per_window, dtype=np.float64))

  ends = -math.log(_LIMIT), math.log(_LIMIT)
  low, high = (slope(end) for end in ends)
  if not (math.isfinite(low) and math.isfinite(high)):
    return math.nan
  if low >= 0 or high <= 0:
    return math.inf if low >= 0 else 0.0
  return math.exp(-scipy.optimize.brentq(slope, *ends, xtol=1e-4))


@functools.partial(jax.jit, static_argnums=0)
def _slope(model, variables, tokens, b):
  logits = model.apply(variables, tokens, train=False)[:, :-1]
  z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  token = jnp.take_along_axis(z, tokens[:, 1:, None], axis=-1)  # [B, T - 1, 1]
  # Of differences to the token's own logit: no cancellation of large logits.
  return jnp.mean(jnp.sum(jax.nn.softmax(b.astype(z.dtype) * z) * (z - token), -1), -1)
