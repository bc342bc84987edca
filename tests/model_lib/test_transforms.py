"""Folding and conversion of norms: the same function in float64, and what shows when it is not."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models.convolution import convolve
from model_lib.transforms import (
  Map, NormSite, compare, convert, find_normalizations, fold_batch_norm, fold_gains, layer_to_rms,
  record, wiring)
from model_lib.transforms import edits
from model_lib.transforms.batch_stats import recalibrated
from model_lib.transforms.convert import (
  centre_tree, fold_batch_tree, fold_frozen_tree, fold_gain_tree)
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

EXACT = {'float64': 1e-11}
SLOW = pytest.mark.slow  # compiling dominates; the other cases have the same code


def _build(name, norm, **kwargs):
  return models.build(name, norm=norm, **{**cases.SIZES[name], **kwargs})


def _variables(model, x, seed=0):
  """Random numbers of the model's shapes, also for gains, biases and running moments."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))

  def fill(path, leaf):
    noise = rng.normal(size=leaf.shape)
    value = {'scale': 1 + 0.4 * noise, 'var': np.exp(noise), 'mean': noise, 'bias': 0.5 * noise,
             'table': noise + 1.0}.get(path[-1].key, 0.1 + noise / np.sqrt(leaf.shape[0] or 1)
                                       if leaf.ndim > 1 else np.ones(leaf.shape))
    return np.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _apply(model):
  return lambda v, x: model.apply(v, x, train=False)


def _edited(surgery, **replaced):
  """The surgery with some of the old leaves put back: {path with __: old leaf}."""
  def broken(v):
    new, old = edits.flatten(surgery(v)['params']), edits.flatten(v['params'])
    return {**surgery(v), 'params': edits.unflatten(
      {**new, **{path: old[path] for path in replaced['keep']}})}
  return broken


@functools.cache
def _case(name, norm, activation='gelu'):
  x = cases.inputs(name)
  model = _build(name, norm, activation=activation)
  variables = _variables(model, x)
  if name == 'mlp' and norm == 'pre:layer':  # its RMSNorm has no place for a bias
    for path in ('norm_hidden_0', 'norm_hidden_1'):
      variables['params'][path]['bias'] *= 0
  return model, variables, x


# What is done to which model, and its negative control: a leaf that is left as it was.
CONVERSIONS = [
  (fold_gains, 'gpt', 'pre:layer', 'swiglu'),
  pytest.param(fold_gains, 'mlp', 'post:rms', 'gelu', marks=SLOW),
  (fold_batch_norm, 'mlp', 'pre:batch', 'swiglu'),
  (fold_batch_norm, 'mlp', 'post:batch', 'gelu'),
  pytest.param(fold_batch_norm, 'vit', 'pre:batch', 'gelu', marks=SLOW),
  (layer_to_rms, 'gpt', 'pre:layer(eps=0.01)', 'gelu'),
  pytest.param(layer_to_rms, 'vit', 'pre:layer', 'swiglu', marks=SLOW),
  (layer_to_rms, 'mlp', 'pre:layer', 'gelu'),
]


@pytest.mark.parametrize('conversion, name, norm, activation', CONVERSIONS)
def test_the_function_stays(conversion, name, norm, activation) -> None:
  model, variables, x = _case(name, norm, activation)
  done = conversion(model, variables, x)
  exact, single = done.report['float64'], done.report['float32']
  assert exact.equal and exact.max_difference < 1e-10, str(done.report)
  assert single.equal and 1e-12 < single.max_difference < 1e-4 * single.largest, str(done.report)
  assert exact.largest > 0.3 and 'equal' in str(done.report)

  old, new = (edits.flatten(v['params']) for v in (variables, done.variables))
  assert {leaf.dtype for leaf in new.values()} == {np.dtype('float32')}
  norms = {path: leaf for path, leaf in new.items() if 'norm' in path}
  if conversion is fold_gains:
    assert norms
    for path, leaf in norms.items():
      assert np.all(leaf == (path.endswith('scale'))) and not np.all(old[path] == leaf)
  elif conversion is fold_batch_norm:
    assert not norms and 'batch_stats' not in done.variables and done.model.norm == 'none'
    assert find_normalizations(_apply(done.model), done.variables, x) == ()
    assert find_normalizations(_apply(model), variables, x)
  else:
    assert norms and all(path.endswith('scale') for path in norms)
    assert 'rms' in done.model.norm
    for m in wiring(model, variables['params'])[-1].writers:
      leaf = 'table' if f'{m.path}/table' in new else 'kernel'
      assert np.abs(new[f'{m.path}/{leaf}'].mean(-1)).max() < 1e-6
      assert np.abs(old[f'{m.path}/{leaf}'].mean(-1)).max() > 1e-2


