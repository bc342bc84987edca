"""ELU and softplus families.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; `get_activation` adds the float32 arithmetic for narrower inputs.
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.numerics import polynomial, split_at_zero
from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_SERLU_SCALE, _SERLU_ALPHA = 1.07862, 2.90427


@register(source='jax', kinks=lambda alpha: () if alpha == 1 else (0.0,), positive=('alpha',),
          duplicates=('celu', 'felu', 'mpelu', 'pelu'), monotone='increasing')
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


@register(source='jax', positive=('alpha',), duplicates=('elu', 'felu', 'mpelu', 'pelu'),
          monotone='increasing')
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


@register(source='echo')
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
  return _softplus_minus_ln2(x)


def _softplus_minus_ln2(x: jax.Array) -> jax.Array:
  # The difference cancels at 0; x/2 + ln cosh(x/2) does not, and ln cosh is even.
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


@register(source='kunc2024', learnable=('a', 'b'), positive=('a', 'b'), monotone='increasing',
          duplicates=('celu', 'elu', 'felu', 'mpelu'))
def pelu(x: jax.Array, a: float | jax.Array = 1.0, b: float | jax.Array = 1.0) -> jax.Array:
  """(a / b) x for x >= 0, a (e^(x / b) - 1) for x < 0.

  Trottier et al. 2016, arXiv 1605.09332.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, a * jnp.expm1(left / b), a / b * right)


@register(source='kunc2024', learnable=('a', 'b'), positive=('b',),
          kinks=lambda a, b: () if a * b == 1 else (0.0,),
          monotone=lambda a, b: 'increasing' if a >= 0 else '',
          duplicates=('celu', 'elu', 'felu', 'pelu'))
def mpelu(x: jax.Array, a: float | jax.Array = 1.0, b: float | jax.Array = 1.0) -> jax.Array:
  """x for x >= 0, a (e^(b x) - 1) for x < 0.

  Li et al. 2016, arXiv 1606.00305.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, a * jnp.expm1(b * left), right)


@register(source='kunc2024', learnable=('a',), kinks=lambda a: () if a == 1 else (0.0,),
          monotone=lambda a: 'increasing' if a >= 0 else '',
          duplicates=('celu', 'elu', 'mpelu', 'pelu'))
def felu(x: jax.Array, a: float | jax.Array = 1.0) -> jax.Array:
  """x for x >= 0, a (2^(x / ln 2) - 1) = a (e^x - 1) for x < 0.

  Qiumei et al. 2019.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, a * jnp.expm1(left), right)


def _pdelu_kinks(a: float, t: float) -> tuple[float, ...]:
  return (*((-1.0,) if t == 0 and a else ()), *((0.0,) if a != 1 else ()))


@register(source='kunc2024', learnable=('a',), bounds={'t': Bounds(0, 1, high_open=True)},
          kinks=_pdelu_kinks, monotone=lambda a, t: 'increasing' if a >= 0 else '')
def pdelu(x: jax.Array, a: float | jax.Array = 1.0, t: float = 0.9) -> jax.Array:
  """x for x > 0, a (max(1 + (1 - t) x, 0)^(1 / (1 - t)) - 1) for x <= 0.

  Cheng et al. 2020.

  The maximum keeps the power real for x < -1 / (1 - t).
  """
  left, right = split_at_zero(x)
  base = (1 - t) * left
  inside = base > -1
  power = jnp.expm1(jnp.log1p(jnp.where(inside, base, -0.5)) / (1 - t))
  return jnp.where(x < 0, a * jnp.where(inside, power, -1), right)


@register(source='echo', kinks=(-1.0, 1.0))
def hard_elish(x: jax.Array) -> jax.Array:
  """x h(x) for x >= 0, (e^x - 1) h(x) for x < 0, h(x) = max(0, min(1, (x + 1) / 2)).

  Basirat & Roth 2018, arXiv 1808.00783.
  """
  left, right = split_at_zero(x)
  return jnp.where(x < 0, jnp.expm1(left), right) * jnp.clip(0.5 * (x + 1), 0, 1)


