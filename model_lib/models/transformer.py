"""The stack of transformer blocks that the vision and the language model share."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from model_lib.models import overrides
from model_lib.models.activation_layer import ActivationLayer, is_gated
from model_lib.models.attention import Attention
from model_lib.models.linear import Linear
from model_lib.models.residual import Stack
from model_lib.models.site import Site, end_sites
from model_lib.models.width import matched_widths
from model_lib.normalization import block, get_norm
from model_lib.normalization.functions import along_channels
from model_lib.normalization.placement import placed_norm
from model_lib.parametrization import Branch


def stack_sites(depth: int, dim: int, causal: bool, activation: str, norm: str,
                parametrization: str) -> tuple[Site, ...]:
  """The sites of a `Transformer`: those of its blocks, and the norms at its ends if it has them."""
  where = {'channels': dim, 'positions': 'tokens', 'causal': causal}
  spec = block(norm, parametrization)
  sites = []
  for i in range(depth):
    sites += [Site(f'blocks.{i}.{kind}.norm', 'placement', spec.kind(kind).at(i + 1, depth).spec,
                   residual=True, **where) for kind in ('attention', 'mlp')]
    sites.append(Site(f'blocks.{i}.mlp.activation', 'activation', activation, second_kernel=True,
                      positions='tokens', causal=causal))
  return (*sites, *end_sites(spec, **where))


class FeedForward(nn.Module):
  """W_out f(W_in x), or W_out f(W_gate x, W_in x) for a gated f; x [..., D] -> [..., D].

  A gated f has about 2/3 of the `hidden` units (`matched_widths`): the same parameter count.

  Attributes:
    hidden: number of hidden units of a plain f.
    activation: spec of f.
    init_gain: whether W_out starts with the gain of f.
    parametrization: row of the parametrization table.
    branch: the residual branch that this is, or None.
    inner: spec of the norm before W_out.
    weight: spec of the weight norm of all kernels.
    sphere: nGPT's form: what enters f is times a trained factor per unit from 1, and sqrt(D);
      no biases.
  """

  hidden: int
  activation: str
  init_gain: bool
  parametrization: str
  branch: Branch | None = None
  inner: str = 'none'
  weight: str = 'none'
  sphere: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    dim, hidden, gated = x.shape[-1], self.hidden, is_gated(self.activation)
    if gated:
      hidden, = matched_widths(dim, (hidden,), dim)

    def linear(features, label, name, consumes=None):
      return Linear(features, 'hidden', consumes, self.init_gain, self.parametrization,
                    self.branch, (label,), self.weight, not self.sphere, name=name)

    parts = ('gate', 'in') if gated else ('in',)
    inputs = [linear(hidden, 'in', name)(x, train) for name in parts]
    if self.sphere:
      gains = [self.param(f's_{name}', nn.initializers.ones, (hidden,)) for name in parts]
      inputs = [_times(h, gain * dim ** 0.5) for h, gain in zip(inputs, gains, strict=True)]
    h = ActivationLayer(self.activation, name='activation')(*inputs, train=train)
    h = get_norm(self.inner).layer('norm_inner')(h, train)
    # Behind a norm the second moment is 1, whatever the activation.
    consumes = self.activation if self.inner == 'none' else None
    return linear(dim, 'out', 'out', consumes)(h, train)


def _times(x: jax.Array, gain: jax.Array) -> jax.Array:
  """x [..., C] times gain [C]."""
  return x * along_channels(gain.astype(x.dtype), x.ndim)


class Transformer(nn.Module):
  """`depth` blocks of attention and feed-forward on x [B, T, D] -> [B, T, D].

  Each sublayer enters the residual stream as the placement at its site says; the factors are
  those of the parametrization (`models.residual`).

  Attributes:
    depth, heads, mlp_ratio, causal, init_gain, parametrization, weight: as in the models.
    norm: placements, of which the ends and the norm of queries and keys count here.
    specs: what stands at each of `stack_sites`, by path.
    length: positions of a long input, 0: of the first call (`Attention`).
  """

  depth: int
  heads: int
  mlp_ratio: int
  causal: bool
  norm: str
  specs: Mapping[str, str]
  init_gain: bool
  parametrization: str
  weight: str = 'none'
  length: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    stack = Stack(overrides.ends(self.norm, self.parametrization, self.specs),
                  self.parametrization, self.depth)
    stream = stack.start(x, train)
    for i in range(self.depth):
      placed = {kind: placed_norm(self.specs[f'blocks.{i}.{kind}.norm'])
                for kind in ('attention', 'mlp')}
      inner = {kind: at.norm.spec if 'inner' in at.spots(kind) else 'none'
               for kind, at in placed.items()}
      sphere = placed['mlp'].placement == 'ngpt'
      attention = Attention(
        self.heads, self.causal, self.parametrization, stack.branch(i, 'attention', 1),
        stack.spec.qk, self.length, inner['attention'], self.weight, not sphere,
        name=f'attention_{i}')
      feed_forward = FeedForward(
        self.mlp_ratio * x.shape[-1], self.specs[f'blocks.{i}.mlp.activation'], self.init_gain,
        self.parametrization, stack.branch(i, 'mlp', 2), inner['mlp'], self.weight, sphere,
        name=f'feed_forward_{i}')
      stream = stack.block(stream, i, {'attention': attention, 'mlp': feed_forward}, train, placed)
    return stack.finish(stream, train)
