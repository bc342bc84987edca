"""Expressions: text and tree, parameters on edges, the canonical form, and error lines."""

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.search import (
    OPERATORS,
    Evaluator,
    Expression,
    ExpressionError,
    X,
    canonical,
    get_space,
    number,
    parse,
)

_GRID = np.linspace(-2.9, 3.1, 40)
_AT = Evaluator(_GRID)
_BY_ARITY = {arity: [name for name, operator in OPERATORS.items() if operator.arity == arity]
             for arity in (1, 2, None)}


def _over(trees):
  def node(arity, least, most):
    return st.builds(lambda name, args: Expression(name, tuple(args)),
                     st.sampled_from(_BY_ARITY[arity]),
                     st.lists(trees, min_size=least, max_size=most))
  return st.one_of(node(1, 1, 1), node(2, 2, 2), node(None, 2, 4))


def _trees(leaves, max_leaves=8):
  return st.recursive(leaves, _over, max_leaves=max_leaves)


_numbers = st.floats(allow_nan=False, allow_infinity=False).map(number)
# Few numbers, so that neutral elements and equal parts are common.
_small = st.sampled_from([X, X, number(0), number(1), number(-1), number(2), number(0.5)])


@given(_trees(st.one_of(st.just(X), _numbers)))
def test_text_reads_back_as_the_same_expression(f):
  assert parse(str(f)) == f
  assert hash(parse(str(f))) == hash(f)
  assert str(parse(str(f))) == str(f)


@given(_trees(st.just(X)), st.sampled_from([' ', '\n', ' \t ']))
def test_white_space_between_tokens_changes_nothing(f, space):
  text = str(f)
  for token in '(),':
    text = text.replace(token, f'{space}{token}{space}')
  assert parse(f'{space}{text}{space}') == f


@pytest.mark.parametrize('text, f', [
    ('x', X),
    ('max(relu(x),cosh(elu(x)))', Expression('max', (
        Expression('relu', (X,)), Expression('cosh', (Expression('elu', (X,)),))))),
    ('mul(-.5, x)', Expression('mul', (number(-0.5), X))),
    ('prod_n(x, 1e-3, 2.)', Expression('prod_n', (X, number(0.001), number(2)))),
    ('-0.0', number(0)),
])
def test_reads(text, f):
  assert parse(text) == f


_MALFORMED = {
    'relu(x': "expected ',' or ')', at position 7, found the end",
    'relu(x))': "expected the end, at position 8, found ')'",
    'mul(x x)': "expected ',' or ')', at position 7, found 'x)'",
    'mul(x,, x)': "expected an operator, a number or 'x', at position 7, found ', x)'",
    'relu()': "expected an operator, a number or 'x', at position 6, found ')'",
    '': "expected an operator, a number or 'x', at position 1, found the end",
    'x + 1': "expected the end, at position 3, found '+ 1'",
    'mul(x, rleu(x))': "no operator is called 'rleu'; nearest: 'relu', 'elu', 'selu', "
                       'at position 8',
    'max(x, relu(x, x))': "operator 'relu' takes 1 argument, not 2, at position 8",
    'add(x)': "operator 'add' takes 2 arguments, not 1, at position 1",
    'sum_n(x)': "operator 'sum_n' takes at least 2 arguments, not 1, at position 1",
    'neg(relu)': "operator 'relu' takes 1 argument, not 0, at position 5",
    'neg(x(x))': "'x' is the input and takes no arguments, at position 5",
    'neg(1e999)': 'a number in an expression is finite and has no arguments, not inf, '
                  'at position 5',
    '__import__(x)': "no operator is called '__import__'",
    'relu(' * 70 + 'x' + ')' * 70: 'nested deeper than 64',
}


@pytest.mark.parametrize('text', _MALFORMED)
def test_malformed_text_is_one_line_with_the_place(text):
  with pytest.raises(ExpressionError) as caught:
    parse(text)
  line = str(caught.value)
  assert f'expression {text!r}: {_MALFORMED[text]}' in line
  assert '\n' not in line


def test_what_is_no_text_or_too_long_is_refused():
  with pytest.raises(UserError, match="a string such as 'relu\\(x\\)', not int 3"):
    parse(3)
  with pytest.raises(UserError, match='at most 4000 characters, not 4001'):
    parse('x' * 4001)


def test_a_space_limits_the_operators():
  names = get_space('pangaea').operators
  assert parse('sin(x)', names) == Expression('sin', (X,))
  with pytest.raises(ExpressionError, match="'relu' is not in this space, at position 1"):
    parse('relu(x)', names)
  with pytest.raises(ExpressionError, match="called 'sinn'; nearest: 'sin'"):
    parse('sinn(x)', names)


