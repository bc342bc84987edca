"""What a normalized layer y = N(x W) does not notice: the invariance table, measured in float64.

The transformations are those of Ba, Kiros, Hinton 2016, arXiv:1607.06450. A yes holds under these
conditions alone: factors above 0, eps = 0, no bias before the norm (layer and rms lose
the re-scalings with one), batch in training mode, weight norm with its g held.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.normalization import get_norm
from model_lib.normalization.weight import weight_norm

WEIGHT_NORM = 'weight_norm'
_EXAMPLES, _INPUTS, _UNITS = 64, 32, 48
_UNIT, _CASE = 5, 7

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def _one_column(w: np.ndarray, column: int, factor: float) -> np.ndarray:
  return w * np.where(np.arange(w.shape[1]) == column, factor, 1.0)


# (x [B, I], W [I, U], rng) -> what takes their places.
TRANSFORMATIONS: dict[str, Change] = {
  'weight matrix re-scaling': lambda x, w, rng: (x, 3.7 * w),
  # The same vector is added to the weights of every unit.
  'weight matrix re-centring': lambda x, w, rng: (x, w + rng.normal(size=(w.shape[0], 1))),
  'weight vector re-scaling': lambda x, w, rng: (x, _one_column(w, _UNIT, 2.3)),
  'data set re-scaling': lambda x, w, rng: (0.31 * x, w),
  'data set re-centring': lambda x, w, rng: (x + rng.normal(size=x.shape[1]), w),
  'single case re-scaling': lambda x, w, rng: (_one_column(x.T, _CASE, 2.9).T, w),
}


def deviations(norm: str, seed: int = 0) -> dict[str, float]:
  """max |y' - y| / sqrt(mean y^2) of each transformation.

  Args:
    norm: spec of a norm with eps=0 where it has one, such as 'layer(eps=0)'; 'weight_norm' for
      y = x (g v / |v|) with random g.
    seed: of x [64, 32], W [32, 48] and the vectors that are added.

  Returns:
    {transformation: deviation}, float64 arithmetic.

  Raises:
    UserError: an unknown norm.
  """
  rng = np.random.Generator(np.random.Philox(seed))
  x = 0.5 + rng.normal(size=(_EXAMPLES, _INPUTS))
  w = rng.normal(size=(_INPUTS, _UNITS)) / np.sqrt(_INPUTS)
  gain = rng.uniform(0.5, 2, size=_UNITS)
  with jax.enable_x64(True):
    if norm == WEIGHT_NORM:
      def layer(x, w):
        return x @ np.asarray(weight_norm(jnp.asarray(w), jnp.asarray(gain)))
    else:
      module = get_norm(norm).layer()
      state = module.init(jax.random.key(0), x @ w, train=False)

      def layer(x, w):
        return np.asarray(module.apply(state, x @ w, train=True, mutable=['batch_stats'])[0])

    y = layer(x, w)
    scale = np.sqrt(np.mean(np.square(y)))
    return {name: float(np.abs(layer(*change(x, w, rng)) - y).max() / scale)
            for name, change in TRANSFORMATIONS.items()}
