"""The models: init scales, swept numbers, activations, placements, and agreement with numpy."""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.activations import get_activation
from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer, branches, consumer_gains
from model_lib.models.attention import Attention
from model_lib.models.hyper import set_hp
from model_lib.models.vit import patches
from model_lib.models.width import count_parameters, matched_widths
from model_lib.normalization import get_norm
from model_lib.parametrization import Rule, get_parametrization, table

SIZES = {
  'mlp': {'widths': (16, 16)},
  'vit': {'dim': 8, 'depth': 1, 'heads': 2, 'mlp_ratio': 2},
  'gpt': {'vocab': 11, 'length': 6, 'dim': 8, 'depth': 1, 'heads': 2, 'mlp_ratio': 2},
}


def _input(name: str, seed: int = 0) -> jax.Array:
  rng = np.random.default_rng(seed)
  if name == 'gpt':
    return jnp.asarray(rng.integers(0, 11, (3, 6)), jnp.int32)
  return jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)


def _init(model, x, seed: int = 0):
  return jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(seed))


def _numbers(model, x, train: bool | None = False):
  """Variables of the model's shapes with random parameters: no init to compile."""
  call = {} if train is None else {'train': train}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, **call))
  rng = np.random.default_rng(1)

  def fill(path, leaf):
    start = {'scale': 1.0, 'var': 1.0}.get(path[-1].key, 0.0)
    noise = 0.0 if path[0].key in ('hp', 'batch_stats') else 0.3
    return jnp.asarray(start + noise * rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _logits(model, variables, x):
  return np.asarray(jax.jit(lambda v: model.apply(v, x, train=False))(variables))


def _flat(tree) -> dict[str, np.ndarray]:
  return {name: np.asarray(leaf)
          for name, leaf in flax.traverse_util.flatten_dict(tree, sep='/').items()}


# Building.


@pytest.mark.parametrize('name, kwargs, part', [
  ('mpl', {}, "nearest: 'mlp'"),
  ('mlp', {'width': (3,)}, "nearest: 'widths'"),
  ('vit', {'deth': 2}, "nearest: 'depth'"),
  ('mlp', {'parent': None}, 'no attribute'),
  ('mlp', {'widths': [3, 0]}, 'integers >= 1'),
  ('mlp', {'widths': 3}, 'a list of integers'),
  ('gpt', {'depth': 0}, 'an integer >= 1'),
  ('gpt', {'depth': True}, 'an integer >= 1'),
  ('mlp', {'init_gain': 1}, 'True or False'),
  ('vit', {'heads': 5}, 'dim=32 is not divisible by heads=5'),
  ('gpt', {'norm': 'pre:group'}, 'see later'),
  ('gpt', {'norm': 'pre:layr'}, "nearest: 'layer'"),
  ('mlp', {'activation': 'gelo'}, "'gelu'"),
  ('mlp', {'activation': 'switch(relu, swiglu)'}, 'gated'),
  ('mlp', {'activation': 'switch(relu, prelu)'}, 'has parameters'),
  ('mlp', {'activation': 'switch'}, 'at least one'),
  ('mlp', {'activation': 'switch(relu, per=1)'}, 'at least one'),
  ('mlp', {'parametrization': 'sq'}, "nearest: 'sp'"),
])
def test_a_wrong_model_is_one_line(name, kwargs, part) -> None:
  with pytest.raises(UserError) as info:
    models.build(name, **kwargs)
  assert part in str(info.value) and '\n' not in str(info.value)


def test_a_list_is_a_tuple() -> None:
  assert models.build('mlp', widths=[16, 16]) == models.build('mlp', widths=(16, 16))


@pytest.mark.parametrize('name, x, part', [
  ('mlp', np.zeros((2, 4), np.uint8), 'floating-point'),
  ('vit', np.zeros((2, 5, 4), np.float32), 'divisible by patch=2'),
  ('vit', np.zeros((2, 4), np.float32), 'B, H, W'),
  ('gpt', np.zeros((2, 7), np.int32), 'length=6'),
  ('gpt', np.zeros((2, 6), np.float32), 'integer tokens'),
])
def test_a_wrong_input_is_one_line(name, x, part) -> None:
  with pytest.raises(UserError, match=part):
    jax.eval_shape(lambda: models.build(name, **SIZES[name]).init(jax.random.key(0), x, train=False))


# Scales at the start.


@functools.cache
def _layer_moments(activation: str, init_gain: bool = True, norm: str = 'none') -> np.ndarray:
  """Second moment of the output of each linear layer of a wide MLP at the start."""
  model = models.build('mlp', widths=(512,) * 4, num_classes=512, activation=activation,
                       init_gain=init_gain, norm=norm)

  def run(key):
    x = jax.random.normal(key, (256, 128))
    _, state = model.init_with_output(key, x, train=False, capture_intermediates=True,
                                      mutable=['params', 'hp', 'intermediates'])
    return [jnp.mean(jnp.square(layer['__call__'][0]))
            for name, layer in sorted(state['intermediates'].items())
            if name.startswith('hidden') or name == 'head']

  head, *hidden = jax.jit(run)(jax.random.key(0))
  return np.asarray([*hidden, head])


@pytest.mark.parametrize('activation', ['relu', 'tanh', 'sigmoid'])
def test_the_gain_keeps_the_second_moment(activation) -> None:
  np.testing.assert_allclose(_layer_moments(activation), 1, atol=0.1)


def test_the_gain_of_a_gated_activation() -> None:
  """Right for one layer; the product then squares every deviation from 1, so depth explodes."""
  moments = _layer_moments('swiglu')
  np.testing.assert_allclose(moments[:2], 1, atol=0.1)
  assert moments[-1] > 3
  np.testing.assert_allclose(_layer_moments('swiglu', norm='pre:rms'), 1, atol=0.1)


@pytest.mark.parametrize('activation, fails', [('relu', False), ('tanh', True)])
def test_without_the_gain_it_is_the_gain_of_relu(activation, fails) -> None:
  off = _layer_moments(activation, init_gain=False)
  assert (np.abs(off - 1).max() > 0.3) == fails
  # z ~ N(0, 1) enters the second layer, whose second moment is then 2 E f^2.
  second = get_activation(activation).moments().second
  np.testing.assert_allclose(off[1], 2 * second, atol=0.1)


@pytest.mark.parametrize('norm', ['pre:rms', 'post:rms'])
def test_the_gain_belongs_to_the_kernel_that_reads_the_activation(norm) -> None:
  """With `post` the kernel reads the norm's output, whose second moment is 1: gain 1."""
  np.testing.assert_allclose(_layer_moments('sigmoid', norm=norm), 1, atol=0.1)


def test_scales_of_the_roles() -> None:
  params = _flat(_init(models.build('gpt', dim=64, vocab=500, length=200, depth=1),
                       jnp.zeros((1, 4), jnp.int32))['params'])
  gain = consumer_gains('gelu')[0]
  for name, std in {'embedding/table': 1.0, 'position/table': 0.02, 'head/kernel': 1 / 8,
                    'blocks/attention_0/qkv/kernel': 1 / 8, 'blocks/attention_0/out/kernel': 1 / 8,
                    'blocks/feed_forward_0/in/kernel': 1 / 8,
                    'blocks/feed_forward_0/out/kernel': gain / 16}.items():
    # Standard error of a sample std: std / sqrt(2 n).
    np.testing.assert_allclose(params[name].std(), std, rtol=5 / np.sqrt(2 * params[name].size))
  assert all(not params[name].any() for name in params if name.endswith('bias'))


# Swept numbers.


@pytest.mark.parametrize('name', models.NAMES)
def test_a_gain_from_outside_scales_its_kernels_only(name) -> None:
  model, x = models.build(name, activation='gelu', **SIZES[name]), _input(name)
  variables = _init(model, x)

  @jax.jit
  def init(hp):
    _, state = model.apply({'hp': hp}, x, train=False, rngs={'params': jax.random.key(0)},
                           mutable=['params', 'batch_stats'])
    return state['params']

  default = variables['hp']
  gain, = consumer_gains('gelu')
  assert {float(v) for v in jax.tree.leaves(default)} == {float(np.float32(gain))}
  before, same = _flat(variables['params']), _flat(init(default))
  doubled, other = _flat(init(set_hp(default, init_gain=2 * gain))), _flat(init(
    set_hp(default, init_gain=0.7)))
  consumers = {f'{path.rpartition("/")[0]}/kernel' for path in _flat(default)}
  assert consumers == {'mlp': {'hidden_1/kernel', 'head/kernel'}}.get(
    name, {'blocks/feed_forward_0/out/kernel'})
  for path, leaf in before.items():
    np.testing.assert_array_equal(same[path], leaf)
    np.testing.assert_array_equal(doubled[path], leaf * 2 if path in consumers else leaf)
    np.testing.assert_allclose(other[path], leaf * (0.7 / gain) if path in consumers else leaf,
                               rtol=1e-5)
  assert all(before[path].any() for path in consumers)


def test_the_gain_is_not_read_after_the_start() -> None:
  model, x = models.build('mlp', **SIZES['mlp']), _input('mlp')
  variables = _numbers(model, x)
  y = model.apply({'params': variables['params']}, x, train=False)
  hp = set_hp(variables['hp'], init_gain=9.0)
  np.testing.assert_array_equal(y, model.apply({**variables, 'hp': hp}, x, train=False))


def test_set_hp() -> None:
  hp = {'a': {'init_gain': jnp.float32(1)}, 'b': {'init_gain': jnp.float32(1),
                                                  'activation_code': jnp.int32(0)}}
  changed = set_hp(hp, init_gain=np.arange(3), activation_code=2)
  assert changed['a']['init_gain'].shape == (3,)
  assert changed['a']['init_gain'].dtype == jnp.float32
  assert changed['b']['activation_code'] == 2 and hp['b']['activation_code'] == 0
  with pytest.raises(UserError, match="nearest: 'init_gain'"):
    set_hp(hp, init_gian=1.0)


def test_a_switch_is_each_of_its_branches() -> None:
  names = ('relu', 'gelu', 'tanh')
  model = models.build('mlp', activation=f'switch({", ".join(names)})', **SIZES['mlp'])
  x = _input('mlp')
  variables = _numbers(model, x)
  codes = [leaf for path, leaf in _flat(variables['hp']).items() if path.endswith('code')]
  assert len(codes) == 2 and all(code == 0 and code.dtype == np.int32 for code in codes)
  apply = jax.jit(lambda hp: model.apply({**variables, 'hp': hp}, x, train=False))
  outputs = []
  for code, name in enumerate(names):
    alone = models.build('mlp', activation=name, **SIZES['mlp'])
    outputs.append(np.asarray(apply(set_hp(variables['hp'], activation_code=code))))
    np.testing.assert_allclose(
      outputs[-1], _logits(alone, {'params': variables['params']}, x), rtol=1e-5, atol=1e-6)
  assert apply._cache_size() == 1
  assert min(np.abs(outputs[0] - outputs[1]).max(), np.abs(outputs[1] - outputs[2]).max()) > 1e-2
  with pytest.raises(flax.errors.ScopeCollectionNotFound, match='activation_code'):
    model.apply({'params': variables['params']}, x, train=False)


def test_the_gain_of_a_switch_is_its_first_branch() -> None:
  assert consumer_gains('switch(tanh, relu)') == (*consumer_gains('tanh'), *consumer_gains('relu'))
  model = models.build('mlp', activation='switch(tanh, relu)', **SIZES['mlp'])
  hp = _init(model, _input('mlp'))['hp']
  assert hp['head']['init_gain'] == np.float32(consumer_gains('tanh')[0])


@pytest.mark.parametrize('name', models.NAMES)
def test_one_program_trains_members_with_different_numbers(name) -> None:
  """lax.map over (hp, key): init, loss and gradient; a member has the bits it has alone."""
  model = models.build(name, activation='switch(relu, tanh)', **SIZES[name])
  x = _input(name)
  gains = consumer_gains('switch(relu, tanh)')
  hp = set_hp(_numbers(model, x)['hp'], activation_code=np.array([0, 1, 1]),
              init_gain=np.array([*gains, 0.5]))
  keys = jnp.stack([jax.random.key(0)] * 3)

  def member(hp, key):
    _, state = model.apply({'hp': hp}, x, train=False, rngs={'params': key},
                           mutable=['params', 'batch_stats'])

    def loss(params):
      return jnp.mean(jnp.square(model.apply({'hp': hp, 'params': params}, x, train=True)))
    return jax.value_and_grad(loss)(state['params'])

  population = jax.jit(lambda members: jax.lax.map(lambda args: member(*args), members))
  losses, grads = population((hp, keys))
  assert len(set(np.asarray(losses).tolist())) == 3
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  alone = population(jax.tree.map(lambda leaf: leaf[1:2], (hp, keys)))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), (losses, grads), alone)