@pytest.mark.parametrize('tree, name, norm, after, keep', [
  (fold_gain_tree, 'gpt', 'pre:layer', 'pre:layer', 'head/kernel'),
  pytest.param(fold_gain_tree, 'gpt', 'pre:layer', 'pre:layer',
               'blocks/attention_0/qkv/kernel', marks=SLOW),
  (functools.partial(fold_batch_tree, eps=1e-5), 'mlp', 'post:batch', 'none', 'hidden_1/bias'),
  (functools.partial(centre_tree), 'gpt', 'pre:layer', 'pre:rms(eps=1e-5)', 'position/table'),
])
def test_a_site_left_out_shows(tree, name, norm, after, keep) -> None:
  """One leaf put back as it was; the rest of the surgery is the right one."""
  model, variables, x = _case(name, norm)
  sites = wiring(model, variables['params'])
  broken = _edited(lambda v: tree(v, sites), keep=[keep])
  report = convert(model, variables, broken, after, x, EXACT).report
  exact = report['float64']
  assert not report.equal and exact.max_difference > 1e-3 and 'NOT equal' in str(report)
  shape = _apply(model)(variables, x).shape
  assert len(exact.where) == len(shape) and all(
    i < n for i, n in zip(exact.where, shape, strict=True))


def test_the_report_measures_what_it_says() -> None:
  """Against differences made by hand; a difference that is no number is never equal."""
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  bump = np.zeros((2, 3), np.float32)
  bump[1, 0] = 0.25

  def run(delta, tolerance):
    return compare(lambda v, x: x, lambda v, x: x + v, np.zeros_like(bump), lambda v: v + delta,
                   x, {'float32': tolerance})['float32']

  found = run(bump, 0.1)
  assert (found.max_difference, found.where, found.largest) == (0.25, (1, 0), 5.0)
  np.testing.assert_allclose(found.rms_difference, 0.25 / np.sqrt(6), rtol=1e-6)
  assert found.equal and not run(bump, 0.01).equal
  nan = run(bump * np.float32(np.nan), 0.1)
  assert not nan.equal and np.isinf(nan.max_difference)


# A model of one's own: a convolution without a bias, and multipliers.

POINT = Map('point', multiplier=1.5)
CONV_SITES = (NormSite('bn_a', 'a convolution', 'an activation', alone=True,
                       writers=(Map('conv', multiplier=0.7, padded=True),)),
              NormSite('bn_b', 'an activation', 'a 1x1 convolution', consumers=(POINT,)))


def _conv_variables(size=1):
  rng = np.random.default_rng(0)
  norm = lambda: {'scale': 1 + 0.3 * rng.normal(size=4), 'bias': rng.normal(size=4)}
  state = lambda: {'mean': rng.normal(size=4), 'var': np.exp(rng.normal(size=4))}
  tree = {'params': {'conv': {'kernel': rng.normal(size=(3, 3, 2, 4))}, 'bn_a': norm(),
                     'bn_b': norm(), 'point': {'kernel': rng.normal(size=(size, size, 4, 3)),
                                               'bias': rng.normal(size=3)}},
          'batch_stats': {'bn_a': state(), 'bn_b': state()}}
  return jax.tree.map(np.float32, tree), rng.normal(size=(2, 5, 4, 2)).astype(np.float32)


def _conv_model(v, x):
  p, channels = v['params'], (1, 1, 1, -1)

  def batch_norm(x, name):
    if name not in p:
      return x
    s = v['batch_stats'][name]
    mean, var, gain, bias = (a.reshape(channels) for a in (
      s['mean'], s['var'], p[name]['scale'], p[name]['bias']))
    return gain * (x - mean) / jnp.sqrt(var + 1e-3) + bias

  y = 0.7 * convolve(x, p['conv']['kernel'])
  if 'bias' in p['conv']:
    y = y + p['conv']['bias'].reshape(channels)
  y = batch_norm(jax.nn.relu(batch_norm(y, 'bn_a')), 'bn_b')
  return 1.5 * convolve(y, p['point']['kernel']) + p['point']['bias'].reshape(channels)


