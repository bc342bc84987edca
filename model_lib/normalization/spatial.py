"""Norms of the positions of one example: per channel, or per group of channels.

All are called as `layer(x, train)`, x [B, ..., C] with axes between the first and the last.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine


class InstanceNorm(nn.Module):
  """g * (x - mean) / sqrt(var + eps) + b per example and channel; x [B, ..., C].

  Raises:
    UserError: x has no positions.
  """

  eps: float
  affine: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    y = fn.standardize(fn.wide(x), fn.positions(x, 'instance norm'), self.eps)
    return (affine(self, y) if self.affine else y).astype(x.dtype)


class FilterResponseNorm(nn.Module):
  """g * x / sqrt(mean(x^2) + eps + |e|) + b per example and channel; x [B, ..., C].

  e is trained where `learned_eps` is set, for maps of one pixel, and 0 elsewhere.

  Raises:
    UserError: x has no positions.
  """

  eps: float
  learned_eps: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return self._respond(x).astype(x.dtype)

  def _respond(self, x: jax.Array) -> jax.Array:
    eps = self.eps
    if self.learned_eps:
      eps += jnp.abs(self.param('eps', nn.initializers.constant(1e-4), ()))
    return affine(self, fn.rms_standardize(
      fn.wide(x), fn.positions(x, 'filter response norm'), eps))


class ThresholdedFilterResponseNorm(FilterResponseNorm):
  """max(y, t), y that of `FilterResponseNorm` and t trained from 0; x [B, ..., C]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    threshold = self.param('threshold', nn.initializers.zeros, (x.shape[-1],))
    return jnp.maximum(self._respond(x), fn.along_channels(threshold, x.ndim)).astype(x.dtype)
