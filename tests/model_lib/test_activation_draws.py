"""Activations that draw: range, mean and variance of the draws, keys, inference, training."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from model_lib import models
from model_lib.activations import get_activation
from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer, branches, consumer_gains
from model_lib.training.cohort import ModelSpec
from tests.model_lib.engine import Engine, members

_N = 200_000
_KEY = jax.random.key(3)
STOCHASTIC = ('rrelu', 'rrelu(low=0.2, high=0.6)', 'probact(sigma=0.5)', 'probact(sigma=2.0)',
              'eelu', 'eelu(alpha=0.7, beta=1.3, eps=0.4)', 'rational_d',
              'rational_d(a0=0.3, b1=-0.4, noise=0.4)')


def _draws(spec, x, key=_KEY):
  return np.asarray(get_activation(spec)(jnp.full(_N, x), key=key, train=True), np.float64)


def _per_key(function, keys):
  """The function of one key for all keys; compiling takes longer than anything else here."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(jax.vmap(function), compiler_options=options)(keys)


@pytest.mark.parametrize('low, high', [(1 / 8, 1 / 3), (0.2, 0.6)])
def test_the_slope_of_rrelu_is_uniform(low, high):
  slopes = _draws(f'rrelu(low={low}, high={high})', -2.0) / -2
  assert low <= slopes.min() < low + 1e-4 and high - 1e-4 < slopes.max() <= high + 1e-7
  std = (high - low) / math.sqrt(12)
  assert slopes.mean() == pytest.approx((low + high) / 2, abs=4 * std / math.sqrt(_N))
  assert slopes.var() == pytest.approx(std**2, rel=0.01)
  assert stats.kstest(slopes, stats.uniform(low, high - low).cdf).pvalue > 1e-3
  # The control: a wider interval is told from it.
  assert stats.kstest(slopes, stats.uniform(low, 1.02 * (high - low)).cdf).pvalue < 1e-6
  assert (_draws(f'rrelu(low={low}, high={high})', 2.0) == 2).all()


@pytest.mark.parametrize('sigma', [0.5, 2.0])
@pytest.mark.parametrize('x', [-1.5, 0.75])
def test_probact_adds_normal_noise_to_relu(sigma, x):
  noise = _draws(f'probact(sigma={sigma})', x) - max(x, 0)
  assert noise.mean() == pytest.approx(0, abs=4 * sigma / math.sqrt(_N))
  assert noise.var() == pytest.approx(sigma**2, rel=0.02)
  assert stats.kstest(noise / sigma, stats.norm.cdf).pvalue > 1e-3
  assert (_draws('probact', x) == max(x, 0)).all()  # the first value of sigma is 0


def _clipped_variance(std):
  """Of N(1, std^2) cut to [0, 2], what lies outside moved to the ends."""
  inside = integrate.quad(lambda u: u**2 * stats.norm.pdf(u, scale=std), -1, 1, points=[0])[0]
  return inside + 2 * stats.norm.sf(1, scale=std)


@pytest.mark.parametrize('eps', [1.0, 0.4])
def test_the_slope_of_eelu_is_a_cut_normal_with_a_std_of_its_own_per_array(eps):
  eelu = get_activation(f'eelu(eps={eps})')
  keys = jax.random.split(_KEY, 4000)
  slopes = np.asarray(_per_key(
      lambda key: eelu(jnp.full(100, 3.0), key=key, train=True), keys), np.float64) / 3
  assert slopes.min() >= 0 and slopes.max() <= 2
  expected = integrate.quad(_clipped_variance, 1e-3, eps)[0] / eps
  assert slopes.mean() == pytest.approx(1, abs=0.005)
  assert np.mean((slopes - 1)**2) == pytest.approx(expected, rel=0.05)
  # The standard deviations of arrays are spread over (0, eps), not equal.
  stds = slopes.std(1)
  assert np.quantile(stds, 0.1) < 0.15 * eps and np.quantile(stds, 0.6) > 0.5 * eps
  left = _draws('eelu(alpha=0.7, beta=1.3)', -2.0)
  np.testing.assert_allclose(left, 0.7 * math.expm1(-2.6), rtol=1e-6)


@pytest.mark.parametrize('noise', [0.1, 0.4])
def test_each_coefficient_of_rational_d_has_uniform_noise_of_its_own(noise):
  """At x = 1 with Q = 1 the value is the sum of the noisy numerator."""
  zeros = ', '.join(f'{name}=0' for name in ('a2', 'a3', 'a4', 'a5', 'b2', 'b4'))
  rational = get_activation(f'rational_d(a0=1, a1=2, noise={noise}, {zeros})')
  draws = np.asarray(_per_key(lambda key: rational(
      jnp.asarray([0.0, 1.0, 2.0]), key=key, train=True), jax.random.split(_KEY, 20_000)))
  first, slope = draws[:, 0].astype(np.float64), (draws[:, 1] - draws[:, 0]).astype(np.float64) / 2
  np.testing.assert_allclose(draws[:, 2] - draws[:, 1], 2 * slope, atol=1e-5)  # one draw per array
  for factor in (first, slope):
    assert 1 - noise - 1e-6 <= factor.min() and factor.max() <= 1 + noise + 1e-6
    assert factor.mean() == pytest.approx(1, abs=4 * noise / math.sqrt(3 * 20_000))
    assert factor.var() == pytest.approx(noise**2 / 3, rel=0.04)
  assert abs(np.corrcoef(first, slope)[0, 1]) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize('spec', STOCHASTIC)
