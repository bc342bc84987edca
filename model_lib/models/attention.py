"""Multi-head self-attention, written out."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.models.linear import Linear
from model_lib.parametrization import get_parametrization


class Attention(nn.Module):
  """softmax(q k' * multiplier) v per head, then a linear map; x [B, T, D] -> [B, T, D].

  Axes in names: b batch, t query position, s key position, h head, d size of a head. The
  logits and the softmax are float32 or wider; the multiplier is the parametrization's. With
  `causal` position t sees positions s <= t only. The columns of the kernel `qkv` are the
  queries of all heads, then the keys, then the values.
  """

  heads: int
  causal: bool
  parametrization: str = 'sp'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, length, dim = x.shape
    head_dim = dim // self.heads

    # One kernel for the three: fewer, larger matmuls and fewer random draws to compile.
    qkv = Linear(3 * dim, 'hidden', parametrization=self.parametrization, name='qkv')(x)
    q_bthd, k_bshd, v_bshd = (part.reshape(batch, length, self.heads, head_dim)
                              for part in jnp.split(qkv, 3, axis=-1))
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    logits_bhts = jnp.einsum('bthd,bshd->bhts', q_bthd, k_bshd,
                             preferred_element_type=accumulator)
    logits_bhts *= get_parametrization(self.parametrization).attention_multiplier(head_dim)
    if self.causal:
      seen_ts = jnp.tril(jnp.ones((length, length), bool))
      logits_bhts = jnp.where(seen_ts[None, None], logits_bhts, -jnp.inf)
    weights_bhts = jax.nn.softmax(logits_bhts, axis=-1).astype(x.dtype)
    mixed_bthd = jnp.einsum('bhts,bshd->bthd', weights_bhts, v_bshd)
    out = Linear(dim, 'hidden', parametrization=self.parametrization, name='out')
    return out(mixed_bthd.reshape(batch, length, dim))
