"""statistics.py against closed forms, scipy's own tests, quadrature and simulation."""
from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import integrate
from scipy import stats

from model_lib.analysis import statistics as s


def test_mean_interval_of_two_values_has_the_cauchy_quantile():
  # With one degree of freedom t is Cauchy: the 97.5 % point is tan(0.475 pi).
  found = s.mean_interval([1.0, 3.0])
  half = math.tan(0.475 * math.pi) * math.sqrt(2) / math.sqrt(2)
  np.testing.assert_allclose((found.mean, found.low, found.high), (2, 2 - half, 2 + half))
  assert found.n == 2 and found.sd == pytest.approx(math.sqrt(2))


def test_mean_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)
  samples = rng.normal(5, 2, (4000, 6))
  for level in (0.5, 0.95):
    intervals = [s.mean_interval(x, level) for x in samples]
    share = np.mean([i.low <= 5 <= i.high for i in intervals])
    assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 4000)
  # A normal quantile in place of t's would cover 89 % only.
  narrow = np.mean([abs(x.mean() - 5) <= 1.96 * x.std(ddof=1) / math.sqrt(6) for x in samples])
  assert narrow < 0.92


@pytest.mark.parametrize('values, n', [([], 0), ([1, math.nan], 2), ([1, math.inf, 2], 3)])
def test_what_is_not_finite_is_never_dropped(values, n):
  found = s.mean_interval(values)
  assert found.n == n and all(math.isnan(v) for v in (found.mean, found.low, found.high, found.sd))


def test_one_value_has_no_interval_and_equal_values_a_point():
  one = s.mean_interval([0.3])
  assert one.mean == 0.3 and math.isnan(one.low) and math.isnan(one.sd)
  assert s.mean_interval([0.1] * 7) == (0.1, 0.1, 0.1, 7, 0.0)


def test_paired_difference_is_scipys_paired_test():
  rng = np.random.default_rng(1)
  for n in (2, 8, 40):
    a = rng.normal(size=n)
    b = a + rng.normal(0.2, 0.3, n)
    found = s.paired_difference(a, b)
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    np.testing.assert_allclose(
        (found.mean, found.low, found.high, found.p),
        ((a - b).mean(), interval.low, interval.high, reference.pvalue), rtol=1e-9)
    # Taken as two groups, the pairs' common part would hide the difference.
    if n == 40:
      assert found.p < 0.01 < stats.ttest_ind(a, b).pvalue


def test_paired_difference_at_its_edges():
  assert s.paired_difference([1, 2], [1, 2]).p == 1
  shifted = s.paired_difference([1, 2, 3], [0, 1, 2])
  assert (shifted.p, shifted.low, shifted.high) == (0, 1, 1)
  assert math.isnan(s.paired_difference([1], [0]).p) and s.paired_difference([1], [0]).mean == 1
  for bad in (math.nan, math.inf):
    found = s.paired_difference([1, bad, 3], [1, bad, 2])
    assert math.isnan(found.p) and math.isnan(found.mean) and found.n == 3
  with pytest.raises(ValueError, match='equal lengths, got 1 and 2'):
    s.paired_difference([1], [1, 2])


def test_holm_on_his_kind_of_example():
  # By hand: 0.005 * 4, 0.01 * 3, then 0.03 * 2, and 0.04 * 1 raised to its predecessor.
  np.testing.assert_allclose(s.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(s.holm([0.9, 0.8]), [1, 1])
  assert s.holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha):
  rejected = set()
  for place, i in enumerate(np.argsort(p, kind='stable')):
    if p[i] * (len(p) - place) > alpha:
      break
    rejected.add(int(i))
  adjusted = s.holm(p)
  assert {i for i in range(len(p)) if adjusted[i] <= alpha} == rejected
  assert (adjusted >= p).all()


