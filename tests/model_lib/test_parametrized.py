"""A model under a parametrization: used like the module, refused in one line where it cannot be."""

from __future__ import annotations

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models import parametrized
from model_lib.models.parametrized import BRANCH, NUMBERS, Parametrized
from model_lib.training import state as state_lib
from model_lib.training.cohort import Member, OptimizerSpec

pytestmark = pytest.mark.usefixtures('unoptimized')
X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
KEY = jax.random.key(3)


def mlp(row: str = 'mup', widths=(64, 32), base=(8, 8), family: str = 'adam'):
  return parametrized.build('mlp', {'widths': widths, 'parametrization': row}, {'widths': base},
                            {'widths': tuple(2 * n for n in base)}, family)


def leaf(tree, path: str):
  for part in path.split('/'):
    tree = tree[part]
  return tree


def test_the_standard_row_is_the_module_itself_bit_for_bit() -> None:
  wrapped, bare = mlp('sp'), models.build('mlp', widths=(64, 32))
  ours, own = (model.init(KEY, X, train=False) for model in (wrapped, bare))
  jax.tree.map(np.testing.assert_array_equal, ours['params'], own['params'])
  np.testing.assert_array_equal(wrapped.apply(ours, X, train=False),
                                bare.apply(own, X, train=False))
  assert set(ours['hp'][BRANCH]) == set(NUMBERS)
  for name in NUMBERS:  # a number for every parameter, whatever the row
    assert jax.tree.structure(ours['hp'][BRANCH][name]) == jax.tree.structure(own['params'])


def test_start_and_multiplier_are_those_of_the_row() -> None:
  """Widths 8 -> 64 -> 32: the readout's fan-in is 4 times the base's."""
  variables, own = mlp().init(KEY, X, train=False), mlp('sp').init(KEY, X, train=False)
  np.testing.assert_array_equal(variables['params']['head']['kernel'],
                                2 * own['params']['head']['kernel'])  # std constant in width
  for path in ('hidden_0/kernel', 'hidden_1/kernel', 'head/bias'):
    np.testing.assert_array_equal(leaf(variables['params'], path), leaf(own['params'], path))
  effective = mlp().effective(variables)
  np.testing.assert_array_equal(effective['params']['head']['kernel'],
                                variables['params']['head']['kernel'] / 4)
  assert BRANCH not in effective['hp']
  bare = models.build('mlp', widths=(64, 32))
  logits = mlp().apply(variables, X, train=False)
  np.testing.assert_array_equal(logits, bare.apply(effective, X, train=False))
  assert np.abs(logits - bare.apply(variables, X, train=False)).max() > 0.1


def test_numbers_are_read_from_hp_and_gradients_pass_the_multiplier() -> None:
  model = mlp()
  variables = model.init(KEY, X, train=False)

  def head(multiplier, kernel=variables['params']['head']['kernel']):
    changed = copy.deepcopy(variables)
    changed['hp'][BRANCH]['multiplier']['head']['kernel'] = jnp.float32(multiplier)
    changed['params']['head']['kernel'] = kernel
    return model.apply(changed, X, train=False)

  np.testing.assert_allclose(head(0.5), 2 * head(0.25), rtol=1e-6)
  grads = [jax.grad(lambda kernel, m=m: head(m, kernel).sum())(
    variables['params']['head']['kernel']) for m in (0.25, 0.5)]
  np.testing.assert_allclose(grads[1], 2 * grads[0], rtol=1e-6)


class Stateful(nn.Module):
  """x -> x W, with a state, a swept number, a term of the loss and a taken value."""

  n: int

  @nn.compact
  def __call__(self, x, train: bool):
    calls = self.variable('norm_state', 'calls', lambda: jnp.zeros((), jnp.int32))
    scale = self.variable('hp', 'scale', lambda: jnp.float32(1)).value
    if train:
      calls.value += 1
    h = nn.Dense(self.n, name='stem')(x)
    self.sow('intermediates', 'h', h)
    return scale * nn.Dense(2, name='head')(h)


def stateful() -> Parametrized:
  return Parametrized(Stateful(32), Stateful(8), Stateful(16), 'mup')


def test_collections_pass_and_what_is_taken_is_that_of_the_effective_parameters() -> None:
  model = stateful()
  variables = model.init(KEY, X, train=False)
  assert leaf(variables, f'hp/{BRANCH}/multiplier/head/kernel') == 0.25
  assert variables['hp']['scale'] == 1
  out, updated = model.apply(variables, X, train=True, mutable=['norm_state', 'intermediates'])
  assert updated['norm_state']['calls'] == 1 and set(updated) == {'norm_state', 'intermediates'}
  np.testing.assert_allclose(out, updated['intermediates']['h'][0] @ (
    variables['params']['head']['kernel'] / 4), rtol=1e-5)
  # Parameters and swept numbers come back as they are stored.
  _, everything = model.apply(variables, X, train=True, mutable=True)
  jax.tree.map(np.testing.assert_array_equal, everything['params'], variables['params'])
  assert set(everything['hp']) == {'scale', BRANCH}
  np.testing.assert_array_equal(model.bind(variables)(X, train=False),
                                model.apply(variables, X, train=False))


