"""Bounded and slowly growing activations: sigmoids, saturating curves, waves, logarithms.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; `get_activation` adds the float32 arithmetic for narrower inputs.
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.numerics import EXPONENT_LIMIT, one_minus_exp, split_at_zero
from model_lib.activations.registry import register


@register(source='jax', aliases=('linear',), duplicates=('blu', 'soft_exponential'),
          monotone='increasing', parity='odd')
def identity(x: jax.Array) -> jax.Array:
  """x."""
  return x


@register(source='jax', aliases=('logistic',), monotone='increasing')
def sigmoid(x: jax.Array) -> jax.Array:
  """1 / (1 + e^-x)."""
  return jax.nn.sigmoid(x)


@register(source='jax', monotone='increasing', parity='odd')
def tanh(x: jax.Array) -> jax.Array:
  """tanh(x)."""
  return jnp.tanh(x)


@register(source='jax', kinks=(-3.0, 3.0), monotone='increasing')
def hard_sigmoid(x: jax.Array) -> jax.Array:
  """min(max(x + 3, 0), 6) / 6; the slope is 1/6 (old Keras: 0.2)."""
  return jax.nn.hard_sigmoid(x)


@register(source='jax', kinks=(-1.0, 1.0), monotone='increasing', parity='odd')
def hard_tanh(x: jax.Array) -> jax.Array:
  """min(max(x, -1), 1)."""
  return jax.nn.hard_tanh(x)


@register(source='jax', kinks=(-1.0, 1.0), monotone='increasing')
def sparse_sigmoid(x: jax.Array) -> jax.Array:
  """min(max(x + 1, 0), 2) / 2, the derivative of sparse_plus."""
  return jax.nn.sparse_sigmoid(x)


@register(source='kunc2024', monotone='increasing', parity='odd')
def lecun_tanh(x: jax.Array) -> jax.Array:
  """1.7159 tanh(2x / 3).

  LeCun et al. 1998.
  """
  return 1.7159 * jnp.tanh(x * (2 / 3))


@register(source='kunc2024', kinks=(0.0,),
          monotone=lambda slope: 'increasing' if slope >= 0 else '')
def penalized_tanh(x: jax.Array, slope: float = 0.25) -> jax.Array:
  """tanh(x) for x > 0, slope tanh(x) for x <= 0.

  Xu et al. 2016, arXiv 1602.05980.
  """
  y = jnp.tanh(x)
  return jnp.where(x > 0, y, slope * y)


@register(source='jax', aliases=('softsign',), monotone='increasing', parity='odd')
def soft_sign(x: jax.Array) -> jax.Array:
  """x / (1 + |x|)."""
  return x / (1 + jnp.abs(x))


@register(source='kunc2024', monotone='increasing')
def elliott(x: jax.Array) -> jax.Array:
  """x / (2 (1 + |x|)) + 1/2.

  Elliott 1993.
  """
  # 1 / (2 (1 + |x|)) on the left, where the textbook form cancels.
  half = 0.5 / (1 + jnp.abs(x))
  return jnp.where(x < 0, half, 1 - half)


@register(source='kunc2024', monotone='increasing', parity='odd')
def arctan(x: jax.Array) -> jax.Array:
  """arctan(x)."""
  return jnp.arctan(x)


@register(source='jax', monotone='increasing', parity='odd')
def erf(x: jax.Array) -> jax.Array:
  """erf(x)."""
  return lax.erf(x)


@register(source='kunc2024', positive=('alpha',), monotone='increasing', parity='odd')
def isru(x: jax.Array, alpha: float = 1.0) -> jax.Array:
  """x / sqrt(1 + alpha x^2).

  Carlile et al. 2017, arXiv 1710.09967.
  """
  return x * lax.rsqrt(1 + alpha * jnp.square(x))


@register(source='kunc2024', monotone='increasing', parity='odd')
def sqnl(x: jax.Array) -> jax.Array:
  """x - x |x| / 4 for |x| <= 2, sign(x) beyond.

  Wuraola & Patel 2018.
  """
  inside = jnp.clip(x, -2, 2)
  return inside - 0.25 * inside * jnp.abs(inside)


@register(source='kunc2024', aliases=('gompertz', 'gumbel_cdf'), monotone='increasing')
def loglog(x: jax.Array) -> jax.Array:
  """exp(-e^-x)."""
  return jnp.exp(-jnp.exp(jnp.minimum(-x, EXPONENT_LIMIT)))


@register(source='standard', monotone='increasing')
def cloglog(x: jax.Array) -> jax.Array:
  """1 - exp(-e^x), the complementary log-log curve."""
  return one_minus_exp(jnp.exp(jnp.minimum(x, EXPONENT_LIMIT)))


@register(source='ma2022', positive=('sigma',), monotone='increasing')
def laplace_mega(x: jax.Array, mu: float = 0.707107, sigma: float = 0.282095) -> jax.Array:
  """(1 + erf((x - mu) / (sigma sqrt 2))) / 2.

  Ma et al. 2022, arXiv 2209.10655.
  """
  return 0.5 * lax.erfc((mu - x) / (sigma * math.sqrt(2)))


@register(source='standard', parity='even')
def gaussian(x: jax.Array) -> jax.Array:
  """e^(-x^2)."""
  return jnp.exp(-jnp.square(x))


@register(source='standard', positive=('omega',), parity='odd')
def sin(x: jax.Array, omega: float = 1.0) -> jax.Array:
  """sin(omega x).

  Sitzmann et al. 2020, arXiv 2006.09661.

  There omega is 30 in the first layer.
  """
  return jnp.sin(omega * x)


@register(source='standard', parity='even')
def sinc(x: jax.Array) -> jax.Array:
  """sin(x) / x (not normalized by pi), 1 at 0."""
  return unnormalized_sinc(x)


def unnormalized_sinc(x: jax.Array) -> jax.Array:
  """sin(x) / x, with its Taylor series where the quotient's derivative would cancel."""
  small = jnp.abs(x) < 0.5
  square = jnp.square(jnp.where(small, x, 0))
  series = jnp.zeros_like(x)
  for order in range(6, 0, -1):
    series = (1 + series) * (-square / ((2 * order) * (2 * order + 1)))
  far = jnp.where(small, 1, x)
  return jnp.where(small, 1 + series, jnp.sin(far) / far)


