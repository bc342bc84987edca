"""The variance of a residual stream at the start, measured: what `residual_growth` predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer
from model_lib.models.attention import Attention
from model_lib.models.linear import Linear
from model_lib.models.recording import record_calls
from model_lib.models.residual import Stack
from model_lib.normalization.layers import LayerNorm
from model_lib.parametrization import Branch, Parametrization, get_parametrization


class Measured(NamedTuple):
  """Variances over the features, mean of seeds and inputs, one per branch in order.

  Attributes:
    stream: of the stream after the branch.
    normed: of what the branch's norm reads (its last one, where it has two).
    correlation: of two different tokens of the stream after the branch; None without attention.
  """

  stream: np.ndarray
  normed: np.ndarray
  correlation: np.ndarray | None = None


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
  """The first of `blocks` blocks: what differs between them is a swept number.

  Its branches are a `_Branch`, behind attention without a mask or biases if there are `heads`. It
  returns the streams after each branch.
  """

  norm: str
  residual: str
  activation: str
  gained: bool
  blocks: int
  heads: int = 0

  def names(self) -> tuple[str, ...]:
    """Of the branches."""
    return ('attention_0', 'mlp_0') if self.heads else ('mlp_0',)

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    stack = Stack(self.norm, self.residual, self.blocks, per_block=len(self.names()))
    stream, found = stack.start(x, False), []
    for name in self.names():
      kind = name.partition('_')[0]
      branch = (_Branch(self.activation, self.gained, name=name) if kind == 'mlp' else
                Attention(self.heads, False, self.residual, stack.branch(0, kind), use_bias=False,
                          name=name))
      stream = stack.block(stream, 0, {kind: branch}, False)
      found.append(stream.x)
    return found


def measure_variance(stacks: Sequence[tuple[str, str]], activation: str, gained: bool,
                     blocks: int = 48, width: int = 256, inputs: int = 64,
                     seeds: int = 8) -> list[Measured]:
  """Variances in stacks of two-matrix branches on iid N(0, I) inputs, at initialization.

  Args:
    stacks: of each, the placement of a layer norm that every block has, such as
      'pre:layer(eps=0.0)', and the row of the parametrization table, with fixed factors or none.
      They share the kernels that the first one draws.
    activation: spec of phi, parameter-free.
    gained: whether W2 has variance 2 / fan_in (He) instead of 1 / fan_in.
    blocks, width, inputs: of a stack; the hidden width is `width`.
    seeds: kernels and inputs that are drawn.

  Raises:
    UserError: a row that starts kernels in a way of its own or has a trained factor, or blocks
      without a layer norm.
  """
  models = [_Block(norm, residual, activation, gained, blocks) for norm, residual in stacks]
  return [Measured(*moments) for moments in _through(models, (inputs, width), seeds, _variances)]


def measure_attention(stacks: Sequence[tuple[str, str]], activation: str, gained: bool,
                      blocks: int = 24, width: int = 128, heads: int = 4, tokens: int = 32,
                      inputs: int = 4, seeds: int = 4) -> list[Measured]:
  """The same in blocks of attention and a two-matrix branch, on iid N(0, I) tokens.

  Args:
    stacks, activation, gained, blocks, width, seeds: as for `measure_variance`.
    heads: of the attention, which has no mask.
    tokens: of an input.
    inputs: per seed.

  Raises:
    UserError: as `measure_variance`.
  """
  models = [_Block(norm, residual, activation, gained, blocks, heads) for norm, residual in stacks]
  found = _through(models, (inputs, tokens, width), seeds,
                   lambda y, read: (*_variances(y, read), _correlation(y)))
  return [Measured(*moments) for moments in found]


def _variances(y: jax.Array, read: jax.Array) -> tuple[jax.Array, ...]:
  return jnp.var(y, axis=-1).mean(), jnp.var(read, axis=-1).mean()


def _correlation(y_btd: jax.Array) -> jax.Array:
  """Over the features, mean of all pairs of different tokens of an input."""
  centred = y_btd - jnp.mean(y_btd, axis=-1, keepdims=True)
  unit = centred / jnp.linalg.norm(centred, axis=-1, keepdims=True)
  n = y_btd.shape[1]
  return jnp.mean(jnp.sum(jnp.square(jnp.sum(unit, axis=1)), axis=-1) - n) / (n * (n - 1))


def _through(models: Sequence[_Block], shape: tuple[int, ...], seeds: int,
             moments: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]],
             ) -> list[list[np.ndarray]]:
  """The means over the seeds of moments(stream after a branch, what its last norm read).

  One program, in which drawing the kernels costs most: the models share them.

  Returns:
    Per model, per moment: float64 [branches of the stack].
  """
  names, blocks = models[0].names(), models[0].blocks
  swept = []
  for model in models:
    row = get_parametrization(model.residual)
    if row.kernel or row.xavier or row.learned:
      raise UserError(f'no variance is measured for {row.name!r}: its kernels start in a way of '
                      'their own, or a factor is trained; take a row with fixed factors')
    swept.append({f'factors_{name}': _factors(row, name, within, len(names), blocks)
                  for within, name in enumerate(names, 1)})
  def join(entering, block):
    key, swept = block
    leaving, found, kernels = [], [], {}
    for model, x, hp in zip(models, entering, swept, strict=True):
      variables = {'params': kernels, 'hp': hp}
      (streams, made), calls = record_calls(functools.partial(
          model.apply, variables, x, rngs={'params': key}, mutable=['params', 'hp']))
      reads = [call.inputs[0] for call in calls if isinstance(call.module, LayerNorm)]
      if not reads or len(reads) % len(names):
        raise UserError(f'no variance is measured for {model.norm!r}: not every branch has the '
                        "same number of layer norms; write it as 'pre:layer'")
      kernels = {name: made['params'][name] for name in names}
      each = len(reads) // len(names)  # norms of a branch
      leaving.append(streams[-1])
      found.append([moments(y, reads[(i + 1) * each - 1]) for i, y in enumerate(streams)])
    return leaving, found

  def one(key):
    x = jax.random.normal(key, shape)
    keys = jax.random.split(jax.random.fold_in(key, 1), blocks)
    return jax.lax.scan(join, [x] * len(models), (keys, swept))[1]

  found = jax.jit(lambda keys: jax.lax.map(one, keys))(
      jax.random.split(jax.random.key(0), seeds))
  # Per model: [branch of a block][moment] of [seeds, blocks] to [moment] of [branch of the stack].
  return [[np.stack([np.asarray(part, np.float64).mean(0) for part in parts], -1).ravel()
           for parts in zip(*own, strict=True)] for own in found]


def _factors(row: Parametrization, name: str, within: int, per_block: int,
             blocks: int) -> dict[str, jax.Array]:
  """The fixed factors of a branch, each [blocks]."""
  kind = name.partition('_')[0]
  every = [row.factors(Branch(i + 1, blocks, kind, within, per_block)) for i in range(blocks)]
  return {key: jnp.asarray([f[key] for f in every], jnp.float32) for key in every[0]}
