"""Logit attribution of heads: against numpy, and its error before and after the norms are gone."""
from __future__ import annotations

import jax
import numpy as np
import pytest

from model_lib.analysis import attribution
from model_lib.errors import UserError
from model_lib.models.gpt2 import GPT2
from tests.model_lib import gpt2_numpy

pytestmark = pytest.mark.usefixtures('unoptimized')


def _in_numpy(model, variables, tokens, target):
  """DLA with everything folded and centred, and DE by subtraction; [N, L, H]."""
  run = gpt2_numpy.forward(model, variables, tokens)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  at = tokens.shape[1] - 2
  folded = params['ln_f']['scale'][:, None] * params['wte']['embedding'].T
  folded = folded - folded.mean(0)
  folded = folded - folded.mean(1, keepdims=True)
  r = run['resid_final'][:, at]
  sigma = np.sqrt(r.var(-1) + model.eps)

  def logit(stream):
    logits = gpt2_numpy.forward(model, variables, tokens, start=stream)['logits'][:, at]
    return (logits - logits.mean(-1, keepdims=True))[np.arange(len(tokens)), target]

  effect, direct = [], []
  head_dim = model.dim // model.heads
  for layer in range(model.depth):
    kernel = params['h']['attn']['c_proj']['kernel'][layer]
    for head in range(model.heads):
      c = run['head_out'][layer][:, at, head] @ kernel[head * head_dim:(head + 1) * head_dim]
      less = run['resid_final'].copy()
      less[:, at] -= c
      effect.append(logit(run['resid_final']) - logit(less))
      direct.append(((c - c.mean(-1, keepdims=True)) * folded.T[target]).sum(-1) / sigma)
  shape = (model.depth, model.heads, len(tokens))
  return [np.moveaxis(np.reshape(x, shape), -1, 0) for x in (direct, effect)]


def test_attribution_and_effect_against_numpy():
  model, variables = gpt2_numpy.small()
  tokens = gpt2_numpy.windows(5)
  found = attribution.attribute(model, variables, tokens, batch=3)
  direct, effect = _in_numpy(model, variables, tokens, tokens[:, -1])
  assert found.effect.shape == (5, model.depth, model.heads)
  np.testing.assert_allclose(found.attribution, direct, atol=2e-4)
  np.testing.assert_allclose(found.effect, effect, atol=2e-4)
  # The token at the position itself, which the paper's code reads, has other numbers.
  _, elsewhere = _in_numpy(model, variables, tokens, tokens[:, -2])
  assert np.abs(found.effect - elsewhere).max() > 0.1


def test_both_errors_by_hand():
  effect = np.array([[[1.0, 10.0]], [[3.0, 10.0]]])  # two sequences, one layer, two heads
  error = np.array([[[0.5, 1.0]], [[1.5, 0.0]]])
  found = attribution.nmae(attribution.Attribution(effect + error * [[[1, -1]]], effect))
  # Heads: 2/4 and 1/20. Pooled: 3/24.
  np.testing.assert_allclose(found.heads, [[50, 5]])
  assert found.per_head.mean == pytest.approx(27.5) and found.pooled.mean == pytest.approx(12.5)
  # Every draw lies between the smallest and the largest ratio there is.
  assert 0 <= found.pooled.low < 12.5 < found.pooled.high <= 50
  assert found.per_head.low < 27.5 < found.per_head.high and found.per_head.n == 2
  # Without effect there is no ratio, and no interval is made up.
  none = attribution.nmae(attribution.Attribution(effect, effect * [[[1, 0]]]))
  assert none.heads[0, 1] == np.inf and np.isnan(none.per_head.low)


def test_a_draw_takes_whole_sequences_and_heads():
  rng = np.random.default_rng(0)
  effect, error = rng.normal(size=(2, 6, 2, 2))
  found = attribution.nmae(attribution.Attribution(effect + error, effect), resamples=50, seed=3)
  draws, generator = [], np.random.Generator(np.random.Philox(3))
  for _ in range(50):
    rows, columns = generator.integers(6, size=6), generator.integers(4, size=4)
    part = [np.abs(x).reshape(6, 4)[rows][:, columns] for x in (error, effect)]
    draws.append(100 * part[0].sum() / part[1].sum())
  np.testing.assert_allclose((found.pooled.low, found.pooled.high),
                             np.quantile(draws, [0.025, 0.975]))


