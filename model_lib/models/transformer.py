"""The stack of transformer blocks that the vision and the language model share."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from model_lib.models.activation_layer import ActivationLayer, is_gated
from model_lib.models.attention import Attention
from model_lib.models.linear import Linear
from model_lib.models.site import Site
from model_lib.models.width import matched_widths
from model_lib.normalization import block, get_norm


def stack_sites(depth: int, dim: int, causal: bool, activation: str,
                norm: str) -> tuple[Site, ...]:
  """The sites of a `Transformer`: those of its blocks and, where it has one, of the final norm."""
  where = {'channels': dim, 'positions': 'tokens', 'causal': causal}
  sites = [site for i in range(depth) for site in (
    Site(f'blocks.{i}.attention.norm', 'placement', norm, residual=True, **where),
    Site(f'blocks.{i}.mlp.norm', 'placement', norm, residual=True, **where),
    Site(f'blocks.{i}.mlp.activation', 'activation', activation, second_kernel=True,
         positions='tokens', causal=causal))]
  placed = block(norm)
  if placed.final_norm:
    sites.append(Site('final.norm', 'norm', placed.norm.spec, **where))
  return tuple(sites)


class FeedForward(nn.Module):
  """W_out f(W_in x), or W_out f(W_gate x, W_in x) for a gated f; x [..., D] -> [..., D].

  A gated f has about 2/3 of the `hidden` units (`matched_widths`): the same parameter count.
  """

  hidden: int
  activation: str
  init_gain: bool
  parametrization: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dim, hidden, gated = x.shape[-1], self.hidden, is_gated(self.activation)
    if gated:
      hidden, = matched_widths(dim, (hidden,), dim)
    inputs = [Linear(hidden, 'hidden', parametrization=self.parametrization, name=name)(x)
              for name in (('gate', 'in') if gated else ('in',))]
    h = ActivationLayer(self.activation, name='activation')(*inputs)
    return Linear(dim, 'hidden', self.activation, self.init_gain, self.parametrization,
                  name='out')(h)


class Transformer(nn.Module):
  """`depth` blocks of attention and feed-forward on x [B, T, D] -> [B, T, D].

  Each sublayer enters the residual stream as the placement at its site says
  (`normalization.block`); with a `final.norm` among the `specs` a norm follows. The branch
  multiplier is the parametrization's. `specs` says what stands at each of `stack_sites`.
  """

  depth: int
  heads: int
  mlp_ratio: int
  causal: bool
  specs: Mapping[str, str]
  init_gain: bool
  parametrization: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def residual(x, sublayer, norm_spec, norm_name):
      placed = block(norm_spec, self.parametrization)
      multiplier = placed.branch_multiplier(self.depth)
      norm = placed.norm.layer(norm_name)
      if placed.placement == 'pre':
        return x + sublayer(norm(x, train)) * multiplier
      x = x + sublayer(x) * multiplier
      return norm(x, train) if placed.placement == 'post' else x

    for i in range(self.depth):
      attention = Attention(self.heads, self.causal, self.parametrization,
                            name=f'attention_{i}')
      feed_forward = FeedForward(self.mlp_ratio * x.shape[-1],
                                 self.specs[f'blocks.{i}.mlp.activation'], self.init_gain,
                                 self.parametrization, name=f'feed_forward_{i}')
      x = residual(x, attention, self.specs[f'blocks.{i}.attention.norm'], f'norm_attention_{i}')
      x = residual(x, feed_forward, self.specs[f'blocks.{i}.mlp.norm'],
                   f'norm_feed_forward_{i}')
    if 'final.norm' in self.specs:
      x = get_norm(self.specs['final.norm']).layer('norm_final')(x, train)
    return x
