"""Optimizers and schedules against numpy and optax; swept numbers by name and by path."""
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model_lib.errors import UserError
from model_lib.training import state as state_lib
from model_lib.training.cohort import ModelSpec, OptimizerSpec
from tests.model_lib.engine import MLP, Engine, members

pytestmark = pytest.mark.usefixtures('unoptimized')

# Schedules.


def factor(spec: OptimizerSpec, steps: int) -> list[float]:
  f = state_lib.schedule(spec, steps)
  return [float(f(s)) for s in range(steps)]


def closed_form(s: int, steps: int, warmup: int, cosine: bool) -> float:
  if s < warmup:
    return (s + 1) / warmup
  return 0.5 * (1 + np.cos(np.pi * (s - warmup) / (steps - warmup))) if cosine else 1.0


@pytest.mark.parametrize('name', ['constant', 'cosine'])
@pytest.mark.parametrize('warmup, steps', [(0, 20), (1, 20), (2, 20), (7, 20)])
def test_schedules(name, warmup, steps):
  found = factor(OptimizerSpec(schedule=name, warmup=warmup / steps), steps)
  expected = [closed_form(s, steps, warmup, name == 'cosine') for s in range(steps)]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
  late = [closed_form(s, steps, warmup + 1, name == 'cosine') for s in range(steps)]
  if warmup or name == 'cosine':
    assert np.abs(np.subtract(found, late)).max() > 1e-3


@pytest.mark.parametrize('spec, part', [
  (OptimizerSpec(schedule='cosin'), "schedule 'cosin' is unknown; there are: constant, cosine"),
  (OptimizerSpec('adamw'), "optimizer 'adamw' is unknown; there are: adam, sgd"),
])
def test_unknown_names(spec, part):
  with pytest.raises(UserError, match=part):
    state_lib.schedule(spec, 10)
    state_lib.direction(spec)


# Optimizers, through the engine's own program.

SMALL = ModelSpec('mlp', {'widths': (8,)})


def by_hand(engine: Engine, member, update, steps: int):
  """Parameters after `steps` of p, memory = update(p, gradient, memory, step) in Python."""
  population, task = engine.population, engine.task
  arrays = jax.device_put(engine.arrays)
  order, _ = engine.routes([member])
  index = order.block(0, steps)[0]
  start = population.initial([member])
  params = jax.tree.map(lambda v: np.asarray(v[0], np.float64), start.params)

  @jax.jit
  def gradient(params, index_b):
    inputs, targets = task.batch(arrays, index_b, jnp.asarray(member.labels))
    def loss(params):
      logits = population.model.apply({'params': params}, inputs, train=True)
      return task.losses(logits, targets)[0].mean()
    return jax.grad(loss)(params)

  memory = None
  for s in range(steps):
    g = gradient(jax.tree.map(np.float32, params), index[s])
    g = jax.tree.map(lambda v: np.asarray(v, np.float64), g)
    params, memory = update(params, g, memory, s)
  return params


def difference(found, expected) -> float:
  return max(float(np.abs(a[0] - b).max())
             for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))


def test_sgd_with_momentum_and_decay(tmp_path):
  """v <- g + momentum v;  p <- p - rate factor(s) (v + decay p)."""
  steps = 12
  spec = OptimizerSpec('sgd', momentum=0.9, schedule='cosine', warmup=0.25)
  engine = Engine(SMALL, chunk=1, steps=steps, optimizer=spec, evaluates=False)
  member = dataclasses.replace(members(1)[0], hp={'learning_rate': 0.05, 'weight_decay': 0.1})

  def update(momentum, decay):
    def move(p, g, v, s):
      rate = 0.05 * closed_form(s, steps, 3, True)
      v = g if v is None else jax.tree.map(lambda g, v: g + momentum * v, g, v)
      return jax.tree.map(lambda p, v: p - rate * (v + decay * p), p, v), v
    return move

  found = engine.train([member], tmp_path).state.params
  assert difference(found, by_hand(engine, member, update(0.9, 0.1), steps)) < 2e-6
  assert difference(found, by_hand(engine, member, update(0.8, 0.1), steps)) > 1e-3
  assert difference(found, by_hand(engine, member, update(0.9, 0.0), steps)) > 1e-3


