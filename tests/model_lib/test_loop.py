"""The training loop: which steps are recorded, where it starts and stops, what it hands on."""
from __future__ import annotations

import dataclasses
import json

from hypothesis import given, strategies as st
import jax
import numpy as np
import pytest

from data.device import DeviceFeed
from model_lib.training import loop, planning
from model_lib.training import population as population_lib
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.metrics import MetricsFile
from tests.model_lib.engine import HELD_OUT, SPLITS, Engine, MLP, images, members

pytestmark = pytest.mark.usefixtures('unoptimized')

STEPS = 23


@pytest.fixture(scope='module')
def engine() -> Engine:
  """Three calls of K = 10, the last of three steps; records at 4, 8, ... and at the end."""
  return Engine(MLP, chunk=2, k=10, streams=3, steps=STEPS, log_every=4)


class Stop:
  """Asks for a stop when `calls` calls were polled."""

  def __init__(self, calls: int):
    self.calls, self.acknowledged = calls, 0

  @property
  def requested(self) -> bool:
    self.calls -= 1
    return self.calls < 0

  def acknowledge(self) -> None:
    self.acknowledged += 1


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 60), st.integers(1, 30),
       st.integers(0, 80))
def test_every_recorded_step_has_a_row(step, n, k, log_every, whole):
  """Pieces of any size record the same steps, and never more than a call has rows for."""
  n = min(n, k)
  total = step + n + 5
  counts = loop.recorded(step, n, total, log_every, whole)
  assert counts == [s for s in range(1, total + 1) if step < s <= step + n and (
      s % log_every == 0 or s == total or s > total - whole)]
  assert loop.recorded(step, n, step + n, log_every)[-1] == step + n
  rows = planning.record_rows(k, log_every, whole)
  for last in (total, step + n):
    counts = loop.recorded(step, n, last, log_every, whole)
    assert len(counts) <= rows
    slots = loop.slots_for(step, counts, k, rows)
    assert slots.shape == (k,)
    assert [step + 1 + int(np.flatnonzero(slots == r)[0]) for r in range(len(counts))] == counts
    assert (slots == rows).sum() == k - len(counts)


def test_padded_index():
  index = np.arange(12, dtype=np.int32).reshape(2, 3, 2) + 1
  assert loop.padded_index(index, 3) is index
  found = loop.padded_index(index, 5)
  np.testing.assert_array_equal(found[:, :3], index)
  assert found.shape == (2, 5, 2) and not found[:, 3:].any()


@given(st.integers(1, 9), st.integers(1, 9))
def test_chunks_and_back(n, chunk):
  """Padding repeats the first member of the last chunk, and is dropped again."""
  tree = {'a': np.arange(n), 'b': np.arange(2 * n).reshape(n, 2)}
  parts = population_lib.split_chunks(tree, n, chunk)
  assert [len(p['a']) for p in parts] == [chunk] * -(-n // chunk)
  lists = population_lib.pad_members(list(range(n)), chunk)
  assert [np.asarray(p['a']).tolist() for p in parts] == lists
  back = population_lib.join_chunks(parts, n)
  for key in tree:
    np.testing.assert_array_equal(back[key], tree[key])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 7))
def test_evaluation_index(sizes, batch):
  """Each example of each set has weight 1 once; filling has weight 0."""
  starts = np.cumsum([0, *sizes])
  parts = [np.arange(a, b, dtype=np.int32) for a, b in zip(starts, starts[1:])]
  index, weights, sets = population_lib.evaluation_index(parts, batch)
  assert index.shape == weights.shape == (len(sets), batch)
  for number, part in enumerate(parts):
    own = sets == number
    assert sorted(index[own][weights[own] == 1]) == part.tolist()
    assert set(index[own].ravel()) <= set(part.tolist())
  assert weights.sum() == sum(sizes)


def test_which_steps_are_recorded(engine, tmp_path):
  found = engine.train(members(3), tmp_path)
  rows = [json.loads(line) for line in found.lines.decode().splitlines()]
  keys = [(r['step'], r['member']) for r in rows]
  assert keys == [(s, m) for s in (4, 8, 12, 16, 20, 23) for m in range(3)]
  assert set(rows[0]) == {'run', 'member', 'split', 'step', 'accuracy', 'grad_norm', 'loss'}
  assert {r['split'] for r in rows} == {'train'}
  assert found.state.step.tolist() == [STEPS] * 3


