"""ELU and softplus families.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; `get_activation` adds the float32 arithmetic for narrower inputs.
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.numerics import split_at_zero
from model_lib.activations.registry import register

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_SERLU_SCALE, _SERLU_ALPHA = 1.07862, 2.90427


@register(source='jax', kinks=lambda alpha: () if alpha == 1 else (0.0,), positive=('alpha',),
          duplicates=('celu',), monotone='increasing')
def elu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
  """x for x > 0, alpha (e^x - 1) for x <= 0.

  Clevert et al. 2015, arXiv 1511.07289.
  """
  return jax.nn.elu(x, alpha)


@register(source='jax', kinks=(0.0,), monotone='increasing')
def selu(x: jax.Array) -> jax.Array:
  """1.0507 x for x > 0, 1.0507 * 1.6733 (e^x - 1) for x <= 0.

  Klambauer et al. 2017, arXiv 1706.02515.
  """
  return _SELU_SCALE * jax.nn.elu(x, _SELU_ALPHA)


@register(source='jax', positive=('alpha',), duplicates=('elu',), monotone='increasing')
def celu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
  """max(x, 0) + min(0, alpha (e^(x / alpha) - 1)).

  Barron 2017, arXiv 1704.07483.
  """
  return jax.nn.celu(x, alpha)


@register(source='kunc2024', kinks=(0.0,))
def serlu(x: jax.Array) -> jax.Array:
  """1.07862 x for x >= 0, 1.07862 * 2.90427 x e^x for x < 0.

  Zhang & Li 2018, arXiv 1807.10117.
  """
  left, right = split_at_zero(x)
  return _SERLU_SCALE * jnp.where(x < 0, _SERLU_ALPHA * left * jnp.exp(left), right)


@register(source='kunc2024', positive=('alpha',), monotone='increasing')
def isrlu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
  """x for x >= 0, x / sqrt(1 + alpha x^2) for x < 0.

  Carlile et al. 2017, arXiv 1710.09967.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, left * lax.rsqrt(1 + alpha * jnp.square(left)), right)


@register(source='basirat2018')
def elish(x: jax.Array) -> jax.Array:
  """x sigmoid(x) for x >= 0, (e^x - 1) sigmoid(x) for x < 0.

  Basirat & Roth 2018, arXiv 1808.00783.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, jnp.expm1(left), right) * jax.nn.sigmoid(x)


@register(source='jax', monotone='increasing')
def softplus(x: jax.Array) -> jax.Array:
  """ln(1 + e^x).

  Dugas et al. 2001.
  """
  return jax.nn.softplus(x)


@register(source='schutt2017', monotone='increasing')
def shifted_softplus(x: jax.Array) -> jax.Array:
  """ln(1 + e^x) - ln 2 = ln(1/2 + e^x / 2).

  Schuett et al. 2017 (SchNet), arXiv 1706.08566.
  """
  # softplus - ln 2 cancels at 0; x/2 + ln cosh(x/2) does not, and ln cosh is even.
  small = jnp.abs(x) < 1
  near = 0.5 * jnp.where(small, x, 0)
  return jnp.where(small, near + 0.5 * jnp.log1p(jnp.square(jnp.sinh(near))),
                   jax.nn.softplus(x) - math.log(2))


@register(source='jax', positive=('b',), monotone='increasing')
def squareplus(x: jax.Array, b: float = 4.0) -> jax.Array:
  """(x + sqrt(x^2 + b)) / 2.

  Barron 2021, arXiv 2112.11687.
  """
  root = jnp.sqrt(jnp.square(x) + b)
  # b / (2 (root - x)) on the left, where the textbook form cancels.
  left, right = split_at_zero(x)
  return jnp.where(x < 0, 0.5 * b / (root - left), 0.5 * (right + root))


@register(source='jax', monotone='increasing')
def sparse_plus(x: jax.Array) -> jax.Array:
  """0 for x <= -1, (x + 1)^2 / 4 between, x for x >= 1."""
  return jax.nn.sparse_plus(x)


@register(source='jax', monotone='increasing')
def log_sigmoid(x: jax.Array) -> jax.Array:
  """-ln(1 + e^-x)."""
  return jax.nn.log_sigmoid(x)


@register(source='kunc2024', monotone='increasing')
def bent_identity(x: jax.Array) -> jax.Array:
  """(sqrt(x^2 + 1) - 1) / 2 + x."""
  square = jnp.square(x)
  return 0.5 * square / (jnp.sqrt(square + 1) + 1) + x
