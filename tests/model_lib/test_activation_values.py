"""Values, derivatives, kinks and duplicates of every activation, against mpmath and torch."""

import functools
import inspect
import zlib

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.activations import get_activation, names
from model_lib.activations.host import evaluate
from model_lib.activations.settings import Bounds
from tests.model_lib.activation_references import (
    POINTS, REFERENCES, reference_slopes, reference_values, relative_error, value_error)

_POINTWISE = tuple(n for n in names() if get_activation(n).kind == 'pointwise')


def _drawn(name: str, index: int) -> str:
  """A spec with every setting drawn around its default, inside its bounds; fixed by the name."""
  activation = get_activation(name)
  rng = np.random.default_rng([index, zlib.crc32(name.encode())])
  defaults = {p.name: p.init for p in activation.parameters} | dict(activation.constants)
  settings = []
  for key, default in defaults.items():
    bounds = activation.bounds.get(key, Bounds())
    while True:
      # A float32, so that all precisions and the reference get the same number.
      value = float(np.float32(default + rng.uniform(-0.3, 0.3) * max(1.0, abs(default))))
      # Not near 0, where a kink would be too small to be found.
      if value in bounds and abs(value) > 0.05:
        break
    settings.append(f'{key}={value!r}')
  return f'{name}({", ".join(settings)})' if settings else name


_SPECS = tuple(dict.fromkeys(
    spec for name in _POINTWISE for spec in (name, _drawn(name, 1), _drawn(name, 2))))


def _settings(spec):
  activation = get_activation(spec)
  return {p.name: p.init for p in activation.parameters} | dict(activation.constants)


def _reference_name(spec):
  return spec.partition('(')[0]


# Half a step off every kink, so that a kink lies between two points; -x is on the grid as well.
# All evaluations in one precision are of one shape, because compiling is what these tests wait for.
_STEP = 1e-3
_GRID = _STEP * (np.arange(-8000, 8000) + 0.5)
# For f'', which jumps at 0, +-1, 2 and 3 in some entries.
_CURVED = (0.31, -0.29, 0.93, -1.07, 2.57, -2.43, 9.7, -10.3, 19.1, -18.9)
_FLOAT32_SHAPE = (64,)


def _without_compiler(function, points):
  """(f, f') in the points' precision: traced by JAX, carried out by NumPy."""
  return evaluate(lambda x: jnp.stack(jax.jvp(function, (x,), (jnp.ones_like(x),))), points)


@functools.cache
def _in_float64(spec):
  """((f, f') at POINTS, (f, f') on _GRID)."""
  both = _without_compiler(get_activation(spec), np.concatenate([POINTS, _GRID]))
  return [array[:len(POINTS)] for array in both], [array[len(POINTS):] for array in both]


@functools.cache
def _program():
  """One compiled program for f, f' and f'' of all entries: jit, vmap and grad of each."""
  def derivatives(x):
    rows = []
    for name in _POINTWISE:
      f = get_activation(name)
      slope = jax.vmap(jax.grad(f))
      rows.append(jnp.stack([f(x), slope(x), jax.jvp(slope, (x,), (jnp.ones_like(x),))[1]]))
    return jnp.stack(rows)
  # Compiling is most of this file's time, and optimizing most of compiling.
  return jax.jit(derivatives, compiler_options={'xla_backend_optimization_level': 0})


def _in_float32(points):
  """f, f' and f'' of all pointwise entries, [entry, 3, point], at up to 64 points."""
  padded = np.zeros(_FLOAT32_SHAPE, np.float32)
  padded[:len(points)] = points
  return np.asarray(_program()(jnp.asarray(padded)))[:, :, :len(points)]


def _inside(activation, points):
  """Which of the points lie in the domain."""
  points = np.asarray(points, np.float64)
  return (points >= activation.domain[0]) & (points <= activation.domain[1])


def _smooth(activation, points):
  points = np.asarray(points, np.float64)
  return np.all([np.abs(points - kink) > 1e-3 for kink in activation.kinks], axis=0) & _inside(
      activation, points)


def test_every_pointwise_entry_has_a_reference_with_its_settings():
  assert set(REFERENCES) == set(_POINTWISE)
  for name, reference in REFERENCES.items():
    arguments = inspect.signature(reference).parameters.values()
    if any(argument.kind == argument.VAR_KEYWORD for argument in arguments):
      continue  # the rational functions, whose coefficients are read by name
    defaults = {argument.name: argument.default for argument in arguments}
    assert {key: defaults.get(key) for key in _settings(name)} == _settings(name), name