@pytest.mark.parametrize('make, line', [
    (lambda: Expression('rleu', (X,)), "no search operator is called 'rleu'; nearest: 'relu'"),
    (lambda: Expression('relu', (X, X)), "operator 'relu' takes 1 argument, not 2"),
    (lambda: Expression('x', (X,)), "'x' is the input"),
    (lambda: Expression('relu', (X,), 1.0), "operator 'relu' has no value"),
    (lambda: number(float('nan')), 'finite'),
])
def test_an_impossible_tree_cannot_be_made(make, line):
  with pytest.raises(UserError, match=line):
    make()


def test_expressions_compute_in_float32_and_return_the_inputs_dtype():
  f = parse('add(mul(x, sigmoid(scale(x))), mix(cos(shift(x)), sinc(x)))')
  params = {'beta_0': 1.7, 'beta_1': 0.3, 'beta_2': -0.4}
  narrow = jnp.asarray(_GRID, jnp.bfloat16)
  u = np.asarray(narrow, np.float64)
  wanted = u / (1 + np.exp(-1.7 * u)) + 0.3 * np.cos(u - 0.4) + 0.7 * np.sin(u) / u
  compute = jax.jit(lambda x, p: (f(x, **p), f(x.astype(jnp.float32), **p)))
  in_bf16, in_float32 = compute(narrow, params)
  assert in_bf16.dtype == jnp.bfloat16 and in_float32.dtype == jnp.float32
  np.testing.assert_allclose(in_float32, wanted, rtol=1e-5, atol=1e-6)
  assert (in_bf16 == in_float32.astype(jnp.bfloat16)).all()
  with pytest.raises(TypeError, match='has no parameter .beta_3.'):
    f(narrow, beta_3=1.0)


@given(_trees(st.just(X)))
def test_first_values_and_order_of_parameters_agree_between_jax_and_numpy(f):
  names = [parameter.name for parameter in f.parameters()]
  assert names == [f'beta_{i}' for i in range(f.n_parameters)]
  assert [p.init for p in f.parameters()] == [
      init for _, node in f.walk() for init in node.inits]


def test_jax_and_numpy_agree_on_random_expressions():
  """Values and derivatives of 40 expressions of all spaces, with parameters of their own values."""
  rng = np.random.default_rng(0)
  spaces = [get_space(name) for name in ('swish', 'pangaea', 'aquasurf')]
  drawn = [spaces[i % 3].sample(rng, parameters=rng.integers(3)) for i in range(40)]
  betas = [list(rng.uniform(0.5, 1.5, f.n_parameters)) for f in drawn]
  at = Evaluator(_GRID.astype(np.float32))

  @jax.jit
  def compute(x):
    named = [{f'beta_{i}': b for i, b in enumerate(beta)} for beta in betas]
    return [jax.jvp(lambda x, f=f, p=p: f(x, **p), (x,), (jnp.ones_like(x),))
            for f, p in zip(drawn, named, strict=True)]

  for f, beta, (value, slope) in zip(drawn, betas, compute(jnp.asarray(_GRID, jnp.float32)),
                                     strict=True):
    scale = 1 + np.nanmax(np.abs(np.where(np.isfinite(slope), slope, 0)))
    np.testing.assert_allclose(at.value(f, beta), value, rtol=1e-4, atol=1e-5 * scale,
                               err_msg=str(f))
    np.testing.assert_allclose(at.slope(f, beta), slope, rtol=1e-3, atol=1e-4 * scale,
                               err_msg=str(f))


def test_parameters_stand_on_edges():
  """A unary operator on x has two edges, an inner one has one."""
  f = parse('add(tanh(x), exp(sin(x)))')
  assert f.size == 4
  assert [str(f.at(path)) for path in f.edges()] == [
      'add(tanh(x), exp(sin(x)))', 'tanh(x)', 'x', 'exp(sin(x))', 'sin(x)', 'x']
  g = f.with_parameter((0, 0)).with_parameter((1,)).with_parameter(())
  assert str(g) == 'scale(add(tanh(scale(x)), scale(exp(sin(x)))))'
  assert [p.name for p in g.parameters('channel')] == ['beta_0', 'beta_1', 'beta_2']
  assert {(p.init, p.per) for p in g.parameters('channel')} == {(1.0, 'channel')}
  assert g.size == f.size and len(g.edges()) == len(f.edges())
  assert len(g.edges_with_parameter()) == 3
  wanted = 2 * (np.tanh(3 * _GRID) + 5 * np.exp(np.sin(_GRID)))
  np.testing.assert_allclose(_AT.value(g, [2, 3, 5]), wanted, rtol=1e-12)
  assert not np.allclose(_AT.value(g, [3, 2, 5]), wanted)
  for path in reversed(g.edges_with_parameter()):
    g = g.without_parameter(path)
  assert g == f