def test_a_record_is_the_batch_s_own(engine, tmp_path):
  """Loss, accuracy and gradient norm of step 4, recomputed at the parameters after 3 steps."""
  member = members(1)[0]
  found = engine.train([member], tmp_path)
  first = json.loads(found.lines.decode().splitlines()[0])
  own = engine.population.cohort
  engine.population.cohort = dataclasses.replace(own, steps=3)
  try:
    before = jax.tree.map(lambda v: v[0], engine.train([member], tmp_path).state)
  finally:
    engine.population.cohort = own
  order, _ = engine.routes([member])

  def loss(params, step):
    index = order.block(step, 1)[0, 0]
    inputs, targets = engine.task.batch(images(), index, member.labels)
    losses, extra = engine.task.losses(
        engine.population.model.apply({'params': params}, inputs, train=True), targets)
    return losses.mean(), extra['accuracy'].mean()

  (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(before.params, 3)
  norm = np.sqrt(sum(float((g ** 2).sum()) for g in jax.tree.leaves(gradient)))
  assert first['loss'] == pytest.approx(float(value), rel=1e-5)
  assert first['accuracy'] == pytest.approx(float(accuracy), rel=1e-6)
  assert first['grad_norm'] == pytest.approx(norm, rel=1e-5)
  assert first['loss'] != pytest.approx(float(loss(before.params, 4)[0]), rel=1e-3)


def test_evaluation_is_a_mean_over_the_set(engine, tmp_path):
  runs = members(3)
  found = engine.train(runs, tmp_path)
  for i, run in enumerate(runs):
    params = jax.tree.map(lambda v: v[i], found.state.params)
    for part, examples in zip(found.evaluated, HELD_OUT, strict=True):
      inputs, targets = engine.task.batch(images(), examples, run.labels)
      losses, extra = engine.task.losses(
          engine.population.model.apply({'params': params}, inputs, train=False), targets)
      assert part['loss'][i] == pytest.approx(float(losses.mean()), rel=1e-5)
      assert part['accuracy'][i] == pytest.approx(float(extra['accuracy'].mean()), rel=1e-6)
  assert abs(found.evaluated[0]['loss'][0] / found.evaluated[1]['loss'][0] - 1) > 1e-3


def start(engine: Engine, runs, chunks, step, metrics, **options):
  engine.population.cohort = dataclasses.replace(engine.population.cohort, members=tuple(runs))
  order, routes = engine.routes(runs)
  return loop.train(
      engine.population, engine.plan, engine.call, DeviceFeed(engine.arrays, order), routes,
      chunks, step, run='arms', first_member=0, metrics=metrics, log_every=engine.log_every,
      **options)


def fresh(engine: Engine, runs):
  engine.population.cohort = dataclasses.replace(engine.population.cohort, members=tuple(runs))
  return loop.initial_chunks(engine.population, engine.plan)


def test_stopped_and_resumed(engine, tmp_path):
  """Stopped after the second call, restored from its checkpoint, ended: the same bits."""
  runs = members(3)
  whole = engine.train(runs, tmp_path)
  (tmp_path / 'own').mkdir()
  metrics = MetricsFile(tmp_path / 'own' / 'metrics.jsonl')
  checkpoints = Checkpoints(tmp_path / 'steps', log=print)
  stop = Stop(calls=1)
  seen = []
  try:
    with pytest.raises(loop.Preempted):
      start(engine, runs, fresh(engine, runs), 0, metrics, checkpoints=checkpoints, stop=stop,
            progress=lambda step, last: seen.append((step, last.shape)))
    assert stop.acknowledged == 1 and seen == [(10, (3,)), (20, (3,))]
    lost = metrics.position
    metrics.write('arms', [0], 'train', [99], ['loss'], np.ones((1, 1, 1), np.float32))
    step, state, position = checkpoints.restore(engine.population.abstract(3), lambda p: None)
    assert step == position['step'] == 20 and position['metrics_bytes'] == lost
    assert position['cohort'] == engine.population.cohort.fingerprint()
    metrics.truncate(position['metrics_bytes'])
    chunks = population_lib.split_chunks(state, 3, engine.plan.chunk)
    chunks = start(engine, runs, chunks, step, metrics, checkpoints=checkpoints)
    assert checkpoints.steps()[-1] == STEPS  # the last step is always saved
  finally:
    checkpoints.close()
    metrics.close()
  ended = population_lib.join_chunks(chunks, 3)
  for a, b in zip(jax.tree.leaves(ended), jax.tree.leaves(whole.state), strict=True):
    assert np.asarray(a).tobytes() == b.tobytes()
  assert metrics.path.read_bytes() == whole.lines


def test_a_start_at_the_wrong_step_is_another_run(engine, tmp_path):
  """The batches belong to the step number: the check above could not pass by accident."""
  runs = members(3)
  whole = engine.train(runs, tmp_path)
  metrics = MetricsFile(tmp_path / 'metrics.jsonl')
  chunks = start(engine, runs, fresh(engine, runs), 1, metrics)
  metrics.close()
  ended = population_lib.join_chunks(chunks, 3)
  assert np.asarray(ended.step).tolist() == [STEPS - 1] * 3
  kernel = np.asarray(ended.params['head']['kernel'])
  assert kernel.tobytes() != whole.state.params['head']['kernel'].tobytes()


def test_a_stop_without_checkpoints(engine, tmp_path):
  metrics = MetricsFile(tmp_path / 'metrics.jsonl')
  try:
    with pytest.raises(loop.Preempted):
      start(engine, members(2), fresh(engine, members(2)), 0, metrics, stop=Stop(calls=0))
  finally:
    metrics.close()


def test_a_finished_run_is_handed_back(engine, tmp_path):
  metrics = MetricsFile(tmp_path / 'metrics.jsonl')
  chunks = fresh(engine, members(2))
  before = [np.array(leaf) for leaf in jax.tree.leaves(chunks)]
  after = start(engine, members(2), chunks, STEPS, metrics)
  metrics.close()
  assert metrics.path.read_bytes() == b''
  for a, b in zip(before, jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(a, b)


def test_sinks_see_what_the_file_holds(engine, tmp_path):
  seen = []

  class Recording:
    def write(self, run, members, split, steps, names, values):
      for s, step in enumerate(steps):
        for i, member in enumerate(members):
          seen.append({'run': run, 'member': int(member), 'split': split, 'step': step,
                       **dict(zip(names, values[i, s].tolist(), strict=True))})

  found = engine.train(members(3), tmp_path, sinks=[Recording()])
  assert seen == [json.loads(line) for line in found.lines.decode().splitlines()]
  assert len(SPLITS[0]) == 300 and len(seen) == 18
