"""The layer that applies an activation given by its spec string."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib import spec as spec_lib
from model_lib.activations import Activation, get_activation
from model_lib.errors import UserError
from model_lib.models import swept as swept_lib
from model_lib.models.activation_modules import MODULES
from model_lib.models.hyper import read_hp
from model_lib.models.swept import SweptActivation

_SWITCH = 'switch'


@functools.lru_cache(maxsize=None)
def branches(spec: str) -> tuple[Activation | SweptActivation, ...]:
  """The activations of a spec: those of `switch(a, b, ...)` in order, else the one it names.

  Raises:
    UserError: an unknown activation, or a switch over one with parameters of its own, with
      statistics or with a gate (these are programs and shapes of their own, not numbers).
  """
  call = spec_lib.parse(spec)
  if call.name != _SWITCH:
    return (swept_lib.find(spec) or get_activation(spec),)
  if call.kwargs or not call.args:
    raise UserError(f'{spec!r}: write switch(relu, gelu, ...), with at least one activation')
  found = tuple(get_activation(str(arg)) for arg in call.args)
  for activation in found:
    if activation.kind != 'pointwise' or activation.parameters:
      reason = 'has parameters' if activation.parameters else f'is {activation.kind}'
      raise UserError(f'{spec!r}: {activation.name} {reason} and cannot be switched; '
                      'give it a run of its own')
  return found


def is_gated(spec: str) -> bool:
  """Whether the activation takes two arguments: f(gate, value)."""
  return branches(spec)[0].kind == 'gated'


@functools.lru_cache(maxsize=None)
def consumer_gains(spec: str, init_gain: bool = True) -> tuple[float, ...]:
  """The gain of a kernel that consumes the activation, for each branch of the spec.

  E[f(z)^2]^-1/2 with z ~ N(0, 1), the parameters of f at their start values; for a gated
  f(g, v) = a(g) v with independent g, v this is E[a(z)^2]^-1/2; as the product squares every
  deviation from variance 1, a deep gated network needs a norm besides. Without `init_gain` it is
  sqrt(2), the gain of ReLU, whatever the activation (He et al. 2015, arXiv:1502.01852).

  Raises:
    UserError: an activation has no finite gain, or no moments at all.
  """
  found = branches(spec)
  if not init_gain:
    return (float(np.sqrt(2.0)),) * len(found)
  gains = tuple(float(activation.gain() if isinstance(activation, SweptActivation)
                      else activation.moments().gain) for activation in found)
  for activation, gain in zip(found, gains, strict=True):
    if not (np.isfinite(gain) and gain > 0):
      raise UserError(f'{activation.name} has no finite gain E[f^2]^-1/2 ({gain}); '
                      'use init_gain=False')
  return gains


class ActivationLayer(nn.Module):
  """f(x), or f(gate, value) for a gated activation.

  The shape stays, but for the last axis of a resizing activation (`Activation.width_factor`).
  Parameters of a learnable activation belong to this layer alone. The branch of a switch is
  the swept number `activation_code`; the function of a swept activation is in the swept leaves
  that its engine names. In training a stochastic activation draws from the random stream 'noise',
  each layer its own numbers.

  Raises:
    UserError: a stochastic activation without `train`, or in training without the stream; an
      input that the activation cannot take.
  """

  spec: str

  @nn.compact
  def __call__(self, *inputs: jax.Array, train: bool | None = None) -> jax.Array:
    found = branches(self.spec)
    if spec_lib.parse(self.spec).name == _SWITCH:
      code = read_hp(self, 'activation_code', 0)
      return jax.lax.switch(code, found, *inputs)
    activation, = found
    if isinstance(activation, SweptActivation):
      return self._swept(activation, *inputs)
    if activation.kind == 'module':
      weights = MODULES[activation.name](**activation.constants, name='weights')
      if train is None:
        raise UserError(f'{activation.spec} may differ between training and inference: '
                        'call the layer with train=True or train=False')
      return weights(*inputs, train)
    shape = inputs[0].shape
    params = {
      parameter.name: self.param(
        parameter.name,
        lambda key, name=parameter.name: activation.init_parameters(shape)[name])
      for parameter in activation.parameters
    }
    return activation(*inputs, key=self._key(activation, train), train=bool(train), **params)

  def _swept(self, activation: SweptActivation, x: jax.Array) -> jax.Array:
    leaves = {name: self.variable('hp', name, lambda value=value: jnp.asarray(value)).value
              for name, value in activation.default().items()}
    params = {name: self.param(name, lambda key, value=value: value)
              for name, value in activation.first(leaves, x.shape).items()}
    return activation.apply(leaves, params, x)

  def _key(self, activation: Activation, train: bool | None) -> jax.Array | None:
    """The key of a draw, where there is one."""
    if activation.kind != 'stochastic':
      return None
    if train is None:
      raise UserError(f'{activation.spec} differs between training and inference: '
                      'call the layer with train=True or train=False')
    if train and not self.has_rng('noise'):
      raise UserError(f'{activation.spec} draws random numbers in training: '
                      'apply the model with rngs={\'noise\': key}')
    return self.make_rng('noise') if train else None
