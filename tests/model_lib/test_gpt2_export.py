"""Exports of a GPT-2 with linear norms: the same function, no norm left, and what shows if not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.interop import save_gpt2
from model_lib.models.dense import merged
from model_lib.models.removable import NEVER
from model_lib.transforms import edits, find_normalizations
from model_lib.transforms import gpt2_export as export

pytestmark = pytest.mark.usefixtures('unoptimized')

SIZE = {'vocab': 37, 'length': 16, 'dim': 24, 'depth': 3, 'heads': 3, 'mlp_ratio': 2, 'unroll': 1}
GROUPS = ('event_qk', 'event_v', 'event_mlp')


@functools.cache
def case(kept=False, variance=None, **attributes):
  """(model, variables, tokens): random numbers everywhere, every site linear but a `kept` ln_f.

  With a `variance`, the stream has about that one at position 0, the largest, as GPT-2's has."""
  model = models.build('gpt2', removable=True, **{**SIZE, **attributes})
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.vocab, (4, 12)).astype(np.int32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, train=False))

  def fill(path, leaf):
    name, noise = path[-1].key, rng.normal(size=leaf.shape)
    if name.startswith('sigma') and path[0].key == 'norm_state':
      return np.exp(0.5 * noise).astype(np.float32)
    value = {'scale': 1 + 0.4 * noise, 'bias': 0.3 * noise, 'embedding': noise,
             'ffn_alpha': 1 + 0.1 * noise, 'temperature': np.exp(0.2 * noise)}.get(
               name, noise / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 1))
    return np.asarray(value, leaf.dtype)

  variables = jax.tree_util.tree_map_with_path(
    fill, {key: shapes[key] for key in ('params', 'norm_state')})
  if variance:
    # The blocks, whose norms are linear, enlarge it to about eight times that.
    variables['params']['wpe']['embedding'][0] *= np.sqrt(variance / 8)
  hp = jax.tree.map(np.asarray, jax.jit(
    lambda: model.init(jax.random.key(0), tokens, train=False)['hp'])())
  hp['h'].update({group: np.full(model.depth, 7, np.int32) for group in GROUPS})
  hp['event_final'] = np.int32(NEVER if kept else 7)
  hp['sigma_factor'] = np.float32(1.3)
  variables['norm_state']['calls'] = np.int32(8)  # the last training call was step 7
  return model, {**variables, 'hp': hp}, tokens


@functools.cache
def exported(form, **attributes):
  return getattr(export, form)(*case(**attributes))


def with_hp(variables, **values):
  """The variables with other swept numbers, of the top or of `h`."""
  hp = {**variables['hp'], 'h': dict(variables['hp']['h'])}
  for name, value in values.items():
    (hp['h'] if name in hp['h'] else hp)[name] = value
  return {**variables, 'hp': hp}


def apply(model):
  return lambda v, x: model.apply(v, x, train=False)


CASES = [('fold', {}), ('trick', {}), ('fold', {'kept': True, 'norm': 'rms'}),
         pytest.param('fold', {'norm': 'rms'}, marks=pytest.mark.slow),
         pytest.param('fold', {'kept': True}, marks=pytest.mark.slow),
         pytest.param('trick', {'norm': 'rms'}, marks=pytest.mark.slow),
         pytest.param('fold', {'tied': False}, marks=pytest.mark.slow),
         pytest.param('fold', {'tied': False, 'unembed_bias': True}, marks=pytest.mark.slow),
         pytest.param('fold', {'lora_rank': 2, 'ffn_scale': True, 'attention_temperature': True},
                      marks=pytest.mark.slow),
         pytest.param('trick', {'lora_rank': 2, 'ffn_scale': True, 'remat': True},
                      marks=pytest.mark.slow)]


@pytest.mark.parametrize('form, attributes', CASES)
def test_the_same_function(form, attributes) -> None:
  new, tokens = exported(form, **attributes), case(**attributes)[2]
  report = new.report
  print(report)
  assert report.equal, str(report)
  if form == 'fold':
    assert [p.tolerance for p in report.precisions.precisions] == [1e-4, 1e-11]
  assert report.control > 1e-2  # the model with real norms is another function
  assert report.precisions['float32'].largest > 1
  # No norm is left in the fold; the trick and the real norms are found.
  kept = attributes.get('kept', False)
  assert report.kept == kept
  names = ('ln_f',) if kept else () if form == 'fold' else ('h/ln_1', 'h/ln_2', 'ln_f')
  assert export.places(report.findings) == tuple(f'GPT2/{name}' for name in names)
  assert export.places(report.control_findings) == ('GPT2/h/ln_1', 'GPT2/h/ln_2', 'GPT2/ln_f')
  assert bool(report.findings) == bool(names)
  assert set(new.variables) == {'params'}
  shapes = jax.eval_shape(lambda: new.model.init(jax.random.key(0), tokens, train=False))
  assert jax.tree.map(np.shape, new.variables['params']) == jax.tree.map(
    np.shape, shapes['params'])


