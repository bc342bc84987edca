"""One step of every optimizer with the factors of a row, and every way to decay, by hand."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model_lib.errors import UserError
from model_lib.models.parametrized import BRANCH, Parametrized
from model_lib.parametrization import optax_wiring
from model_lib.parametrization.rules import FAMILIES
from model_lib.training import optimizers
from model_lib.training import state as state_lib
from model_lib.training.cohort import Member, OptimizerSpec

pytestmark = pytest.mark.usefixtures('unoptimized')
RATE = 0.1
X = np.random.default_rng(0).standard_normal((16, 5)).astype(np.float32)


class Net(nn.Module):
  """Two layers and a scanned stack, with biases whose start is not 0."""

  n: int
  depth: int = 2

  @nn.compact
  def __call__(self, x, train: bool = False):
    normal = nn.initializers.normal(0.3)
    x = jnp.tanh(nn.Dense(self.n, bias_init=normal, name='stem')(x))
    kernels = self.param('stack', lambda key: {'kernel': jax.random.normal(
      key, (self.depth, self.n, self.n)) * self.n ** -0.5})
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, kernels['kernel'])
    return nn.Dense(3, bias_init=normal, name='head')(x)


class Squares:
  """losses = the sum of squares of the outputs minus one."""

  def losses(self, outputs, targets):
    return jnp.square(outputs - 1).sum(-1), {}


def stepped(spec: OptimizerSpec, steps: int = 1, weight_decay: float = 0.0, x=X,
            row: str = 'depth_mup(base_depth=2)', **hp):
  """(model, states before and after each step); width 4 and depth 2 times the base's."""
  model = Parametrized(Net(32, 4), Net(8), Net(16), row, optimizers.family(spec), stack='^stack/')
  tx = state_lib.direction(spec, model.labels(x, train=False))
  defaults = jax.device_get(model.init(jax.random.key(0), x, train=False)['hp'])
  member = Member({}, 0, 0, 0, {'learning_rate': RATE, 'weight_decay': weight_decay, **hp})
  own = jax.tree.map(lambda v: v[0], state_lib.stack_hp([member], defaults))
  states = [state_lib.create(model, tx, x, own, np.zeros(2, np.uint32))]
  step = jax.jit(lambda state: state_lib.train_step(
    model, spec, tx, state_lib.schedule(spec, 10), Squares(), state, x, x)[0])
  for _ in range(steps):
    states.append(step(states[-1]))
  return model, states


