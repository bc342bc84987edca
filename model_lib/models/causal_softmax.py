"""The softmax over the keys that a query may see."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_jvp
def causal_softmax(logits_bhts: jax.Array) -> jax.Array:
  """p = softmax over s <= t of logits [B, H, T, T], 0 elsewhere; same shape and dtype.

  Its derivative dp = p dl - p sum(p dl) is stated because it needs p alone; the one that JAX
  derives keeps the exponentials and their sums besides.
  """
  length = logits_bhts.shape[-1]
  seen_ts = jnp.tril(jnp.ones((length, length), bool))
  return jax.nn.softmax(jnp.where(seen_ts[None, None], logits_bhts, -jnp.inf), axis=-1)


@causal_softmax.defjvp
def _derivative(primals, tangents):
  weights_bhts = causal_softmax(*primals)
  scaled_bhts = weights_bhts * tangents[0]
  total_bht1 = jnp.sum(scaled_bhts, axis=-1, keepdims=True)
  return weights_bhts, scaled_bhts - weights_bhts * total_bht1