def test_the_trick_errs_by_the_variance() -> None:
  model, _, tokens = case()
  new = model.clone(removable=False, eps=1e12)
  both = jax.jit(lambda v, u: (*export.with_variance(model, v, tokens),
                               new.apply(u, tokens, train=False)))
  for variance in (6e3, 1e6, 1e8):
    _, variables, _ = case(variance=variance)
    for dtype, allowed in (('float32', 1e-4), ('float64', 1e-11)):
      with jax.enable_x64(dtype == 'float64'):
        cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, variables)
        old, found, logits = both(cast, {'params': export.trick_tree(cast)['params']})
      old, logits, found = np.asarray(old), np.asarray(logits), float(found)
      own = 4 * found / 2e12
      error = np.abs(logits - old).max() / np.abs(old).max()
      print(f'{dtype}: max var {found:.3g}, own error {own:.1e}, error {error:.1e}')
      assert variance / 2 < found < 2 * variance and old.dtype == dtype
      assert error <= allowed + own
      # The error is there, and of that size: the fold's tolerance is not enough.
      assert dtype == 'float32' or error > max(allowed, own / 200)


def test_the_reports_tolerance_is_the_folds_plus_that_of_the_variance() -> None:
  report = exported('trick').report
  own = 4 * report.max_variance / 2e12
  assert own > 5e-11
  for dtype, allowed in (('float32', 1e-4), ('float64', 1e-11)):
    assert report.precisions[dtype].tolerance == pytest.approx(allowed + own, rel=1e-9)
  assert f'{report.max_variance:.3g}' in str(report)


@pytest.mark.slow
@pytest.mark.parametrize('variance', [6e3, 1e6, 1e8])
def test_the_fold_does_not(variance) -> None:
  report = export.fold(*case(variance=variance)).report
  assert report.equal, str(report)


def test_every_part_of_the_fold_is_needed() -> None:
  model, variables, tokens = case()
  new = exported('fold')
  sigma = export.sigmas(variables)
  assert np.abs(sigma['qk'] - sigma['v']).min() > 0.01

  run, a = jax.jit(apply(new.model)), jax.jit(apply(model))(variables, tokens)

  def difference(changed):
    return float(np.abs(a - run({'params': changed}, tokens)).max() / np.abs(a).max())

  good = edits.flatten(new.variables['params'])
  assert difference(edits.unflatten(good)) < 1e-4
  kernel = good['h/attn/c_attn/kernel']
  dim = kernel.shape[1]
  same = np.concatenate([kernel[..., :2 * dim], kernel[..., 2 * dim:]
                         * (sigma['v'] / sigma['qk'])[:, None, None]], -1)
  for path, leaf in {
      'lm_head/bias': np.zeros_like(good['lm_head/bias']),
      'lm_head/kernel': good['wte/embedding'].T,
      'h/mlp/c_fc/bias': variables['params']['h']['mlp']['c_fc']['bias'],
      'h/attn/c_attn/kernel': np.float32(same),  # the sigma of queries for the values
  }.items():
    assert difference(edits.unflatten({**good, path: leaf})) > 1e-3, path


def test_the_trick_makes_up_for_the_values() -> None:
  model, variables, tokens = case()
  new = model.clone(removable=False, eps=1e12)
  made = export.trick_tree(variables)['params']
  run, old = jax.jit(apply(new)), np.asarray(jax.jit(apply(model))(variables, tokens))
  flat = edits.flatten(made)
  assert np.abs(run({'params': made}, tokens) - old).max() < 1e-4 * np.abs(old).max()
  for path in ('h/attn/c_attn/kernel', 'h/attn/c_attn/bias'):
    broken = edits.unflatten({**flat, path: edits.flatten(variables['params'])[path]})
    off = np.abs(run({'params': broken}, tokens) - old).max()
    assert off > 1e-3 * np.abs(old).max(), path


def test_lower_precisions_are_shown() -> None:
  rows = {row.dtype: row for row in exported('fold').report.lower}
  assert 1e-4 < rows['bfloat16'].difference < 0.3 and rows['bfloat16'].not_finite == 0
  assert rows['float16'].difference < rows['bfloat16'].difference
  tricked = {row.dtype: row for row in exported('trick').report.lower}
  # Scales above 65,504 are infinite in float16.
  assert tricked['float16'].not_finite == tricked['float16'].outputs
  assert str(tricked['float16']) == 'float16 weights: no output is finite'


# The final map.


@pytest.mark.parametrize('dtype, allowed', [
  pytest.param('float32', 1e-4, marks=pytest.mark.slow), ('float64', 1e-10)])
