"""Normalizations: equations, conventions, state, placements, and parity with torch and flax."""

from __future__ import annotations

import flax.linen as nn
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.normalization import block, functions, get_norm, names
from tests import helpers
from tests.model_lib import norm_cases

pytestmark = pytest.mark.usefixtures('unoptimized')

GAIN_BIAS = {'scale': np.linspace(0.5, 1.5, 16, dtype=np.float32),
             'bias': np.linspace(-1.0, 1.0, 16, dtype=np.float32)}


def _images(seed: int = 0, batch: int = 4) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(batch, 3, 5, 16)) * 2 + 1).astype(np.float32)


def _variables(norm: str, x: np.ndarray):
  """The layer's variables with gains and biases away from their start values."""
  variables = get_norm(norm).layer().init(jax.random.key(0), jnp.asarray(x), train=False)
  params = {name: jnp.asarray(GAIN_BIAS.get(name, value))
            for name, value in variables.get('params', {}).items()}
  return {**variables, 'params': params}


def _apply(norm: str, variables, x, train: bool = False):
  return get_norm(norm).layer().apply(variables, jnp.asarray(x), train=train)


# The table.


@pytest.mark.parametrize('spec', norm_cases.SPECS)
def test_the_description_is_the_layer(spec) -> None:
  """Parameters, their start values and shapes, and the state are what the table says."""
  norm, variables = get_norm(spec), norm_cases.starts()[spec]
  params = variables.get('params', {})
  assert set(params) == {p.name for p in norm.parameters}
  for p in norm.parameters:
    shape = {'channel': (8,), 'layer': (), 'statistic': (3,)}.get(p.per, params[p.name].shape)
    assert params[p.name].shape == shape
    start = np.sqrt(8) if p.init == 'sqrt(C)' else p.init
    np.testing.assert_array_equal(params[p.name], np.float32(start))
  assert set(variables.get('batch_stats', {})) == set(norm.state)


@pytest.mark.parametrize('spec', [
  'layer', 'rms(eps=0.001)', 'batch(momentum=0.5, running=biased)', 'group(4)', 'dyt(0.8)', 'none',
  'batch(stat_mode=ghost(16))', 'rms(gain=one_plus)', 'instance(affine=false)',
  'batch(preset=keras)', 'pointwise(f=arctan)'])
def test_canonical_spec_round_trip(spec) -> None:
  norm = get_norm(spec)
  assert get_norm(norm.spec) == norm
  assert get_norm(norm.spec).spec == norm.spec


def test_options_and_aliases() -> None:
  assert get_norm('ln') == get_norm('layer(eps=1e-5)') != get_norm('layer(eps=1e-6)')
  assert get_norm('bn') == get_norm('batch')
  assert dict(get_norm('rms').options) == {'eps': 1e-6, 'gain': 'direct'}
  assert dict(get_norm('group').options) == {'groups': 8, 'eps': 1e-5}
  assert get_norm('dyt(0.8)').parameters[0].init == 0.8


@pytest.mark.parametrize('spec, part', [
  ('layr', "nearest: 'layer'"), ('rms(ep=1)', "nearest: 'eps'"), ('rms(eps=-1)', '>= 0'),
  ('group(0)', '>= 1'), ('group(2.5)', '>= 1'), ('group(true)', '>= 1'),
  ('batch(running=other)', 'unbiased'), ('batch(momentum=0)', '(0, 1]'),
  ('none(1)', 'at most 0'), ('none(eps=1)', 'takes none'), ('layer(1e-5, eps=1e-5)', 'twice'),
  ('rms(eps=inf)', '>= 0'), ('layer(', 'position'), ('rms(gain=two)', 'direct or one_plus'),
  ('batch(preset=kerass)', "nearest: 'keras'"), ('dyt(preset=torch)', 'it has none'),
  ('batch(stat_mode=ghost)', 'ghost(k)'), ('batch(stat_mode=ghost(0))', 'ghost(k)'),
  ('prms(p=0)', '(0, 1]'), ('lrn(alpha=-1)', '>= 0'), ('lrn(convention=keras)', 'paper or torch'),
  ('instance(affine=1)', 'true or false'), ('renorm(rmax=0.5)', '>= 1'),
  ('alpha_batch(alpha=2)', '[0, 1]'), ('pointwise(f=tan)', 'arctan'), ('soft_cap(0)', '> 0'),
  ('unmix(components=0)', '>= 1'), ('frozen_layer(0)', '> 0')])
