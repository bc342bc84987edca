"""Batch norm in populations: a member's bits, its running statistics, checkpoints, evaluation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.device import DeviceFeed
from model_lib.training import loop
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.cohort import ModelSpec
from model_lib.training.metrics import MetricsFile
from tests.model_lib.engine import HELD_OUT, Engine, members

pytestmark = pytest.mark.usefixtures('unoptimized')

MODELS = {
  'mlp': ModelSpec('mlp', {'widths': (16,), 'norm': 'batch'}),
  'cnn': ModelSpec('cnn', {'widths': (4,), 'blocks': 1}),
}
STEPS, K = 6, 3


@pytest.fixture(scope='module', params=['mlp', pytest.param('cnn', marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
  """(engine of two members, both trained together)."""
  engine = Engine(MODELS[request.param], chunk=2, k=K, steps=STEPS, streams=2,
                  evaluates=request.param == 'mlp')
  return engine, engine.train(members(2), tmp_path_factory.mktemp(request.param))


def test_a_member_alone(trained, tmp_path) -> None:
  """All its bits, the running statistics among them."""
  engine, together = trained
  alone = Engine(engine.population.cohort.model, chunk=1, k=K, steps=STEPS, streams=2,
                 evaluates=False)
  own = alone.train([members(2)[1]], tmp_path)
  assert any('batch_stats' in name for name in own.leaves(0))
  assert own.leaves(0) == together.leaves(1) != together.leaves(0)
  assert own.records(0) == together.records(1) != together.records(0)


def test_the_statistics_go_through_a_checkpoint(trained, tmp_path) -> None:
  """Three steps, saved, restored, three more: the bits of six."""
  engine, together = trained
  population, plan, runs = engine.population, engine.plan, members(2)
  cohort = population.cohort
  population.cohort = dataclasses.replace(cohort, steps=K)
  try:
    half = engine.train(runs, tmp_path)
  finally:
    population.cohort = dataclasses.replace(cohort, members=runs)
  checkpoints = Checkpoints(tmp_path / 'steps')
  try:
    checkpoints.save(K, half.state, {})
    step, state, _ = checkpoints.restore(population.abstract(2), lambda position: None)
  finally:
    checkpoints.close()
  assert step == K
  order, routes = engine.routes(runs)
  metrics = MetricsFile(tmp_path / 'rest.jsonl')
  try:
    chunks = loop.train(population, plan, engine.call, DeviceFeed(engine.arrays, order), routes,
                        [state], K, run='arms', first_member=0, metrics=metrics, log_every=1)
  finally:
    metrics.close()
  for found, expected, before in zip(*map(jax.tree.leaves, (chunks[0], together.state, half.state)),
                                     strict=True):
    np.testing.assert_array_equal(found, expected)
  moved = jax.tree.map(lambda a, b: np.any(a != b), half.state.collections,
                       together.state.collections)
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize('trained', ['mlp'], indirect=True)
def test_evaluation_uses_the_running_statistics(trained) -> None:
  """The means of the engine are those of the model at inference with the state's statistics."""
  engine, together = trained
  model, task = engine.population.model, engine.task
  state = jax.tree.map(lambda leaf: leaf[0], together.state)
  inputs, targets = task.batch(engine.arrays, jnp.asarray(HELD_OUT[0]), 0)

  @jax.jit
  def loss(statistics):
    variables = {'params': state.params, 'hp': state.hp['model'], **statistics}
    return jnp.mean(task.losses(model.apply(variables, inputs, train=False), targets)[0])

  own = loss(state.collections)
  np.testing.assert_allclose(own, together.evaluated[0]['loss'][0], rtol=1e-5)
  # The statistics of a model that has not trained give another loss.
  fresh = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.full_like(leaf, float(path[-1].key == 'var')), state.collections)
  assert abs(float(own - loss(fresh))) > 1e-3