def test_batch_norm_next_to_convolutions() -> None:
  """One into the map before it (which gets a bias), one into the 1x1 convolution behind it."""
  variables, x = _conv_variables()
  surgery = functools.partial(fold_batch_tree, sites=CONV_SITES, eps=1e-3)
  assert 'bias' in surgery(variables)['params']['conv']
  report = compare(_conv_model, _conv_model, variables, surgery, x)
  assert report.equal and report['float64'].max_difference < 1e-10, str(report)
  wrong = functools.partial(fold_batch_tree, sites=CONV_SITES, eps=1e-5)
  assert not compare(_conv_model, _conv_model, variables, wrong, x, EXACT).equal


def test_batch_norm_before_padding_is_refused() -> None:
  """Folded all the same, the border is wrong and the inside is right."""
  variables, x = _conv_variables(size=3)
  padded = (CONV_SITES[0], NormSite('bn_b', 'an activation', 'a convolution',
                                    consumers=(Map('point', 1.5, padded=True),)))
  with pytest.raises(UserError, match='pads with zeros'):
    fold_batch_tree(variables, padded, 1e-3)
  inside = lambda v, x: _conv_model(v, x)[:, 1:-1, 1:-1]
  surgery = functools.partial(fold_batch_tree, sites=CONV_SITES, eps=1e-3)
  assert compare(inside, inside, variables, surgery, x, EXACT).equal
  everywhere = compare(_conv_model, _conv_model, variables, surgery, x, EXACT)['float64']
  assert everywhere.max_difference > 1e-2


# Tied embeddings.


def _tied(v, x):
  p = v['params']
  h = p['embedding']['table'][x]
  mean = h.mean(-1, keepdims=True)
  norm = (h - mean) / jnp.sqrt(jnp.square(h - mean).mean(-1, keepdims=True) + 1e-5)
  h = norm * p['norm']['scale'].reshape(1, 1, -1) + p['norm']['bias'].reshape(1, 1, -1)
  if 'head' not in p:
    return h @ p['embedding']['table'].T
  return h @ p['head']['kernel'] + p['head']['bias'].reshape(1, 1, -1)


def test_tied_embeddings_are_untied_first() -> None:
  rng = np.random.default_rng(0)
  params = {'embedding': {'table': rng.normal(size=(7, 6))},
            'norm': {'scale': 1 + 0.3 * rng.normal(size=6), 'bias': rng.normal(size=6)}}
  variables = {'params': jax.tree.map(np.float32, params)}
  x = rng.integers(0, 7, (2, 5))

  def site(shared):
    return (NormSite('norm', 'an embedding', 'a linear map',
                     writers=(Map('embedding', shared_with='head' if shared else None),),
                     consumers=(Map('head', shared_with='embedding' if shared else None),)),)

  for tree in (fold_gain_tree, centre_tree):
    with pytest.raises(UserError, match='shares its numbers with .*untie'):
      tree(variables, site(True))

  def surgery(v):
    untied = {'params': edits.unflatten(edits.untie(edits.flatten(v['params'])))}
    return fold_gain_tree(untied, site(False))

  report = compare(_tied, _tied, variables, surgery, x)
  assert report.equal and report['float64'].max_difference < 1e-10
  with pytest.raises(UserError, match='of its own already'):
    edits.untie(edits.flatten(surgery(variables)['params']))
  with pytest.raises(UserError, match='no wte/table'):
    edits.untie({}, 'wte')


# LayerNorms with a frozen deviation.