def _folded(model, variables, keep_final=False):
  """The model without norms, by hand: centring, gains, sigmas and shifts inside of the kernels."""
  params, state = variables['params'], variables['norm_state']
  h, dim = params['h'], model.dim
  center = np.eye(dim) - 1 / dim
  sigma = np.concatenate([np.repeat(state['h'][f'sigma_{name}'][:, None], n * dim, 1)
                          for name, n in (('qk', 2), ('v', 1))], 1)

  def fold(norm, dense, sigma):
    kernel = center @ (norm['scale'][..., None] * dense['kernel']) / sigma
    return {'kernel': kernel, 'bias': dense['bias'] + np.einsum(
      '...d,...de->...e', norm['bias'], dense['kernel'])}

  readout = {'kernel': params['wte']['embedding'].T, 'bias': np.zeros(model.vocab)}
  attn = {**h['attn'], 'c_attn': fold(h['ln_1'], h['attn']['c_attn'], sigma[:, None])}
  mlp = {**h['mlp'], 'c_fc': fold(h['ln_2'], h['mlp']['c_fc'],
                                  state['h']['sigma_mlp'][:, None, None])}
  new = {'wte': params['wte'], 'wpe': params['wpe'], 'h': {'attn': attn, 'mlp': mlp},
         'lm_head': fold(params['ln_f'], readout, state['sigma_final'])}
  if keep_final:
    new['ln_f'] = params['ln_f']
    del new['lm_head']
  plain = GPT2(**{name: getattr(model, name) for name in (
    'vocab', 'length', 'dim', 'depth', 'heads', 'mlp_ratio')}, norm='none',
    final_norm='layer' if keep_final else '', tied=keep_final, unembed_bias=not keep_final)
  return plain, {'params': new}


@pytest.mark.parametrize('dtype, bound', [('float32', 1e-2), ('float64', 1e-8)])
def test_the_error_is_gone_with_the_last_norm_and_large_before(dtype, bound):
  tokens = gpt2_numpy.windows(6)
  with jax.enable_x64(dtype == 'float64'):
    cast = lambda tree: jax.tree.map(
      lambda x: np.asarray(x, dtype) if np.issubdtype(x.dtype, np.floating) else x, tree)
    model, variables = gpt2_numpy.small(events=gpt2_numpy.FROZEN)
    cases = {'frozen': (model, variables), 'folded': _folded(model, variables)}
    if dtype == 'float32':
      cases['real'] = gpt2_numpy.small(events=gpt2_numpy.KEPT)
      only = jax.tree.map(np.copy, cases['real'][1])
      only['hp']['event_final'][...] = gpt2_numpy.FROZEN
      cases['last frozen'] = model, only
      cases['rms'] = gpt2_numpy.small(norm='rms', events=gpt2_numpy.FROZEN)
    found = {name: attribution.attribute(case, cast(own), tokens)
             for name, (case, own) in cases.items()}
  assert {x.effect.dtype for x in found.values()} == {np.dtype(dtype)}
  # The folded model is the frozen one, head by head.
  np.testing.assert_allclose(found['folded'].effect, found['frozen'].effect, atol=1e-4)
  for name, attributed in found.items():
    errors = attribution.nmae(attributed)
    for interval in (errors.pooled, errors.per_head):
      if name == 'real':
        assert interval.low > 5
      else:
        assert interval.high <= bound, name


def test_a_kept_final_norm_counts_though_the_others_are_folded():
  model, variables = gpt2_numpy.small(events=gpt2_numpy.FROZEN)
  variables['hp']['event_final'][...] = gpt2_numpy.KEPT
  tokens = gpt2_numpy.windows(6)
  before = attribution.attribute(model, variables, tokens)
  after = attribution.attribute(*_folded(model, variables, keep_final=True), tokens)
  for one, other in zip(before, after):
    np.testing.assert_allclose(one, other, atol=1e-4)
  assert attribution.nmae(after).pooled.low > 5


def test_norms_that_are_no_scale_are_refused():
  model, variables = gpt2_numpy.small(norm='dyt')
  with pytest.raises(UserError, match="final norm 'dyt'"):
    attribution.attribute(model, variables, gpt2_numpy.windows(2))


def test_low_rank_parts_belong_to_the_heads():
  model, variables = gpt2_numpy.small(lora_rank=2)
  dense = variables['params']['h']['attn']['c_proj']
  z = np.random.default_rng(0).normal(size=(2, 4, model.heads, model.dim // model.heads))
  found = attribution.contributions(variables, z)
  kernel = dense['kernel'] + dense['lora_a'] @ dense['lora_b']
  both = np.einsum('lbi,lio->lbo', z.reshape(2, 4, -1), kernel)
  np.testing.assert_allclose(found.sum(1), both, atol=1e-5)
  assert np.abs(np.einsum('lbi,lio->lbo', z.reshape(2, 4, -1), dense['kernel']) - both).max() > 0.1
