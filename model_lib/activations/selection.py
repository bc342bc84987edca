"""Activations that compare entries or part them by sign: winners, maxima of groups, CReLU.

`crelu`, `ncrelu` and `maxout` change the size of the last axis: `Activation.width_factor`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from model_lib.activations.moments import Moments
from model_lib.activations.rectified import relu
from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds
from model_lib.errors import UserError


def _threshold(ratio: float, **_) -> tuple[float]:
  """The quantile 1 - ratio of the standard normal distribution."""
  return (float(special.ndtri(1 - ratio)),)


def _winner(x: jax.Array, ratio: float, **_) -> jax.Array:
  """kwta of infinitely many standard normal entries."""
  return jnp.where(x < _threshold(ratio)[0], 0, x)


@register(source='kunc2024', kind='statistics', scalar=_winner,
          bounds={'ratio': Bounds(0, 1, low_open=True, high_open=True)},
          choices={'axes': ('sample', 'last')}, causal=lambda axes, **_: axes == 'last',
          kinks=_threshold, jumps=lambda ratio, **_: () if ratio == 0.5 else _threshold(ratio))
def kwta(x: jax.Array, ratio: float = 0.2, axes: str = 'sample') -> jax.Array:
  """x where x is among the k = ceil(ratio n) largest of the n entries that compete, else 0.

  Xiao et al. 2019, arXiv 1905.10510.

  Entries that equal the k-th largest all stay, so that there can be more than k. Moments are
  those of infinitely many independent entries.

  Args:
    x: [batch, ..., channel].
    ratio: the share that stays.
    axes: what competes: 'sample', all entries of an example; 'last', those of the last axis.

  Raises:
    UserError: x has no such axis.
  """
  over = x.ndim - 1 if axes == 'sample' else min(x.ndim, 1)
  if over < 1:
    raise UserError(f'kwta(axes={axes}) has no axis to compare over in an input of shape '
                    f'{x.shape}: it needs [batch, ..., channel]')
  rows = x.reshape(*x.shape[:x.ndim - over], -1)
  # A little less than the ratio, because 0.2 * 15 is above 3 in floating point.
  k = max(1, math.ceil(ratio * rows.shape[-1] * (1 - 1e-9)))
  kth = jax.lax.stop_gradient(jax.lax.top_k(rows, k)[0][..., -1:])
  return jnp.where(rows < kth, 0, rows).reshape(x.shape)


@register(source='kunc2024', kind='resizing', width_factor=2.0, scalar=relu, kinks=(0.0,))
def crelu(x: jax.Array) -> jax.Array:
  """(max(x, 0), max(-x, 0)), the one behind the other on the last axis.

  Shang et al. 2016, arXiv 1603.05201.

  Moments are those of an entry: each half is a ReLU of a symmetric input.
  """
  return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)


@register(source='zagoruyko2017', kind='resizing', width_factor=2.0, scalar=relu, kinks=(0.0,))
def ncrelu(x: jax.Array) -> jax.Array:
  """(max(x, 0), min(x, 0)), the one behind the other on the last axis.

  Zagoruyko & Komodakis 2017, arXiv 1706.00388.

  Moments are those of an entry of the first half.
  """
  return jnp.concatenate([jax.nn.relu(x), -jax.nn.relu(-x)], axis=-1)


@functools.lru_cache(maxsize=None)
def _largest(groups: int) -> Moments:
  """Moments of the largest of some independent standard normal numbers."""
  z, step = np.linspace(-12, 12, 4801, retstep=True)
  density = groups * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * special.ndtr(z)**(groups - 1)
  mean, second = (float(np.sum(z**power * density) * step) for power in (1, 2))
  return Moments(mean=mean, second=second, gain=second**-0.5, slope_mean=1.0, slope_second=1.0,
                 chi_raw=1 / second, chi_centred=1 / (second - mean**2))


@register(source='memory', confirmed=False, kind='resizing', bounds={'groups': Bounds(2)},
          width_factor=lambda groups: 1 / groups, population=_largest)
def maxout(x: jax.Array, groups: int = 2) -> jax.Array:
  """max over j < groups of x[j n + i] for output i < n, n = channels / groups.

  Goodfellow et al. 2013, arXiv 1302.4389.

  Moments are those of the largest of independent normal inputs; the gradient of an output is 1 in
  one of them, which is what the slopes say.

  Raises:
    UserError: the channels are not divisible by groups.
  """
  if x.shape[-1:] and x.shape[-1] % groups == 0:
    return jnp.max(x.reshape(*x.shape[:-1], groups, -1), axis=-2)
  raise UserError(f'maxout(groups={groups}) needs channels in a multiple of {groups}, not an input '
                  f'of shape {x.shape}: change the width or groups')
