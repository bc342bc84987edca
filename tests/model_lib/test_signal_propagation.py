"""Dual activations, variance and correlation maps against closed forms, quadrature and networks."""

import math

import numpy as np
import pytest

from model_lib.activations import get_activation
from model_lib.activations.host import evaluate
from model_lib.analysis.signal_propagation import Layer, depth_scale, dual_activation

pytestmark = pytest.mark.usefixtures('unoptimized')

_RHO = np.linspace(-1, 1, 21)


def _arc_cosine(rho):
  """E relu(u) relu(v): Cho & Saul 2009."""
  return (np.sqrt(1 - rho**2) + rho * (math.pi - np.arccos(rho))) / (2 * math.pi)


def _by_quadrature(spec, rho, q):
  """E f(u) f(v) by a midpoint rule in two dimensions, every kink half a step off the nodes."""
  activation = get_activation(spec)
  z = (np.arange(-8, 8, 1 / 64) + 1 / 128)
  value = evaluate(activation.at_first_values(), math.sqrt(q) * z)
  u, v = z[:, None], z[None, :]
  density = np.exp(-(u**2 - 2 * rho * u * v + v**2) / (2 * (1 - rho**2)))
  density *= (1 / 64)**2 / (2 * math.pi * math.sqrt(1 - rho**2))
  return value @ density @ value


def test_the_dual_of_relu_is_the_arc_cosine_kernel():
  dual = dual_activation(get_activation('relu'))
  np.testing.assert_allclose(dual(_RHO), _arc_cosine(_RHO), atol=2 * dual.tail + 1e-9)
  assert dual.tail < 1e-5
  # d/drho: the arc-cosine kernel of order 0.
  inner = _RHO[2:-2]
  np.testing.assert_allclose(dual.slope(inner), (math.pi - np.arccos(inner)) / (2 * math.pi),
                             atol=1e-5)
  assert np.max(np.abs(dual_activation(get_activation('leaky_relu'))(_RHO)
                       - _arc_cosine(_RHO))) > 1e-3


@pytest.mark.parametrize('q', [0.5, 1.0, 3.0])
def test_the_dual_of_erf_is_the_arc_sine_kernel(q):
  """Williams 1998."""
  np.testing.assert_allclose(dual_activation(get_activation('erf'), q)(_RHO),
                             2 / math.pi * np.arcsin(2 * q * _RHO / (1 + 2 * q)), atol=1e-12)


@pytest.mark.parametrize('spec, q', [
    ('gelu', 1.0), ('silu', 2.0), ('tanh', 0.3), ('hard_tanh', 1.0), ('abs', 1.0), ('selu', 1.5),
    ('hard_shrink', 1.0)])
@pytest.mark.parametrize('rho', [-0.9, 0.4, 0.8])
def test_duals_agree_with_quadrature_in_two_dimensions(spec, q, rho):
  dual = dual_activation(get_activation(spec), q)
  # A jump between two nodes costs the midpoint rule about a step.
  tolerance = 2e-2 if get_activation(spec).jumps else 1e-4
  assert dual(rho) == pytest.approx(_by_quadrature(spec, rho, q), abs=tolerance)
  assert dual(1.0) == pytest.approx(get_activation(spec).moments(q).second, rel=1e-12)


def test_the_spectrum_of_polynomials_and_the_normal_distribution_function():
  np.testing.assert_allclose(get_activation('identity').spectrum(4.0, 3), [0, 2, 0, 0], atol=1e-12)
  np.testing.assert_allclose(  # relu^2 has E f' = 2 E relu
      get_activation('relu_squared').spectrum(1.0, 2),
      [1 / 2, 2 / math.sqrt(2 * math.pi), 1 / math.sqrt(2)], atol=1e-12)
  for spec in ('gelu', 'tanh', 'softplus'):
    squares = get_activation(spec).spectrum(1.0, 300)**2
    assert squares.sum() == pytest.approx(get_activation(spec).moments().second, rel=1e-8)


