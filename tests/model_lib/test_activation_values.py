"""Values, derivatives, kinks and duplicates of every activation, against mpmath and torch."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.activations import get_activation, names
from tests.model_lib.activation_references import (
    POINTS, REFERENCES, reference_slopes, reference_values, relative_error, value_error)

_POINTWISE = tuple(n for n in names() if get_activation(n).kind == 'pointwise')
# Half a step off every kink, so that a kink lies between two points. All float64 evaluations are
# of one shape, and all float32 ones of another, because compiling is what these tests wait for.
_STEP = 1e-3
_GRID = np.arange(-8 - _STEP / 2, 8, _STEP)
_FLOAT32_SHAPE = (64,)


@functools.cache
def _in_float64(name):
  """((f, f') at POINTS, (f, f') on _GRID)."""
  with jax.enable_x64(True):
    x = jnp.asarray(np.concatenate([POINTS, _GRID]))
    both = jax.jvp(get_activation(name), (x,), (jnp.ones_like(x),))
    both = [np.asarray(array) for array in both]
  return [array[:len(POINTS)] for array in both], [array[len(POINTS):] for array in both]


@functools.cache
def _program():
  def derivatives(x):
    def slope(f):
      return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
    rows = []
    for name in _POINTWISE:
      f = get_activation(name)
      rows.append(jnp.stack([f(x), slope(f)(x), slope(slope(f))(x)]))
    return jnp.stack(rows)
  return jax.jit(derivatives)


def _in_float32(points):
  """f, f' and f'' of all pointwise entries, [entry, 3, point], at up to 64 points."""
  padded = np.zeros(_FLOAT32_SHAPE, np.float32)
  padded[:len(points)] = points
  return np.asarray(_program()(jnp.asarray(padded)))[:, :, :len(points)]


def test_every_pointwise_entry_has_a_reference():
  assert set(REFERENCES) == set(_POINTWISE)


@pytest.mark.parametrize('name', _POINTWISE)
def test_values_agree_with_mpmath_in_every_precision(name):
  narrow = np.asarray(jnp.asarray(POINTS, jnp.bfloat16))
  single = np.asarray(POINTS, np.float32)
  for x, ours, rtol in (
      (narrow, get_activation(name)(jnp.asarray(narrow)), 2**-8),
      (single, _in_float32(single)[_POINTWISE.index(name), 0], 2e-5),
      (POINTS, _in_float64(name)[0][0], 1e-9)):
    assert relative_error(np.asarray(ours), reference_values(name, x), rtol) <= 1


@pytest.mark.parametrize('name', _POINTWISE)
def test_derivatives_agree_with_mpmath(name):
  kinks = get_activation(name).kinks
  smooth = [i for i, x in enumerate(POINTS) if all(abs(x - kink) > 1e-3 for kink in kinks)]
  expected = reference_slopes(name, [POINTS[i] for i in smooth])
  np.testing.assert_allclose(_in_float64(name)[0][1][smooth], expected, rtol=1e-8, atol=1e-12)
  ours = _in_float32(np.asarray(POINTS))[_POINTWISE.index(name), 1, smooth]
  np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize('name, mutant', [
    ('leaky_relu', lambda x: get_activation('leaky_relu(slope=0.0101)')(x)),
    ('gelu_tanh', lambda x: get_activation('gelu')(x)),
    ('tanh', lambda x: 1.0001 * jnp.tanh(x)),
    ('softplus', lambda x: jnp.log(1 + jnp.exp(x))),
])
def test_a_wrong_constant_a_wrong_form_and_an_overflow_are_noticed(name, mutant):
  assert value_error(get_activation(name), name) <= 1
  assert value_error(mutant, name) > 1


@given(st.lists(st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(-50, 50, width=32)),
                min_size=40, max_size=40))
def test_values_and_two_derivatives_are_finite_everywhere(xs):
  bad = ~np.isfinite(_in_float32([*xs, *POINTS])).all(axis=(1, 2))
  assert not bad.any(), [name for name, b in zip(_POINTWISE, bad) if b]


@pytest.mark.parametrize('name', names())
def test_nan_in_gives_nan_out(name):
  activation = get_activation(name)
  x = jnp.array([[jnp.nan, 0.5]])
  inputs = (x, jnp.ones_like(x)) if activation.kind == 'gated' else (x,)
  assert jnp.isnan(activation(*inputs)[0, 0])


