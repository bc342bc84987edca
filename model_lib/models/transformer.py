"""The stack of transformer blocks that the vision and the language model share."""

from __future__ import annotations

import flax.linen as nn
import jax

from model_lib.models.activation_layer import ActivationLayer, is_gated
from model_lib.models.attention import Attention
from model_lib.models.linear import Linear
from model_lib.models.width import matched_widths
from model_lib.normalization import block


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

  Each sublayer enters the residual stream as the placement `norm` says (`normalization.block`);
  with `pre` a final norm follows. The branch multiplier is the parametrization's.
  """

  depth: int
  heads: int
  mlp_ratio: int
  causal: bool
  activation: str
  norm: str
  init_gain: bool
  parametrization: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    placed = block(self.norm, self.parametrization)
    multiplier = placed.branch_multiplier(self.depth)

    def residual(x, sublayer, norm_name):
      norm = placed.norm.layer(norm_name)
      if placed.placement == 'pre':
        return x + sublayer(norm(x, train)) * multiplier
      x = x + sublayer(x) * multiplier
      return norm(x, train) if placed.placement == 'post' else x

    for i in range(self.depth):
      attention = Attention(self.heads, self.causal, self.parametrization,
                            name=f'attention_{i}')
      feed_forward = FeedForward(self.mlp_ratio * x.shape[-1], self.activation, self.init_gain,
                                 self.parametrization, name=f'feed_forward_{i}')
      x = residual(x, attention, f'norm_attention_{i}')
      x = residual(x, feed_forward, f'norm_feed_forward_{i}')
    return placed.norm.layer('norm_final')(x, train) if placed.final_norm else x
