"""Piecewise rectifiers: ReLU and its relatives, shrinkage, absolute value.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; `get_activation` adds the float32 arithmetic for narrower inputs. The derivative of
a ReLU at 0 is 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model_lib.activations.numerics import polynomial
from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds


@register(source='jax', kinks=(0.0,), monotone='increasing',
          duplicates=('frelu@kunc2024', 'plu'))
def relu(x: jax.Array) -> jax.Array:
  """max(x, 0).

  Nair & Hinton 2010.
  """
  return jax.nn.relu(x)


@register(source='jax', kinks=(0.0, 6.0), monotone='increasing')
def relu6(x: jax.Array) -> jax.Array:
  """min(max(x, 0), 6).

  Krizhevsky 2010.
  """
  return jax.nn.relu6(x)


@register(source='jax', kinks=(0.0,), monotone=lambda slope: 'increasing' if slope >= 0 else '',
          duplicates=('dprelu', 'galu', 'melu'))
def leaky_relu(x: jax.Array, slope: float = 0.01) -> jax.Array:
  """x for x >= 0, slope x for x < 0.

  Maas et al. 2013.
  """
  return jax.nn.leaky_relu(x, slope)


@register(source='kunc2024', kinks=(0.0,), aliases=('very_leaky_relu', 'vlrelu'),
          monotone='increasing')
def very_leaky(x: jax.Array) -> jax.Array:
  """x for x >= 0, x / 3 for x < 0."""
  return jax.nn.leaky_relu(x, 1 / 3)


@register(source='kunc2024', kinks=(-1.0,), monotone='increasing', aliases=('srelu@clevert2015',))
def shifted_relu(x: jax.Array) -> jax.Array:
  """max(x, -1).

  Clevert et al. 2015, arXiv 1511.07289.
  """
  return jnp.maximum(x, -1)


@register(source='kunc2024', aliases=('squared_relu', 'relu^2'), monotone='increasing')
def relu_squared(x: jax.Array) -> jax.Array:
  """max(x, 0)^2.

  So et al. 2021 (Primer), arXiv 2109.08668.
  """
  return jnp.square(jax.nn.relu(x))


@register(source='kunc2024',
          monotone=lambda scale, **_: 'increasing' if scale >= 0 else 'decreasing')
def star_relu(x: jax.Array, scale: float = 0.8944, shift: float = -0.4472) -> jax.Array:
  """scale max(x, 0)^2 + shift, both fixed: mean 0 and variance 1 under N(0, 1).

  Yu et al. 2022 (MetaFormer), arXiv 2210.13452.
  """
  return scale * jnp.square(jax.nn.relu(x)) + shift


@register(source='standard', kinks=(0.0,), parity='even')
def abs_(x: jax.Array) -> jax.Array:
  """|x|; the derivative at 0 is 0."""
  return jnp.abs(x)


@register(source='kunc2024', kinks=(0.0,), positive=('beta',), monotone='increasing')
def nlrelu(x: jax.Array, beta: float = 1.0) -> jax.Array:
  """ln(1 + beta max(x, 0)).

  Liu et al. 2019, arXiv 1908.03682.
  """
  return jnp.log1p(beta * jax.nn.relu(x))


@register(source='torch', kinks=lambda threshold: (-threshold, threshold),
          jumps=lambda threshold: (-threshold, threshold), positive=('threshold',),
          monotone='increasing', parity='odd')
def hard_shrink(x: jax.Array, threshold: float = 0.5) -> jax.Array:
  """x for |x| > threshold, else 0."""
  return jnp.where(jnp.abs(x) <= threshold, 0, x)


@register(source='torch', kinks=lambda threshold: (-threshold, threshold),
          positive=('threshold',), monotone='increasing', parity='odd')
def soft_shrink(x: jax.Array, threshold: float = 0.5) -> jax.Array:
  """sign(x) max(|x| - threshold, 0)."""
  return x - jnp.clip(x, -threshold, threshold)


@register(source='torch', monotone='increasing', parity='odd')
def tanh_shrink(x: jax.Array) -> jax.Array:
  """x - tanh(x)."""
  near = jnp.abs(x) < 0.25
  small = jnp.where(near, x, 0)
  # Taylor: the difference of two nearly equal numbers has no correct digit near 0.
  coefficients = (1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925, -21844 / 6081075,
                  929569 / 638512875)
  square = jnp.square(small)
  series = polynomial(coefficients, square) * square * small
  return jnp.where(near, series, x - jnp.tanh(x))


@register(source='kunc2024')
def suish(x: jax.Array) -> jax.Array:
  """max(x, x e^-|x|)."""
  left = jnp.where(x > 0, 0, x)
  return jnp.where(x > 0, x, left * jnp.exp(left))


@register(source='kunc2024', learnable=('n',), positive=('n',), kinks=lambda n: (0.0, n),
          monotone='increasing', aliases=('brelu',))
def relu_n(x: jax.Array, n: float | jax.Array = 1.0) -> jax.Array:
  """min(max(x, 0), n)."""
  return jnp.minimum(jax.nn.relu(x), n)


@register(source='homa', bounds={'power': Bounds(1, 9)}, monotone='increasing',
          kinks=lambda power: (0.0,) if power == 1 else ())
def repu(x: jax.Array, power: float = 3.0) -> jax.Array:
  """max(x, 0)^power; ReLU, ReQU (relu_squared) and ReCU are the powers 1, 2 and 3."""
  positive = x > 0
  raised = jnp.where(positive, x, 1)**power
  # relu, not 0, on the left, so that nan stays nan.
  return jnp.where(positive, raised, jax.nn.relu(x))


@register(source='torch', kinks=lambda threshold, value: (threshold,),
          jumps=lambda threshold, value: () if threshold == value else (threshold,),
          monotone=lambda threshold, value: 'increasing' if value <= threshold else '')
def threshold(x: jax.Array, threshold: float = 1.0, value: float = 0.0) -> jax.Array:
  """x for x > threshold, else value (keras calls it ThresholdedReLU with value 0)."""
  return jnp.where(x <= threshold, jnp.asarray(value, x.dtype), x)


@register(source='kunc2024', learnable=('a',), positive=('a',), kinks=lambda a: (-a, 0.0, a),
          parity='even', aliases=('mrelu',))
def tent(x: jax.Array, a: float | jax.Array = 1.0) -> jax.Array:
  """max(0, a - |x|).

  Rozsa & Boult 2019, arXiv 1908.02435.
  """
  return jax.nn.relu(a - jnp.abs(x))
