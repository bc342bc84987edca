"""EAFO's corrections against closed forms, finite differences and its own claims; its controls."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from model_lib.activations import get_activation
from model_lib.activations.host import evaluate
from model_lib.analysis.densities import gaussian, recorded
from model_lib.analysis.entropy import entropies, entropy_slope
from model_lib.errors import UserError
from model_lib.models.activation_layer import consumer_gains
from model_lib.search import Evaluator, ValidityFilter, parse
from model_lib.search.bumps import bump, control_spec, crrelu, odd_bump, with_bump
from model_lib.search.eafo import CLOSED_FORMS, correction, eafo, eafo_step, inverse_slope

_BRANCH = (0.0, math.inf)
_RELU = {'within': _BRANCH, 'breaks': (0.0,)}
_PHI_0 = 1 / math.sqrt(2 * math.pi)


def _function(name):
  return jax.scipy.special.ndtr if name == 'ndtr' else get_activation(name).at_first_values()


@pytest.mark.parametrize('name', CLOSED_FORMS)
def test_the_correction_is_that_of_the_closed_form(name):
  within = _BRANCH if name == 'relu' else (-math.inf, math.inf)
  found = correction(_function(name), sign='descent', within=within)
  expected = -stats.norm.pdf(found.u) * CLOSED_FORMS[name](found.u)
  error = np.abs(found.delta - expected)[found.live].max()
  assert error < 1e-12 * max(1.0, np.abs(expected).max()) and not found.damped
  ascent = correction(_function(name), sign='paper', within=within)
  np.testing.assert_array_equal(ascent.delta, -found.delta)
  # The control: the closed forms are told from each other.
  others = [np.abs(CLOSED_FORMS[other](found.u) - CLOSED_FORMS[name](found.u))[found.live].max()
            for other in CLOSED_FORMS if other != name and (other, name) not in (
                ('identity', 'relu'), ('leaky_relu', 'relu'), ('elu', 'relu'))]
  assert min(others) > 0.1


@pytest.mark.parametrize('density', [
    gaussian(), gaussian(0.4, 1.7),
    recorded(np.random.default_rng(0).gamma(3.0, size=2000), width=0.4)])
def test_the_worst_function_has_no_correction_and_tanh_has_one(density):
  within = density.reach if density.samples is not None else (-math.inf, math.inf)
  worst = correction(density.boundary_function(-0.5, 2.0), sign='descent', density=density,
                     within=within)
  assert worst.u[-1] - worst.u[0] > 8 * density.sd
  assert np.abs(worst.delta).max() < 1e-12
  assert np.abs(correction(jnp.tanh, sign='descent', density=density,
                           within=within).delta).max() > 0.1
  # Nor is it the worst at another density.
  other = gaussian(density.mean, 1.3 * density.sd)
  assert np.abs(correction(density.boundary_function(), sign='descent', density=other,
                           within=within).delta).max() > 0.01


def test_damping_would_destroy_the_correction_of_a_saturated_function():
  u = np.linspace(-8, 8, 2049)
  slope, p = stats.norm.pdf(u), stats.norm.pdf(u)
  for damping, least in ((1e-3 / slope.max()**2, 0.568), (1e-3, 0.660)):
    inverse, damped = inverse_slope(slope, slope > 0, damping)
    assert damped
    assert np.abs(-u * p * inverse + p * u * slope * inverse**2).max() == pytest.approx(
        least, abs=1e-3)
  inverse, damped = inverse_slope(slope, slope > 0)
  assert not damped
  np.testing.assert_allclose(inverse * slope, 1, rtol=1e-14)
  for name, expected in (('gelu', True), ('silu', True), ('mish', True), ('elu', False),
                         ('softplus', False), ('sigmoid', False)):
    assert correction(_function(name), sign='descent').damped is expected, name


@pytest.mark.parametrize('name', ['asinh', 'softplus', 'sigmoid'])
def test_the_entropy_moves_by_minus_the_correction_s_square(name):
  f = _function(name)
  found = correction(f, sign='descent')
  def direction(x):  # the closed form, for JAX
    return -jnp.exp(-x**2 / 2) * _PHI_0 * {
        'asinh': lambda: x**3 / jnp.sqrt(1 + x**2),
        'softplus': lambda: (x + 1 - jax.nn.sigmoid(x)) / jax.nn.sigmoid(x),
        'sigmoid': lambda: (x + 1 - 2 * jax.nn.sigmoid(x)) / (
            jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))}[name]()
  square = float(np.sum(found.delta**2) * (found.u[1] - found.u[0]))
  assert entropy_slope(f, direction) == pytest.approx(-square, rel=1e-4)
  up, down = (entropies(lambda x, e=e: f(x) + e * direction(x)).mixed.raw for e in (1e-4, -1e-4))
  assert (up - down) / 2e-4 == pytest.approx(-square, rel=1e-3)


def test_a_grid_that_is_cut_short_loses_the_boundary():
  found = correction(jnp.tanh, sign='descent', within=(-3.0, 3.0))
  square = -float(np.trapezoid(np.where(found.live, found.delta, 0)**2, found.u))
  u = np.array([-3.0, 3.0])
  p, slope = stats.norm.pdf(u), 1 / np.cosh(u)**2
  boundary = float(np.diff(-p * p * CLOSED_FORMS['tanh'](u) / slope)[0])
  assert square == pytest.approx(-0.404, abs=2e-3) and boundary == pytest.approx(-0.408, abs=2e-3)
  # int p delta' / f' over the interval is both together.
  def integrand(u):
    step = 1e-5
    delta = [-stats.norm.pdf(v) * CLOSED_FORMS['tanh'](v) for v in (u - step, u + step)]
    return stats.norm.pdf(u) * (delta[1] - delta[0]) / (2 * step) * np.cosh(u)**2
  assert integrate.quad(integrand, -3, 3)[0] == pytest.approx(square + boundary, abs=2e-3)


@pytest.mark.parametrize('name', ['tanh', 'softplus', 'gelu'])
@pytest.mark.parametrize('normalise', ['rms', 'var'])
def test_normalising_takes_out_the_share_of_the_function(name, normalise):
  f = _function(name)
  plain = correction(f, sign='descent', metric='gaussian')
  found = correction(f, sign='descent', metric='gaussian', normalise=normalise)
  w = found.weights
  mean = w @ found.value if normalise == 'var' else 0.0
  own = found.value - mean
  assert abs(w @ (found.delta * own)) < 1e-9 * np.sqrt(w @ found.delta**2)
  if normalise == 'var':
    assert abs(w @ found.delta) < 1e-9 * np.sqrt(w @ found.delta**2)
  assert abs(w @ (plain.delta * own)) > 0.05
  if not found.damped:  # then it is the gradient less its projection
    centred = plain.delta - (w @ plain.delta if normalise == 'var' else 0.0)
    expected = centred - (w @ (centred * own)) / (w @ own**2) * own
    inside = np.abs(found.u) < 4
    np.testing.assert_allclose(found.delta[inside], expected[inside], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('text, options, units', [
    ('relu(x)', _RELU, ('none', 'var')), ('tanh(x)', {}, ('none', 'var', 'rms')),
    ('sigmoid(x)', {}, ('none', 'rms')), ('elu(x)', {}, ('none', 'var')),
    ('neg(asinh(x))', {'density': gaussian(0.3, 1.2)}, ('none', 'var', 'rms'))])
def test_descent_lowers_the_entropy_and_the_paper_s_sign_raises_it(text, options, units):
  for normalise in units:
    unit = {'none': 'raw', 'var': 'var', 'rms': 'rms'}[normalise]
    change = {}
    for sign in ('descent', 'paper'):
      step = eafo_step(parse(text), 1e-3, False, sign=sign, normalise=normalise, **options)
      change[sign] = getattr(step.after.mixed, unit) - getattr(step.before.mixed, unit)
      low, high = step.epsilon_range
      assert low < 0 < 1e-3 < high and not step.damped
      assert (step.before, step.after) == (step.whole_before, step.whole_after) or (
          options is _RELU)
    assert change['descent'] < -5e-5 < 5e-5 < change['paper'], normalise
    assert change['descent'] == pytest.approx(-change['paper'], rel=0.05)
    if text == 'relu(x)' and normalise == 'none':
      assert change['paper'] == pytest.approx(1e-3 * _PHI_0 / (2 * math.sqrt(2)), rel=1e-3)


def test_the_gain_of_relu_s_step_is_one_of_scale():
  for metric in ('lebesgue', 'gaussian'):
    with pytest.raises(UserError, match='stationary'):
      eafo_step(parse('relu(x)'), sign='descent', normalise='rms', metric=metric, **_RELU)
  step = eafo_step(parse('relu(x)'), 0.1, False, sign='descent', metric='gaussian', **_RELU)
  u = np.linspace(-3, 3, 13)
  # In the Gaussian metric the step is a shrinking: -epsilon u on the branch.
  np.testing.assert_allclose(evaluate(step.added, u), -u, atol=1e-9)


def test_a_step_from_relu_in_the_paper_s_sign_is_crrelu():
  step = eafo_step(parse('relu(x)'), 0.01 / _PHI_0, sign='paper', **_RELU)
  x = np.linspace(-4, 4, 81)
  ours = evaluate(step.expression, x)
  np.testing.assert_allclose(ours, evaluate(get_activation('crrelu'), x), atol=1e-12)
  np.testing.assert_allclose(ours, evaluate(crrelu(), x), atol=1e-12)
  descent = eafo_step(parse('relu(x)'), 0.01 / _PHI_0, sign='descent', **_RELU)
  np.testing.assert_allclose(evaluate(descent.expression, x),
                             evaluate(get_activation('crrelu(epsilon=-0.01)'), x), atol=1e-12)
  assert step.residual < 1e-9
  low, high = (_PHI_0 * epsilon for epsilon in step.epsilon_range)
  assert low == pytest.approx(-1, abs=1e-3) and high == pytest.approx(math.exp(1.5) / 2, abs=1e-3)
  # The whole output is another matter, and diverges for both signs.
  assert step.whole_before.atoms and not step.whole_after.atoms
  assert step.whole_after.mixed.raw == pytest.approx(-1.637, abs=1e-3)
  assert descent.whole_after.mixed.raw == pytest.approx(-1.656, abs=1e-3)
  assert step.after.mixed.raw > step.before.mixed.raw > descent.after.mixed.raw


def test_a_learned_epsilon_is_a_scalar_of_the_expression_that_may_start_at_zero():
  for start in (0.01, 0.0, -0.01):
    f = crrelu(start)
    assert parse(str(f)) == f and ValidityFilter()(f).valid
    (parameter,) = f.parameters()
    assert parameter.init == 0
    x = np.linspace(-3, 3, 25)
    corrector = x * np.exp(-x**2 / 2)
    np.testing.assert_allclose(evaluate(f, x), np.maximum(x, 0) + start * corrector, atol=1e-12)
    np.testing.assert_allclose(Evaluator(x).value(f, [0.3]),
                               np.maximum(x, 0) + (start + 0.3) * corrector, atol=1e-12)
    grad = evaluate(lambda x, f=f: jax.jvp(lambda e: f(x, beta_0=e), (0.0,), (1.0,))[1], x)
    np.testing.assert_allclose(grad, corrector, atol=1e-12)
  assert crrelu(0.01, learnable=False).n_parameters == 0


def test_steps_go_on_from_each_other_and_each_lowers_the_entropy():
  steps = eafo(parse('asinh(x)'), 3, 0.1, learnable=True, sign='descent', normalise='var')
  entropy = [steps[0].before.mixed.var, *(step.after.mixed.var for step in steps)]
  assert all(after < before - 1e-3 for before, after in zip(entropy, entropy[1:]))
  assert [step.expression.n_parameters for step in steps] == [1, 2, 3]
  final = steps[-1]
  assert parse(str(final.expression)) == final.expression
  assert ValidityFilter()(final.expression).valid
  assert final.min_slope > 0 and 0.1 < final.max_curvature < 10
  # Var f stays to first order, where without `normalise` the step is half a shrinking.
  variance = [found.second - found.mean**2 for found in (steps[0].before, steps[0].after)]
  assert variance[1] == pytest.approx(variance[0], rel=0.01)


def test_a_recorded_density_moves_the_bump_to_its_place():
  density = recorded(np.random.default_rng(1).normal(2.0, 0.5, 20_000))
  step = eafo_step(parse('relu(x)'), 0.01, False, sign='descent', density=density, breaks=(0.0,))
  u = np.linspace(-1, 6, 200)
  values = evaluate(step.added, u)
  # delta = p', which is largest one standard deviation below the mean.
  assert u[np.argmax(values)] == pytest.approx(1.5, abs=0.1)
  assert u[np.argmin(values)] == pytest.approx(2.5, abs=0.1)
  assert step.after.samples == 20_000 and step.after.mixed.raw < step.before.mixed.raw


@pytest.mark.parametrize('options, words', [
    ({'sign': 'up'}, 'sign is one of paper, descent, not up'),
    ({'sign': 'paper', 'metric': 'l2'}, 'metric is one of lebesgue, gaussian, not l2'),
    ({'sign': 'paper', 'normalise': 'sd'}, 'normalise is one of none, var, rms, not sd'),
    ({'sign': 'paper', 'within': (9, math.inf)}, 'no density of U within'),
])
def test_a_wrong_option_is_one_line(options, words):
  with pytest.raises(UserError, match=words) as caught:
    correction(jnp.tanh, **options)
  assert '\n' not in str(caught.value)


def test_a_function_without_a_step_says_so():
  for text, words in (('erf(x)', 'grows in the tails'), ('zero(x)', 'flat on all of the grid'),
                      ('log_abs(sub(x, x))', 'flat on all'), ('sqrt(x)', 'not finite at')):
    with pytest.raises(UserError, match=words):
      eafo_step(parse(text), sign='descent')


@pytest.mark.parametrize('seed', range(4))
def test_the_control_is_as_large_as_the_correction_and_orthogonal_to_it(seed):
  nodes, weights = np.polynomial.hermite_e.hermegauss(180)
  weights = weights / weights.sum()
  added = evaluate(odd_bump(seed), nodes)
  corrector = nodes * np.exp(-nodes**2 / 2)
  assert weights @ added**2 == pytest.approx(3**-1.5, abs=1e-9)
  assert weights @ corrector**2 == pytest.approx(3**-1.5, abs=1e-9)
  for other in (corrector, nodes, np.maximum(nodes, 0)):
    assert abs(weights @ (added * other)) < 1e-9
  np.testing.assert_allclose(added, -added[::-1], atol=1e-12)
  # Half of E b x is E b max(x, 0): the branch's entropy does not move to first order.
  relu = get_activation('relu').at_first_values()
  assert abs(entropy_slope(relu, odd_bump(seed), within=_BRANCH)) < 1e-6
  assert entropy_slope(relu, bump([0.0, 1.0]), within=_BRANCH) > 0.35
  different = evaluate(odd_bump(seed + 1), nodes)
  assert weights @ (added - different)**2 > 1e-3
  # The activation of the registry is the same function, and its gain is that of its epsilon.
  for epsilon in (0.01, 0.0, -0.3):
    activation = get_activation(control_spec(seed, epsilon))
    np.testing.assert_allclose(
        evaluate(activation, nodes),
        evaluate(with_bump(parse('relu(x)'), odd_bump(seed), epsilon), nodes), atol=1e-12)
    second = 0.5 + epsilon**2 * 3**-1.5
    assert activation.moments().second == pytest.approx(second, abs=1e-8)
    assert consumer_gains(control_spec(seed, epsilon))[0] == pytest.approx(second**-0.5, rel=1e-7)


@pytest.mark.parametrize('epsilon', [0.01, 0.0, -0.01, 0.7])
def test_the_gain_of_crrelu_is_that_of_its_epsilon(epsilon):
  second = 0.5 + epsilon / (2 * math.sqrt(2)) + epsilon**2 / (3 * math.sqrt(3))
  gain, = consumer_gains(f'crrelu(epsilon={epsilon})')
  assert gain == pytest.approx(second**-0.5, rel=1e-8)
  if epsilon == 0.01:
    assert gain == pytest.approx(1.4092, abs=5e-5)
