"""Standard deviations from moments: He, Kumar and gain-matched, and the published constants."""

import math

import pytest

from model_lib.activations import get_activation
from model_lib.parametrization.initializers import (
    gain_matched_std, he_std, kumar_std, nfnet_distances)

pytestmark = pytest.mark.usefixtures('unoptimized')


@pytest.mark.parametrize('slope', [0.0, 0.25, 1.0])
def test_he_is_gain_matching_for_the_functions_that_it_is_for(slope):
  assert he_std(300, slope) == pytest.approx(
      gain_matched_std(get_activation(f'leaky_relu(slope={slope})'), 300), rel=1e-9)
  assert he_std(200) == pytest.approx(0.1)


def test_the_gain_keeps_the_variance_at_its_own_q_only():
  tanh = get_activation('tanh')
  for q in (0.25, 1.0, 4.0):
    assert tanh.moments(q).second * gain_matched_std(tanh, 10, q)**2 * 10 == pytest.approx(q)
  assert gain_matched_std(tanh, 10, 4.0) != pytest.approx(gain_matched_std(tanh, 10), rel=0.1)


@pytest.mark.parametrize('name, variance', [
    ('identity', 1), ('tanh', 1), ('erf', math.pi / 4), ('sigmoid', 12.8), ('soft_sign', 1),
    ('elu', 1), ('gelu', 4), ('silu', 4), ('mish', 1 / 0.36), ('hard_silu', 4),
    ('softplus', 4 / (1 + math.log(2)**2)), ('sin', 1)])
def test_kumar_linearizes_at_zero(name, variance):
  found = kumar_std(get_activation(name), 100)
  assert found.case == 'linearized'
  assert 100 * found.std**2 == pytest.approx(variance, rel=1e-8)


def test_kumar_has_its_own_case_for_relu_and_says_where_it_has_none():
  assert kumar_std(get_activation('sigmoid'), 1).std == pytest.approx(3.58, abs=5e-3)
  relu = kumar_std(get_activation('relu'), 8)
  assert (relu.std, relu.case) == (0.5, 'relu')
  for name in ('abs', 'gaussian', 'relu_squared', 'leaky_relu'):
    found = kumar_std(get_activation(name), 8)
    assert found.case == 'second moment'
    assert found.std == gain_matched_std(get_activation(name), 8)


def test_a_kernel_without_inputs_is_refused():
  with pytest.raises(ValueError, match='fan_in must be at least 1, not 0'):
    he_std(0)


def test_the_published_nfnet_gains_are_sampled_numbers():
  exact = {'relu': math.sqrt(2 / (1 - 1 / math.pi)), 'gelu_tanh': 1.70092, 'silu': 1.78719,
           'tanh': 1.59254, 'sigmoid': 4.80131, 'elu': 1.27084, 'softplus': 1.91913, 'selu': 1.0}
  distances = nfnet_distances()
  assert set(distances) == set(exact)
  for name, (published, ours, distance) in distances.items():
    assert ours == pytest.approx(exact[name], abs=6e-6)
    assert distance == pytest.approx(published / ours - 1)
    assert 1e-4 <= distance <= 9e-4