def test_a_wrong_spec_is_one_line(spec, part) -> None:
  with pytest.raises(UserError) as info:
    get_norm(spec)
  assert part in str(info.value) and '\n' not in str(info.value)


def test_the_tables_do_not_import_jax() -> None:
  code = ('import sys; from model_lib import normalization, parametrization, models; '
          'normalization.block("pre:rms"); parametrization.get_parametrization("sp"); '
          'print(models.NAMES, "jax" in sys.modules)')
  assert helpers.run_python(code).stdout == (
      "('mlp', 'resmlp', 'deep_mlp', 'cnn', 'vit', 'gpt', 'gpt2') False\n")


# Placements.


def test_placements() -> None:
  assert block('none').placement == block('pre:none').placement == 'none'
  assert block('rms') == block('pre:rms')
  assert block('post:rms(eps=0.1)').spec == 'post:rms(eps=0.1, gain=direct)'
  assert [block(text).final_norm for text in ('none', 'pre:ln', 'post:ln')] == [False, True, False]
  for text in ('none', 'pre:group(4)', 'post:batch'):
    assert block(block(text).spec).spec == block(text).spec


@pytest.mark.parametrize('text, part', [
  ('pro:layer', "nearest: 'pre'"), ('post:layr', "nearest: 'layer'"), ('none:layer', 'placement'),
  ('pre:', 'position'), (3, 'spec')])
def test_a_wrong_placement_is_one_line(text, part) -> None:
  with pytest.raises(UserError, match=part) as info:
    block(text)
  assert '\n' not in str(info.value)
  with pytest.raises(UserError, match='parametrization'):
    block('pre:layer', residual='other')


# What is computed.


@hypothesis.settings(max_examples=30)
@hypothesis.given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32)),
                  st.sampled_from([1e-6, 1e-5, 1e-3, 1.0]))
def test_standardize_against_float64(x, eps) -> None:
  wide = x.astype(np.float64)
  centred = wide - wide.mean(-1, keepdims=True)
  expected = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + eps)
  # Centring loses at most a few units in the last place of the largest entry.
  atol = 1e-5 + 4 * np.finfo(np.float32).eps * np.abs(x).max() / np.sqrt(eps)
  np.testing.assert_allclose(functions.standardize(x, -1, eps), expected, rtol=1e-5, atol=atol)
  expected = wide / np.sqrt((wide ** 2).mean(-1, keepdims=True) + eps)
  np.testing.assert_allclose(functions.rms_standardize(x, -1, eps), expected, rtol=1e-5, atol=1e-6)


def test_a_large_mean_does_not_cancel() -> None:
  """Two-pass variance; flax's default one-pass variance is the control that fails."""
  x = 3000 + jax.random.normal(jax.random.key(0), (1024, 64))
  assert np.all(np.abs(np.std(functions.standardize(x, -1, 1e-6), axis=-1) - 1) < 1e-2)
  fast, _ = nn.LayerNorm(use_scale=False, use_bias=False).init_with_output(jax.random.key(0), x)
  assert np.mean(np.std(fast, axis=-1) > 100) > 0.05


@pytest.mark.parametrize('name, shift_invariant', [('layer', True), ('rms', False)])
def test_invariances(name, shift_invariant) -> None:
  """Without eps both ignore a rescaling of x; only layer norm ignores an offset."""
  norm = f'{name}(eps=0)'
  x = _images()
  variables = _variables(norm, x)
  y = _apply(norm, variables, x)
  np.testing.assert_allclose(_apply(norm, variables, 7 * x), y, atol=1e-5)
  change = np.max(np.abs(_apply(norm, variables, x + 3) - y))
  assert (change < 1e-4) if shift_invariant else (change > 1e-2)


