"""Cost of layers: bytes counted by hand, times of work that is known to be more."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from model_lib.analysis import cost

SHAPE = (4, 3, 3, 16)
VALUES = 4 * 3 * 3 * 16


@pytest.mark.parametrize('spec, per_value', [
    ('identity', 0), ('relu', 1),  # a mask
    ('sin', 4),  # cos x
    ('crelu', 2),  # a mask of x and one of -x
    ('bilinear', 8),  # both inputs
])
def test_saved_bytes_of_activations(spec, per_value):
  subject = cost.activation(spec, SHAPE)
  assert cost.saved_bytes(subject) == per_value * VALUES


def test_parameters_and_constants_are_not_counted_and_an_array_only_once():
  x = jnp.ones((8, 16))
  weights = jnp.ones((16, 16))

  def subject(function):
    return cost.Subject(function, {'w': weights}, (x,))

  dense = subject(lambda p, inputs, s: (s * inputs[0]) @ p['w'])
  assert cost.saved_bytes(dense) == x.nbytes  # s x, for the gradient of w
  squares = subject(lambda p, inputs, s: jnp.sin(inputs[0]) * jnp.sin(inputs[0]))
  assert cost.saved_bytes(squares) == 4 * x.nbytes  # two sines and two cosines
  constant = subject(lambda p, inputs, s: inputs[0] * jnp.arange(16.0).reshape(1, 16))
  assert cost.saved_bytes(constant) == 0
  jitted = subject(lambda p, inputs, s: jax.jit(lambda x: jnp.where(x > 0, x, 0.0))(inputs[0]))
  assert cost.saved_bytes(jitted) == x.size


def test_norms_keep_more_than_none():
  assert cost.saved_bytes(cost.norm('none', SHAPE)) == 0
  for spec in ('layer', 'batch'):
    assert cost.saved_bytes(cost.norm(spec, SHAPE)) >= 4 * VALUES


def test_more_work_costs_more():
  x = jnp.ones((256, 256))

  def products(p, inputs, s):
    y = s * inputs[0]
    for _ in range(8):
      y = y @ inputs[0] / 256
    return y

  subjects = {'none': cost.Subject(lambda p, inputs, s: s * inputs[0], {}, (x,)),
              'products': cost.Subject(products, {}, (x,))}
  found = cost.costs(subjects, 'none', rounds=3)
  assert found['products'].ratio > 3 > found['none'].ratio > 0
  assert found['products'].seconds > found['none'].seconds > 0
