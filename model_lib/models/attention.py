"""Multi-head self-attention, written out."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.models.linear import Linear
from model_lib.models.residual import unit
from model_lib.normalization import get_norm
from model_lib.parametrization import Branch, get_parametrization


class Attention(nn.Module):
  """softmax(q k' * multiplier) v per head, then a linear map; x [B, T, D] -> [B, T, D].

  Axes in names: b batch, t query position, s key position, h head, d size of a head. The
  logits and the softmax are float32 or wider; the multiplier is the parametrization's. With
  `causal` position t sees positions s <= t only. The columns of the kernel `qkv` are the
  queries of all heads, then the keys, then the values.

  Attributes:
    heads: number of heads.
    causal: whether a position sees itself and earlier ones only.
    parametrization: row of the parametrization table.
    branch: the residual branch that this is, or None.
    qk: 'none'; the spec of a norm over the size of a head, for queries and keys; 'l2': both
      divided by their length, and in place of the multiplier one trained factor from
      log2(n^2 - n), n = `length` (Henry et al. 2020, arXiv:2010.04245); 'sphere': both divided
      by their length and times one trained factor per channel from 1, stored at D^-1/2.
    length: positions of a long input, of which only 'l2' makes use; 0: those of the first call.
    inner: spec of the norm before the output kernel.
    weight: spec of the weight norm of both kernels.
    use_bias: whether both kernels have a bias.
  """

  heads: int
  causal: bool
  parametrization: str = 'sp'
  branch: Branch | None = None
  qk: str = 'none'
  length: int = 0
  inner: str = 'none'
  weight: str = 'none'
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    batch, length, dim = x.shape
    head_dim = dim // self.heads
    row = get_parametrization(self.parametrization)

    def linear(features, labels, name):
      return Linear(features, 'hidden', parametrization=self.parametrization, branch=self.branch,
                    labels=labels, weight=self.weight, use_bias=self.use_bias, name=name)

    # One kernel for the three: fewer, larger matmuls and fewer random draws to compile.
    qkv = linear(3 * dim, ('query', 'key', 'value'), 'qkv')(x, train)
    q_bthd, k_bshd, v_bshd = (part.reshape(batch, length, self.heads, head_dim)
                              for part in jnp.split(qkv, 3, axis=-1))
    q_bthd, k_bshd, multiplier = self._normalized(q_bthd, k_bshd, train)
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    logits_bhts = jnp.einsum('bthd,bshd->bhts', q_bthd, k_bshd,
                             preferred_element_type=accumulator)
    logits_bhts *= multiplier
    if self.causal:
      seen_ts = jnp.tril(jnp.ones((length, length), bool))
      logits_bhts = jnp.where(seen_ts[None, None], logits_bhts, -jnp.inf)
    weights_bhts = jax.nn.softmax(logits_bhts, axis=-1).astype(x.dtype)
    mixed_bthd = jnp.einsum('bhts,bshd->bthd', weights_bhts, v_bshd)
    if row.head_scale:
      gain = self.param('head_scale', nn.initializers.ones, (self.heads,)).astype(x.dtype)
      mixed_bthd *= gain[None, None, :, None]
    mixed = get_norm(self.inner).layer('norm_inner')(
      mixed_bthd.reshape(batch, length, dim), train)
    return linear(dim, ('out',), 'out')(mixed, train)

  def _normalized(self, q: jax.Array, k: jax.Array, train: bool):
    """Queries, keys and the factor on their products."""
    multiplier = get_parametrization(self.parametrization).attention_multiplier(q.shape[-1])
    if self.qk == 'l2':
      positions = self.length or q.shape[1]
      start = math.log2(max(2, positions) ** 2 - max(2, positions))
      return unit(q), unit(k), self.param('qk_scale', nn.initializers.constant(start), ())
    if self.qk == 'sphere':
      _, _, heads, head_dim = q.shape
      start = (heads * head_dim) ** -0.5
      stored = self.param('s_qk', nn.initializers.constant(start), (heads, head_dim))
      gain = (stored / start).astype(q.dtype)[None, None]
      return unit(q) * gain, unit(k) * gain, multiplier
    norm = get_norm(self.qk)
    return norm.layer('norm_query')(q, train), norm.layer('norm_key')(k, train), multiplier
