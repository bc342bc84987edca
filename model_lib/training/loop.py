"""Trains a cohort: calls, metrics, checkpoints, preemption.

The order of events around a checkpoint is what makes a killed run end with the
same bits: lines up to step s are written and forced to the disk, then the state
at s is saved together with the length of the metrics file.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np

from model_lib.training import population as population_lib
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.lanes import Lanes
from model_lib.training.metrics import MetricsFile, Sink
from model_lib.training.planning import Plan, record_rows
from model_lib.training.population import Population, Routes, TrainingCall


class Feed(Protocol):
  """Examples for the steps [step, step + n)."""

  def block(self, step: int, n: int):
    """(arrays of the task, index int32 [streams, n, B] into them)."""


class Stop(Protocol):
  """Tells whether the run was asked to end, and is told when the loop has seen it."""

  requested: bool

  def acknowledge(self) -> None: ...


class Preempted(Exception):
  """The run was asked to stop; its state is saved and committed."""


def compile_for(population: Population, plan: Plan, arrays, n_streams: int,
                log_every: int) -> TrainingCall:
  """The training call of a plan."""
  return population.compile_call(
      population.abstract(plan.chunk), arrays, n_streams, plan.capacity,
      record_rows(plan.capacity, log_every, population.cohort.last_steps))


def initial_chunks(population: Population, plan: Plan) -> list:
  """The members' states at step 0, as padded chunks."""
  return [population.initial(part)
          for part in population_lib.pad_members(population.cohort.members, plan.chunk)]


def route_chunks(routes: Routes, plan: Plan) -> list[np.ndarray]:
  """The members' routes [chunk, 3], padded like the states."""
  rows = routes.stacked()
  return [np.asarray(part) for part in
          population_lib.split_chunks(rows, len(rows), plan.chunk)]


def recorded(step: int, n: int, total: int, log_every: int, last: int = 0) -> list[int]:
  """The step counts in (step, step + n] that are recorded: multiples of log_every, and the last.

  `last` of them at the end are recorded whatever log_every is.
  """
  return [s for s in range(step + 1, step + n + 1)
          if s % log_every == 0 or s == total or s > total - last]


def slots_for(step: int, counts: Sequence[int], k: int, rows: int) -> np.ndarray:
  """int32 [k]: the record's row of each step of a call, or `rows` where none is kept."""
  slots = np.full(k, rows, np.int32)
  for row, count in enumerate(counts):
    slots[count - 1 - step] = row
  return slots


def padded_index(index_snb: np.ndarray, k: int) -> np.ndarray:
  """The index block of a short call, filled up to the compiled [S, k, B]."""
  s, n, b = index_snb.shape
  if n == k:
    return index_snb
  block = np.zeros((s, k, b), np.int32)
  block[:, :n] = index_snb
  return block


