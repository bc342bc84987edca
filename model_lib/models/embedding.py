"""A trained table of vectors: token embeddings and learned positions."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.parametrization import get_parametrization


class Table(nn.Module):
  """The table itself [rows, dim], times its role's multiplier; starts as N(0, std^2).

  Attributes:
    rows: number of vectors.
    dim: size of a vector.
    role: 'embedding' or 'position'.
    parametrization: row of the parametrization table.
    blocks: number of blocks of the model.
  """

  rows: int
  dim: int
  role: str
  parametrization: str = 'sp'
  blocks: int = 1

  @nn.compact
  def __call__(self) -> jax.Array:
    row = get_parametrization(self.parametrization)
    std = row.table_std(self.role, self.rows, self.dim, self.blocks)

    def normal(key, shape):
      return jax.random.normal(key, shape, jnp.float32) * std

    return self.param('table', normal, (self.rows, self.dim)) * row.rules[self.role].multiplier
