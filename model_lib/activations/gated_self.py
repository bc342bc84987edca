"""x g(x) with a sigmoid-like g: GELU, SiLU and the functions built like them.

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


@register(source='jax', aliases=('gelu_exact',), duplicates=('lambda_gelu', 'xgelu'))
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x) with the exact normal CDF (torch's default; jax.nn's default is gelu_tanh).

  Hendrycks & Gimpel 2016, arXiv 1606.08415.
  """
  return jax.nn.gelu(x, approximate=False)


@register(source='jax', aliases=('gelu_approximate', 'sielu'))
def gelu_tanh(x: jax.Array) -> jax.Array:
  """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 (jax.nn's default GELU).

  Hendrycks & Gimpel 2016, arXiv 1606.08415.
  """
  # (1 + tanh z) / 2 = sigmoid(2 z), which keeps its digits on the left.
  return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * jnp.square(x)))


@register(source='hendrycks2016')
def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x).

  Hendrycks & Gimpel 2016, arXiv 1606.08415.
  """
  return x * jax.nn.sigmoid(1.702 * x)


@register(source='jax', aliases=('swish',), duplicates=('acon_c', 'swish_beta', 'xsilu'))
def silu(x: jax.Array) -> jax.Array:
  """x sigmoid(x).

  Elfwing et al. 2017, arXiv 1702.03118; Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return jax.nn.silu(x)


@register(source='jax', kinks=(-3.0, 3.0), aliases=('hard_swish',))
def hard_silu(x: jax.Array) -> jax.Array:
  """x min(max(x + 3, 0), 6) / 6.

  Howard et al. 2019, arXiv 1905.02244.
  """
  return jax.nn.hard_silu(x)


@register(source='alcaide2018')
def e_swish(x: jax.Array, beta: float = 1.375) -> jax.Array:
  """beta x sigmoid(x), beta fixed.

  Alcaide 2018, arXiv 1801.07145.
  """
  return beta * jax.nn.silu(x)


@register(source='kunc2024')
def eanaf(x: jax.Array) -> jax.Array:
  """x e^x / (e^x + 2) = x sigmoid(x - ln 2)."""
  return x * jax.nn.sigmoid(x - math.log(2))


@register(source='kunc2024', monotone='increasing')
def double_silu(x: jax.Array) -> jax.Array:
  """x sigmoid(x sigmoid(x))."""
  return x * jax.nn.sigmoid(jax.nn.silu(x))


@register(source='kunc2024')
def dsilu(x: jax.Array) -> jax.Array:
  """sigmoid(x) (1 + x (1 - sigmoid(x))), the derivative of SiLU.

  Elfwing et al. 2017, arXiv 1702.03118.
  """
  return jax.nn.sigmoid(x) * (1 + x * jax.nn.sigmoid(-x))


@register(source='kunc2024', positive=('alpha', 'beta'))
def logish(x: jax.Array, alpha: float = 1.0, beta: float = 1.0) -> jax.Array:
  """alpha x ln(1 + sigmoid(beta x)).

  Zhu et al. 2021.
  """
  return alpha * x * jnp.log1p(jax.nn.sigmoid(beta * x))


@register(source='kunc2024', positive=('alpha', 'beta'))
def smish(x: jax.Array, alpha: float = 1.0, beta: float = 1.0) -> jax.Array:
  """alpha x tanh(ln(1 + sigmoid(beta x))).

  Wang et al. 2022.
  """
  gate = jax.nn.sigmoid(beta * x)
  # tanh(ln(1 + s)) = ((1 + s)^2 - 1) / ((1 + s)^2 + 1), with the 1 cancelled by hand.
  square = gate * (2 + gate)
  return alpha * x * square / (square + 2)


@register(source='kunc2024', positive=('a',), aliases=('psgu',))
def tsrelu(x: jax.Array, a: float = 1.0) -> jax.Array:
  """x tanh(a sigmoid(x))."""
  return x * jnp.tanh(a * jax.nn.sigmoid(x))


@register(source='kunc2024')
def sinsig(x: jax.Array) -> jax.Array:
  """x sin(pi sigmoid(x) / 2)."""
  return x * jnp.sin(0.5 * math.pi * jax.nn.sigmoid(x))


@register(source='kunc2024', monotone='increasing', duplicates=('xatlu',))
def calu(x: jax.Array) -> jax.Array:
  """x (1/2 + arctan(x) / pi), the gate is the Cauchy CDF."""
  # atan2(1, -x) = pi/2 + arctan(x) without the cancellation on the left.
  return x * jnp.arctan2(jnp.ones_like(x), -x) * (1 / math.pi)


@register(source='kunc2024')
def lalu(x: jax.Array) -> jax.Array:
  """x (1 - e^-x / 2) for x >= 0, x e^x / 2 for x < 0; the gate is the Laplace CDF."""
  left, right = split_at_zero(x)
  return x * jnp.where(x < 0, 0.5 * jnp.exp(left), 1 - 0.5 * jnp.exp(-right))


@register(source='kunc2024', aliases=('swim',))
def pflu(x: jax.Array) -> jax.Array:
  """x (1 + x / sqrt(1 + x^2)) / 2."""
  root = jnp.sqrt(1 + jnp.square(x))
  left, right = split_at_zero(x)
  # 1 + x / r = 1 / (r (r - x)), which keeps its digits on the left.
  return 0.5 * x * jnp.where(x < 0, 1 / (root * (root - left)), 1 + right / root)


@register(source='kunc2024', positive=('alpha',), parity='even')
def sgelu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
  """alpha x erf(x / sqrt 2).

  Yu & Su 2019, arXiv 1911.03925.
  """
  return alpha * x * lax.erf(x * math.sqrt(0.5))


@register(source='kunc2024', parity='even')
def lisht(x: jax.Array) -> jax.Array:
  """x tanh(x).

  Roy et al. 2019, arXiv 1901.05894.
  """
  return x * jnp.tanh(x)


@register(source='kunc2024')
def phish(x: jax.Array) -> jax.Array:
  """x tanh(gelu(x)).

  Naveen 2022.
  """
  return x * jnp.tanh(jax.nn.gelu(x, approximate=False))


@register(source='kunc2024', parity='odd')
def gcu(x: jax.Array) -> jax.Array:
  """x cos(x).

  Noel et al. 2021, arXiv 2108.12943.
  """
  return x * jnp.cos(x)


@register(source='kunc2024', parity='even')
def asu(x: jax.Array) -> jax.Array:
  """x sin(x)."""
  return x * jnp.sin(x)


@register(source='torch_activation', namesake_of='e_swish', monotone='decreasing')
def exponential_swish(x: jax.Array) -> jax.Array:
  """e^-x sigmoid(x) = sigmoid(-x)."""
  return jax.nn.sigmoid(-x)


@register(source='homa', namesake_of='msilu')
def msilu_homa(x: jax.Array) -> jax.Array:
  """x sigmoid(x) + e^(-x^2 - 1) / 4; another library adds another bump."""
  return jax.nn.silu(x) + 0.25 * jnp.exp(-jnp.square(x) - 1)


@register(source='torch_activation', namesake_of='msilu')
def msilu_torch_activation(x: jax.Array) -> jax.Array:
  """x sigmoid(x) + e^(-x^2 / 4); another library adds another bump."""
  return jax.nn.silu(x) + jnp.exp(-0.25 * jnp.square(x))
