"""Residual convolutional networks of CIFAR's shape (He et al. 2016, arXiv:1512.03385).

The default is ResNet-20. `CONFIGS` names relatives: `build('cnn', **CONFIGS['resnet20_v2'])`.
"""

from __future__ import annotations

from collections.abc import Sequence
import types

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models import overrides
from model_lib.models.activation_layer import ActivationLayer, is_gated
from model_lib.models.convolution import Conv
from model_lib.models.linear import Linear
from model_lib.models.residual import Stack, Stream
from model_lib.models.site import Site, without_attention
from model_lib.models.width import matched_widths
from model_lib.normalization import BlockSpec, get_norm
from model_lib.normalization.placement import Placed, placed_norm
from model_lib.parametrization import Branch, get_parametrization

CONFIGS = types.MappingProxyType({name: types.MappingProxyType(config) for name, config in {
  # x + N(f(x)), f after the sum; zeros for the new channels of a shortcut (option A).
  'resnet20': {},
  # He et al. 2016, arXiv:1603.05027: norm and activation in front of each convolution.
  'resnet20_v2': {'norm': 'pre:batch', 'preactivation': True},
  'fixup_resnet20': {'norm': 'none', 'parametrization': 'fixup'},
  'nf_resnet20': {'norm': 'none', 'parametrization': 'nf', 'preactivation': True,
                  'shortcut': 'project', 'weight': 'scaled_ws'},
}.items()})
SHORTCUTS = ('pad', 'project')


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
  """Every `stride`-th pixel, zeros for the new channels behind the old ones (option A)."""
  x = x[:, ::stride, ::stride]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def takes_bias(norm: str) -> bool:
  """Whether a convolution before the norm has a bias: not where the norm adds one of its own."""
  return all(parameter.name != 'bias' for parameter in get_norm(norm).parameters)


class ConvBranch(nn.Module):
  """W2 f(N(W1 x)), 3x3 convolutions; with `outer` W2 f(N(W1 outer(x))).

  A gated f has two first kernels and about 2/3 of the channels between: the same parameter count.
  x [B, H, W, C] -> [B, ceil(H/s), ceil(W/s), features].
  """

  features: int
  stride: int
  outer: str | None
  norm: str
  activation: str
  placed: Placed
  init_gain: bool
  parametrization: str
  branch: Branch
  weight: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def conv(features, stride, consumes, label, use_bias, name):
      return Conv(features, 'hidden', stride=stride, consumes=consumes, init_gain=self.init_gain,
                  parametrization=self.parametrization, branch=self.branch, labels=(label,),
                  weight=self.weight, use_bias=use_bias, name=name)

    features, gated = self.features, is_gated(self.activation)
    if gated:
      # Nine weights for each channel read or written.
      features, = matched_widths(9 * x.shape[-1], (features,), 9 * self.features)
    if self.outer is not None:
      x = ActivationLayer(self.outer, name='activation_outer')(x, train=train)
    inputs = []
    for part in (('gate', 'in') if gated else ('in',)):
      h = conv(features, self.stride, self.outer, 'in', takes_bias(self.norm), part)(x, train)
      inputs.append(get_norm(self.norm).layer(f'norm_{part}')(h, train))
    h = ActivationLayer(self.activation, name='activation')(*inputs, train=train)
    consumes = self.activation
    if 'inner' in self.placed.spots('mlp'):
      h, consumes = self.placed.norm.layer('norm_inner')(h, train), None
    behind = {'output', 'sum'} & set(self.placed.spots('mlp'))
    use_bias = takes_bias(self.placed.norm.spec) if behind else True
    return conv(self.features, 1, consumes, 'out', use_bias, 'out')(h, train)


