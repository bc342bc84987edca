"""One cohort in a workdir: train it, or go on where a checkpoint stands, evaluate, record.

The running cohort is a checkpoint; a finished one is `finished.json`, written last, beside its
final parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import shutil
import time
from typing import Any

import jax
import numpy as np

from launch.preemption import Preemption
from launch.study import datasets
from launch.study import records
from launch.study.event_sink import EventSink
from launch.study.progress import Progress, say
from launch.study.records import Record
from launch.study.start import started
from launch.study.step_costs import StepCosts
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from model_lib.models.parametrized import Parametrized
from model_lib.training import loop
from model_lib.training import planning
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.cohort import Cohort, identity
from model_lib.training.final import save_final
from model_lib.training.metrics import MetricsFile, read_lines
from model_lib.training.population import (
    Population, evaluation_index, join_chunks, split_chunks)


EVALUATED = ('train_eval', 'val', 'test')


@dataclasses.dataclass
class _Program:
  """What is compiled for a cohort, kept for the next one, which may be of the same program.

  Attributes:
    key: what the program depends on.
    population: of the present cohort.
    plan, members, call: the newest plan, for how many members it was made, and its call.
    evaluation: ((chunk, shape of the index), the compiled evaluation).
  """

  key: str
  population: Population
  plan: planning.Plan | None = None
  members: int = 0
  call: Any = None
  evaluation: tuple[Any, Any] | None = None


class CohortRunner:
  """Runs cohorts one after the other; keeps the events and the timed reference between them.

  Args:
    config: the study's config; its `engine` and `io` are read.
    record: of the workdir; the engine's decisions are added to it.
    workdir, metrics: where to write.
    preemption: asked between the calls.
    data: of the study; None where no cohort comes.
  """

  def __init__(self, config: Any, record: Record, workdir: Workdir, metrics: MetricsFile,
               preemption: Preemption, data: datasets.StudyData | None):
    self.config, self.record, self.workdir = config, record, workdir
    self.metrics, self.stop, self.data = metrics, preemption, data
    self._events: EventSink | None = None
    self._program: _Program | None = None
    self._checkpoints: Checkpoints | None = None
    self._costs = StepCosts()
    preemption.register_save(lambda: self._checkpoints is not None
                             and self._checkpoints.in_flight)

  def close(self) -> None:
    """Closes the events."""
    if self._events:
      self._events.close()

  def run(self, cohort: Cohort, place: str, first_member: int,
          config_number: int) -> dict[str, Any]:
    """Trains (or goes on with) a cohort, evaluates it, and writes its record.

    Args:
      cohort: one without a record in the workdir.
      place: shown beside its progress, such as '2/7'.
      first_member: number of its first row.
      config_number: of the config that asks for it; 0 before any extension.

    Returns:
      What was written to its `finished.json`.

    Raises:
      UserError: it was begun by another version of the study.
    """
    start = time.monotonic()
    directory = records.cohort_directory(self.workdir, cohort.name)
    with self.stop.busy('preparing a cohort'):
      self.workdir.write_status('running', step=0, cohort=cohort.name)
      prepared = self.data.of(cohort).prepare(cohort, self.config.engine.feed)
      program = self._program_of(cohort, prepared)
      population = program.population
      plan, call = self._plan(program, prepared)
      if self.config.io.tensorboard and self._events is None:
        self._events = EventSink(self.workdir.tensorboard)
    checkpoints = self._checkpoints = Checkpoints(directory / 'steps', log=say)
    try:
      with self.stop.busy('restoring'):
        step, chunks = self._restore(population, plan, checkpoints)
      compiled = time.monotonic()
      progress = Progress(self.workdir, cohort.name, place, len(cohort.members), step,
                          cohort.steps, self.config.io.progress_interval_s)

      def reached(step: int, chunks: list) -> None:
        with self.stop.busy('evaluating'):
          self._evaluate(program, plan, chunks, prepared, step, first_member)
          if step in cohort.keep_at:
            self._save(records.networks(self.workdir, cohort.name, step), join_chunks(
                chunks, len(cohort.members)))

      try:
        chunks = loop.train(
            population, plan, call, prepared.feed, prepared.routes, chunks, step, run=cohort.name,
            first_member=first_member, metrics=self.metrics,
            sinks=[self._events] if self._events else [], checkpoints=checkpoints,
            checkpoint_interval_s=self.config.io.checkpoint_interval_s, stop=self.stop,
            progress=progress, log_every=self.config.engine.log_every, marks=cohort.evaluate_at,
            reached=reached)
      finally:
        progress.close()
        prepared.close()
      trained = time.monotonic()
      with self.stop.busy('evaluating'):
        reached(cohort.steps, chunks)
        results = self._evaluated(cohort, first_member)
        costs = self._costs.measure(population, prepared, self.data.of(cohort))
        finished = self._finish(population, prepared, chunks, results, costs, first_member,
                                config_number)
    finally:
      checkpoints.close()
    self.workdir.append_timing({
        'cohort': cohort.name, 'members': len(cohort.members), 'steps': cohort.steps - step,
        'prepare_s': round(compiled - start, 3), 'train_s': round(trained - compiled, 3),
        'evaluate_s': round(time.monotonic() - trained, 3), 'peak_mib': records.peak_mib()})
    return finished

  def _batching(self) -> str:
    batching = self.config.engine.batching
    return planning.default_batching() if batching == 'auto' else batching

  def _program_of(self, cohort: Cohort, prepared: datasets.Prepared) -> _Program:
    """The program of a cohort: that of the cohort before, if it is the same one."""
    data = self.data.of(cohort)
    spec = data.complete(cohort.model)
    described = dataclasses.asdict(dataclasses.replace(
        cohort, name='', model=spec, members=(), time_by='', time_reference=None, start='',
        fresh=(), evaluate_at=(), keep_at=()))
    shapes = {name: (array.shape, str(array.dtype)) for name, array in prepared.arrays.items()}
    key = json.dumps([described, shapes, prepared.n_streams, prepared.steps_per_call,
                      dataclasses.asdict(prepared.task)], sort_keys=True, default=list)
    if self._program is None or self._program.key != key:
      population = Population(cohort, data.build(cohort.model, cohort.optimizer), prepared.task,
                              prepared.arrays, self._batching())
      self._program = _Program(key, population)
    elif self._program.population.cohort is not cohort:
      self._program.population = self._program.population.of(cohort)
    return self._program

  def _plan(self, program: _Program, prepared: datasets.Prepared):
    """The recorded plan of the cohort, or a new one, written down before step 0; its call.

    A cohort with the program and as many members as the one before takes over its plan.
    """
    engine, population = self.config.engine, program.population
    name, n = population.cohort.name, len(population.cohort.members)
    plans = self.record.engine.setdefault('plans', {})
    if name in plans:
      plan = planning.Plan(**plans[name])
      population.batching = plan.batching
    else:
      if program.plan is None or program.members != n:
        plan, program.call = planning.decide(
            population, prepared.arrays, prepared.n_streams, chunk=engine.chunk,
            steps_per_call=prepared.steps_per_call or engine.steps_per_call,
            limit_mib=engine.memory_limit_mib, log_every=engine.log_every)
        program.plan, program.members = plan, n
      plan = program.plan
      plans[name] = dataclasses.asdict(plan)
      self.record.write(self.workdir)
    if program.call is None or program.plan != plan:
      program.call = loop.compile_for(population, plan, prepared.arrays, prepared.n_streams,
                                      engine.log_every)
      program.plan, program.members = plan, n
    return plan, program.call

  def _restore(self, population: Population, plan: planning.Plan, checkpoints: Checkpoints):
    """(step, chunks): of the newest sound checkpoint, else the initial state.

    The metrics file is cut back to where it stood then.
    """
    cohort = population.cohort

    def accept(position: dict[str, Any]) -> str | None:
      if position.get('cohort') != cohort.fingerprint():
        raise UserError(f'{checkpoints.directory}: begun by another version of the study; use '
                        'that version or another --workdir')
      if position['metrics_bytes'] > self.metrics.position:
        return (f'metrics.jsonl has {self.metrics.position} bytes and had '
                f'{position["metrics_bytes"]}')
      return None

    n = len(cohort.members)
    found = checkpoints.restore(population.abstract(n), accept) if checkpoints.steps() else None
    if found is None:
      self.metrics.truncate(max((r['metrics_bytes'] for r in records.all_finished(self.workdir)),
                                default=0))
      self._replay_events()
      chunks = loop.initial_chunks(population, plan)
      return 0, started(chunks, cohort, plan.chunk, self.workdir) if cohort.start else chunks
    step, state, position = found
    self.metrics.truncate(position['metrics_bytes'])
    self._replay_events()
    say(f'resumed {cohort.name} at step {step}/{cohort.steps}')
    return step, split_chunks(state, n, plan.chunk)

  def _replay_events(self) -> None:
    """Writes the events of all lines that are left again, once a start."""
    if self._events is not None and not self._events.replayed:
      self._events.replay(self.workdir.metrics)

  def _evaluate(self, program: _Program, plan: planning.Plan, chunks: list,
                prepared: datasets.Prepared, step: int, first_member: int) -> None:
    """Writes the means over each split's examples at a step; train_eval is a training subset."""
    population = program.population
    eval_batch = self.data.of(population.cohort).request.eval_batch
    pieces = [evaluation_index(parts, eval_batch)
              for parts in prepared.evaluation_sets]
    index, weights = (np.stack([p[i] for p in pieces]) for i in (0, 1))
    if program.evaluation is None or program.evaluation[0] != (plan.chunk, index.shape):
      program.evaluation = (plan.chunk, index.shape), population.compile_evaluation(
          population.abstract(plan.chunk), prepared.constant, index)
    means = loop.evaluate(population, plan, program.evaluation[1], chunks, prepared.routes,
                          prepared.constant, index, weights, pieces[0][2])
    members = range(first_member, first_member + len(population.cohort.members))
    names = sorted(means[0])
    for split, values in zip(EVALUATED, means, strict=True):
      stacked = np.stack([values[k] for k in names], -1)[:, None]
      for sink in (self.metrics, *([self._events] if self._events else [])):
        sink.write(population.cohort.name, members, split, [step], names, stacked)

  def _evaluated(self, cohort: Cohort, first_member: int) -> dict[tuple[str, int], Any]:
    """(split, step) -> {metric: [members]}, as it stands in metrics.jsonl."""
    found = {}
    for line in read_lines(self.metrics.path, cohort.name, EVALUATED):
      values = found.setdefault((line['split'], line['step']), {})
      for name in line.keys() - {'run', 'member', 'split', 'step'}:
        column = values.setdefault(name, np.full(len(cohort.members), np.nan))
        if line[name] is not None:
          column[line['member'] - first_member] = line[name]
    return found

  def _last_losses(self, cohort: Cohort, first_member: int) -> np.ndarray:
    """[members]: mean training loss of the cohort's `last_steps`; nan where one was not finite."""
    losses = np.full((len(cohort.members), cohort.last_steps), np.nan)
    first = cohort.steps - cohort.last_steps + 1
    for line in read_lines(self.metrics.path, cohort.name, ('train',)):
      if line['step'] >= first and line['loss'] is not None:
        losses[line['member'] - first_member, line['step'] - first] = line['loss']
    return losses.mean(1)

  def _save(self, path, state) -> None:
    shutil.rmtree(path, ignore_errors=True)
    save_final(path, {'params': state.params, 'hp': state.hp, 'collections': state.collections})

  def _finish(self, population, prepared, chunks, results, costs, first_member,
              config_number) -> dict[str, Any]:
    """Writes the cohort's final parameters, and, last, its record."""
    cohort = population.cohort
    n = len(cohort.members)
    state = jax.device_get(join_chunks(chunks, n))
    rows = [{'member': first_member + i, **row, 'config': config_number}
            for i, row in enumerate(_rows(population, prepared, state.diverged_step, results,
                                          costs))]
    if cohort.last_steps:
      for row, loss in zip(rows, self._last_losses(cohort, first_member), strict=True):
        row['last_loss'] = _number(loss)
    self._save(records.networks(self.workdir, cohort.name), state)
    finished = {
        'name': cohort.name, 'fingerprint': cohort.fingerprint(), 'first_member': first_member,
        'model': dataclasses.asdict(self.data.of(cohort).complete(cohort.model)),
        'task': dataclasses.asdict(population.task),
        'metrics_bytes': self.metrics.sync(), 'rows': rows,
        'identities': [identity(m) for m in cohort.members]}
    if isinstance(population.model, Parametrized):
      finished['parametrization'] = population.model.lines(population.example, train=False)
    self.workdir.write_json(records.finished_path(self.workdir, cohort.name), finished)
    return finished


