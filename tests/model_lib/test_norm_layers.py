"""Every normalization layer against float64: equation, axes, state, gradient, invariances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.normalization import entry, get_norm, names
from tests.model_lib import norm_cases as cases
from tests.model_lib.norm_references import REFERENCES

pytestmark = pytest.mark.usefixtures('unoptimized')

SURROGATES = {'renorm': True, 'unmix': False}  # name: whether it is so in training


ENTRY = (1, 2, 0, 3)
STATEFUL = tuple(spec for spec in cases.SPECS if get_norm(spec).state)


def _arguments(spec, shape, dtype=np.float64):
  """(x, parameters, state, condition), drawn."""
  x = cases.inputs(shape, dtype=dtype)
  return x, *cases.drawn(spec, dtype), cases.condition(spec, x)


def _shapes(spec):
  """That of images, and one of fewer axes where the layer looks at their number."""
  fewer = {'frozen_layer': (4, 3, 8), 'batch': (4, 8), 'unmix': (4, 8), 'group': (4, 8)}
  name = get_norm(spec).name
  return (cases.SHAPE, fewer[name]) if spec in cases.ONE_EACH and name in fewer else (cases.SHAPE,)


def _modes(spec):
  """Training and inference, or the one that stands for both."""
  return (False,) if get_norm(spec).train_inference == entry.SAME else (True, False)


def _calls(spec, x, params, state, c):
  """{train: (result, state after)}."""
  return {train: cases.call(spec, {'params': params, 'batch_stats': state}, x, train, c)
          for train in _modes(spec)}


def _reference(spec, x, params, state, train, c, **held):
  norm = get_norm(spec)
  return REFERENCES[norm.name](x, params, state, dict(norm.options), train, c, **held)


@pytest.fixture(scope='module')
def computed():
  """What the layers compute in float64, all in one program; by subject, then by spec."""
  arguments = {spec: {shape: _arguments(spec, shape) for shape in _shapes(spec)}
               for spec in cases.SPECS}
  other = cases.inputs()
  other[ENTRY] += 1.5
  weights = np.random.default_rng(3).normal(size=cases.SHAPE)

  def everything(arguments, other, weights):
    results, changed, gradients = {}, {}, {}
    for spec, by_shape in arguments.items():
      x, params, state, c = by_shape.pop(cases.SHAPE)

      def loss(x, params, train, spec=spec, state=state, c=c):
        variables = {'params': params, 'batch_stats': state}
        y, after = cases.call(spec, variables, x, train, c)
        return jnp.sum(weights * y), (y, after)

      # Results and gradients of x and of `other` from one trace of the layer.
      graded = jax.value_and_grad(loss, (0, 1), has_aux=True)
      pair = {train: jax.vmap(lambda x, graded=graded, params=params, train=train: graded(
        x, params, train))(jnp.stack([x, other])) for train in _modes(spec)}
      own, moved = (jax.tree.map(lambda leaf, i=i: leaf[i], pair) for i in range(2))
      results[spec], changed[spec] = (
        {cases.SHAPE: {train: found for train, ((_, found), _) in by_mode.items()}}
        for by_mode in (own, moved))
      gradients[spec] = {train: gradient for train, (_, gradient) in own.items()}
      for shape, found in by_shape.items():
        results[spec][shape] = _calls(spec, *found)
    return {'results': results, 'changed': changed, 'gradients': gradients}

  with jax.enable_x64(True):
    found = cases.compiled(everything)(jax.tree.map(jnp.asarray, arguments), other, weights)
    return {**jax.tree.map(np.asarray, found), 'arguments': arguments, 'weights': weights}


def test_every_norm_has_a_reference() -> None:
  assert set(REFERENCES) == set(names())


@pytest.mark.parametrize('spec', cases.SPECS)
def test_equation_and_state(spec, computed) -> None:
  """Training and inference, results and states; without positions too where it takes them."""
  for shape, found in computed['results'][spec].items():
    x, params, state, c = computed['arguments'][spec][shape]
    for train, (y, after) in found.items():
      expected, expected_after = _reference(spec, x, params, state, train, c)
      assert y.shape == x.shape and y.dtype == x.dtype
      np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-11)
      assert set(after) == set(expected_after) == set(get_norm(spec).state)
      for name in after:
        np.testing.assert_allclose(after[name], expected_after[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('spec', STATEFUL)
def test_state_moves_where_it_should(spec, computed) -> None:
  """Not in the call that makes it; else in training, or in the test-time norms at inference."""
  made = cases.starts(STATEFUL, train=True)[spec]['batch_stats']
  jax.tree.map(np.testing.assert_array_equal, made, cases.starts()[spec]['batch_stats'])
  _, _, state, _ = computed['arguments'][spec][cases.SHAPE]
  expected = {True: 'frozen' not in spec, False: get_norm(spec).name in ('ema_batch', 'unmix')}
  for train, (_, after) in computed['results'][spec][cases.SHAPE].items():
    assert any(np.any(after[k] != state[k]) for k in after) == expected[train], train


@pytest.mark.parametrize('spec', cases.SPECS)
def test_gradient(spec, computed) -> None:
  """Along a drawn direction of x and of the parameters, against central differences of NumPy.

  Surrogate ones against those with the held quantities fixed, and away from the plain ones.
  """
  norm = get_norm(spec)
  x, params, state, c = computed['arguments'][spec][cases.SHAPE]
  rng = np.random.default_rng(4)
  direction = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), (x, params))
  for train, gradient in computed['gradients'][spec].items():
    found = sum(np.sum(g * d) for g, d in zip(
      jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    surrogate = SURROGATES.get(norm.name) == train
    held = {'held': _reference(spec, x, params, state, train, c, hold=True)} if surrogate else {}

    def difference(held, train=train, h=1e-6):
      sides = []
      for sign in (1, -1):
        moved = jax.tree.map(lambda leaf, d, sign=sign: leaf + sign * h * d, (x, params), direction)
        sides.append(np.sum(computed['weights'] * _reference(
          spec, *moved, state, train, c, **held)[0]))
      return (sides[0] - sides[1]) / (2 * h)

    np.testing.assert_allclose(found, difference(held), rtol=1e-6, atol=1e-6)
    if surrogate:
      assert abs(found - difference({})) > 1e-2 * abs(found)
  assert (norm.name in SURROGATES) == (norm.backward == 'surrogate')


def test_bfloat16_is_rounded_once() -> None:
  """Narrow inputs give the float64 result rounded: the arithmetic between is float32."""
  arguments = {spec: _arguments(spec, cases.SHAPE, np.float32) for spec in cases.ONE_EACH}
  x = jnp.asarray(cases.inputs(dtype=np.float32) + 20, jnp.bfloat16)
  program = cases.compiled(lambda x, arguments: {
    spec: cases.call(spec, {'params': params, 'batch_stats': state}, x, True, c)[0]
    for spec, (_, params, state, c) in arguments.items()})
  for spec, y in program(x, arguments).items():
    assert y.dtype == jnp.bfloat16, spec
    _, params, state, c = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), arguments[spec])
    exact, _ = _reference(spec, np.asarray(x, np.float64), params, state, True, c)
    # Half a unit in the last place of 8 bits; the offset costs float32 some digits.
    close = {'rtol': 1.01 * 2.0 ** -8, 'atol': 3e-4}
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, err_msg=spec, **close)
    if get_norm(spec).name == 'pono':  # control: the same arithmetic in 8 bits
      centred = x - jnp.mean(x, axis=-1, keepdims=True)
      narrow = centred / jnp.sqrt(jnp.mean(centred * centred, axis=-1, keepdims=True))
      assert not np.allclose(np.asarray(narrow, np.float64), exact, **close)


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
def test_statistics_axes(spec, computed) -> None:
  """A change of one entry reaches nothing outside of the declared axes, and what is inside."""
  norm = get_norm(spec)
  for train in _modes(spec):
    reach = REACH[norm.name]
    if not train:
      reach = REACH_INFERENCE.get(norm.name, reach)
    mask = np.any([_reached(letters, dict(norm.options)) for letters in reach], axis=0)
    y, _ = computed['results'][spec][cases.SHAPE][train]
    moved = np.abs(computed['changed'][spec][cases.SHAPE][train][0] - y) > 1e-9
    assert not np.any(moved & ~mask), train
    # An activation in the layer may hide some of what is inside.
    share = 0.9 if norm.family != 'joint' and norm.name != 'frn_tlu' else 0.2
    assert moved[mask].mean() >= share, train
    across = np.any(mask[[i for i in range(4) if i != ENTRY[0]]])
    # unmix looks at other examples through its state alone.
    at_inference = norm.family == 'test_time' and norm.name != 'unmix'
    assert across == (norm.batch if train else at_inference)
    if not train:
      apart = np.delete(moved[ENTRY[0]].reshape(-1, cases.SHAPE[-1]), ENTRY[1] * 2 + ENTRY[2], 0)
      assert norm.causal == (not apart.any() and not across)


def test_partial_rms_looks_at_the_first_channels_alone() -> None:
  x = cases.inputs(dtype=np.float32)
  others, first = x.copy(), x.copy()
  others[..., 4:] += 1.0
  first[..., 0] += 5.0
  variables = cases.starts()['prms(p=0.5)']
  y, apart, changed = (np.asarray(cases.call('prms(p=0.5)', variables, z, False)[0])
                       for z in (x, others, first))
  np.testing.assert_array_equal(y[..., :4], apart[..., :4])
  assert np.abs(changed - y).min() > 1e-4


# Invariances.


def _without_eps(spec: str) -> str:
  if spec.startswith('renorm'):
    spec = 'renorm(ramp=0)'  # else the first step is that of batch
  options = dict(get_norm(spec).options)
  for name in ('eps', 'sigma'):
    if name in options and get_norm(spec).name != 'frozen_layer':
      options[name] = 0.0
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


@pytest.fixture(scope='module')
def deviations():
  """{name: {change: max |y' - y| / rms(y)}} in training, at the start values, without eps."""
  x = cases.inputs()
  changes = _changes(x)
  stack = np.stack([x, *changes.values()])
  arguments = {}
  for spec in cases.ONE_EACH:
    variables = jax.tree.map(np.float64, cases.starts()[spec])
    if spec.startswith('divisive'):
      variables['params']['sigma'] *= 0  # starts at the option that is set to 0
    arguments[_without_eps(spec)] = variables, cases.condition(spec, x)

  def program(stack, arguments):
    return {spec: jax.vmap(lambda x, spec=spec, variables=variables, c=c: cases.call(
      spec, variables, x, True, c)[0])(stack) for spec, (variables, c) in arguments.items()}

  with jax.enable_x64(True):
    results = jax.tree.map(np.asarray, cases.compiled(program)(stack, arguments))
  return {get_norm(spec).name: {
    name: np.abs(other - y[0]).max() / np.sqrt(np.mean(np.square(y[0])))
    for name, other in zip(changes, y[1:], strict=True)} for spec, y in results.items()}


@pytest.mark.parametrize('name', names())
def test_invariances(name, deviations) -> None:
  """Every declared one holds below 1e-12, and every other one misses by more than 1e-2."""
  assert set(deviations[name]) == set(entry.INVARIANCES) >= set(get_norm(name).invariances)
  for change, deviation in deviations[name].items():
    holds = change in get_norm(name).invariances
    assert (deviation < 1e-12) if holds else (deviation > 1e-2), change
