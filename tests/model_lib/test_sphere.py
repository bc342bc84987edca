"""nGPT's spheres: which vectors lie on them, at the start, in training, and after a resume."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.device import DeviceFeed
from model_lib import models
from model_lib.errors import UserError
from model_lib.models.gpt import GPT
from model_lib.models.sphere import project
from model_lib.training import loop
from model_lib.training import state as state_lib
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.cohort import ModelSpec, OptimizerSpec
from model_lib.training.metrics import MetricsFile
from model_lib.training.population import Population
from model_lib.training.tasks import NextToken
from tests.model_lib import model_cases as cases
from tests.model_lib.engine import Engine, members
from tests.model_lib.norm_cases import compiled

SIZE = cases.SIZES['gpt']
SPHERE = {**SIZE, 'norm': 'ngpt', 'parametrization': 'ngpt', 'activation': 'relu'}
STEPS, K = 5, 3


def off_sphere(params) -> float:
  """Largest distance of a vector's length from 1; params of one run or, in front, of members."""
  lengths = []
  for path, leaf in cases.flat(params).items():
    if path.endswith(('table', 'out/kernel', 'stem/kernel')):
      lengths.append(np.linalg.norm(leaf, axis=-1))
    elif path.endswith('kernel'):
      lengths.append(np.linalg.norm(leaf, axis=-2))
  return max(float(np.abs(length - 1).max()) for length in lengths)


@pytest.mark.parametrize('name', ['gpt', 'vit'])
def test_every_vector_along_the_stream_is_projected(name) -> None:
  """All matrices; other leaves stay, and a projection of a projection changes nothing."""
  model = models.build(name, **{**cases.SIZES[name], 'activation': 'swiglu', 'norm': 'ngpt',
                                'parametrization': 'ngpt'})
  params = cases.numbers(model, cases.inputs(name))['params']
  projected = model.projection()(params)
  assert off_sphere(projected) < 1e-6 < 0.1 < off_sphere(params)
  before, after = cases.flat(params), cases.flat(projected)
  dim = cases.SIZES[name]['dim']
  for path, leaf in after.items():
    if not path.endswith(('kernel', 'table')):
      np.testing.assert_array_equal(leaf, before[path])
      continue
    along = -1 if path.endswith(('table', 'out/kernel', 'stem/kernel')) else 0
    assert leaf.shape[along] == dim, path  # the axis of the stream
    expected = before[path] / np.linalg.norm(before[path], axis=along, keepdims=True)
    np.testing.assert_allclose(leaf, expected, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), projected,
               project(projected))


def test_only_the_placement_has_spheres() -> None:
  for name, sizes in cases.SIZES.items():
    assert state_lib.projection(models.build(name, **sizes)) is None
  assert state_lib.projection(models.build('gpt', **SPHERE)) is project


def _stepper(model):
  """(state, tokens) -> the state after one step of Adam."""
  spec = OptimizerSpec()
  return lambda state, x: state_lib.train_step(
    model, spec, state_lib.direction(spec), lambda step: jnp.float32(1.0), NextToken(), state, x,
    x)[0]


def test_other_models_train_by_the_program_they_had(monkeypatch) -> None:
  """Without the placement all is traced as if no model had a projection."""
  x = np.asarray(cases.inputs('gpt'))

  def programs():
    found = []
    for more in ({}, {'norm': 'ngpt', 'parametrization': 'ngpt'}):
      model = models.build('gpt', **{**SIZE, **more})
      hp = {'optimizer': {'learning_rate': np.float32(0.1), 'weight_decay': np.float32(0)},
            'model': jax.eval_shape(lambda model=model: model.init(
              jax.random.key(0), x, train=False)).get('hp', {})}

      def run(hp, key, model=model):
        state = state_lib.create(model, state_lib.direction(OptimizerSpec()), x, hp, key)
        return _stepper(model)(state, x)

      text = str(jax.make_jaxpr(run)(hp, np.zeros(2, np.uint32)))
      found.append(re.sub(r' at 0x\w+', '', text))  # where functions lie in memory
    return found

  plain, sphere = programs()
  monkeypatch.delattr(GPT, 'projection')
  without = programs()
  assert plain == without[0] and sphere != without[1]


# In the engine.


@pytest.fixture(scope='module')
def quickly_compiled():
  """Optimizing these programs takes most of the time, and they run for milliseconds."""
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module')
def trained(quickly_compiled, tmp_path_factory):
  """(engine, two members that train on made-up text, what they end with)."""
  text = np.random.default_rng(0).integers(0, SIZE['vocab'], (400, SIZE['length'] + 1))
  engine = Engine(ModelSpec('gpt', SPHERE), chunk=2, k=K, steps=STEPS, streams=2,
                  arrays={'inputs': text.astype(np.int32)}, task=NextToken(), evaluates=False)
  runs = [dataclasses.replace(run, hp={'learning_rate': rate})
          for run, rate in zip(members(2), (0.01, 0.1), strict=True)]
  return engine, runs, engine.train(runs, tmp_path_factory.mktemp('spheres'))


def test_every_step_ends_on_the_spheres(trained, monkeypatch) -> None:
  """As the start does; a step without the projection leaves them. A diverged run keeps its bits."""
  engine, runs, done = trained
  start = jax.tree.map(np.asarray, engine.population.initial(runs))
  assert off_sphere(start.params) < 1e-5 and off_sphere(done.state.params) < 1e-5
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start.params, done.state.params)
  assert min(jax.tree.leaves(moved)) > 1e-4

  model = engine.population.model
  state = jax.tree.map(lambda leaf: leaf[1], done.state)
  x = np.asarray(cases.inputs('gpt'))

  def plain(state):
    with monkeypatch.context() as patch:
      patch.delattr(GPT, 'projection')
      return _stepper(model)(state, x)

  left, masked = compiled(lambda state, diverged: (plain(state), _stepper(model)(diverged, x)))(
    state, state.replace(diverged_step=np.int32(2)))
  assert off_sphere(left.params) > 1e-3
  jax.tree.map(np.testing.assert_array_equal, masked.params, state.params)


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(trained, tmp_path) -> None:
  """Three steps, saved, restored, two more."""
  engine, runs, done = trained
  population, plan = engine.population, engine.plan
  cohort = population.cohort
  population.cohort = dataclasses.replace(cohort, steps=K)
  try:
    half = engine.train(runs, tmp_path)
  finally:
    population.cohort = dataclasses.replace(cohort, members=tuple(runs))
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
  jax.tree.map(np.testing.assert_array_equal, chunks[0], done.state)
  assert half.leaves(0) != done.leaves(0) != done.leaves(1)


def test_a_weight_decay_is_refused(trained) -> None:
  engine, runs, _ = trained
  population = engine.population
  decayed = dataclasses.replace(runs[0], hp={'learning_rate': 0.1, 'weight_decay': 0.01})
  with pytest.raises(UserError, match='weight decay with ngpt'):
    Population(dataclasses.replace(population.cohort, members=(decayed,)), population.model,
               population.task, engine.arrays, 'map')


@pytest.mark.slow
def test_under_vmap_too(trained, tmp_path) -> None:
  engine, runs, done = trained
  other = Engine(ModelSpec('gpt', SPHERE), chunk=2, k=K, steps=STEPS, streams=2,
                 arrays=engine.arrays, task=NextToken(), batching='vmap', evaluates=False)
  found = other.train(runs, tmp_path)
  assert off_sphere(found.state.params) < 1e-5
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
               found.state.params, done.state.params)
