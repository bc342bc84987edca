"""The normalizations as Linen layers, all called as `layer(x, train)`.

x is [B, ..., C]; the result has its shape and dtype, the arithmetic is float32 or
wider. Gains are called `scale` (start at 1), biases `bias` (start at 0). The most common ones
stand here, the others in the module of their family.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.normalization import adaptation, conditional, joint, pointwise, spatial, token
from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine as _affine
from model_lib.normalization.batch import BatchChannelNorm, BatchNorm, BatchRenorm, SwitchNorm
from model_lib.normalization.whitening import IterNorm


def _wide(x: jax.Array) -> jax.Array:
  """One cast for the whole layer, so that nothing is rounded between its three steps."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class LayerNorm(nn.Module):
  """g * (x - mean) / sqrt(var + eps) + b over the last axis; x [..., C]."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return _affine(self, fn.standardize(_wide(x), -1, self.eps)).astype(x.dtype)


class RMSNorm(nn.Module):
  """g * x / sqrt(mean(x^2) + eps) over the last axis; x [..., C].

  With gain='one_plus' the factor is 1 + g, and g starts at 0.
  """

  eps: float
  gain: str = 'direct'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    y = fn.rms_standardize(_wide(x), -1, self.eps)
    one_plus = self.gain == 'one_plus'
    start = nn.initializers.zeros if one_plus else nn.initializers.ones
    gain = self.param('scale', start, (x.shape[-1],))
    return fn.scale(y, 1 + gain if one_plus else gain).astype(x.dtype)


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
    fn.check_groups(x, self.groups, 'group norm')
    return _affine(self, fn.group_standardize(_wide(x), self.groups, self.eps)).astype(x.dtype)


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


LAYERS = {
  'layer': LayerNorm, 'rms': RMSNorm, 'group': GroupNorm, 'batch': BatchNorm,
  'dyt': DyT, 'none': NoNorm,
  'prms': token.PartialRMSNorm, 'unit': token.UnitNorm, 'scale_norm': token.ScaleNorm,
  'pixel': token.PixelNorm, 'pono': token.PositionalNorm, 'simple': token.SimpleNorm,
  'frozen_layer': token.FrozenLayerNorm, 'lrn': token.LocalResponseNorm,
  'divisive': token.DivisiveNorm,
  'instance': spatial.InstanceNorm, 'frn': spatial.FilterResponseNorm,
  'frn_tlu': spatial.ThresholdedFilterResponseNorm,
  'renorm': BatchRenorm, 'batch_channel': BatchChannelNorm, 'switch': SwitchNorm,
  'whiten': IterNorm,
  'derf': pointwise.Derf, 'pointwise': pointwise.PointwiseNorm, 'affine': pointwise.Affine,
  'soft_cap': pointwise.SoftCap,
  'evonorm_b0': joint.EvoNormB0, 'evonorm_b1': joint.EvoNormB1, 'evonorm_b2': joint.EvoNormB2,
  'evonorm_s0': joint.EvoNormS0, 'evonorm_s1': joint.EvoNormS1, 'evonorm_s2': joint.EvoNormS2,
  'norm_prop': joint.NormPropagation,
  'adain': conditional.AdaIN, 'film': conditional.FiLM, 'spade': conditional.SPADE,
  'adaln_zero': conditional.AdaLNZero,
  'test_batch': adaptation.AlphaBatchNorm, 'alpha_batch': adaptation.AlphaBatchNorm,
  'ema_batch': adaptation.EmaBatchNorm, 'unmix': adaptation.UnMixNorm,
}