def test_a_key_fixes_the_draw_and_inference_has_none(spec):
  activation = get_activation(spec)
  x = jnp.linspace(-3, 3, 64).reshape(8, 8)
  draw = activation(x, key=_KEY, train=True)
  np.testing.assert_array_equal(draw, activation(x, key=_KEY, train=True))
  assert np.any(draw != activation(x, key=jax.random.key(4), train=True))
  plain = activation(x)
  np.testing.assert_array_equal(plain, activation(x, key=_KEY, train=False))
  assert np.any(draw != plain)
  np.testing.assert_allclose(plain, activation.at_first_values()(x), rtol=1e-6)
  narrow = activation(x.astype(jnp.bfloat16), key=_KEY, train=True)
  assert narrow.dtype == jnp.bfloat16
  with pytest.raises(TypeError, match='draws random numbers in training: give it key='):
    activation(x, train=True)


def test_inference_forms_in_numbers():
  x = np.array([-2.0, -0.5, 0.0, 1.5])
  positive = np.maximum(x, 0)
  for spec, expected in (
      ('rrelu', np.where(x < 0, 11 / 48 * x, x)), ('probact(sigma=2.0)', positive),
      ('eelu', np.where(x < 0, 0.25 * np.expm1(x), x)),
      ('eelu(alpha=0.7, beta=1.3)', np.where(x < 0, 0.7 * np.expm1(1.3 * x), x))):
    np.testing.assert_allclose(get_activation(spec)(jnp.asarray(x)), expected, rtol=1e-6)


@pytest.mark.parametrize('spec', STOCHASTIC)
def test_the_gradient_of_a_draw_is_that_of_the_drawn_function(spec):
  activation = get_activation(spec)
  with jax.enable_x64(True):
    x = jnp.asarray([-2.0, -0.7, 0.4, 1.9])
    step = 1e-6
    def f(x):
      return activation(x, key=_KEY, train=True)
    slopes = jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])(x)
    differences = (f(x + step) - f(x - step)) / (2 * step)
  np.testing.assert_allclose(slopes, differences, rtol=1e-7)
  if spec.startswith('probact'):
    with jax.enable_x64(True):
      in_sigma = jax.jacobian(lambda s: activation(x, sigma=s, key=_KEY, train=True))(0.3)
      noise = (activation(x, sigma=1.0, key=_KEY, train=True) - jnp.maximum(x, 0))
    np.testing.assert_allclose(in_sigma, noise, rtol=1e-12)


def test_bad_settings_and_calls_are_one_line():
  for spec, words in (('rrelu(low=x)', 'low must be a finite number'),
                      ('rrelu(low=-1)', 'low must be at least 0'),
                      ('eelu(eps=-0.1)', 'eps must be at least 0'),
                      ('switch(relu, rrelu)', 'is stochastic and cannot be switched')):
    with pytest.raises(UserError, match=words) as caught:
      branches(spec)
    assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match='low must be at most high'):
    get_activation('rrelu(low=0.9)')(jnp.ones(2))
  layer = ActivationLayer('rrelu')
  with pytest.raises(UserError, match='train=True or train=False'):
    layer.apply({}, jnp.ones((2, 3)))
  with pytest.raises(UserError, match="rngs={'noise': key}"):
    layer.apply({}, jnp.ones((2, 3)), train=True)


class _Pair(nn.Module):
  @nn.compact
  def __call__(self, x):
    return tuple(ActivationLayer('rrelu', name=name)(x, train=True) for name in 'ab')


def test_layers_of_a_model_draw_apart_and_inference_is_one_function():
  model = models.build('mlp', widths=(16, 16), activation='rrelu')
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
  variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))
  def apply(seed, train):
    return np.asarray(model.apply(variables, x, train=train,
                                  rngs={'noise': jax.random.key(seed)} if train else {}))
  np.testing.assert_array_equal(apply(1, True), apply(1, True))
  assert np.any(apply(1, True) != apply(2, True))
  assert np.any(apply(1, True) != apply(1, False))
  gain, = consumer_gains('rrelu')
  assert gain == pytest.approx((0.5 + 0.5 * (11 / 48)**2)**-0.5, rel=1e-9)
  # Two layers in one call get keys of their own.
  a, b = _Pair().apply({}, -jnp.ones((4, 4)), rngs={'noise': jax.random.key(0)})
  assert np.all(a != b)


def test_a_population_trains_with_draws_that_the_step_fixes(tmp_path):
  """Calls of 5 and of 10 steps end with the same bits: the draws belong to the step.

  That another step or key gives other bits is in test_draws_resume.
  """
  def train(activation, k):
    model = ModelSpec('mlp', {'widths': (8,), 'activation': activation})
    engine = Engine(model, chunk=2, k=k, steps=20, streams=2, evaluates=False)
    return engine.train(members(2), tmp_path)
  short, long = train('rrelu', 5), train('rrelu', 10)
  for member in (0, 1):
    assert short.leaves(member) == long.leaves(member)
  losses = long.losses()
  assert np.all(np.isfinite(losses)) and np.all(losses[:, -5:].mean(1) < losses[:, :5].mean(1))
