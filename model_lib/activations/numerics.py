"""What the families share to keep values and gradients finite."""

from __future__ import annotations

from collections.abc import Sequence

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


@jax.custom_jvp
def one_minus_exp(u: jax.Array) -> jax.Array:
  """1 - e^-u, with all digits of its derivative e^-u, which JAX takes from -(1 - e^-u) + 1."""
  return -jnp.expm1(-u)


@one_minus_exp.defjvp
def _one_minus_exp_jvp(primals, tangents):
  (u,), (du,) = primals, tangents
  return one_minus_exp(u), jnp.exp(-u) * du


@jax.custom_jvp
def saturating_tanh(u: jax.Array) -> jax.Array:
  """tanh(u), with all digits of its derivative, which JAX takes from 1 - tanh(u)^2.

  Where u grows like e^x, each derivative multiplies the rounding error of that difference by u.
  """
  return jnp.tanh(u)


@saturating_tanh.defjvp
def _saturating_tanh_jvp(primals, tangents):
  (u,), (du,) = primals, tangents
  return saturating_tanh(u), 4 * jax.nn.sigmoid(2 * u) * jax.nn.sigmoid(-2 * u) * du


def polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
  """The sum over k of coefficients[k] x^k, by Horner's rule (jnp.polyval is a loop in the program).
  """
  total = jnp.zeros_like(x)
  for coefficient in reversed(coefficients):
    total = total * x + coefficient
  return total
