"""Normalization as plain functions: standardize, then scale, then shift.

A layer is the composition `shift(scale(standardize(x), gain), bias)`; keeping the
three apart makes folding or removing a normalization an edit of one of them.
Variances are biased (divide by n) and two-pass: E[(x - E x)^2]. The one-pass form
E[x^2] - (E x)^2 cancels in float32 when the mean is large beside the spread.
Every function computes in at least float32 and returns the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from model_lib.errors import UserError


def wide(x: jax.Array) -> jax.Array:
  """x in float32, or wider if it is."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def along_channels(vector: jax.Array, ndim: int) -> jax.Array:
  """[C] -> [1, ..., 1, C] with `ndim` axes, to meet an array whose last axis is C."""
  return vector.reshape((1,) * (ndim - 1) + (-1,))


def moments(x: jax.Array, axes: int | Sequence[int]) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance over `axes`, kept as axes of size 1, in float32 or wider."""
  x = wide(x)
  mean = jnp.mean(x, axis=axes, keepdims=True)
  return mean, jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True)


def mean_square(x: jax.Array, axes: int | Sequence[int]) -> jax.Array:
  """mean(x^2) over `axes`, kept as axes of size 1, in float32 or wider."""
  return jnp.mean(jnp.square(wide(x)), axis=axes, keepdims=True)


def standardize(x: jax.Array, axes: int | Sequence[int], eps: float) -> jax.Array:
  """(x - mean) / sqrt(var + eps), with the moments of `axes`; any shape."""
  mean, var = moments(x, axes)
  return ((wide(x) - mean) * jax.lax.rsqrt(var + eps)).astype(x.dtype)


def standardize_with(x: jax.Array, mean: jax.Array, var: jax.Array, eps: float) -> jax.Array:
  """(x - mean) / sqrt(var + eps) with given channel moments.

  Shapes: x [..., C], mean [C], var [C].
  """
  mean, var = along_channels(mean, x.ndim), along_channels(var, x.ndim)
  return ((wide(x) - mean) * jax.lax.rsqrt(var + eps)).astype(x.dtype)


def rms_standardize(x: jax.Array, axes: int | Sequence[int], eps: float) -> jax.Array:
  """x / sqrt(mean(x^2) + eps): no centring, so a common offset survives; any shape."""
  return (wide(x) * jax.lax.rsqrt(mean_square(x, axes) + eps)).astype(x.dtype)


def group_standardize(x: jax.Array, groups: int, eps: float) -> jax.Array:
  """Standardizes each example over its positions and the C/groups channels of a group.

  Shapes: x [B, ..., C] with C divisible by `groups`; neighbouring channels form a group.
  """
  x_bpgc = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
  return standardize(x_bpgc, (1, 3), eps).reshape(x.shape)


def per_group(x: jax.Array, groups: int, statistic: Callable) -> jax.Array:
  """A statistic of each example's positions and C/groups channels, repeated for its channels.

  Args:
    x: [B, ..., C], C divisible by `groups`.
    groups: of neighbouring channels.
    statistic: (array, axes) -> the array with axes of size 1 for these.

  Returns:
    [B, 1, ..., 1, C].
  """
  size = x.shape[-1] // groups
  found = statistic(x.reshape(x.shape[0], -1, groups, size), (1, 3))
  found = jnp.broadcast_to(found, (*found.shape[:3], size))
  return found.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


def positions(x: jax.Array, norm: str) -> tuple[int, ...]:
  """The axes between the first and the last of x [B, ..., C].

  Raises:
    UserError: there is none; the line begins with `norm`.
  """
  if x.ndim < 3:
    raise UserError(f'{norm}: its statistics are over the positions of an example, and an array '
                    f'of shape {x.shape} has none; take layer, rms or batch')
  return tuple(range(1, x.ndim - 1))


def check_groups(x: jax.Array, groups: int, norm: str) -> None:
  """UserError unless the channels of x [..., C] divide into `groups`."""
  if x.shape[-1] % groups:
    raise UserError(f'{norm}: {x.shape[-1]} channels do not divide into '
                    f'{groups} groups; write e.g. {norm.partition(" ")[0]}(groups=1)')


def scale(x: jax.Array, gain: jax.Array) -> jax.Array:
  """gain * x; shapes: x [..., C], gain [C]."""
  return (wide(x) * along_channels(gain, x.ndim)).astype(x.dtype)


def shift(x: jax.Array, bias: jax.Array) -> jax.Array:
  """x + bias; shapes: x [..., C], bias [C]."""
  return (wide(x) + along_channels(bias, x.ndim)).astype(x.dtype)


def dynamic_tanh(x: jax.Array, alpha: jax.Array) -> jax.Array:
  """tanh(alpha * x) with a scalar alpha: DyT's stand-in for standardizing; any shape."""
  return jnp.tanh(wide(x) * alpha).astype(x.dtype)


def moving_average(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
  """(1 - momentum) * old + momentum * new: `momentum` weighs the NEW value, as in torch."""
  return (1.0 - momentum) * old + momentum * new
