"""Losses against scipy in float64, and which examples a batch holds."""
from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from model_lib.training.tasks import Classification, NextToken, Regression, cross_entropy


def reference(logits, targets):
  table = -scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
  return np.take_along_axis(table, np.asarray(targets)[..., None], -1)[..., 0]


@pytest.mark.parametrize('shape', [(7, 10), (3, 5, 4)])
@pytest.mark.parametrize('scale', [1.0, 50.0, 1e4])
def test_cross_entropy(shape, scale):
  rng = np.random.default_rng(0)
  logits = (scale * rng.normal(size=shape)).astype(np.float32)
  targets = rng.integers(0, shape[-1], shape[:-1])
  found = cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
  # Of two nearly equal numbers of size `scale`, float32 keeps 1e-7 of that size.
  np.testing.assert_allclose(found, reference(logits, targets), rtol=2e-6, atol=3e-7 * scale)
  wrong = reference(logits, (targets + 1) % shape[-1])
  assert np.abs(np.asarray(found) - wrong).max() > 0.1 * scale


def test_cross_entropy_widens_half_precision():
  logits = jnp.asarray([[1.0, 2.0, 3.0]], jnp.bfloat16)
  found = cross_entropy(logits, jnp.asarray([0]))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, reference([[1, 2, 3]], [0]), rtol=1e-6)


def test_classification():
  rng = np.random.default_rng(0)
  arrays = {'inputs': rng.integers(0, 256, (9, 4, 4), np.uint8),
            'labels': rng.integers(0, 3, (9, 2)).astype(np.int32)}
  task = Classification(mean=100.0, std=50.0)
  index = np.array([8, 0, 3])
  inputs, targets = task.batch(arrays, jnp.asarray(index), jnp.asarray(1))
  np.testing.assert_allclose(inputs, (arrays['inputs'][index] - 100.0) / 50.0, rtol=1e-6,
                             atol=1e-7)
  np.testing.assert_array_equal(targets, arrays['labels'][index, 1])
  assert inputs.dtype == task.example_inputs(arrays, 5).dtype == np.float32
  assert task.example_inputs(arrays, 5).shape == (5, 4, 4)

  logits = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
  losses, extra = task.losses(logits, jnp.asarray([0, 0, 2]))
  assert losses.shape == (3,) and extra['accuracy'].tolist() == [1.0, 0.0, 1.0]
  assert extra['accuracy'].dtype == losses.dtype


def test_regression():
  rng = np.random.default_rng(0)
  arrays = {'inputs': rng.normal(size=(9, 3)).astype(np.float32),
            'targets': rng.normal(size=(9, 4, 2)).astype(np.float32)}
  task, index = Regression(), np.array([8, 0, 3, 3])
  inputs, targets = task.batch(arrays, jnp.asarray(index), jnp.asarray(2))
  np.testing.assert_array_equal(inputs, arrays['inputs'][index])
  np.testing.assert_array_equal(targets, arrays['targets'][index, 2])
  assert task.example_inputs(arrays, 5).shape == (5, 3)
  assert inputs.dtype == task.example_inputs(arrays, 5).dtype == np.float32

  outputs = rng.normal(size=(4, 2)).astype(np.float32)
  losses, extra = task.losses(jnp.asarray(outputs), targets)
  true = np.asarray(targets, np.float64)
  np.testing.assert_allclose(losses, ((outputs - true)**2).sum(1) / 2, rtol=1e-5)
  assert extra == {} and losses.shape == (4,)
  half = task.losses(jnp.asarray(outputs, jnp.bfloat16), targets)[0]
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, losses, atol=0.05)
  with pytest.raises(ValueError, match=r'\(4, 1\) for targets of shape \(4, 2\)'):
    task.losses(jnp.asarray(outputs[:, :1]), targets)


def test_next_token():
  windows = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
  task = NextToken()
  inputs, targets = task.batch({'inputs': windows}, jnp.asarray([2, 1]), jnp.asarray(0))
  np.testing.assert_array_equal(inputs, windows[[2, 1], :-1])
  np.testing.assert_array_equal(targets, windows[[2, 1], 1:])
  assert inputs.dtype == targets.dtype == jnp.int32
  assert task.example_inputs({'inputs': windows}, 3).shape == (3, 5)

  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 5, 30)).astype(np.float32)
  losses, extra = task.losses(jnp.asarray(logits), targets)
  np.testing.assert_allclose(losses, reference(logits, targets).mean(-1), rtol=1e-6)
  np.testing.assert_allclose(
      extra['accuracy'], (logits.argmax(-1) == np.asarray(targets)).mean(-1), rtol=1e-6)
