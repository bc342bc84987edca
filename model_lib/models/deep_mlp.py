"""The residual multilayer perceptron of the depth studies: scanned blocks without norms or biases.

Yang et al. 2023 (Tensor Programs VI), arXiv:2310.02244, sections 6.3 and 10.2:

  x_0 = U input,   x_l = x_{l-1} + branch_scale G(f(x_{l-1})),   logits = readout_scale V^T x_L,

with G v = v - mean(v) over the features of each example, phi = activation_scale * the activation
and the branches

  nonlinearity   block_depth=1    block_depth=2
  post           phi(W x)         phi(W2 phi(W1 x))
  pre            W phi(x)         W2 phi(W1 phi(x))

U starts as N(0, 1 / inputs), W and V as N(0, 1 / width). The kernels of all blocks are one array,
through which a scan runs: neither the program nor the time to compile it grows with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.activations import Activation
from model_lib.errors import UserError
from model_lib.models.activation_layer import branches
from model_lib.models.hyper import read_hp
from model_lib.models.linear import Linear
from model_lib.parametrization import Branch, get_parametrization
from model_lib.spec import nearest

POSITIONS = ('post', 'pre')
PRENORMS = ('none', 'rms', 'layer')
REMATS = ('none', 'block', 'nested')
STREAM = 'stream'  # in `intermediates`: x_0 ... x_L
SHIFT = 'preactivation'  # in `perturbations`: what is added to the output of each block's last W


@dataclasses.dataclass(frozen=True)
class DeepBranch:
  """G(f(x)) of the module's docstring, x [B, n] -> [B, n]; pure.

  Attributes:
    function: phi.
    nonlinearity: 'post' or 'pre'.
    prenorm: what f reads: x itself ('none'), x / rms(x) ('rms'), or x less its mean over the
      features, over its rms ('layer': a LayerNorm without parameters).
    mean_subtraction: whether there is a G.
  """

  function: Callable[[jax.Array], jax.Array]
  nonlinearity: str = 'post'
  prenorm: str = 'none'
  mean_subtraction: bool = True

  def __call__(self, x: jax.Array, kernels: Sequence[jax.Array],
               shift: jax.Array | float = 0.0) -> jax.Array:
    """The branch with its kernels [n, n] in order; `shift` [B, n] is added after the last one."""
    if self.prenorm == 'layer':
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    if self.prenorm != 'none':
      # The eps keeps an example of zeros finite.
      x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
    for k, kernel in enumerate(kernels):
      if self.nonlinearity == 'pre':
        x = self.function(x)
      x = jnp.dot(x, kernel.astype(x.dtype))
      if k == len(kernels) - 1:
        x = x + shift
      if self.nonlinearity == 'post':
        x = self.function(x)
    return x - jnp.mean(x, axis=-1, keepdims=True) if self.mean_subtraction else x


def scan_blocks(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, layers: Any,
                remat: str = 'none') -> tuple[Any, Any]:
  """`jax.lax.scan` over blocks, with what the backward pass keeps.

  Args:
    step: (carry, what belongs to the block) -> (carry, output).
    carry: before the first block.
    layers: arrays [L, ...].
    remat: 'none': all that the derivative of a block reads, for every block. 'block': the carry
      before every block. 'nested': about 2 L^1/2 carries, in a scan of scans with the divisor of
      L that is nearest to L^1/2; a prime L gains nothing.

  Returns:
    The last carry, and the outputs stacked [L, ...].
  """
  if remat == 'none':
    return jax.lax.scan(step, carry, layers)
  # In a scan nothing can be merged across the border, which the default would pay for.
  step = jax.checkpoint(step, prevent_cse=False)
  if remat == 'block':
    return jax.lax.scan(step, carry, layers)
  depth = len(jax.tree.leaves(layers)[0])
  outer = _root_divisor(depth)
  part = jax.checkpoint(lambda carry, layers: jax.lax.scan(step, carry, layers),
                        prevent_cse=False)
  carry, outputs = jax.lax.scan(
    part, carry, jax.tree.map(lambda a: a.reshape(outer, depth // outer, *a.shape[1:]), layers))
  return carry, jax.tree.map(lambda a: a.reshape(depth, *a.shape[2:]), outputs)


def _root_divisor(depth: int) -> int:
  """The divisor nearest to the root, by ratio."""
  return min((d for d in range(1, depth + 1) if depth % d == 0),
             key=lambda d: abs(math.log(d * d / depth)))


class Second(nn.Module):
  """Holds the second kernels of blocks with two."""

  @nn.compact
  def __call__(self, start: Callable, shape: tuple[int, ...]) -> jax.Array:
    return self.param('kernel', start, shape)


class DeepStack(nn.Module):
  """x [B, n] -> x_L; the attributes are DeepMLP's. Parameters: `kernel` [L, n, n], of each block
  what reads the stream, and `second/kernel` [L, n, n] where a block has two."""

  depth: int
  block_depth: int
  nonlinearity: str
  prenorm: str
  mean_subtraction: bool
  remat: str
  activation: str
  parametrization: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    std, scale = branch_rule(self.parametrization, self.depth, self.block_depth, x.shape[-1])

    def start(key, shape):
      return jax.random.normal(key, shape, jnp.float32) * std

    shape = (self.depth, x.shape[-1], x.shape[-1])
    kernels = (self.param('kernel', start, shape),)
    if self.block_depth == 2:
      kernels += (Second(name='second')(start, shape),)
    scale = read_hp(self, 'branch_scale', scale).astype(x.dtype)
    branch = DeepBranch(self._phi(x.dtype), self.nonlinearity, self.prenorm,
                        self.mean_subtraction)
    tapped = self.is_mutable_collection('intermediates')
    shifts = (self.get_variable('perturbations', SHIFT)
              if self.has_variable('perturbations', SHIFT) else None)

    def step(x, layer):
      kernels, shift = layer
      x = x + scale * branch(x, kernels, 0.0 if shift is None else shift)
      return x, x if tapped else None

    last, stream = scan_blocks(step, x, (kernels, shifts), self.remat)
    if tapped:
      self.sow('intermediates', STREAM, jnp.concatenate([x[None], stream]))
    return last

  def _phi(self, dtype) -> Callable[[jax.Array], jax.Array]:
    found = branches(self.activation)
    scale = read_hp(self, 'activation_scale', 1.0).astype(dtype)
    if len(found) == 1:
      return lambda h: scale * found[0](h)
    code = read_hp(self, 'activation_code', 0)
    return lambda h: scale * jax.lax.switch(code, found, h)


class DeepMLP(nn.Module):
  """x [B, ...] (flattened) -> logits [B, num_classes].

  Swept numbers: `stack/branch_scale` (a m_L^-alpha, by default what the row of the
  parametrization says), `stack/activation_scale` (1), `readout_scale` (1), and
  `stack/activation_code` for a switch(...) of activations. To train the blocks alone, as the paper
  does, set `OptimizerSpec.trained=('stack/',)`.

  `apply(..., mutable=['intermediates'])` also gives x_0 ... x_L [L + 1, B, n] as
  intermediates/stack/stream (a tuple of one). A variable perturbations/stack/preactivation
  [L, B, n] is added to the outputs h_l of each block's last kernel: the gradient with respect to it
  is dL/dh_l.

  Attributes:
    width: n, of the stream.
    depth: L, number of blocks.
    block_depth: kernels of a block, 1 or 2.
    nonlinearity: 'post' or 'pre', as above.
    prenorm: what a branch reads, 'none', 'rms' or 'layer' (`DeepBranch`).
    mean_subtraction: whether a branch loses its mean over the features.
    remat: what the backward pass keeps of the blocks, 'none', 'block' or 'nested' (`scan_blocks`).
    activation: spec of a pointwise function without parameters, or a switch over such.
    parametrization: row whose branches have one fixed factor, equal for all of them, or none.
  """

  # Pattern of the scanned parameters' paths: their first axis counts the blocks.
  stack_pattern = r'^stack/'

  width: int = 64
  depth: int = 4
  block_depth: int = 1
  nonlinearity: str = 'post'
  prenorm: str = 'none'
  mean_subtraction: bool = True
  remat: str = 'none'
  num_classes: int = 10
  activation: str = 'relu'
  parametrization: str = 'sp'

  def check(self) -> None:
    """Whether the attributes make sense, alone and together. Raises UserError."""
    for name, known in {'nonlinearity': POSITIONS, 'prenorm': PRENORMS, 'remat': REMATS}.items():
      value = getattr(self, name)
      if value not in known:
        raise UserError(f'deep_mlp: {name}={value!r}{nearest(value, known)}; '
                        f'there are: {", ".join(known)}')
    if self.block_depth > 2:
      raise UserError(f'deep_mlp: block_depth must be 1 or 2, not {self.block_depth}')
    for function in branches(self.activation):
      if not (isinstance(function, Activation) and function.kind == 'pointwise'
              and not function.parameters):
        raise UserError(f'deep_mlp: activation={self.activation!r} is not a pointwise function '
                        'without parameters, which the blocks of a scan share; take resmlp')
    branch_rule(self.parametrization, self.depth, self.block_depth, self.width)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x_bi = x.reshape(x.shape[0], -1)
    x_bn = Linear(self.width, 'input', parametrization=self.parametrization, use_bias=False,
                  name='stem')(x_bi, train)
    x_bn = DeepStack(self.depth, self.block_depth, self.nonlinearity, self.prenorm,
                     self.mean_subtraction, self.remat, self.activation, self.parametrization,
                     name='stack')(x_bn)
    logits = Linear(self.num_classes, 'readout', parametrization=self.parametrization,
                    use_bias=False, name='head')(x_bn, train)
    return logits * read_hp(self, 'readout_scale', 1.0).astype(logits.dtype)


def branch_rule(parametrization: str, depth: int, block_depth: int,
                width: int) -> tuple[float, float]:
  """Std of a kernel of the stack at the start, and the factor of every branch.

  Raises:
    UserError: the row has another factor, a trained one, one that differs between blocks, an init
      of its own for the kernels of a branch, or is for branches with norms alone.
  """
  row = get_parametrization(parametrization)
  found = [row.factors(Branch(block, depth, per_block=1, layers=block_depth))
           for block in range(1, depth + 1)]
  if (row.learned or row.kernel or row.xavier or set(found[0]) - {'branch_scale'}
      or any(factors != found[0] for factors in found)
      or (row.placements is not None and 'none' not in row.placements)):
    raise UserError(f'deep_mlp: parametrization={parametrization!r} needs more than one fixed '
                    'factor for all branches of a stack without norms; take resmlp')
  return row.init_std('hidden', width), found[0].get('branch_scale', 1.0)
