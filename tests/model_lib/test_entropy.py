"""Entropies against closed forms and independent quadrature, and the ranking built on them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from model_lib.activations import get_activation, names
from model_lib.analysis.densities import gaussian, preactivations, recorded
from model_lib.analysis.entropy import entropies, entropy_slope, input_entropy
from model_lib.analysis.entropy_ranking import agreement, criteria, criterion
from model_lib.errors import UserError
from model_lib.models import build

pytestmark = pytest.mark.usefixtures('unoptimized')

_NORMAL = 0.5 * math.log(2 * math.pi * math.e)
_BRANCH = (0.0, math.inf)


def _entropy(masses, width):
  masses = np.asarray(masses)
  return float(-special.xlogy(masses, masses).sum() + math.log(width))


def test_a_normal_and_a_uniform_output_have_the_entropies_of_the_textbook():
  found = entropies(lambda x: x)
  for units in (found.mixed, found.monotone):
    assert units.raw == pytest.approx(_NORMAL, abs=1e-6)
    assert units.var == units.rms == pytest.approx(_NORMAL, abs=1e-6)
  edges = (np.arange(-120, 121) - 0.5) / 10
  assert found.primary == pytest.approx(_entropy(np.diff(stats.norm.cdf(edges)), 0.1), abs=1e-6)
  uniform = entropies(jax.scipy.special.ndtr)
  assert uniform.mixed.raw == pytest.approx(0, abs=1e-6)
  assert uniform.monotone.var == pytest.approx(math.log(math.sqrt(12)), abs=1e-6)
  assert uniform.monotone.rms == pytest.approx(math.log(math.sqrt(3)), abs=1e-6)
  # Bins centred on the multiples of 0.1: half a bin at either end.
  assert uniform.plug_in.raw == pytest.approx(_entropy([0.05, *[0.1] * 9, 0.05], 0.1), abs=1e-6)
  # The control: of all outputs with variance 1 the normal one has the largest entropy.
  assert found.mixed.var > uniform.mixed.var + 0.1


def test_another_normal_density_and_a_branch():
  wide = gaussian(0.7, 3.0)
  assert input_entropy(wide) == pytest.approx(_NORMAL + math.log(3), abs=1e-6)
  assert input_entropy(gaussian(), _BRANCH) == pytest.approx(_NORMAL - math.log(2), abs=1e-6)
  found = entropies(lambda x: 2 * x, wide)
  assert found.mixed.raw == pytest.approx(_NORMAL + math.log(6), abs=1e-6)
  assert (found.mean, found.second) == pytest.approx((1.4, 1.96 + 36), rel=1e-6)
  assert found.mixed.rms == pytest.approx(
      _NORMAL + math.log(6) - 0.5 * math.log(found.second), abs=1e-6)


@pytest.mark.parametrize('name', ['tanh', 'relu', 'gelu', 'hard_tanh'])
def test_the_normalised_entropies_do_not_see_the_scale(name):
  activation = get_activation(name)
  f = activation.at_first_values()
  plain, scaled = (entropies(lambda x, c=c: c * f(x), breaks=activation.kinks) for c in (1, -3.7))
  for estimator in ('plug_in', 'plug_in_fine', 'mixed', 'monotone'):
    ours, theirs = getattr(plain, estimator), getattr(scaled, estimator)
    if math.isinf(ours.var):
      assert theirs.var == ours.var == -math.inf
      continue
    assert theirs.var == pytest.approx(ours.var, abs=1e-4), estimator
    assert theirs.rms == pytest.approx(ours.rms, abs=1e-4), estimator
    # The control: the entropy of f itself does.
    assert abs(theirs.raw - ours.raw) > 0.1, estimator
  if plain.atoms:
    # 1/2 log Var f would shift the mass of the atoms too.
    naive = [found.mixed.raw - 0.5 * math.log(found.second - found.mean**2)
             for found in (plain, scaled)]
    assert abs(naive[0] - naive[1]) > 0.1


def test_relu_is_an_atom_and_half_a_normal_density():
  relu = get_activation('relu')
  found = entropies(relu.at_first_values(), breaks=relu.kinks)
  (atom,) = found.atoms
  assert atom == pytest.approx((0, 0.5), abs=1e-9) and not found.strictly_monotone
  assert found.monotone.raw == -math.inf
  assert found.mixed.raw == pytest.approx(math.log(2) + (_NORMAL - math.log(2)) / 2, abs=1e-6)
  sd = math.sqrt(0.5 - 0.5 / math.pi)
  masses = np.diff(stats.norm.cdf(sd * (np.arange(0, 200) - 0.5) / 10))
  masses[0] = stats.norm.cdf(sd * 0.05)
  assert found.primary == pytest.approx(_entropy(masses, 0.1), abs=1e-6)


def test_several_branches_add_up_in_the_density_and_not_in_the_naive_formula():
  size = get_activation('abs')
  found = entropies(size.at_first_values(), breaks=size.kinks)
  assert found.mixed.raw == pytest.approx(_NORMAL - math.log(2), abs=1e-5)
  assert found.monotone.raw == pytest.approx(_NORMAL, abs=1e-5)  # too large by log 2
  # cos: q(y) sin(t) = sum over k of p(2 pi k + t) + p(2 pi k - t), y = cos t.
  def integrand(t):
    turns = 2 * np.pi * np.arange(-3, 4)
    q = (stats.norm.pdf(turns + t) + stats.norm.pdf(turns - t)).sum()
    return -q * math.log(q / math.sin(t))
  exact, _ = integrate.quad(integrand, 0, math.pi, limit=200)
  assert entropies(jnp.cos).mixed.raw == pytest.approx(exact, abs=1e-3)
  assert entropies(jnp.cos).monotone.raw > exact + 0.5
  quantiles = stats.norm.ppf((np.arange(2_000_000) + 0.5) / 2_000_000)
  outputs = np.cos(quantiles)
  counts = np.unique(np.rint(outputs / outputs.std() / 0.1), return_counts=True)[1]
  assert entropies(jnp.cos).primary == pytest.approx(_entropy(counts / 2e6, 0.1), abs=1e-4)


def test_a_jump_needs_no_break_for_the_atoms_and_is_exact_with_one():
  shrink = get_activation('hard_shrink')
  outside = 2 * stats.norm.sf(0.5)
  tail, _ = integrate.quad(lambda u: -2 * special.xlogy(stats.norm.pdf(u), stats.norm.pdf(u)),
                           0.5, 12)
  exact = -special.xlogy(1 - outside, 1 - outside) + tail
  with_breaks, without = (entropies(shrink.at_first_values(), breaks=breaks)
                          for breaks in (shrink.kinks, ()))
  assert with_breaks.mixed.raw == pytest.approx(exact, abs=1e-6)
  assert without.mixed.raw == pytest.approx(exact, abs=1e-3)
  step = get_activation('binary_step')
  found = entropies(step.at_first_values(), breaks=step.kinks)
  assert (found.mixed.raw, found.mixed.var) == pytest.approx((math.log(2),) * 2, abs=1e-9)
  assert found.primary == pytest.approx(math.log(2) + math.log(0.1), abs=1e-9)


@pytest.mark.parametrize('epsilon, ratio, var_ratio, whole', [
    (0.01, 0.3516, 0.25, -1.637), (-0.01, 0.3555, 0.26, -1.656),
    (0.001, 0.3534, 0.256, -2.79), (-0.001, 0.3537, 0.257, -2.79)])
def test_crrelu_s_branch_and_its_whole_output(epsilon, ratio, var_ratio, whole):
  crrelu, relu = (get_activation(name) for name in (f'crrelu(epsilon={epsilon})', 'relu'))
  after, before = (entropies(f.at_first_values(), within=_BRANCH) for f in (crrelu, relu))
  assert (after.mixed.raw - before.mixed.raw) / epsilon == pytest.approx(ratio, abs=1e-4)
  assert (after.mixed.var - before.mixed.var) / epsilon == pytest.approx(var_ratio, abs=5e-3)
  # Second order, and down for both signs: a positive epsilon helps no more than a negative one.
  assert after.mixed.rms - before.mixed.rms == pytest.approx(-16.3 * epsilon**2 / 100, rel=0.02)
  assert entropies(crrelu.at_first_values(), breaks=crrelu.kinks).mixed.raw == pytest.approx(
      whole, abs=5e-3)


def test_the_derivative_at_relu_is_that_of_the_closed_form():
  relu = get_activation('relu').at_first_values()
  def bump(x):
    return x * jnp.exp(-x**2 / 2)
  slope = entropy_slope(relu, bump, within=_BRANCH)
  assert slope == pytest.approx(1 / (2 * math.sqrt(2)), abs=1e-6)
  # A mixed entropy counts the branch by its mass, 1/2.
  up, down = (entropies(lambda x, e=e: jnp.where(x > 0, x + e * bump(x), 0), breaks=(0.0,))
              for e in (1e-3, -1e-3))
  assert (up.mixed.raw - down.mixed.raw) / 2e-3 == pytest.approx(slope / 2, abs=1e-4)
  assert entropy_slope(jnp.tanh, jnp.tanh) == pytest.approx(1, abs=1e-9)  # d H(c f) / d log c
  with pytest.raises(UserError, match='within='):
    entropy_slope(relu, bump)


def test_recorded_values_have_nearly_the_entropies_of_their_density():
  samples = np.random.default_rng(0).normal(0.5, 2.0, 100_000)
  density = recorded(samples)
  assert (density.mean, density.sd) == pytest.approx((0.5, 2.0), rel=0.02)
  assert density.sd / samples.std() == pytest.approx(1.004, abs=2e-4)  # the kernel's own width
  assert density.masses(np.linspace(-40, 40, 1001)).sum() == pytest.approx(1, abs=1e-12)
  u = np.linspace(-6, 7, 27)
  np.testing.assert_allclose(density.pdf(u), stats.norm.pdf(u, 0.5, 2.0), atol=0.006)
  step = 1e-4
  np.testing.assert_allclose(
      density.slope(u), (density.pdf(u + step) - density.pdf(u - step)) / (2 * step), atol=1e-6)
  for f in (jnp.tanh, lambda x: jnp.maximum(x, 0)):
    found, exact = entropies(f, density), entropies(f, gaussian(0.5, 2.0))
    assert found.samples == 100_000 and exact.samples == 0
    assert found.primary == pytest.approx(exact.primary, abs=0.01)
    assert found.mixed.var == pytest.approx(exact.mixed.var, abs=0.02)
    # The control: at another density both differ by more.
    assert abs(found.primary - entropies(f).primary) > 0.03
  counts = np.unique(np.rint(np.tanh(samples) / np.tanh(samples).std() / 0.1),
                     return_counts=True)[1]
  assert entropies(jnp.tanh, density).primary == pytest.approx(
      _entropy(counts / samples.size, 0.1), abs=1e-9)


def test_the_plug_in_entropy_of_recorded_values_is_too_small_by_what_it_says():
  exact, n = entropies(lambda x: x).primary, 5000
  errors, expected = [], []
  for seed in range(8):
    samples = np.random.default_rng(seed).normal(size=n)
    errors.append(entropies(lambda x: x, recorded(samples)).primary - exact)
    expected.append(-(np.unique(np.rint(samples / samples.std() / 0.1)).size - 1) / (2 * n))
  assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.2)
  assert np.mean(errors) < -0.005


def test_preactivations_are_the_inputs_of_the_activation_layers():
  def mlp(activation):
    model = build('mlp', widths=(16, 16), num_classes=3, activation=activation)
    return model, jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(1))
  x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
  model, variables = mlp('crrelu')
  found = preactivations(model, variables, x)
  assert [values.shape for values in found.values()] == [(64 * 16,)] * 2
  before, after = (entropies(get_activation(f'crrelu(epsilon={epsilon})').at_first_values(),
                             recorded(next(iter(found.values()))), within=_BRANCH)
                   for epsilon in (0.0, 0.1))
  assert after.mixed.raw > before.mixed.raw and 0 < after.samples < 64 * 16
  with pytest.raises(UserError, match='no activation layer with one input'):
    preactivations(*mlp('swiglu'), x)


@pytest.mark.parametrize('wrong, words', [
    (lambda: entropies(lambda x: 0 * x + 2), 'is constant, 2'),
    (lambda: entropies(jnp.log), 'not finite at'),
    (lambda: entropies(jnp.tanh, within=(9, math.inf)), 'no density of U within'),
    (lambda: entropies(lambda x: 1e12 * x), 'more than 50000000 bins'),
    (lambda: gaussian(sd=0), 'an sd above 0'),
    (lambda: recorded(np.ones(200)), 'at least 100 finite values that differ'),
    (lambda: recorded(np.full(200, np.nan)), 'did not diverge'),
    (lambda: recorded(np.arange(200.0), width=-1), 'width of a kernel'),
    (lambda: criterion('swiglu'), "'swiglu' is gated"),
    (lambda: agreement([{'activation': 'relu'}], {'gelu': 1.0}), 'not both'),
    (lambda: agreement([{'activation': 'relu'}], {'relu': 1.0}), 'give 3 or more'),
])
def test_a_mistake_is_one_line(wrong, words):
  with pytest.raises(UserError, match=words) as caught:
    wrong()
  assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def catalogue():
  return criteria()


def test_the_whole_catalogue_has_a_row_in_every_convention(catalogue):
  assert {row['activation'] for row in catalogue} == {
      name for name in names() if get_activation(name).kind == 'pointwise'}
  primary = [row['primary'] for row in catalogue]
  assert primary == sorted(primary)
  of = {row['activation']: row for row in catalogue}
  for name, row in of.items():
    activation = get_activation(name)
    assert row['strictly_monotone'] == bool(activation.monotone and not row['atoms']), name
    assert row['primary'] == row['plug_in_var']
    if row['strictly_monotone']:
      assert row['mixed_raw'] == pytest.approx(row['monotone_raw'], abs=1e-3), name
    for other in activation.duplicates:
      assert of[other]['primary'] == pytest.approx(row['primary'], abs=2e-3), (name, other)
    # No output of variance 1 has a larger density entropy than the normal one.
    if not row['atoms']:
      assert row['mixed_var'] < _NORMAL + 1e-5, name
  assert of['relu']['monotone_raw'] == -math.inf and of['relu']['atom_mass'] == pytest.approx(0.5)


def test_the_convention_decides_much_of_the_ranking(catalogue):
  def tau(one, other):
    return stats.kendalltau([row[one] for row in catalogue],
                            [row[other] for row in catalogue]).statistic
  assert tau('primary', 'plug_in_fine_var') > 0.85
  assert tau('primary', 'monotone_raw') < 0.7


def test_agreement_is_that_a_lower_entropy_goes_with_a_higher_score(catalogue):
  rows = [row for row in catalogue if row['activation'] in ('relu', 'gelu', 'tanh', 'silu')]
  better = {row['activation']: -row['primary'] for row in rows}
  assert agreement(rows, better) == (1.0, pytest.approx(1 / 12), 4)
  assert agreement(rows, {key: -value for key, value in better.items()}).tau == -1
  with pytest.raises(UserError, match='take diverged runs out'):
    agreement(rows, dict.fromkeys(better, math.nan))
  with pytest.raises(UserError, match="no column 'entropy'"):
    agreement(rows, better, 'entropy')
