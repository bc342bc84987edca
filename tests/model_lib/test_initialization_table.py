"""The numbers of initialization theory against those integrated apart from the library."""

from __future__ import annotations

import dataclasses
import math

import pytest

from model_lib.analysis.initialization_table import ACTIVATIONS, row, table
from model_lib.errors import UserError

# E f, E f^2, Var f, E[f^2]^-1/2, Var[f]^-1/2, E f'^2, chi, (E f')^2 / E f'^2, Kumar's N Var w
# (0 where the rule says nothing or no number is given): a trapezoid of 2.4 million points in
# [-12, 12]. The ratio of sigmoid was given as .953, a quotient of rounded numbers.
NUMBERS = {
  'identity': (0, 1, 1, 1, 1, 1, 1, 1, 1),
  'relu': (.3989, .5, .3408, 1.4142, 1.7129, .5, 1, .5, 2),
  'abs': (.7979, 1, .3634, 1, 1.6589, 1, 1, 0, 0),
  'leaky_relu(slope=0.01)': (.3950, .5, .3441, 1.4141, 1.7048, .5, 1, .510, 0),
  'leaky_relu(slope=0.2)': (.3192, .52, .4181, 1.3868, 1.5465, .52, 1, .692, 0),
  'tanh': (0, .3943, .3943, 1.5925, 1.5925, .4644, 1.178, .790, 1),
  'erf': (0, .4646, .4646, 1.4672, 1.4672, .5694, 1.226, .745, .7854),
  'sigmoid': (.5, .2934, .0434, 1.8462, 4.8013, .0448, .153, .9522, 12.8),
  'soft_sign': (0, .1830, .1830, 2.3375, 2.3375, .2277, 1.244, .748, 1),
  'hard_tanh': (0, .5161, .5161, 1.3920, 1.3920, .6827, 1.323, .683, 1),
  'elu': (.1605, .6449, .6192, 1.2452, 1.2708, .6681, 1.036, .868, 1),
  'selu': (0, 1, 1, 1, 1, 1.0716, 1.072, .906, 0),
  'gelu': (.2821, .4252, .3456, 1.5335, 1.7009, .4559, 1.072, .548, 4),
  'silu': (.2066, .3558, .3131, 1.6765, 1.7872, .3795, 1.067, .659, 4),
  'mish': (.2404, .4523, .3945, 1.4868, 1.5920, .4791, 1.059, .663, 2.778),
  'hard_silu': (.1662, .3316, .3039, 1.7367, 1.8139, .3585, 1.081, .697, 4),
  'softplus': (.8061, .9212, .2715, 1.0419, 1.9191, .2934, .318, .852, 2.702),
  'sin': (0, .4323, .4323, 1.5209, 1.5209, .5677, 1.313, .648, 1),
  'cos': (.6065, .5677, .1998, 1.3273, 2.2373, .4323, .761, 0, 0),
  'gaussian': (.5774, .4472, .1139, 1.4953, 2.9633, .3578, .800, 0, 0),
  'relu_squared': (.5, 1.5, 1.25, .8165, .8944, 2, 1.333, .318, 0),
  'square': (1, 3, 2, .5774, .7071, 4, 1.333, 0, 0),
}


def test_the_table_has_these_rows() -> None:
  assert [r.activation for r in table()] == [row(spec).activation for spec in ACTIVATIONS]
  assert set(NUMBERS) == set(ACTIVATIONS) and len({r.activation for r in table()}) == 22


@pytest.mark.parametrize('spec', ACTIVATIONS)
def test_numbers(spec) -> None:
  found = dataclasses.astuple(row(spec))
  # As printed: four digits behind the point, of the last three columns three.
  tolerances = (1e-4,) * 6 + (6e-4,) * 2
  for ours, number, tolerance in zip(found[1:9], NUMBERS[spec], tolerances, strict=False):
    assert ours == pytest.approx(number, abs=tolerance)
  kumar, case = found[-2:]
  if NUMBERS[spec][8]:
    assert kumar == pytest.approx(NUMBERS[spec][8], rel=5e-4)
    assert case == ('relu' if spec == 'relu' else 'linearized')
  elif spec in ('abs', 'cos', 'gaussian', 'relu_squared', 'square'):
    assert case == 'second moment' and kumar == pytest.approx(found[4] ** 2)


def test_the_rules_are_of_std_and_differ() -> None:
  """Kumar's sigmoid has std 3.58 N^-1/2, not variance; tanh tells first order and gain apart."""
  assert math.sqrt(row('sigmoid').kumar) == pytest.approx(3.58, abs=5e-3)
  tanh = row('tanh')
  assert abs(tanh.kumar - tanh.gain ** 2) > 1
  for spec in ('relu', 'abs', 'identity', 'leaky_relu(slope=0.2)'):
    assert row(spec).he == pytest.approx(row(spec).gain ** 2)
  assert math.isnan(row('gelu').he)


def test_an_unknown_activation_is_refused() -> None:
  with pytest.raises(UserError, match="unknown activation 'relo'"):
    row('relo')