# Activations.


@pytest.mark.parametrize('name', models.NAMES)
def test_learnable_activations_do_not_share(name) -> None:
  sizes = {**SIZES[name], **({} if name == 'mlp' else {'depth': 2})}
  model, x = models.build(name, activation='prelu(per=channel)', **sizes), _input(name)
  params = _numbers(model, x)['params']
  grads = _flat(jax.jit(jax.grad(
    lambda params: jnp.mean(jnp.square(model.apply({'params': params}, x, train=True)))))(params))
  learned = sorted(path for path in grads if 'activation' in path)
  assert len(learned) == 2 and len({path.rpartition('/')[0] for path in learned}) == 2
  first, second = (grads[path] for path in learned)
  assert first.shape == second.shape == (16,)
  assert first.any() and second.any() and not np.array_equal(first, second)


@pytest.mark.parametrize('per, shape', [('layer', ()), ('channel', (5,)), ('unit', (3, 5))])
def test_shapes_of_learnable_parameters(per, shape) -> None:
  layer = ActivationLayer(f'prelu(per={per})')
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  y, variables = layer.init_with_output(jax.random.key(0), x)
  params = variables['params']
  assert {leaf.shape for leaf in params.values()} == {shape}
  np.testing.assert_array_equal(y, branches(f'prelu(per={per})')[0](x))
  doubled = layer.apply({'params': jax.tree.map(lambda a: 2 * a, params)}, x)
  np.testing.assert_allclose(np.where(x < 0, 2 * y, y), doubled, rtol=1e-6)


