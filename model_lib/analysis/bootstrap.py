"""Percentile bootstrap intervals over one or several axes of a sample.

Source: B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from model_lib.analysis.statistics import Interval


def bootstrap(statistic: Callable[..., float], sizes: Sequence[int], resamples: int = 1000,
              seed: int = 0, level: float = 0.95) -> Interval:
  """A statistic of a sample, and the percentile interval of it under resampling.

  Every axis (sequences, heads, ...) is resampled with replacement, independently of the others.
  What is paired stays paired, since one index is drawn for all that the statistic reads.

  Args:
    statistic: index arrays int [size], one per axis -> number.
    sizes: lengths of the axes.
    resamples: number of draws.
    seed: of numpy's Philox generator.
    level: coverage.

  Returns:
    The statistic of the sample as `mean`, its quantiles (1 -+ level) / 2, the length of the first
    axis as n, and the standard deviation over the draws, which is the standard error. A draw that
    is not finite makes the limits nan, and one sequence has none.
  """
  if not 0 < level < 1 or resamples < 2 or min(sizes) < 1:
    raise ValueError(f'level {level} must lie between 0 and 1, resamples {resamples} be at least '
                     f'2, and the sizes {list(sizes)} at least 1')
  point = float(statistic(*(np.arange(size) for size in sizes)))
  if sizes[0] == 1:
    return Interval(point, np.nan, np.nan, 1, np.nan)
  rng = np.random.Generator(np.random.Philox(seed))
  draws = np.array([statistic(*(rng.integers(size, size=size) for size in sizes))
                    for _ in range(resamples)], np.float64)
  if not np.isfinite(draws).all():
    return Interval(point, np.nan, np.nan, sizes[0], np.nan)
  low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
  return Interval(point, float(low), float(high), sizes[0], float(draws.std(ddof=1)))


def mean_bootstrap(values: np.ndarray, resamples: int = 1000, seed: int = 0,
                   level: float = 0.95) -> Interval:
  """`bootstrap` of the mean of values [N]."""
  values = np.asarray(values, np.float64)
  return bootstrap(lambda rows: values[rows].mean(), values.shape, resamples, seed, level)
