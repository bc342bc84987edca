"""Prediction beside measurement: the band over seeds, gain on and off, and a scaled layer."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.analysis import prediction
from model_lib.errors import UserError
from model_lib.models import build

pytestmark = pytest.mark.usefixtures('unoptimized')


def _input(count=1, features=32):
  x = np.random.default_rng(0).normal(size=(count, features)).astype(np.float32)
  return x / np.sqrt(np.mean(x ** 2, axis=1, keepdims=True))


@pytest.mark.parametrize('activation, init_gain', [('tanh', False), ('relu', True)])
def test_band_over_seeds(activation, init_gain):
  """The standardized log ratios of 300 draws in NumPy have mean 0 and deviation 1."""
  model = build('mlp', widths=(128, 128), num_classes=64, activation=activation,
                init_gain=init_gain)
  predicted = prediction.predict_variances(model, 32, 1.0)
  f = {'tanh': np.tanh, 'relu': lambda x: np.maximum(x, 0)}[activation]
  gain = math.sqrt(2)  # also what E f^2 = 1/2 gives for relu
  rng, x, widths = np.random.default_rng(1), _input()[0].astype(np.float64), (128, 128, 64)
  ratios = []
  for _ in range(300):
    a, found = x, []
    for i, (n, (_, q, variance)) in enumerate(zip(widths, predicted, strict=True)):
      h = a @ rng.normal(size=(len(a), n)) * ((gain if i else 1) / math.sqrt(len(a)))
      found.append(math.log(np.mean(h ** 2) / q) / math.sqrt(variance))
      a = f(h)
    ratios.append(found)
  np.testing.assert_allclose(np.std(ratios, axis=0), 1, atol=0.17)
  assert np.all(np.abs(np.mean(ratios, axis=0)) < 0.35)  # the log's own bias included
  assert np.mean(np.abs(ratios) > prediction.DEVIATIONS) < 0.01


def test_measured_is_inside_and_a_scaled_layer_is_flagged():
  model = build('mlp', widths=(256, 256), num_classes=64, activation='gelu')
  x = _input(16)
  variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))
  table = prediction.compare(model, variables, x)
  assert [row.site for row in table] == ['hidden_0', 'hidden_1', 'head']
  assert not any(row.outside or row.local_outside for row in table)
  assert table[1].predicted == pytest.approx(1, rel=1e-6)  # the registry's gain
  params = {**variables['params']}
  params['hidden_1'] = {**params['hidden_1'], 'kernel': params['hidden_1']['kernel'] * 1.5}
  scaled = prediction.compare(model, {**variables, 'params': params}, x)
  assert [row.local_outside for row in scaled] == [False, True, False]
  assert scaled[1].local / table[1].local == pytest.approx(2.25, rel=1e-4)


def test_gain_off_predicts_another_variance_than_gain_on():
  off = build('mlp', widths=(256, 256), activation='tanh', init_gain=False)
  on = build('mlp', widths=(256, 256), activation='tanh')
  z, w = np.polynomial.hermite_e.hermegauss(100)
  w = w / w.sum()
  q = 2 * np.sum(w * np.tanh(z) ** 2)
  found = [row[1] for row in prediction.predict_variances(off, 32, 1.0)]
  np.testing.assert_allclose(found, [1, q, 2 * np.sum(w * np.tanh(math.sqrt(q) * z) ** 2)],
                             rtol=1e-6)
  np.testing.assert_allclose([row[1] for row in prediction.predict_variances(on, 32, 1.0)], 1,
                             rtol=1e-6)


def test_mistakes():
  with pytest.raises(UserError, match="norm='none'"):
    prediction.predict_variances(build('mlp', norm='pre:layer'), 8, 1.0)
  with pytest.raises(UserError, match='mean squares'):
    prediction.compare(build('mlp'), {}, jnp.asarray([[1.0, 1.0], [9.0, 9.0]]))
