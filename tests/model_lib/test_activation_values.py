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
_CURVED = (0.31, -0.29, 0.93, -1.07, 1.6, -1.7, 2.57, -2.43, 4.3, -4.1, 6.7, -6.3, 9.7, -10.3,
           14.2, -13.7, 19.1, -18.9)
_EPS = 2.0**-23  # of float32
# XLA's tanh ends a rounding below 1: what should be 1 - tanh^2 = 0 is multiplied by x.
_TANH_OF_LARGE = ('mish', 'phish', 'telu@kunc2024')
_POLES = ('fractional_relu',)  # whose slope is unbounded beside its kink at 0
_FLOAT32_SHAPE = (64,)


def _without_compiler(function, points):
  """(f, f') in the points' precision: traced by JAX, carried out by NumPy."""
  return evaluate(lambda x: jnp.stack(jax.jvp(function, (x,), (jnp.ones_like(x),))), points)


def _second_derivative(function, points):
  """f'' in the points' precision, without the compiler."""
  def second(x):
    one = jnp.ones_like(x)
    return jax.jvp(lambda x: jax.jvp(function, (x,), (one,))[1], (x,), (one,))[1]
  return evaluate(second, points)


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
      both = jax.vmap(jax.value_and_grad(get_activation(name)))
      (value, slope), (_, second) = jax.jvp(both, (x,), (jnp.ones_like(x),))
      rows.append(jnp.stack([value, slope, second]))
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


@pytest.mark.parametrize('spec', _SPECS)
def test_second_derivatives_agree_with_mpmath(spec):
  activation, name = get_activation(spec), _reference_name(spec)
  smooth = _smooth(activation, _CURVED)
  points = np.asarray(_CURVED, np.float32)[smooth]
  expected = reference_slopes(name, points, _settings(spec), order=2)
  neighbours = [np.nextafter(points, np.float32(side * np.inf)) for side in (-1, 1)]
  exact, below, above = np.split(
      _second_derivative(activation, np.concatenate([points, *neighbours]).astype(np.float64)), 3)
  assert relative_error(exact, expected, 1e-9, 1e-12) <= 1
  # A few roundings of terms of size 1 and of f'' itself, and of the number that the innermost
  # function is taken of (a frequency times x, a polynomial): as if x were one of its neighbours.
  atol = 32 * _EPS + 4 * np.abs(above - below)
  if name in _TANH_OF_LARGE:
    atol += 8 * _EPS * np.abs(points)
  ours = [_second_derivative(activation, points)]
  if spec == name:
    compiled = _in_float32([*POINTS, *_CURVED])[_POINTWISE.index(name), 2, len(POINTS):]
    ours.append(compiled[smooth])
  for seconds in ours:
    assert relative_error(seconds, expected, 32 * _EPS, atol) <= 1


def test_a_second_derivative_that_cancels_is_noticed():
  points = np.asarray(_CURVED, np.float32)
  expected = reference_slopes('loglogish', points, order=2)
  for function, accurate in (
      (get_activation('loglogish'), True), (lambda x: -x * jnp.expm1(-jnp.exp(x)), False)):
    seconds = _second_derivative(function, points)
    assert (relative_error(seconds, expected, 32 * _EPS, 32 * _EPS) <= 1) is accurate


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
  bad = ~finite[:, :2].all(axis=(1, 2))
  for row, point in np.argwhere(~finite[:, 2, len(anywhere):-len(POINTS)]):
    # Off the kinks, at which f'' may have a pole.
    bad[row] |= _smooth(get_activation(_POINTWISE[row]), near[point])
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
  if activation.kind == 'pointwise':
    assert np.isnan(_in_float32([np.nan])[_POINTWISE.index(name), 0, 0])
    return
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
  if _reference_name(spec) in _POLES:
    # The slope changes so fast that it seems to jump in many places, all of them at the pole.
    assert near == [[], [0.0]] and len(in_slope) > 2
    assert np.all(np.abs(in_slope) < 0.1) and slopes.max() > 1.5 * slopes[grid > 0.1].max()
    return
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
