"""Where the first values of the fitted activations come from: the fits, made again."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from model_lib.activations import get_activation
from model_lib.activations.host import evaluate


def _first_values(name):
  return {parameter.name: parameter.init for parameter in get_activation(name).parameters}


def _relu(x):
  return np.maximum(x, 0)


_X, _W = np.polynomial.legendre.leggauss(400)


def _half_line(reach):
  """Nodes and weights on [-reach, reach] with an edge at 0, where ReLU has its kink."""
  nodes = np.concatenate([(_X - 1) / 2, (_X + 1) / 2]) * reach
  return nodes, np.concatenate([_W, _W]) * reach / 2


@pytest.mark.parametrize('name, reach, weight', [
    ('hermite', 12.0, lambda x: np.exp(-x**2 / 2)),
    ('slaf', 12.0, lambda x: np.exp(-x**2 / 2)),
    ('legendre', 1.0, np.ones_like),
    ('fourier', np.pi, np.ones_like),
])
def test_a_basis_starts_at_the_best_approximation_of_relu(name, reach, weight):
  x, weights = _half_line(reach)
  weights = weights * weight(x)
  _check_best(name, x, weights)


def test_chebyshev_starts_at_the_best_approximation_of_relu():
  # x = cos(angle) turns the weight 1 / sqrt(1 - x^2) into a constant.
  angles, weights = _half_line(np.pi / 2)
  _check_best('chebyshev', np.cos(angles + np.pi / 2), weights)


def _check_best(name, x, weights):
  """The residual is orthogonal to the basis, and not for coefficients that are off by 1 %."""
  activation, values = get_activation(name), _first_values(name)
  values.pop('omega', None)
  zeros = dict.fromkeys(values, 0.0)
  basis = np.stack([
      evaluate(lambda x, key=key: activation.function(x, **{**zeros, key: 1.0}), x)
      for key in values])
  projections = [basis @ (weights * (np.array(list(v.values())) @ basis - _relu(x)))
                 for v in (values, {key: 1.01 * value for key, value in values.items()})]
  scale = np.sum(weights)
  assert np.max(np.abs(projections[0])) < 1e-9 * scale
  assert np.max(np.abs(projections[1])) > 1e-4 * scale


def test_the_rational_functions_start_at_the_least_squares_fit_to_leaky_relu():
  x = np.linspace(-3, 3, 601)
  y = np.where(x >= 0, x, 0.01 * x)
  powers = x ** np.arange(6)[:, None]

  def residual(p):
    return p[:6] @ powers / (1 + np.abs(p[6:] @ powers[1:5])) - y

  start = np.array([0, 0.5, 0, 0.05])
  numerator = np.linalg.lstsq((powers / (1 + np.abs(start @ powers[1:5]))).T, y, rcond=None)[0]
  fit = optimize.least_squares(
      residual, [*numerator, *start], xtol=1e-14, ftol=1e-14, gtol=1e-14)
  ours = np.array(list(_first_values('rational_b').values()))
  np.testing.assert_allclose(ours, fit.x, atol=1e-6)
  assert np.sqrt(np.mean(residual(ours)**2)) == pytest.approx(0.005555193, rel=1e-6)
  assert np.mean(residual(1.01 * ours)**2) > np.mean(residual(ours)**2)


def test_all_rational_forms_start_as_the_same_function_and_learn_apart():
  x = np.linspace(-4, 4, 81)
  values = [evaluate(get_activation(f'rational_{form}'), x) for form in 'abcn']
  np.testing.assert_allclose(values, np.broadcast_to(values[0], (4, 81)), rtol=1e-12)
  odd = [evaluate(get_activation(f'rational_{form}(b1=0.3)'), x) for form in 'abcn']
  assert np.max(np.abs(odd[0] - odd[1])) > 1e-3
  # On the right every term of the denominator is positive: no form can be told from another.
  right = x > 0
  np.testing.assert_allclose(odd[0][right], odd[3][right], rtol=1e-12)
  assert jnp.isfinite(get_activation('rational_n')(jnp.float32(1e4)))
