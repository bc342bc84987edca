"""Engines of the activation search: what they refuse, their derivatives, members of one program."""

import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.activations import get_activation
from model_lib.errors import UserError
from model_lib.models import candidate
from model_lib.models import swept
from model_lib.models.activation_layer import ActivationLayer, consumer_gains
from model_lib.search import get_space, parse
from model_lib.search.engines import gain, kinks
from model_lib.search.engines.bytecode import OPCODES, run
from model_lib.search.engines.table import _encoded
from model_lib.search.operators import OPERATORS
from model_lib.training.cohort import Member, ModelSpec
from tests.model_lib.engine import Engine
from tests.model_lib.expressions import encoded, runs

_POINTS = (np.random.default_rng(3).standard_normal((32, 24)) * 2).astype(np.float32)
_MLP = {'widths': (24, 24)}
_QUICK = {'compiler_options': {'xla_backend_optimization_level': 0}}


def test_the_kinks_of_an_expression_are_listed():
  assert kinks(parse('relu(x)')) == (0,)
  assert kinks(parse('hard_sigmoid(x)')) == (-2.5, 2.5)
  assert kinks(parse('swish(x)')) == ()
  np.testing.assert_allclose(kinks(parse('max(x, cos(x))')), [0.7390851332151607], atol=1e-9)
  np.testing.assert_allclose(  # a jump, and a corner in the flat part beside it
      kinks(parse('max(atan(reciprocal(add(x, 0.31))), -0.2)')),
      [-0.31 - 1 / np.tan(0.2), -0.31], atol=1e-8)
  assert len(kinks(parse('min(abs(add(x, -0.3)), abs(add(x, -0.301)))'))) == 1  # of three: 1/64


@pytest.mark.parametrize('name, text', [
    ('relu', 'relu(x)'), ('tanh', 'tanh(x)'), ('silu', 'swish(x)'), ('abs', 'abs(x)'),
    ('selu', 'selu(x)'), ('gelu', 'gelu(x)')])
def test_the_gain_of_an_expression_is_that_of_the_registry(name, text):
  np.testing.assert_allclose(gain(parse(text)), get_activation(name).moments().gain, rtol=1e-12)


def test_the_gain_of_an_expression_with_a_kink_off_the_grid():
  """E max(z - c, 0)^2 = (1 + c^2) (1 - Phi(c)) - c phi(c)."""
  from scipy import stats
  c = 0.3217
  second = (1 + c * c) * stats.norm.sf(c) - c * stats.norm.pdf(c)
  np.testing.assert_allclose(gain(parse(f'relu(add(x, -{c}))')), second**-0.5, rtol=1e-10)
  for text in ('exp(square(x))', 'zero(x)', 'sqrt(x)'):
    with pytest.raises(UserError, match='no finite gain'):
      gain(parse(text))


def test_the_table_is_exact_at_knots_and_goes_on_as_a_line():
  x = np.array([-1e20, -136, -128, -2.5, -0.0, 0, 2.5, 7.9, 128, 129, 1e20, np.nan], np.float32)
  layer = ActivationLayer('table')

  def value_and_slope(text):
    leaves = swept.find('table').encode(text)
    return map(np.asarray, jax.jvp(
        lambda x: layer.apply({'hp': leaves}, x), (x,), (jnp.ones_like(x),)))

  y, d = value_and_slope('relu(x)')
  np.testing.assert_array_equal(y, np.maximum(x, 0))
  np.testing.assert_array_equal(d[[0, 1, 2, 3, 6, 7, 8, 9, 10]], [0, 0, 0, 0, 1, 1, 1, 1, 1])
  y, d = value_and_slope('square(x)')
  np.testing.assert_allclose(y[[1, 9]], [128**2 + 256 * 8, 128**2 + 256], rtol=1e-6)
  np.testing.assert_allclose(d[[1, 9]], [-256, 256], rtol=1e-6)
  assert np.isnan(y[-1]) and np.isfinite(y[:-1]).all()


