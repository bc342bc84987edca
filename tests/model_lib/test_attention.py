"""Attention and feed-forward with the norms that stand inside them, and the norms of the stem."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.models.attention import Attention
from model_lib.models.transformer import FeedForward
from model_lib.models.vit import patches
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

BATCH, LENGTH, DIM, HEADS = 2, 6, 8, 2


def _layer(p, name, x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * p[f'{name}/scale'] + p[
    f'{name}/bias']


def _rms(p, name, x):
  return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6) * p[f'{name}/scale']


def _unit(x):
  return x / np.sqrt((x ** 2).sum(-1, keepdims=True))


def _attention(p, x, normalized, inner):
  """[B, T, D] in float64; normalized(q, k) gives both and the factor on their products."""
  qkv = x @ p['qkv/kernel'] + p.get('qkv/bias', 0)
  q, k, v = (part.reshape(BATCH, LENGTH, HEADS, -1).transpose(0, 2, 1, 3)
             for part in np.split(qkv, 3, axis=-1))
  q, k, factor = normalized(q, k)
  logits = factor * q @ k.transpose(0, 1, 3, 2)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  mixed = weights / weights.sum(-1, keepdims=True) @ v
  mixed = mixed * p.get('head_scale', np.ones(HEADS)).reshape(1, HEADS, 1, 1)
  mixed = mixed.transpose(0, 2, 1, 3).reshape(BATCH, LENGTH, DIM)
  return inner(mixed) @ p['out/kernel'] + p.get('out/bias', 0)


@pytest.mark.parametrize('qk, row', [
  ('layer', 'sp'), ('rms', 'sp'), ('l2', 'sp'), ('sphere', 'ngpt'), ('none', 'normformer')])
def test_attention_against_float64(qk, row) -> None:
  module = Attention(HEADS, False, row, qk=qk, inner='layer', use_bias=row != 'ngpt')
  x = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, DIM))
  params = cases.numbers(module, x, train=None)['params']
  p = {path: leaf.astype(np.float64) for path, leaf in cases.flat(params).items()}
  size = DIM // HEADS
  gain = p.get('s_qk', np.ones(1)) * DIM ** 0.5
  normalized = {
    'none': lambda q, k: (q, k, size ** -0.5),
    'layer': lambda q, k: (_layer(p, 'norm_query', q), _layer(p, 'norm_key', k), size ** -0.5),
    'rms': lambda q, k: (_rms(p, 'norm_query', q), _rms(p, 'norm_key', k), size ** -0.5),
    'l2': lambda q, k: (_unit(q), _unit(k), p['qk_scale']),
    'sphere': lambda q, k: (_unit(q) * gain[:, None], _unit(k) * gain[:, None], size ** 0.5),
  }[qk]
  found = jax.jit(lambda params: module.apply({'params': params}, x))(params)
  wide = np.asarray(x, np.float64)
  np.testing.assert_allclose(
    found, _attention(p, wide, normalized, lambda m: _layer(p, 'norm_inner', m)),
    rtol=1e-4, atol=1e-4)
  without = _attention({**p, 'head_scale': np.ones(HEADS)}, wide,
                       lambda q, k: (q, k, size ** -0.5), lambda m: _layer(p, 'norm_inner', m))
  assert np.abs(found - without).max() > 1e-3


def test_the_l2_form_starts_from_the_length() -> None:
  x = jnp.ones((1, 4, DIM))
  for length, expected in ((0, np.log2(12)), (64, np.log2(64 ** 2 - 64))):
    module = Attention(HEADS, True, qk='l2', length=length)
    params = module.init(jax.random.key(0), x)['params']
    np.testing.assert_allclose(params['qk_scale'], expected, rtol=1e-6)


@pytest.mark.parametrize('sphere', [False, True])
def test_feed_forward_against_float64(sphere) -> None:
  module = FeedForward(16, 'swiglu', True, 'sp', inner='rms', sphere=sphere)
  x = jax.random.normal(jax.random.key(0), (3, DIM))
  params = cases.numbers(module, x)['params']
  p = {path: leaf.astype(np.float64) for path, leaf in cases.flat(params).items()}
  wide, parts = np.asarray(x, np.float64), {}
  for name in ('gate', 'in'):
    parts[name] = wide @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0)
    parts[name] = parts[name] * p.get(f's_{name}', 1 / DIM ** 0.5) * DIM ** 0.5
  hidden = parts['gate'] / (1 + np.exp(-parts['gate'])) * parts['in']
  expected = _rms(p, 'norm_inner', hidden) @ p['out/kernel'] + p.get('out/bias', 0)
  found = jax.jit(lambda params: module.apply({'params': params}, x))(params)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  assert ('in/bias' in p) != sphere and ('s_in' in p) == sphere


@pytest.mark.parametrize('stem', ['none', 'pre:layer', 'post:layer', 'dual:layer'])
def test_the_stem_of_the_vision_transformer(stem) -> None:
  """The positions are added behind the stem's norms."""
  sizes = {**cases.SIZES['vit'], 'norm': 'none'}
  model, x = models.build('vit', stem_norm=stem, **sizes), cases.inputs('vit')
  params = cases.numbers(model, x)['params']
  # Without the branches the logits are a linear map of the mean of what enters the blocks.
  params['blocks'] = jax.tree.map(jnp.zeros_like, params['blocks'])
  p = {path: leaf.astype(np.float64) for path, leaf in cases.flat(params).items()}
  h = np.asarray(patches(x, 2), np.float64)
  if stem.startswith(('pre', 'dual')):
    h = _layer(p, 'norm_patch', h)
  h = h @ p['stem/kernel'] + p['stem/bias']
  if stem.startswith(('post', 'dual')):
    h = _layer(p, 'norm_stem', h)
  h = (h + p['position/table']).mean(1)
  np.testing.assert_allclose(cases.logits(model, {'params': params}, x),
                             h @ p['head/kernel'] + p['head/bias'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('norm, row', [
  ('subln:layer', 'subln'), ('normformer:layer', 'normformer'), ('ngpt', 'ngpt'),
  ('resi_dual:rms', 'sp'), ('parallel:rms', 'lns'), ('mix:rms', 'sp'), ('none', 'nf'),
  ('attention=pre+post:layer, mlp=pre:layer, qk=l2, embed=rms', 'sp')])
def test_placements_build_in_the_transformers(norm, row) -> None:
  """Shapes only: every placement and rule traces in training."""
  for name in ('gpt', 'vit'):
    model = models.build(name, norm=norm, parametrization=row, **cases.SIZES[name])
    shapes = jax.eval_shape(lambda model=model, name=name: model.init(
      jax.random.key(0), cases.inputs(name), train=True))
    inner = [path for path in _paths(shapes['params']) if 'norm_inner' in path]
    assert bool(inner) == (row in ('subln', 'normformer'))


def _paths(tree) -> list[str]:
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