def test_adam_equals_adamw(tmp_path):
  """optax.adamw with the whole schedule, and Adam's equations written out."""
  steps, rate, decay = 12, 3e-3, 0.1
  spec = OptimizerSpec('adam', b1=0.8, b2=0.95, eps=1e-6, schedule='cosine', warmup=0.25)
  engine = Engine(SMALL, chunk=1, steps=steps, optimizer=spec, evaluates=False)
  member = dataclasses.replace(
      members(1)[0], hp={'learning_rate': rate, 'weight_decay': decay})
  found = engine.train([member], tmp_path).state.params

  def equations(p, g, memory, s):
    m, v = memory or (jax.tree.map(np.zeros_like, g),) * 2
    m = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, g)
    step_rate = rate * closed_form(s, steps, 3, True)

    def move(p, m, v):
      u = m / (1 - 0.8 ** (s + 1)) / (np.sqrt(v / (1 - 0.95 ** (s + 1))) + 1e-6)
      return p - step_rate * (u + decay * p)
    return jax.tree.map(move, p, m, v), (m, v)

  assert difference(found, by_hand(engine, member, equations, steps)) < 5e-6

  def reference(decay):
    tx = optax.adamw(lambda s: rate * engine.population.factor(s), 0.8, 0.95, 1e-6,
                     weight_decay=decay)
    def update(p, g, memory, s):
      p, g = (jax.tree.map(np.float32, t) for t in (p, g))
      updates, memory = tx.update(g, tx.init(p) if memory is None else memory, p)
      return optax.apply_updates(p, updates), memory
    return update

  assert difference(found, by_hand(engine, member, reference(decay), steps)) < 5e-6
  assert difference(found, by_hand(engine, member, reference(0.0), steps)) > 5e-4


# Swept numbers.


def stack(*hps, model=None):
  runs = [dataclasses.replace(m, hp=hp) for m, hp in zip(members(len(hps)), hps, strict=True)]
  model = model or {'hidden_1': {'init_gain': np.float32(1.5)},
                    'head': {'init_gain': np.float32(1.5), 'activation_code': np.int32(0)}}
  return state_lib.stack_hp(runs, model)


def test_by_name_by_path_and_by_default():
  found = stack({'learning_rate': 0.1}, {'learning_rate': 0.2, 'init_gain': 3.0},
                {'learning_rate': 0.3, 'hidden_1/init_gain': 4.0, 'activation_code': 2})
  assert found['optimizer']['learning_rate'].tolist() == np.float32([0.1, 0.2, 0.3]).tolist()
  assert found['optimizer']['weight_decay'].tolist() == [0.0] * 3
  assert found['model']['hidden_1']['init_gain'].tolist() == [1.5, 3.0, 4.0]
  assert found['model']['head']['init_gain'].tolist() == [1.5, 3.0, 1.5]
  code = found['model']['head']['activation_code']
  assert code.tolist() == [0, 0, 2] and code.dtype == np.int32


@pytest.mark.parametrize('hp, part', [
  ({'learning_rate': 1.0, 'init_gian': 1.0},
   "hp name 'init_gian' is read by neither .*; did you mean 'init_gain'\\?"),
  ({'learning_rate': 1.0, 'qqq': 1.0}, 'there are: activation_code, init_gain, learning_rate'),
  ({'weight_decay': 1.0}, 'member 0 of the cohort has no learning_rate'),
])
def test_unknown_swept_numbers(hp, part):
  with pytest.raises(UserError, match=part) as error:
    stack(hp)
  assert '\n' not in str(error.value)


def test_init_gain_acts_on_the_draw():
  """By name on every kernel behind an activation, by path on one; powers of 2 are exact."""
  population = Engine(MLP, chunk=1, evaluates=False).population
  rate = {'learning_rate': 1e-3}
  hps = ({**rate, 'init_gain': 1.0}, {**rate, 'init_gain': 2.0}, {**rate, 'init_gain': 1.0,
         'head/init_gain': 4.0})
  runs = [dataclasses.replace(m, seed=7, hp=hp) for m, hp in zip(members(3), hps)]
  params = population.initial(runs).params
  for name, factors in (('hidden_0', (1, 1)), ('hidden_1', (2, 1)), ('head', (2, 4))):
    one, *others = np.asarray(params[name]['kernel'])
    assert one.std() > 0.05
    for other, times in zip(others, factors, strict=True):
      np.testing.assert_array_equal(other, times * one)


def test_keys_are_those_of_jax():
  """Also for seeds that need both halves of the key, under 64-bit numbers off."""
  runs = [dataclasses.replace(members(1)[0], seed=seed) for seed in (0, 1, 2**31 + 5)]
  for own, run in zip(state_lib.seed_keys(runs), runs, strict=True):
    np.testing.assert_array_equal(own, jax.random.key_data(jax.random.key(np.uint32(run.seed))))
  wide = dataclasses.replace(members(1)[0], seed=2**40 + 3)
  assert state_lib.seed_keys([wide]).tolist() == [[2**8, 3]]