def flat(tree) -> dict[str, np.ndarray]:
  return {'/'.join(k.key for k in path): np.asarray(leaf, np.float64)
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def gradient(model, state, x=X):
  def loss(params):
    outputs = model.apply({'params': params, 'hp': state.hp['model']}, x, train=True)
    return jnp.square(outputs - 1).sum(-1).mean()

  return flat(jax.grad(loss)(state.params))


def rms(x):
  return np.sqrt((x ** 2).mean())


EPS = 0.05  # as large as the gradients, so that its factor counts
# The first update's direction, given w, g and the factor of eps.
DIRECTIONS = {
  'adam': lambda w, g, f: g / (np.abs(g) + EPS * f),
  'sgd': lambda w, g, f: g,
  'lion': lambda w, g, f: np.sign(g),
  'lamb': lambda w, g, f: (u := g / (np.abs(g) + EPS * f)) * rms(w) / rms(u),
  'adafactor': lambda w, g, f: (u := g / np.sqrt(g ** 2 + (EPS * f) ** 2)) / max(1, rms(u)),
}


@pytest.mark.parametrize('spec', [
  *(OptimizerSpec(name, eps=EPS) for name in DIRECTIONS),
  OptimizerSpec('sgd', momentum=0.9),
  OptimizerSpec('adafactor', eps=EPS, multiply_by_parameter_scale=True),
], ids=optimizers.family)
def test_the_first_step_by_hand(spec) -> None:
  model, (before, after) = stepped(spec)
  factors = model.factors(X, train=False)
  grads, start, end = gradient(model, before), flat(before.params), flat(after.params)
  assert len({f.learning_rate for f in factors.values()}) > 1
  for path, g in grads.items():
    f, w = factors[path], start[path]
    update = DIRECTIONS[spec.name](w, g, f.eps)
    if spec.multiply_by_parameter_scale:
      update = update * max(rms(w), 1e-3)
    np.testing.assert_allclose(w - end[path], RATE * f.learning_rate * update, rtol=2e-3,
                               atol=2e-7, err_msg=path)


def test_muon_orthogonalizes_each_hidden_matrix_and_is_adam_elsewhere() -> None:
  spec = OptimizerSpec('muon', momentum=0.9, eps=1e-12)
  model, (before, after) = stepped(spec)
  factors, grads = model.factors(X, train=False), gradient(model, before)
  moves = {path: (w - flat(after.params)[path]) / RATE / factors[path].learning_rate
           for path, w in flat(before.params).items()}
  for path, u in moves.items():
    if path != 'stack/kernel':
      np.testing.assert_allclose(u, np.sign(grads[path]), rtol=1e-3, err_msg=path)
  for u, g in zip(moves['stack/kernel'], grads['stack/kernel'], strict=True):
    left, singular, right = np.linalg.svd(g)
    # Newton and Schulz bring what is not small near 1; the gradient of 16 examples has rank 16.
    kept = singular > 0.1 * singular[0]
    found = np.diag(left.T @ u @ right.T)[kept]
    assert kept.sum() >= 4 and (found > 0.5).all() and (found < 1.5).all(), found
  with pytest.raises(UserError, match="'muon' is for hidden kernels.*give both"):
    state_lib.direction(spec)


def test_muon_treats_a_convolution_as_the_matrix_that_it_is() -> None:
  class Conv(nn.Module):
    n: int

    @nn.compact
    def __call__(self, x):
      return nn.Conv(self.n, (2, 2), name='b')(nn.Conv(self.n, (2, 2), name='a')(x))

  x = np.zeros((1, 4, 4, 2), np.float32)
  model = Parametrized(Conv(8), Conv(4), Conv(6), 'mup', 'muon')
  params = model.init(jax.random.key(0), x)['params']
  tx = optimizers.rule(OptimizerSpec('muon', eps=1e-12), model.labels(x))
  updates, _ = tx.update(params, tx.init(params), params)
  singular = np.linalg.svd(np.reshape(updates['b']['kernel'], (-1, 8)), compute_uv=False)
  assert (singular > 0.5).all() and (singular < 1.5).all()


def test_the_norm_for_clipping_is_that_of_the_gradients_themselves() -> None:
  for eps in (1e-3, 1.0):  # Adam's eps has factors, which scale what Adam gets
    spec = OptimizerSpec('adam', eps=eps, clip=0.01)
    model, (before, after) = stepped(spec)
    grads, factors = gradient(model, before), model.factors(X, train=False)
    norm = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
    assert norm > 1
    for path, w in flat(before.params).items():
      g = grads[path] * 0.01 / norm
      np.testing.assert_allclose(
        w - flat(after.params)[path],
        RATE * factors[path].learning_rate * g / (np.abs(g) + eps * factors[path].eps), rtol=5e-3,
        atol=2e-7)


@pytest.mark.parametrize('decay', ['coupled', 'compensated', 'independent'])
def test_each_way_to_decay(decay) -> None:
  """The difference to a run without decay; a half of the rate by the schedule."""
  spec = OptimizerSpec('sgd', decay=decay, warmup=0.2)
  model, (before, plain) = stepped(spec)
  decayed = stepped(spec, weight_decay=0.25)[1][1]
  for path, f in model.factors(X, train=False).items():
    w = flat(before.params)[path]
    k = {'coupled': RATE * f.learning_rate * (f.decay != 0),
         'compensated': RATE * f.learning_rate * f.decay,
         'independent': float(f.decay != 0)}[decay]
    np.testing.assert_allclose(flat(plain.params)[path] - flat(decayed.params)[path],
                               0.5 * k * 0.25 * w, rtol=1e-3, atol=1e-7, err_msg=path)
  assert any(f.decay == 0 for f in model.factors(X, train=False).values())


WIRED = {
  'adam': (OptimizerSpec('adam', eps=EPS, clip=2.0, warmup=0.5),
           lambda eps: optax.scale_by_adam(eps=EPS * eps)),
  'momentum': (OptimizerSpec('sgd', momentum=0.9, clip=2.0, decay='coupled'),
               lambda eps: optax.trace(0.9))}


@pytest.mark.parametrize('name', WIRED)
def test_a_loop_of_the_user_trains_as_the_engine_does(name) -> None:
  """`optax_wiring` against `train_step` under mup, and with one wrong factor, which is seen."""
  spec, make = WIRED[name]
  steps, weight_decay = 6, 0.25
  model, states = stepped(spec, steps, weight_decay, row='mup')
  factors = model.factors(X, train=False)

  def trained(factors, clip=spec.clip):
    tx = optax_wiring.optimizer(make, factors, RATE, schedule=state_lib.schedule(spec, 10),
                                weight_decay=weight_decay, decay=spec.decay, clip=clip)

    def loss(params):
      outputs = model.apply({'params': params, 'hp': states[0].hp['model']}, X, train=True)
      return jnp.square(outputs - 1).sum(-1).mean()

    def step(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    params = states[0].params
    run = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), None, steps)[0][0])
    return flat(run())

  def furthest(found):
    return max(np.abs(w - flat(states[-1].params)[path]).max() for path, w in found.items())

  assert furthest(flat(states[0].params)) > 0.1
  assert furthest(trained(factors)) < 2e-5
  fields = ['learning_rate', 'decay', *(['eps'] if spec.name == 'adam' else [])]
  for field in fields:
    path = next(path for path, f in factors.items() if getattr(f, field) != 1)
    wrong = {**factors, path: dataclasses.replace(factors[path], **{field: 1.0})}
    assert furthest(trained(wrong)) > 1e-3, (path, field)
  assert furthest(trained(factors, clip=0.0)) > 1e-3


