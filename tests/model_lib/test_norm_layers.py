"""Every normalization layer against float64: equation, axes, state, gradient, invariances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.normalization import entry, get_norm, names
from tests.model_lib import norm_cases as cases
from tests.model_lib.norm_references import REFERENCES

SURROGATES = {'renorm': True, 'unmix': False}  # name: whether it is so in training


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _reference(spec, x, params, state, train, c, **held):
  norm = get_norm(spec)
  return REFERENCES[norm.name](x, params, state, dict(norm.options), train, c, **held)


def test_every_norm_has_a_reference() -> None:
  assert set(REFERENCES) == set(names())


@pytest.mark.parametrize('spec', cases.SPECS)
def test_equation_and_state(spec) -> None:
  """Training and inference, results and states; without positions too where it takes them."""
  shapes = [cases.SHAPE] + [shape for shape in ((5, 8), (4, 3, 8))
                            if not get_norm(spec).spatial and get_norm(spec).name != 'spade']
  for shape in shapes:
    x = cases.inputs(shape if 'ghost' not in spec else (4, *shape[1:]))
    c = cases.condition(spec, x)
    params, state = cases.drawn(spec, x, c)
    variables = {'params': params, 'batch_stats': state}
    for train in (True, False):
      y, after = cases.call(spec, variables, x, train, c)
      expected, expected_after = _reference(spec, x, params, state, train, c)
      assert y.shape == x.shape and y.dtype == x.dtype
      np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-11)
      assert set(after) == set(expected_after) == set(get_norm(spec).state)
      for name in after:
        np.testing.assert_allclose(after[name], expected_after[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('spec', [s for s in cases.SPECS if get_norm(s).state])
def test_state_starts_unmoved_and_moves_where_it_should(spec) -> None:
  x = cases.inputs()
  c = cases.condition(spec, x)
  started, made = (cases.start(spec, x, c, train) for train in (False, True))
  jax.tree.map(np.testing.assert_array_equal, started, made)
  norm = get_norm(spec)
  moves = {'train': norm.name != 'frozen_layer' and 'frozen' not in spec,
           'inference': norm.name in ('ema_batch', 'unmix')}
  for mode, expected in moves.items():
    _, after = cases.call(spec, started, x, mode == 'train', c)
    moved = any(np.any(after[k] != started['batch_stats'][k]) for k in after)
    assert moved == expected, mode


@pytest.mark.parametrize('spec', cases.SPECS)
def test_gradient(spec) -> None:
  """Along a drawn direction of x and of the parameters, against central differences of NumPy.

  Surrogate ones against those with the held quantities fixed, and away from the plain ones.
  """
  norm = get_norm(spec)
  x = cases.inputs()
  c = cases.condition(spec, x)
  params, state = cases.drawn(spec, x, c)
  rng = np.random.default_rng(3)
  direction = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), (x, params))
  weights = rng.normal(size=x.shape)
  for train in (True, False):
    def loss(point, train=train):
      y, _ = cases.call(spec, {'params': point[1], 'batch_stats': state}, point[0], train, c)
      return jnp.sum(weights * y)

    found = sum(np.sum(g * d) for g, d in zip(
      jax.tree.leaves(jax.grad(loss)((jnp.asarray(x), jax.tree.map(jnp.asarray, params)))),
      jax.tree.leaves(direction), strict=True))
    surrogate = SURROGATES.get(norm.name) == train
    held = ({'held': _reference(spec, x, params, state, train, c, hold=True)} if surrogate else {})

    def difference(held, train=train, h=1e-6):
      sides = []
      for sign in (1, -1):
        moved = jax.tree.map(lambda leaf, d: leaf + sign * h * d, (x, params), direction)
        sides.append(np.sum(weights * _reference(spec, *moved, state, train, c, **held)[0]))
      return (sides[0] - sides[1]) / (2 * h)

    exact = difference(held)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    if surrogate:
      assert norm.backward == 'surrogate'
      assert abs(found - difference({})) > 1e-2 * abs(found)
  assert (norm.name in SURROGATES) == (norm.backward == 'surrogate')


# Which results an entry of x reaches in training: products of what may differ from it in example,
# position and channel (w the window of channels around it, g its group).
REACH = {
  **{name: ('c',) for name in ('layer', 'rms', 'prms', 'unit', 'scale_norm', 'pixel', 'pono',
                               'simple', 'frozen_layer', 'adaln_zero')},
  'lrn': ('w',), 'divisive': ('ww',), 'group': ('pg',), 'instance': ('p',), 'frn': ('p',),
  'frn_tlu': ('p',), 'adain': ('p',),
  **{name: ('bp',) for name in ('batch', 'renorm', 'test_batch', 'alpha_batch', 'ema_batch',
                                'unmix', 'spade', 'evonorm_b0', 'evonorm_b1', 'evonorm_b2')},
  'batch_channel': ('bpg',), 'switch': ('bp', 'pc'), 'whiten': ('bpc',),
  **{f'evonorm_{v}': ('pg',) for v in ('s0', 's1', 's2')},
  **{name: ('',) for name in ('none', 'dyt', 'derf', 'pointwise', 'affine', 'soft_cap', 'film',
                              'norm_prop')},
}
# At inference, where it differs.
REACH_INFERENCE = {
  **{name: ('',) for name in ('batch', 'renorm', 'spade')}, 'batch_channel': ('pg',),
  'whiten': ('c',), 'switch': ('pc',), 'unmix': ('pc',),
  'evonorm_b0': ('p',), 'evonorm_b1': ('p',), 'evonorm_b2': ('p',),
}
ENTRY = (1, 2, 0, 3)


def _reached(letters: str, options) -> np.ndarray:
  mask = np.zeros(cases.SHAPE, bool)
  b, *position, c = ENTRY
  channels = slice(c, c + 1)
  if 'c' in letters:
    channels = slice(None)
  if 'g' in letters:
    size = cases.SHAPE[-1] // options['groups']
    channels = slice(c // size * size, (c // size + 1) * size)
  if 'w' in letters:
    reach = letters.count('w') * (options['n'] // 2)
    channels = slice(c - reach, c + reach + 1)
  mask[(slice(None) if 'b' in letters else b,
        *((slice(None),) * 2 if 'p' in letters else position), channels)] = True
  return mask


@pytest.mark.parametrize('spec', cases.ONE_EACH)
def test_statistics_axes(spec) -> None:
  """A change of one entry reaches nothing outside of the declared axes, and what is inside."""
  norm = get_norm(spec)
  x = cases.inputs()
  c = cases.condition(spec, x)
  params, state = cases.drawn(spec, x, c)
  variables = {'params': params, 'batch_stats': state}
  other = x.copy()
  other[ENTRY] += 1.5
  for train, reach in ((True, REACH[norm.name]),
                       (False, REACH_INFERENCE.get(norm.name, REACH[norm.name]))):
    mask = np.any([_reached(letters, dict(norm.options)) for letters in reach], axis=0)
    (y, _), (changed, _) = (cases.call(spec, variables, z, train, c) for z in (x, other))
    moved = np.abs(np.asarray(changed - y)) > 1e-9
    assert not np.any(moved & ~mask), train
    # An activation in the layer may hide some of what is inside.
    share = 0.9 if norm.family != 'joint' and norm.name != 'frn_tlu' else 0.2
    assert moved[mask].mean() >= share, train
    across = np.any(mask[[i for i in range(4) if i != ENTRY[0]]])
    assert across == (norm.batch if train or norm.family == 'test_time' and norm.name != 'unmix'
                      else False)


def test_partial_rms_looks_at_the_first_channels_alone() -> None:
  x = cases.inputs()
  other = x.copy()
  other[..., 4:] += 1.0
  variables = cases.start('prms(p=0.5)', x)
  y, changed = (cases.call('prms(p=0.5)', variables, z, False)[0] for z in (x, other))
  np.testing.assert_array_equal(y[..., :4], changed[..., :4])
  other[..., 0] += 1.0
  assert np.abs(cases.call('prms(p=0.5)', variables, other, False)[0] - changed).min() > 1e-4


# Invariances.


def _without_eps(spec: str) -> str:
  options = dict(get_norm(spec).options)
  for name in ('eps', 'sigma'):
    if name in options and get_norm(spec).name != 'frozen_layer':
      options[name] = 0.0
  if get_norm(spec).name == 'renorm':
    options['ramp'] = 0  # else the first step is that of batch
  items = ', '.join(f'{key}={value}' for key, value in options.items())
  return f'{get_norm(spec).name}({items})' if items else spec


def _changes(x: np.ndarray) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(5)
  ones = (1,) * (x.ndim - 2)
  example, channel = (len(x), *ones, 1), (1, *ones, x.shape[-1])
  factor, number = lambda shape: rng.uniform(0.4, 2.5, shape), lambda shape: rng.normal(size=shape)
  return {'scale': 3.7 * x, 'example_scale': factor(example) * x,
          'position_scale': factor((*x.shape[:-1], 1)) * x, 'channel_scale': factor(channel) * x,
          'example_shift': x + number(example), 'position_shift': x + number((*x.shape[:-1], 1)),
          'channel_shift': x + number(channel)}


@pytest.mark.parametrize('spec', cases.ONE_EACH)
def test_invariances(spec) -> None:
  """Every declared one holds below 1e-12, and every other one misses by more than 1e-2."""
  spec = _without_eps(spec)
  x = cases.inputs()
  c = cases.condition(spec, x)
  variables = cases.start(spec, x, c)
  y, _ = cases.call(spec, variables, x, True, c)
  size = np.sqrt(np.mean(np.square(y)))
  deviations = {name: np.abs(cases.call(spec, variables, z, True, c)[0] - y).max() / size
                for name, z in _changes(x).items()}
  assert set(deviations) == set(entry.INVARIANCES)
  for name, deviation in deviations.items():
    assert (deviation < 1e-12) if name in get_norm(spec).invariances else (deviation > 1e-2), name
