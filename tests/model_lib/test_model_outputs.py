"""What the models compute: agreement with numpy, norms, causality, dtypes, the table's factors."""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from model_lib import models
from model_lib.models.attention import Attention
from model_lib.models.vit import patches
from model_lib.normalization import get_norm
from model_lib.parametrization import Rule, get_parametrization, table
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')


# Norms and placements.


def _numpy_gelu(x):
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
  model = models.build('gpt', norm=norm, activation='gelu', **cases.SIZES['gpt'])
  tokens = cases.inputs('gpt')
  params = cases.numbers(model, tokens)['params']
  logits = cases.logits(model, {'params': params}, tokens)
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  expected = _numpy_gpt(wide, np.asarray(tokens), placement, heads=2)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  has_norm = {path.split('/')[1] for path in cases.flat(params) if path.startswith('blocks/norm')}
  assert has_norm == {'none': set(),
                      'post': {'norm_attention_0', 'norm_feed_forward_0'},
                      'pre': {'norm_attention_0', 'norm_feed_forward_0', 'norm_final'}}[placement]


@pytest.mark.parametrize('placement', ['none', 'pre', 'post'])
def test_mlp_against_numpy(placement) -> None:
  norm = placement if placement == 'none' else f'{placement}:rms'
  model = models.build('mlp', widths=(16,), activation='tanh', norm=norm)
  x = cases.inputs('mlp')
  params = cases.numbers(model, x)['params']
  flat = cases.flat(params)
  h = np.asarray(x).reshape(3, -1) @ flat['hidden_0/kernel'] + flat['hidden_0/bias']
  standardize = {'none': lambda h: h}.get(
    placement, lambda h: h / np.sqrt((h ** 2).mean(-1, keepdims=True) + 1e-6))
  gain = flat.get('norm_0/scale', flat.get('norm_hidden_0/scale', 1))
  h = np.tanh(standardize(h) * gain) if placement != 'post' else standardize(np.tanh(h)) * gain
  np.testing.assert_allclose(cases.logits(model, {'params': params}, x),
                             h @ flat['head/kernel'] + flat['head/bias'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['mlp', 'vit', 'gpt'])
def test_batch_norm_state(name) -> None:
  model, x = models.build(name, norm='batch', **cases.SIZES[name]), cases.inputs(name)
  variables = cases.numbers(model, x)
  before = cases.flat(variables['batch_stats'])
  assert len(before) == {'mlp': 4}.get(name, 6)

  @functools.partial(jax.jit, static_argnums=1)
  def apply(variables, train):
    return model.apply(variables, x, train=train, mutable=['batch_stats'])

  first, state = apply(variables, True)
  after = cases.flat(state['batch_stats'])
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
  model, tokens = models.build('gpt', norm=norm, **cases.SIZES['gpt']), cases.inputs('gpt')
  variables = cases.numbers(model, tokens)
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


@pytest.mark.parametrize('name', cases.SIZES)
def test_bfloat16_stays(name) -> None:
  """No layer widens: bfloat16 images, or for tokens bfloat16 parameters, give bfloat16."""
  model, x = models.build(name, norm='pre:layer', **cases.SIZES[name]), cases.inputs(name)
  params = cases.numbers(model, x)['params']
  wide = cases.logits(model, {'params': params}, x)
  if name == 'gpt':
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  else:
    x = x.astype(jnp.bfloat16)
  narrow, state = jax.jit(lambda params: model.apply(
    {'params': params}, x, train=False, capture_intermediates=True,
    mutable=['intermediates']))(params)
  dtypes = {path: array.dtype for path, leaf in flax.traverse_util.flatten_dict(
    state['intermediates'], sep='/').items() if name == 'gpt' or 'position' not in path
            for array in jax.tree.leaves(leaf)}
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
  x, ours = cases.inputs('mlp'), models.build('mlp', **cases.SIZES['mlp'])
  other = models.build('mlp', parametrization='other', **cases.SIZES['mlp'])
  params, scaled = cases.init(ours, x)['params'], cases.flat(cases.init(other, x)['params'])
  np.testing.assert_array_equal(cases.logits(other, {'params': params}, x),
                                cases.logits(ours, {'params': params}, x) / 2)
  for path, leaf in cases.flat(params).items():
    np.testing.assert_allclose(scaled[path], leaf * (3 if path == 'hidden_0/kernel' else 1),
                               rtol=1e-6)


def test_attention_logits_come_from_the_table(other_row) -> None:
  """q.k / d instead of q.k / sqrt(d) is the attention of queries divided by sqrt(d)."""
  other_row(head_dim_power=-1.0)
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  params = cases.numbers(Attention(2, False), x, train=None)['params']
  divide = np.repeat([1 / np.sqrt(4), 1, 1], 8).astype(np.float32)
  smaller = {**params, 'qkv': {'kernel': params['qkv']['kernel'] * divide[None],
                               'bias': params['qkv']['bias'] * divide}}
  other = Attention(2, False, 'other').apply({'params': params}, x)
  np.testing.assert_allclose(other, Attention(2, False).apply({'params': smaller}, x), rtol=1e-5)
  assert np.abs(other - Attention(2, False).apply({'params': params}, x)).max() > 1e-2


def test_branches_come_from_the_table(other_row) -> None:
  other_row(depth_power=-60.0)
  tokens = cases.inputs('gpt')
  sizes = {**cases.SIZES['gpt'], 'depth': 2}
  model = models.build('gpt', norm='none', parametrization='other', **sizes)
  params, hp = cases.numbers(model, tokens)['params'], cases.init(model, tokens)['hp']
  scales = [leaf for path, leaf in cases.flat(hp).items() if path.endswith('branch_scale')]
  assert scales == [np.float32(2.0 ** -60)] * 4
  flat = cases.flat(params)
  x = flat['embedding/table'][np.asarray(tokens)] + flat['position/table'][:6]
  np.testing.assert_allclose(cases.logits(model, {'params': params, 'hp': hp}, tokens),
                             x @ flat['head/kernel'] + flat['head/bias'], rtol=1e-4, atol=1e-5)


def test_every_norm_builds_in_every_model() -> None:
  """Shapes only: the placements and norms of the catalogue trace under rank promotion."""
  for name in cases.SIZES:
    for norm in ('layer', 'rms', 'batch', 'group(4)', 'dyt'):
      if name == 'gpt' and not get_norm(norm).causal:
        continue
      for placement in ('pre', 'post'):
        model = models.build(name, norm=f'{placement}:{norm}', **cases.SIZES[name])
        jax.eval_shape(lambda model=model, name=name: model.init(
          jax.random.key(0), cases.inputs(name), train=True))
