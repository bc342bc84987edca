"""Statistics over runs: means, paired differences, corrections, and what a design can detect.

One rule for values that are not finite: they are never dropped here. A sample that holds
a nan or an infinity (a diverged run) has nan as its mean, interval and p value, so that a
caller must take the diverged runs out by name, and print how many there were.

Sources: Student's t interval and paired t test (Student, 1908); the step-down correction
of S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist.
6 (1979); power by the noncentral t distribution; M. G. Kendall's tau-b (1945).
"""
from __future__ import annotations

import itertools
import math
from typing import NamedTuple, Sequence

import numpy as np
import scipy  # its parts are imported at their first use: a start that trains needs none


class Interval(NamedTuple):
  """A sample's mean and the interval of it, in the unit of the sample."""
  mean: float
  low: float
  high: float
  n: int
  sd: float


class Paired(NamedTuple):
  """The mean of a - b over pairs, its interval, and the two-sided p value of 'no difference'."""
  mean: float
  low: float
  high: float
  p: float
  n: int
  sd: float


def _sample(values: Sequence[float]) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1:
    raise ValueError(f'a sample is one-dimensional, got shape {x.shape}')
  return x


def _check_share(name: str, value: float) -> None:
  if not 0 < value < 1:
    raise ValueError(f'{name} must lie between 0 and 1, got {value}')


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
  """Mean and Student's t interval: mean -+ t_{n-1, (1+level)/2} sd / sqrt(n).

  Args:
    values: [n] one number per run; sd is taken with n - 1.
    level: coverage of the interval.

  Returns:
    Interval. n = 0: everything nan. n = 1: the mean, with nan limits and sd. Equal values:
    low = mean = high. A value that is not finite: everything but n is nan.
  """
  x = _sample(values)
  _check_share('level', level)
  n = x.size
  if n == 0 or not np.isfinite(x).all():
    return Interval(math.nan, math.nan, math.nan, n, math.nan)
  mean = float(x.mean())
  if n == 1:
    return Interval(mean, math.nan, math.nan, n, math.nan)
  if (x == x[0]).all():  # x.mean() of equal numbers may be off by a rounding
    return Interval(float(x[0]), float(x[0]), float(x[0]), n, 0.0)
  sd = float(x.std(ddof=1))
  half = float(scipy.stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
  return Interval(mean, mean - half, mean + half, n, sd)


def geometric_interval(values: Sequence[float], level: float = 0.95) -> Interval:
  """Geometric mean of positive numbers and its interval: exp of `mean_interval` of the logarithms.

  The sd is that of the logarithms.
  """
  with np.errstate(divide='ignore', invalid='ignore'):
    own = mean_interval(np.log(_sample(values)), level)
  return Interval(math.exp(own.mean), math.exp(own.low), math.exp(own.high), own.n, own.sd)


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
  """Paired t test of a - b: t = mean(a - b) / (sd(a - b) / sqrt(n)), df = n - 1, two-sided.

  Args:
    a, b: [n] each; entry i of both is one pair (same seed, same batches).
    level: coverage of the interval.

  Returns:
    Paired. n < 2: limits and p are nan. Differences all zero: p = 1. All equal and not zero:
    p = 0 (t is infinite). A pair that is not finite: everything but n is nan.

  Raises:
    ValueError: when a and b have different lengths.
  """
  a, b = _sample(a), _sample(b)
  if a.shape != b.shape:
    raise ValueError(f'pairs need equal lengths, got {a.size} and {b.size}')
  with np.errstate(invalid='ignore'):
    difference = a - b
  mean, low, high, n, sd = mean_interval(difference, level)
  if math.isnan(sd):
    p = math.nan
  elif sd == 0:
    p = 1.0 if mean == 0 else 0.0
  else:
    p = float(2 * scipy.stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1))
  return Paired(mean, low, high, p, n, sd)