def test_jacobian_of_layer_norm() -> None:
  """eps = 0: rank D - 2 (rms: D - 1). eps > 0: the two smallest singular values are 0, eps/s^3."""
  eps = 0.5
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=64) * 3 + 1
    exact, rms, with_eps = (np.linalg.svd(jacobian, compute_uv=False) for jacobian in jax.jit(
      lambda x: [jax.jacobian(f)(x, -1, e) for f, e in (
        (functions.standardize, 0.0), (functions.rms_standardize, 0.0),
        (functions.standardize, eps))])(x))
  assert np.sum(exact > 1e-12 * exact[0]) == 62 and np.sum(rms > 1e-12 * rms[0]) == 63
  s = np.sqrt(np.var(x) + eps)
  np.testing.assert_allclose(with_eps[-2:], [eps / s ** 3, 0], rtol=1e-10, atol=1e-15)
  np.testing.assert_allclose(with_eps[:-2], 1 / s, rtol=1e-10)


def test_group_of_one_and_of_each_channel() -> None:
  """group(1) is layer norm over all but the batch, group(C) is instance norm."""
  x, params = _images(), {'params': GAIN_BIAS}
  axes = {'group(1)': (1, 2, 3), 'group(16)': (1, 2)}
  found, expected = norm_cases.compiled(lambda x: (
    {spec: _apply(spec, params, x) for spec in axes},
    {spec: functions.shift(functions.scale(functions.standardize(x, own, 1e-5), jnp.asarray(
      GAIN_BIAS['scale'])), jnp.asarray(GAIN_BIAS['bias'])) for spec, own in axes.items()}))(x)
  for spec, y in found.items():
    np.testing.assert_allclose(y, expected[spec], atol=1e-5)
  assert np.abs(found['group(1)'] - found['group(16)']).max() > 0.1
  with pytest.raises(UserError, match='16 channels do not divide into 3 groups'):
    _apply('group(3)', params, x)


# Batch norm's state.


def test_batch_state_moves_in_training_only() -> None:
  x = _images()
  norm = get_norm('batch').layer()
  variables = norm.init(jax.random.key(0), jnp.asarray(x), train=True)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(16))
  np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(16))
  y, state = norm.apply(variables, jnp.asarray(x), train=True, mutable=['batch_stats'])
  count = x.size // 16
  np.testing.assert_allclose(state['batch_stats']['mean'], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(
    state['batch_stats']['var'],
    0.9 + 0.1 * x.var((0, 1, 2)) * count / (count - 1), rtol=1e-5)
  np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1, rtol=1e-3)
  _, unmoved = norm.apply(variables, jnp.asarray(x), train=False, mutable=['batch_stats'])
  jax.tree.map(np.testing.assert_array_equal, unmoved, {'batch_stats': variables['batch_stats']})


def test_running_variance_is_named() -> None:
  """At 4 values per channel biased and unbiased inference differ by sqrt(4/3)."""
  x = jnp.asarray(_images()[:, 0, 0])
  outputs = {}
  for running in ('biased', 'unbiased'):
    norm = get_norm(f'batch(eps=0, momentum=1, running={running})').layer()
    variables = norm.init(jax.random.key(0), x, train=False)
    _, state = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    outputs[running] = norm.apply({**variables, **state}, x, train=False)
  np.testing.assert_allclose(outputs['biased'], outputs['unbiased'] * np.sqrt(4 / 3), rtol=1e-5)


def test_one_value_per_channel_has_no_variance() -> None:
  variables = _variables('batch', _images())
  with pytest.raises(UserError, match='at least 2 values'):
    _apply('batch', variables, _images()[:1, 0, 0], train=True)


