"""A small causal language model in the shape of GPT-2, with an untied readout."""

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


class GPT(nn.Module):
  """tokens [B, T] (integers below vocab, T <= length) -> logits [B, T, vocab].

  The logits at t depend on tokens up to t only (with `batch` norm: at inference). The
  arithmetic is done in the dtype of the parameters. `weight` is the weight norm of the blocks'
  kernels (`normalization.weight`).

  Raises:
    UserError: the tokens are not integers [B, T] with T <= length.
  """

  vocab: int = 256
  length: int = 128
  dim: int = 64
  depth: int = 2
  heads: int = 4
  mlp_ratio: int = 4
  activation: str = 'gelu'
  norm: str = 'pre:layer'
  init_gain: bool = True
  parametrization: str = 'sp'
  weight: str = 'none'
  overrides: Sequence[str] = ()

  def sites(self) -> tuple[Site, ...]:
    """What stands where without the overrides."""
    return stack_sites(self.depth, self.dim, True, self.activation, self.norm,
                       self.parametrization)

  def projection(self):
    """What keeps the parameters where the placement wants them, or None (`models.sphere`)."""
    return projection(self.norm, self.parametrization)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if x.ndim != 2 or x.shape[1] > self.length or not jnp.issubdtype(x.dtype, jnp.integer):
      raise UserError(f'gpt: input {x.dtype}{list(x.shape)} is not integer tokens [B, T] with '
                      f'T <= length={self.length}')
    embedding = Table(self.vocab, self.dim, 'embedding', self.parametrization, self.depth,
                      name='embedding')()
    position = Table(self.length, self.dim, 'position', self.parametrization, name='position')()
    x_btd = embedding[x] + position[None, :x.shape[1]]
    x_btd = Transformer(self.depth, self.heads, self.mlp_ratio, True, self.norm,
                        overrides.specs(self), self.init_gain, self.parametrization, self.weight,
                        self.length, name='blocks')(x_btd, train)
    logits = Linear(self.vocab, 'readout', parametrization=self.parametrization,
                    name='head')(x_btd)
    return scaled_logits(self, logits, self.norm, self.parametrization)
