"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), mean-pooled."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models import overrides
from model_lib.models.embedding import Table
from model_lib.models.linear import Linear
from model_lib.models.site import Site
from model_lib.models.sphere import projection, scaled_logits
from model_lib.models.transformer import Transformer, stack_sites
from model_lib.normalization.placement import stem_norms


def patches(images: jax.Array, size: int) -> jax.Array:
  """[B, H, W] or [B, H, W, C] -> [B, (H/size) (W/size), size size C], row by row.

  A reshape before a matmul: XLA's convolution is an order of magnitude slower on a CPU.

  Raises:
    UserError: not an image batch, or H or W is not divisible by `size`.
  """
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or images.shape[1] % size or images.shape[2] % size:
    raise UserError(f'vit: input {images.shape} is not [B, H, W] or [B, H, W, C] with H and W '
                    f'divisible by patch={size}')
  batch, height, width, channels = images.shape
  x_brpcqk = images.reshape(batch, height // size, size, width // size, size, channels)
  return x_brpcqk.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


class ViT(nn.Module):
  """images [B, H, W] or [B, H, W, C] -> logits [B, num_classes].

  The stem is P + N1(W N0(patch)), P the learned positions, with the norms that `stem_norm` asks
  for: 'none', 'pre:NORM' (N0), 'post:NORM' (N1) or 'dual:NORM' (Kumar, Dehghani, Houlsby 2023,
  Dual PatchNorm, arXiv:2302.01327). `weight` is the weight norm of the blocks' kernels
  (`normalization.weight`).
  """

  patch: int = 2
  dim: int = 32
  depth: int = 2
  heads: int = 4
  mlp_ratio: int = 4
  num_classes: int = 10
  activation: str = 'gelu'
  norm: str = 'pre:layer'
  init_gain: bool = True
  parametrization: str = 'sp'
  weight: str = 'none'
  stem_norm: str = 'none'
  overrides: Sequence[str] = ()

  def sites(self) -> tuple[Site, ...]:
    """What stands where without the overrides."""
    return stack_sites(self.depth, self.dim, False, self.activation, self.norm,
                       self.parametrization)

  def projection(self):
    """What keeps the parameters where the placement wants them, or None (`models.sphere`)."""
    return projection(self.norm, self.parametrization)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    before, after = stem_norms(self.stem_norm)
    x_btp = before.layer('norm_patch')(patches(x, self.patch), train)
    x_btd = Linear(self.dim, 'input', parametrization=self.parametrization, name='stem')(x_btp)
    x_btd = after.layer('norm_stem')(x_btd, train)
    position = Table(x_btd.shape[1], self.dim, 'position', self.parametrization,
                     name='position')()
    x_btd = x_btd + position.astype(x_btd.dtype)[None]
    x_btd = Transformer(self.depth, self.heads, self.mlp_ratio, False, self.norm,
                        overrides.specs(self), self.init_gain, self.parametrization, self.weight,
                        name='blocks')(x_btd, train)
    x_bd = jnp.mean(x_btd, axis=1)
    logits = Linear(self.num_classes, 'readout', parametrization=self.parametrization,
                    name='head')(x_bd)
    return scaled_logits(self, logits, self.norm, self.parametrization)
