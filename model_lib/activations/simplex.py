"""Maps onto the simplex: along one axis the outputs are not negative and add up to 1.

All are argmax_p <p, x> + H(p) over the simplex with another entropy H. None has moments of its
own: an entry of a softmax over n is about 1 / n.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from model_lib.activations.registry import register
from model_lib.errors import UserError

_AXES = {'last': -1, 'positions': -2}
_simplex = functools.partial(
    register, kind='statistics', choices={'axis': tuple(_AXES)},
    causal=lambda axis: axis == 'last')


def _along(name: str, f: Callable[[jax.Array], jax.Array], x: jax.Array, axis: str) -> jax.Array:
  """f, a map of the last axis, along another."""
  if x.ndim < 1 - _AXES[axis]:
    needed = '[batch, channel]' if axis == 'last' else '[batch, ..., position, channel]'
    raise UserError(f'{name}(axis={axis}) needs an input {needed}, not one of shape {x.shape}')
  return jnp.moveaxis(f(jnp.moveaxis(x, _AXES[axis], -1)), -1, _AXES[axis])


@_simplex(source='jax')
def softmax(x: jax.Array, axis: str = 'last') -> jax.Array:
  """e^x / sum(e^x) over the axis.

  Bridle 1990.

  Args:
    x: [batch, ..., position, channel].
    axis: 'last', the channels; 'positions', the axis before, which is not causal over tokens.
  """
  return _along('softmax', jax.nn.softmax, x, axis)


@_simplex(source='martins2016')
def sparsemax(x: jax.Array, axis: str = 'last') -> jax.Array:
  """max(x - t, 0) with the t for which the sum over the axis is 1.

  Martins & Astudillo 2016, arXiv 1602.02068.

  The Euclidean projection onto the simplex. Arguments as for `softmax`.
  """
  return _along('sparsemax', _sparsemax, x, axis)


@_simplex(source='peters2019')
def entmax15(x: jax.Array, axis: str = 'last') -> jax.Array:
  """max(x / 2 - t, 0)^2 with the t for which the sum over the axis is 1: entmax with alpha = 1.5.

  Peters et al. 2019, arXiv 1905.05702.

  Arguments as for `softmax`.
  """
  return _along('entmax15', _entmax15, x, axis)


# The derivative is written out, because that of the sorted sums is nan where a square root is 0.


@jax.custom_jvp
def _sparsemax(x: jax.Array) -> jax.Array:
  z = x - jnp.max(x, axis=-1, keepdims=True)
  ordered, count = _descending(z)
  candidates = (jnp.cumsum(ordered, axis=-1) - 1) / count
  return jnp.maximum(z - _last_below(candidates, ordered), 0)


@_sparsemax.defjvp
def _sparsemax_jvp(primals, tangents):
  p = _sparsemax(*primals)
  return p, _centred(jnp.where(p > 0, 1, p), *tangents)


@jax.custom_jvp
def _entmax15(x: jax.Array) -> jax.Array:
  z = (x - jnp.max(x, axis=-1, keepdims=True)) / 2
  ordered, count = _descending(z)
  mean = jnp.cumsum(ordered, axis=-1) / count
  variance = jnp.cumsum(jnp.square(ordered), axis=-1) / count - jnp.square(mean)
  candidates = mean - jnp.sqrt(jnp.maximum(1 / count - variance, 0))
  return jnp.square(jnp.maximum(z - _last_below(candidates, ordered), 0))


@_entmax15.defjvp
def _entmax15_jvp(primals, tangents):
  p = _entmax15(*primals)
  return p, _centred(jnp.where(p > 0, jnp.sqrt(jnp.where(p > 0, p, 1)), p), *tangents)


def _descending(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """z sorted from the largest on, and 1 ... n in its shape."""
  count = jnp.broadcast_to(
      jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (-1,)), z.shape)
  return -jnp.sort(-z, axis=-1), count


def _last_below(candidates: jax.Array, ordered: jax.Array) -> jax.Array:
  """The threshold of the largest support: the last candidate below its own entry."""
  support = jnp.sum(candidates < ordered, axis=-1, keepdims=True)
  return jnp.take_along_axis(candidates, jnp.maximum(support - 1, 0), axis=-1)


def _centred(weight: jax.Array, tangent: jax.Array) -> jax.Array:
  """w (v - sum(w v) / sum(w)): the directional derivative of both maps."""
  mean = jnp.sum(weight * tangent, -1, keepdims=True) / jnp.sum(weight, -1, keepdims=True)
  return weight * (tangent - mean)
