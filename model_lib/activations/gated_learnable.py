"""x g(x) with learnable numbers in g; the defaults are their first values.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; a parameter is a scalar or an array that broadcasts against x. `get_activation` adds
the float32 arithmetic for narrower inputs and shapes the parameters.
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.gated_self import calu, gelu, silu
from model_lib.activations.numerics import EXPONENT_LIMIT, saturating_tanh, split_at_zero
from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds

_Number = float | jax.Array


def _normal_cdf(x: jax.Array) -> jax.Array:
  return 0.5 * lax.erfc(-x * math.sqrt(0.5))


@register(source='perezcorral2026', learnable=('hardness',), bounds={'hardness': Bounds(1)},
          duplicates=('gelu', 'xgelu'))
def lambda_gelu(x: jax.Array, hardness: _Number = 1.0) -> jax.Array:
  """x Phi(hardness x), GELU for hardness 1 and ReLU in the limit.

  Perez-Corral et al. 2026, arXiv 2603.21991.
  """
  return x * _normal_cdf(hardness * x)


# The smallest slope of x Phi(x) is -0.1289; with the share 1 - a of it the sum stays above 0.
_SMU_MONOTONE = 0.1143


@register(source='kunc2024', learnable=('b',), positive=('b',), bounds={'a': Bounds(0, 1)},
          monotone=lambda a, b: 'increasing' if a >= _SMU_MONOTONE else '',
          parity=lambda a, b: 'odd' if a == 1 else '')
def smu(x: jax.Array, a: float = 0.25, b: _Number = 25.0) -> jax.Array:
  """((1 + a) x + (1 - a) x erf(b (1 - a) x)) / 2, a smooth max(x, a x).

  Biswas et al. 2021, arXiv 2111.04682.
  """
  return x * (a + (1 - a) * 0.5 * lax.erfc(-b * (1 - a) * x))


@register(source='kunc2024', learnable=('a',))
def tanhsoft_1(x: jax.Array, a: _Number = 1.0) -> jax.Array:
  """tanh(a x) ln(1 + e^x).

  Biswas et al. 2020, arXiv 2009.03863.
  """
  return jnp.tanh(a * x) * jax.nn.softplus(x)


@register(source='kunc2024', learnable=('b', 'c'), positive=('b', 'c'))
def tanhsoft_2(x: jax.Array, b: _Number = 0.6, c: _Number = 1.0) -> jax.Array:
  """x tanh(b e^(c x)).

  Biswas et al. 2020, arXiv 2009.03863.
  """
  return x * saturating_tanh(b * jnp.exp(jnp.minimum(c * x, EXPONENT_LIMIT)))


@register(source='kunc2024', learnable=('a',),
          domain=lambda a: (-1e4, 1e4) if a >= 0 else (-1e4, 0.0))
def tanhsoft_3(x: jax.Array, a: _Number = 1.0) -> jax.Array:
  """ln(1 + e^x tanh(a x)).

  Biswas et al. 2020, arXiv 2009.03863.

  For a < 0 the argument of the logarithm falls below 0 on the right.
  """
  right = x > 1
  low, high = jnp.where(right, 0, x), jnp.where(right, x, 1)
  near = jnp.log1p(jnp.exp(low) * jnp.tanh(a * low))
  return jnp.where(right, high + jnp.log(jnp.exp(-high) + jnp.tanh(a * high)), near)


@register(source='echo', positive=('alpha', 'beta'))
def aria2(x: jax.Array, alpha: float = 1.5, beta: float = 2.0) -> jax.Array:
  """x (1 + e^(-beta x))^-alpha.

  Patwardhan et al. 2018, arXiv 1805.08878.
  """
  return x * jnp.exp(-alpha * jax.nn.softplus(-beta * x))


@register(source='kunc2024', learnable=('a', 'b'), positive=('b',), bounds={'a': Bounds(0, 1)})
def falu(x: jax.Array, a: _Number = 0.5, b: _Number = 1.0) -> jax.Array:
  """g + a sigmoid(b x) (1 - g), g = x sigmoid(b x): about the derivative of order a of g, a <= 1.

  Zamora et al. 2022.
  """
  gate, rest = jax.nn.sigmoid(b * x), jax.nn.sigmoid(-b * x)
  # 1 - a gate = (1 - a) + a rest keeps its digits on the right.
  return x * gate * ((1 - a) + a * rest) + a * gate


def _expand(gated: jax.Array, x: jax.Array, alpha: _Number) -> jax.Array:
  """x (g (1 + 2 alpha) - alpha) from gated = x g: the gate runs from -alpha to 1 + alpha."""
  return gated * (1 + 2 * alpha) - alpha * x


@register(source='huang2024gating', learnable=('alpha',), duplicates=('calu',),
          monotone=lambda alpha: 'increasing' if alpha == 0 else '')
def xatlu(x: jax.Array, alpha: _Number = 0.0) -> jax.Array:
  """x ((1/2 + arctan(x) / pi) (1 + 2 alpha) - alpha).

  Huang 2024, arXiv 2405.20768.
  """
  return _expand(calu(x), x, alpha)


@register(source='huang2024gating', learnable=('alpha',), duplicates=('gelu', 'lambda_gelu'))
def xgelu(x: jax.Array, alpha: _Number = 0.0) -> jax.Array:
  """x (Phi(x) (1 + 2 alpha) - alpha).

  Huang 2024, arXiv 2405.20768.
  """
  return _expand(gelu(x), x, alpha)


@register(source='huang2024gating', learnable=('alpha',),
          duplicates=('acon_c', 'silu', 'swish_beta'))
def xsilu(x: jax.Array, alpha: _Number = 0.0) -> jax.Array:
  """x (sigmoid(x) (1 + 2 alpha) - alpha).

  Huang 2024, arXiv 2405.20768.
  """
  return _expand(silu(x), x, alpha)


@register(source='biswas2020')
def eis_1(x: jax.Array, delta: float = 1.16) -> jax.Array:
  """x ln(1 + e^x) / (x + delta e^-x).

  Biswas et al. 2020, arXiv 2009.13501.
  """
  left, right = split_at_zero(x)
  decay = jnp.exp(left)
  # Multiplied through by e^x on the left, where its inverse overflows.
  ratio = jnp.where(x < 0, left * decay / (left * decay + delta),
                    right / (right + delta * jnp.exp(-right)))
  return ratio * jax.nn.softplus(x)


@register(source='echo')
def eis_2(x: jax.Array) -> jax.Array:
  """x ln(1 + e^x) / sqrt(1 + x^2).

  Biswas et al. 2020, arXiv 2009.13501.
  """
  return x * jax.nn.softplus(x) * lax.rsqrt(1 + jnp.square(x))


@register(source='echo', positive=('delta', 'theta'))
def eis_3(x: jax.Array, delta: float = 0.68, theta: float = 1.7) -> jax.Array:
  """x / (1 + delta e^(-theta x)).

  Biswas et al. 2020, arXiv 2009.13501.
  """
  return x * jax.nn.sigmoid(theta * x - jnp.log(delta))