@pytest.mark.parametrize('spec', _SPECS)
def test_values_agree_with_mpmath_in_every_precision(spec):
  activation, name = get_activation(spec), _reference_name(spec)
  narrow = np.asarray(jnp.asarray(POINTS, jnp.bfloat16))
  single = np.asarray(POINTS, np.float32)
  # Drawn settings can put a zero crossing beside a point, and round a frequency times 1e4.
  atol = np.full(len(POINTS), 2e-36)
  if spec != name:
    atol = 1e-6 + 1e-6 * np.abs(POINTS * _in_float64(spec)[0][1])
  eager = _without_compiler(activation, single)[0]
  compiled = _in_float32([*POINTS, *_CURVED])[_POINTWISE.index(name), 0, :len(POINTS)]
  for x, ours, rtol in (
      (narrow, evaluate(activation, narrow), 2**-8),
      (single, compiled if spec == name else eager, 2e-5), (single, eager, 2e-5),
      (POINTS, _in_float64(spec)[0][0], 1e-9)):
    inside = _inside(activation, x)
    expected = reference_values(name, x[inside] if x is not POINTS else
                                np.asarray(POINTS)[inside], _settings(spec))
    assert relative_error(np.asarray(ours)[inside], expected, rtol, atol[inside]) <= 1


@pytest.mark.parametrize('spec', _SPECS)
def test_derivatives_agree_with_mpmath(spec):
  activation, name = get_activation(spec), _reference_name(spec)
  smooth = _smooth(activation, POINTS)
  points = np.asarray(POINTS)[smooth]
  expected = reference_slopes(name, points, _settings(spec))
  ours = _in_float64(spec)[0][1][smooth]
  assert relative_error(ours, expected, 1e-8, 1e-12) <= 1
  if spec == name:
    ours = _in_float32([*POINTS, *_CURVED])[_POINTWISE.index(name), 1, :len(POINTS)][smooth]
    assert relative_error(ours, expected, 2e-4, 2e-6) <= 1
  else:
    ours = _without_compiler(activation, np.asarray(POINTS, np.float32))[1][smooth]
    atol = 2e-5 + 1e-6 * np.abs(points)  # a rounded frequency again
    assert relative_error(ours, expected, 2e-4, atol) <= 1


@pytest.mark.parametrize('name', _POINTWISE)
def test_second_derivatives_agree_with_mpmath(name):
  smooth = _smooth(get_activation(name), _CURVED)
  points = np.asarray(_CURVED, np.float32)[smooth]
  expected = reference_slopes(name, points, order=2)
  ours = _in_float32([*POINTS, *_CURVED])[_POINTWISE.index(name), 2, len(POINTS):][smooth]
  # Where tanh is nearly 1, the derivative 1 - tanh^2 has few digits in float32.
  assert relative_error(ours, expected, 1e-3, 1e-3) <= 1


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
                min_size=20, max_size=20),
       st.lists(st.floats(-20, 20, width=32), min_size=20, max_size=20))
def test_values_and_derivatives_are_finite_everywhere(anywhere, near):
  result = _in_float32([*anywhere, *near, *POINTS])
  finite = np.isfinite(result)
  bad = ~(finite[:, :2].all(axis=(1, 2)) & finite[:, 2, len(anywhere):-len(POINTS)].all(axis=1))
  overflowing = {name for name in _POINTWISE if get_activation(name).overflow}
  assert {name for name, b in zip(_POINTWISE, bad) if b} <= overflowing
  assert not np.isnan(result[:, :2]).any()


def test_only_what_must_declares_overflow_or_a_domain():
  assert {n for n in _POINTWISE if get_activation(n).overflow} == {'symexp'}
  assert {n for n in _POINTWISE if get_activation(n).domain != (-1e4, 1e4)} == set()
  drawn = {_reference_name(s) for s in _SPECS if get_activation(s).overflow}
  assert drawn <= {'symexp', 'soft_exponential'}
  drawn = {_reference_name(s) for s in _SPECS if get_activation(s).domain != (-1e4, 1e4)}
  assert drawn <= {'soft_exponential', 'srs', 'tanhsoft_3', 'rational_n'}


