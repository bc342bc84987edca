"""Norm and activation in one layer: the activation behind it is the identity.

All are called as `layer(x, train)`, x [B, ..., C]; result of its shape and dtype.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine
from model_lib.normalization.batch import batch_axes, count_values, to_population

# Mean and standard deviation of max(z, 0), z ~ N(0, 1).
RELU_MEAN = math.sqrt(1 / (2 * math.pi))
RELU_SD = math.sqrt((1 - 1 / math.pi) / 2)


def _root_var(x: jax.Array, axes, eps: float) -> jax.Array:
  return jnp.sqrt(fn.moments(x, axes)[1] + eps)


def _root_mean_square(x: jax.Array, axes, eps: float) -> jax.Array:
  return jnp.sqrt(fn.mean_square(x, axes) + eps)


class EvoNormB0(nn.Module):
  """g * x / max(sqrt(var + eps), h) + b, var of the batch per channel; x [B, ..., C].

  h is, with moments over the positions of an example per channel,
    B0: v x + sqrt(var_i + eps), v trained per channel from 1
    B1: (x + 1) sqrt(mean_i(x^2) + eps)
    B2: sqrt(mean_i(x^2) + eps) - x
  The running variance, from 1, moves in training by the batch's and is used at inference.

  Raises:
    UserError: x has no positions, or training with one value per channel.
  """

  eps: float
  momentum: float
  running: str
  variant: str = 'b0'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    axes, wide = fn.positions(x, f'evonorm_{self.variant}'), fn.wide(x)
    is_new = not self.has_variable('batch_stats', 'var')
    state = self.variable('batch_stats', 'var', jnp.ones, x.shape[-1:], jnp.float32)
    var = state.value
    if train:
      count = count_values(x, f'evonorm_{self.variant}')
      var = fn.moments(x, batch_axes(x))[1].reshape(-1)
      if not is_new:
        state.value = fn.moving_average(
          state.value, to_population(var, count, self.running), self.momentum)
    if self.variant == 'b0':
      v = self.param('v', nn.initializers.ones, x.shape[-1:])
      other = fn.scale(wide, v) + _root_var(wide, axes, self.eps)
    else:
      rms = _root_mean_square(wide, axes, self.eps)
      other = (wide + 1) * rms if self.variant == 'b1' else rms - wide
    root = jnp.sqrt(fn.along_channels(var, x.ndim) + self.eps)
    return affine(self, wide / jnp.maximum(root, other)).astype(x.dtype)


class EvoNormB1(EvoNormB0):
  """B1 of `EvoNormB0`."""

  variant: str = 'b1'


class EvoNormB2(EvoNormB0):
  """B2 of `EvoNormB0`."""

  variant: str = 'b2'


class EvoNormS0(nn.Module):
  """g * x sigmoid(v x) / s + b, s of an example's positions and channel group; x [B, ..., C].

  S0: s = sqrt(var + eps), v trained per channel from 1; S1: the same with v = 1 and no parameter;
  S2: s = sqrt(mean(x^2) + eps), v = 1.

  Raises:
    UserError: C is not divisible by `groups`.
  """

  groups: int
  eps: float
  variant: str = 's0'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    fn.check_groups(x, self.groups, f'evonorm_{self.variant} norm')
    wide = fn.wide(x)
    gate = wide
    if self.variant == 's0':
      gate = fn.scale(wide, self.param('v', nn.initializers.ones, x.shape[-1:]))
    statistic = _root_mean_square if self.variant == 's2' else _root_var
    s = fn.per_group(wide, self.groups, lambda x, axes: statistic(x, axes, self.eps))
    return affine(self, wide * jax.nn.sigmoid(gate) / s).astype(x.dtype)


class EvoNormS1(EvoNormS0):
  """S1 of `EvoNormS0`."""

  variant: str = 's1'


class EvoNormS2(EvoNormS0):
  """S2 of `EvoNormS0`."""

  variant: str = 's2'


class NormPropagation(nn.Module):
  """(relu(g x + b) - mean) / sd with the moments of relu(z), z ~ N(0, 1); x [..., C].

  For x = W h / |W| per unit and h of mean 0 and variance 1: the result has them again.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return ((jax.nn.relu(affine(self, fn.wide(x))) - RELU_MEAN) / RELU_SD).astype(x.dtype)
