"""Duplicates: what the registry declares is what the fingerprints find, and nothing else."""

import numpy as np
import pytest

from model_lib.activations import get_activation, names
from model_lib.activations.fingerprint import affine_duplicates, duplicate_groups

_POINTWISE = tuple(n for n in names() if get_activation(n).kind == 'pointwise')


def test_declared_duplicates_are_found_and_all_others_differ():
  groups = duplicate_groups(_POINTWISE)
  for name in _POINTWISE:
    found = {other for group in groups if name in group for other in group} - {name}
    assert found == set(get_activation(name).duplicates), name
  assert duplicate_groups(['gelu', 'gelu_tanh', 'quick_gelu']) == ()


@pytest.mark.parametrize('group', [
    ('cloglog', 'loglog'), ('log_sigmoid', 'shifted_softplus', 'softplus'),
    ('relu_squared', 'star_relu'), ('elliott', 'soft_sign'), ('e_swish', 'silu')])
def test_affine_groups(group):
  for name in group:
    assert set(group) - {name} <= set(affine_duplicates(name))
    assert not set(group) & set(get_activation(name).duplicates)


def test_affine_groups_contain_the_plain_ones_and_no_near_misses():
  for name in _POINTWISE:
    assert set(get_activation(name).duplicates) <= set(affine_duplicates(name))
  for left, right in (('gelu', 'gelu_tanh'), ('relu', 'relu6'), ('tanh', 'erf'), ('silu', 'mish'),
                      ('relu', 'leaky_relu'), ('sin', 'asu')):
    assert right not in affine_duplicates(left)


def test_an_affine_relation_holds_between_the_values():
  x = np.linspace(-5, 5, 101, dtype=np.float32)
  np.testing.assert_allclose(
      get_activation('cloglog')(x), 1 - get_activation('loglog')(-x), atol=1e-6)
