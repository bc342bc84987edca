"""The predicted growth of the deep MLP's stream against wide networks at the start."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.activations import get_activation
from model_lib.analysis.stream_growth import homogeneous_growth, stream_variances
from model_lib.models.hyper import set_hp

WIDTH, DEPTH, BASE = 256, 32, 4
# Spec of f, and the factor c.
HOMOGENEOUS = {'relu': 2 ** 0.5, 'abs': 1.0}


@functools.cache
def _measured(activation: str, c: float, a: float, alpha: float = 0.5, **kwargs) -> np.ndarray:
  """Mean square of x_0 ... x_L over features, 64 inputs and three networks."""
  model = models.build('deep_mlp', width=WIDTH, depth=DEPTH, activation=activation, **kwargs)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)
  s = a * (DEPTH / BASE) ** -alpha

  @jax.jit
  def squares(key):
    variables = model.init(key, x, train=False)
    variables = {**variables, 'hp': set_hp(variables['hp'], branch_scale=s, activation_scale=c)}
    _, taps = model.apply(variables, x, train=False, mutable=['intermediates'])
    return jnp.mean(taps['intermediates']['stack']['stream'][0] ** 2, (1, 2))

  return np.mean([squares(key) for key in jax.random.split(jax.random.key(1), 3)], 0)


@pytest.mark.parametrize('activation', HOMOGENEOUS)
@pytest.mark.parametrize('a', [1.0, 0.75])
def test_homogeneous(activation, a) -> None:
  """Within 15 % rms; a network without G, or of another exponent, is elsewhere."""
  c = HOMOGENEOUS[activation]
  v = c ** 2 * get_activation(activation).moments().variance
  predicted = homogeneous_growth(v, DEPTH, a, BASE) ** 0.5

  def growth(**kwargs):
    found = _measured(activation, c, a, **kwargs)
    return (found[-1] / found[0]) ** 0.5

  assert growth() == pytest.approx(predicted, rel=0.15)
  with_mean = growth(mean_subtraction=False)
  assert abs(with_mean / predicted - 1) > 0.15
  assert abs(growth(alpha=1.0) / predicted - 1) > 0.15
  assert growth(alpha=1.0) == pytest.approx(
    homogeneous_growth(v, DEPTH, a, BASE, alpha=1.0) ** 0.5, rel=0.15)


@pytest.mark.parametrize(('activation', 'prenorm'), [
  ('tanh', False), ('gelu', False), ('tanh', True)])
def test_every_block(activation, prenorm) -> None:
  """The recursion, which a homogeneous formula does not replace where f saturates."""
  s = (DEPTH / BASE) ** -0.5
  found = _measured(activation, 1.5, 1.0, prenorm='rms' if prenorm else 'none')
  predicted = stream_variances(activation, DEPTH, s, 1.5, found[0], prenorm)
  np.testing.assert_allclose(found, predicted, rtol=0.2)
  if activation == 'tanh':
    v = 1.5 ** 2 * get_activation(activation).moments().variance
    assert homogeneous_growth(v, DEPTH, 1.0, BASE) / (predicted[-1] / found[0]) > 1.5


def test_both_formulas_agree_on_homogeneous_functions() -> None:
  s = 0.7 * (DEPTH / BASE) ** -0.5
  variances = stream_variances('relu', DEPTH, s, 2 ** 0.5, start=3.0)
  v = 2 * get_activation('relu').moments().variance
  assert variances[-1] / 3 == pytest.approx(homogeneous_growth(v, DEPTH, 0.7, BASE), rel=1e-6)
