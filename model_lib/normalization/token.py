"""Norms of the channels of each position: what is left after LayerNorm and RMSNorm.

All are called as `layer(x, train)`, x [..., C]; result of its shape and dtype.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine, gained


def partial_rms(x: jax.Array, share: float, eps: float) -> jax.Array:
  """x / (rms + eps), the rms being that of the first int(share C) channels; x [..., C].

  Raises:
    UserError: the share is less than one channel.
  """
  count = int(share * x.shape[-1])
  if not count:
    raise UserError(f'prms: {share:g} of {x.shape[-1]} channels is less than one; '
                    f'take p of at least {1 / x.shape[-1]:g}')
  rms = jnp.sqrt(fn.mean_square(x[..., :count], -1))
  return (fn.wide(x) / (rms + eps)).astype(x.dtype)


def unit(x: jax.Array, eps: float) -> jax.Array:
  """x / max(|x|, eps), |x| over the last axis; x [..., C]."""
  wide = fn.wide(x)
  length = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
  return (wide / jnp.maximum(length, eps)).astype(x.dtype)


def positional(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(x - mean) / sd over the channels, with both moments to put back later.

  Args:
    x: [..., C].
    eps: sd = sqrt(variance + eps).

  Returns:
    (standardized [..., C], mean [..., 1], sd [..., 1]).
  """
  mean, var = fn.moments(x, -1)
  sd = jnp.sqrt(var + eps)
  return ((fn.wide(x) - mean) / sd).astype(x.dtype), mean, sd


def moment_shortcut(x: jax.Array, mean: jax.Array, sd: jax.Array) -> jax.Array:
  """sd x + mean: the moments that `positional` took out, at a later layer; x [..., C]."""
  return (fn.wide(x) * sd + mean).astype(x.dtype)


def window_sum(x: jax.Array, size: int) -> jax.Array:
  """Sum over the `size` channels around each, zeros outside; x [..., C].

  An even window has one channel more on the lower side, as torch's.
  """
  low = size // 2
  padded = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((low, size - 1 - low),))
  return sum(padded[..., i:i + x.shape[-1]] for i in range(size))


def window_mean(x: jax.Array, size: int) -> jax.Array:
  """Mean over those of the `size` channels around each that exist; x [..., C]."""
  count = window_sum(jnp.ones((1,) * (x.ndim - 1) + x.shape[-1:], x.dtype), size)
  return window_sum(x, size) / count


def local_response(x: jax.Array, n: int, k: float, alpha: float, beta: float,
                   convention: str) -> jax.Array:
  """x / (k + a sum_window x^2)^beta, a = alpha ('paper') or alpha / n ('torch'); x [..., C]."""
  factor = alpha if convention == 'paper' else alpha / n
  wide = fn.wide(x)
  return (wide / (k + factor * window_sum(jnp.square(wide), n)) ** beta).astype(x.dtype)


def divisive(x: jax.Array, n: int, sigma: jax.Array) -> jax.Array:
  """v / sqrt(sigma^2 + mean_window v^2) with v = x - mean_window x; x [..., C]."""
  wide = fn.wide(x)
  v = wide - window_mean(wide, n)
  return (v * jax.lax.rsqrt(jnp.square(sigma) + window_mean(jnp.square(v), n))).astype(x.dtype)


class PartialRMSNorm(nn.Module):
  """g * x / (rms of the first p C channels + eps); x [..., C]."""

  p: float
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return gained(self, partial_rms(fn.wide(x), self.p, self.eps)).astype(x.dtype)


class UnitNorm(nn.Module):
  """x / max(|x|, eps); x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return unit(x, self.eps)


class ScaleNorm(nn.Module):
  """g * x / max(|x|, eps) with one g, which starts at sqrt(C); x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    gain = self.param('scale', nn.initializers.constant(x.shape[-1] ** 0.5), ())
    return (unit(fn.wide(x), self.eps) * gain).astype(x.dtype)


class PixelNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps), no parameters; x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return fn.rms_standardize(x, -1, self.eps)


class PositionalNorm(nn.Module):
  """(x - mean) / sqrt(var + eps), no parameters; x [..., C]. `positional` keeps the moments."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return positional(x, self.eps)[0]


class SimpleNorm(nn.Module):
  """g * x / sqrt(var + eps): the variance is centred, x is not; x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    _, var = fn.moments(x, -1)
    return gained(self, fn.wide(x) * jax.lax.rsqrt(var + self.eps)).astype(x.dtype)


class FrozenLayerNorm(nn.Module):
  """g * (x - mean) / s + b with a number s that stands for every sd; x [..., C].

  The numbers are state: `sigma`, and `sigma_first` for the first position of x [B, T, C], whose
  sd is often far from the others'. The layer never moves them; they come from a calibration.
  """

  sigma: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    sigma, first = (
      self.variable('batch_stats', name, jnp.full, (), self.sigma, jnp.float32).value
      for name in ('sigma', 'sigma_first'))
    wide = fn.wide(x)
    if x.ndim == 3:
      is_first = jnp.arange(x.shape[1])[None, :, None] == 0
      sigma = jnp.where(is_first, first, sigma)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return affine(self, centred / sigma).astype(x.dtype)


class LocalResponseNorm(nn.Module):
  """x / (k + a sum of x^2 over n channels)^beta; x [..., C]."""

  n: int
  k: float
  alpha: float
  beta: float
  convention: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return local_response(x, self.n, self.k, self.alpha, self.beta, self.convention)


class DivisiveNorm(nn.Module):
  """g * v / sqrt(sigma^2 + mean_window v^2) + b, v = x - mean_window x; x [..., C]."""

  n: int
  sigma: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    sigma = self.param('sigma', nn.initializers.constant(self.sigma), ())
    return affine(self, divisive(fn.wide(x), self.n, sigma)).astype(x.dtype)