def _rows(population: Population, prepared: datasets.Prepared, diverged_step: np.ndarray,
          results: Mapping[tuple[str, int], Mapping[str, np.ndarray]],
          costs: Mapping[str, tuple[float, float]]) -> Sequence[dict[str, Any]]:
  """A row of results.csv per member, but for its number."""
  cohort, rows = population.cohort, []
  last = cohort.steps
  for i, member in enumerate(cohort.members):
    diverged = int(diverged_step[i])
    if diverged < 0 and not np.isfinite(results['val', last]['loss'][i]):
      diverged = cohort.steps
    row = {'run': cohort.name, **member.tags, 'steps': cohort.steps,
           'parameters': population.n_parameters(), 'diverged_step': diverged,
           'test_images': len(prepared.evaluation_sets[member.split][2]),
           'train_loss': _number(results['train_eval', last]['loss'][i])}
    for step in (last, *cohort.evaluate_at):
      for split in ('val', 'test'):
        values = results[split, step]
        at = '' if step == last else f'_at_{step}'
        row |= {f'{split}_{k}{at}': _number(values[k][i]) for k in sorted(values, reverse=True)}
    if costs:
      seconds, ratio = costs[str(member.tags[cohort.time_by])]
      row |= {'step_us': round(seconds * 1e6, 3), 'cost_ratio': round(ratio, 4)}
    rows.append(row)
  return rows


def _number(value) -> float:
  """A finite number or nan, as it comes back from finished.json."""
  return float(value) if np.isfinite(value) else float('nan')