def test_training_makes_the_parameters_under_given_numbers() -> None:
  model = stateful()
  hp = model.init(KEY, X, train=False)['hp']
  stacked = state_lib.stack_hp(
    [Member({}, 0, 0, 0, {'learning_rate': 0.1, f'{BRANCH}/start/head/kernel': start})
     for start in (2.0, 6.0)], jax.device_get(hp))
  states = [state_lib.create(model, state_lib.direction(OptimizerSpec()), X, jax.tree.map(
    lambda v, i=i: v[i], stacked), np.zeros(2, np.uint32)) for i in (0, 1)]
  np.testing.assert_array_equal(states[1].params['head']['kernel'],
                                3 * states[0].params['head']['kernel'])
  np.testing.assert_array_equal(states[1].params['stem']['kernel'],
                                states[0].params['stem']['kernel'])


def test_a_number_of_the_model_is_not_mistaken_for_a_parameters() -> None:
  """`kernel` is no swept number, although paths of factors end with it."""
  hp = jax.device_get(stateful().init(KEY, X, train=False)['hp'])
  with pytest.raises(UserError, match='neither the optimizer nor the model; there are: '
                                      'learning_rate, scale, weight_decay$'):
    state_lib.stack_hp([Member({}, 0, 0, 0, {'learning_rate': 0.1, 'kernel': 2.0})], hp)


def test_attributes_are_the_modules_unless_they_would_skip_the_factors() -> None:
  model = mlp()
  assert model.widths == (64, 32) and model.parametrization == 'mup'
  assert models.sites(model) == models.sites(model.model)
  assert copy.copy(model).labels(X, train=False).keys() == model.labels(X, train=False).keys()
  for name in ('init_with_output', 'clone', 'unbind', 'nothing'):
    with pytest.raises(AttributeError):
      getattr(model, name)


class Table(nn.Module):
  """Embedding and readout with stds that follow no fan-in, or flax's own."""

  dim: int
  std: float | None = None

  @nn.compact
  def __call__(self, tokens, train: bool = False):
    normal = nn.initializers.normal(self.std or 1.0)
    kernel = normal if self.std else nn.initializers.lecun_normal()
    x = nn.Embed(64, self.dim, embedding_init=normal, name='embed')(tokens)
    x = nn.Dense(self.dim, kernel_init=kernel, name='mid')(x)
    return nn.Dense(3, kernel_init=kernel, name='head')(x)


@pytest.mark.parametrize('std, power', [(None, None), (0.5, 0.0)])
def test_stds_of_any_module_become_the_rows(std, power) -> None:
  """Width 16 times the base's: readout constant, hidden a quarter, embedding constant."""
  tokens = np.arange(8)[None]
  sizes = (16, 32, 256)
  base, delta, target = (Table(n, std) for n in sizes)
  model = Parametrized(target, base, delta, 'mup', fan_in_power=power)
  stds, of_base = (jax.tree.map(np.std, m.init(KEY, tokens)['params']) for m in (model, base))
  for path, ratio in {'embed/embedding': 1, 'mid/kernel': 1 / 4, 'head/kernel': 1}.items():
    np.testing.assert_allclose(leaf(stds, path) / leaf(of_base, path), ratio, rtol=0.25)
  own = target.init(KEY, tokens)['params']  # the module alone is another
  shares = [np.std(leaf(own, path)) / leaf(of_base, path) for path in ('mid/kernel', 'head/kernel')]
  np.testing.assert_allclose(shares, (1 / 4, 1 / 4) if std is None else (1, 1), rtol=0.25)


class Tied(nn.Module):
  """An embedding that is the readout too."""

  dim: int
  pair: bool = False

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(7, self.dim, embedding_init=nn.initializers.normal(1.0), name='embed')
    logits = embed.attend(embed(tokens))
    return (logits, tokens) if self.pair else logits


def test_an_embedding_may_be_the_readout() -> None:
  """The squared length of an embedding grows with width, and the logit with itself stays."""
  tokens = np.arange(7)[None]
  own = {}
  for n in (8, 512):
    model = Parametrized(Tied(n), Tied(8), Tied(16), 'mup', tied='embed/embedding')
    logits = model.apply(model.init(KEY, tokens), tokens)
    own[n] = float(np.einsum('btt->', logits)) / 7
  assert 0.5 < own[512] / own[8] < 2
  for row, tied, message in (
      ('mup(form=table3)', 'embed/embedding', 'embed/embedding: mup.* cannot be tied; untie them'),
      ('mup', 'embed/embeding', "is no parameter; nearest: 'embed/embedding'")):
    with pytest.raises(UserError, match=message):
      Parametrized(Tied(32), Tied(8), Tied(16), row, tied=tied).init(KEY, tokens)
  pair = Parametrized(Tied(32, True), Tied(8), Tied(16), 'mup', tied='embed/embedding')
  variables = pair.init(KEY, tokens)
  with pytest.raises(UserError, match='returns a tuple; untie it'):
    pair.apply(variables, tokens)
  with pytest.raises(UserError, match='applied by `apply` alone'):
    pair.bind(variables)


