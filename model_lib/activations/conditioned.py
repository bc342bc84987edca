"""Activations whose coefficients are computed from the input by weights of their own.

The functions here are the plain formulas, the coefficients given. `models.ActivationLayer` makes
the networks behind them (`models/activation_modules.py`); the settings are those of the networks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds


@register(source='ma2021', kind='module', causal=False, bounds={'width': Bounds(1),
                                                                'reduction': Bounds(1)})
def meta_acon(
    x: jax.Array, p1: jax.Array, p2: jax.Array, beta: jax.Array, width: int = 16,
    reduction: int = 16,
) -> jax.Array:
  """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x,
  beta = sigmoid(BN(W2 BN(W1 mean(x)))), mean over positions.

  Ma et al. 2021, arXiv 2009.04759.

  Args:
    x: [batch, ..., channel].
    p1, p2: [channel] with leading axes of size 1; they start from N(0, 1).
    beta: [batch, ..., channel] with axes of size 1 between.
    width: the least number of hidden units of the network of beta,
    reduction: which otherwise has channels // reduction of them.
  """
  del width, reduction
  scaled = (p1 - p2) * x
  return scaled * jax.nn.sigmoid(beta * scaled) + p2 * x


@register(source='port', kind='module', causal=False,
          bounds={'pieces': Bounds(2), 'reduction': Bounds(1)})
def dynamic_relu(
    x: jax.Array, slopes: jax.Array, offsets: jax.Array, pieces: int = 2, reduction: int = 4,
    shared: bool = False,
) -> jax.Array:
  """max over k of a_k x + b_k; a = (1, 0, ...) + t and b = u / 2, (t, u) =
  2 sigmoid(W2 max(W1 mean(x), 0)) - 1, mean over positions.

  Chen et al. 2020, arXiv 2003.10027.

  Args:
    x: [batch, ..., channel].
    slopes, offsets: [pieces, batch, ..., channel], axes of size 1 where they do not vary.
    pieces: how many lines.
    reduction: the network has channels // reduction hidden units, at least one.
    shared: whether all channels have the same lines (the paper's A), not each its own (B).
  """
  del pieces, reduction, shared
  return jnp.max(slopes * x[None] + offsets, axis=0)


@register(source='echo', kind='module', causal=False)
def funnel_relu(x: jax.Array, condition: jax.Array) -> jax.Array:
  """max(x, BN(W * x)), W * a 3 x 3 convolution of each channel by itself.

  Ma et al. 2020, arXiv 2007.11824.

  x and the condition are images [batch, height, width, channel].
  """
  return jnp.maximum(x, condition)
