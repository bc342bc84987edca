"""A residual multilayer perceptron: a linear map in, blocks of one or two kernels, a readout."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from model_lib.errors import UserError
from model_lib.models import overrides
from model_lib.models.activation_layer import ActivationLayer, is_gated
from model_lib.models.linear import Linear
from model_lib.models.residual import Stack
from model_lib.models.site import Site, end_sites, without_attention
from model_lib.models.width import matched_widths
from model_lib.normalization.placement import Placed, placed_norm
from model_lib.parametrization import Branch

POSITIONS = ('between', 'pre', 'post')


class DenseBranch(nn.Module):
  """The branch of a block; x [B, D] -> [B, D].

    position   block_depth=1   block_depth=2
    between                    W2 f(W1 x)
    pre        W f(x)          W2 f(W1 f(x))
    post       f(W x)          f(W2 f(W1 x))

  A placement with an inner norm has it before the last kernel.
  """

  hidden: int
  position: str
  activations: tuple[str, ...]
  placed: Placed
  init_gain: bool
  parametrization: str
  branch: Branch
  weight: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dim, waiting = x.shape[-1], list(enumerate(self.activations))
    inputs, consumes = (x,), None

    def activate(inputs):
      number, spec = waiting.pop(0)
      return (ActivationLayer(spec, name=f'activation_{number}')(*inputs, train=train),), spec

    for k in range(self.branch.layers):
      last = k == self.branch.layers - 1
      if k or self.position == 'pre':
        inputs, consumes = activate(inputs)
      if last and 'inner' in self.placed.spots('mlp'):
        inputs, consumes = (self.placed.norm.layer('norm_inner')(*inputs, train),), None
      gated = not last and is_gated(waiting[0][1])
      features = dim if last else self.hidden
      if gated:
        features, = matched_widths(dim, (features,), dim)
      inputs = tuple(
        Linear(features, 'hidden', consumes, self.init_gain, self.parametrization, self.branch,
               ('out' if last else 'in',), self.weight, name=name)(*inputs, train)
        for name in ((f'gate_{k}', f'kernel_{k}') if gated else (f'kernel_{k}',)))
    if self.position == 'post':
      inputs, _ = activate(inputs)
    return inputs[0]


class ResMLP(nn.Module):
  """x [B, ...] (flattened) -> logits [B, num_classes].

  Each of the `depth` blocks joins the stream as placement and residual rule say
  (`models.residual`). A gated activation needs two kernels before it whose outputs may be
  narrower than the stream: it stands between the kernels of a block only.

  Sites: blocks.B.norm, blocks.B.activation.N (one per activation of the block), embed.norm and
  final.norm where the placement has them.

  Attributes:
    width: of the stream.
    depth: number of blocks.
    block_depth: kernels of a block, 1 or 2.
    ratio: hidden width of a block of two kernels over `width`.
    weight: spec of the weight norm of the kernels in the blocks.
    nonlinearity: where the activation stands, 'between', 'pre' or 'post' (`DenseBranch`).
  """

  width: int = 64
  depth: int = 4
  block_depth: int = 2
  ratio: int = 1
  nonlinearity: str = 'between'
  num_classes: int = 10
  activation: str = 'relu'
  norm: str = 'pre:layer'
  init_gain: bool = True
  parametrization: str = 'sp'
  weight: str = 'none'
  overrides: Sequence[str] = ()

  def sites(self) -> tuple[Site, ...]:
    """What stands where without the overrides; UserError for an impossible block."""
    if self.block_depth > 2:
      raise UserError(f'resmlp: block_depth must be 1 or 2, not {self.block_depth}')
    if self.nonlinearity not in POSITIONS:
      raise UserError(f'resmlp: nonlinearity must be one of {", ".join(POSITIONS)}, '
                      f'not {self.nonlinearity!r}')
    if self.block_depth == 1 and self.nonlinearity == 'between':
      raise UserError('resmlp: with block_depth=1 nothing stands between two kernels; '
                      "take nonlinearity='pre' or 'post', or block_depth=2")
    spec = without_attention('resmlp', self.norm, self.parametrization)
    count = self.block_depth - (self.nonlinearity == 'between')
    # Which activations stand between two kernels.
    inner = {'between': (0,), 'pre': (1,), 'post': (0,)}[self.nonlinearity][:self.block_depth - 1]
    found = []
    for i in range(self.depth):
      found.append(Site(f'blocks.{i}.norm', 'placement', spec.mlp.at(i + 1, self.depth).spec,
                        channels=self.width, residual=True, kernels=self.block_depth))
      found += [Site(f'blocks.{i}.activation.{n}', 'activation', self.activation,
                     channels=self.width * (self.ratio if n in inner else 1),
                     second_kernel=n in inner,
                     keeps_channels=self.nonlinearity == 'post' and n == count - 1)
                for n in range(count)]
    return (*found, *end_sites(spec, channels=self.width))

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    specs = overrides.specs(self)
    stack = Stack(overrides.ends(self.norm, self.parametrization, specs), self.parametrization,
                  self.depth, per_block=1)
    x_bi = x.reshape(x.shape[0], -1)
    x_bd = Linear(self.width, 'input', parametrization=self.parametrization, name='stem')(x_bi)
    stream = stack.start(x_bd, train)
    for i in range(self.depth):
      placed = placed_norm(specs[f'blocks.{i}.norm'])
      activations = tuple(spec for path, spec in specs.items()
                          if path.startswith(f'blocks.{i}.activation.'))
      branch = DenseBranch(self.ratio * self.width, self.nonlinearity, activations, placed,
                           self.init_gain, self.parametrization,
                           stack.branch(i, 'mlp', layers=self.block_depth), self.weight,
                           name=f'block_{i}')
      stream = stack.block(stream, i, {'mlp': branch}, train, placed={'mlp': placed})
    x_bd = stack.finish(stream, train)
    return Linear(self.num_classes, 'readout', parametrization=self.parametrization,
                  name='head')(x_bd)
