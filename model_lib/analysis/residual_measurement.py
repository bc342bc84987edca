"""The variance of a residual stream at the start, measured: what `residual_growth` predicts."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.models.activation_layer import ActivationLayer
from model_lib.models.linear import Linear
from model_lib.models.residual import Stack
from model_lib.parametrization import Branch, get_parametrization


class Measured(NamedTuple):
  """Variances over the features, mean of seeds and inputs, one per block in order.

  Attributes:
    stream: of the stream after the block.
    normed: of what the block's norm reads (its last one, where it has two).
  """

  stream: np.ndarray
  normed: np.ndarray


class _Branch(nn.Module):
  """W2 phi(W1 x) without biases; `gained`: W2 has the gain sqrt(2) of He's initialization."""

  activation: str
  gained: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    h = Linear(x.shape[-1], 'hidden', use_bias=False, name='in')(x)
    h = ActivationLayer(self.activation, name='activation')(h, train=train)
    return Linear(x.shape[-1], 'hidden', self.activation if self.gained else None, False,
                  use_bias=False, name='out')(h)


class _Block(nn.Module):
  """The first of `blocks` blocks of one branch: what differs between them is a swept number."""

  norm: str
  residual: str
  activation: str
  gained: bool
  blocks: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    stack = Stack(self.norm, self.residual, self.blocks, per_block=1)
    branch = _Branch(self.activation, self.gained, name='mlp_0')
    return stack.block(stack.start(x, False), 0, {'mlp': branch}, False).x


def measure_variance(norm: str, residual: str, activation: str, gained: bool, blocks: int = 48,
                     width: int = 256, inputs: int = 64, seeds: int = 8) -> Measured:
  """Variances in a stack of two-matrix branches on iid N(0, I) inputs, at initialization.

  Args:
    norm: placement of a layer norm, such as 'pre:layer(eps=0.0)'; every block has it.
    residual: row of the parametrization table, with fixed factors or none.
    activation: spec of phi, parameter-free.
    gained: whether W2 has variance 2 / fan_in (He) instead of 1 / fan_in.
    blocks, width, inputs: of the stack; the hidden width is `width`.
    seeds: stacks and inputs that are drawn.
  """
  model, row = _Block(norm, residual, activation, gained, blocks), get_parametrization(residual)
  factors = [row.factors(Branch(i + 1, blocks, per_block=1)) for i in range(blocks)]
  hp = {name: jnp.asarray([f[name] for f in factors], jnp.float32) for name in factors[0]}
  read = []

  def watch(call, args, kwargs, context):
    if type(context.module).__name__ == 'LayerNorm':
      read.append(args[0])
    return call(*args, **kwargs)

  def join(x, block):
    key, hp = block
    y, _ = model.apply({'hp': {'factors_mlp_0': hp}}, x, rngs={'params': key},
                       mutable=['params', 'hp'])
    return y, (jnp.var(y, axis=-1).mean(), jnp.var(read[-1], axis=-1).mean())

  def one(key):
    x = jax.random.normal(key, (inputs, width))
    keys = jax.random.split(jax.random.fold_in(key, 1), blocks)
    return jax.lax.scan(join, x, (keys, hp))[1]

  with nn.intercept_methods(watch):
    stream, normed = jax.jit(lambda keys: jax.lax.map(one, keys))(
        jax.random.split(jax.random.key(0), seeds))
  return Measured(np.asarray(stream, np.float64).mean(0), np.asarray(normed, np.float64).mean(0))
