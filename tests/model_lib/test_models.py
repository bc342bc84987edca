"""The models: building them, scales at the start, swept numbers, activations."""

from __future__ import annotations

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
from model_lib.models.hyper import set_hp
from model_lib.models.width import count_parameters, matched_widths
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

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
    model = models.build(name, **cases.SIZES[name])
    jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


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
  model = models.build('gpt', dim=64, vocab=500, length=200, depth=1)
  params = cases.flat(cases.init(model, jnp.zeros((1, 4), jnp.int32))['params'])
  gain = consumer_gains('gelu')[0]
  for name, std in {'embedding/table': 1.0, 'position/table': 0.02, 'head/kernel': 1 / 8,
                    'blocks/attention_0/qkv/kernel': 1 / 8, 'blocks/attention_0/out/kernel': 1 / 8,
                    'blocks/feed_forward_0/in/kernel': 1 / 8,
                    'blocks/feed_forward_0/out/kernel': gain / 16}.items():
    # Standard error of a sample std: std / sqrt(2 n).
    np.testing.assert_allclose(params[name].std(), std, rtol=5 / np.sqrt(2 * params[name].size))
  assert all(not params[name].any() for name in params if name.endswith('bias'))


# Swept numbers.


@pytest.mark.parametrize('name', ['mlp', 'gpt'])
def test_a_gain_from_outside_scales_its_kernels_only(name) -> None:
  model, x = models.build(name, activation='gelu', **cases.SIZES[name]), cases.inputs(name)
  variables = cases.init(model, x)

  @jax.jit
  def init(hp):
    _, state = model.apply({'hp': hp}, x, train=False, rngs={'params': jax.random.key(0)},
                           mutable=['params', 'batch_stats'])
    return state['params']

  default = variables['hp']
  gain, = consumer_gains('gelu')
  assert {float(v) for v in jax.tree.leaves(default)} == {float(np.float32(gain))}
  before, same = cases.flat(variables['params']), cases.flat(init(default))
  doubled = cases.flat(init(set_hp(default, init_gain=2 * gain)))
  other = cases.flat(init(set_hp(default, init_gain=0.7)))
  consumers = {f'{path.rpartition("/")[0]}/kernel' for path in cases.flat(default)}
  assert consumers == {'mlp': {'hidden_1/kernel', 'head/kernel'}}.get(
    name, {'blocks/feed_forward_0/out/kernel'})
  for path, leaf in before.items():
    np.testing.assert_array_equal(same[path], leaf)
    np.testing.assert_array_equal(doubled[path], leaf * 2 if path in consumers else leaf)
    np.testing.assert_allclose(other[path], leaf * (0.7 / gain) if path in consumers else leaf,
                               rtol=1e-5)
  assert all(before[path].any() for path in consumers)


def test_the_gain_is_not_read_after_the_start() -> None:
  model, x = models.build('mlp', **cases.SIZES['mlp']), cases.inputs('mlp')
  variables = cases.numbers(model, x)
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
  model = models.build('mlp', activation=f'switch({", ".join(names)})', **cases.SIZES['mlp'])
  x = cases.inputs('mlp')
  variables = cases.numbers(model, x)
  codes = [leaf for path, leaf in cases.flat(variables['hp']).items() if path.endswith('code')]
  assert len(codes) == 2 and all(code == 0 and code.dtype == np.int32 for code in codes)
  apply = jax.jit(lambda hp: model.apply({**variables, 'hp': hp}, x, train=False))
  outputs = []
  for code, name in enumerate(names):
    alone = models.build('mlp', activation=name, **cases.SIZES['mlp'])
    outputs.append(np.asarray(apply(set_hp(variables['hp'], activation_code=code))))
    np.testing.assert_allclose(
      outputs[-1], cases.logits(alone, {'params': variables['params']}, x), rtol=1e-5, atol=1e-6)
  assert apply._cache_size() == 1
  assert min(np.abs(outputs[0] - outputs[1]).max(), np.abs(outputs[1] - outputs[2]).max()) > 1e-2
  with pytest.raises(flax.errors.ScopeCollectionNotFound, match='activation_code'):
    model.apply({'params': variables['params']}, x, train=False)


def test_the_gain_of_a_switch_is_its_first_branch() -> None:
  assert consumer_gains('switch(tanh, relu)') == (*consumer_gains('tanh'), *consumer_gains('relu'))
  model = models.build('mlp', activation='switch(tanh, relu)', **cases.SIZES['mlp'])
  hp = cases.init(model, cases.inputs('mlp'))['hp']
  assert hp['head']['init_gain'] == np.float32(consumer_gains('tanh')[0])


# Activations.


@pytest.mark.parametrize('name', ['mlp', 'vit', 'gpt'])
def test_learnable_activations_do_not_share(name) -> None:
  sizes = {**cases.SIZES[name], **({} if name == 'mlp' else {'depth': 2})}
  model, x = models.build(name, activation='prelu(per=channel)', **sizes), cases.inputs(name)
  params = cases.numbers(model, x)['params']
  grads = cases.flat(jax.jit(jax.grad(
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