@pytest.mark.parametrize('batching', ['map', 'vmap'])
def test_batch_norm_over_members(batching) -> None:
  """Each member has its own state; with lax.map it is the member run alone, bit for bit."""
  x = jnp.stack([jnp.asarray(_images(seed)) for seed in range(3)])
  norm = get_norm('batch').layer()
  variables = jax.tree.map(lambda leaf: jnp.stack([leaf + 0.1 * i for i in range(3)]),
                           _variables('batch', x[0]))

  def step(variables, x):
    def loss(params):
      y, state = norm.apply({**variables, 'params': params}, x, train=True,
                            mutable=['batch_stats'])
      return jnp.mean(jnp.square(y) * x), state
    (_, state), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return state, grads

  over = {'map': lambda v, x: jax.lax.map(lambda args: step(*args), (v, x)),
          'vmap': jax.vmap(step)}[batching]
  together = jax.jit(over)(variables, x)
  for i in range(3):
    member = jax.tree.map(lambda leaf, i=i: leaf[i:i + 1], (variables, x))
    alone = jax.jit(over)(*member)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      if batching == 'map':
        np.testing.assert_array_equal(a[i], b[0])
      np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-6)
  means = np.asarray(together[0]['batch_stats']['mean'])
  assert np.all(np.abs(means[0] - means[1]).max() > 1e-3)


# Parity.


# Small enough that an eps of 1e-5 and one of 1e-6 differ by more than a percent.
SMALL = np.float32(1e-3)
FLAX = {
  'layer': nn.LayerNorm(use_fast_variance=False),
  'rms': nn.RMSNorm(),
  'group(groups=4)': nn.GroupNorm(num_groups=4, use_fast_variance=False),
  'instance': nn.InstanceNorm(use_fast_variance=False),
}


def _with(spec: str, option: str) -> str:
  return f'{spec[:-1]}, {option})' if spec.endswith(')') else f'{spec}({option})'


@pytest.mark.parametrize('spec', FLAX)
def test_as_flax(spec) -> None:
  """The preset is flax's defaults; those of torch differ."""
  x = _images() * SMALL
  spec, other = _with(spec, 'preset=flax'), _with(spec.replace('instance', 'layer'), 'preset=torch')
  variables = _variables(spec, x)
  expected = FLAX[spec.replace('(preset=flax)', '').replace(', preset=flax', '')].apply(
    variables, x)
  np.testing.assert_allclose(_apply(spec, variables, x), expected, rtol=1e-5, atol=1e-5)
  assert np.abs(_apply(other, variables, x) - expected).max() > 1e-2
  assert nn.GroupNorm().num_groups == dict(get_norm('group(preset=flax)').options)['groups']


def test_batch_as_flax() -> None:
  """flax's momentum weighs the old value, and its running variance is biased."""
  ours = get_norm('batch(preset=flax)').layer()
  theirs = nn.BatchNorm(use_fast_variance=False)
  variables = mine = _variables('batch', _images())
  for seed in range(3):
    x = jnp.asarray(_images(seed))
    y, state = ours.apply(mine, x, train=True, mutable=['batch_stats'])
    expected, their_state = theirs.apply(variables, x, use_running_average=False,
                                         mutable=['batch_stats'])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    mine, variables = {**mine, **state}, {**variables, **their_state}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
                 state, their_state)
  np.testing.assert_allclose(ours.apply(mine, x, train=False),
                             theirs.apply(variables, x, use_running_average=True),
                             rtol=1e-5, atol=1e-5)


def _torch_layer(torch, spec: str):
  return {
    'layer': lambda: torch.nn.LayerNorm(16),
    'rms': lambda: torch.nn.RMSNorm(16),
    'group(groups=4)': lambda: torch.nn.GroupNorm(4, 16),
    'batch': lambda: torch.nn.BatchNorm2d(16),
    'instance': lambda: torch.nn.InstanceNorm2d(16),
    'lrn': lambda: torch.nn.LocalResponseNorm(5),
    'lrn(n=4)': lambda: torch.nn.LocalResponseNorm(4),
  }[spec]()


@pytest.mark.parity
@pytest.mark.parametrize('spec', ['layer', 'rms', 'group(groups=4)', 'batch', 'instance', 'lrn',
                                  'lrn(n=4)'])