@pytest.mark.parametrize('name, kwargs, x', [
  ('mlp', {'widths': (64, 64)}, jnp.zeros((1, 64))),
  ('mlp', {'widths': (128, 64, 32)}, jnp.zeros((1, 784))),
  ('mlp', {'widths': (64,)}, jnp.zeros((1, 64))),
  ('vit', {}, jnp.zeros((1, 8, 8))),
  ('gpt', {}, jnp.zeros((1, 4), jnp.int32)),
])
def test_gated_models_have_the_same_size(name, kwargs, x) -> None:
  def count(activation):
    model = models.build(name, activation=activation, **kwargs)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  assert abs(count('swiglu') / count('silu') - 1) < 0.01


def test_matched_widths() -> None:
  assert abs(matched_widths(256, (1024,), 256)[0] - 1024 * 2 / 3) < 1
  assert matched_widths(4, (1,), 4) == (1,)
  assert matched_widths(64, (), 10) == ()
  wide = matched_widths(100, (1000,) * 9, 10)
  np.testing.assert_allclose(wide, 1000 / np.sqrt(2), rtol=0.01)
  # The rule 2/3 on every width of a chain would lose a tenth of the parameters.
  plain = count_parameters(100, (1000,) * 9, 10, gated=False)
  assert count_parameters(100, (667,) * 9, 10, gated=True) / plain < 0.9


