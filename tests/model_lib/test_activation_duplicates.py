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
    ('relu_squared', 'star_relu'), ('elliott', 'soft_sign'), ('e_swish', 'silu'),
    # With b other than +-1, or c other than 0.
    ('quick_gelu', 'silu'), ('lecun_tanh', 'sigmoid', 'tanh'), ('erf', 'laplace_mega'),
    ('hard_sigmoid', 'hard_tanh', 'relu6', 'relu_n', 'sparse_sigmoid'), ('relu', 'shifted_relu')])
def test_affine_groups(group):
  for name in group:
    assert set(group) - {name} <= set(affine_duplicates(name))
    assert not set(group) & set(get_activation(name).duplicates)


def test_affine_groups_contain_the_plain_ones_and_no_near_misses():
  for name in _POINTWISE:
    assert set(get_activation(name).duplicates) <= set(affine_duplicates(name))
  for left, right in (('gelu', 'gelu_tanh'), ('relu', 'relu6'), ('tanh', 'erf'), ('silu', 'mish'),
                      ('relu', 'leaky_relu'), ('sin', 'asu'), ('gelu', 'silu'), ('silu', 'lisht'),
                      ('softplus', 'squareplus'), ('prelu', 'leaky_relu'), ('sigmoid', 'loglog'),
                      ('hard_tanh', 'soft_shrink'), ('hard_tanh', 'tanh'), ('isru', 'arctan'),
                      ('quick_gelu', 'gelu'), ('relu', 'sparse_plus'), ('relu', 'abs')):
    assert right not in affine_duplicates(left), (left, right)


@pytest.mark.parametrize('left, right, related', [
    ('celu(alpha=2.0)', 'elu', True), ('elu(alpha=2.0)', 'elu', False),
    ('swish_beta(beta=3.0)', 'gelu', False), ('swish_beta(beta=3.0)', 'silu', True),
    ('isru(alpha=4.0)', 'isru', True), ('isru', 'pflu', False),
    # Flipped, the larger slope is on the other side.
    ('leaky_relu(slope=0.2)', 'leaky_relu(slope=5.0)', True),
    ('leaky_relu(slope=0.2)', 'leaky_relu(slope=4.9)', False),
    ('soft_shrink(threshold=2.0)', 'soft_shrink', True), ('hard_shrink', 'soft_shrink', False),
    ('laplace_mega(mu=-3.0, sigma=7.0)', 'erf', True), ('tent', 'tent(a=2.5)', True)])
def test_settings_that_scale_or_shift_the_input_are_seen(left, right, related):
  assert bool(duplicate_groups([left, right], affine=True)) is related
  assert duplicate_groups([left, right]) == ()


def test_an_affine_relation_holds_between_the_values():
  x = np.linspace(-5, 5, 101, dtype=np.float32)
  np.testing.assert_allclose(
      get_activation('cloglog')(x), 1 - get_activation('loglog')(-x), atol=1e-6)
  np.testing.assert_allclose(
      get_activation('tanh')(x), 2 * get_activation('sigmoid')(2 * x) - 1, atol=1e-6)
  np.testing.assert_allclose(
      get_activation('quick_gelu')(x), get_activation('silu')(1.702 * x) / 1.702, atol=1e-6)
