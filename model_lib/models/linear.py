"""The one linear layer of all models; its scales come from the parametrization."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.activation_layer import consumer_gains
from model_lib.models.hyper import read_hp
from model_lib.parametrization import get_parametrization


class Linear(nn.Module):
  """multiplier * (x W) + b; x [..., n_in] -> [..., features].

  W starts as N(0, std^2) with the std of its role, b as 0. The product is computed in the
  dtype of x, to which the parameters (float32) are cast.

  Attributes:
    features: size of the output.
    role: row of the parametrization's rules, such as 'hidden' or 'readout'.
    consumes: spec of the activation whose output x is, or None. With it the std has the
      swept factor `init_gain`, by default `consumer_gains` of the spec's first branch.
    init_gain: whether that default follows the activation (else it is sqrt(2)).
    parametrization: row of the parametrization table.

  Raises:
    UserError: x is not floating-point, such as images still in uint8.
  """

  features: int
  role: str
  consumes: str | None = None
  init_gain: bool = True
  parametrization: str = 'sp'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise UserError(f'the model needs floating-point input, not {x.dtype}: scale it first')
    rule = get_parametrization(self.parametrization).rules[self.role]
    gain = 1.0
    if self.consumes is not None and not self.has_variable('params', 'kernel'):
      gain = read_hp(self, 'init_gain', consumer_gains(self.consumes, self.init_gain)[0])

    def normal(key, shape):
      return jax.random.normal(key, shape, jnp.float32) * rule.init_std(shape[0], gain)

    kernel = self.param('kernel', normal, (x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = jnp.dot(x, kernel.astype(x.dtype)) * rule.multiplier
    return y + bias.astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