def p_below(paired: Paired, margin: float) -> float:
  """One-sided p of 'the mean difference is at least the margin': small where it is clearly below.

  P(t_{n-1} <= (mean - margin) / (sd / sqrt(n))), so it is under (1 - level) / 2 where the upper
  limit of the interval at that level lies below the margin. n < 2: nan. Equal differences: 0 or 1.
  """
  if paired.n < 2 or math.isnan(paired.sd):
    return math.nan
  if paired.sd == 0:
    return float(paired.mean >= margin)
  t = (paired.mean - margin) / (paired.sd / math.sqrt(paired.n))
  return float(scipy.stats.t.cdf(t, paired.n - 1))


def holm(p: Sequence[float]) -> np.ndarray:
  """Holm's step-down adjusted p values, in the order given.

  adjusted_(i) = min(1, max_{j <= i} (m - j + 1) p_(j)) over the sorted p_(1) <= ... <= p_(m).

  A nan (a comparison that could not be made) stays nan and still counts in m: the family
  of comparisons is the one fixed before the run.

  Raises:
    ValueError: for a p value outside of [0, 1].
  """
  p = _sample(p)
  made = np.flatnonzero(~np.isnan(p))
  if ((p[made] < 0) | (p[made] > 1)).any():
    raise ValueError(f'p values lie in [0, 1], got {p.tolist()}')
  order = made[np.argsort(p[made], kind='stable')]
  factors = p.size - np.arange(order.size)
  adjusted = np.full(p.shape, np.nan)
  adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
  return adjusted


def minimum_detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = 0.8,
                              comparisons: int = 1) -> float:
  """The smallest true mean difference that a two-sided paired t test finds with that power.

  Solves P(|T| > t_{n-1, 1 - a/2}) = power for d, where T is noncentral t with df = n - 1 and
  noncentrality d sqrt(n) / sd, and a = alpha / comparisons (what Holm asks of its smallest p).

  Args:
    sd: standard deviation of the paired differences, as in `Paired.sd`.
    n: number of pairs.
    alpha: familywise error rate.
    power: chance to find the effect.
    comparisons: size of the family.

  Returns:
    The effect in the unit of sd; 0 for sd = 0; nan for n < 2 or sd not finite.
  """
  _check_share('alpha', alpha)
  _check_share('power', power)
  if comparisons < 1:
    raise ValueError(f'comparisons must be at least 1, got {comparisons}')
  level = alpha / comparisons
  if power <= level:
    raise ValueError(f'power {power} must exceed alpha / comparisons = {level}')
  if n < 2 or not math.isfinite(sd):
    return math.nan
  if sd < 0:
    raise ValueError(f'sd must not be negative, got {sd}')
  if sd == 0:
    return 0.0
  critical = float(scipy.stats.t.isf(level / 2, n - 1))

  def lack(noncentrality: float) -> float:
    right = scipy.stats.nct.sf(critical, n - 1, noncentrality)
    # The wrong sign's share: scipy gives nan where it is small (only met below 1e-6).
    wrong = np.nan_to_num(scipy.stats.nct.cdf(-critical, n - 1, noncentrality))
    return power - float(right + wrong)

  high = 1.0
  while lack(high) > 0:
    high *= 2
  return float(scipy.optimize.brentq(lack, 0.0, high, rtol=1e-10)) * sd / math.sqrt(n)


def difference_verdict(paired: Paired, p_adjusted: float, alpha: float = 0.05,
                       lower_is_better: bool = True, comparisons: int = 1) -> str:
  """One of 'better', 'worse', 'no difference at n seeds, minimum detectable effect d'.

  Args:
    paired: candidate minus reference.
    p_adjusted: its p value after the correction.
    alpha: familywise error rate.
    lower_is_better: True for a loss, False for an accuracy.
    comparisons: size of the family, for the effect that is printed.

  Returns:
    The phrase; 'not comparable at n seeds' when the p value is nan.
  """
  if math.isnan(p_adjusted):
    return f'not comparable at {paired.n} seeds'
  if p_adjusted < alpha:
    return 'better' if (paired.mean < 0) == lower_is_better else 'worse'
  effect = minimum_detectable_effect(paired.sd, paired.n, alpha, comparisons=comparisons)
  return f'no difference at {paired.n} seeds, minimum detectable effect {effect:.2g}'


