"""A member's bits under lax.map depend on nothing but the member."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.models.activation_layer import consumer_gains
from model_lib.models.hyper import set_hp
from model_lib.training.cohort import ModelSpec
from model_lib.training.tasks import Classification
from tests.model_lib import model_cases as cases
from tests.model_lib.engine import MODELS, SPLITS, STEPS, Engine, images, members

N = 32
STREAMS = 6  # members(32) has six pairs of data seed and split


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """reference(name): (model, its engine, 32 members trained as one chunk)."""
  @functools.cache
  def train(name: str):
    engine = Engine(MODELS[name], chunk=N, streams=STREAMS)
    return MODELS[name], engine, engine.train(members(N), tmp_path_factory.mktemp(name))
  return train


@pytest.mark.parametrize('name', ['mlp', 'vit'])
def test_alone_and_together(reference, tmp_path, name):
  """State, recorded metrics and evaluation of each member, alone and among 32."""
  model, _, together = reference(name)
  alone = Engine(model, chunk=1)
  chosen = range(N) if model.name == 'mlp' else range(0, N, 8)
  for i in chosen:
    member = members(N)[i]
    own = alone.train([member], tmp_path)
    leaves, records, means = own.bits(0)
    assert len(leaves) > 10 and len(records) == STEPS and len(means) == 2
    assert (leaves, records, means) == together.bits(i), f'member {i}'
  # Another member is another run in each of the three.
  for own, other in zip(together.bits(0), together.bits(1), strict=True):
    assert own != other


@pytest.mark.parametrize('name, chunk, lanes', [
    pytest.param('mlp', 7, 1, id='mlp-one-after-the-other', marks=pytest.mark.slow),
    pytest.param('mlp', 5, 3, id='mlp-side-by-side'),
    pytest.param('vit', 7, 2, id='vit-side-by-side'),
    pytest.param('vit', 7, 1, id='vit-one-after-the-other', marks=pytest.mark.slow)])
def test_chunks(reference, tmp_path, name, chunk, lanes):
  """Several chunks and a padded one: neither their size nor their order in time changes a bit."""
  model, _, together = reference(name)
  evaluates = model.name == 'mlp'
  chunked = Engine(model, chunk=chunk, streams=STREAMS, evaluates=evaluates, lanes=lanes).train(
      members(N), tmp_path)
  assert chunked.lines == together.lines
  for i in range(N):
    assert chunked.leaves(i) == together.leaves(i)
    assert chunked.means(i) == (together.means(i) if evaluates else [])


@pytest.mark.parametrize('k', [1, 7, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', ['mlp', pytest.param('vit', marks=pytest.mark.slow)])
def test_steps_per_call(reference, tmp_path, name, k):
  """K = 7 ends with a short call; K = 1 and 50 are the extremes. Compared with K = 10."""
  model, _, together = reference(name)
  other = Engine(model, chunk=N, k=k, streams=STREAMS, evaluates=False).train(
      members(N), tmp_path)
  assert other.lines == together.lines
  for i in range(N):
    assert other.leaves(i) == together.leaves(i)


@pytest.mark.parametrize('name', ['mlp', 'vit'])
def test_order_of_members(reference, tmp_path, name):
  model, engine, together = reference(name)
  order = np.random.default_rng(0).permutation(N)
  runs = members(N)
  shuffled = engine.train([runs[i] for i in order], tmp_path)
  for place, i in enumerate(order):
    assert shuffled.bits(place) == together.bits(i)
  assert shuffled.bits(0) != together.bits(0)


@pytest.mark.parametrize('name', ['mlp', 'vit'])
def test_training_learns(reference, name):
  _, _, together = reference(name)
  losses = together.losses()
  assert losses[:, -1].mean() < 0.8 * losses[:, 0].mean()


@pytest.mark.parametrize('name', [
    pytest.param('mlp', marks=pytest.mark.slow), pytest.param('vit', marks=pytest.mark.slow), 'gpt'])
def test_one_program_trains_members_with_different_numbers(name) -> None:
  """lax.map over (hp, key): init, loss and gradient; a member has the bits it has alone."""
  model = models.build(name, activation='switch(relu, tanh)', **cases.SIZES[name])
  x = cases.inputs(name)
  gains = consumer_gains('switch(relu, tanh)')
  hp = set_hp(cases.numbers(model, x)['hp'], activation_code=np.array([0, 1, 1]),
              init_gain=np.array([*gains, 0.5]))
  keys = jnp.stack([jax.random.key(0)] * 3)

  def member(hp, key):
    _, state = model.apply({'hp': hp}, x, train=False, rngs={'params': key},
                           mutable=['params', 'batch_stats'])

    def loss(params):
      return jnp.mean(jnp.square(model.apply({'hp': hp, 'params': params}, x, train=True)))
    return jax.value_and_grad(loss)(state['params'])

  population = jax.jit(lambda members: jax.lax.map(lambda args: member(*args), members))
  losses, grads = population((hp, keys))
  assert len(set(np.asarray(losses).tolist())) == 3
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  alone = population(jax.tree.map(lambda leaf: leaf[1:2], (hp, keys)))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), (losses, grads), alone)


def test_batch_norm_keeps_its_statistics(tmp_path):
  """In the state, moved by training, the same bits alone and among seven."""
  model = ModelSpec('mlp', {'widths': (16, 16), 'norm': 'pre:batch'})
  together = Engine(model, chunk=4, streams=6, evaluates=False).train(members(7), tmp_path)
  alone = Engine(model, chunk=1, evaluates=False)
  for i in (0, 3, 6):
    own = alone.train([members(7)[i]], tmp_path)
    assert own.bits(0) == together.bits(i)
    assert ".collections['batch_stats']['norm_hidden_0']['mean']" in own.leaves(0)
  stats = together.state.collections['batch_stats']['norm_hidden_0']
  assert np.abs(stats['mean']).max(1).min() > 0.1 and np.abs(stats['var'] - 1).max(1).min() > 0.1
  # The running mean is that of what the layer saw: about W x + b over the training images.
  task = Classification(127.0, 70.0)
  x = np.asarray(task.batch(images(), SPLITS[0], jnp.asarray(0))[0]).reshape(300, -1)
  layer = together.state.params['hidden_0']
  seen = (x @ layer['kernel'][0] + layer['bias'][0]).mean(0)
  assert np.abs(stats['mean'][0] - seen).max() < 0.3 * np.abs(seen).max()
  assert np.abs(stats['mean'][0] - seen[::-1]).max() > 0.3 * np.abs(seen).max()
