"""Values, derivatives, kinks and duplicates of every activation, against mpmath and torch."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from model_lib.activations import get_activation, names

_POINTWISE = tuple(n for n in names() if get_activation(n).kind == 'pointwise')
_POINTS = (0.0, 1e-30, -1e-30, 1e-4, -1e-4, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5, 10.0, -10.0, 88.0,
           -88.0, 1e4, -1e4)


def _sigmoid(x):
  return 1 / (1 + mp.exp(-x))


def _softplus(x):
  return mp.log1p(mp.exp(x))


def _relu(x):
  return max(x, mp.mpf(0))


def _elu(x, alpha=1):
  return x if x > 0 else alpha * mp.expm1(x)


def _double(x):
  """exp(-e^x); mpmath cannot take e^1e4 as an exponent."""
  return mp.exp(-mp.exp(x)) if x < 100 else mp.mpf(0)


def _ramp(x, low, high):
  return min(max(x, mp.mpf(low)), mp.mpf(high))


def _xielu(x):
  return mp.mpf('.8') * (x**2 if x > 0 else mp.expm1(x) - x) + x / 2


def _gelu_tanh(x):
  return x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf('.044715') * x**3))) / 2


_SELU = mp.mpf('1.0507009873554805'), mp.mpf('1.6732632423543772')
_SERLU = mp.mpf('1.07862'), mp.mpf('2.90427')
_MEGA = mp.mpf('.707107'), mp.mpf('.282095')

# Textbook forms in 60 digits, where no cancellation matters.
_REFERENCES = {
    'abs': abs,
    'acon_c': lambda x: x * _sigmoid(x),
    'arctan': mp.atan,
    'asinh': mp.asinh,
    'asu': lambda x: x * mp.sin(x),
    'bent_identity': lambda x: (mp.sqrt(x**2 + 1) - 1) / 2 + x,
    'calu': lambda x: x * (mp.mpf(1) / 2 + mp.atan(x) / mp.pi),
    'celu': _elu,
    'cloglog': lambda x: 1 - _double(x),
    'colu': lambda x: x / (1 - x * mp.exp(-x) * _double(x)),
    'coslu': lambda x: (x + mp.cos(x)) * _sigmoid(x),
    'crrelu': lambda x: _relu(x) + mp.mpf('.01') * x * mp.exp(-x**2 / 2),
    'double_silu': lambda x: x * _sigmoid(x * _sigmoid(x)),
    'dsilu': lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    'e_swish': lambda x: mp.mpf('1.375') * x * _sigmoid(x),
    'eanaf': lambda x: x * mp.exp(x) / (mp.exp(x) + 2),
    'elish': lambda x: (x if x >= 0 else mp.expm1(x)) * _sigmoid(x),
    'elliott': lambda x: x / (1 + abs(x)) / 2 + mp.mpf(1) / 2,
    'elu': _elu,
    'erf': mp.erf,
    'erfact': lambda x: x * mp.erf(mp.mpf('.75') * mp.exp(min(mp.mpf('.75') * x, mp.mpf(9)))),
    'gaussian': lambda x: mp.exp(-x**2),
    'gcu': lambda x: x * mp.cos(x),
    'gelu': lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    'gelu_tanh': _gelu_tanh,
    'gish': lambda x: x * mp.log(2 - _double(x)),
    'golu': lambda x: x * _double(-x),
    'hard_shrink': lambda x: x if abs(x) > 0.5 else mp.mpf(0),
    'hard_sigmoid': lambda x: _ramp(x + 3, 0, 6) / 6,
    'hard_silu': lambda x: x * _ramp(x + 3, 0, 6) / 6,
    'hard_tanh': lambda x: _ramp(x, -1, 1),
    'identity': lambda x: x,
    'isrlu': lambda x: x if x >= 0 else x / mp.sqrt(1 + x**2),
    'isru': lambda x: x / mp.sqrt(1 + x**2),
    'lalu': lambda x: x * (1 - mp.exp(-x) / 2 if x >= 0 else mp.exp(x) / 2),
    'laplace_mega': lambda x: mp.erfc((_MEGA[0] - x) / (_MEGA[1] * mp.sqrt(2))) / 2,
    'leaky_relu': lambda x: x if x >= 0 else x / 100,
    'lecun_tanh': lambda x: mp.mpf('1.7159') * mp.tanh(2 * x / 3),
    'lisht': lambda x: x * mp.tanh(x),
    'log_sigmoid': lambda x: -_softplus(-x),
    'logish': lambda x: x * mp.log1p(_sigmoid(x)),
    'loglog': lambda x: _double(-x),
    'loglogish': lambda x: x * (1 - _double(x)),
    'mish': lambda x: x * mp.tanh(_softplus(x)),
    'nlrelu': lambda x: mp.log1p(_relu(x)),
    'penalized_tanh': lambda x: mp.tanh(x) if x > 0 else mp.tanh(x) / 4,
    'pflu': lambda x: x * (1 + x / mp.sqrt(1 + x**2)) / 2,
    'phish': lambda x: x * mp.tanh(x * mp.erfc(-x / mp.sqrt(2)) / 2),
    'polyrelu': lambda x: (_relu(x) + _relu(x)**2 + _relu(x)**3) / 3,
    'prelu': lambda x: x if x >= 0 else x / 4,
    'pserf': lambda x: x * mp.erf(mp.mpf('1.25') * _softplus(mp.mpf('.85') * x)),
    'quick_gelu': lambda x: x * _sigmoid(mp.mpf('1.702') * x),
    'relu': _relu,
    'relu6': lambda x: _ramp(x, 0, 6),
    'relu_squared': lambda x: _relu(x)**2,
    'selu': lambda x: _SELU[0] * _elu(x, _SELU[1]),
    'serf': lambda x: x * mp.erf(_softplus(x)),
    'serlu': lambda x: _SERLU[0] * (x if x >= 0 else _SERLU[1] * x * mp.exp(x)),
    'sgelu': lambda x: x * mp.erf(x / mp.sqrt(2)),
    'shifted_relu': lambda x: max(x, mp.mpf(-1)),
    'shifted_softplus': lambda x: _softplus(x) - mp.log(2),
    'sigmoid': _sigmoid,
    'silu': lambda x: x * _sigmoid(x),
    'sin': mp.sin,
    'sinc': lambda x: mp.sin(x) / x if x else mp.mpf(1),
    'sinlu': lambda x: (x + mp.sin(x)) * _sigmoid(x),
    'sinsig': lambda x: x * mp.sin(mp.pi * _sigmoid(x) / 2),
    'smish': lambda x: x * mp.tanh(mp.log1p(_sigmoid(x))),
    'snake': lambda x: x + mp.sin(x)**2,
    'soft_shrink': lambda x: mp.sign(x) * _relu(abs(x) - mp.mpf('.5')),
    'soft_sign': lambda x: x / (1 + abs(x)),
    'softplus': _softplus,
    'sparse_plus': lambda x: x if x >= 1 else _relu(x + 1)**2 / 4,
    'sparse_sigmoid': lambda x: _ramp(x + 1, 0, 2) / 2,
    'sqnl': lambda x: x - x * abs(x) / 4 if abs(x) <= 2 else mp.sign(x),
    'squareplus': lambda x: (x + mp.sqrt(x**2 + 4)) / 2,
    'star_relu': lambda x: mp.mpf('.8944') * _relu(x)**2 - mp.mpf('.4472'),
    'suish': lambda x: max(x, x * mp.exp(-abs(x))),
    'swish_beta': lambda x: x * _sigmoid(x),
    'symlog': lambda x: mp.sign(x) * mp.log1p(abs(x)),
    'tanh': mp.tanh,
    'tanh_shrink': lambda x: x - mp.tanh(x),
    'tanhexp': lambda x: x * mp.tanh(mp.exp(x)),
    'tsrelu': lambda x: x * mp.tanh(_sigmoid(x)),
    'very_leaky': lambda x: x if x >= 0 else x / 3,
    'xielu': _xielu,
}


def _reference(name, points):
  with mp.workdps(60):
    return np.array([float(_REFERENCES[name](mp.mpf(float(x)))) for x in points])


# Half a step off every kink, so that a kink lies between two points. All float64 evaluations are
# of one shape, and all float32 ones of another, because compiling is what these tests wait for.
_STEP = 1e-3
_GRID = np.arange(-8 - _STEP / 2, 8, _STEP)
_FLOAT32_SHAPE = (64,)


@functools.cache
def _in_float64(name):
  """((f, f') at _POINTS, (f, f') on _GRID)."""
  with jax.enable_x64(True):
    x = jnp.asarray(np.concatenate([_POINTS, _GRID]))
    both = jax.jvp(get_activation(name), (x,), (jnp.ones_like(x),))
    both = [np.asarray(array) for array in both]
  return [array[:len(_POINTS)] for array in both], [array[len(_POINTS):] for array in both]


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
  assert set(_REFERENCES) == set(_POINTWISE)


@pytest.mark.parametrize('name', _POINTWISE)
def test_values_agree_with_mpmath_in_every_precision(name):
  narrow = jnp.asarray(_POINTS, jnp.bfloat16)
  single = np.asarray(_POINTS, np.float32)
  for x, ours, rtol in (
      (narrow, get_activation(name)(narrow), 2**-8),
      (single, _in_float32(single)[_POINTWISE.index(name), 0], 2e-5),
      (_POINTS, _in_float64(name)[0][0], 1e-9)):
    # 2e-36 is 88 times more than what float32 arithmetic flushes to 0.
    np.testing.assert_allclose(
        np.asarray(ours).astype(np.float64), _reference(name, x), rtol=rtol, atol=2e-36)


@pytest.mark.parametrize('name', _POINTWISE)
def test_derivatives_agree_with_mpmath(name):
  kinks = get_activation(name).kinks
  smooth = [i for i, x in enumerate(_POINTS) if all(abs(x - kink) > 1e-3 for kink in kinks)]
  with mp.workdps(60):
    expected = [float(mp.diff(_REFERENCES[name], mp.mpf(_POINTS[i]), h=mp.mpf('1e-25')))
                for i in smooth]
  np.testing.assert_allclose(_in_float64(name)[0][1][smooth], expected, rtol=1e-8, atol=1e-12)
  ours = _in_float32(np.asarray(_POINTS))[_POINTWISE.index(name), 1, smooth]
  np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-6)


@given(st.lists(st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(-50, 50, width=32)),
                min_size=40, max_size=40))
def test_values_and_two_derivatives_are_finite_everywhere(xs):
  bad = ~np.isfinite(_in_float32([*xs, *_POINTS])).all(axis=(1, 2))
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
