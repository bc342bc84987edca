"""Activations whose threshold depends on the statistics of the array they act on."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp
from scipy import special

from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds
from model_lib.errors import UserError

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
          choices={'axes': AXES}, causal=lambda axes, **_: axes == 'last', scalar=_ash_population)
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
    UserError: x has no axis to take the statistics over.
  """
  mean, std = _statistics('ash', x, axes, stop_gradient, eps)
  return ash_at(x, mean, std, z, alpha)


def _quantile(k: float) -> float:
  """z of the top k percent of a normal distribution."""
  return float(special.ndtri(1 - k / 100))


@register(source='lee2022', kind='statistics', learnable=('alpha',), positive=('eps',),
          bounds={'k': Bounds(0, 100, low_open=True, high_open=True)},
          choices={'axes': AXES}, causal=lambda axes, **_: axes == 'last',
          scalar=lambda x, alpha, k, **_: ash_at(x, 0.0, 1.0, _quantile(k), alpha))
def f_ash(
    x: jax.Array, alpha: float | jax.Array = 1.0, k: float = 50.0, axes: str = 'sample',
    stop_gradient: bool = False, eps: float = 1e-5,
) -> jax.Array:
  """ash with the fixed threshold z = Phi^-1(1 - k / 100): it keeps about the top k percent.

  Lee et al. 2022, arXiv 2210.11672.

  The ablation of the paper, with k = 10, 50 and 90; the other arguments are those of `ash`.
  """
  mean, std = _statistics('f_ash', x, axes, stop_gradient, eps)
  return ash_at(x, mean, std, _quantile(k), alpha)


@register(source='lee2022', kind='statistics', positive=('eps',), choices={'axes': AXES},
          causal=lambda axes, **_: axes == 'last', kinks=lambda z, **_: (z,),
          jumps=lambda z, **_: (z,) if z else (),
          scalar=lambda x, z, **_: jnp.where(x < z, 0, x))
def ash_step(x: jax.Array, z: float = 0.0, axes: str = 'sample', eps: float = 1e-5) -> jax.Array:
  """x where x is at least mean + z std, else 0: the limit of ash for a large alpha.

  Lee et al. 2022, arXiv 2210.11672.

  The statistics are those of `ash`; the gradient does not see them.
  """
  mean, std = _statistics('ash_step', x, axes, True, eps)
  return jnp.where(x < mean + z * std, 0, x)


def _polynorm_population(
    x: jax.Array, w1: float, w2: float, w3: float, bias: float, **_,
) -> jax.Array:
  return x * (w1 + x * (w2 / math.sqrt(3) + x * (w3 / math.sqrt(15)))) + bias


@register(source='zhuo2024', kind='statistics', learnable=('w1', 'w2', 'w3', 'bias'),
          positive=('eps',), scalar=_polynorm_population)
def polynorm(
    x: jax.Array, w1: float | jax.Array = 1 / 3, w2: float | jax.Array = 1 / 3,
    w3: float | jax.Array = 1 / 3, bias: float | jax.Array = 0.0, eps: float = 1e-6,
) -> jax.Array:
  """w1 N(x) + w2 N(x^2) + w3 N(x^3) + bias, N(v) = v / sqrt(mean(v^2) + eps) over the last axis.

  Zhuo et al. 2024, arXiv 2411.03884.

  Moments are those of a wide last axis, with the mean squares 1, 3 and 15.
  """
  def normalized(v):
    return v * lax.rsqrt(jnp.mean(jnp.square(v), axis=-1, keepdims=True) + eps)
  return w1 * normalized(x) + w2 * normalized(x**2) + w3 * normalized(x**3) + bias


def _statistics(
    name: str, x: jax.Array, axes: str, stop_gradient: bool, eps: float,
) -> tuple[jax.Array, jax.Array]:
  """Mean and sqrt(variance + eps) over the axes, which stay as axes of size 1."""
  over = {'sample': range(1, x.ndim), 'last': range(max(x.ndim - 1, 0), x.ndim),
          'channel': range(1, x.ndim - 1), 'batch': range(x.ndim)}[axes]
  if not over:
    raise UserError(f'{name}(axes={axes}) has no axis to average over in an input of shape '
                    f'{x.shape}: it needs [batch, ..., channel]')
  mean = jnp.mean(x, axis=tuple(over), keepdims=True)
  std = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=tuple(over), keepdims=True) + eps)
  return lax.stop_gradient((mean, std)) if stop_gradient else (mean, std)
