"""Gain and bias of a layer, which most norms end in."""

from __future__ import annotations

import flax.linen as nn
import jax

from model_lib.normalization import functions as fn


def gained(module: nn.Module, x: jax.Array) -> jax.Array:
  """g x with the parameter `scale` [C] of the module, which starts at 1; x [..., C]."""
  return fn.scale(x, module.param('scale', nn.initializers.ones, (x.shape[-1],)))


def affine(module: nn.Module, x: jax.Array) -> jax.Array:
  """g x + b with the parameters `scale` and `bias` [C] of the module; x [..., C]."""
  return fn.shift(gained(module, x),
                  module.param('bias', nn.initializers.zeros, (x.shape[-1],)))
