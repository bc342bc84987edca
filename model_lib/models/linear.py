"""The one linear layer of all models; its scales come from the parametrization."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.kernel import kernel as make_kernel
from model_lib.models.kernel import start_gain
from model_lib.normalization.weight import cosine
from model_lib.parametrization import Branch, get_parametrization


class Linear(nn.Module):
  """multiplier * (x W) + b; x [..., n_in] -> [..., features].

  W starts as N(0, std^2) with the std of its role, b as 0. The product is computed in the
  dtype of x, to which the parameters (float32) are cast.

  Attributes:
    features: size of the output.
    role: row of the parametrization's rules, such as 'hidden' or 'readout'.
    consumes: spec of the activation whose output x is, or None. With it the std has the
      swept factor `init_gain`, by default `consumer_gains` of the spec's first branch. In a
      branch whose parametrization starts from Xavier's std it has no effect.
    init_gain: whether that default follows the activation (else it is sqrt(2)).
    parametrization: row of the parametrization table.
    branch: the residual branch in which the layer stands, or None.
    labels: what its equal parts are in the branch, such as ('query', 'key', 'value').
    weight: spec of the weight norm (`normalization.weight`).
    use_bias: whether there is a b.

  Raises:
    UserError: x is not floating-point, such as images still in uint8.
  """

  features: int
  role: str
  consumes: str | None = None
  init_gain: bool = True
  parametrization: str = 'sp'
  branch: Branch | None = None
  labels: Sequence[str] = ()
  weight: str = 'none'
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise UserError(f'the model needs floating-point input, not {x.dtype}: scale it first')
    row = get_parametrization(self.parametrization)
    gain = start_gain(self, self.consumes, self.init_gain, self.parametrization, self.branch)
    kernel = make_kernel(self, (x.shape[-1], self.features), self.role, self.parametrization,
                         gain, self.weight, train, self.labels, self.branch)
    product = cosine if self.weight == 'cosine' else jnp.dot
    y = product(x, kernel.astype(x.dtype)) * row.rules[self.role].multiplier
    if not self.use_bias:
      return y
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return y + bias.astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