def train(population: Population, plan: Plan, call: TrainingCall, feed: Feed, routes: Routes,
          chunks: list, step: int, *, run: str, first_member: int, metrics: MetricsFile,
          sinks: Sequence[Sink] = (), checkpoints: Checkpoints | None = None,
          checkpoint_interval_s: float = 60.0, stop: Stop | None = None,
          progress: Callable[[int, np.ndarray], None] | None = None, log_every: int = 25,
          marks: Sequence[int] = (), reached: Callable[[int, list], None] | None = None,
          mesh=None) -> list:
  """Moves a cohort from `step` to its last step.

  Args:
    population, plan, call: the compiled program.
    feed: index blocks and arrays; routes: which stream and labels each member reads.
    chunks: the states at `step`, padded; they are donated.
    run, first_member: identity of the lines in metrics.jsonl.
    metrics, sinks: where records go; only the metrics file is part of the promise.
    checkpoints: None trains without saving.
    checkpoint_interval_s: least seconds between two saves; the first call's end
      and the last step are always saved.
    stop: polled after each call.
    progress: called after each round with (step, the members' losses at the last recorded
      step of the round, or None).
    log_every: steps between records.
    marks: steps after which `reached` is called with (step, chunks); calls end there. A mark at
      or before `step` is past: what was done at it is on the disk.
    reached: see marks; what it writes is part of the save that follows.
    mesh: placement over devices; this loop runs on one.

  Returns:
    The chunks at the last step.

  Raises:
    Preempted: after the save that followed a stop request has committed.
  """
  del mesh
  total, n_members = population.cohort.steps, len(population.cohort.members)
  members = np.arange(first_member, first_member + n_members)
  k = plan.steps_per_call
  route_parts = [jax.device_put(part) for part in route_chunks(routes, plan)]
  names = None
  pending = None
  last_save = None

  def stacked(records) -> np.ndarray:
    return np.concatenate([np.asarray(r) for r in records])[:n_members]

  def write(item) -> None:
    counts, records = item
    if not counts:
      return
    values = stacked(records)[:, :len(counts)]
    for sink in (metrics, *sinks):
      sink.write(run, members, 'train', counts, names, values)

  def draw(step: int):
    """What the call from `step` on reads: (steps, recorded counts, arrays, index, slots)."""
    end = min([(step // k + 1) * k, total, *(mark for mark in marks if mark > step)])
    arrays, index = feed.block(step, end - step)
    n = index.shape[1]
    counts = recorded(step, n, total, log_every, population.cohort.last_steps)
    # Placed once, for all chunks.
    index, slots = jax.device_put((padded_index(index, call.capacity),
                                   slots_for(step, counts, call.capacity, call.rows)))
    return n, counts, arrays, index, slots

  block = draw(step) if step < total else None
  with Lanes(plan.lanes) as lanes:
    while step < total:
      n, counts, arrays, index, slots = block
      names = names or population.metric_names(arrays)
      finish = lanes.start([
          functools.partial(call, chunk, part, arrays, index, slots, np.int32(n))
          for chunk, part in zip(chunks, route_parts, strict=True)])
      # While the device works, the host writes the records before and draws the next block.
      if pending:
        write(pending)
      step += n
      if step < total:
        block = draw(step)
      # np.asarray of a running call would hold back signal handlers; waiting here does not.
      results = finish()
      chunks, records = [list(part) for part in zip(*results, strict=True)]
      pending = (counts, records)
      if progress:
        losses = stacked(records)[:, len(counts) - 1, names.index('loss')] if counts else None
        progress(step, losses)
      if step in marks:
        write(pending)
        pending = None
        reached(step, chunks)
      asked = stop is not None and stop.requested
      if asked:
        stop.acknowledge()
      due = last_save is None or time.monotonic() - last_save >= checkpoint_interval_s
      if checkpoints is not None and (asked or due or step == total):
        if pending:
          write(pending)
        pending = None
        position = {'step': step, 'run': run, 'metrics_bytes': metrics.sync(),
                    'cohort': population.cohort.fingerprint()}
        checkpoints.save(step, population_lib.join_chunks(chunks, n_members), position)
        last_save = time.monotonic()
      if asked:
        if checkpoints is not None:
          checkpoints.wait()
        raise Preempted
  if pending:
    write(pending)
  if checkpoints is not None:
    checkpoints.wait()
  return chunks


def evaluate(population: Population, plan: Plan, evaluation, chunks: list, routes: Routes, arrays,
             index: np.ndarray, weights: np.ndarray, sets: np.ndarray) -> list[dict]:
  """Weighted means of the losses and metrics over each set of examples.

  Args:
    evaluation: from Population.compile_evaluation.
    index, weights: [splits, E, B]; sets [E] names the set of each batch.

  Returns:
    One {'loss': [members], metric: [members]} per set, float64 means of the
    float32 sums, added in the order of the batches.
  """
  placed = jax.device_put((index, weights))
  with Lanes(plan.lanes) as lanes:
    finish = lanes.start([
        functools.partial(evaluation, chunk, part, arrays, *placed)
        for chunk, part in zip(chunks, route_chunks(routes, plan), strict=True)])
    parts = [jax.tree.map(np.asarray, sums) for sums in finish()]
  n = len(population.cohort.members)
  joined = {k: np.concatenate([p[k] for p in parts])[:n].astype(np.float64) for k in parts[0]}
  split = routes.split
  counts = weights.astype(np.float64).sum(-1)[split]  # [members, E]
  return [{k: v[:, sets == s].sum(1) / counts[:, sets == s].sum(1) for k, v in joined.items()}
          for s in range(int(sets.max()) + 1)]
