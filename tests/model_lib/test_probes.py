"""Probes: against NumPy on the raw intermediates; parts merge; a population; gradients."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from model_lib.analysis import probes, streaming
from model_lib.errors import UserError
from model_lib.models import build

pytestmark = pytest.mark.usefixtures('unoptimized')


def _loss(logits, y):
  logp = jax.nn.log_softmax(logits)
  return -jnp.mean(jnp.take_along_axis(logp, y[:, None], 1))


def _init(model, x, seed=0):
  return jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(seed))


def _arrays(model, variables, x):
  """site -> (first input, output), and the residual stream, from one compiled call."""
  def both(variables):
    calls = probes.record(model, variables, x).calls
    return ({call.site: (call.inputs[:1], call.array) for call in calls
             if call.array is not None}, [x for _, x in probes.residual_stream(calls)])
  return jax.tree.map(np.asarray, jax.jit(both)(variables))


def _batch(seed=0, size=24, width=12):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(size, width)).astype(np.float32),
          rng.integers(0, 4, size).astype(np.int32))


@pytest.fixture(scope='module')
def mlp():
  model = build('mlp', widths=(16, 16), num_classes=4, activation='tanh', norm='pre:batch')
  variables = _init(model, jnp.zeros((2, 12)))
  return model, variables


def test_accumulator_against_numpy_and_parts_merge():
  x = np.random.default_rng(1).gamma(2, size=(50, 6)).astype(np.float32) + 3
  x[:, 2] = 0
  @jax.jit
  def both(x):
    parts = [streaming.values(part) for part in (x[:7], x[7:8], x[8:])]
    empty = jax.tree.map(jnp.zeros_like, parts[0])
    merged = streaming.merge(streaming.merge(streaming.merge(empty, parts[0]), parts[1]), parts[2])
    return streaming.values(x), merged, streaming.merge(parts[0], parts[2])

  whole, merged, third = both(x)
  whole, merged = streaming.summary(whole), streaming.summary(merged)
  wide = x.astype(np.float64)
  expected = {'mean': wide.mean(), 'variance': wide.var(), 'rms': np.sqrt((wide ** 2).mean()),
              'kurtosis': scipy_stats.kurtosis(wide, axis=None, fisher=False),
              'largest': wide.max(), 'dead': 1 / 6}
  for name, value in expected.items():
    assert whole[name] == pytest.approx(value, rel=1e-5), name
    assert merged[name] == pytest.approx(value, rel=1e-5), name
  assert whole['median'] == merged['median']
  median = np.sort(np.abs(wide), axis=None)[(wide.size - 1) // 2]
  assert whole['median'] == pytest.approx(median, rel=streaming.HALF_BIN * 1.001)
  d = np.concatenate([x[:7], x[8:]]).astype(np.float64)
  assert float(third.m3) == pytest.approx(((d - d.mean()) ** 3).mean(), rel=1e-4)


def test_sites_streaming_and_saturation_against_raw_intermediates(mlp):
  model, variables = mlp
  x, y = _batch()
  once = probes.run(model, variables, [(x * 4, y)], loss=_loss)
  streamed = probes.run(model, variables, [(x[:12] * 4, y[:12]), (x[12:] * 4, y[12:])], loss=_loss)
  _, state = jax.jit(lambda v: model.apply(v, x * 4, train=False, capture_intermediates=True,
                                           mutable=['intermediates']))(variables)
  raw = state['intermediates']
  by_site = {row['site']: row for row in probes.rows(once)}
  for site in ('hidden_0', 'norm_hidden_1', 'activation_1', 'head'):
    values = np.asarray(raw[site]['__call__'][0], np.float64)
    assert by_site[site]['variance'] == pytest.approx(values.var(), rel=1e-5)
    assert by_site[site]['kurtosis'] == pytest.approx(
      scipy_stats.kurtosis(values, axis=None, fisher=False), rel=1e-4)
  h = np.asarray(raw['norm_hidden_0']['__call__'][0], np.float64)
  expected = np.mean(1 / np.cosh(h) ** 2 < probes.SATURATED)
  assert by_site['activation_0']['saturated'] == pytest.approx(expected, abs=1e-9)
  assert 0.01 < expected < 0.99
  assert np.isnan(by_site['head']['saturated'])
  for one, other in zip(probes.rows(once), probes.rows(streamed), strict=True):
    for name, value in one.items():
      if name != 'site':
        assert other[name] == pytest.approx(value, rel=2e-4, abs=1e-6, nan_ok=True), (one, name)
  for one, other in zip(probes.parameter_rows(once, variables['params'], 0.1),
                        probes.parameter_rows(streamed, variables['params'], 0.1), strict=True):
    assert other['gradient_norm'] == pytest.approx(one['gradient_norm'], rel=1e-4)


def test_gradients_against_hand_written_backward_and_radial_part():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      h = nn.Dense(7, use_bias=False, name='a')(x)
      return nn.Dense(4, use_bias=False, name='b')(h * h)

  x, y = _batch(2)
  variables = _init(Net(), x, 1)
  stats = probes.run(Net(), variables, [(x, y)], loss=_loss)
  a, b = (np.asarray(variables['params'][n]['kernel'], np.float64) for n in 'ab')
  h = x.astype(np.float64) @ a
  logits = h * h @ b
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  g_logits = p - np.eye(4)[y]
  g_h = (g_logits @ b.T) * 2 * h
  rows = {row['site']: row for row in probes.rows(stats)}
  assert rows['b']['gradient_rms'] == pytest.approx(np.sqrt((g_logits ** 2).mean()), rel=1e-4)
  assert rows['a']['gradient_rms'] == pytest.approx(np.sqrt((g_h ** 2).mean()), rel=1e-4)
  table = {row['parameter']: row for row in
           probes.parameter_rows(stats, variables['params'], 0.5)}
  g_a = x.T @ g_h / len(x)
  found = table['a/kernel']
  assert found['gradient_norm'] == pytest.approx(np.linalg.norm(g_a), rel=1e-4)
  assert found['relative_update'] == pytest.approx(
    0.5 * np.linalg.norm(g_a) / np.linalg.norm(a), rel=1e-4)
  assert found['effective_rate'] == pytest.approx(0.5 / np.linalg.norm(a) ** 2, rel=1e-5)
  assert abs(found['radial']) > 0.02  # no norm: the control of the test below


def test_weight_before_a_norm_has_no_radial_gradient(mlp):
  model, variables = mlp
  x, y = _batch(3)
  stats = probes.run(model, variables, [(x, y)], loss=_loss, train=True, sites='head')
  table = {row['parameter']: row['radial'] for row in
           probes.parameter_rows(stats, variables['params'], 0.1)}
  assert abs(table['hidden_0/kernel']) < 1e-3 and abs(table['hidden_1/kernel']) < 1e-3
  assert abs(table['head/kernel']) > 1e-2


def test_population_axis_under_vmap_and_map(mlp):
  model, variables = mlp
  x, y = _batch(4)
  other = jax.tree.map(lambda leaf: leaf * 1.5, variables)
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), variables, other)
  def one(member):
    return probes.measure(model, member, x, y, _loss, sites='activation_0')
  by_vmap = jax.jit(jax.vmap(one))(both)
  by_map = jax.jit(lambda members: jax.lax.map(one, members))(both)
  alone = jax.jit(one)(other)
  for found in (by_vmap, by_map):
    found = jax.tree.map(lambda leaf: leaf[1], found)
    for mine, theirs in zip(probes.rows(found), probes.rows(alone), strict=True):
      assert mine['variance'] == pytest.approx(theirs['variance'], rel=1e-5)
      assert mine['gradient_rms'] == pytest.approx(theirs['gradient_rms'], rel=1e-4)
  with pytest.raises(ValueError, match='population'):
    probes.rows(by_vmap)


def test_attention_entropy_and_residual_stream():
  model = build('gpt', vocab=11, length=6, dim=16, depth=2, heads=2)
  tokens = jnp.asarray(np.random.default_rng(5).integers(0, 11, (3, 6)), jnp.int32)
  variables = _init(model, tokens, 2)
  stats = probes.run(model, variables, [tokens], sites='.*attention_0')
  calls, _ = _arrays(model, variables, tokens)
  site, = [s for s in calls if s.endswith('attention_0') and 'factors' not in s
           and 'norm' not in s and 'residual' not in s]
  qkv = np.asarray(calls[f'{site}/qkv'][1], np.float64).reshape(3, 6, 3, 2, 8)
  logits = np.einsum('bthd,bshd->bhts', qkv[:, :, 0], qkv[:, :, 1]) / np.sqrt(8)
  logits = np.where(np.tril(np.ones((6, 6), bool)), logits, -np.inf)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)[:, :, 1:]
  row, = [row for row in probes.rows(stats) if row['site'] == site]
  np.testing.assert_allclose(row['entropy'], entropy.mean((0, 2)), rtol=1e-5)
  np.testing.assert_allclose(
    row['entropy_share'], (entropy / np.log(np.arange(2, 7))).mean((0, 2)), rtol=1e-5)
  # The stream: the sum of what the branches gave.
  stream = probes.stream_rows(stats)
  assert len(stream) == 5 and stream[-1]['before'] == 'end'
  prefix = site.rpartition('/')[0]
  x = np.asarray(next(c[0][0] for s, c in calls.items() if s.endswith('norm_attention_0')),
                 np.float64)
  for number, name in enumerate(('attention_0', 'feed_forward_0', 'attention_1',
                                 'feed_forward_1')):
    assert stream[number]['variance'] == pytest.approx(x.var(), rel=1e-4)
    assert stream[number]['before'].endswith(name)
    x = x + np.asarray(calls[f'{prefix}/{name}'][1], np.float64)
  assert stream[4]['variance'] == pytest.approx(x.var(), rel=1e-4)


@pytest.mark.parametrize('norm', ['post:layer', 'peri:rms', 'none'])
def test_residual_stream_of_other_placements(norm):
  model = build('resmlp', width=8, depth=2, num_classes=3, norm=norm)
  x = jnp.asarray(_batch(6, 5)[0])
  calls, stream = _arrays(model, _init(model, x, 3), x)
  raw = {site: output for site, (_, output) in calls.items()}
  expected = [raw['stem']]
  for site in (site for site in raw if site.startswith('block') and '/' not in site):
    branch = raw.get(f'norm_output_{site}', raw[site])
    expected.append(raw[f'norm_{site}'] if norm == 'post:layer' else expected[-1] + branch)
  if norm == 'peri:rms':
    assert 'norm_final' in raw
  assert len(stream) == len(expected) == 3
  for mine, theirs in zip(stream, expected, strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_mistakes(mlp):
  model, variables = mlp
  with pytest.raises(UserError, match='no batch'):
    probes.run(model, variables, [])
  with pytest.raises(UserError, match="no site matches 'hiden.*hidden_0"):
    probes.run(model, variables, [_batch()[0]], sites='hiden.*')
  with pytest.raises(UserError, match='loss='):
    probes.parameter_rows(probes.Stats({}, {}, {}, {}, {}, None), {}, 0.1)
