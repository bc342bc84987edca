"""Activations whose threshold depends on the statistics of the array they act on."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.registry import register

AXES = ('sample', 'last', 'channel', 'batch')


def ash_at(
    x: jax.Array, mean: float | jax.Array, std: float | jax.Array, z: float | jax.Array,
    alpha: float | jax.Array,
) -> jax.Array:
  """x sigmoid(2 alpha (x - mean - z std)): ASH with its statistics given; shapes broadcast."""
  return x * jax.nn.sigmoid(2 * alpha * (x - mean - z * std))


def _ash_population(x: jax.Array, z: float | jax.Array, alpha: float | jax.Array, **_) -> jax.Array:
  return ash_at(x, 0.0, 1.0, z, alpha)


@register(source='lee2022', kind='statistics', learnable=('z', 'alpha'), positive=('eps',),
          choices={'axes': AXES}, scalar=_ash_population)
def ash(
    x: jax.Array, z: float | jax.Array = 0.0, alpha: float | jax.Array = 1.0,
    axes: str = 'sample', stop_gradient: bool = False, eps: float = 1e-5,
) -> jax.Array:
  """x sigmoid(2 alpha (x - mean - z std)), std = sqrt(variance + eps), of the array itself.

  Lee et al. 2022, arXiv 2210.11672.

  A smooth "keep what is above the quantile": under a Gaussian input the fraction of gates below
  1/2 is Phi(z), so z = Phi^-1(1 - k) keeps the top fraction k.

  Args:
    x: [batch, ..., channel].
    z: threshold in standard deviations above the mean.
    alpha: half the steepness of the gate.
    axes: what one mean and one standard deviation are taken over: 'sample', all axes but the
      batch (the paper); 'last', the last axis (the only choice that is causal over tokens);
      'channel', the axes between batch and channel, e.g. height and width; 'batch', all axes.
    stop_gradient: whether the statistics count as constants in the gradient.
    eps: added to the variance, because the square root has no derivative at 0.

  Returns:
    An array of x's shape and dtype.

  Raises:
    ValueError: x has no axis to take the statistics over.
  """
  over = {'sample': range(1, x.ndim), 'last': range(max(x.ndim - 1, 0), x.ndim),
          'channel': range(1, x.ndim - 1), 'batch': range(x.ndim)}[axes]
  if not over:
    raise ValueError(f'ash(axes={axes}) has no axis to average over in an input of shape {x.shape}')
  mean = jnp.mean(x, axis=tuple(over), keepdims=True)
  std = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=tuple(over), keepdims=True) + eps)
  if stop_gradient:
    mean, std = lax.stop_gradient(mean), lax.stop_gradient(std)
  return ash_at(x, mean, std, z, alpha)
