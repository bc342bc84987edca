"""GPT-2: what it computes, taps and edits, dropout, dtypes, and what it refuses."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models.dense import Dense
from model_lib.training.tasks import cross_entropy
from tests.model_lib import gpt2_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

TOKENS = jnp.asarray(cases.TOKENS)


def apply(model, variables, tokens=TOKENS, **kwargs):
  return cases.program(model, **kwargs)(variables, tokens)


@pytest.fixture(scope='module')
def plain():
  """(model, variables, logits, taps) of the standard model."""
  model = cases.build()
  variables = cases.numbers(model)
  return model, variables, apply(model, variables), apply(model, variables, taps=True)[1]


def test_names_and_shapes_are_those_of_gpt2() -> None:
  shapes = jax.eval_shape(lambda: cases.build().init(jax.random.key(0), TOKENS))
  assert list(shapes) == ['params']
  assert {path: leaf.shape for path, leaf in cases.flat(jax.tree.map(
    lambda leaf: np.zeros(leaf.shape), shapes['params'])).items()} == {
      'wte/embedding': (37, 24), 'wpe/embedding': (16, 24),
      'h/ln_1/scale': (2, 24), 'h/ln_1/bias': (2, 24),
      'h/attn/c_attn/kernel': (2, 24, 72), 'h/attn/c_attn/bias': (2, 72),
      'h/attn/c_proj/kernel': (2, 24, 24), 'h/attn/c_proj/bias': (2, 24),
      'h/ln_2/scale': (2, 24), 'h/ln_2/bias': (2, 24),
      'h/mlp/c_fc/kernel': (2, 24, 96), 'h/mlp/c_fc/bias': (2, 96),
      'h/mlp/c_proj/kernel': (2, 96, 24), 'h/mlp/c_proj/bias': (2, 24),
      'ln_f/scale': (24,), 'ln_f/bias': (24,)}


def test_the_start_is_gpt2_s() -> None:
  model = models.build('gpt2', vocab=300, length=100, dim=64, depth=2, heads=4, unroll=1)
  params = cases.flat(jax.jit(lambda: model.init(jax.random.key(0), TOKENS))()['params'])
  for path, leaf in params.items():
    if path.endswith(('kernel', 'embedding')):
      std = .02 / 2 if 'c_proj' in path else .02  # sqrt(2 L) = 2
      # Standard error of a sample std: std / sqrt(2 n).
      np.testing.assert_allclose(leaf.std(), std, rtol=5 / np.sqrt(2 * leaf.size))
    else:
      np.testing.assert_array_equal(leaf, float(path.endswith('scale')))
  assert not np.array_equal(*params['h/mlp/c_fc/kernel'])


# Taps and edits.


def test_the_taps_fit_together(plain) -> None:
  """Every tap but the streams is computed in numpy from the one before it."""
  _, variables, logits, taps = plain
  params, taps = variables['params'], {k: np.asarray(v, np.float64) for k, v in taps.items()}
  expected = cases.after(params, taps, lambda site, layer, sigma: 1 / sigma)
  for place, values in expected.items():
    np.testing.assert_allclose(taps[place], values, rtol=1e-4, atol=1e-5, err_msg=place)
  p = {path: leaf.astype(np.float64) for path, leaf in cases.flat(params).items()}
  b, t, dim = taps['final'].shape
  outs = {'attn_out': ('attn', taps['head_out'].reshape(2, b, t, dim)),
          'mlp_out': ('mlp', taps['mlp_act'])}
  for place, (part, z) in outs.items():
    y = z @ p[f'h/{part}/c_proj/kernel'][:, None] + p[f'h/{part}/c_proj/bias'][:, None, None]
    np.testing.assert_allclose(taps[place], y, rtol=1e-4, atol=1e-5)
  start = p['wte/embedding'][cases.TOKENS] + p['wpe/embedding'][:t]
  stream = [start, *taps['resid_pre'][1:], taps['resid_final']]
  for i in range(2):
    np.testing.assert_allclose(taps['resid_pre'][i], stream[i], rtol=1e-5, atol=1e-6)
    mid = stream[i] + taps['attn_out'][i]
    np.testing.assert_allclose(taps['resid_mid'][i], mid, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stream[i + 1], mid + taps['mlp_out'][i], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(logits, taps['final'] @ p['wte/embedding'].T, rtol=1e-4, atol=1e-4)


def test_edits_are_added_at_their_places(plain) -> None:
  """Zeros change nothing; the gradient with respect to edits is that of finite differences."""
  model, variables, _, taps = plain
  places = ('resid_pre', 'attn_out', 'mlp_act', 'mlp_out', 'resid_final')
  rng = np.random.default_rng(3)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    zeros = {place: np.zeros(taps[place].shape) for place in places}
    mask = rng.normal(size=(2, 11, 37))

    def total(edits):
      found = model.apply(wide, TOKENS, edits=edits)
      return jnp.sum(found * mask), found

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, same), grads = run(zeros)
    np.testing.assert_allclose(same, apply(model, wide), rtol=0, atol=1e-12)
    for place in places:
      step = rng.normal(size=zeros[place].shape)
      step /= np.linalg.norm(step)
      ends = [float(run({**zeros, place: sign * 1e-5 * step})[0][0]) for sign in (1, -1)]
      slope = (ends[0] - ends[1]) / 2e-5
      np.testing.assert_allclose(np.sum(grads[place] * step), slope, rtol=1e-6, atol=1e-7)
      assert abs(slope) > 1e-2


def test_an_edit_in_the_last_layer_moves_its_position_alone(plain) -> None:
  model, variables, logits, taps = plain
  run = jax.jit(lambda edit: model.apply(variables, TOKENS, edits={'mlp_act': edit}))
  zeros = jnp.zeros_like(taps['mlp_act'])
  before = run(zeros)
  np.testing.assert_allclose(before, logits, rtol=1e-4, atol=1e-5)
  changed = np.abs(run(zeros.at[1, 0, 3, 5].set(.5)) - before).max(-1)
  assert changed[0, 3] > 1e-2 and np.count_nonzero(changed) == 1


def test_it_is_causal(plain) -> None:
  model, variables, logits, _ = plain
  moved = apply(model, variables, TOKENS.at[:, 6].set((TOKENS[:, 6] + 1) % 37))
  np.testing.assert_array_equal(moved[:, :6], logits[:, :6])
  assert np.abs(moved - logits)[:, 6:].max(axis=(0, 2)).min() > 1e-3
  short = apply(model, variables, TOKENS[:, :6])
  np.testing.assert_allclose(short, logits[:, :6], rtol=1e-4, atol=1e-5)


# The same function, computed otherwise.


def test_remat_and_unroll_change_no_values(plain) -> None:
  _, variables, *_ = plain

  def run(**kwargs):
    model = cases.build(**kwargs)

    def loss(params):
      return cross_entropy(model.apply({'params': params}, TOKENS[:, :-1]), TOKENS[:, 1:]).mean()

    both = jax.value_and_grad(loss)
    return str(jax.make_jaxpr(both)(variables['params'])), jax.jit(both)(variables['params'])

  program, (loss, grads) = run()
  other, (same, others) = run(remat=True, unroll=1)
  assert 'unroll=2' in program and 'unroll=2' not in other
  assert 'remat' in other and 'remat' not in program
  np.testing.assert_allclose(same, loss, rtol=1e-6)
  for path, leaf in cases.flat(grads).items():
    np.testing.assert_allclose(cases.flat(others)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
    assert leaf.any(), path


def test_bfloat16_is_close_to_float32(plain) -> None:
  _, variables, logits, _ = plain
  narrow = apply(cases.build(dtype='bfloat16'), variables)
  assert narrow.dtype == jnp.float32
  scale = np.abs(logits).max()
  difference = np.abs(narrow - logits).max()
  assert 1e-4 * scale < difference < .04 * scale


def test_dropout_acts_in_training_only(plain) -> None:
  _, variables, logits, _ = plain
  model = cases.build(dropout=.2)
  np.testing.assert_array_equal(apply(model, variables), logits)
  with pytest.raises(UserError, match='rngs='):
    jax.eval_shape(lambda: model.apply(variables, TOKENS, train=True))
  draw = jax.jit(lambda key: model.apply(variables, TOKENS, train=True, taps=True,
                                         rngs={'noise': key}))
  (first, taps), (second, _), (again, _) = (draw(jax.random.key(k)) for k in (0, 1, 0))
  np.testing.assert_array_equal(first, again)
  assert min(np.abs(first - second).max(), np.abs(first - logits).max()) > .1
  for place in ('resid_pre', 'attn_out', 'mlp_out'):
    zeros = np.mean(np.asarray(taps[place][0]) == 0)
    assert abs(zeros - .2) < 5 * np.sqrt(.16 / taps[place][0].size), place
  assert not np.array_equal(taps['attn_out'][0] == 0, taps['attn_out'][1] == 0)
  np.testing.assert_allclose(taps['attention'].sum(-1), 1, rtol=1e-5)  # before dropout


# Variants.


def test_lora_adds_a_product(plain) -> None:
  _, variables, logits, _ = plain
  model = cases.build(lora_rank=2)
  params = cases.flat(cases.numbers(model)['params'])
  base = cases.flat(variables['params'])
  lora = {path: leaf for path, leaf in params.items() if 'lora' in path}
  assert len(lora) == 8 and lora['h/attn/c_attn/lora_b'].shape == (2, 2, 72)

  def run(leaves):
    return apply(model, {'params': _unflat(leaves)})

  zero = {path: leaf * (not path.endswith('lora_b')) for path, leaf in lora.items()}
  np.testing.assert_allclose(run({**base, **zero}), logits, rtol=1e-5, atol=1e-6)
  merged = dict(base)
  for path in base:
    if path.startswith('h/') and path.endswith('kernel'):
      at = path.removesuffix('kernel')
      merged[path] = base[path] + lora[f'{at}lora_a'] @ lora[f'{at}lora_b']
  expected = apply(cases.build(), {'params': _unflat(merged)})
  np.testing.assert_allclose(run({**base, **lora}), expected, rtol=1e-3, atol=1e-3)
  assert np.abs(expected - logits).max() > .5
  first = Dense(96, lora_rank=8).init(jax.random.key(0), jnp.zeros((1, 24)))['params']
  assert not first['lora_b'].any() and abs(first['lora_a'].std() * 24 ** .5 - 1) < .3


def _unflat(leaves):
  return flax.traverse_util.unflatten_dict(leaves, sep='/')


def test_scaled_ffn_and_attention_temperature(plain) -> None:
  """Both against the standard model with kernels that do the same."""
  _, variables, *_ = plain
  model = cases.build(ffn_scale=True, attention_temperature=True)
  base = cases.flat(variables['params'])
  alpha, temperature = np.float32([1.5, .7]), np.float32([[.5, 2, 1], [1.3, .8, 1]])
  own = {'h/ffn_alpha': alpha, 'h/ffn_beta': np.ones(2, np.float32),
         'h/attn/temperature': np.repeat(temperature[..., None], 16, 2)}
  changed = {**base}
  for leaf in ('kernel', 'bias'):
    at = f'h/mlp/c_proj/{leaf}'
    changed[at] = base[at] / alpha.reshape((2,) + (1,) * (base[at].ndim - 1))
    at = f'h/attn/c_attn/{leaf}'
    per_column = np.ones((2, 72), np.float32)
    per_column[:, :24] = np.repeat(temperature, 8, axis=1)
    changed[at] = base[at] / (per_column[:, None] if leaf == 'kernel' else per_column)

  def run(leaves):
    return apply(model, {'params': _unflat(leaves)}, taps=True)

  np.testing.assert_allclose(run({**base, **own})[0],
                             apply(cases.build(), {'params': _unflat(changed)}),
                             rtol=1e-3, atol=1e-4)
  own['h/ffn_beta'] = np.float32([.5, 2])
  own['h/attn/temperature'] = own['h/attn/temperature'] * np.arange(1, 17, dtype=np.float32)
  _, taps = run({**base, **own})
  np.testing.assert_allclose(taps['resid_final'], 2 * taps['resid_mid'][1] + taps['mlp_out'][1],
                             rtol=1e-5, atol=1e-5)
  # Query 10 has 11 times the temperature of before, so that its logits are an eleventh.
  expected = cases.after(_unflat(changed), taps, lambda site, layer, sigma: 1 / sigma)
  ratio = np.log(expected['attention'][0][:, :, 10] / expected['attention'][0][:, :, 10, :1])
  np.testing.assert_allclose(np.log(taps['attention'][0][:, :, 10]
                                    / taps['attention'][0][:, :, 10, :1]), ratio / 11,
                             rtol=1e-3, atol=1e-4)


def test_an_untied_unembedding_with_a_bias(plain) -> None:
  _, variables, logits, _ = plain
  model = cases.build(tied=False, unembed_bias=True)
  head = {'kernel': variables['params']['wte']['embedding'].T, 'bias': jnp.arange(37.)}
  own = apply(model, {'params': {**variables['params'], 'lm_head': head}})
  np.testing.assert_allclose(own, logits + jnp.arange(37.)[None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('norm', ['rms', 'none', 'dyt'])
def test_other_norms(norm) -> None:
  model = cases.build(norm=norm)
  variables = cases.numbers(model)
  params = variables['params']
  _, taps = apply(model, variables, taps=True)
  final, x = np.asarray(taps['final']), np.asarray(taps['resid_final'])
  p = {name: np.asarray(leaf) for name, leaf in params.get('ln_f', {}).items()}
  if norm == 'rms':
    assert set(p) == {'scale'}
    expected = x / cases.moments(x, 'rms')[1] * p['scale']
  elif norm == 'none':
    assert set(params) == {'wte', 'wpe', 'h'} and set(params['h']) == {'attn', 'mlp'}
    expected = x
  else:
    assert params['h']['ln_1']['alpha'].shape == (2,)
    expected = np.tanh(p['alpha'] * x) * p['scale'] + p['bias']
  np.testing.assert_allclose(final, expected, rtol=1e-4, atol=1e-5)


# What is refused.


@pytest.mark.parametrize('kwargs, part', [
  ({'statistic': 'men'}, "nearest: 'mean'"),
  ({'positions': 'al'}, "nearest: 'all'"),
  ({'buffer': 'paper'}, 'paper_code'),
  ({'target': 'fix'}, "nearest: 'fixed'"),
  ({'dtype': 'bfloat'}, "nearest: 'bfloat16'"),
  ({'dropout': 1}, 'dropout must be in [0, 1)'),
  ({'dropout': '0'}, 'a number'),
  ({'eps': -1.0}, 'eps must be at least 0'),
  ({'eot': 37}, 'no token of a vocabulary of 37'),
  ({'eot': -2}, 'an integer >= -1'),
  ({'depth': 0}, 'an integer >= 1'),
  ({'lora_rank': -1}, 'an integer >= 0'),
  ({'heads': 5}, 'not divisible'),
  ({'unembed_bias': True}, 'tied=False'),
  ({'activation': 'swiglu'}, 'takes two arrays'),
  ({'activation': 'softmax(axis=positions)'}, 'later ones'),
  ({'activation': 'gelo'}, "'gelu'"),
  ({'norm': 'batch'}, 'state'),
  ({'norm': 'layer(eps=1e-6)'}, 'as eps='),
  ({'norm': 'dyt', 'removable': True}, 'removable=True needs'),
  ({'norm': 'layr'}, "nearest: 'layer'"),
  ({'removble': True}, "nearest: 'removable'"),
])
def test_a_wrong_model_is_one_line(kwargs, part) -> None:
  with pytest.raises(UserError) as info:
    cases.build(**kwargs)
  assert part in str(info.value) and '\n' not in str(info.value)


@pytest.mark.parametrize('tokens, kwargs, part', [
  (jnp.zeros((2, 17), jnp.int32), {}, 'T <= length=16'),
  (jnp.zeros((2, 4)), {}, 'integer tokens'),
  (jnp.zeros(4, jnp.int32), {}, 'integer tokens'),
  (TOKENS, {'edits': {'resid_pres': 0}}, "nearest: 'resid_pre'"),
])
def test_a_wrong_call_is_one_line(tokens, kwargs, part) -> None:
  model = cases.build()
  with pytest.raises(UserError) as info:
    jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, **kwargs))
  assert part in str(info.value) and '\n' not in str(info.value)


def test_float64_without_x64_is_one_line() -> None:
  with pytest.raises(UserError, match='jax_enable_x64'):
    jax.eval_shape(lambda: cases.build(dtype='float64').init(jax.random.key(0), TOKENS))