def test_independent_decay_needs_no_factors_and_an_unknown_one_is_refused() -> None:
  spec = OptimizerSpec('sgd', decay='independent')
  net = Net(8)
  tx = state_lib.direction(spec)
  hp = {'optimizer': {'learning_rate': jnp.float32(RATE), 'weight_decay': jnp.float32(0.25)},
        'model': {}}
  state = state_lib.create(net, tx, X, hp, np.zeros(2, np.uint32))
  still = dataclasses.replace(spec, trained=('head',))
  moved, _, _ = state_lib.train_step(net, spec, tx, lambda step: 1.0, Squares(), state, X, X)
  kept, _, _ = state_lib.train_step(net, still, tx, lambda step: 1.0, Squares(), state, X, X)
  def loss(params):
    return jnp.square(net.apply({'params': params}, X) - 1).sum(-1).mean()

  grads = jax.grad(loss)(state.params)
  expected = jax.tree.map(lambda w, g: w - RATE * g - 0.25 * w, state.params, grads)
  for path, w in flat(moved.params).items():
    np.testing.assert_allclose(w, flat(expected)[path], rtol=1e-4, atol=1e-6)
    if not path.startswith('head'):
      np.testing.assert_array_equal(flat(kept.params)[path], flat(state.params)[path])
  with pytest.raises(UserError, match="unknown decay 'independant'; nearest: 'independent'"):
    state_lib.direction(OptimizerSpec(decay='independant'))


def test_a_diverged_run_is_masked_and_parts_of_a_batch_are_averaged() -> None:
  spec = OptimizerSpec('lamb', clip=1.0)
  _, whole = stepped(spec)
  _, parts = stepped(dataclasses.replace(spec, micro_batches=2))
  for path, w in flat(whole[1].params).items():
    np.testing.assert_allclose(flat(parts[1].params)[path], w, rtol=1e-3, atol=1e-5)
  _, states = stepped(spec, steps=3, **{f'{BRANCH}/multiplier/head/kernel': np.inf})
  assert states[-1].diverged_step == 0
  for path, w in flat(states[-1].params).items():
    np.testing.assert_array_equal(w, flat(states[0].params)[path])


def test_every_optimizer_has_a_family() -> None:
  specs = [OptimizerSpec(name) for name in optimizers.NAMES]
  specs += [OptimizerSpec('sgd', momentum=0.9),
            OptimizerSpec('adafactor', multiply_by_parameter_scale=True)]
  assert {optimizers.family(spec) for spec in specs} == set(FAMILIES) - {'sign'}
  with pytest.raises(UserError, match="'adamw' is unknown; there are: adam, sgd, lion"):
    state_lib.direction(OptimizerSpec('adamw'))
