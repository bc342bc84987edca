"""Activations that draw random numbers in training.

A function here takes x, then the key: with a key it is the training form, drawn anew for every
entry of x; without one (None) it is the inference form, which has no randomness. Moments and
gains are those of the inference form. In a model the keys are those of the random stream
'noise', which training derives from the run's key and the step: a resumed run draws the same
numbers and no further state is kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model_lib.activations.numerics import split_at_zero
from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds
from model_lib.errors import UserError


@register(source='torch', kind='stochastic', bounds={'low': Bounds(0), 'high': Bounds(0)},
          kinks=lambda low, high: () if low + high == 2 else (0.0,), monotone='increasing')
def rrelu(
    x: jax.Array, key: jax.Array | None, low: float = 1 / 8, high: float = 1 / 3,
) -> jax.Array:
  """x for x >= 0, a x for x < 0; a ~ U(low, high) in training, (low + high) / 2 at inference.

  Xu et al. 2015, arXiv 1505.00853.

  The paper divides by a number from U(3, 8); that the slope itself is uniform is torch's
  convention.

  Raises:
    UserError: low is above high.
  """
  if low > high:
    raise UserError(f'activation \'rrelu\': low must be at most high={high:g}, not {low:g}')
  slope = (low + high) / 2
  if key is not None:
    slope = jax.random.uniform(key, x.shape, x.dtype, low, high)
  return jnp.where(x >= 0, x, slope * x)


@register(source='echo', kind='stochastic', learnable=('sigma',), kinks=(0.0,),
          monotone='increasing')
def probact(x: jax.Array, key: jax.Array | None, sigma: float | jax.Array = 0.0) -> jax.Array:
  """max(x, 0) + sigma e; e ~ N(0, 1) in training, 0 at inference.

  Shridhar et al. 2019, arXiv 1905.10761.

  In training the second moment is larger by sigma^2 than `moments` says.
  """
  mean = jax.nn.relu(x)
  return mean if key is None else mean + sigma * jax.random.normal(key, x.shape, x.dtype)


@register(source='port', kind='stochastic', learnable=('alpha', 'beta'), bounds={'eps': Bounds(0)},
          kinks=lambda alpha, beta, **_: () if alpha * beta == 1 else (0.0,),
          monotone='increasing')
def eelu(
    x: jax.Array, key: jax.Array | None, alpha: float | jax.Array = 0.25,
    beta: float | jax.Array = 1.0, eps: float = 1.0,
) -> jax.Array:
  """k x for x >= 0, a (e^(b x) - 1) for x < 0, a = max(alpha, 0), b = max(beta, 0); in training
  k ~ N(1, s^2) cut to [0, 2], one s ~ U(0, eps) for the array; at inference k = 1.

  Kim et al. 2020, elastic exponential linear units.

  The port draws in every second step only; here every training step does.
  """
  left, right = split_at_zero(x)
  slope = 1.0
  if key is not None:
    for_std, for_slope = jax.random.split(key)
    std = jax.random.uniform(for_std, (), x.dtype, 0, eps)
    slope = jnp.clip(1 + std * jax.random.normal(for_slope, x.shape, x.dtype), 0, 2)
  negative = jnp.maximum(alpha, 0) * jnp.expm1(jnp.maximum(beta, 0) * left)
  return jnp.where(x < 0, negative, slope * right)
