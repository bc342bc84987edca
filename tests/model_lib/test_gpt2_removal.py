"""Norm sites that become linear: gates, statistics, state, events, and the auxiliary loss."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.models import removable
from model_lib.models.hyper import set_hp
from model_lib.models.removable import NEVER
from model_lib.training.tasks import cross_entropy
from tests.model_lib import gpt2_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

TOKENS = jnp.asarray(cases.TOKENS)
X = 2 * np.random.default_rng(5).normal(size=(2, 7, 12)).astype(np.float32) + .3


def control(step=0, **changes) -> removable.Control:
  values = {'first': step == 0, 'enabled': True, 'taper': 0., 'ema': .9, 'factor': 1.,
            'aux_every': 0., 'aux_target': 1., **changes}
  return removable.Control(step=jnp.int32(step), **{
    name: jnp.asarray(value, bool if isinstance(value, bool) else jnp.float32)
    for name, value in values.items()})


# The parts.


@pytest.mark.parametrize('taper, since, expected', [
  (0, -1, 1), (0, 0, 0), (0, 5, 0), (4, -3, 1), (4, 0, 1), (4, 1, (1 + np.sqrt(.5)) / 2),
  (4, 2, .5), (4, 3, (1 - np.sqrt(.5)) / 2), (4, 4, 0), (4, 900, 0), (1, 0, 1), (1, 1, 0)])
def test_the_gate(taper, since, expected) -> None:
  g = removable.gate(control(20 + since, taper=float(taper)), jnp.int32(20))
  np.testing.assert_allclose(g, expected, atol=1e-6)
  assert float(g) == expected or 0 < expected < 1
  assert removable.gate(control(20 + since, taper=float(taper), enabled=False), jnp.int32(20)) == 1
  assert removable.gate(control(20 + since, taper=float(taper)), jnp.int32(NEVER)) == 1


def _site(g, kind='layer'):
  """x -> y of one norm at the gate g, with sigma_avg 3 and factor 1.1."""
  norm = removable.Norm(kind, 1e-5, 12)
  rng = np.random.default_rng(2)
  params = {'scale': 1 + .3 * rng.normal(size=12).astype(np.float32)}
  if kind == 'layer':
    params['bias'] = rng.normal(size=12).astype(np.float32)
  bound = norm.bind({'params': params})

  def run(x):
    centred, square = bound.squares(x)
    return bound.affine(centred, removable.inverse(square, jnp.float32(3), jnp.float32(g),
                                                   jnp.float32(1.1)))
  return run, bound, params


@pytest.mark.parametrize('kind', removable.KINDS)
def test_a_site_between_real_and_linear(kind) -> None:
  centred, sigma = cases.moments(X, kind)
  for g in (1., .25, 0.):
    run, bound, params = _site(g, kind)
    expected = centred * (g / sigma + (1 - g) / 3.3) * params['scale'] + params.get('bias', 0)
    np.testing.assert_allclose(run(X), expected, rtol=2e-5, atol=2e-6)
    if g == 1:
      np.testing.assert_array_equal(run(X), bound(X))
  assert np.abs(run(X) - bound(X)).max() > .1


@pytest.mark.parametrize('kind', removable.KINDS)
def test_nothing_of_sigma_is_in_the_gradient_of_a_linear_site(kind) -> None:
  """Also where sigma_tok has no finite derivative: its root is that of an overflow."""
  run, _, params = _site(0., kind)
  cotangent = np.random.default_rng(3).normal(size=X.shape).astype(np.float32)

  def gradient(run, x):
    return jax.vjp(run, x)[1](cotangent)[0]

  expected = cases.moments(cotangent * params['scale'], kind)[0] / 3.3
  np.testing.assert_allclose(gradient(run, X), expected, rtol=1e-5, atol=1e-6)
  huge = gradient(run, X * np.float32(1e25))
  np.testing.assert_allclose(huge, expected, rtol=1e-5, atol=1e-6)
  for g in (1., .25):  # the control: sigma_tok counts there
    assert np.abs(gradient(_site(g, kind)[0], X) - expected).max() > .05
  slope = jax.grad(lambda sigma: jnp.sum(removable.inverse(
    jnp.ones((1, 1, 1)), sigma, jnp.float32(.5), jnp.float32(1))))(jnp.float32(2))
  assert slope == 0


@pytest.mark.parametrize('positions', removable.POSITIONS)
def test_statistics_against_numpy(positions) -> None:
  centred, sigma = cases.moments(X * np.linspace(.2, 4, 7, dtype=np.float32)[:, None])
  z = centred * np.linspace(.5, 1.5, 12)
  s, z2 = sigma[..., 0], (z ** 2).sum(-1)
  if positions == 'rest':
    s, z2 = s[:, 1:], z2[:, 1:]
  # The c of least squares, found as the solution of a regression without intercept.
  design = np.sqrt(z2).ravel()
  c = np.linalg.lstsq(design[:, None], (np.sqrt(z2) / s).ravel(), rcond=None)[0][0]
  expected = {'mean': s.mean(), 'rms': np.sqrt((s ** 2).mean()), 'harmonic': 1 / (1 / s).mean(),
              'least_squares': 1 / c}
  assert list(expected) == list(removable.STATISTICS)
  found = {name: float(removable.token_statistic(
    jnp.float32(sigma), jnp.float32(z), name, positions)) for name in expected}
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)
  assert np.diff(sorted(found.values())).min() > .02  # the control: they are told apart


def test_the_spread_and_its_gradient() -> None:
  """The target, a mean over the tokens that count, is held; the mean of squares is over all."""
  sigma = np.float32([[1, 2, 4], [3, 5, 7]])[..., None]
  counted = np.array([[False, True, True], [False, False, True]])
  target = (2 + 4 + 7) / 3

  def run(fixed=None, counted=counted):
    return jax.value_and_grad(lambda s: removable.spread(s, jnp.asarray(counted), fixed))(sigma)

  for value, goal in ((run(), target), (run(jnp.float32(2.5)), 2.5),
                      (run(counted=np.zeros_like(counted)), 1)):
    np.testing.assert_allclose(value[0], np.mean((sigma - goal) ** 2), rtol=1e-6)
    np.testing.assert_allclose(value[1], 2 * (sigma - goal) / 6, rtol=1e-5)
  moving = jax.grad(lambda s: jnp.mean((s - jnp.sum(s * counted[..., None]) / 3) ** 2))(sigma)
  assert np.abs(moving - run()[1]).max() > .1  # the control: without the stop


# The model.


@functools.cache
def program(**kwargs):
  """(model, variables, call): call(variables, train) -> (logits, taps, new norm_state)."""
  model = cases.build(removable=True, **kwargs)
  call = jax.jit(lambda variables, train: model.apply(
    variables, TOKENS, train=train, taps=True, mutable=['norm_state', 'losses']),
                 static_argnums=1)
  return model, cases.numbers(model), call


def steps(variables, call, count, scale=1.0):
  """`count` training calls, before each of which the embeddings grow by `scale`."""
  found = []
  for _ in range(count):
    (logits, taps), moved = call(variables, True)
    wide = jax.tree.map(lambda leaf: leaf * scale, variables['params']['wte'])
    variables = {**variables, 'norm_state': moved['norm_state'],
                 'params': {**variables['params'], 'wte': wide}}
    found.append((logits, taps, cases.flat(moved['norm_state'])))
  return variables, found


EVENTS = {'event_qk': (2, 3), 'event_v': (4, 1), 'event_mlp': (NEVER, 0), 'event_final': 3}


def test_each_site_is_linear_from_its_own_step_on() -> None:
  """Every path against numpy, at every step, in training and in the evaluation after it."""
  _, variables, call = program()
  variables = {**variables, 'hp': set_hp(variables['hp'], ema=.8, sigma_factor=1.25, **EVENTS)}
  state = cases.flat(variables['norm_state'])
  for step in range(6):
    variables, ((_, taps, after),) = steps(variables, call, 1, scale=1.2)

    def is_linear(site, layer, step=step):
      event = EVENTS[f'event_{site}']
      return step >= (event if layer is None else event[layer])

    def of(state, site, layer):
      value = state[f'sigma_{site}' if layer is None else f'h/sigma_{site}']
      return float(value if layer is None else value[layer])

    def inverse(site, layer, sigma, state=after):
      return 1 / (1.25 * of(state, site, layer)) if is_linear(site, layer) else 1 / sigma

    for place, values in cases.after(variables['params'], taps, inverse).items():
      np.testing.assert_allclose(taps[place], values, rtol=1e-3, atol=1e-4,
                                 err_msg=f'{place} in step {step}')
    # sigma_avg by hand: the mean of the first batch, then the exponential average, then frozen.
    for site, stream in (('qk', 'resid_pre'), ('v', 'resid_pre'), ('mlp', 'resid_mid'),
                         ('final', 'resid_final')):
      for layer in ((None,) if site == 'final' else (0, 1)):
        seen = cases.moments(taps[stream] if layer is None else taps[stream][layer])[1].mean()
        old = of(state, site, layer)
        new = seen if step == 0 else .8 * old + .2 * seen
        frozen = is_linear(site, layer)
        np.testing.assert_allclose(of(after, site, layer), old if frozen else new, rtol=1e-5,
                                   err_msg=f'{site} {layer} in step {step}')
        if frozen:
          assert of(after, site, layer) == old
          assert abs(new / old - 1) > 1e-4  # the control: it would have moved
    assert after['calls'] == step + 1
    (_, taps), unmoved = call(variables, False)
    for place, values in cases.after(variables['params'], taps, inverse).items():
      np.testing.assert_allclose(taps[place], values, rtol=1e-3, atol=1e-4, err_msg=place)
    for path, leaf in cases.flat(unmoved['norm_state']).items():
      np.testing.assert_array_equal(leaf, after[path])
    found = removable.gates(variables)
    assert {site for site, g in found.items() if g == 0} == {
      f'h.{layer}.{name}' for site, name in (('qk', 'ln_1.qk'), ('v', 'ln_1.v'), ('mlp', 'ln_2'))
      for layer in (0, 1) if is_linear(site, layer)} | ({'ln_f'} if is_linear('final', None)
                                                       else set())
    state = after


def test_the_paper_s_code_has_one_buffer_for_queries_keys_and_values() -> None:
  """Both follow until the later event of the two; the rest is as with own events."""
  hp = {'event_qk': (1, 4), 'event_v': (3, 2), 'event_mlp': (1, NEVER)}
  histories = {}
  for buffer in removable.BUFFERS:
    _, variables, call = program(buffer=buffer)
    _, found = steps({**variables, 'hp': set_hp(variables['hp'], **hp)}, call, 6, scale=1.3)
    histories[buffer] = {path: np.stack([state[path] for _, _, state in found])
                         for path in found[0][2]}
  last = {  # the last step that moved sigma, by layer
    'own_event': {'h/sigma_qk': (0, 3), 'h/sigma_v': (2, 1), 'h/sigma_mlp': (0, 5)},
    'paper_code': {'h/sigma_qk': (2, 3), 'h/sigma_v': (2, 3), 'h/sigma_mlp': (0, 5)}}
  for buffer, history in histories.items():
    for path, ends in last[buffer].items():
      moved = np.diff(history[path], axis=0) != 0
      for layer, end in enumerate(ends):
        assert moved[:end, layer].all() and not moved[end:, layer].any(), (buffer, path, layer)
  shared = histories['paper_code']
  np.testing.assert_array_equal(shared['h/sigma_qk'], shared['h/sigma_v'])
  assert (histories['own_event']['h/sigma_qk'] != histories['own_event']['h/sigma_v']).any()


def test_a_real_site_is_the_unremovable_model_to_the_bit() -> None:
  plain = cases.build()
  _, variables, call = program()
  (logits, _), _ = call(variables, True)
  expected, _ = cases.program(plain, taps=True)({'params': variables['params']}, TOKENS)
  np.testing.assert_array_equal(logits, expected)
  linear = {**variables, 'hp': set_hp(variables['hp'], event_mlp=(0, 0))}
  assert np.abs(call(linear, True)[0][0] - expected).max() > .1


def test_training_before_an_event_and_a_sham_are_vanilla_to_the_bit() -> None:
  model, variables, _ = program()

  def loss(params, rest):
    logits, moved = model.apply({'params': params, **rest}, TOKENS[:, :-1], train=True,
                                mutable=['norm_state', 'losses'])
    aux = sum(jax.tree.leaves(moved['losses']))
    return cross_entropy(logits, TOKENS[:, 1:]).mean() + aux, moved['norm_state']

  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

  def train(**hp):
    params = variables['params']
    rest = {'hp': set_hp(variables['hp'], aux_weight=.1, **hp),
            'norm_state': variables['norm_state']}
    losses = []
    for _ in range(5):
      (value, rest['norm_state']), grads = gradient(params, rest)
      params = jax.tree.map(lambda p, g: p - .05 * g, params, grads)
      losses.append(float(value))
    return losses, cases.flat(params)

  vanilla, params = train()
  sham, same = train(enabled=0, **EVENTS)
  assert sham == vanilla and vanilla[-1] < vanilla[0]
  for path, leaf in params.items():
    np.testing.assert_array_equal(same[path], leaf)
  removed, _ = train(event_v=(3, 3))
  assert removed[:3] == vanilla[:3] and removed[3] != vanilla[3]
  tapered, _ = train(event_v=(2, 2), taper=2.)
  assert tapered[:3] == vanilla[:3] and tapered[3] not in (vanilla[3], removed[3])


def test_micro_batches_of_a_step_share_its_events() -> None:
  _, variables, call = program()
  variables = {**variables, 'hp': set_hp(variables['hp'], calls_per_step=3, event_final=1)}

  def is_linear(taps):
    return np.abs(cases.after(variables['params'], taps, lambda site, layer, sigma: 1 / sigma)
                  ['final'] - taps['final']).max() > 1e-2

  found = []
  for _ in range(5):
    variables, ((_, taps, _),) = steps(variables, call, 1)
    found.append((is_linear(taps), is_linear(call(variables, False)[0][1])))
  # A call's number / 3 is its step; an evaluation belongs to the call before it.
  assert found == [(False, False)] * 3 + [(True, True)] * 2


def test_the_auxiliary_loss_of_the_model() -> None:
  eot = int(cases.TOKENS[0, 4])
  assert 0 < np.sum(cases.TOKENS == eot) < 4
  _, variables, call = program(eot=eot)

  def sown(**hp):
    (_, taps), moved = call({**variables, 'hp': set_hp(variables['hp'], **hp)}, True)
    value, = jax.tree.leaves(moved['losses'])
    return float(value), taps

  counted = (cases.TOKENS != eot) & (np.arange(11) > 0)

  def spread(stream, goal=None):
    sigma = cases.moments(stream)[1][..., 0]
    return np.mean((sigma - (sigma[counted].mean() if goal is None else goal)) ** 2)

  value, taps = sown(aux_weight=.3)
  np.testing.assert_allclose(value, .3 * spread(taps['resid_final']), rtol=1e-4)
  assert abs(value / (.3 * spread(taps['resid_final'], 1)) - 1) > .05
  value, taps = sown(aux_weight=.3, event_final=0)  # linear: its input's spread counts all the same
  np.testing.assert_allclose(value, .3 * spread(taps['resid_final']), rtol=1e-4)
  value, taps = sown(aux_every=.2)
  every = sum(spread(taps[place][layer]) for place in ('resid_pre', 'resid_mid')
              for layer in (0, 1))
  np.testing.assert_allclose(value, .2 * every, rtol=1e-4)
  assert sown()[0] == 0
  _, evaluated = call(variables, False)
  assert 'losses' not in evaluated


def test_a_fixed_target() -> None:
  _, variables, _ = program()
  model = cases.build(removable=True, target='fixed')
  hp = set_hp(variables['hp'], aux_weight=.5, aux_every=.25, aux_target=2.5)
  (_, taps), moved = jax.jit(lambda v: model.apply(
    v, TOKENS, train=True, taps=True, mutable=['norm_state', 'losses']))({**variables, 'hp': hp})

  def spread(stream):
    return np.mean((cases.moments(stream)[1] - 2.5) ** 2)

  value, = jax.tree.leaves(moved['losses'])
  every = sum(map(spread, (*taps['resid_pre'], *taps['resid_mid'])))
  np.testing.assert_allclose(value, .5 * spread(taps['resid_final']) + .25 * every, rtol=1e-4)


@pytest.mark.parametrize('norm', removable.KINDS)
def test_start_values(norm) -> None:
  model = cases.build(removable=True, norm=norm)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, train=True))
  assert set(shapes) == {'params', 'hp', 'norm_state'}
  rest = jax.jit(lambda: {k: v for k, v in model.init(jax.random.key(0), TOKENS).items()
                          if k != 'params'})()
  hp, state = cases.flat(rest['hp']), cases.flat(rest['norm_state'])
  assert {path: (leaf.shape, leaf.dtype.name, leaf.ravel()[0]) for path, leaf in hp.items()} == {
    **{f'h/event_{path}': ((2,), 'int32', NEVER) for path in ('qk', 'v', 'mlp')},
    'event_final': ((), 'int32', NEVER), 'calls_per_step': ((), 'int32', 1),
    'enabled': ((), 'int32', 1), 'taper': ((), 'float32', 0),
    'ema': ((), 'float32', np.float32(.9)),
    'sigma_factor': ((), 'float32', 1), 'aux_weight': ((), 'float32', 0),
    'aux_every': ((), 'float32', 0), 'aux_target': ((), 'float32', 1)}
  assert {path: (leaf.shape, leaf.dtype.name, leaf.ravel()[0]) for path, leaf in state.items()} == {
    **{f'h/sigma_{path}': ((2,), 'float32', 1) for path in ('qk', 'v', 'mlp')},
    'sigma_final': ((), 'float32', 1), 'calls': ((), 'int32', 0)}


def test_a_removable_site_of_another_module() -> None:
  """What `removable` makes is in the module that calls it; without `update` nothing moves."""
  class Host(nn.Module):
    update: bool

    @nn.compact
    def __call__(self, x):
      norm = removable.Norm('rms', 1e-5, 12, name='norm')
      (y,), sigma = removable.removable(self, norm, x, ('in',), control(1, first=False),
                                        self.update, 'rms', 'rest', 'own_event')
      return y, sigma

  variables = Host(False).init(jax.random.key(0), X)
  assert set(cases.flat(variables)) == {'params/norm/scale', 'hp/event_in', 'norm_state/sigma_in'}
  for update, expected in ((False, 1), (True, .9 + .1 * np.sqrt(
    (cases.moments(X, 'rms')[1][:, 1:] ** 2).mean()))):
    _, moved = Host(update).apply(variables, X, mutable=['norm_state'])
    np.testing.assert_allclose(moved['norm_state']['sigma_in'], expected, rtol=1e-5)
