"""Weight norms: each against float64, its gradient, its state, and in the linear layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models.linear import Linear
from model_lib.normalization import weight as weights
from tests.model_lib import model_cases as cases
from tests.model_lib.norm_cases import compiled

pytestmark = pytest.mark.usefixtures('unoptimized')

SHAPES = [(6, 4), (3, 3, 2, 5)]


def _flat(w):
  return np.asarray(w, np.float64).reshape(-1, w.shape[-1])


def _random(shape, seed=0):
  return np.random.default_rng(seed).normal(0.3, 1.0, shape)


def _references(w, g):
  """Every norm of the matrix [fan_in, features] in float64."""
  m = _flat(w)
  centred = m - m.mean(0)
  n = len(m)
  return {
    'weight_norm': g * m / np.sqrt((m ** 2).sum(0)),
    'centred_weight_norm': g * centred / np.sqrt((centred ** 2).sum(0)),
    'timm': centred / np.sqrt(m.var(0) + 1e-6),
    'original': centred / (m.std(0, ddof=1) + 1e-5),
    'scaled_ws': g * centred / np.sqrt(np.maximum(n * m.var(0), 1e-4)),
  }


def _functions(w, g):
  return {
    'weight_norm': weights.weight_norm(w, g),
    'centred_weight_norm': weights.centred_weight_norm(w, g),
    'timm': weights.standardize_weight(w),
    'original': weights.standardize_weight(w, 1e-5, 'original'),
    'scaled_ws': weights.scaled_standardize(w, g),
  }


@pytest.mark.parametrize('shape', SHAPES)
def test_functions_against_float64(shape) -> None:
  w, g = _random(shape), _random(shape[-1:], 1)
  found = jax.jit(_functions)(jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32))
  for name, expected in _references(w, g).items():
    np.testing.assert_allclose(_flat(found[name]), expected, rtol=2e-5, atol=1e-6, err_msg=name)
  # The conventions of weight standardization are not each other.
  assert np.abs(_flat(found['timm']) - _flat(found['original'])).max() > 1e-2


def test_gradients_against_finite_differences() -> None:
  """In float64, so that the differences resolve; along a random direction."""
  w, g, c, d = _random((6, 4)), _random((4,), 1), _random((6, 4), 2), _random((6, 4), 3)
  with jax.enable_x64(True):
    grads = compiled(jax.jacrev(lambda w: {
      name: jnp.sum(c * y) for name, y in _functions(w, jnp.asarray(g)).items()}))(jnp.asarray(w))
  h = 1e-6
  above, below = _references(w + h * d, g), _references(w - h * d, g)
  for name, grad in grads.items():
    expected = (c * (above[name] - below[name])).sum() / (2 * h)
    np.testing.assert_allclose((np.asarray(grad) * d).sum(), expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('shape', SHAPES)
def test_power_iteration_finds_the_largest_singular_value(shape) -> None:
  w = jnp.asarray(_random(shape), jnp.float32)

  @jax.jit
  def run(w, u):
    u, v = jax.lax.fori_loop(0, 200, lambda _, s: weights.power_step(w, s[0]),
                             weights.power_step(w, u))
    return weights.singular_value(w, u, v), weights.spectral(w, u, v)

  sigma, normed = run(w, jnp.ones(shape[-1]) / shape[-1] ** 0.5)
  np.testing.assert_allclose(sigma, np.linalg.svd(_flat(w))[1][0], rtol=1e-5)
  np.testing.assert_allclose(np.linalg.svd(_flat(normed))[1][0], 1, rtol=1e-5)


def test_the_gradient_of_spectral_holds_u_and_v() -> None:
  """backward='surrogate': exact with u and v frozen, not that of the normalized matrix."""
  assert weights.get_weight_norm('spectral').backward == 'surrogate'
  w, c, d = _random((6, 4)), _random((6, 4), 2), _random((6, 4), 3)
  u = np.ones(4) / 2  # one step from here is far from the singular vectors
  with jax.enable_x64(True):
    def loss(w):
      held = weights.power_step(w, jnp.asarray(u))
      return jnp.sum(c * weights.spectral(w, *held))
    grad = jax.jit(jax.grad(loss))(jnp.asarray(w))
    u1, v1 = (np.asarray(s) for s in weights.power_step(jnp.asarray(w), jnp.asarray(u)))

  def frozen(w):
    return (c * w / (v1 @ w @ u1)).sum()

  def moving(w):
    v = w @ u / np.linalg.norm(w @ u)
    new = v @ w / np.linalg.norm(v @ w)
    return (c * w / (v @ w @ new)).sum()

  h, ours = 1e-6, (np.asarray(grad) * d).sum()
  held = (frozen(w + h * d) - frozen(w - h * d)) / (2 * h)
  plain = (moving(w + h * d) - moving(w - h * d)) / (2 * h)
  np.testing.assert_allclose(ours, held, rtol=1e-6)
  assert abs(ours - plain) > 1e-3


@pytest.mark.parametrize('name', ['spectral', 'sigma_reparam'])
def test_the_state_moves_in_training_only(name) -> None:
  layer, x = Linear(4, 'hidden', weight=name), jnp.ones((2, 6))
  variables = compiled(lambda key: layer.init(key, x))(jax.random.key(0))
  apply = jax.jit(lambda v, train: layer.apply(v, x, train, mutable=['batch_stats']),
                  static_argnums=1)
  y, state = apply(variables, True)
  assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(
    jax.tree.leaves(state['batch_stats']), jax.tree.leaves(variables['batch_stats']), strict=True))
  moved = {**variables, **state}
  evaluated, same = apply(moved, False)
  jax.tree.map(np.testing.assert_array_equal, same['batch_stats'], state['batch_stats'])
  np.testing.assert_allclose(evaluated, y, rtol=1e-6)  # inference has the last step's kernel
  for _ in range(100):
    _, state = apply(moved, True)
    moved = {**variables, **state}
  sigma = np.linalg.svd(np.asarray(variables['params']['kernel']))[1][0]
  np.testing.assert_allclose(apply(moved, False)[0],
                             x @ (variables['params']['kernel'] / sigma), rtol=1e-4, atol=1e-5)
  assert ('gamma' in variables['params']) == (name == 'sigma_reparam')


def test_the_start_of_the_layers() -> None:
  """weight_norm starts as the plain layer; orthogonal as gain times an orthogonal matrix."""
  x = jnp.asarray(_random((3, 6)), jnp.float32)
  layers = {'none': (), 'weight_norm': (), 'centred_weight_norm': (), 'scaled_ws': (),
            'orthogonal': ('relu',)}
  made = compiled(lambda key: {
    name: Linear(4, 'hidden', *consumes, weight=name).init_with_output(key, x)
    for name, consumes in layers.items()})(jax.random.key(0))
  plain, variables = made['none']
  for name, same in (('weight_norm', True), ('centred_weight_norm', False), ('scaled_ws', False)):
    assert np.allclose(made[name][0], plain, rtol=1e-5, atol=1e-6) == same, name
  kernel = made['orthogonal'][1]['params']['kernel']
  np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(4), atol=1e-5)
  y = Linear(4, 'hidden', weight='cosine').apply(variables, x)
  m, rows = _flat(variables['params']['kernel']), np.asarray(x, np.float64)
  expected = rows @ m / np.linalg.norm(m, axis=0) / np.linalg.norm(rows, axis=1, keepdims=True)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(y).max() <= 1 + 1e-6


@pytest.mark.parametrize('spec, part', [
  ('spectrl', "nearest: 'spectral'"), ('scaled_ws(ep=1)', "nearest: 'eps'"),
  ('scaled_ws(eps=-1)', '>= 0'), ('spectral(1)', 'by name'), ('spectral(eps=1)', 'takes none'),
  ('weight_standardization(convention=torch)', 'timm or original')])
def test_a_wrong_weight_norm_is_one_line(spec, part) -> None:
  with pytest.raises(UserError) as info:
    weights.get_weight_norm(spec)
  assert part in str(info.value) and '\n' not in str(info.value)


def test_every_weight_norm_in_a_model() -> None:
  """Shapes only; the canonical string reads back."""
  for name in weights.weight_norms():
    entry = weights.get_weight_norm(name)
    assert weights.get_weight_norm(entry.spec) == entry
    model = models.build('gpt', weight=name, **cases.SIZES['gpt'])
    shapes = jax.eval_shape(lambda model=model: model.init(
      jax.random.key(0), cases.inputs('gpt'), train=True))
    assert ('batch_stats' in shapes) == bool(entry.state)
  original = weights.get_weight_norm('weight_standardization(convention=original)')
  assert dict(original.options) == {'convention': 'original', 'eps': 1e-5}