def test_the_slope_of_the_table_is_the_derivative_of_its_value():
  from jax.test_util import check_grads
  spec = 'table(per_octave=4, limit=4)'
  leaves = swept.find(spec).encode('mul(x, sin(x))')
  x = np.linspace(-5.05, 5.05, 37).astype(np.float32)
  check_grads(lambda x: ActivationLayer(spec).apply({'hp': leaves}, x), (x,), order=1,
              modes=('fwd', 'rev'), atol=1e-2, rtol=1e-2, eps=1e-3)


def test_every_operator_has_an_opcode_and_its_own_place():
  assert OPCODES[:4] == ('number', 'identity', 'zero', 'one')
  assert set(OPCODES[1:]) == {n for n, o in OPERATORS.items() if o.kind != 'n-ary'}
  first, second = (swept.find('bytecode').encode(text)
                   for text in ('sum_n(x, 2, scale(x), beta(x))',
                                'add(add(add(x, 2), scale(x)), beta(x))'))
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])


def test_operators_that_were_not_chosen_leave_no_nan():
  """Also under vmap, where all of them are computed: sqrt, log and powers of negative numbers."""
  leaves = encoded('bytecode', [parse(text) for text in ('relu(x)', 'cube(x)', 'x')])
  values, slopes = jax.jit(jax.vmap(lambda leaf: jax.value_and_grad(
      lambda x: run(leaf['program'], leaf['constants'], leaf['count'], leaf['first'], x).sum())(
          -jnp.ones((1, 2)))), **_QUICK)(leaves)
  np.testing.assert_array_equal(values, [0, -2, -2])
  np.testing.assert_array_equal(slopes[:, 0], [[0, 0], [3, 3], [1, 1]])


@pytest.mark.parametrize('engine, text, match', [
    ('table', 'relu(y)', "no operator is called 'y'"),
    ('table', 'rely(x)', "nearest: 'relu'"),
    ('table', 'relu(x', "expected ',' or '\\)'"),
    ('bytecode', 'relu(x, x)', 'takes 1 argument'),
    ('bytecode(length=2)', 'add(relu(x), neg(x))', 'has 3 operators and numbers; .* takes 2'),
    ('bytecode(parameters=1)', 'scale(shift(x))', 'has 2 learnable scalars; .* takes 1'),
    ('expression(relu(x))', 'relu(x)', 'is one function')])
def test_a_candidate_that_cannot_be_encoded_is_refused_in_one_line(engine, text, match):
  with pytest.raises(UserError, match=match) as error:
    swept.find(engine).encode(text)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('spec, match', [
    ('table(limit=24)', 'power of 2'), ('table(limit=-1)', 'positive integer'),
    ('table(limits=8)', "nearest: 'limit'"), ('table(9)', 'with their names'),
    ('bytecode(length=1.5)', 'positive integer'), ('bytecode(length=999)', 'at most'),
    ('expression(relu(x), per=token)', 'per one of'), ('expression(rely(x))', "nearest: 'relu'")])
def test_impossible_settings_are_refused_in_one_line(spec, match):
  with pytest.raises(UserError, match=match) as error:
    models.build('mlp', activation=spec)
  assert '\n' not in str(error.value)


def test_the_expression_itself_is_an_activation_with_parameters():
  spec = 'expression(mul(x, sigmoid(scale(x))), per=channel)'
  layer = ActivationLayer(spec)
  variables = layer.init(jax.random.key(0), _POINTS)
  assert 'hp' not in variables
  assert variables['params']['beta_0'].shape == (24,)
  np.testing.assert_allclose(layer.apply(variables, _POINTS), jax.nn.silu(_POINTS), rtol=2e-6)
  assert consumer_gains(spec) == (get_activation('silu').moments().gain,)
  model = models.build('mlp', overrides=('layers.1.activation: expression(sin(x))',))
  assert [site.spec for site in models.sites(model) if site.changed] == ['expression(sin(x))']