def test_holm_keeps_a_comparison_that_could_not_be_made_in_the_family():
  adjusted = s.holm([0.01, math.nan, 0.02])
  np.testing.assert_allclose(adjusted, [0.03, math.nan, 0.04])
  with pytest.raises(ValueError, match='lie in'):
    s.holm([0.5, 1.2])


def test_holm_keeps_the_familywise_error_where_raw_p_values_do_not():
  rng = np.random.default_rng(2)
  p = rng.random((3000, 20))
  corrected = np.mean([s.holm(row).min() < 0.05 for row in p])
  assert abs(corrected - 0.05) < 0.02 and np.mean(p.min(1) < 0.05) > 0.5


def _power(effect: float, sd: float, n: int, level: float) -> float:
  """The power by quadrature over the chi-square variable, without the noncentral t."""
  critical = stats.t.isf(level / 2, n - 1)
  shift = effect * math.sqrt(n) / sd

  def given_scale(w):
    bound = critical * math.sqrt(w / (n - 1))
    found = stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift)
    return found * stats.chi2.pdf(w, n - 1)

  quantiles = stats.chi2.ppf([1e-12, 1 - 1e-12], n - 1)
  return integrate.quad(given_scale, *quantiles, limit=300)[0]


@pytest.mark.parametrize('sd, n, comparisons, power', [
    (0.0056, 8, 45, 0.8), (0.0056, 64, 45, 0.8), (1.0, 3, 1, 0.9), (1.0, 2, 94, 0.8)])
def test_the_minimum_detectable_effect_has_that_power(sd, n, comparisons, power):
  effect = s.minimum_detectable_effect(sd, n, power=power, comparisons=comparisons)
  assert _power(effect, sd, n, 0.05 / comparisons) == pytest.approx(power, abs=1e-5)
  assert _power(0.9 * effect, sd, n, 0.05 / comparisons) < power - 0.01


def test_the_minimum_detectable_effect_by_simulation():
  effect = s.minimum_detectable_effect(2.0, 6)
  differences = np.random.default_rng(3).normal(effect, 2.0, (4000, 6))
  share = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
  assert abs(share - 0.8) < 0.025


def test_the_minimum_detectable_effect_at_its_edges():
  assert math.isnan(s.minimum_detectable_effect(1.0, 1))
  assert math.isnan(s.minimum_detectable_effect(math.nan, 8))
  assert s.minimum_detectable_effect(0.0, 8) == 0
  few, many = (s.minimum_detectable_effect(1, 8, comparisons=c) for c in (1, 45))
  assert few < many
  for bad in ({'alpha': 0}, {'power': 1}, {'comparisons': 0}, {'alpha': 0.5, 'power': 0.4}):
    with pytest.raises(ValueError):
      s.minimum_detectable_effect(1.0, 8, **bad)


def test_difference_verdict_knows_which_way_is_better():
  lower = s.paired_difference([1.0, 1.1, 0.9], [2.0, 2.2, 1.9])
  assert s.difference_verdict(lower, lower.p) == 'better'
  assert s.difference_verdict(lower, lower.p, lower_is_better=False) == 'worse'
  phrase = s.difference_verdict(lower, 0.4, comparisons=4)
  effect = s.minimum_detectable_effect(lower.sd, 3, comparisons=4)
  assert phrase == f'no difference at 3 seeds, minimum detectable effect {effect:.2g}'
  assert s.difference_verdict(lower, math.nan) == 'not comparable at 3 seeds'


def test_binomial_interval_by_counting():
  low, high = s.binomial_interval(270, 0.1, 0.99)
  mass = stats.binom.pmf(np.arange(271), 270, 0.1)
  a, b = round(low * 270), round(high * 270)
  assert mass[a:b + 1].sum() >= 0.99
  assert mass[:a].sum() <= 0.005 < mass[:a + 1].sum()
  assert mass[b + 1:].sum() <= 0.005 < mass[b:].sum()
  assert s.binomial_interval(5, 0.0) == (0, 0)
  for bad in ((0, 0.1), (10, 1.5)):
    with pytest.raises(ValueError):
      s.binomial_interval(*bad)


