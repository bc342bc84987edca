"""Activations of which an entry depends on others: whole tensors against float64 NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from model_lib import models
from model_lib.activations import get_activation
from model_lib.activations.host import evaluate
from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer, branches, consumer_gains
from model_lib.training.cohort import ModelSpec
from tests.model_lib.engine import Engine, members

_X = np.random.default_rng(5).normal(size=(2, 3, 4)) * 1.3 + 0.2
_COTANGENT = np.random.default_rng(6).normal(size=(2, 3, 8))
_OVER = {'sample': (1, 2), 'last': (2,), 'channel': (1,), 'batch': (0, 1, 2)}


def _standardized(x, axes, eps=1e-5):
  mean = x.mean(_OVER[axes], keepdims=True)
  return mean, np.sqrt(((x - mean)**2).mean(_OVER[axes], keepdims=True) + eps)


def _ash(x, z, alpha=1.0, axes='sample'):
  mean, std = _standardized(x, axes)
  return x * special.expit(2 * alpha * (x - mean - z * std))


def _ash_step(x, z, axes='sample'):
  mean, std = _standardized(x, axes)
  return x * (x >= mean + z * std)


def _kwta(x, ratio, axes='sample'):
  out = np.zeros_like(x)
  for row in np.ndindex(x.shape[:1] if axes == 'sample' else x.shape[:-1]):
    flat = x[row].ravel()
    winners = np.argsort(-flat)[:math.ceil(round(ratio * flat.size, 9))]
    kept = np.zeros_like(flat)
    kept[winners] = flat[winners]
    out[row] = kept.reshape(x[row].shape)
  return out


def _simplex(x, power, axis):
  """max(scale x - t, 0)^power with t by root finding."""
  def row(v):
    v = v / power
    t = optimize.brentq(lambda t: (np.maximum(v - t, 0)**power).sum() - 1, v.max() - 2, v.max(),
                        xtol=1e-15, rtol=1e-14)
    return np.maximum(v - t, 0)**power
  return np.apply_along_axis(row, axis, x)


def _polynorm(x, w, bias, eps=1e-6):
  terms = [x**k / np.sqrt((x**(2 * k)).mean(-1, keepdims=True) + eps) for k in (1, 2, 3)]
  return sum(a * term for a, term in zip(w, terms)) + bias


_THIRDS = (1 / 3, 1 / 3, 1 / 3)
CASES = {
    'ash(z=0.7, alpha=1.5, axes=last)': lambda x: _ash(x, 0.7, 1.5, 'last'),
    'f_ash': lambda x: _ash(x, 0.0),
    'f_ash(k=10)': lambda x: _ash(x, 1.2815515655446004),
    'f_ash(k=90, alpha=2.0, axes=batch)': lambda x: _ash(x, -1.2815515655446004, 2.0, 'batch'),
    'ash_step': lambda x: _ash_step(x, 0.0),
    'ash_step(z=0.5, axes=channel)': lambda x: _ash_step(x, 0.5, 'channel'),
    'kwta': lambda x: _kwta(x, 0.2),
    'kwta(ratio=0.5)': lambda x: _kwta(x, 0.5),
    'kwta(ratio=0.5, axes=last)': lambda x: _kwta(x, 0.5, 'last'),
    'crelu': lambda x: np.concatenate([x * (x > 0), -x * (x < 0)], -1),
    'ncrelu': lambda x: np.concatenate([x * (x > 0), x * (x < 0)], -1),
    'maxout': lambda x: np.maximum(x[..., :2], x[..., 2:]),
    'maxout(groups=4)': lambda x: x.max(-1, keepdims=True),
    'softmax': lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    'softmax(axis=positions)': lambda x: np.exp(x) / np.exp(x).sum(-2, keepdims=True),
    'sparsemax': lambda x: _simplex(x, 1, -1),
    'sparsemax(axis=positions)': lambda x: _simplex(x, 1, -2),
    'entmax15': lambda x: _simplex(x, 2, -1),
    'entmax15(axis=positions)': lambda x: _simplex(x, 2, -2),
    'polynorm': lambda x: _polynorm(x, _THIRDS, 0.0),
    'polynorm(w1=0.2, w2=-0.5, w3=0.9, bias=0.1)': lambda x: _polynorm(x, (0.2, -0.5, 0.9), 0.1),
}


@functools.cache
def _values_and_gradients():
  """Per case f(_X) and the gradient of sum(cotangent f(x)), in float64, by one program."""
  def both(x, cotangent):
    found = []
    for spec in CASES:
      y, pull = jax.vjp(get_activation(spec), x)
      found.append((y, pull(cotangent[..., :y.shape[-1]])[0]))
    return found
  with jax.enable_x64(True):
    return dict(zip(CASES, jax.tree.map(np.asarray, jax.jit(both)(_X, _COTANGENT))))


@pytest.mark.parametrize('spec', CASES)
def test_values_and_vector_jacobian_products_are_those_of_the_reference(spec):
  reference = CASES[spec]
  ours, gradient = _values_and_gradients()[spec]
  expected = reference(_X)
  np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
  assert ours.shape[-1] == get_activation(spec).width_factor * _X.shape[-1]
  if not spec.startswith('ash_step'):  # it holds its statistics fixed; below
    step, differences = 1e-6, np.empty_like(_X)
    for i in np.ndindex(_X.shape):
      move = np.zeros_like(_X)
      move[i] = step
      change = (reference(_X + move) - reference(_X - move)) / (2 * step)
      differences[i] = np.sum(change * _COTANGENT[..., :change.shape[-1]])
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-7)
  # The control: another case of the same function is told from it.
  for other in CASES:
    if other != spec and other.split('(')[0] == spec.split('(')[0]:
      theirs = CASES[other](_X)
      assert theirs.shape != expected.shape or np.max(np.abs(theirs - expected)) > 1e-2


def test_ash_step_holds_its_statistics_fixed():
  for spec in ('ash_step', 'ash_step(z=0.5, axes=channel)'):
    ours, gradient = _values_and_gradients()[spec]
    np.testing.assert_array_equal(gradient, np.where(ours != 0, _COTANGENT[..., :4], 0))


def test_simplex_maps_stay_finite_and_on_the_simplex_for_large_inputs():
  x = jnp.asarray([[1e4, -1e4, 9999.9, 0.0], [-1e4, -1e4, -1e4, -1e4], [0.0, 0.0, 1.0, 1.0]])
  names = ('softmax', 'sparsemax', 'entmax15')

  def derivatives(x, cotangent, v):
    """Per map its values, a vector-Jacobian product, and the Hessian of the sum of its squares."""
    found = []
    for name in names:
      f = get_activation(name)
      p, pull = jax.vjp(f, x)
      found.append((p, pull(cotangent)[0], jax.jacfwd(jax.jacrev(lambda v: jnp.sum(f(v)**2)))(v)))
    return found

  program = jax.jit(derivatives, compiler_options={'xla_backend_optimization_level': 0})
  found = program(x, jnp.asarray(_COTANGENT[0, :, :4], jnp.float32),
                  jnp.asarray([[0.1, 3.0, 2.9, -5]]))
  for p, gradient, second in found:
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    assert np.all(p >= 0)
    assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(second))
  dense, sparse = (found[names.index(name)][0] for name in ('softmax', 'sparsemax'))
  assert float(sparse[0, 3]) == 0 and float(dense[2, 0]) > 0


def test_ties_of_kwta_all_stay():
  np.testing.assert_array_equal(
      get_activation('kwta(ratio=0.25)')(jnp.asarray([[2.0, 2.0, 1.0, 0.0]])), [[2, 2, 0, 0]])


@pytest.mark.parametrize('spec, position', [
    ('ash(axes=last)', True), ('ash', False), ('f_ash', False), ('ash_step(axes=last)', True),
    ('kwta', False), ('kwta(axes=last)', True), ('softmax', True),
    ('softmax(axis=positions)', False), ('entmax15(axis=positions)', False), ('polynorm', True),
    ('maxout', True), ('crelu', True)])
def test_the_tag_causal_says_whether_another_position_matters(spec, position):
  activation = get_activation(spec)
  changed = _X.copy()
  changed[:, 2] += 3.0
  same = np.array_equal(evaluate(activation, _X)[:, :2], evaluate(activation, changed)[:, :2])
  assert activation.causal is same is position


@pytest.mark.parametrize('spec', [
    'kwta(ratio=0.3)', 'crelu', 'ncrelu', 'maxout', 'maxout(groups=5)', 'ash_step(z=0.4)',
    'f_ash(k=20)', 'polynorm', 'rrelu'])
def test_the_gain_is_that_of_a_large_normal_tensor(spec):
  x = np.random.default_rng(2).normal(size=(20, 60_000))
  y = evaluate(get_activation(spec), x)
  moments = get_activation(spec).moments()
  assert np.mean(y**2) == pytest.approx(moments.second, rel=0.01)
  if spec != 'ncrelu':  # the halves have opposite means
    assert np.mean(y) == pytest.approx(moments.mean, rel=0.01)
  assert consumer_gains(spec)[0] == pytest.approx(np.mean(y**2)**-0.5, rel=0.01)


def test_gated_tanh_unit_and_its_moments():
  a, b = (np.random.default_rng(i).normal(size=(2, 400_000)) for i in (0, 1))
  y = np.asarray(get_activation('gtu')(jnp.asarray(a), jnp.asarray(b)))
  np.testing.assert_allclose(y, special.expit(a) * np.tanh(b), rtol=1e-5, atol=1e-7)
  assert np.mean(y**2) == pytest.approx(get_activation('gtu').moments().second, rel=0.01)


@pytest.mark.parametrize('spec, words', [
    ('kwta(ratio=0)', 'ratio must be above 0 and below 1'),
    ('maxout(groups=1)', 'groups must be at least 2'),
    ('maxout(groups=2.5)', 'groups must be a whole number'),
    ('f_ash(k=-3)', 'k must be above 0 and below 100, not -3'),
    ('ash(k=-3)', "no setting 'k'"),
    ('softmax(axis=rows)', 'axis must be one of last, positions'),
    ('switch(relu, kwta)', 'is statistics and cannot be switched'),
    ('switch(relu, maxout)', 'is resizing and cannot be switched'),
    ('switch(relu, polynorm)', 'has parameters and cannot be switched'),
    ('glu_of(rrelu)', 'is stochastic'),
])
def test_a_wrong_setting_or_place_is_one_line(spec, words):
  with pytest.raises(UserError, match=words) as caught:
    branches(spec)
  assert '\n' not in str(caught.value)


def test_inputs_that_do_not_fit_and_gains_that_do_not_exist_are_one_line():
  for spec, shape, words in (('maxout(groups=3)', (2, 4), 'channels in a multiple of 3'),
                             ('kwta', (4,), 'no axis to compare over'),
                             ('softmax(axis=positions)', (2, 4), 'needs an input')):
    with pytest.raises(UserError, match=words):
      get_activation(spec)(jnp.ones(shape))
  for spec in ('softmax', 'meta_acon', 'funnel_relu', 'dynamic_relu'):
    with pytest.raises(UserError, match='init_gain=False'):
      consumer_gains(spec)
    assert consumer_gains(spec, False) == (pytest.approx(2**0.5),)
  with pytest.raises(UserError, match='known for variance 1'):
    get_activation('maxout').moments(2.0)
  with pytest.raises(TypeError, match='weights of its own'):
    get_activation('meta_acon')(jnp.ones((2, 3)))
  with pytest.raises(UserError, match='use it in a cnn'):
    ActivationLayer('funnel_relu').init(jax.random.key(0), jnp.ones((2, 4)), train=False)
  with pytest.raises(UserError, match='lets a position see later ones'):
    models.build('gpt', activation='kwta')
  models.build('gpt', activation='kwta(axes=last)')


# ncrelu has the shape of crelu.
@pytest.mark.parametrize('spec, factor', [
    ('crelu', 2), pytest.param('ncrelu', 2, marks=pytest.mark.slow), ('maxout(groups=4)', 1 / 4)])
def test_a_resizing_activation_changes_the_fan_in_of_what_follows(spec, factor):
  model = models.build('mlp', widths=(64, 32), activation=spec)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(256, 50)), jnp.float32)
  variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))
  kernel = np.asarray(variables['params']['hidden_1']['kernel'])
  assert kernel.shape == (64 * factor, 32)
  expected = consumer_gains(spec)[0] / math.sqrt(64 * factor)
  assert kernel.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * kernel.size))


@pytest.mark.slow
@pytest.mark.parametrize('spec', ['kwta(ratio=0.5)', 'meta_acon'])
def test_a_population_trains_with_input_conditioned_activations(spec, tmp_path):
  arguments = {'widths': (8,), 'activation': spec, 'init_gain': False}
  engine = Engine(ModelSpec('mlp', arguments), chunk=2, steps=20, streams=2, evaluates=False)
  losses = engine.train(members(2), tmp_path).losses()
  assert np.all(np.isfinite(losses))
  assert np.all(losses[:, -5:].mean(1) < losses[:, :5].mean(1))