@pytest.mark.parametrize('name', _POINTWISE)
def test_kinks_are_where_the_slope_jumps_and_nowhere_else(name):
  activation = get_activation(name)
  values, slopes = _in_float64(name)[1]
  # sup |f''| of the catalogue on the grid is below 20, so that f' changes by less than 0.02 from
  # point to point; the smallest jump of a slope, hard_sigmoid's, is 1/6.
  in_slope = _GRID[:-1][np.abs(np.diff(slopes)) > 0.05] + _STEP / 2
  rise = np.diff(values) - _STEP * (slopes[1:] + slopes[:-1]) / 2
  in_value = _GRID[:-1][np.abs(rise) > 0.05] + _STEP / 2
  np.testing.assert_allclose(in_value, activation.jumps, atol=_STEP)
  found = np.union1d(np.round(in_slope, 3), np.round(in_value, 3))
  np.testing.assert_allclose(found, activation.kinks, atol=_STEP)


def test_declared_duplicates_are_equal_and_all_others_differ():
  prints = {name: _in_float64(name)[1][0][::80] for name in _POINTWISE}
  for name in _POINTWISE:
    same = tuple(other for other in _POINTWISE
                 if other != name and np.allclose(prints[name], prints[other], rtol=0, atol=1e-6))
    assert same == get_activation(name).duplicates, name


@pytest.mark.parametrize('name', [
    'celu', 'elu', 'gelu', 'gelu_tanh', 'hard_sigmoid', 'hard_silu', 'hard_tanh', 'identity',
    'leaky_relu', 'log_sigmoid', 'mish', 'relu', 'relu6', 'selu', 'sigmoid', 'silu', 'soft_sign',
    'softplus', 'sparse_plus', 'sparse_sigmoid', 'squareplus', 'tanh'])
def test_entries_that_jax_has_are_jax_s(name):
  reference = {'gelu': functools.partial(jax.nn.gelu, approximate=False),
               'gelu_tanh': jax.nn.gelu}.get(name) or getattr(jax.nn, name)
  # No point of this grid is a kink, where the two may choose another one-sided slope.
  x = np.linspace(-7.77, 7.79, 64, dtype=np.float32)
  theirs = jax.jvp(reference, (jnp.asarray(x),), (jnp.ones(64),))
  # jax's own forms of GELU and squareplus lose digits on the left.
  np.testing.assert_allclose(_in_float32(x)[_POINTWISE.index(name), :2], theirs, rtol=1e-5,
                             atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize('name, function, kwargs', [
    ('celu', 'celu', {}), ('elu', 'elu', {}), ('gelu', 'gelu', {}),
    ('gelu_tanh', 'gelu', {'approximate': 'tanh'}), ('hard_shrink', 'hardshrink', {}),
    ('hard_sigmoid', 'hardsigmoid', {}), ('hard_silu', 'hardswish', {}),
    ('hard_tanh', 'hardtanh', {}), ('leaky_relu', 'leaky_relu', {}),
    ('log_sigmoid', 'logsigmoid', {}), ('mish', 'mish', {}), ('relu', 'relu', {}),
    ('relu6', 'relu6', {}), ('selu', 'selu', {}), ('sigmoid', 'sigmoid', {}),
    ('silu', 'silu', {}), ('soft_shrink', 'softshrink', {}), ('soft_sign', 'softsign', {}),
    ('softplus', 'softplus', {}), ('tanh', 'tanh', {}), ('tanh_shrink', 'tanhshrink', {}),
])
def test_entries_that_torch_has_are_torch_s(name, function, kwargs):
  import torch
  x = np.random.default_rng(0).normal(scale=3, size=64).astype(np.float32)
  theirs = torch.tensor(x, requires_grad=True)
  result = getattr(torch.nn.functional, function)(theirs, **kwargs)
  result.sum().backward()
  np.testing.assert_allclose(
      _in_float32(x)[_POINTWISE.index(name), :2],
      [result.detach().numpy(), theirs.grad.numpy()], rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_prelu_and_glu_are_torch_s():
  import torch
  rng = np.random.default_rng(1)
  x, slope = rng.normal(size=(6, 4)).astype(np.float32), np.array([.1, .2, .3, .4], np.float32)
  theirs = torch.nn.functional.prelu(torch.tensor(x), torch.tensor(slope)).numpy()
  ours = get_activation('prelu(per=channel)')(jnp.asarray(x), slope=jnp.asarray(slope))
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  value, gate = x[:, :2], x[:, 2:]
  theirs = torch.nn.functional.glu(torch.tensor(x)).numpy()
  np.testing.assert_allclose(
      get_activation('glu')(jnp.asarray(gate), jnp.asarray(value)), theirs, rtol=1e-5)
