"""The residual CNN: sizes, agreement with numpy, shortcuts, and what its blocks refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models.cnn import CONFIGS
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

SIZES = {'widths': (3, 4), 'blocks': 1, 'num_classes': 3, 'activation': 'tanh'}
CASES = {
  'original': {'norm': 'olmo2:rms'},
  'preactivation, projected': {'norm': 'pre:rms', 'preactivation': True, 'shortcut': 'project'},
  'after the sum, projected': {'norm': 'post:rms', 'shortcut': 'project'},
}


def _shapes(x, train=False, **kwargs):
  model = models.build('cnn', **kwargs)
  return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=train))


def _size(shapes) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def test_resnet20_has_its_size() -> None:
  """269,722 with 19 convolutions without bias, 19 batch norms and the readout; from the shapes."""
  x = np.zeros((2, 32, 32, 3), np.float32)
  convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
  norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
  assert convolutions + norms + 64 * 10 + 10 == 269722
  shapes = _shapes(x, **CONFIGS['resnet20'])
  assert _size(shapes) == 269722
  kernels = [path for path, leaf in cases.flat(jax.tree.map(
    lambda leaf: np.zeros(leaf.ndim), shapes['params'])).items() if leaf.shape == (4,)]
  assert len(kernels) == 19


def test_every_config_builds() -> None:
  """With one block per stage. A projection has a kernel of size 1 and a norm more."""
  x = np.zeros((2, 8, 8), np.float32)
  small = {'blocks': 1, 'widths': (16, 32)}
  for config in (*CONFIGS.values(), {
      'activation': 'funnel_relu', 'init_gain': False, 'norm': 'post:group(4)'}):
    assert _shapes(x, True, **{**config, **small})['params']['head']['kernel'].shape == (32, 10)
  assert (_size(_shapes(x, shortcut='project', **small)) - _size(_shapes(x, **small))
          == 16 * 32 + 2 * 32)


def _numpy(case: dict, p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
  """The network in float64 on [B, 4, 4, C], written apart from the library."""
  def conv(name, x, stride=1):
    kernel = p[f'{name}/kernel']
    size, n = len(kernel), x.shape[1] // stride
    total = max(0, (n - 1) * stride + size - x.shape[1])
    low = total // 2
    x = np.pad(x, ((0, 0), (low, total - low), (low, total - low), (0, 0)))
    out = np.zeros((len(x), n, n, kernel.shape[-1]))
    for i in range(n):
      for j in range(n):
        window = x[:, stride * i:stride * i + size, stride * j:stride * j + size]
        out[:, i, j] = np.tensordot(window, kernel, 3)
    return out + p[f'{name}/bias']

  def rms(name, x):
    scale = p.get(f'{name}/scale')
    return x if scale is None else x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6) * scale

  pre, placement = case.get('preactivation', False), case['norm'].partition(':')[0]
  x = conv('stem', x)
  x = x if pre else np.tanh(rms('norm_stem', x))
  for i, stride in ((0, 1), (1, 2)):
    skip, block, norm = x, f'block_{i}', f'norm_block_{i}'
    if stride == 2 and case.get('shortcut') == 'project':
      skip = rms('norm_shortcut_1', conv('shortcut_1', x, 2))
    elif stride == 2:
      skip = np.concatenate([x[:, ::2, ::2], np.zeros((len(x), 2, 2, 1))], -1)
    h = np.tanh(rms(norm, x)) if pre else x
    h = np.tanh(rms(f'{block}/norm_in', conv(f'{block}/in', h, stride)))
    h = conv(f'{block}/out', h)
    h = rms(norm, h) if placement == 'olmo2' else h
    x = skip + h
    x = rms(norm, x) if placement == 'post' else x
    x = x if pre else np.tanh(x)
  x = np.tanh(rms('norm_final', x)) if pre else x
  return x.mean((1, 2)) @ p['head/kernel'] + p['head/bias']


def test_against_numpy() -> None:
  """All cases in one program, on images [B, H, W], which are images of one channel."""
  x = cases.inputs('cnn')
  built = {name: models.build('cnn', **SIZES, **case) for name, case in CASES.items()}
  variables = {name: cases.numbers(model, x) for name, model in built.items()}

  @jax.jit
  def run(v):
    found = {name: built[name].apply(v[name], x, train=False) for name in v}
    return found, built['original'].apply(v['original'], x[..., None], train=False)

  found, with_channel = run(variables)
  np.testing.assert_array_equal(found['original'], with_channel)
  for name, case in CASES.items():
    params = {path: leaf.astype(np.float64)
              for path, leaf in cases.flat(variables[name]['params']).items()}
    expected = _numpy(case, params, np.asarray(x, np.float64)[..., None])
    assert expected.shape == (3, 3) and expected.std() > 0.02
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_divisor_starts_again_after_a_shortcut() -> None:
  """NF-ResNet: beta^2 = 1 + 0.2^2 n after n branches; a projection makes the variance 1."""
  x = jnp.zeros((1, 8, 8))
  model = models.build('cnn', **{**CONFIGS['nf_resnet20'], 'widths': (2, 2, 2)})
  hp = jax.jit(lambda: model.init(jax.random.key(0), x, train=False)['hp'])()
  found = [float(hp[f'factors_block_{i}']['input_scale']) for i in range(9)]
  taken = np.array([0, 1, 2, 3, 1, 2, 3, 1, 2])
  np.testing.assert_allclose(found, (1 + 0.04 * taken) ** -0.5, rtol=1e-6)


def test_overrides_and_gates() -> None:
  x = np.zeros((2, 8, 8), np.float32)
  plain, gated = (_shapes(x, widths=(12, 24), blocks=2, overrides=overrides)
                  for overrides in ((), ('inner.activation: swiglu', 'blocks.1.inner.norm: none')))
  assert 'gate' in gated['params']['block_0'] and 'norm_in' not in gated['params']['block_1']
  assert 'norm_in' in gated['params']['block_0'] and 'bias' in gated['params']['block_1']['in']
  assert abs(_size(gated) / _size(plain) - 1) < 0.03


@pytest.mark.parametrize('kwargs, part', [
  ({'activation': 'swiglu'}, 'it fits at: blocks.0-8.inner.activation'),
  ({'activation': 'crelu'}, 'added to the stream'),
  ({'norm': 'resi_dual:layer'}, 'no shortcut where shapes change'),
  ({'norm': 'attention=pre:layer, mlp=post:layer'}, 'is about attention'),
  ({'norm': 'attention=pre:layer, mlp=pre:layer, embed=rms'}, 'names parts of a stack'),
  ({'norm': 'ngpt', 'parametrization': 'ngpt'}, 'on spheres'),
  ({'weight': 'cosine'}, 'take weight_norm or scaled_ws'),
  ({'weight': 'scaled_w'}, "nearest: 'scaled_ws'"),
  ({'norm': 'group(5)'}, '16 channels do not divide into 5 groups'),
  ({'norm': 'none', 'parametrization': 'nf'}, "take shortcut='project'"),
  ({'widths': (8, 4)}, "take shortcut='project'"),
  ({'shortcut': 'padded'}, 'one of pad, project'),
  ({'overrides': ('blocks.*.outer: sub: rms',)}, "'sub' is no placement"),
  ({'overrides': ('stem.norm: post:rms',)}, 'a placed norm, and there is none'),
  ({'overrides': ('blocks.9.inner: rms',)}, 'the model has blocks.0-8'),
])
def test_a_combination_without_sense_is_one_line(kwargs, part) -> None:
  with pytest.raises(UserError) as info:
    models.build('cnn', **kwargs)
  assert part in str(info.value) and '\n' not in str(info.value)


def test_a_wrong_input_is_one_line() -> None:
  with pytest.raises(UserError, match='B, H, W'):
    _shapes(np.zeros((2, 4), np.float32))