# Norms and placements.


def _numpy_gelu(x):
  from scipy.special import ndtr
  return x * ndtr(x)


def _numpy_gpt(params, tokens, placement: str, heads: int):
  """The language model in float64, written apart from the library."""
  def linear(p, x):
    return x @ p['kernel'] + p['bias']

  def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']

  def attention(p, x):
    length, dim = x.shape
    q, k, v = np.split(linear(p['qkv'], x), 3, axis=-1)
    mixed = np.zeros_like(x)
    for t in range(length):
      for h in range(heads):
        part = slice(h * dim // heads, (h + 1) * dim // heads)
        logits = k[:t + 1, part] @ q[t, part] / np.sqrt(dim // heads)
        weights = np.exp(logits - logits.max())
        mixed[t, part] = weights / weights.sum() @ v[:t + 1, part]
    return linear(p['out'], mixed)

  def feed_forward(p, x):
    return linear(p['out'], _numpy_gelu(linear(p['in'], x)))

  blocks = params['blocks']
  outputs = []
  for row in tokens:
    x = params['embedding']['table'][row] + params['position']['table'][:len(row)]
    for name, sublayer in (('attention_0', attention), ('feed_forward_0', feed_forward)):
      p, p_norm = blocks[name], blocks.get(f'norm_{name}')
      if placement == 'pre':
        x = x + sublayer(p, norm(p_norm, x))
      else:
        x = x + sublayer(p, x)
        x = norm(p_norm, x) if placement == 'post' else x
    outputs.append(linear(params['head'], norm(blocks['norm_final'], x)
                          if placement == 'pre' else x))
  return np.stack(outputs)


@pytest.mark.parametrize('placement', ['none', 'pre', 'post'])
def test_gpt_against_numpy(placement) -> None:
  norm = placement if placement == 'none' else f'{placement}:layer'
  model = models.build('gpt', norm=norm, activation='gelu', **SIZES['gpt'])
  tokens = _input('gpt')
  params = _numbers(model, tokens)['params']
  logits = _logits(model, {'params': params}, tokens)
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  expected = _numpy_gpt(wide, np.asarray(tokens), placement, heads=2)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  has_norm = {path.split('/')[1] for path in _flat(params) if path.startswith('blocks/norm')}
  assert has_norm == {'none': set(),
                      'post': {'norm_attention_0', 'norm_feed_forward_0'},
                      'pre': {'norm_attention_0', 'norm_feed_forward_0', 'norm_final'}}[placement]


@pytest.mark.parametrize('placement', ['none', 'pre', 'post'])
def test_mlp_against_numpy(placement) -> None:
  norm = placement if placement == 'none' else f'{placement}:rms'
  model = models.build('mlp', widths=(16,), activation='tanh', norm=norm)
  x = _input('mlp')
  params = _numbers(model, x)['params']
  flat = _flat(params)
  h = np.asarray(x).reshape(3, -1) @ flat['hidden_0/kernel'] + flat['hidden_0/bias']
  standardize = {'none': lambda h: h}.get(
    placement, lambda h: h / np.sqrt((h ** 2).mean(-1, keepdims=True) + 1e-6))
  gain = flat.get('norm_0/scale', flat.get('norm_hidden_0/scale', 1))
  h = np.tanh(standardize(h) * gain) if placement != 'post' else standardize(np.tanh(h)) * gain
  np.testing.assert_allclose(_logits(model, {'params': params}, x),
                             h @ flat['head/kernel'] + flat['head/bias'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', models.NAMES)
def test_batch_norm_state(name) -> None:
  model, x = models.build(name, norm='batch', **SIZES[name]), _input(name)
  variables = _numbers(model, x)
  before = _flat(variables['batch_stats'])
  assert len(before) == {'mlp': 4}.get(name, 6)

  @functools.partial(jax.jit, static_argnums=1)
  def apply(variables, train):
    return model.apply(variables, x, train=train, mutable=['batch_stats'])

  first, state = apply(variables, True)
  after = _flat(state['batch_stats'])
  assert all(not np.array_equal(after[path], before[path]) for path in before)
  moved = {**variables, **state}
  again, _ = apply(moved, True)
  np.testing.assert_array_equal(first, again)
  evaluated, unmoved = apply(moved, False)
  jax.tree.map(np.testing.assert_array_equal, unmoved, state)
  assert np.abs(evaluated - apply(variables, False)[0]).max() > 1e-3


@pytest.mark.parametrize('norm', ['pre:layer', 'post:rms', 'batch', 'none'])
def test_gpt_is_causal(norm) -> None:
  """A change of token 4 leaves the logits before it bit for bit; those from it on move."""
  model, tokens = models.build('gpt', norm=norm, **SIZES['gpt']), _input('gpt')
  variables = _numbers(model, tokens)
  apply = jax.jit(lambda tokens: model.apply(variables, tokens, train=False))
  before, after = apply(tokens), apply(tokens.at[:, 4].set((tokens[:, 4] + 1) % 11))
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  for t in (4, 5):
    assert np.abs(before[:, t] - after[:, t]).max() > 1e-3


def test_patches_are_read_row_by_row() -> None:
  images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  cut = np.asarray(patches(jnp.asarray(images), 2))
  assert cut.shape == (2, 6, 12)
  np.testing.assert_array_equal(cut[1, 4], images[1, 2:4, 2:4].ravel())
  np.testing.assert_array_equal(patches(jnp.asarray(images[..., 0]), 2)[0, 1],
                                images[0, 0:2, 2:4, 0].ravel())


# Dtypes.


@pytest.mark.parametrize('name', models.NAMES)
def test_bfloat16_stays(name) -> None:
  """No layer widens: bfloat16 images, or for tokens bfloat16 parameters, give bfloat16."""
  model, x = models.build(name, norm='pre:layer', **SIZES[name]), _input(name)
  params = _numbers(model, x)['params']
  wide = _logits(model, {'params': params}, x)
  if name == 'gpt':
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  else:
    x = x.astype(jnp.bfloat16)
  narrow, state = jax.jit(lambda params: model.apply(
    {'params': params}, x, train=False, capture_intermediates=True,
    mutable=['intermediates']))(params)
  dtypes = {path: leaf[0].dtype for path, leaf in flax.traverse_util.flatten_dict(
    state['intermediates'], sep='/').items() if name == 'gpt' or 'position' not in path}
  assert len(dtypes) > 5
  assert {path for path, dtype in dtypes.items() if dtype != jnp.bfloat16} == set()
  np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, atol=0.05 * np.abs(wide).max())


# The parametrization is the one source of every factor.


@pytest.fixture
def other_row(monkeypatch):
  """Adds a row 'other' to the table: sp with the given fields replaced."""
  def add(**fields):
    row = dataclasses.replace(get_parametrization('sp'), **fields)
    monkeypatch.setitem(table._TABLE, 'other', row)
  return add


def test_readout_and_std_come_from_the_table(other_row) -> None:
  other_row(rules={**get_parametrization('sp').rules,
                   'input': Rule(std=3.0, fan_in_power=-0.5),
                   'readout': Rule(std=1.0, fan_in_power=-0.5, multiplier=0.5)})
  x, ours = _input('mlp'), models.build('mlp', **SIZES['mlp'])
  other = models.build('mlp', parametrization='other', **SIZES['mlp'])
  params, scaled = _init(ours, x)['params'], _flat(_init(other, x)['params'])
  np.testing.assert_array_equal(_logits(other, {'params': params}, x),
                                _logits(ours, {'params': params}, x) / 2)
  for path, leaf in _flat(params).items():
    np.testing.assert_allclose(scaled[path], leaf * (3 if path == 'hidden_0/kernel' else 1),
                               rtol=1e-6)


def test_attention_logits_come_from_the_table(other_row) -> None:
  """q.k / d instead of q.k / sqrt(d) is the attention of queries divided by sqrt(d)."""
  other_row(head_dim_power=-1.0)
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  params = _numbers(Attention(2, False), x, train=None)['params']
  divide = np.repeat([1 / np.sqrt(4), 1, 1], 8).astype(np.float32)
  smaller = {**params, 'qkv': {'kernel': params['qkv']['kernel'] * divide[None],
                               'bias': params['qkv']['bias'] * divide}}
  other = Attention(2, False, 'other').apply({'params': params}, x)
  np.testing.assert_allclose(other, Attention(2, False).apply({'params': smaller}, x), rtol=1e-5)
  assert np.abs(other - Attention(2, False).apply({'params': params}, x)).max() > 1e-2


def test_branches_come_from_the_table(other_row) -> None:
  other_row(depth_power=-60.0)
  tokens = _input('gpt')
  model = models.build('gpt', norm='none', parametrization='other', **{**SIZES['gpt'], 'depth': 2})
  params = _numbers(model, tokens)['params']
  flat = _flat(params)
  x = flat['embedding/table'][np.asarray(tokens)] + flat['position/table'][:6]
  np.testing.assert_allclose(_logits(model, {'params': params}, tokens),
                             x @ flat['head/kernel'] + flat['head/bias'], rtol=1e-4, atol=1e-5)


def test_every_norm_builds_in_every_model() -> None:
  """Shapes only: the placements and norms of the catalogue trace under rank promotion."""
  for name in models.NAMES:
    for norm in ('layer', 'rms', 'batch', 'group(4)', 'dyt'):
      if name == 'gpt' and not get_norm(norm).causal:
        continue
      for placement in ('pre', 'post'):
        model = models.build(name, norm=f'{placement}:{norm}', **SIZES[name])
        jax.eval_shape(lambda model=model, name=name: model.init(
          jax.random.key(0), _input(name), train=True))