def _frozen(model, sigmas):
  """The model with g (x - mean) / sigma + b in place of each norm; queries, keys and values with
  deviations of their own where sigma is a vector. Written into the calls, not into the trees."""
  def watch(call, args, kwargs, context):
    path = '/'.join(context.module.path)
    if context.method_name == '__call__' and path in sigmas:
      p, h = context.module.variables['params'], args[0]
      h = h - h.mean(-1, keepdims=True)
      h = h * p['scale'].reshape(1, 1, -1)
      if np.ndim(sigmas[path]):
        return h, p['bias'].reshape(1, 1, -1), sigmas[path].reshape(1, 1, -1)
      return h / sigmas[path] + p['bias'].reshape(1, 1, -1)
    if path == 'blocks/attention_0' and context.method_name == '__call__':
      h, *rest = args[0]
      carried.append(rest)
      return call(h, *args[1:], **kwargs)
    if path == 'blocks/attention_0/qkv' and context.method_name == '__call__':
      (bias, sigma), p = carried.pop(), context.module.variables['params']
      h = args[0] @ p['kernel'] / sigma + bias @ p['kernel']
      return h + p['bias'].reshape(1, 1, -1)
    return call(*args, **kwargs)

  carried = []

  def apply(v, x):
    with nn.intercept_methods(watch):
      return model.apply(v, x, train=False)
  return apply


def test_frozen_layer_norms_fold_exactly() -> None:
  model, variables, x = _case('gpt', 'pre:layer')
  sites = wiring(model, variables['params'])
  sigmas = {sites[0].path: np.repeat([1.3, 1.3, 0.6], 8), sites[1].path: 2.0, sites[2].path: 0.8}
  surgery = functools.partial(fold_frozen_tree, sites=sites, sigmas=sigmas)
  after = model.clone(norm='none')
  report = compare(_frozen(model, sigmas), _apply(after), variables, surgery, x)
  assert report.equal and report['float64'].max_difference < 1e-10, str(report)
  new = surgery(variables)
  assert not any('norm' in path for path in edits.flatten(new['params']))
  assert find_normalizations(_apply(after), new, x) == ()
  # The real norms are another function.
  assert not compare(_apply(model), _apply(after), variables, surgery, x, EXACT).equal


# What cannot be done.


@pytest.mark.parametrize('conversion, name, norm, part', [
  (layer_to_rms, 'gpt', 'post:layer', 'the output of another norm'),
  (layer_to_rms, 'mlp', 'post:layer', 'reads an activation'),
  (layer_to_rms, 'mlp', 'pre:layer(eps=0.1)', 'feeds an activation'),
  (layer_to_rms, 'gpt', 'pre:rms', 'no layer norms'),
  (fold_gains, 'gpt', 'post:layer', 'the residual stream as well'),
  (fold_gains, 'mlp', 'pre:layer', 'feeds an activation'),
  (fold_gains, 'mlp', 'none', 'no norms'),
  (fold_batch_norm, 'vit', 'post:batch', 'the residual stream as well'),
  (fold_batch_norm, 'vit', 'pre:layer', 'no batch norms'),
])
def test_a_refusal_is_one_line(conversion, name, norm, part) -> None:
  model, variables, x = _case(name, norm)
  with pytest.raises(UserError) as info:
    conversion(model, variables, x)
  assert part in str(info.value) and '\n' not in str(info.value)


def test_an_unknown_wiring_is_one_line() -> None:
  model, variables, _ = _case('mlp', 'pre:layer')
  with pytest.raises(UserError, match='not of Dense; describe it'):
    wiring(nn.Dense(3), {})
  with pytest.raises(UserError, match='has overrides'):
    wiring(model.clone(overrides=('layers.0.norm: rms',)), variables['params'])


# Recording.


def test_recorded_norms() -> None:
  model, variables, x = _case('gpt', 'pre:layer')
  path = 'blocks/norm_feed_forward_0'
  (h, y), = record(model, variables, x, [path]).values()
  p = edits.flatten(variables['params'])
  h64 = h.astype(np.float64)
  z = (h64 - h64.mean(-1, keepdims=True)) / np.sqrt(h64.var(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(y, z * p[f'{path}/scale'] + p[f'{path}/bias'], atol=1e-5)
  assert np.abs(y - z).max() > 0.1
  with pytest.raises(UserError, match="no layer 'blocks/norm_finale'.*blocks/norm_final"):
    record(model, variables, x, ['blocks/norm_finale'])


@pytest.mark.parametrize('norm, message', [
    ('pre:batch(stat_mode=ghost(2))', 'stat_mode=batch, not ghost'),
    ('pre:renorm', 'is none of a batch norm')])
def test_moments_of_the_population_are_refused_where_they_are_not_what_training_uses(norm, message):
  network = models.build('mlp', widths=[4], norm=norm)
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  variables = network.init(jax.random.key(0), x, train=False)
  with pytest.raises(UserError, match=message):
    recalibrated(network, variables, x)
