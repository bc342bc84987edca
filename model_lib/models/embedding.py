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
  """

  rows: int
  dim: int
  role: str
  parametrization: str = 'sp'

  @nn.compact
  def __call__(self) -> jax.Array:
    rule = get_parametrization(self.parametrization).rules[self.role]

    def normal(key, shape):
      return jax.random.normal(key, shape, jnp.float32) * rule.init_std(shape[0])

    return self.param('table', normal, (self.rows, self.dim)) * rule.multiplier
