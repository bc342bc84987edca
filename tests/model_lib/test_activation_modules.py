"""Activations with weights of their own, against float64 NumPy with the same weights."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from model_lib.models.activation_layer import ActivationLayer

_X = np.random.default_rng(7).normal(size=(3, 4, 5, 6))
_COTANGENT = np.random.default_rng(8).normal(size=_X.shape)


def _dense(weights, name, x):
  return x @ weights[f'{name}/kernel'] + weights[f'{name}/bias']


def _batch_norm(weights, name, x, train):
  axes = tuple(range(x.ndim - 1))
  mean, var = ((x.mean(axes), x.var(axes)) if train else
               (weights[f'{name}/mean'], weights[f'{name}/var']))
  return (x - mean) / np.sqrt(var + 1e-5) * weights[f'{name}/scale'] + weights[f'{name}/bias']


def _meta_acon(weights, x, train):
  beta = x.mean((1, 2))
  for i in '12':
    beta = _batch_norm(weights, f'norm_{i}', _dense(weights, f'dense_{i}', beta), train)
  assert weights['dense_1/kernel'].shape == (6, 16)
  scaled = (weights['p1'] - weights['p2']) * x
  return scaled * special.expit(special.expit(beta)[:, None, None] * scaled) + weights['p2'] * x


def _dynamic_relu(weights, x, train, shared=False):
  del train
  hidden = np.maximum(_dense(weights, 'dense_1', x.mean((1, 2))), 0)
  theta = 2 * special.expit(_dense(weights, 'dense_2', hidden)) - 1
  theta = theta.reshape(3, 4, 1 if shared else 6)[:, :, None, None]
  return np.maximum((1 + theta[:, 0]) * x + theta[:, 2] / 2, theta[:, 1] * x + theta[:, 3] / 2)


def _funnel(weights, x, train):
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  conv = np.einsum('bhwcij,ijc->bhwc', windows, weights['kernel'])
  return np.maximum(x, _batch_norm(weights, 'norm', conv, train))


CASES = {
    'meta_acon': _meta_acon, 'dynamic_relu': _dynamic_relu,
    'dynamic_relu(shared=True, reduction=2)':
        lambda weights, x, train: _dynamic_relu(weights, x, train, True),
    'funnel_relu': _funnel,
}


def weights_of(variables):
  """name -> array, of all collections of a module's variables."""
  return {name: np.asarray(leaf) for collection in variables.values()
          for name, leaf in flax.traverse_util.flatten_dict(collection, sep='/').items()}


def drawn_variables(layer):
  """Random float64 variables of a layer for inputs like _X, scales and variances above 0."""
  shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.asarray(_X), train=False))
  rng = np.random.default_rng(0)
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: jnp.asarray(
          (0.5 + rng.uniform(size=leaf.shape)) if path[-1].key in ('var', 'scale')
          else rng.normal(size=leaf.shape)), shapes)


@pytest.mark.parametrize('spec', CASES)
def test_values_and_vector_jacobian_products_are_those_of_the_reference(spec):
  layer, reference = ActivationLayer(spec), CASES[spec]
  with jax.enable_x64(True):
    x = jnp.asarray(_X)
    variables = drawn_variables(layer)
    def both(variables, x):
      found = []
      for train in (False, True):
        y, pull = jax.vjp(lambda x: layer.apply(
            variables, x, train=train, mutable=['batch_stats'])[0], x)
        found.append((y, pull(jnp.asarray(_COTANGENT))[0]))
      return found
    found = jax.tree.map(np.asarray, jax.jit(both)(variables, x))
  weights = weights_of({key: tree['weights'] for key, tree in variables.items()})
  direction = np.random.default_rng(9).normal(size=_X.shape)
  for train, (ours, gradient) in zip((False, True), found):
    np.testing.assert_allclose(ours, reference(weights, _X, train), rtol=1e-6, atol=1e-9)
    step = 1e-6
    change = (reference(weights, _X + step * direction, train)
              - reference(weights, _X - step * direction, train)) / (2 * step)
    assert np.sum(gradient * direction) == pytest.approx(np.sum(change * _COTANGENT), rel=1e-5)
  same = np.allclose(found[0][0], found[1][0])
  assert same is spec.startswith('dynamic_relu')  # the others have a batch norm


def test_the_spatial_ones_look_at_other_positions_and_the_weights_belong_to_the_layer():
  x = jnp.asarray(_X, jnp.float32)
  changed = x.at[:, 3, 4].add(5.0)

  def outputs(key, x, changed):
    found = []
    for spec in CASES:
      layer = ActivationLayer(spec)
      variables = layer.init(key, x, train=False)
      found.append((variables['params'], layer.apply(variables, x, train=False),
                    layer.apply(variables, changed, train=False)))
    return found

  program = jax.jit(outputs, compiler_options={'xla_backend_optimization_level': 0})
  for spec, (params, before, after) in zip(CASES, program(jax.random.key(1), x, changed)):
    near, far = (np.any(before[:, i, j] != after[:, i, j]) for i, j in ((2, 3), (0, 0)))
    assert near and far == (spec != 'funnel_relu')
    assert set(params) == {'weights'}
