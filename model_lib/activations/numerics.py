"""What the families share to keep values and gradients finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# exp(exp(40)) and everything built on it is saturated, while e^40 squared is finite in float32:
# clamping an inner exponent here changes no value and keeps inf * 0 out of derivatives.
EXPONENT_LIMIT = 40.0


def split_at_zero(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(x where x < 0 else 0, 0 where x < 0 else x); nan goes to the right.

  Branches of a `where` must each be finite with a finite derivative on all inputs, because the
  gradient multiplies the branch not taken by 0.
  """
  negative = x < 0
  return jnp.where(negative, x, 0), jnp.where(negative, 0, x)