def test_after_folding_the_logits_are_linear_in_the_last_stream(dtype, allowed) -> None:
  """f(a + b) - f(b) = f(a) - f(0), with a the stream that the model has and edits added to it."""
  def defect(model, variables, tokens):
    @jax.jit
    def logits(variables, b):
      def f(**edits):
        return model.apply(variables, tokens, train=False, taps=True, edits=edits)

      _, taps = f()
      a = taps['resid_final']
      # The edits of all four, in one pass: a copy of the batch for each.
      edit = jnp.concatenate([b, b - a, jnp.zeros_like(a), -a])
      four = model.apply(variables, jnp.tile(tokens, (4, 1)), train=False,
                         edits={'resid_final': edit})
      return jnp.split(four, 4)

    with jax.enable_x64(dtype == 'float64'):
      cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, variables)
      b = np.random.default_rng(1).normal(size=(*tokens.shape, model.dim)).astype(dtype)
      f_ab, f_b, f_a, f_0 = map(np.asarray, logits(cast, b))
    assert f_a.dtype == dtype
    return np.abs((f_ab - f_b) - (f_a - f_0)).max() / np.abs(f_ab).max()

  model, variables, tokens = case()
  new = exported('fold')
  assert defect(new.model, new.variables, tokens) < allowed
  real = model.clone(removable=False)
  assert defect(real, {'params': variables['params']}, tokens) > 1e-2


def test_lora_goes_into_the_kernels() -> None:
  rng = np.random.default_rng(0)
  a, b, w = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4))
  params = {'kernel': np.float32(w), 'lora_a': np.float32(a), 'lora_b': np.float32(b)}
  # Of a tree and of one map, on the host and on a device.
  for found in (merged({'h': {'c_fc': params}})['h']['c_fc'], merged(jax.device_put(params))):
    assert set(found) == {'kernel'} and found['kernel'].dtype == 'float32'
    for layer in range(2):
      np.testing.assert_allclose(found['kernel'][layer], w[layer] + a[layer] @ b[layer],
                                 rtol=1e-5, atol=1e-5)


# What is refused.


def test_sites_that_are_real_are_named() -> None:
  model, variables, tokens = case()
  assert export.real_sites(model, variables) == ()
  for values, named in (
      ({'event_v': np.array([7, NEVER, 9])}, ('h.1.ln_1.v', 'h.2.ln_1.v')),
      ({'event_final': np.int32(8)}, ('ln_f',)),
      ({'event_qk': np.array([8, 7, 7])}, ('h.0.ln_1.qk',)),
      ({'taper': np.float32(3.0), 'event_mlp': np.array([4, 5, 7])}, (
        'h.0.ln_1.qk', 'h.0.ln_1.v', 'h.1.ln_1.qk', 'h.1.ln_1.v', 'h.1.ln_2', 'h.2.ln_1.qk',
        'h.2.ln_1.v', 'h.2.ln_2', 'ln_f')),
      ({'calls_per_step': np.int32(2)}, None), ({'enabled': np.int32(0)}, None)):
    changed = with_hp(variables, **values)
    real = export.real_sites(model, changed)
    assert (len(real) == 10 if named is None else real == named), values
    for form in ('fold', 'trick'):
      if form == 'fold' and real == ('ln_f',):
        continue
      with pytest.raises(UserError) as info:
        getattr(export, form)(model, changed, tokens)
      assert real[0] in str(info.value) and '\n' not in str(info.value)
      assert ('a norm site is' if len(real) == 1 else f'{len(real)} norm sites') in str(info.value)


def test_a_model_without_switches_is_refused() -> None:
  model, variables, tokens = case()
  for other in (model.clone(removable=False), models.build('gpt')):
    with pytest.raises(UserError, match='removable=True'):
      export.fold(other, variables, tokens)


def test_a_kept_norm_is_the_old_one() -> None:
  _, variables, tokens = case(kept=True, norm='rms')
  new = exported('fold', kept=True, norm='rms')
  for path in ('wte', 'ln_f'):
    jax.tree.map(np.testing.assert_array_equal, new.variables['params'][path],
                 variables['params'][path])
  assert 'lm_head' not in new.variables['params'] and new.model.final_norm == 'rms'
  found = find_normalizations(apply(new.model), new.variables, tokens)
  assert found and all('ln_f' in finding.scope for finding in found)


@pytest.mark.slow  # importing torch and transformers takes longest
@pytest.mark.parity
def test_stock_transformers_compute_the_linear_norms(tmp_path) -> None:
  import torch
  import transformers
  model, variables, tokens = case()
  new = exported('trick')
  save_gpt2(tmp_path / 'weights', new.model, new.variables)
  stock = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / 'weights').eval()
  for dtype, allowed in (('float32', 1e-4), ('float64', 1e-6)):  # the weights were rounded once
    with torch.no_grad():
      logits = stock.to(getattr(torch, dtype))(torch.from_numpy(tokens).long()).logits.numpy()
    with jax.enable_x64(dtype == 'float64'):
      cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, variables)
      old = np.asarray(jax.jit(apply(model))(cast, tokens))
    assert logits.dtype == old.dtype == dtype
    assert np.abs(logits - old).max() < allowed * np.abs(old).max()
  # With its own eps, as loaders that drop the config's would have it, it is another function.
  for name, module in stock.named_modules():
    if isinstance(module, torch.nn.LayerNorm):
      module.eps = 1e-5
  with torch.no_grad():
    off = stock(torch.from_numpy(tokens).long()).logits.numpy()
  assert np.abs(off - old).max() > np.abs(old).max()