def test_as_torch(spec) -> None:
  """The preset against torch's defaults: outputs, input gradients, and batch norm's state."""
  import torch  # conftest.py skips tests of this mark where torch is not installed
  theirs = _torch_layer(torch, spec)
  channels_first = spec not in ('layer', 'rms')
  # Sums of squares that matter beside k = 1, or variances that do beside eps.
  size = 30 if spec.startswith('lrn') else SMALL
  images = lambda seed: _images(seed) * np.float32(size)
  spec = _with(spec, 'preset=torch')
  ours = get_norm(spec).layer()
  variables = _variables(spec, images(0))
  with torch.no_grad():
    if getattr(theirs, 'weight', None) is not None:
      theirs.weight.copy_(torch.tensor(GAIN_BIAS['scale']))
    if getattr(theirs, 'bias', None) is not None:
      theirs.bias.copy_(torch.tensor(GAIN_BIAS['bias']))

  def torch_apply(x):
    x = torch.tensor(np.asarray(x), requires_grad=True)
    y = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if channels_first else theirs(x)
    (y ** 3).sum().backward()
    return y.detach().numpy(), x.grad.numpy()

  def our_apply(variables, x, train):
    def f(x):
      y, state = ours.apply(variables, x, train=train, mutable=['batch_stats'])
      return jnp.sum(y ** 3), (y, state)
    grad, (y, state) = jax.grad(f, has_aux=True)(x)
    return y, grad, state

  our_apply = jax.jit(our_apply, static_argnames='train',
                      compiler_options={'xla_backend_optimization_level': 0})

  for seed in range(2):
    x = images(seed)
    y, grad, state = our_apply(variables, x, train=True)
    expected, expected_grad = torch_apply(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # Sums of large terms may cancel to a small entry.
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-3,
                               atol=1e-3 + 1e-6 * np.abs(expected_grad).max())
    variables = {**variables, **state}
  theirs.eval()
  expected, _ = torch_apply(x)
  np.testing.assert_allclose(our_apply(variables, x, train=False)[0], expected,
                             rtol=1e-5, atol=1e-5)
  if spec.startswith('batch'):
    np.testing.assert_allclose(variables['batch_stats']['var'], theirs.running_var.numpy(),
                               rtol=1e-6)


@pytest.mark.parity
def test_modes_of_batch_norm_as_torch() -> None:
  """Frozen moments in training, ghosts of two examples, moments of the test batch: y, dy/dx."""
  import torch
  from torch.nn.functional import batch_norm
  x = _images()
  scale, bias = (torch.tensor(GAIN_BIAS[name]) for name in ('scale', 'bias'))
  stats = {'mean': np.linspace(-1, 2, 16, dtype=np.float32),
           'var': np.linspace(0.5, 6, 16, dtype=np.float32)}
  mean, var = (torch.tensor(stats[name]) for name in ('mean', 'var'))
  theirs = {
    ('batch(stat_mode=frozen)', True): lambda x: batch_norm(x, mean, var, scale, bias),
    ('batch(stat_mode=ghost(2))', True): lambda x: torch.cat([
      batch_norm(part, None, None, scale, bias, training=True) for part in x.split(2)]),
    ('test_batch', False): lambda x: batch_norm(x, None, None, scale, bias, training=True),
  }

  def ours(x):
    found = {}
    for spec, train in theirs:
      def loss(x, spec=spec, train=train):
        y, _ = get_norm(spec).layer().apply(
          {'params': GAIN_BIAS, 'batch_stats': stats}, x, train, mutable=['batch_stats'])
        return jnp.sum(y ** 3), y
      found[spec, train] = jax.grad(loss, has_aux=True)(x)
    return found

  found = norm_cases.compiled(ours)(jnp.asarray(x))
  for key, function in theirs.items():
    leaf = torch.tensor(x, requires_grad=True)
    expected = function(leaf.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (expected ** 3).sum().backward()
    grad, y = found[key]
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-5, err_msg=str(key))
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-3, atol=1e-3, err_msg=str(key))
  frozen, ghosts, test = (np.asarray(found[key][1]) for key in list(theirs)[:3])
  assert np.abs(frozen - ghosts).max() > 0.1 and np.abs(ghosts - test).max() > 0.1


def test_dyt_is_its_formula() -> None:
  x = _images()
  y = _apply('dyt(0.8)', _variables('dyt(0.8)', x), x)
  np.testing.assert_allclose(y, GAIN_BIAS['scale'] * np.tanh(np.float32(0.8) * x)
                             + GAIN_BIAS['bias'], rtol=1e-5, atol=1e-6)