@register(source='kunc2024', learnable=('beta',), bounds={'beta': Bounds(-1, 1)},
          monotone='increasing', parity=lambda beta: 'odd' if beta == 0 else '',
          duplicates=('identity', 'soft_exponential'))
def blu(x: jax.Array, beta: float | jax.Array = 0.0) -> jax.Array:
  """beta (sqrt(x^2 + 1) - 1) + x.

  Godfrey 2019.
  """
  square = jnp.square(x)
  return beta * square / (jnp.sqrt(square + 1) + 1) + x


@register(source='kunc2024', positive=('k', 'c'), monotone='increasing')
def soft_plus_plus(x: jax.Array, k: float = 1.0, c: float = 2.0) -> jax.Array:
  """ln(1 + e^(k x)) + x / c - ln 2 (Soft++).

  Ciuparu et al. 2020.
  """
  return _softplus_minus_ln2(k * x) + x / c


def _over_z(z: jax.Array, ratio: jax.Array, coefficients: tuple[float, ...]) -> jax.Array:
  """ratio where |z| >= 0.1, and its Taylor series in z, whose first coefficient is 1, elsewhere."""
  small = jnp.abs(z) < 0.1
  series = polynomial(coefficients, jnp.where(small, z, 0))
  return jnp.where(small, series, ratio)


def _soft_exponential_domain(a: float) -> tuple[float, float]:
  # The logarithm's argument 1 - a (x + a) is 1e-3 at the left end.
  return (-1e4, 1e4) if a >= 0 else (max(-1e4, (1 - 1e-3) / a - a), 1e4)


@register(source='kunc2024', learnable=('a',), monotone='increasing',
          parity=lambda a: 'odd' if a == 0 else '', overflow=lambda a: a > 0,
          domain=_soft_exponential_domain, duplicates=('blu', 'identity'))
def soft_exponential(x: jax.Array, a: float | jax.Array = 0.0) -> jax.Array:
  """-ln(1 - a (x + a)) / a for a < 0, x for a = 0, (e^(a x) - 1) / a + a for a > 0.

  Godfrey & Gashler 2016, arXiv 1602.01321.
  """
  a = jnp.asarray(a, x.dtype)
  rise, bend = jnp.where(a > 0, a, 0), jnp.where(a > 0, 0, a)
  z = rise * x
  small = jnp.abs(z) < 0.1
  # Divided by a, not by a x, which would be inf / inf in the derivative far on the right.
  far = jnp.expm1(jnp.where(small, 1, z)) / jnp.where(a > 0, a, 1)
  near = x * _over_z(z, 0, tuple(1 / math.factorial(n + 1) for n in range(9)))
  exponential = jnp.where(small, near, far) + rise
  w = -bend * (x + bend)
  safe = jnp.where(jnp.abs(w) < 0.1, 1, w)
  logarithm = (x + bend) * _over_z(
      w, jnp.log1p(safe) / safe, tuple((-1)**n / (n + 1) for n in range(15)))
  return jnp.where(a > 0, exponential, logarithm)


@register(source='kunc2024', namesake_of='telu', learnable=('a',), positive=('a',))
def tanh_elu(x: jax.Array, a: float | jax.Array = 1.0) -> jax.Array:
  """x tanh(elu(a x))."""
  return x * jnp.tanh(jax.nn.elu(a * x))


@register(source='kunc2024', learnable=('a',),
          kinks=lambda a: () if a == -1 else (0.0,))
def delu(x: jax.Array, a: float | jax.Array = 0.0) -> jax.Array:
  """(a + 1/2) x + |e^-x - 1| for x >= 0, x sigmoid(x) for x < 0."""
  left, right = split_at_zero(x)
  return jnp.where(x < 0, jax.nn.silu(left), (a + 0.5) * right - jnp.expm1(-right))


@register(source='torch_activation', namesake_of='delu',
          kinks=lambda n: () if n == 1.5 else (0.0,))
def silu_or_line(x: jax.Array, n: float = 1.0) -> jax.Array:
  """x sigmoid(x) for x <= 0, (n - 1) x for x > 0.

  Pishchik 2023.
  """
  return jnp.where(x > 0, (n - 1) * x, jax.nn.silu(x))