def test_a_candidate_needs_a_model_that_takes_one():
  for activation, match in (('relu', 'this model has: none'), ('expression(x)', 'has: none')):
    model = models.build('mlp', activation=activation)
    with pytest.raises(UserError, match=match):
      candidate.encode(model, 'relu(x)')
  both = models.build('mlp', activation='table', overrides=('layers.1.activation: bytecode',))
  with pytest.raises(UserError, match='exactly one'):
    candidate.encode(both, 'relu(x)')


def test_candidates_are_encoded_ahead_and_kept():
  model = models.build('mlp', activation='table')
  hps = [{'candidate': 'sin(add(x, 0.123))'}, {'learning_rate': 1.0, 'note': 'rely(x)'},
         {'activation_0/candidate': 'cos(add(x, 0.123))'}]
  candidate.encode_ahead(model, hps)
  misses = _encoded.cache_info().misses
  candidate.encode(model, 'sin(add(x, 0.123))')
  candidate.encode(model, 'cos(add(x, 0.123))')
  assert _encoded.cache_info().misses == misses
  candidate.encode(model, 'sin(add(x, 0.124))')
  assert _encoded.cache_info().misses == misses + 1
  with pytest.raises(UserError, match="nearest: 'relu'"):
    candidate.encode_ahead(model, [*hps, {'candidate': 'rely(x)'}])


@pytest.fixture(scope='module')
def engines():
  return {name: Engine(ModelSpec('mlp', {**_MLP, 'activation': name}), chunk=2, evaluates=False)
          for name in ('table', 'bytecode')}


@pytest.mark.parametrize('name', ['table', 'bytecode'])
def test_generations_share_one_program_and_members_do_not_see_each_other(
    engines, name, tmp_path, caplog):
  first_runs = runs(['relu(x)', 'mul(x, sigmoid(scale(x)))', 'max(x, cos(x))'], init_gain=1.5)
  first = engines[name].train(first_runs, tmp_path)
  with caplog.at_level(logging.WARNING), jax.log_compiles():
    second = engines[name].train(runs(['tanh(x)', 'mul(x, sigmoid(scale(x)))', 'abs(x)'],
                                      init_gain=1.5), tmp_path)
    before = len(caplog.records)
    jax.jit(lambda x: x + len(name))(1.0)  # what a compilation would look like
  assert before == 0 < len(caplog.records)
  assert first.bits(1) == second.bits(1)
  assert first.leaves(0) != second.leaves(0)
  alone = engines[name].train(first_runs[1:2], tmp_path)
  assert alone.leaves(0) == first.leaves(1)


def test_learnable_scalars_move_in_each_layer_and_can_be_read(engines, tmp_path):
  trained = engines['bytecode'].train(runs(['mul(x, sigmoid(scale(x)))', 'relu(x)']), tmp_path)
  betas = [trained.state.params[f'activation_{i}']['beta'] for i in range(2)]
  assert all(beta.shape == (2, 4) for beta in betas)
  assert len({1.0, float(betas[0][0, 0]), float(betas[1][0, 0])}) == 3
  assert not np.any([beta[:, 1:] for beta in betas]) and not np.any([b[1] for b in betas])


def test_a_member_with_a_text_under_another_name_or_a_wrong_one_is_refused(engines):
  population = engines['table'].population
  with pytest.raises(UserError, match="a text is given as 'candidate'"):
    population.initial(runs(['relu(x)'], activation='relu'))
  with pytest.raises(UserError, match="no operator is called 'rely'"):
    population.initial(runs(['rely(x)']))
  with pytest.raises(UserError, match="hp name 'activation_7/table'"):
    population.initial([Member({}, 0, 0, 0, {'learning_rate': 1.0,
                                             'activation_7/candidate': 'relu(x)'})])


def test_thousands_of_candidates_are_encoded_in_seconds():
  """At 10 ms, 2,000 take 20 s; operators are traced before, once for all candidates."""
  raw = list(get_space('act_bench').expressions())[700:2700:20]
  for expression in raw[::2]:
    swept.find('table').encode(str(expression))
  start = time.process_time()
  for expression in raw[1::2]:
    swept.find('table').encode(str(expression))
  assert time.process_time() - start < 50 * 0.02
