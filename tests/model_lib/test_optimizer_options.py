"""Options of the optimizer, terms that models sow, and arrays among the swept numbers."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model_lib.errors import UserError
from model_lib.models.hyper import read_hp
from model_lib.training import state as state_lib
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

RATE, DECAY = 0.1, 0.5


class Line(nn.Module):
  """x [B, 3] -> [B, 2], with a penalty on the bias and a count of the training calls."""

  @nn.compact
  def __call__(self, x, train: bool):
    calls = self.variable('norm_state', 'calls', lambda: jnp.zeros((), jnp.int32))
    weights = self.variable('hp', 'weights', lambda: jnp.zeros(2)).value
    if train:
      calls.value = calls.value + 1
    bias = self.param('bias', nn.initializers.ones, (2,))
    self.sow('losses', 'penalty', read_hp(self, 'penalty', 0.0) * jnp.sum(bias * weights))
    return x @ self.param('kernel', nn.initializers.constant(0.5), (3, 2)) + bias[None]


class Squares:
  """losses = the sum of squares of the outputs."""

  def losses(self, outputs, targets):
    return jnp.square(outputs).sum(-1), {}


def stepped(spec, steps=1, batch=4, penalty=0.0, member=None):
  model, tx = Line(), state_lib.direction(spec)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, 3)), jnp.float32)
  defaults = model.init(jax.random.key(0), x, train=False)['hp']
  member = member or Member({}, 0, 0, 0, {
      'learning_rate': RATE, 'weight_decay': DECAY, 'penalty': penalty, 'weights': (1.0, 2.0)})
  hp = jax.tree.map(lambda v: v[0], state_lib.stack_hp([member], jax.device_get(defaults)))
  state = state_lib.create(model, tx, x, hp, np.zeros(2, np.uint32))
  first, details = state, None
  for _ in range(steps):
    state, loss, details = state_lib.train_step(
        model, spec, tx, state_lib.schedule(spec, 10), Squares(), state, x, x)
  return first, state, loss, details(), x


def gradient(params, x):
  return jax.grad(lambda p: jnp.square(x @ p['kernel'] + p['bias'][None]).sum(-1).mean())(params)


SGD = OptimizerSpec('sgd')


def moved(spec, **options):
  first, state, *_, x = stepped(spec, **options)
  return jax.tree.map(lambda a, b: a - b, dict(first.params), dict(state.params)), first, x


def test_the_gradient_is_scaled_down_to_the_largest_norm():
  spec = dataclasses.replace(SGD, clip=0.01)
  step, first, x = moved(spec)
  grads = gradient(dict(first.params), x)
  norm = optax.tree.norm(grads)
  assert norm > 1
  for name, g in grads.items():
    np.testing.assert_allclose(step[name], RATE * (g * 0.01 / norm + DECAY * first.params[name]),
                               rtol=1e-4)


def test_only_kernels_decay():
  step, first, x = moved(dataclasses.replace(SGD, decayed='kernels'))
  grads = gradient(dict(first.params), x)
  np.testing.assert_allclose(step['bias'], RATE * grads['bias'], rtol=1e-5)
  np.testing.assert_allclose(
      step['kernel'], RATE * (grads['kernel'] + DECAY * first.params['kernel']), rtol=1e-5)


def test_only_what_is_trained_moves_and_counts_for_the_norm():
  spec = dataclasses.replace(SGD, trained=('bias',), decayed='kernels', clip=0.01)
  step, first, x = moved(spec)
  np.testing.assert_array_equal(step['kernel'], 0)
  grad = gradient(dict(first.params), x)['bias']
  np.testing.assert_allclose(step['bias'], RATE * 0.01 * grad / np.linalg.norm(grad), rtol=1e-4)


def test_sown_terms_are_added_and_recorded_apart():
  without, first, x = moved(SGD)
  step, *_ = moved(SGD, penalty=3.0)
  np.testing.assert_allclose(step['bias'] - without['bias'], RATE * 3 * np.array([1, 2]),
                             rtol=1e-4)
  np.testing.assert_allclose(step['kernel'], without['kernel'], rtol=1e-6)
  _, _, loss, details, x = stepped(SGD, penalty=3.0)
  np.testing.assert_allclose(details['auxiliary'], 3 * (1 + 2), rtol=1e-6)
  np.testing.assert_allclose(loss, jnp.square(x @ np.full((3, 2), 0.5) + 1).sum(-1).mean(),
                             rtol=1e-5)


def test_micro_batches_average_to_the_batch():
  whole, _, loss, details, _ = stepped(SGD, penalty=3.0)
  _, state, part_loss, part_details, _ = stepped(
      dataclasses.replace(SGD, micro_batches=2), penalty=3.0)
  _, one, *_ = stepped(SGD, penalty=3.0)
  for name in one.params:
    np.testing.assert_allclose(state.params[name], one.params[name], rtol=1e-5)
  np.testing.assert_allclose(part_loss, loss, rtol=1e-6)
  np.testing.assert_allclose(part_details['auxiliary'], details['auxiliary'], rtol=1e-6)
  assert one.collections['norm_state']['calls'] == 1  # each part is a call of the model
  assert state.collections['norm_state']['calls'] == 2


def test_a_batch_must_be_cut_evenly():
  from model_lib.training.population import Population
  from model_lib.training.tasks import NextToken
  cohort = Cohort('c', ModelSpec('mlp'), (Member({}, 0, 0, 0, {}),), 1, 5,
                  OptimizerSpec(micro_batches=2))
  with pytest.raises(UserError, match='c: a batch of 5 cannot be cut into 2'):
    Population(cohort, Line(), NextToken(), {}, 'map')


def test_the_cosine_ends_at_its_share_and_may_be_left_early():
  whole = state_lib.schedule(OptimizerSpec(schedule='cosine', warmup=0.2, final=0.25), 10)
  # Published: min + (1 - min) (1 + cos(pi (s - w) / (S - w))) / 2.
  s = np.arange(2, 10)
  np.testing.assert_allclose([whole(i) for i in s],
                             0.25 + 0.75 * (1 + np.cos(np.pi * (s - 2) / 8)) / 2, rtol=1e-6)
  np.testing.assert_allclose([whole(0), whole(1)], [0.5, 1.0])
  early = state_lib.schedule(OptimizerSpec(schedule='cosine', horizon=20), 10)
  np.testing.assert_allclose(early(10), 0.5, rtol=1e-6)
  assert whole(10) == pytest.approx(0.25)


def test_an_array_among_the_swept_numbers_must_fit():
  _, state, *_ = stepped(SGD)
  np.testing.assert_array_equal(state.hp['model']['weights'], [1, 2])
  wrong = Member({}, 0, 0, 0, {'learning_rate': RATE, 'weights': (1.0, 2.0, 3.0)})
  with pytest.raises(UserError, match=r"'weights' of member 0 has shape \(3,\)"):
    stepped(SGD, member=wrong)


def test_the_fingerprint_knows_new_fields_only_where_they_are_used():
  base = Cohort('c', ModelSpec('mlp'), (Member({}, 0, 0, 0, {}),), 1, 4)
  # That of checkpoints which were written before there were such fields.
  assert base.fingerprint() == (
      '04f54c8afe1ba11b07c41224be2243975cce91ac05e077fbfe9a0fdfd034ff75')
  others = [dataclasses.replace(base, start='cohort:a'), dataclasses.replace(base, fresh=('x',)),
            dataclasses.replace(base, optimizer=OptimizerSpec(clip=1.0)),
            dataclasses.replace(base, optimizer=OptimizerSpec(micro_batches=2)),
            dataclasses.replace(base, members=(dataclasses.replace(base.members[0], start=1),))]
  assert len({c.fingerprint() for c in (base, *others)}) == 6
