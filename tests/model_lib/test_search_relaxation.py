"""The mixture over a search space: its values, gradients and start, and what is read out of it."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy import special
from scipy import stats

from model_lib import models
from model_lib.activations.host import evaluate
from model_lib.errors import UserError
from model_lib.models import candidate
from model_lib.models import swept
from model_lib.models.activation_layer import consumer_gains
from model_lib.search import SPACES, Evaluator, ValidityFilter, candidates, get_space
from model_lib.search.engines import Relaxation, harden
from model_lib.search.engines.relaxation import LOGITS, slots
from model_lib.search.engines.standard_form import RANGE
from model_lib.training.cohort import Member, ModelSpec
from tests.model_lib.engine import Engine

# The standard forms of a small space, written out anew, in the space's order.
TINY = get_space('act_bench').restricted(
    ('identity', 'square', 'exp', 'tanh', 'relu', 'add', 'sub', 'mul'))
_UNARY = {
    'identity': lambda x: x,
    'square': lambda x: np.where(np.abs(x) > 3, 6 * np.abs(x) - 9, x * x),
    'exp': lambda x: np.where(x > 3, np.e**3 * (x - 2), np.exp(np.minimum(x, 3))),
    'tanh': np.tanh,
    'relu': lambda x: np.maximum(x, 0)}
_BINARY = {'add': lambda a, b: (a + b) / 2**0.5, 'sub': lambda a, b: (a - b) / 2**0.5,
           'mul': lambda a, b: a * b}
_POINTS = np.concatenate([np.linspace(-20, 20, 161), [-3.01, -2.99, 1e-3, -1e-3, 2.99, 3.01]])


def second_moment(function):
  """E f(z)^2, z ~ N(0, 1), by another quadrature."""
  return sum(integrate.quad(lambda z: function(z)**2 * stats.norm.pdf(z), *ends, epsabs=1e-12)[0]
             for ends in itertools.pairwise((-12, -3, 0, 3, 12)))


@pytest.fixture(scope='module')
def by_hand():
  """The mixture of the small space in NumPy: (p, q, r), x -> y."""
  divisors = {name: second_moment(function)**0.5 for name, function in _UNARY.items()}

  def mixture(probabilities, x):
    p, q, r = probabilities
    values = [function(x) / divisors[name] for name, function in _UNARY.items()]
    a, b = (sum(weight * value for weight, value in zip(weights, values, strict=True))
            for weights in (q, r))
    return sum(weight * function(a, b)
               for weight, function in zip(p, _BINARY.values(), strict=True))
  return mixture


def softmax(logits, temperature=1.0):
  return [np.exp(part / temperature) / np.exp(part / temperature).sum() for part in logits]


def random_logits(seed):
  rng = np.random.default_rng(seed)
  return [rng.normal(0, 1.5, size) for size in (3, 5, 5)]


def named(logits):
  return {name: jnp.asarray(part, jnp.float32) for name, part in zip(LOGITS, logits, strict=True)}


@functools.cache
def program(space):
  """(logits, temperature, x) -> y, and what cos(x) pulls back to the logits and to x."""
  def values_and_gradients(logits, temperature, x):
    y, back = jax.vjp(lambda *params: Relaxation(space).apply(
        {'temperature': temperature}, dict(zip(LOGITS, params[:3], strict=True)), params[3]),
        *logits, x)
    return y, back(jnp.cos(x))
  return jax.jit(values_and_gradients, compiler_options={'xla_backend_optimization_level': 0})


def ran(space, logits, temperature=1.0, x=_POINTS):
  single = [np.float32(part) for part in logits]
  return program(space)(single, np.float32(temperature), x.astype(np.float32))


def sizes(space):
  return [len(terms) for terms in slots(space).by_logits.values()]


def test_the_mixture_is_the_one_computed_by_hand(by_hand):
  assert [term.operator.name for term in slots(TINY).unary] == list(_UNARY)
  for seed, temperature in ((0, 1.0), (1, 0.5)):
    logits = random_logits(seed)
    expected = by_hand(softmax(logits, temperature), _POINTS)
    np.testing.assert_allclose(ran(TINY, logits, temperature)[0], expected, rtol=2e-5, atol=2e-5)
    assert np.abs(by_hand(softmax(random_logits(2)), _POINTS) - expected).max() > 1
  narrow = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
  y = jax.eval_shape(Relaxation(TINY).apply, {'temperature': 1.0}, named(logits), narrow)
  assert (y.dtype, y.shape) == (narrow.dtype, narrow.shape)


@pytest.mark.parametrize('name', ['act_bench', 'swish'])
def test_one_operator_per_slot_is_the_expression_up_to_the_divisors(name):
  """b(u / rms u, v / rms v) / rms b: within +-3 no operator is changed."""
  space, near = get_space(name), np.abs(_POINTS) <= RANGE
  exact, by_logits = Evaluator(_POINTS[near]), slots(space).by_logits
  for k in range(5):
    places = [(7 * k + i) % n for i, n in enumerate(sizes(space))]
    logits = [np.where(np.arange(n) == place, 0, -1e4)
              for n, place in zip(sizes(space), places, strict=True)]
    b, u, v = (terms[place] for terms, place in zip(by_logits.values(), places, strict=True))
    hard, = harden(named(logits), space)
    assert str(hard) == f'{b.operator.name}({u.operator.name}(x), {v.operator.name}(x))'
    inner = [exact.value(argument) / term.rms
             for argument, term in zip(hard.args, (u, v), strict=True)]
    expected = evaluate(lambda *ab, b=b: b.operator.function(*ab, *b.operator.inits), *inner)
    np.testing.assert_allclose(
        ran(space, logits)[0][near], expected / b.rms, rtol=1e-5, atol=1e-5)


def test_divisors_are_the_roots_of_second_moments():
  """Binary: E e^(-2 d^2) and E e^(-2 |d|), d = a - b of variance 2; the last with its kink."""
  terms = {term.operator.name: term.rms**2 for name in ('act_bench', 'swish')
           for term in (*slots(get_space(name)).unary, *slots(get_space(name)).binary)}
  closed = {'relu': 0.5, 'one': 1, 'zero': 1, 'add': 2, 'mul': 1, 'max': 1,
            'exp_square_difference': 1 / 3, 'gate': second_moment(lambda z: 1 / (1 + np.exp(-z)))}
  for name, value in closed.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-10)
  np.testing.assert_allclose(terms['exp_abs_difference'],
                             2 * np.exp(4) * stats.norm.cdf(-8**0.5), rtol=2e-3)


def test_operators_without_a_standard_form_are_left_out():
  left_out = {name: sorted(slots(space).left_out) for name, space in SPACES.items()}
  assert left_out['act_bench'] == left_out['aquasurf'] == ['div', 'pow', 'reciprocal']
  assert left_out['swish'] == ['log_abs', 'mix', 'safe_div', 'scale', 'shift', 'sqrt']
  assert left_out['pangaea'] == ['cosh', 'div', 'reciprocal', 'sinh']
  assert slots(get_space('swish')).left_out['mix'] == 'the same as add'


@pytest.mark.parametrize('name', ['act_bench', 'swish', 'pangaea'])
def test_values_and_gradients_are_finite_and_the_start_has_its_gain(name):
  space, rng = get_space(name), np.random.default_rng(5)
  logits = [rng.normal(0, 1, n) for n in sizes(space)]
  x = np.append(_POINTS[:-6], [0, 3, 1e-30, -1e-30, 1e6, -1e6])
  for part in jax.tree.leaves(ran(space, logits, x=x)):
    assert np.isfinite(part).all() and np.any(part)
  places = special.ndtri((np.arange(len(x)) + 0.5) / len(x))
  start = ran(space, [np.zeros(n) for n in sizes(space)], x=places)[0]
  gain, = consumer_gains(f'relaxation({name})')
  np.testing.assert_allclose(np.mean(np.square(start))**-0.5, gain, rtol=0.1)
  ends = [np.abs(evaluate(term, np.array([-3.0, 3.0]))).max() for term in slots(space).unary]
  assert 5 < max(ends) < 10


def test_the_gain_is_the_one_of_equal_probabilities(by_hand):
  def start(z):
    return by_hand([np.full(n, 1 / n) for n in (3, 5, 5)], z)
  np.testing.assert_allclose(Relaxation(TINY).gain(), second_moment(start)**-0.5, rtol=1e-6)


def test_gradients_are_those_of_finite_differences(by_hand):
  logits, temperature, step = random_logits(3), 0.7, 1e-5
  smooth = (np.abs(_POINTS) > 1e-4) & (np.abs(np.abs(_POINTS) - 3) > 1e-4)

  def pulled(logits, x=_POINTS):
    return by_hand(softmax(logits, temperature), x) * np.cos(_POINTS)

  *to_logits, to_x = ran(TINY, logits, temperature)[1]
  slopes = (pulled(logits, _POINTS + step) - pulled(logits, _POINTS - step)) / (2 * step)
  np.testing.assert_allclose(to_x[smooth], slopes[smooth], rtol=1e-4, atol=1e-4)
  rounding = 3e-7 * np.abs(pulled(logits)).sum()
  for k, part in enumerate(logits):
    expected = []
    for i in range(len(part)):
      sides = [[*logits[:k], part + sign * step * (np.arange(len(part)) == i), *logits[k + 1:]]
               for sign in (-1, 1)]
      expected.append((pulled(sides[1]).sum() - pulled(sides[0]).sum()) / (2 * step))
    assert np.abs(expected).max() > 100 * rounding
    np.testing.assert_allclose(to_logits[k], expected, rtol=1e-4, atol=rounding)


@pytest.mark.parametrize('binary, apart', [(('add', 'mul'), False), (('add', 'sub', 'mul'), True)])
def test_sub_makes_the_two_arguments_differ(binary, apart):
  space = TINY.restricted(('identity', 'tanh', 'relu', *binary))
  *_, to_left, to_right, _ = ran(space, [np.zeros(n) for n in sizes(space)])[1]
  assert np.any(to_left)
  assert apart != np.allclose(to_left, to_right, rtol=1e-5)


def test_planted_logits_are_read_out_in_the_order_of_their_probability():
  logits = random_logits(7)
  logits[0][1] = logits[1][3] = logits[2][0] = 9
  found = harden({'layer': named(logits)}, TINY, 75)
  assert [str(expression) for expression in found[:1]] == ['sub(tanh(x), identity(x))']
  names = [[term.operator.name for term in terms] for terms in slots(TINY).by_logits.values()]
  shares = [dict(zip(n, part, strict=True)) for n, part in zip(names, softmax(logits), strict=True)]
  expected = sorted(itertools.product(*names), key=lambda chosen: -np.prod(
      [share[name] for share, name in zip(shares, chosen, strict=True)]))
  assert [str(e) for e in found] == [f'{b}({u}(x), {v}(x))' for b, u, v in expected]
  assert harden(named(logits), TINY) == found[:1]
  even = harden(named([np.zeros(n) for n in (3, 5, 5)]), TINY, 75)
  assert even == list(TINY.expressions())
  usable = candidates(found).valid
  assert usable[0] == next(e for e in found if ValidityFilter()(e).valid) and len(usable) > 9


def test_the_logits_of_all_layers_count():
  strong, weak = random_logits(7), random_logits(8)
  weak[1][2], strong[1][3], strong[1][2] = 9, 5, 1
  layers = {'activation_0': named(strong), 'rest': {'activation_1': named(weak)},
            'kernel': jnp.ones((3, 3))}
  both = [(a + b) / 2 for a, b in zip(strong, weak, strict=True)]
  assert harden(layers, TINY, 9) == harden(named(both), TINY, 9) != harden(named(strong), TINY, 9)
  assert harden(named(strong), TINY)[0].args[0].operator == 'tanh'
  assert harden(layers, TINY)[0].args[0].operator == 'exp'


@pytest.mark.parametrize('params, match', [
    ({}, r'binary_logits must be \[3\] for one member, not missing'),
    (named([np.zeros(3), np.zeros(6), np.zeros(5)]), r'left_logits must be \[5\].*not \(6,\)'),
    (named([np.zeros((4, n)) for n in (3, 5, 5)]), r'for one member, not \(4, 3\)')])
def test_params_without_such_logits_are_refused_in_one_line(params, match):
  with pytest.raises(UserError, match=match) as error:
    harden(params, TINY)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('spec, match', [
    ('relaxation(act_bank)', "no search space is called 'act_bank'; nearest: 'act_bench'"),
    ('relaxation', r'write relaxation\(SPACE\)'),
    ('relaxation(swish, temperature=2)', r'write relaxation\(SPACE\)')])
def test_an_unknown_space_is_refused_in_one_line(spec, match):
  with pytest.raises(UserError, match=match) as error:
    models.build('mlp', activation=spec)
  assert '\n' not in str(error.value)


def test_a_space_without_the_mixture_is_refused_in_one_line():
  pairs = get_space('pangaea').restricted(('tanh', 'square'))
  alone = TINY.restricted(('identity', 'add'))
  for space, match in ((pairs, 'has not; it has: unary'), (
      get_space('act_bench').restricted(('identity', 'div')), 'leaves its relaxation no binary')):
    with pytest.raises(UserError, match=match):
      slots(space)
  assert len(slots(alone).unary) == 1


def test_a_mixture_takes_no_candidate():
  model = models.build('mlp', activation='relaxation(swish)')
  with pytest.raises(UserError, match='mixture of its whole space'):
    candidate.encode(model, 'relu(x)')


@pytest.fixture(scope='module')
def engine():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(swept._MAKERS, 'tiny', lambda call: Relaxation(TINY))
    yield Engine(ModelSpec('mlp', {'widths': (16, 16), 'activation': 'tiny'}), chunk=2, streams=4,
                 evaluates=False)


def test_training_moves_the_logits_of_each_layer_and_no_member_sees_another(engine, tmp_path):
  runs = [Member({'number': i}, i, 0, 0, {'learning_rate': 1e-2, 'temperature': temperature})
          for i, temperature in enumerate((1.0, 0.3, 0.3, 1.0))]
  trained = engine.train(runs, tmp_path)
  losses = trained.losses()
  assert np.isfinite(losses).all() and (losses[:, -5:].mean(1) < losses[:, :5].mean(1)).all()
  layers = [trained.state.params[f'activation_{i}'] for i in range(2)]
  for layer in layers:
    for name, size in zip(LOGITS, (3, 5, 5), strict=True):
      assert layer[name].shape == (4, size) and (np.abs(layer[name]).max(1) > 0.02).all()
    assert (layer['left_logits'] != layer['right_logits']).any()
  assert (layers[0]['left_logits'] != layers[1]['left_logits']).any()
  alone = engine.train(runs[1:2], tmp_path)
  assert alone.leaves(0) == trained.leaves(1) != trained.leaves(2)
  warm = dict(runs[1].hp, temperature=1.0)
  other = engine.train([Member({}, 1, 0, 0, warm)], tmp_path)
  assert other.leaves(0) != alone.leaves(0)
  params = jax.tree.map(lambda leaf: leaf[1], trained.state.params)
  assert len(set(harden(params, TINY, 75))) == 75
