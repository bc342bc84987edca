"""The normalizations as Linen layers, all called as `layer(x, train)`.

x is [B, ..., C]; the result has its shape and dtype, the arithmetic is float32 or
wider. Gains are called `scale` (start at 1), biases `bias` (start at 0).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.normalization import functions as fn


def _wide(x: jax.Array) -> jax.Array:
  """One cast for the whole layer, so that nothing is rounded between its three steps."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _affine(module: nn.Module, x: jax.Array) -> jax.Array:
  channels = (x.shape[-1],)
  x = fn.scale(x, module.param('scale', nn.initializers.ones, channels))
  return fn.shift(x, module.param('bias', nn.initializers.zeros, channels))


class LayerNorm(nn.Module):
  """g * (x - mean) / sqrt(var + eps) + b over the last axis; x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return _affine(self, fn.standardize(_wide(x), -1, self.eps)).astype(x.dtype)


class RMSNorm(nn.Module):
  """g * x / sqrt(mean(x^2) + eps) over the last axis; x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    y = fn.rms_standardize(_wide(x), -1, self.eps)
    gain = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return fn.scale(y, gain).astype(x.dtype)


class GroupNorm(nn.Module):
  """g * (x - mean) / sqrt(var + eps) + b per example and group of channels; x [B, ..., C].

  Raises:
    UserError: C is not divisible by `groups`.
  """

  groups: int
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    if x.shape[-1] % self.groups:
      raise UserError(f'group norm: {x.shape[-1]} channels do not divide into '
                      f'{self.groups} groups; write e.g. group(groups=1)')
    return _affine(self, fn.group_standardize(_wide(x), self.groups, self.eps)).astype(x.dtype)


class BatchNorm(nn.Module):
  """g * (x - mean) / sqrt(var + eps) + b per channel; x [B, ..., C].

  In training the moments are the batch's (biased variance) and the running ones, in the
  collection `batch_stats`, move by `(1 - momentum) * old + momentum * batch`, which needs
  `mutable=['batch_stats']`; the variance that enters them is multiplied by m / (m - 1)
  unless `running` is 'biased', m being the number of values per channel. At inference the
  running ones are used. The call that creates the state does not move it.

  Raises:
    UserError: training with one value per channel, where the batch has no variance.
  """

  eps: float
  momentum: float
  running: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    channels = (x.shape[-1],)
    is_new = not self.has_variable('batch_stats', 'mean')
    mean_state = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    var_state = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    mean, var = mean_state.value, var_state.value
    if train:
      count = x.size // x.shape[-1]
      if count < 2:
        raise UserError('batch norm: training needs at least 2 values per channel, got 1; '
                        'use a larger batch')
      mean, var = (m.reshape(channels) for m in fn.moments(x, tuple(range(x.ndim - 1))))
      if not is_new:
        seen = var * (count / (count - 1)) if self.running == 'unbiased' else var
        mean_state.value = fn.moving_average(mean_state.value, mean, self.momentum)
        var_state.value = fn.moving_average(var_state.value, seen, self.momentum)
    return _affine(self, fn.standardize_with(_wide(x), mean, var, self.eps)).astype(x.dtype)


class DyT(nn.Module):
  """g * tanh(alpha * x) + b with one trained alpha, no statistics; x [..., C]."""

  alpha: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    alpha = self.param('alpha', nn.initializers.constant(self.alpha), ())
    return _affine(self, fn.dynamic_tanh(_wide(x), alpha)).astype(x.dtype)


class NoNorm(nn.Module):
  """x."""

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return x


LAYERS = {'layer': LayerNorm, 'rms': RMSNorm, 'group': GroupNorm, 'batch': BatchNorm,
          'dyt': DyT, 'none': NoNorm}