def test_split_half_tau_of_a_planted_ranking_and_of_noise():
  rng = np.random.default_rng(4)
  truth = np.arange(30.0)
  assert s.split_half_tau(np.tile(truth, (4, 1))) == 1
  assert s.split_half_tau(truth + rng.normal(0, 3, (6, 30))) > 0.7
  assert abs(s.split_half_tau(rng.normal(size=(6, 200)))) < 0.1


def test_split_half_tau_uses_each_way_to_halve_once():
  rng = np.random.default_rng(5)
  scores = rng.normal(size=(4, 9))
  ways = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
  by_hand = np.mean([stats.kendalltau(scores[list(a)].mean(0), scores[list(b)].mean(0)).statistic
                     for a, b in ways])
  assert s.split_half_tau(scores) == pytest.approx(by_hand, abs=1e-12)
  three = np.mean([stats.kendalltau(scores[a], scores[b]).statistic
                   for a, b in ((0, 1), (0, 2), (1, 2))])
  assert s.split_half_tau(scores[:3]) == pytest.approx(three, abs=1e-12)
  many = rng.normal(size=(16, 9))
  assert s.split_half_tau(many) == s.split_half_tau(many) != s.split_half_tau(many, seed=1)


@pytest.mark.parametrize('scores', [[[1, 2, 3]], [[1], [2]], [[1, math.nan], [1, 2]]])
def test_split_half_tau_without_two_seeds_two_items_or_finite_values(scores):
  assert math.isnan(s.split_half_tau(scores))


def test_p_below_is_that_of_the_t_test_and_of_the_upper_limit():
  a, b = np.array([1.0, 2.0, 4.0]), np.array([0.5, 2.5, 3.0])
  paired = s.paired_difference(a, b)
  expected = stats.ttest_1samp(a - b, 1.0, alternative='less').pvalue
  assert s.p_below(paired, 1.0) == pytest.approx(expected, rel=1e-12)
  assert s.p_below(paired, paired.high) == pytest.approx(0.025, rel=1e-9)
  assert s.p_below(paired, paired.high + 0.1) < 0.025 < s.p_below(paired, paired.high - 0.1)
  same = s.paired_difference(a, a)
  assert s.p_below(same, 1.0) == 0 and s.p_below(same, 0.0) == 1
  assert math.isnan(s.p_below(s.paired_difference(a[:1], b[:1]), 1.0))


def test_a_geometric_interval_is_that_of_the_logarithms():
  found = s.geometric_interval([1.0, 100.0])
  assert found.mean == pytest.approx(10)
  # With one degree of freedom t is Cauchy; the logs are 0 and log(100).
  half = math.tan(0.475 * math.pi) * math.log(100) / 2
  assert (found.low, found.high) == pytest.approx((10 * math.exp(-half), 10 * math.exp(half)))
  assert found.n == 2 and found.sd == pytest.approx(math.log(100) / math.sqrt(2))
  assert s.geometric_interval([]).n == 0 and math.isnan(s.geometric_interval([1, -1]).mean)
  assert s.geometric_interval([3.0]).mean == pytest.approx(3) and math.isnan(
    s.geometric_interval([3.0]).low)


def test_kendall_interval():
  rng = np.random.default_rng(3)
  a = rng.normal(size=60)
  b, unrelated = a + rng.normal(size=60), rng.normal(size=60)
  assert s.kendall_interval(a, 2 * a + 1) == pytest.approx((1, 1, 1))
  assert all(map(math.isnan, s.kendall_interval(a, np.ones(60))))
  tau, low, high = s.kendall_interval(a, b)
  assert tau == stats.kendalltau(a, b).statistic and 0 < low < tau < high < 1
  assert s.kendall_interval(a, -b)[0] == -tau
  tau, low, high = s.kendall_interval(a, unrelated)
  assert low < 0 < high