def test_selu_has_its_published_fixed_point():
  """Klambauer et al. 2017: the variance map's derivative at (0, 1) is 0.782648."""
  fixed = Layer(get_activation('selu'), 1.0).fixed_point()
  assert fixed.q == pytest.approx(1, abs=1e-6)
  assert fixed.chi_q == pytest.approx(0.782648, abs=1e-6)
  assert fixed.chi_1 == pytest.approx(1.0716, abs=1e-4)
  assert fixed.rho == pytest.approx(0, abs=1e-6)
  assert fixed.depth_q == pytest.approx(1 / abs(math.log(0.782648)), rel=1e-5)


@pytest.mark.parametrize('weights, phase', [(1.0, 'order'), (3.0, 'chaos')])
def test_tanh_has_an_ordered_and_a_chaotic_phase(weights, phase):
  layer = Layer(get_activation('tanh'), weights, bias_variance=0.05)
  fixed = layer.fixed_point()
  assert layer.variances(0.7, 200)[-1] == pytest.approx(fixed.q, rel=1e-9)
  rho = 0.6
  for _ in range(300):
    rho = float(layer.correlation(rho, fixed.q))
  assert rho == pytest.approx(fixed.rho, abs=1e-6)
  assert (fixed.chi_1 < 1) == (phase == 'order') == (fixed.rho == 1)
  assert fixed.chi_rho < 1
  step = 1e-4
  difference = (layer.variance(fixed.q + step) - layer.variance(fixed.q - step)) / (2 * step)
  assert fixed.chi_q == pytest.approx(difference, rel=1e-6)


def test_he_initialized_relu_keeps_every_variance_and_is_critical():
  layer = Layer(get_activation('relu'), 2.0)
  assert layer.variance_fixed_points() == ()
  with pytest.raises(ValueError, match='relu has 0 stable variances .*pass q'):
    layer.fixed_point()
  for q in (0.1, 7.0):
    fixed = layer.fixed_point(q)
    assert (fixed.chi_q, fixed.chi_1, fixed.rho) == pytest.approx((1, 1, 1), abs=1e-9)
    assert fixed.depth_q == math.inf
  assert depth_scale(math.exp(-0.25)) == pytest.approx(4)
  assert depth_scale(0.0) == 0


def test_residual_networks_grow_as_their_closed_forms_say():
  relu = get_activation('relu')
  # Unit-variance branches behind a norm add 1 per layer; without a norm the variance doubles.
  assert Layer(relu, 2.0, skip=1, normalized=True).variances(1.0, 48)[-1] == pytest.approx(49)
  assert Layer(relu, 2.0, skip=1).variances(1.0, 10)[-1] == pytest.approx(2**10)
  scaled = Layer(relu, 2.0, skip=1, branch=48**-0.5)
  assert scaled.variances(1.0, 48)[-1] == pytest.approx((1 + 1 / 48)**48)
  assert scaled.correlation_slope(1.0, 1.0) == pytest.approx(1)


@pytest.mark.parametrize('spec, skip', [('tanh', 0.0), ('gelu', 0.0), ('relu', 1.0)])
def test_the_maps_predict_a_wide_random_network(spec, skip):
  width, depth, rng = 2000, 3, np.random.default_rng(0)
  layer = Layer(get_activation(spec), 1.7, bias_variance=0.1, skip=skip)
  h = rng.standard_normal((2, width))
  h[1] = 0.6 * h[0] + 0.8 * h[1]
  q, rho = 1.0, 0.6
  for _ in range(depth):
    f = evaluate(layer.activation.at_first_values(), h.ravel()).reshape(h.shape)
    weights = rng.standard_normal((width, width)) * math.sqrt(1.7 / width)
    h = skip * h + f @ weights + rng.standard_normal(width) * math.sqrt(0.1)
    q, rho = layer.variance(q), float(layer.correlation(rho, q))
  second = (h**2).mean(axis=1)
  np.testing.assert_allclose(second, q, rtol=0.12)
  assert (h[0] * h[1]).mean() / math.sqrt(second.prod()) == pytest.approx(rho, abs=0.04)
