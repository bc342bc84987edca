"""The residual MLP: against numpy, and what its blocks refuse."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

SIZES = {'width': 6, 'depth': 2, 'ratio': 2, 'num_classes': 3}
FUNCTIONS = {'tanh': np.tanh, 'relu': lambda x: np.maximum(x, 0)}
CASES = {
  'between': {'norm': 'pre:rms'},
  'pre': {'norm': 'post:rms', 'nonlinearity': 'pre'},
  'post': {'norm': 'none', 'nonlinearity': 'post'},
  'one pre': {'norm': 'olmo2:rms', 'nonlinearity': 'pre', 'block_depth': 1},
  'one post': {'norm': 'none', 'nonlinearity': 'post', 'block_depth': 1},
  'inner': {'norm': 'subln:rms'},
  'overridden': {'norm': 'pre:rms', 'overrides': (
    'blocks.1: relu', 'blocks.0.norm: post:rms', 'final: none')},
  'a trained factor': {'norm': 'none', 'parametrization': 'rezero'},
}


def _rms(p, name, x):
  scale = p.get(f'{name}/scale')
  return x if scale is None else x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6) * scale


def _numpy(case: dict, p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
  """The model in float64, written apart from the library, for activation tanh."""
  def linear(name, h):
    return h @ p[f'{name}/kernel'] + p[f'{name}/bias']

  position, count = case.get('nonlinearity', 'between'), case.get('block_depth', 2)
  x = linear('stem', x.reshape(len(x), -1))
  for i in range(2):
    function = FUNCTIONS['relu' if i == 1 and 'overrides' in case else 'tanh']
    placement = case['norm'].partition(':')[0]
    if i == 0 and 'overrides' in case:
      placement = 'post'
    norm, block = f'norm_block_{i}', f'block_{i}'
    h = _rms(p, norm, x) if placement in ('pre', 'subln') else x
    for k in range(count):
      h = function(h) if k or position == 'pre' else h
      h = _rms(p, f'{block}/norm_inner', h) if k == count - 1 else h
      h = linear(f'{block}/kernel_{k}', h)
    h = function(h) if position == 'post' else h
    if placement == 'olmo2':
      h = _rms(p, norm, h)
    if case.get('parametrization') == 'rezero':
      h = h * p[f'residual_{i}/alpha']
    x = x + h
    x = _rms(p, norm, x) if placement == 'post' else x
  return linear('head', _rms(p, 'norm_final', x))


def test_against_numpy() -> None:
  """All cases in one program; random parameters, so that no factor hides."""
  x = cases.inputs('resmlp')
  built = {name: models.build('resmlp', activation='tanh', **SIZES, **case)
           for name, case in CASES.items()}
  variables = {name: cases.numbers(model, x) for name, model in built.items()}
  found = jax.jit(lambda v: {name: built[name].apply(v[name], x, train=False) for name in v})(
    variables)
  wide = np.asarray(x, np.float64)
  for name, case in CASES.items():
    params = {path: leaf.astype(np.float64)
              for path, leaf in cases.flat(variables[name]['params']).items()}
    expected = _numpy(case, params, wide)
    assert expected.shape == (3, 3) and expected.std() > 0.05
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    has_norms = sum(path.endswith('scale') and 'norm' in path for path in params)
    assert has_norms == {'between': 3, 'pre': 2, 'one pre': 3, 'inner': 5, 'overridden': 2}.get(
      name, 0), name


def test_gated_blocks_have_the_same_size() -> None:
  x = np.zeros((2, 8, 8), np.float32)

  def count(activation):
    model = models.build('resmlp', activation=activation, ratio=4)
    return sum(leaf.size for leaf in jax.tree.leaves(
      jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))['params']))
  assert abs(count('swiglu') / count('silu') - 1) < 0.01


@pytest.mark.parametrize('kwargs, part', [
  ({'widths': (8, 8)}, "nearest: 'width'"),
  ({'block_depth': 3}, 'block_depth must be 1 or 2, not 3'),
  ({'block_depth': 1}, 'nothing stands between two kernels'),
  ({'nonlinearity': 'before'}, 'one of between, pre, post'),
  ({'nonlinearity': 'post', 'activation': 'swiglu'}, 'it fits at: blocks.0-3.activation.0'),
  ({'nonlinearity': 'post', 'activation': 'crelu'}, 'times the channels of its input'),
  ({'block_depth': 1, 'nonlinearity': 'post', 'norm': 'subln:layer'}, 'has one kernel here'),
  ({'norm': 'group(5)'}, 'resmlp: blocks.0.norm is'),
  ({'norm': 'group(5)'}, '64 channels do not divide into 5 groups'),
  ({'activation': 'funnel_relu'}, 'resmlp: blocks.0.activation.0 is'),
  ({'activation': 'funnel_relu'}, 'use it in a cnn'),
  ({'norm': 'attention=pre:layer, mlp=pre:layer, qk=rms'}, 'is about attention'),
  ({'norm': 'ngpt', 'parametrization': 'ngpt'}, 'on spheres'),
  ({'norm': 'pre:batch', 'parametrization': 'deepnorm'}, 'deepnorm'),
  ({'norm': 'post:layer', 'parametrization': 'deepnorm', 'overrides': ('blocks.0: pre:layer',)},
   'the placement must be post'),
  ({'norm': 'parallel:layer', 'overrides': ('blocks.0: pre:layer',)}, 'of the whole stack'),
  ({'overrides': ('blocks.1: mix:layer',)}, 'of the whole stack'),
  ({'overrides': ('blocks.7: tanh',)}, 'the model has blocks.0-3'),
])
def test_a_combination_without_sense_is_one_line(kwargs, part) -> None:
  with pytest.raises(UserError) as info:
    models.build('resmlp', **kwargs)
  assert part in str(info.value) and '\n' not in str(info.value)
