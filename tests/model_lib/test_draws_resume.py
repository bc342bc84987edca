"""A population whose activations draw: stopped and started again, it ends with the same bits.

The draws of step s are those of fold_in(key, s), and the state carries both: nothing else is saved.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.device import DeviceFeed
from model_lib.training import loop
from model_lib.training import state as state_lib
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.cohort import ModelSpec
from model_lib.training.metrics import MetricsFile
from tests.model_lib.engine import Engine, members

pytestmark = pytest.mark.usefixtures('unoptimized')

# Slopes on the left of 0, and noise on those on the right, as dropout has it. The control draws
# from intervals of no length: the same model without randomness.
DRAWING = 'rrelu', 'layers.1.activation: eelu'
STILL = 'rrelu(low=0.25, high=0.25)', 'layers.1.activation: eelu(eps=0.0)'
STEPS, K, STOPPED = 15, 5, 10
RUNS = members(2)


class Stop:
  """Asks for a stop at the end of the call that reaches a step."""

  def __init__(self, step: int):
    self.step, self.requested = step, False

  def progress(self, step: int, losses) -> None:
    del losses
    self.requested = step >= self.step

  def acknowledge(self) -> None:
    pass


def build(activation: str, override: str) -> Engine:
  model = ModelSpec('mlp', {'widths': (8, 8), 'activation': activation, 'overrides': (override,)})
  engine = Engine(model, chunk=2, k=K, steps=STEPS, streams=2, evaluates=False)
  engine.population.cohort = dataclasses.replace(engine.population.cohort, members=RUNS)
  return engine


def go_on(engine: Engine, metrics: MetricsFile, state, step: int, **options):
  """The state at the end of the training that begins with a copy of `state`."""
  order, routes = engine.routes(RUNS)
  chunk, = loop.train(
      engine.population, engine.plan, engine.call, DeviceFeed(engine.arrays, order), routes,
      [jax.tree.map(jnp.array, state)], step, run='arms', first_member=0, metrics=metrics,
      log_every=1, **options)
  return chunk


def bits(tree) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def stopped(engine: Engine, metrics: MetricsFile, checkpoints: Checkpoints):
  """(step, state, position) of the checkpoint that a run which was asked to stop has left."""
  stop = Stop(STOPPED)
  with pytest.raises(loop.Preempted):
    go_on(engine, metrics, engine.population.initial(RUNS), 0, checkpoints=checkpoints, stop=stop,
          progress=stop.progress)
  return checkpoints.restore(engine.population.abstract(len(RUNS)), lambda position: None)


@pytest.mark.parametrize('draws', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_with_the_draws_of_its_steps(tmp_path, draws):
  engine = build(*(DRAWING if draws else STILL))
  whole = engine.train(RUNS, tmp_path)
  metrics, checkpoints = MetricsFile(tmp_path / 'own.jsonl'), Checkpoints(tmp_path / 'steps')
  try:
    step, state, position = stopped(engine, metrics, checkpoints)
    assert step == STOPPED
    ended = go_on(engine, metrics, state, step)
    assert bits(ended) == bits(whole.state) != bits(state)
    assert metrics.path.read_bytes() == whole.lines

    # The same numbers under another run's key, or as if they were of another step: the draws, and
    # they alone, are others.
    other_key = state_lib.seed_keys([dataclasses.replace(run, seed=run.seed + 7) for run in RUNS])
    for changed in (state.replace(key=other_key), state.replace(step=state.step + 1)):
      metrics.truncate(position['metrics_bytes'])
      other = go_on(engine, metrics, changed, step)
      assert (bits(other.params) != bits(whole.state.params)) is draws
      assert (metrics.path.read_bytes() != whole.lines) is draws
  finally:
    checkpoints.close()
    metrics.close()