class CNN(nn.Module):
  """images [B, H, W] or [B, H, W, C] -> logits [B, num_classes].

  A 3x3 convolution, then for each of `widths` a stage of `blocks` blocks of two convolutions;
  the first block of each later stage halves height and width. Mean over the pixels, readout.
  The activation stands after each sum, or with `preactivation` in front of each branch, where
  an activation and, if the placement has one, a norm follow the last block. The norm of the
  placement also stands between the two convolutions, after the stem (without `preactivation`)
  and after the convolution of a projection (without `preactivation`). Without `preactivation`
  no norm follows the last block.

  Sites: stem.norm, stem.activation, blocks.B.outer.norm (with its placement),
  blocks.B.outer.activation, blocks.B.inner.norm, blocks.B.inner.activation,
  blocks.B.shortcut.norm, final.norm, final.activation, where the model has them; the blocks of
  all stages are numbered through.

  Attributes:
    widths: channels of each stage.
    blocks: blocks of a stage; 6 blocks + 2 layers have kernels with three stages.
    shortcut: where the shape changes: 'pad', option A of He et al. (`pad_shortcut`), or
      'project', option B (a convolution of size 1).
    weight: spec of the weight norm of the kernels in the blocks.
  """

  widths: Sequence[int] = (16, 32, 64)
  blocks: int = 3
  shortcut: str = 'pad'
  preactivation: bool = False
  num_classes: int = 10
  activation: str = 'relu'
  norm: str = 'olmo2:batch'
  init_gain: bool = True
  parametrization: str = 'sp'
  weight: str = 'none'
  overrides: Sequence[str] = ()

  def sites(self) -> tuple[Site, ...]:
    """What stands where without the overrides; UserError for an impossible block."""
    spec = self._placements()
    norm = 'none' if spec.placement == 'none' else spec.norm.spec
    found = []

    def add(path, kind, what, channels, **more):
      found.append(Site(path, kind, what, channels=channels, positions='pixels', **more))

    if not self.preactivation:
      add('stem.norm', 'norm', norm, self.widths[0])
      add('stem.activation', 'activation', self.activation, self.widths[0])
    for i in range(self._depth()):
      features, width_in = self._width(i), self._width(max(0, i - 1))
      before_branch = width_in if self.preactivation else features
      add(f'blocks.{i}.outer.norm', 'placement', spec.mlp.at(i + 1, self._depth()).spec,
          before_branch, residual=True)
      add(f'blocks.{i}.outer.activation', 'activation', self.activation, before_branch,
          keeps_channels=not self.preactivation)
      add(f'blocks.{i}.inner.norm', 'norm', norm, features)
      add(f'blocks.{i}.inner.activation', 'activation', self.activation, features,
          second_kernel=True)
      if self.shortcut == 'project' and self._stride(i) > 1 and not self.preactivation:
        add(f'blocks.{i}.shortcut.norm', 'norm', norm, features)
    if self.preactivation:
      if spec.final_norm:
        add('final.norm', 'norm', spec.final.spec, self.widths[-1])
      add('final.activation', 'activation', self.activation, self.widths[-1])
    return tuple(found)

  def _placements(self) -> BlockSpec:
    spec = without_attention('cnn', self.norm, self.parametrization)
    if self.shortcut not in SHORTCUTS:
      raise UserError(f'cnn: shortcut must be one of {", ".join(SHORTCUTS)}, '
                      f'not {self.shortcut!r}')
    if '=' in spec.spec.partition('(')[0]:
      raise UserError(f'cnn: norm={self.norm!r} names parts of a stack; write PLACEMENT:NORM, '
                      'and override single norms by path')
    if spec.placement == 'resi_dual':
      raise UserError('cnn: the second stream of resi_dual has no shortcut where shapes change; '
                      'take another placement, or a resmlp')
    if self.shortcut == 'pad' and list(self.widths) != sorted(self.widths):
      raise UserError("cnn: shortcut='pad' adds channels, and widths="
                      f"{tuple(self.widths)} takes some away; take shortcut='project'")
    if self.weight == 'cosine':
      raise UserError('cnn: weight=cosine needs the length of what a kernel reads, which a '
                      'convolution does not compute; take weight_norm or scaled_ws')
    divides = get_parametrization(self.parametrization).input is not None
    if divides and self.shortcut == 'pad' and len(self.widths) > 1:
      raise UserError(f'cnn: {self.parametrization} counts on a stream of variance 1 after a '
                      "shortcut, and padded channels are 0; take shortcut='project'")
    return spec

  def _depth(self) -> int:
    return len(self.widths) * self.blocks

  def _width(self, i: int) -> int:
    return self.widths[i // self.blocks]

  def _stride(self, i: int) -> int:
    return 2 if i and i % self.blocks == 0 else 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    specs = overrides.specs(self)
    stack = Stack(self.norm, self.parametrization, self._depth(), per_block=1)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4:
      raise UserError(f'cnn: input {x.shape} is not [B, H, W] or [B, H, W, C]')

    def activate(name, x):
      return ActivationLayer(specs[f'{name}.activation'], name=f'activation_{name}')(
        x, train=train)

    stem_norm = specs.get('stem.norm', 'none')
    x = Conv(self.widths[0], 'input', parametrization=self.parametrization,
             use_bias=takes_bias(stem_norm), name='stem')(x, train)
    if not self.preactivation:
      x = activate('stem', get_norm(stem_norm).layer('norm_stem')(x, train))
    stream = Stream(x)
    for i in range(self._depth()):
      stream = self._block(stack, stream, i, specs, train)
    x = stream.x
    if self.preactivation:
      x = activate('final', get_norm(specs.get('final.norm', 'none')).layer('norm_final')(x, train))
    return Linear(self.num_classes, 'readout', parametrization=self.parametrization,
                  name='head')(jnp.mean(x, axis=(1, 2)))

  def _block(self, stack: Stack, stream: Stream, i: int, specs, train: bool) -> Stream:
    features, stride, where = self._width(i), self._stride(i), f'blocks.{i}'
    outer, placed = specs[f'{where}.outer.activation'], placed_norm(specs[f'{where}.outer.norm'])
    # The variance of the stream is 1 again after each projection.
    before = None
    if self.shortcut == 'project':
      before = i % self.blocks or min(i, self.blocks)
    branch = ConvBranch(
      features, stride, outer if self.preactivation else None, specs[f'{where}.inner.norm'],
      specs[f'{where}.inner.activation'], placed, self.init_gain, self.parametrization,
      stack.branch(i, 'mlp', before=before), self.weight, name=f'block_{i}')

    def project(x):
      norm = specs.get(f'{where}.shortcut.norm', 'none')
      x = Conv(features, 'hidden', size=1, stride=stride, parametrization=self.parametrization,
               weight=self.weight, use_bias=takes_bias(norm), name=f'shortcut_{i}')(x, train)
      return get_norm(norm).layer(f'norm_shortcut_{i}')(x, train)

    shortcut = None
    if stride > 1 or features != stream.x.shape[-1]:
      shortcut = project if self.shortcut == 'project' else (
        lambda x: pad_shortcut(x, features, stride))
    stream = stack.block(stream, i, {'mlp': branch}, train, placed={'mlp': placed},
                         shortcut=shortcut, before=before)
    if self.preactivation:
      return stream
    return stream._replace(x=ActivationLayer(outer, name=f'activation_{i}')(stream.x, train=train))