@register(source='jax', aliases=('arcsinh',), monotone='increasing', parity='odd')
def asinh(x: jax.Array) -> jax.Array:
  """asinh(x)."""
  return jnp.arcsinh(x)


@register(source='standard', monotone='increasing', parity='odd')
def symlog(x: jax.Array) -> jax.Array:
  """sign(x) ln(1 + |x|).

  Hafner et al. 2023, arXiv 2301.04104.
  """
  left, right = split_at_zero(x)
  # The sum of both halves, not sign(x) times one: that has the derivative 0 at 0.
  return jnp.where(x < 0, -jnp.log1p(-left), jnp.log1p(right))


@register(source='standard', overflow=True, monotone='increasing', parity='odd')
def symexp(x: jax.Array) -> jax.Array:
  """sign(x) (e^|x| - 1), the inverse of symlog.

  Hafner et al. 2023, arXiv 2301.04104.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, -jnp.expm1(-left), jnp.expm1(right))


@register(source='kunc2024', kinks=(0.0,), jumps=(0.0,), aliases=('heaviside',),
          monotone='increasing')
def binary_step(x: jax.Array) -> jax.Array:
  """1 for x >= 0, 0 for x < 0; its derivative is 0, so that nothing before it learns.

  McCulloch & Pitts 1943.
  """
  return jnp.where(x >= 0, 1, jnp.where(jnp.isnan(x), x, 0)).astype(x.dtype)


@register(source='kunc2024', positive=('a',), monotone='increasing', parity='odd')
def rootsig(x: jax.Array, a: float = 1.0) -> jax.Array:
  """a x / (1 + sqrt(1 + a^2 x^2))."""
  scaled = a * x
  return scaled / (1 + jnp.sqrt(1 + jnp.square(scaled)))


@register(source='kunc2024', positive=('a',), monotone='increasing')
def smooth_step(x: jax.Array, a: float = 2.0) -> jax.Array:
  """0 for x <= -a / 2, 1 for x >= a / 2, 1/2 + 3 x / (2 a) - 2 x^3 / a^3 between.

  Hazimeh et al. 2020, arXiv 2002.07772.
  """
  share = jnp.clip(x / a + 0.5, 0, 1)
  return jnp.square(share) * (3 - 2 * share)


@register(source='kunc2024', positive=('a',), monotone='increasing')
def soft_clipping(x: jax.Array, a: float = 1.0) -> jax.Array:
  """ln((1 + e^(a x)) / (1 + e^(a (x - 1)))) / a, a smooth min(max(x, 0), 1).

  Klimek & Perelstein 2018, arXiv 1810.11509.
  """
  # f(x) = 1 - f(1 - x): the difference keeps its digits on the left.
  low = jnp.where(x > 0.5, 1 - x, x)
  below = (jax.nn.softplus(a * low) - jax.nn.softplus(a * (low - 1))) / a
  return jnp.where(x > 0.5, 1 - below, below)


def _srs_domain(a: float, b: float) -> tuple[float, float]:
  # x / a + e^(-x / b) touches 0 on the left where a e <= b.
  return (-1e4, 1e4) if a * math.e > b else (0.0, 1e4)


@register(source='kunc2024', learnable=('a', 'b'), positive=('a', 'b'), domain=_srs_domain)
def srs(
    x: jax.Array, a: float | jax.Array = 2.0, b: float | jax.Array = 3.0,
) -> jax.Array:
  """x / (x / a + e^(-x / b)), between a b / (b - a e) and a.

  Zhou et al. 2020, arXiv 2003.00547.
  """
  left, right = split_at_zero(x)
  # Multiplied through by e^(x / b) on the left, where its inverse overflows.
  decay = left * jnp.exp(left / b)
  return jnp.where(x < 0, decay / (decay / a + 1), right / (right / a + jnp.exp(-right / b)))