def test_an_edge_holds_one_parameter():
  f = parse('tanh(scale(x))')
  with pytest.raises(UserError, match=r'the edge \(0, 0\) .* holds a parameter already'):
    f.with_parameter((0, 0))
  with pytest.raises(UserError, match=r'has no edge \(3,\); its edges: '):
    f.with_parameter((3,))
  with pytest.raises(UserError, match=r'the edge \(\) .* holds no parameter'):
    f.without_parameter(())


@given(_trees(_small, max_leaves=10))
def test_canonical_form_preserves_values_and_is_its_own(f):
  form = canonical(f)
  assert canonical(form) == form
  assert parse(str(form)) == form
  if f.n_parameters:
    return
  ours, values = _AT.value(form), _AT.value(f)
  # Where float64 overflows or cancels, it does not hold the real number.
  with np.errstate(all='ignore'):
    close = np.isclose(ours, values, rtol=1e-6, atol=1e-6)
  fine = np.isfinite(values) & np.isfinite(ours) & (_condition(f) < 1e6)
  assert close[fine].all()


def _condition(f):
  """How much the largest of the values and slopes on the way amplifies rounding."""
  largest = np.ones_like(_GRID)
  with np.errstate(all='ignore'):
    for _, node in f.walk():
      value, slope = np.abs(_AT.value(node)), np.abs(_AT.slope(node))
      largest = np.maximum(largest, np.where(np.isfinite(value * slope), value + slope, np.inf))
  return largest


_SAME = [
    ('add(x, sin(x))', 'add(sin(x), identity(x))'),
    ('max(x, max(tanh(x), x))', 'max_n(tanh(x), x, tanh(x))'),
    ('add(add(x, sin(x)), cos(x))', 'sum_n(cos(x), x, sin(x))'),
    ('mul(x, neg(exp(x)))', 'neg(mul(exp(x), x))'),
    ('gate(x, x)', 'swish(x)'),
    ('mul(sigmoid(x), x)', 'swish(x)'),
    ('add(x, zero(exp(x)))', 'x'),
    ('div(x, one(x))', 'pow(x, 1)'),
    ('mul(2, mul(0.5, x))', 'x'),
    ('sub(x, neg(neg(neg(sin(x)))))', 'add(sin(x), x)'),
    ('tanh(neg(x))', 'neg(tanh(x))'),
    ('cosh(neg(abs(x)))', 'cosh(x)'),
    ('abs(softplus(x))', 'softplus(x)'),
    ('relu(relu(abs(x)))', 'abs(x)'),
    ('max(0, x)', 'relu(x)'),
    ('mul(x, x)', 'pow(x, add(one(x), 1))'),
    ('sub(2, 3)', 'neg(one(x))'),
]


@pytest.mark.parametrize('left, right', _SAME)
def test_same_canonical_form(left, right):
  assert canonical(parse(left)) == canonical(parse(right))
  np.testing.assert_allclose(_AT.value(parse(left)), _AT.value(parse(right)), rtol=1e-12)


@pytest.mark.parametrize('left, right', [
    ('sub(x, sin(x))', 'sub(sin(x), x)'),
    ('pow(x, 2)', 'pow(2, x)'),
    ('div(x, exp(x))', 'div(exp(x), x)'),
    ('gate(x, tanh(x))', 'gate(tanh(x), x)'),
    ('softplus(neg(x))', 'neg(softplus(x))'),
    ('exp(neg(x))', 'exp(x)'),
    ('abs(softsign(x))', 'softsign(x)'),
    ('max(scale(x), scale(x))', 'scale(x)'),  # two parameters
    ('mul(scale(x), scale(x))', 'square(scale(x))'),
    ('add(0.1, 0.2)', '0.3'),  # not exact in float64
    ('sub(log_abs(x), log_abs(x))', 'zero(x)'),  # no cancelling: it could hide a missing value
    ('mul(0, reciprocal(x))', 'zero(x)'),
])
def test_different_canonical_forms(left, right):
  assert canonical(parse(left)) != canonical(parse(right))
