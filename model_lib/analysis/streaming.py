"""Statistics of arrays that arrive in parts: pure accumulators that merge.

`values(x)` is the accumulator of one part, `merge(a, b)` that of both; a tree of them merges leaf
by leaf (`merge_trees`). All are pytrees of arrays, so they live inside jit, lax.scan, lax.map and
vmap, and `zeros_like` of one is the accumulator of nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Bins of log2 |x|: the median of |x| is known to half a bin, 2^(1/64) - 1 = 1.1 %.
_PER_OCTAVE, _LOWEST, _HIGHEST = 32, -40, 40
_BINS = (_HIGHEST - _LOWEST) * _PER_OCTAVE + 2  # the first: 0 and below 2^-40; the last: the rest
HALF_BIN = 2 ** (0.5 / _PER_OCTAVE) - 1


class Values(NamedTuple):
  """Of all the values of an array [..., C].

  Attributes:
    count: number of values, int32: at most 2^31 - 1 of them.
    mean: their mean.
    m2, m3, m4: mean central moments E (x - mean)^k, so that no sum grows with the count.
    largest: max |x|.
    bins: int32 [_BINS], histogram of |x| over log2.
    alive: bool [C], whether the unit was ever different from 0.
  """

  count: jax.Array
  mean: jax.Array
  m2: jax.Array
  m3: jax.Array
  m4: jax.Array
  largest: jax.Array
  bins: jax.Array
  alive: jax.Array


def values(x: jax.Array) -> Values:
  """The accumulator of x [..., C]; two passes, in float32 or wider."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = jnp.mean(wide)
  d = wide - mean
  size = jnp.abs(wide)
  place = jnp.floor((jnp.log2(jnp.maximum(size, 2.0 ** (_LOWEST - 1))) - _LOWEST) * _PER_OCTAVE)
  place = jnp.clip(place + 1, 0, _BINS - 1).astype(jnp.int32)
  return Values(
    jnp.asarray(x.size, jnp.int32), mean, jnp.mean(d ** 2), jnp.mean(d ** 3), jnp.mean(d ** 4),
    jnp.max(size), jnp.bincount(place.reshape(-1), length=_BINS).astype(jnp.int32),
    jnp.any(wide != 0, axis=tuple(range(x.ndim - 1))))


def merge(a: Values, b: Values) -> Values:
  """The accumulator of both parts.

  Central moments by Pebay 2008 (Sandia report SAND2008-6212), divided by the count; either
  part may be empty.
  """
  n = a.count + b.count
  total = jnp.maximum(n, 1).astype(a.mean.dtype)
  p, q = a.count / total, b.count / total  # shares
  d = b.mean - a.mean
  m2 = p * a.m2 + q * b.m2 + p * q * d ** 2
  m3 = (p * a.m3 + q * b.m3 + p * q * (p - q) * d ** 3 + 3 * d * p * q * (b.m2 - a.m2))
  m4 = (p * a.m4 + q * b.m4 + p * q * (p * p - p * q + q * q) * d ** 4
        + 6 * d ** 2 * p * q * (p * b.m2 + q * a.m2) + 4 * d * p * q * (b.m3 - a.m3))
  return Values(n, p * a.mean + q * b.mean, m2, m3, m4, jnp.maximum(a.largest, b.largest),
                a.bins + b.bins, a.alive | b.alive)


class Sums(NamedTuple):
  """Sum of numbers and how many there were; any shape."""

  count: jax.Array
  total: jax.Array


def merge_trees(a, b):
  """Two trees of accumulators of one structure; other leaves, such as sums of arrays, add up."""
  def both(left, right):
    return merge(left, right) if isinstance(left, Values) else left + right
  return jax.tree.map(both, a, b, is_leaf=lambda node: isinstance(node, Values))


def summary(accumulator: Values) -> dict[str, float]:
  """What the values were like; float64 numbers on the host, nan where nothing was seen.

  Returns:
    mean, variance (biased), rms, kurtosis E d^4 / (E d^2)^2 (3 for a normal), largest (max |x|),
    median (of |x|, to 1.1 %; 0 where it is below 2^-40), max_over_median, dead (share of the
    units that were 0 for all of the data).
  """
  if any(leaf.ndim for leaf in (accumulator.count, accumulator.mean)):
    raise ValueError('the accumulator has a population axis; take one member of it')
  count = int(accumulator.count)
  if not count:
    return {name: math.nan for name in ('mean', 'variance', 'rms', 'kurtosis', 'largest',
                                        'median', 'max_over_median', 'dead')}
  mean, m2, m4 = (float(part) for part in (accumulator.mean, accumulator.m2, accumulator.m4))
  largest, median = float(accumulator.largest), _median(np.asarray(accumulator.bins), count)
  return {'mean': mean, 'variance': m2, 'rms': math.sqrt(m2 + mean ** 2),
          'kurtosis': m4 / m2 ** 2 if m2 ** 2 > 0 else math.nan, 'largest': largest,
          'median': median,
          'max_over_median': largest / median if median else (math.inf if largest else math.nan),
          'dead': float(1 - np.mean(np.asarray(accumulator.alive)))}


def _median(bins: np.ndarray, count: int) -> float:
  place = int(np.searchsorted(np.cumsum(bins), (count + 1) // 2))
  if place == 0:
    return 0.0
  return 2.0 ** (_LOWEST + (place - 0.5) / _PER_OCTAVE)