def test_umup_starts_at_one_whatever_the_module_does() -> None:
  tokens = np.arange(8)[None]
  for std, power in ((None, -0.5), (1.0, 0.0)):
    model = Parametrized(*(Table(n, std) for n in (256, 16, 32)), 'umup', fan_in_power=power)
    stds = jax.tree.map(np.std, model.init(KEY, tokens)['params'])
    for path in ('embed/embedding', 'mid/kernel', 'head/kernel'):
      np.testing.assert_allclose(leaf(stds, path), 1, rtol=0.1)
  built = parametrized.build('mlp', {'widths': (64, 256), 'parametrization': 'umup',
                                     'activation': 'identity'},
                             {'widths': (8, 8)}, {'widths': (16, 16)})
  params = built.init(KEY, X, train=False)['params']
  np.testing.assert_allclose(np.std(params['hidden_1']['kernel']), 1, rtol=0.1)


def test_the_table_of_a_model_is_printed() -> None:
  lines = mlp('mup').lines(X, train=False)
  assert len(lines) == 1 + 6
  line = next(line for line in lines if line.startswith('hidden_1/kernel'))
  assert line.split() == ['hidden_1/kernel', 'hidden', '8->64', '8->32', '-', '0.353553', '1',
                          '0.125', '0.25', '8']


def deep(row: str, **base):
  return parametrized.build('resmlp', {'width': 32, 'depth': 4, 'parametrization': row},
                            {'width': 8, **base}, {'width': 16, **base})


@pytest.mark.parametrize('make, message', [
  (lambda: parametrized.build('mlp', {'parametrization': 'mup'}, {}, {}),
   "mlp: parametrization 'mup' gives factors relative to a base model, and there is none; give "
   'base and delta'),
  (lambda: parametrized.build('mlp', {'parametrization': 'umup'}, {}, {}), 'there is none'),
  (lambda: parametrized.build('mlp', {}, {'widths': (8, 8)}, {}), 'mlp: delta is missing'),
  (lambda: parametrized.build('gpt2', {}, {'dim': 8}, {'dim': 16}), 'takes no parametrization'),
  (lambda: parametrized.build(
    'gpt', {'dim': 32, 'heads': 4, 'parametrization': 'mup'}, {'dim': 16}, {'dim': 32}),
   'gpt: the heads of the base model have size 4, but mup says base_head_dim=1; make them equal'),
  (lambda: mlp(base=(8, 8, 8)).labels(X, train=False),
   'hidden_2/bias: the base model has this parameter and the target has not'),
  (lambda: parametrized.build('mlp', {'widths': (64, 32), 'parametrization': 'mup'},
                              {'widths': (8, 8)}, {'widths': (16, 8)}).labels(X, train=False),
   'head/kernel: base shape (8, 10) does not fit shape (32, 10): axis 0 differs'),
  (lambda: mlp('mean_field').factors(X, train=False),
   'hidden_1/kernel: mean_field is for one hidden layer'),
  (lambda: deep('mean_field', depth=4).factors(X, train=False),
   'block_0/kernel_0/bias: mean_field is for one hidden layer'),
  (lambda: deep('depth_mup', depth=2).factors(X, train=False),
   'block_0/kernel_0/bias: the base model has 2 blocks, but depth_mup says base_depth=1'),
  (lambda: mlp(family='adamw').factors(X, train=False), "unknown optimizer family 'adamw'"),
  (lambda: Parametrized(Stateful(32), Stateful(8), Stateful(8)).labels(X, train=False),
   'build delta with another width'),
  (lambda: Parametrized(Stateful(32), Stateful(8), Stateful(16), kinds={
    'head/kernel': 'output', 'kernel': 'hidden'}).labels(X, train=False),
   "head/kernel: labelled twice, by the patterns 'head/kernel' and 'kernel'; narrow one of them"),
  (lambda: stateful().apply(Stateful(32).init(KEY, X, train=False), X, train=False),
   'the variables have no hp/parametrization'),
])
def test_what_cannot_be_is_one_line(make, message) -> None:
  with pytest.raises(UserError) as info:
    make()
  assert message in str(info.value) and '\n' not in str(info.value)


class Odd(nn.Module):
  """A parameter whose layout the shapes do not tell."""

  n: int

  @nn.compact
  def __call__(self, x):
    gain = self.param('gain', nn.initializers.ones, (2, self.n))
    return nn.Dense(self.n, name='stem')(x) * gain[:1] + gain[1:]


def test_an_unlabelled_parameter_is_refused_until_it_has_a_kind() -> None:
  modules = Odd(32), Odd(8), Odd(16)
  with pytest.raises(UserError, match=r"^gain: unlabelled: .* name its kind, as in kinds="):
    Parametrized(*modules).init(KEY, X)
  found = Parametrized(*modules, kinds={'^gain$': 'vector'}).init(KEY, X)
  assert found['hp'][BRANCH]['decay']['gain'] == 0
