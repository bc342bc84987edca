"""Every operator of the search language against a formula of its own, and what the table says."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special

from model_lib.errors import UserError
from model_lib.search import OPERATORS, Evaluator, Expression, X, get_operator, get_space

_U = np.linspace(-3.9, 4.1, 64)  # no kink among them
_V = 0.3 + 1.7 * np.sin(3 * _U)
_W = np.cos(2 * _U) - 0.4
_BETA = 0.7


def _phi(x):
  return 0.5 * special.erfc(-x / np.sqrt(2))


def _integral(order):
  """e^-|x| I_n(x) by its integral over an angle."""
  angles = (np.arange(2000) + 0.5) * np.pi / 2000
  return lambda x: np.array([np.mean(np.exp(t * np.cos(angles) - abs(t)) * np.cos(order * angles))
                             for t in x])


def _mp(function):
  return lambda x: np.array([float(function(mpmath.mpf(t))) for t in x])


_SIGMA = 1 / (1 + np.exp(-_U))
_REFERENCES = {
    'identity': lambda a: a, 'zero': lambda a: 0 * a, 'one': lambda a: 0 * a + 1,
    'neg': lambda a: 0 - a, 'abs': lambda a: np.sqrt(a * a), 'reciprocal': lambda a: a**-1.0,
    'square': lambda a: a**2, 'cube': lambda a: a**3, 'sqrt': lambda a: a**0.5,
    'log_abs': lambda a: 0.5 * np.log((np.abs(a) + 1e-5)**2), 'exp': _mp(mpmath.exp),
    'expm1': _mp(mpmath.expm1), 'exp_plus_one': lambda a: np.exp(a) + 1,
    'exp_neg_plus_one': lambda a: 1 / np.exp(a) + 1,
    'two_cosh': lambda a: np.exp(a) + np.exp(-a), 'two_sinh': lambda a: np.exp(a) - np.exp(-a),
    'gaussian': lambda a: np.exp(-a**2), 'sin': _mp(mpmath.sin), 'cos': _mp(mpmath.cos),
    'sinh': _mp(mpmath.sinh), 'cosh': _mp(mpmath.cosh), 'erfc': _mp(mpmath.erfc),
    'i0e': _integral(0), 'i1e': _integral(1), 'min_zero': lambda a: (a - np.abs(a)) / 2,
    'tanh': lambda a: np.sinh(a) / np.cosh(a), 'asinh': _mp(mpmath.asinh),
    'atan': _mp(mpmath.atan), 'erf': _mp(mpmath.erf), 'sinc': lambda a: np.sin(a) / a,
    'sigmoid': lambda a: 1 / (1 + np.exp(-a)), 'log_sigmoid': lambda a: -np.log(1 + np.exp(-a)),
    'relu': lambda a: (a + np.abs(a)) / 2,
    'elu': lambda a: np.where(a > 0, a, np.exp(a) - 1),
    'selu': lambda a: 1.0507009873554805 * np.where(
        a > 0, a, 1.6732632423543772 * (np.exp(a) - 1)),
    'swish': lambda a: a / (1 + np.exp(-a)), 'softplus': lambda a: np.log(1 + np.exp(a)),
    'softsign': lambda a: a / (1 + np.abs(a)),
    'hard_sigmoid': lambda a: np.where(a < -2.5, 0, np.where(a > 2.5, 1, a / 5 + 0.5)),
    'elish': lambda a: np.where(a >= 0, a, np.exp(a) - 1) / (1 + np.exp(-a)),
    'leaky_relu': lambda a: np.where(a >= 0, a, a / 100),
    'mish': lambda a: a * np.tanh(np.log(1 + np.exp(a))), 'gelu': lambda a: a * _phi(a),
    'scale': lambda a, beta: a * beta, 'shift': lambda a, beta: beta + a,
    'beta': lambda a, beta: np.full_like(a, beta),
    'add': lambda a, b: a - (-b), 'sub': lambda a, b: a + (-b),
    'mul': lambda a, b: ((a + b)**2 - (a - b)**2) / 4, 'div': lambda a, b: a * b**-1.0,
    'pow': lambda a, b: np.where(a > 0, np.exp(b * np.log(np.abs(a))), np.nan),
    'max': lambda a, b: (a + b + np.abs(a - b)) / 2,
    'min': lambda a, b: (a + b - np.abs(a - b)) / 2,
    'safe_div': lambda a, b: a * (b + 1e-5)**-1.0, 'gate': lambda a, b: b / (1 + np.exp(-a)),
    'exp_square_difference': lambda a, b, beta: np.exp(-beta * (a * a - 2 * a * b + b * b)),
    'exp_abs_difference': lambda a, b, beta: np.exp(-beta * np.sqrt((a - b)**2)),
    'mix': lambda a, b, beta: b + beta * (a - b),
    'sum_n': lambda *a: np.sum(a, 0), 'prod_n': lambda *a: np.prod(a, 0),
    'max_n': lambda *a: np.max(a, 0), 'min_n': lambda *a: np.min(a, 0),
}


def _inputs(operator):
  return (_U, _V, _W)[:operator.arity or 3]


def _reference(name):
  operator = OPERATORS[name]
  with np.errstate(all='ignore'):
    return np.asarray(_REFERENCES[name](*_inputs(operator), *(_BETA for _ in operator.inits)))


def _values(name, dtype=jnp.float32):
  """What the operator gives, through an expression over several inputs."""
  operator = OPERATORS[name]
  return operator.function(*(jnp.asarray(part, dtype) for part in _inputs(operator)),
                           *(jnp.asarray(_BETA, dtype) for _ in operator.inits))


@pytest.fixture(scope='module')
def in_float32():
  names = list(OPERATORS)
  return dict(zip(names, jax.jit(lambda: [_values(name) for name in names])(), strict=True))


def test_every_operator_has_a_reference():
  assert set(_REFERENCES) == set(OPERATORS)


@pytest.mark.parametrize('name', OPERATORS)
def test_values_in_float32(name, in_float32):
  np.testing.assert_allclose(in_float32[name], _reference(name), rtol=2e-5, atol=2e-6)


def test_references_tell_the_operators_apart():
  """The tolerance above would not take one operator for another."""
  values = {name: _reference(name) for name in OPERATORS if OPERATORS[name].arity == 1}
  same = [(a, b) for a in values for b in values
          if a < b and np.allclose(values[a], values[b], rtol=2e-5, atol=2e-6, equal_nan=True)]
  assert same == []


@pytest.mark.parametrize('name', [name for name in OPERATORS if OPERATORS[name].arity == 1])
def test_values_and_slopes_of_a_unary_one_in_numpy(name):
  """Slopes by central differences of the reference; the operator stands on x itself."""
  operator = OPERATORS[name]
  betas = [_BETA] * len(operator.inits)
  at = Evaluator(_U)
  f = Expression(name, (X,))
  np.testing.assert_allclose(at.value(f, betas), _reference(name), rtol=1e-11, atol=1e-13)
  step = 1e-5
  with np.errstate(invalid='ignore'):
    slope = (_REFERENCES[name](_U + step, *betas) - _REFERENCES[name](_U - step, *betas)) / (
        2 * step)
  np.testing.assert_allclose(at.slope(f, betas), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', [name for name in OPERATORS if OPERATORS[name].arity != 1])
def test_slopes_of_the_others_follow_the_chain_rule(name):
  operator = OPERATORS[name]
  inner = [Expression(part, (X,)) for part in ('softplus', 'cos', 'atan')][:operator.arity or 3]
  betas = [_BETA] * len(operator.inits)
  f = Expression(name, tuple(inner))

  def reference(x):
    parts = [np.log(1 + np.exp(x)), np.cos(x), np.arctan(x)][:len(inner)]
    return _REFERENCES[name](*parts, *betas)

  at, step = Evaluator(_U), 1e-5
  np.testing.assert_allclose(at.value(f, betas), reference(_U), rtol=1e-11, atol=1e-13)
  slope = (reference(_U + step) - reference(_U - step)) / (2 * step)
  np.testing.assert_allclose(at.slope(f, betas), slope, rtol=2e-6, atol=1e-7)


def test_facts_of_the_table_hold_on_values():
  at = Evaluator(np.linspace(-6, 6, 96))

  def holds(fact, name):
    f = Expression(name, (X,))
    there = at.value(f, [_BETA] * f.n_parameters)
    if fact == 'idempotent':
      return np.allclose(at.value(Expression(name, (f,)), [_BETA] * 2 * f.n_parameters), there,
                         equal_nan=True)
    if fact == 'nonnegative':
      return np.isnan(there).any() or (there >= 0).all()
    if fact == 'constant':
      return (there == there[0]).all()
    return np.allclose(there[::-1], {'odd': -there, 'even': there}[fact], equal_nan=True)

  told, missed = [], []
  for name, operator in OPERATORS.items():
    if operator.arity == 1:
      facts = {fact for fact in ('idempotent', 'nonnegative', 'constant')
               if getattr(operator, fact)} | ({operator.parity} - {''})
      told += [(fact, name) for fact in facts]
      missed += [(fact, name) for fact in ('odd', 'even', 'idempotent') if fact not in facts]
  with np.errstate(invalid='ignore'):
    assert [pair for pair in told if not holds(*pair)] == []
    # Constants are even, beta times beta x is not beta x, and 1 / (1 / x) is x: nothing else has a
    # fact that the table does not tell.
    assert {name for fact, name in missed if holds(fact, name)} == {'zero', 'one', 'beta'}


def test_commutative_is_what_may_be_swapped():
  swapped = {}
  for name, operator in OPERATORS.items():
    if operator.arity != 1:
      inputs, betas = _inputs(operator), [_BETA] * len(operator.inits)
      with np.errstate(all='ignore'):
        swapped[name] = np.allclose(_REFERENCES[name](*inputs, *betas),
                                    _REFERENCES[name](*inputs[::-1], *betas), equal_nan=True)
  assert swapped == {name: OPERATORS[name].commutative for name in swapped}


@pytest.mark.parametrize('space, unary, binary, nary', [
    ('swish', 24, 10, 0), ('pangaea', 23, 6, 0), ('act_bench', 27, 7, 0), ('aquasurf', 31, 7, 4)])
def test_numbers_of_operators(space, unary, binary, nary):
  space = get_space(space)
  assert tuple(len(space.of_kind(kind)) for kind in ('unary', 'binary', 'n-ary')) == (
      unary, binary, nary)


def test_an_unknown_operator_names_the_nearest():
  with pytest.raises(UserError, match="no search operator is called 'sigmiod'; nearest: 'sigmoid'"):
    get_operator('sigmiod')
