"""The recorder: order and names of calls, what they read and return, outputs in others' places."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.models.recording import record_calls


class Times(nn.Module):
  """x times `factor`."""

  factor: float

  def __call__(self, x):
    return self.halved(x) * 2

  def halved(self, x):
    return x * (self.factor / 2)


class Outer(nn.Module):
  """(9 x, 5): one module called twice, then another."""

  @nn.compact
  def __call__(self, x):
    root = Times(3.0 ** 0.5, name='root')
    return Times(3.0, name='three')(root(root(x))), 5


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    y, more = Outer(name='outer')(x)
    return y + more


def _calls(x, **options):
  return record_calls(lambda: Net().apply({}, x, False), **options)


def test_calls_in_the_order_in_which_they_began() -> None:
  x = jnp.arange(4.0)
  output, calls = _calls(x)
  assert [call.site for call in calls] == ['', 'outer', 'outer/root', 'outer/root#1',
                                           'outer/three']
  assert [call.path for call in calls[2:4]] == [('outer', 'root')] * 2
  np.testing.assert_array_equal(output, Net().apply({}, x, train=False))
  np.testing.assert_array_equal(calls[0].array, output)
  np.testing.assert_allclose(calls[3].inputs[0], x * 3 ** 0.5, rtol=1e-6)
  np.testing.assert_allclose(calls[4].array, x * 9, rtol=1e-6)
  assert calls[4].module.factor == 3 and calls[4].module.scope is None
  assert calls[1].array is None and calls[1].output[1] == 5  # it returns a pair
  # NumPy arrays are inputs as well; what is no array is not.
  _, calls = _calls(np.arange(4.0, dtype=np.float32))
  assert [len(call.inputs) for call in calls] == [1] * 5


def test_other_methods_are_recorded_when_asked_for() -> None:
  _, calls = _calls(jnp.ones(2), methods=('halved',))
  assert [(call.method, call.site) for call in calls] == [
    ('halved', 'outer/root'), ('halved', 'outer/root#1'), ('halved', 'outer/three')]


def test_a_changed_output_is_what_the_rest_reads() -> None:
  """d(output)/d(zero added to the second call) is the factor behind it, and nothing stays."""
  def output(added):
    def change(call):
      return call.output + added if call.site == 'outer/root#1' else call.output
    y, calls = _calls(jnp.ones(()), change=change)
    return y, [call.array for call in calls if call.path == ('outer', 'root')]

  slope, (first, second) = jax.grad(output, has_aux=True)(jnp.float32(0))
  np.testing.assert_allclose([slope, first, second], [3, 3 ** 0.5, 3], rtol=1e-6)
  changed = output(jnp.float32(1))
  np.testing.assert_allclose([changed[0], changed[1][1]], [9 + 3 + 5, 4], rtol=1e-6)
  np.testing.assert_allclose(Net().apply({}, jnp.ones(()), train=False), 9 + 5, rtol=1e-6)
