"""Polynomials and trigonometric polynomials, most of them with learnable coefficients.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; a parameter is a scalar or an array that broadcasts against x. `get_activation` adds
the float32 arithmetic for narrower inputs and shapes the parameters.

The first values of the learnable ones are the best approximation of ReLU in the space that the
basis belongs to: the normal density for Hermite and for the monomials, the uniform density on
[-1, 1] for Legendre, 1 / sqrt(1 - x^2) for Chebyshev, the uniform density on [-pi, pi] for
Fourier. Nothing limits x: a polynomial wants a normalized input.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from model_lib.activations.registry import register

_Number = float | jax.Array
_PEAK = 1 / math.sqrt(2 * math.pi)  # of the normal density


@register(source='kunc2024', parity='odd')
def ncu(x: jax.Array) -> jax.Array:
  """x - x^3.

  Noel et al. 2021, arXiv 2111.04020.
  """
  return x - x * jnp.square(x)


@register(source='kunc2024')
def squ(x: jax.Array) -> jax.Array:
  """x^2 + x.

  Noel et al. 2021, arXiv 2111.04020.
  """
  return x * (x + 1)


@register(source='kunc2024', learnable=('a0', 'a1', 'a2', 'a3', 'a4', 'a5'))
def slaf(
    x: jax.Array, a0: _Number = 3 / 8 * _PEAK, a1: _Number = 1 / 2, a2: _Number = 3 / 4 * _PEAK,
    a3: _Number = 0.0, a4: _Number = -1 / 24 * _PEAK, a5: _Number = 0.0,
) -> jax.Array:
  """a0 + a1 x + a2 x^2 + a3 x^3 + a4 x^4 + a5 x^5.

  Goyal et al. 2019, arXiv 1906.09529.
  """
  return a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * a5))))


@register(source='kunc2024', learnable=('a0', 'a1', 'a2', 'a3'))
def chebyshev(
    x: jax.Array, a0: _Number = 1 / math.pi, a1: _Number = 1 / 2,
    a2: _Number = 2 / (3 * math.pi), a3: _Number = 0.0,
) -> jax.Array:
  """a0 + a1 x + a2 (2 x^2 - 1) + a3 (4 x^3 - 3 x)."""
  square = jnp.square(x)
  return a0 + a1 * x + a2 * (2 * square - 1) + a3 * x * (4 * square - 3)


@register(source='kunc2024', learnable=('a0', 'a1', 'a2', 'a3'))
def hermite(
    x: jax.Array, a0: _Number = _PEAK, a1: _Number = 1 / 2, a2: _Number = _PEAK / 2,
    a3: _Number = 0.0,
) -> jax.Array:
  """a0 + a1 x + a2 (x^2 - 1) + a3 (x^3 - 3 x), the polynomials orthogonal under N(0, 1).

  Lokhande et al. 2020, arXiv 1909.05479.
  """
  square = jnp.square(x)
  return a0 + a1 * x + a2 * (square - 1) + a3 * x * (square - 3)


@register(source='kunc2024', learnable=('a0', 'a1', 'a2', 'a3'))
def legendre(
    x: jax.Array, a0: _Number = 1 / 4, a1: _Number = 1 / 2, a2: _Number = 5 / 16,
    a3: _Number = 0.0,
) -> jax.Array:
  """a0 + a1 x + a2 (3 x^2 - 1) / 2 + a3 (5 x^3 - 3 x) / 2."""
  square = jnp.square(x)
  return a0 + a1 * x + a2 * (1.5 * square - 0.5) + a3 * x * (2.5 * square - 1.5)


@register(source='kunc2024', learnable=('a', 'b1', 'b2', 'b3', 'c1', 'c2', 'c3', 'omega'))
def fourier(
    x: jax.Array, a: _Number = math.pi / 4, b1: _Number = -2 / math.pi, b2: _Number = 0.0,
    b3: _Number = -2 / (9 * math.pi), c1: _Number = 1.0, c2: _Number = -1 / 2,
    c3: _Number = 1 / 3, omega: _Number = 1.0,
) -> jax.Array:
  """a + sum_j (b_j cos(j omega x) + c_j sin(j omega x)), j = 1, 2, 3."""
  y = a
  for j, b, c in ((1, b1, c1), (2, b2, c2), (3, b3, c3)):
    y = y + b * jnp.cos(j * omega * x) + c * jnp.sin(j * omega * x)
  return y