def binomial_interval(n: int, p: float, level: float = 0.95) -> tuple[float, float]:
  """Where the share of hits in n independent trials of chance p falls, with equal tails.

  [q((1 - level) / 2) / n, q((1 + level) / 2) / n] with q the quantiles of Binomial(n, p), so
  the coverage is at least `level`. The trials must be independent: for a classifier at
  chance this holds when the labels it is *tested* on were shuffled too. With true test labels
  its mistakes come in whole classes, and the share spreads far wider.

  Raises:
    ValueError: for n < 1 or p outside of [0, 1].
  """
  _check_share('level', level)
  if n < 1 or not 0 <= p <= 1:
    raise ValueError(f'need n >= 1 and p in [0, 1], got n = {n}, p = {p}')
  low, high = scipy.stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], n, p)
  return float(low) / n, float(high) / n


def kendall_interval(
    a: Sequence[float], b: Sequence[float], resamples: int = 500, seed: int = 0,
) -> tuple[float, float, float]:
  """Kendall's tau-b of two scores of the same items: (tau, low, high).

  The interval is the 95 % percentile one over items that are drawn with replacement, from numpy's
  default generator under the seed; draws in which a score is constant are left out. nan where a
  score is constant.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
    return math.nan, math.nan, math.nan
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(resamples):
    chosen = rng.integers(len(a), size=len(a))
    found.append(scipy.stats.kendalltau(a[chosen], b[chosen]).statistic)
  low, high = np.nanquantile(found, [0.025, 0.975])
  return float(scipy.stats.kendalltau(a, b).statistic), float(low), float(high)


def split_half_tau(scores: Sequence[Sequence[float]], splits: int = 200, seed: int = 0) -> float:
  """Mean Kendall tau-b between the item means of two halves of the seeds.

  It is the reliability of a ranking from n / 2 seeds, and the ceiling of what a proxy's tau
  with that ranking can be.

  Args:
    scores: [seeds, items].
    splits: all ways to halve the seeds are used when there are at most this many; otherwise
      this many random ones. With an odd number of seeds each half leaves one out.
    seed: for the random halves.

  Returns:
    tau in [-1, 1]; nan for fewer than 2 seeds or 2 items, for a value that is not finite,
    or when a half ties all items.
  """
  x = np.asarray(scores, np.float64)
  if x.ndim != 2:
    raise ValueError(f'scores are [seeds, items], got shape {x.shape}')
  if splits < 1:
    raise ValueError(f'splits must be at least 1, got {splits}')
  seeds, items = x.shape
  if seeds < 2 or items < 2 or not np.isfinite(x).all():
    return math.nan
  taus = []
  for left, right in _halves(seeds, splits, seed):
    taus.append(scipy.stats.kendalltau(x[left].mean(0), x[right].mean(0)).statistic)
  return float(np.mean(taus))


def _halves(n: int, splits: int, seed: int) -> list[tuple[list[int], list[int]]]:
  """Pairs of disjoint index lists of n // 2 entries each."""
  half = n // 2
  left_out = n if n % 2 else 1
  count = left_out * math.comb(2 * half, half) // 2
  if count > splits:
    rng = np.random.Generator(np.random.Philox(seed))
    orders = [rng.permutation(n).tolist() for _ in range(splits)]
    return [(order[:half], order[half:2 * half]) for order in orders]
  pairs = []
  for left in itertools.combinations(range(n), half):
    rest = [i for i in range(n) if i not in left]
    for right in itertools.combinations(rest, half):
      if left < right:  # each unordered pair once
        pairs.append((list(left), list(right)))
  return pairs
