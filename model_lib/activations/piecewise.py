"""Learnable piecewise linear activations; the defaults are the first values of their parameters.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; a parameter is a scalar or an array that broadcasts against x. `get_activation` adds
the float32 arithmetic for narrower inputs and shapes the parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model_lib.activations.registry import register

_Number = float | jax.Array


def _increasing_if(condition: bool) -> str:
  return 'increasing' if condition else ''


@register(source='kunc2024', namesake_of='frelu', learnable=('b',), kinks=(0.0,),
          monotone='increasing', duplicates=('plu', 'relu'))
def flexible_relu(x: jax.Array, b: _Number = 0.0) -> jax.Array:
  """max(x, 0) + b.

  Qiu et al. 2017, arXiv 1706.08098.
  """
  return jax.nn.relu(x) + b


@register(source='kunc2024', learnable=('a', 'b'), kinks=lambda a, b: () if a == b else (0.0,),
          monotone=lambda a, b: _increasing_if(min(a, b) >= 0),
          duplicates=('galu', 'leaky_relu', 'melu'))
def dprelu(x: jax.Array, a: _Number = 1.0, b: _Number = 0.01) -> jax.Array:
  """a x for x >= 0, b x for x < 0."""
  return jnp.where(x >= 0, a * x, b * x)


@register(source='kunc2024', learnable=('a', 'b', 'm'),
          kinks=lambda a, b, m: () if a == b else (0.0,),
          monotone=lambda a, b, m: _increasing_if(min(a, b) >= 0))
def dual_line(
    x: jax.Array, a: _Number = 1.0, b: _Number = 0.01, m: _Number = -0.22,
) -> jax.Array:
  """a x + m for x >= 0, b x + m for x < 0."""
  return jnp.where(x >= 0, a * x, b * x) + m


@register(source='kunc2024', learnable=('a', 'b'), kinks=(0.0,), monotone='increasing')
def arelu(x: jax.Array, a: _Number = 0.9, b: _Number = 2.0) -> jax.Array:
  """(1 + sigmoid(b)) x for x >= 0, c x for x < 0, c = min(max(a, 0.01), 0.99).

  Chen et al. 2020, arXiv 2006.13858.
  """
  return jnp.where(x >= 0, (1 + jax.nn.sigmoid(b)) * x, jnp.clip(a, 0.01, 0.99) * x)


def _srelu_kinks(t_l: float, a_l: float, t_r: float, a_r: float) -> tuple[float, ...]:
  return tuple(t for t, a in ((t_l, a_l), (t_r, a_r)) if a != 1)


@register(source='kunc2024', learnable=('t_l', 'a_l', 't_r', 'a_r'), kinks=_srelu_kinks,
          monotone=lambda a_l, a_r, **_: _increasing_if(min(a_l, a_r) >= 0))
def srelu(
    x: jax.Array, t_l: _Number = 0.0, a_l: _Number = 0.1, t_r: _Number = 1.0, a_r: _Number = 1.0,
) -> jax.Array:
  """t_r + a_r (x - t_r) for x >= t_r, t_l + a_l (x - t_l) for x <= t_l, x between (S-shaped).

  Jin et al. 2015, arXiv 1512.07030.
  """
  upper = t_r + a_r * (x - t_r)
  lower = t_l + a_l * (x - t_l)
  return jnp.where(x >= t_r, upper, jnp.where(x <= t_l, lower, x))


def _apl_kinks(a1: float, b1: float, a2: float, b2: float) -> tuple[float, ...]:
  # Equal points add up, and a hinge at 0 joins the one of the ReLU.
  changes: dict[float, float] = {0.0: 1.0}
  for a, b in ((a1, b1), (a2, b2)):
    changes[b] = changes.get(b, 0.0) + a
  return tuple(sorted(point for point, change in changes.items() if change))


@register(source='echo', learnable=('a1', 'b1', 'a2', 'b2'), kinks=_apl_kinks)
def apl(
    x: jax.Array, a1: _Number = 0.2, b1: _Number = 0.5, a2: _Number = 0.2, b2: _Number = -0.5,
) -> jax.Array:
  """max(x, 0) + a1 max(b1 - x, 0) + a2 max(b2 - x, 0).

  Agostinelli et al. 2014, arXiv 1412.6830.

  The hinges start apart; from equal values they would stay equal.
  """
  return jax.nn.relu(x) + a1 * jax.nn.relu(b1 - x) + a2 * jax.nn.relu(b2 - x)


def _plu_kinks(**values: float) -> tuple[float, ...]:
  v = list(values.values())
  return tuple(float(i - 2) for i in (1, 2, 3) if v[i + 1] - v[i] != v[i] - v[i - 1])


def _plu_monotone(**values: float) -> str:
  v = list(values.values())
  return _increasing_if(v == sorted(v))


@register(source='standard', learnable=('v1', 'v2', 'v3', 'v4', 'v5'), kinks=_plu_kinks,
          monotone=_plu_monotone, duplicates=('frelu@kunc2024', 'relu'),
          aliases=('piecewise_linear',))
def plu(
    x: jax.Array, v1: _Number = 0.0, v2: _Number = 0.0, v3: _Number = 0.0, v4: _Number = 1.0,
    v5: _Number = 2.0,
) -> jax.Array:
  """Linear interpolation of the values v1 ... v5 at -2, -1, 0, 1, 2, continued with the end slopes;
  the first values are those of the ReLU.
  """
  right = jnp.where(x < 1, v3 + (v4 - v3) * x, v4 + (v5 - v4) * (x - 1))
  left = jnp.where(x < -1, v2 + (v2 - v1) * (x + 1), v3 + (v3 - v2) * x)
  return jnp.where(x < 0, left, right)


def _bump_monotone(slope: float, a1: float, a2: float, a3: float, **_) -> str:
  return _increasing_if(slope >= 0 and a1 == a2 == a3 == 0)


def _bump_kinks(offsets: tuple[float, ...], settings: dict[str, float]) -> tuple[float, ...]:
  points = {0.0} if settings['slope'] != 1 else set()
  for i in '123':
    if settings[f'a{i}']:
      points |= {settings[f'b{i}'] + offset * settings[f'c{i}'] for offset in offsets}
  return tuple(sorted(points))


@register(source='kunc2024', learnable=('slope', 'a1', 'a2', 'a3'),
          positive=('c1', 'c2', 'c3'), kinks=lambda **s: _bump_kinks((-1, 0, 1), s),
          monotone=_bump_monotone, duplicates=('dprelu', 'galu', 'leaky_relu'))
def melu(
    x: jax.Array, slope: _Number = 0.01, a1: _Number = 0.0, a2: _Number = 0.0,
    a3: _Number = 0.0, b1: float = -1.0, b2: float = -1 / 3, b3: float = 1 / 3, c1: float = 1.0,
    c2: float = 1 / 2, c3: float = 1 / 3,
) -> jax.Array:
  """prelu(x) + sum_j a_j max(c_j - |x - b_j|, 0); b and c are fixed.

  Maguolo et al. 2019, arXiv 1905.02473.
  """
  y = jnp.where(x >= 0, x, slope * x)
  for a, b, c in ((a1, b1, c1), (a2, b2, c2), (a3, b3, c3)):
    y = y + a * jax.nn.relu(c - jnp.abs(x - b))
  return y


@register(source='kunc2024', learnable=('slope', 'a1', 'a2', 'a3'),
          positive=('c1', 'c2', 'c3'), kinks=lambda **s: _bump_kinks((-1, 0, 2, 3), s),
          monotone=_bump_monotone, duplicates=('dprelu', 'leaky_relu', 'melu'))
def galu(
    x: jax.Array, slope: _Number = 0.01, a1: _Number = 0.0, a2: _Number = 0.0,
    a3: _Number = 0.0, b1: float = -1.0, b2: float = -1 / 3, b3: float = 1 / 3, c1: float = 1.0,
    c2: float = 1 / 2, c3: float = 1 / 3,
) -> jax.Array:
  """prelu(x) + sum_j a_j (max(c_j - |x - b_j|, 0) + min(|x - b_j - 2 c_j| - c_j, 0))."""
  y = jnp.where(x >= 0, x, slope * x)
  for a, b, c in ((a1, b1, c1), (a2, b2, c2), (a3, b3, c3)):
    y = y + a * (jax.nn.relu(c - jnp.abs(x - b)) - jax.nn.relu(c - jnp.abs(x - b - 2 * c)))
  return y
