"""x g(x) with a g built from the softplus or from an exponential of an exponential.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; `get_activation` adds the float32 arithmetic for narrower inputs.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.numerics import (
    EXPONENT_LIMIT,
    one_minus_exp,
    saturating_tanh,
    split_at_zero,
)
from model_lib.activations.registry import register


@register(source='jax')
def mish(x: jax.Array) -> jax.Array:
  """x tanh(ln(1 + e^x)).

  Misra 2019, arXiv 1908.08681.
  """
  return x * jnp.tanh(jax.nn.softplus(x))


@register(source='kunc2024')
def serf(x: jax.Array) -> jax.Array:
  """x erf(ln(1 + e^x)).

  Nag & Bhattacharyya 2021, arXiv 2108.09598.
  """
  return x * lax.erf(jax.nn.softplus(x))


@register(source='kunc2024', aliases=('telu', 'telu@fernandez2024'))
def tanhexp(x: jax.Array) -> jax.Array:
  """x tanh(e^x).

  Liu & Di 2020, arXiv 2003.09855.
  """
  return x * saturating_tanh(jnp.exp(jnp.minimum(x, EXPONENT_LIMIT)))


@register(source='kunc2024')
def gish(x: jax.Array) -> jax.Array:
  """x ln(2 - exp(-e^x)).

  Kaytan et al. 2023.
  """
  return x * jnp.log1p(one_minus_exp(jnp.exp(jnp.minimum(x, EXPONENT_LIMIT))))


@register(source='kunc2024')
def loglogish(x: jax.Array) -> jax.Array:
  """x (1 - exp(-e^x))."""
  return x * one_minus_exp(jnp.exp(jnp.minimum(x, EXPONENT_LIMIT)))


@register(source='das2025', aliases=('expexpish',), positive=('alpha', 'beta', 'gamma'))
def golu(
    x: jax.Array, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0,
) -> jax.Array:
  """alpha x exp(-beta e^(-gamma x)).

  Das et al. 2025, arXiv 2502.03654.
  """
  return alpha * x * jnp.exp(-beta * jnp.exp(jnp.minimum(-gamma * x, EXPONENT_LIMIT)))


@register(source='kunc2024')
def colu(x: jax.Array) -> jax.Array:
  """x / (1 - x exp(-(x + e^x))).

  Vagerwal 2021, arXiv 2112.12078.
  """
  left, right = split_at_zero(x)
  # Multiplied through by exp(x + e^x) on the left, where its inverse overflows.
  factor = jnp.exp(left + jnp.exp(left))
  inverse = jnp.exp(-right - jnp.exp(jnp.minimum(right, EXPONENT_LIMIT)))
  return jnp.where(x < 0, left * factor / (factor - left), right / (1 - right * inverse))
