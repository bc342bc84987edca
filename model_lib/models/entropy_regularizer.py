"""The entropy regularizer of attention heads (Jha and Reagen 2025, arXiv:2501.03489, Algorithm 1).

With E_h the mean over examples and queries of -sum_s A log A for a head of attention weights A over
T positions, the head's deviation from its share theta_h of the largest entropy is

  d_h = E_h - theta_h log T,      penalty = mean over heads of d_h^2 [|d_h| > margin log T].

theta is trained with the network. Its first value is not published; 1/2 here. log T is out of reach
of the early queries of a causal model, which see fewer positions; it is kept as published.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

FIRST_SHARE = 0.5


def penalty(weights_bhts: jax.Array, theta_h: jax.Array, margin: jax.Array) -> jax.Array:
  """The penalty of one layer, a scalar.

  Args:
    weights_bhts: attention weights [B, H, T, T] behind the softmax, before dropout.
    theta_h: [H].
    margin: share of log T within which a head is free; 0.2 in the paper.
  """
  largest = jnp.log(jnp.asarray(weights_bhts.shape[-1], weights_bhts.dtype))
  # 0 log 0 is 0, and so is its gradient.
  positive = weights_bhts > 0
  logs = jnp.log(jnp.where(positive, weights_bhts, 1))
  entropy_h = -jnp.mean(jnp.sum(weights_bhts * logs, axis=-1), axis=(0, 2))
  deviation_h = entropy_h - theta_h * largest
  outside = jnp.abs(deviation_h) > margin * largest
  return jnp.mean(jnp.where(outside, jnp.square(deviation_h), 0))
