"""The table of parametrizations."""

from __future__ import annotations

import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.parametrization import Parametrization, get_parametrization, names

pytestmark = pytest.mark.usefixtures('unoptimized')


def test_names_are_the_rows() -> None:
  assert names() == (
    'sp', 'gpt2', 'deepnorm', 'subln', 'fixup', 'tfixup', 'skipinit', 'rezero', 'layerscale',
    'lns', 'admin', 'ds_init', 'nf', 'normformer', 'ngpt',
    'ntk', 'mean_field', 'mup', 'tp6', 'depth_mup', 'ode', 'completep', 'umup')
  assert all(get_parametrization(name).name == name for name in names())


@pytest.mark.parametrize('role, fan_in, gain, expected', [
  ('input', 64, 1.0, 1 / 8),
  ('hidden', 64, 1.5, 1.5 / 8),
  ('readout', 256, 1.0, 1 / 16),
  ('embedding', 256, 1.0, 1.0),
  ('position', 128, 1.0, 0.02),
])
def test_init_std_of_the_standard_row(role, fan_in, gain, expected) -> None:
  rule = get_parametrization('sp').rules[role]
  np.testing.assert_allclose(rule.init_std(fan_in, gain), expected, rtol=1e-12)
  assert rule.multiplier == 1.0


def test_multipliers_of_the_standard_row() -> None:
  row = get_parametrization('sp')
  assert row.attention_multiplier(16) == 0.25
  assert row.branch_multiplier(2) == row.branch_multiplier(96) == 1.0


def test_rows_are_read_only() -> None:
  row = get_parametrization('sp')
  with pytest.raises(TypeError):
    row.rules['input'] = row.rules['hidden']
  with pytest.raises(AttributeError):
    row.depth_power = -0.5
  assert isinstance(row, Parametrization)


@pytest.mark.parametrize('name', ['spp', 'xyz', None])
def test_an_unknown_row_is_one_line(name) -> None:
  with pytest.raises(UserError) as info:
    get_parametrization(name)
  assert '\n' not in str(info.value)
  assert ("nearest: 'sp'" in str(info.value)) == (name == 'spp')
