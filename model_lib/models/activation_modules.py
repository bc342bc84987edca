"""The networks behind activations whose coefficients depend on the input.

Each is called as `module(x, train)` and keeps x's shape; its settings are those of the
registry's entry of the same name. Kernels start as N(0, 1 / fan_in), biases as 0. The
arithmetic is float32 or wider.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.activations.conditioned import dynamic_relu, funnel_relu, meta_acon
from model_lib.errors import UserError
from model_lib.normalization import get_norm


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
                  name=name)


def _per_example(vector: jax.Array, ndim: int) -> jax.Array:
  """[B, C] -> [B, 1, ..., C] of that many axes."""
  return vector.reshape(vector.shape[0], *(1,) * (ndim - 2), vector.shape[-1])


def _pooled(x: jax.Array, name: str) -> jax.Array:
  """The mean over positions; [B, ..., C] -> [B, C]."""
  if x.ndim < 2:
    raise UserError(f'{name} needs [batch, ..., channel], not an input of shape {x.shape}')
  return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


class MetaACON(nn.Module):
  """`meta_acon`; x [B, ..., C]."""

  width: int
  reduction: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    channels, beta = x.shape[-1], _pooled(wide, 'meta_acon')
    sizes = (max(self.width, channels // self.reduction), channels)
    for i, features in enumerate(sizes, 1):
      beta = get_norm('batch').layer(f'norm_{i}')(_dense(features, f'dense_{i}')(beta), train)
    normal = nn.initializers.normal(1.0)
    p1, p2 = (self.param(name, normal, (channels,)).reshape((1,) * (x.ndim - 1) + (-1,))
              for name in ('p1', 'p2'))
    return meta_acon(wide, p1, p2, _per_example(jax.nn.sigmoid(beta), x.ndim)).astype(x.dtype)


class DynamicReLU(nn.Module):
  """`dynamic_relu`; x [B, ..., C]."""

  pieces: int
  reduction: int
  shared: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    channels, hidden = x.shape[-1], _pooled(wide, 'dynamic_relu')
    hidden = jax.nn.relu(_dense(max(1, channels // self.reduction), 'dense_1')(hidden))
    lines = 1 if self.shared else channels
    theta = 2 * jax.nn.sigmoid(_dense(2 * self.pieces * lines, 'dense_2')(hidden)) - 1
    theta = theta.reshape(x.shape[0], 2 * self.pieces, lines).transpose(1, 0, 2)
    theta = theta.reshape(2 * self.pieces, x.shape[0], *(1,) * (x.ndim - 2), lines)
    first = jnp.zeros(self.pieces).at[0].set(1.0).reshape((-1,) + (1,) * x.ndim)
    slopes, offsets = theta[:self.pieces] + first, theta[self.pieces:] / 2
    return dynamic_relu(wide, slopes, offsets).astype(x.dtype)


class FunnelReLU(nn.Module):
  """`funnel_relu`; x [B, H, W, C], zeros beyond the edges."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if x.ndim != 4:
      raise UserError(f'funnel_relu needs images [batch, height, width, channel], not an input of '
                      f'shape {x.shape}: use it in a cnn')
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    kernel = self.param('kernel', nn.initializers.normal(1 / 3), (3, 3, x.shape[-1]))
    height, width = x.shape[1:3]
    padded = jnp.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Nine shifted products: XLA's convolution by channel is slow inside a loop on a CPU.
    windows = sum(padded[:, i:i + height, j:j + width] * kernel[i, j].reshape(1, 1, 1, -1)
                  for i in range(3) for j in range(3))
    condition = get_norm('batch').layer('norm')(windows, train)
    return funnel_relu(wide, condition).astype(x.dtype)


MODULES = {'meta_acon': MetaACON, 'dynamic_relu': DynamicReLU, 'funnel_relu': FunnelReLU}
