"""What is known about single activations: ASH, CRReLU, gated linear units, normalized ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from model_lib.activations import get_activation
from model_lib.activations.host import evaluate


def _normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('z', [1.96, 0.0, -1.0])
def test_ash_closes_the_gates_below_the_quantile_of_z(z):
  x = jnp.asarray(3 * _normal((1, 400_000)) + 5)
  gates = get_activation('ash')(x, z=z, alpha=4.0) / x
  closed = float(jnp.mean(gates < 0.5))
  assert closed == pytest.approx(stats.norm.cdf(z), abs=2e-3)


def test_ash_with_threshold_zero_is_silu():
  x = _normal((3, 50))
  x = jnp.asarray(np.concatenate([x, -x], axis=1))  # mean exactly 0
  ash = get_activation('ash(alpha=0.5)')
  np.testing.assert_allclose(ash(x), jax.nn.silu(x), atol=1e-6)
  assert float(jnp.max(jnp.abs(ash(x + 1) - jax.nn.silu(x + 1)))) > 0.05


@pytest.mark.parametrize('axes, over', [
    ('sample', (1, 2, 3)), ('last', (3,)), ('channel', (1, 2)), ('batch', (0, 1, 2, 3))])
def test_ash_takes_its_statistics_over_the_axes_that_it_says(axes, over):
  x = _normal((2, 3, 4, 5)) * np.arange(1, 6, dtype=np.float32)
  x += np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1)
  mean = x.mean(over, keepdims=True)
  std = np.sqrt(x.var(over, keepdims=True) + 1e-5)
  expected = x / (1 + np.exp(-2 * 1.5 * (x - mean - 0.7 * std)))
  ash = get_activation(f'ash(z=0.7, alpha=1.5, axes={axes})')
  np.testing.assert_allclose(evaluate(ash, x), expected, rtol=2e-5, atol=1e-6)
  others = {'sample', 'last', 'channel', 'batch'} - {axes}
  for other in others:
    assert np.max(np.abs(
        evaluate(get_activation(f'ash(z=0.7, alpha=1.5, axes={other})'), x) - expected)) > 1e-2


def test_ash_refuses_an_input_without_the_axes():
  with pytest.raises(ValueError, match='no axis to average over'):
    get_activation('ash(axes=channel)')(jnp.ones((4, 3)))
  with pytest.raises(ValueError, match='no axis to average over'):
    get_activation('ash')(jnp.ones(4))


def test_ash_is_causal_over_tokens_with_axes_last_only():
  def leaks(spec):
    x = _normal((1, 6, 8))
    changed = x.copy()
    changed[0, 4] = 10.0
    ash = get_activation(spec)
    return not np.array_equal(evaluate(ash, x)[:, :4], evaluate(ash, changed)[:, :4])
  assert not leaks('ash(axes=last)')
  assert leaks('ash') and leaks('ash(axes=channel)') and leaks('ash(axes=batch)')


def test_the_gradient_of_ash_is_that_of_its_formula():
  x = _normal((1, 7)).astype(np.float64)
  z, alpha, eps = 0.3, 0.8, 1e-5
  n = x.size
  full, stopped = (
      evaluate(jax.grad(lambda x, spec=spec: get_activation(spec)(x, z=z, alpha=alpha).sum()), x)
      for spec in ('ash', 'ash(stop_gradient=True)'))
  std = np.sqrt(x.var() + eps)
  gate = 1 / (1 + np.exp(-2 * alpha * (x - x.mean() - z * std)))
  direct = gate + 2 * alpha * x * gate * (1 - gate)
  through = -2 * alpha * np.sum(x * gate * (1 - gate)) * (1 / n + z * (x - x.mean()) / (n * std))
  np.testing.assert_allclose(stopped, direct, rtol=1e-12)
  np.testing.assert_allclose(full, direct + through, rtol=1e-12)


@pytest.mark.parametrize('axes', ['sample', 'last', 'channel', 'batch'])
def test_ash_has_a_finite_gradient_on_a_constant_input(axes):
  ash = get_activation(f'ash(z=1.96, axes={axes})')
  grad = evaluate(jax.grad(lambda x: jnp.sum(ash(x)**2)), np.ones((2, 3, 3, 4), np.float32))
  assert np.all(np.isfinite(grad))


def test_crrelu_adds_the_corrector_and_differentiates_in_epsilon():
  crrelu = get_activation('crrelu')
  x = jnp.linspace(-4, 4, 41)
  corrector = x * jnp.exp(-x**2 / 2)
  np.testing.assert_allclose(crrelu(x, epsilon=-0.3), jax.nn.relu(x) - 0.3 * corrector, atol=1e-6)
  in_epsilon = jax.vmap(jax.grad(lambda e, x: crrelu(x, epsilon=e)), (None, 0))(0.01, x)
  np.testing.assert_allclose(in_epsilon, corrector, atol=1e-6)
  assert float(jnp.max(jnp.abs(corrector))) <= math.exp(-0.5) + 1e-6


@pytest.mark.parametrize('epsilon, increasing', [
    (-1.01, False), (-0.99, True), (2.23, True), (2.25, False)])
def test_crrelu_is_increasing_on_the_right_within_the_documented_range(epsilon, increasing):
  crrelu = get_activation('crrelu')
  x = np.linspace(0.001, 6, 6000)
  slopes = evaluate(jax.vmap(jax.grad(lambda x: crrelu(x, epsilon=epsilon))), x)
  assert bool(np.all(slopes > 0)) is increasing


@pytest.mark.parametrize('epsilon, change', [(0.01, 0.00352), (-0.01, -0.00355)])
def test_a_positive_epsilon_raises_the_entropy_of_the_positive_branch(epsilon, change):
  crrelu = get_activation('crrelu')
  u = np.linspace(0, 12, 120_001)[1:]
  slopes = evaluate(jax.vmap(jax.grad(lambda x: crrelu(x, epsilon=epsilon))), u)
  density = np.sqrt(2 / np.pi) * np.exp(-u**2 / 2)
  entropy_change = np.sum(np.log(slopes) * density) * 1e-4  # H(f(U)) - H(U) = E log f'
  assert entropy_change == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize('gated, gate', [
    ('glu', jax.nn.sigmoid), ('bilinear', lambda x: x), ('reglu', jax.nn.relu),
    ('geglu', lambda x: jax.nn.gelu(x, approximate=False)), ('swiglu', jax.nn.silu)])
def test_gated_units_multiply_the_activated_gate_with_the_value(gated, gate):
  a, b = jnp.asarray(_normal((2, 5))), jnp.asarray(_normal((2, 5), 1))
  activation = get_activation(gated)
  np.testing.assert_allclose(activation(a, b), gate(a) * b, rtol=1e-6)
  (same,) = activation.duplicates
  np.testing.assert_allclose(get_activation(same)(a, b), activation(a, b), rtol=1e-6)
  assert get_activation(same).duplicates == (gated,)
  assert np.max(np.abs(activation(b, a) - activation(a, b))) > 0.1 or gated == 'bilinear'


def test_jax_glu_has_the_value_first():
  a, b = jnp.asarray(_normal((2, 5))), jnp.asarray(_normal((2, 5), 1))
  np.testing.assert_allclose(
      get_activation('glu')(a, b), jax.nn.glu(jnp.concatenate([b, a], -1)), rtol=1e-6)


def test_any_pointwise_activation_can_be_a_gate_and_keeps_its_parameters():
  a, b = jnp.asarray(_normal((2, 5))), jnp.asarray(_normal((2, 5), 1))
  np.testing.assert_allclose(
      get_activation('glu_of(mish)')(a, b), get_activation('mish')(a) * b, rtol=1e-6)
  unit = get_activation('glu_of(swish_beta(beta=2, per=channel))')
  assert unit.init_parameters(a.shape)['beta'].tolist() == [2.0] * 5
  np.testing.assert_allclose(unit(a, b, beta=jnp.full(5, 3.0)), a * jax.nn.sigmoid(3 * a) * b,
                             rtol=1e-5)
  assert unit.moments() == get_activation('swish_beta(beta=2)').moments()


@pytest.mark.parametrize('name', ['selu', 'serlu', 'star_relu'])
def test_self_normalizing_entries_keep_mean_zero_and_variance_one(name):
  moments = get_activation(name).moments()
  assert moments.mean == pytest.approx(0, abs=1e-4)
  assert moments.second == pytest.approx(1, abs=2e-4)


def test_xielu_joins_with_slope_beta_and_snake_has_its_limit():
  xielu = get_activation('xielu')
  slopes = evaluate(lambda x: jax.jvp(xielu, (x,), (jnp.ones_like(x),))[1], np.array([-1e-6, 1e-6]))
  np.testing.assert_allclose(slopes, 0.5, atol=1e-4)
  snake = get_activation('snake')
  x = np.linspace(-3, 3, 13)
  np.testing.assert_allclose(
      evaluate(lambda x: snake(x, a=2.0), x), x + np.sin(2 * x)**2 / 2, atol=1e-12)
  np.testing.assert_allclose(evaluate(lambda x: snake(x, a=0.0), x), x)
  assert np.isfinite(evaluate(jax.grad(lambda a: snake(1.0, a=a)), np.float64(0.0)))
