"""The cosine of neighbouring layers' gradients against its prediction."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import activations
from model_lib.activations import get_activation
from model_lib.analysis.gradient_diversity import (
    far_cosine, layer_gradients, measured, neighbour_cosine)
from model_lib.errors import UserError

TOLERANCE = 0.03
FAST = ('identity', 'relu', 'abs', 'tanh', 'gelu', 'sin', 'elu', 'relu_squared')
POINTWISE = [name for name in activations.names() if get_activation(name).kind == 'pointwise']


@pytest.mark.parametrize('name', FAST)
def test_prediction(name) -> None:
  activation = get_activation(name)
  assert measured(activation) == pytest.approx(activation.moments().slope_share, abs=TOLERANCE)


@pytest.mark.slow
def test_prediction_of_every_pointwise_activation() -> None:
  """All with a finite E phi'^2; printed with what they have."""
  rows, refused = {}, {}
  for name in POINTWISE:
    activation = get_activation(name)
    try:
      rows[name] = measured(activation), activation.moments().slope_share
    except UserError as e:
      refused[name] = str(e)
  print(*(f'{name:30} {found:7.4f} {said:7.4f}' for name, (found, said) in rows.items()), sep='\n')
  print(refused)
  missed = {name: row for name, row in rows.items() if not abs(row[0] - row[1]) <= TOLERANCE}
  assert missed == {}
  # Those that are refused jump.
  assert all(get_activation(name).jumps for name in refused) and len(rows) > 100


def test_without_prenorm_tanh_misses() -> None:
  """Its preactivations have another variance than 1, and no function that saturates one ratio."""
  tanh = get_activation('tanh')
  assert abs(measured(tanh, prenorm=False) - tanh.moments().slope_share) > TOLERANCE
  relu = get_activation('relu')
  assert measured(relu, prenorm=False) == pytest.approx(0.5, abs=TOLERANCE)


def test_far_layers_are_less_alike() -> None:
  """So the cosine of neighbours is not one that all layers have."""
  gradients = layer_gradients(jax.random.key(0), jax.nn.relu, 32, 128, 0.5, examples=16)
  assert far_cosine(gradients) < neighbour_cosine(gradients) - 0.1


def test_gradients_of_the_last_layer_and_cosines_by_hand() -> None:
  """dL/dh_L = s G(dL/dx_L) phi'(h_L)."""
  gradients = layer_gradients(jax.random.key(0), jnp.tanh, 3, 8, 0.5, examples=2)
  assert gradients.shape == (3, 2, 8)
  a, b = np.asarray(gradients, np.float64)[:2, 0]
  one = neighbour_cosine(gradients[:2, :1])
  assert one == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), rel=1e-5)
  end = jax.random.normal(jax.random.split(jax.random.key(0), 3)[2], (2, 8))
  centred = end - end.mean(-1, keepdims=True)
  slopes = gradients[-1] / (0.5 * centred)
  assert (slopes > 0).all() and (slopes <= 1 + 1e-5).all()  # phi' of tanh


@pytest.mark.parametrize(('name', 'message'), [
  ('binary_step', "has E phi'^2 = nan"), ('softmax', 'softmax is statistics')])
def test_what_has_no_prediction_is_refused(name, message) -> None:
  with pytest.raises(UserError, match=re.escape(message)):
    measured(get_activation(name))