@pytest.mark.parametrize('spec', ['symexp', 'soft_exponential(a=0.5)'])
def test_a_declared_overflow_is_one_of_the_function_itself(spec):
  activation = get_activation(spec)
  assert activation.overflow
  expected = reference_values(_reference_name(spec), [10.0, 1e4], _settings(spec))
  assert expected[0] < 3e38 < expected[1]
  values, slopes = _without_compiler(activation, np.asarray([10.0, 1e4], np.float32))
  assert np.isfinite(values).tolist() == np.isfinite(slopes).tolist() == [True, False]
  assert not np.isnan(values).any() and not np.isnan(slopes).any()


@pytest.mark.parametrize('spec, whole', [
    ('soft_exponential(a=-0.5)', 'soft_exponential'), ('srs(a=1.0)', 'srs'),
    ('tanhsoft_3(a=-1.0)', 'tanhsoft_3'), ('rational_n(b2=-2.0)', 'rational_n')])
def test_a_declared_domain_is_needed_and_holds(spec, whole):
  assert get_activation(whole).domain == (-1e4, 1e4)
  activation = get_activation(spec)
  low, high = activation.domain
  inside = np.unique(np.clip([*POINTS, *np.linspace(-20, 20, 4001), low, high], low, high))
  outside = [x for x in np.linspace(-20, 20, 40_001) if not low <= x <= high]
  assert np.all(np.isfinite(_without_compiler(activation, inside)))
  assert not np.all(np.abs(_without_compiler(activation, np.asarray(outside))) < 1e4)
  assert np.all(np.isfinite(_without_compiler(activation, inside.astype(np.float32))))


@pytest.mark.parametrize('name', [n for n in names() if get_activation(n).kind != 'module'])
def test_nan_in_gives_nan_out(name):
  activation = get_activation(name)
  x = jnp.array([[jnp.nan, 0.5]])
  inputs = (x, jnp.ones_like(x)) if activation.kind == 'gated' else (x,)
  assert jnp.isnan(activation(*inputs)[0, 0])


@pytest.mark.parametrize('spec', _SPECS)
def test_kinks_are_where_the_slope_jumps_and_nowhere_else(spec):
  activation = get_activation(spec)
  values, slopes = _in_float64(spec)[1]
  inside = _inside(activation, _GRID)
  grid, values, slopes = _GRID[inside], values[inside], slopes[inside]

  def jumps(change, size):
    # Beside its neighbours, because a smooth function changes about as much in each step.
    padded = np.pad(change, 2, mode='edge')
    usual = np.median([padded[i:len(change) + i] for i in range(5)], axis=0)
    return grid[:-1][np.abs(change - usual) > size] + _STEP / 2

  in_slope = jumps(np.diff(slopes), 2e-3)
  in_value = jumps(np.diff(values) - _STEP * (slopes[1:] + slopes[:-1]) / 2, 1e-3)
  near = [[k for k in points if abs(k) < 8] for points in (activation.jumps, activation.kinks)]
  np.testing.assert_allclose(in_value, near[0], atol=_STEP)
  found = np.union1d(np.round(in_slope, 3), np.round(in_value, 3))
  np.testing.assert_allclose(found, near[1], atol=_STEP)


@pytest.mark.parametrize('spec', _SPECS)
def test_tags_are_true_where_set_and_false_where_not(spec):
  activation = get_activation(spec)
  values, slopes = (a[_inside(activation, _GRID)] for a in _in_float64(spec)[1])
  scale = 1e-12 * np.abs(values).max()
  rises, falls = np.any(np.diff(values) > scale), np.any(np.diff(values) < -scale)
  truth = {'increasing': not falls, 'decreasing': not rises, '': rises and falls}
  # Some drawn coefficients make a function monotone that is not for most.
  assert truth[activation.monotone] or (spec != _reference_name(spec) and not activation.monotone)
  tails = _in_float64(spec)[0][1][_smooth(activation, POINTS)]
  assert activation.monotone != 'increasing' or np.all(tails >= 0)
  assert activation.monotone != 'decreasing' or np.all(tails <= 0)
  if len(values) == len(_GRID):
    odd = np.allclose(values, -values[::-1], rtol=0, atol=scale + 1e-12)
    even = np.allclose(values, values[::-1], rtol=0, atol=scale + 1e-12)
    assert activation.parity == ('odd' if odd else 'even' if even else '')


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
