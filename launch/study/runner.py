"""Runs a study's cohorts in a workdir: train, evaluate, record, go on where a killed run stopped.

A finished cohort is files; the running one is a checkpoint; a measurement is files or nothing. A
restart replays the study's generator over the finished cohorts' rows, which costs nothing, and goes
on with the first cohort that has no record.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from launch import environment
from launch.preemption import Preemption
from launch.study import config as config_lib
from launch.study import datasets
from launch.study import records
from launch.study.progress import Progress, say
from launch.study.load import load_cohort
from launch.study.records import Record
from launch.study.study import Given, Measurement, Study
from launch.study.event_sink import EventSink
from launch.study.workdir import Workdir
from model_lib import faults
from model_lib.errors import UserError
from model_lib.training import loop
from model_lib.training import planning
from model_lib.training import timing
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.cohort import Cohort, identity
from model_lib.training.final import save_final
from model_lib.training.metrics import MetricsFile
from model_lib.training.population import (
    Population, evaluation_index, join_chunks, split_chunks)


class Runner:
  """One start of a study in a locked workdir."""

  def __init__(self, study: Study, record: Record, workdir: Workdir, preemption: Preemption,
               data: datasets.StudyData | None, new_entry: dict[str, Any]):
    self.study, self.record, self.workdir, self.stop = study, record, workdir, preemption
    self.data = data
    self.config = config_lib.from_dict(study.config, record.configs[-1])
    self._config_number = 0
    self.notes = self._environment(new_entry)
    self.metrics = MetricsFile(workdir.metrics)
    self.rows: list[dict[str, Any]] = []
    self._by_identity: dict[str, dict[str, Any]] = {}
    self._measured: dict[str, dict[str, Any]] = {}  # measurement -> its record
    self._events: EventSink | None = None
    self._references: dict[str, Any] = {}
    self._names: set[str] = set()
    self._checkpoints: Checkpoints | None = None
    preemption.register_save(lambda: self._checkpoints is not None
                             and self._checkpoints.in_flight)

  def close(self) -> None:
    """Closes the files."""
    self.metrics.close()
    if self._events:
      self._events.close()

  # -- the sequence of cohorts ------------------------------------------------

  def run(self) -> pd.DataFrame:
    """Runs all cohorts of all configs (first start and extensions); returns all rows."""
    for number, values in enumerate(self.record.configs):
      config = config_lib.from_dict(self.study.config, values)
      self._config_number = number
      generator = self.study.cohorts(config)
      answer = None
      while True:
        try:
          asked = generator.send(answer)
        except StopIteration:
          break
        answer = self._answer(asked)
    # Again, as a kill between a cohort's record and its rows would leave them out for ever.
    records.write_results(self.workdir, self.rows)
    return pd.DataFrame(self.rows)

  def _answer(self, asked: Sequence[Cohort | Measurement]) -> pd.DataFrame:
    """Rows of what is asked for, in its order; runs what is not done yet."""
    for place, cohort in enumerate(asked):
      if isinstance(cohort, Measurement):
        self._measure(cohort)
        continue
      cohort = self._remaining(cohort)
      if cohort is None:
        continue
      self._check(cohort)
      finished = records.read_finished(self.workdir, cohort.name)
      if finished is None:
        if self.rows:
          faults.reach('between_cohorts')
        finished = self._run_cohort(cohort, f'{place + 1}/{len(asked)}')
      elif finished['fingerprint'] != cohort.fingerprint():
        raise UserError(f'{records.finished_path(self.workdir, cohort.name)}: this cohort was '
                        'computed by another version of the study; use that version or another '
                        '--workdir')
      # Nothing to do, unless the run was killed right after the cohort's record.
      shutil.rmtree(records.cohort_directory(self.workdir, cohort.name) / 'steps',
                    ignore_errors=True)
      self._take(finished)
    rows = []
    for item in asked:
      rows += (self._measured[item.name]['rows'] if isinstance(item, Measurement) else
               [self._by_identity[identity(m)] for m in item.members])
    return pd.DataFrame(rows)

  def _remaining(self, cohort: Cohort) -> Cohort | None:
    """The cohort without the members that an earlier config has run; None when none is left."""
    number = self._config_number
    earlier = {k for k, row in self._by_identity.items() if row['config'] < number}
    members = tuple(m for m in cohort.members if identity(m) not in earlier)
    if not members:
      return None
    name = cohort.name if number == 0 else f'{cohort.name}+{number}'
    return dataclasses.replace(cohort, name=name, members=members)

  def _check(self, cohort: Cohort) -> None:
    """A study's mistakes in naming, which would lose rows."""
    self._check_name(cohort.name)
    identities = [identity(m) for m in cohort.members]
    seen = set(self._by_identity)
    for tags in identities:
      if tags in seen:
        raise ValueError(f'cohort {cohort.name}: two runs have the tags {tags}')
      seen.add(tags)

  def _check_name(self, name: str) -> None:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._+-]*', name):
      raise ValueError(f'{name!r} is no name for a cohort: letters, digits, . _ + -')
    if name in self._names:
      raise ValueError(f'two cohorts are called {name}')
    self._names.add(name)

  def _take(self, finished: dict[str, Any]) -> None:
    for key, row in zip(finished['identities'], records.with_nan(finished['rows']), strict=True):
      self.rows.append({k: v for k, v in row.items() if k != 'config'})
      self._by_identity[key] = row

  # -- one measurement --------------------------------------------------------

  def _measure(self, item: Measurement) -> None:
    """Takes the rows of a measurement; computes them where that has not been done."""
    earlier = self._measured.get(item.name)
    if earlier is not None and self._config_number:  # what an extension leaves as it was
      if earlier['fingerprint'] != item.fingerprint():
        raise ValueError(f'the measurement {item.name} depends on what --extend may change')
      return
    self._check_name(item.name)
    finished = records.read_finished(self.workdir, item.name)
    if finished is None:
      finished = self._compute(item)
    elif finished['fingerprint'] != item.fingerprint():
      raise UserError(f'{records.finished_path(self.workdir, item.name)}: this was measured by '
                      'another version of the study; use that version or another --workdir')
    rows = records.with_nan(finished['rows'])
    self._measured[item.name] = {**finished, 'rows': rows}
    self.rows += rows

  def _compute(self, item: Measurement) -> dict[str, Any]:
    """Computes a measurement and writes its record."""
    start = time.monotonic()
    with self.stop.busy(f'measuring {item.name}'):
      self.workdir.write_status('running', step=0, cohort=item.name)
      say(f'measuring {item.name}')
      given = Given(self.data, lambda name: load_cohort(self.workdir, name))
      rows = [{'member': len(self.rows) + i, 'run': item.name, **row}
              for i, row in enumerate(item.compute(given, **item.arguments))]
      finished = {'name': item.name, 'fingerprint': item.fingerprint(),
                  'first_member': len(self.rows), 'model': None,
                  'metrics_bytes': self.metrics.sync(), 'rows': rows}
      faults.reach('measured')
      self.workdir.write_json(records.finished_path(self.workdir, item.name), finished)
      records.write_results(self.workdir, [*self.rows, *rows])
    self.workdir.append_timing({
        'cohort': item.name, 'members': 0, 'steps': 0, 'prepare_s': 0.0, 'train_s': 0.0,
        'evaluate_s': round(time.monotonic() - start, 3), 'peak_mib': records.peak_mib()})
    return finished

  # -- one cohort -------------------------------------------------------------

  def _run_cohort(self, cohort: Cohort, place: str) -> dict[str, Any]:
    """Trains (or goes on with) a cohort, evaluates it, and writes its record."""
    start = time.monotonic()
    first_member = len(self.rows)
    directory = records.cohort_directory(self.workdir, cohort.name)
    with self.stop.busy('preparing a cohort'):
      self.workdir.write_status('running', step=0, cohort=cohort.name)
      model = self.data.build(cohort.model)
      prepared = self.data.prepare(cohort, self.config.engine.feed)
      batching = self._batching()
      population = Population(cohort, model, prepared.task, prepared.arrays, batching)
      plan, call = self._plan(population, prepared)
    self._open_events()
    checkpoints = self._checkpoints = Checkpoints(directory / 'steps', log=say)
    try:
      with self.stop.busy('restoring'):
        step, chunks = self._restore(population, plan, checkpoints, cohort, first_member)
      compiled = time.monotonic()
      progress = Progress(self.workdir, cohort.name, place, len(cohort.members), step,
                          cohort.steps, self.config.io.progress_interval_s)
      sinks = [self._events] if self._events else []
      try:
        chunks = loop.train(
            population, plan, call, prepared.feed, prepared.routes, chunks, step, run=cohort.name,
            first_member=first_member, metrics=self.metrics, sinks=sinks, checkpoints=checkpoints,
            checkpoint_interval_s=self.config.io.checkpoint_interval_s, stop=self.stop,
            progress=progress, log_every=self.config.engine.log_every)
      finally:
        progress.close()
        prepared.close()
      trained = time.monotonic()
      with self.stop.busy('evaluating'):
        results = self._evaluate(population, plan, chunks, prepared)
        costs = self._costs(population, prepared)
        finished = self._finish(cohort, population, chunks, results, costs, first_member,
                                directory, prepared)
    finally:
      checkpoints.close()
    shutil.rmtree(directory / 'steps')
    self.workdir.append_timing({
        'cohort': cohort.name, 'members': len(cohort.members), 'steps': cohort.steps - step,
        'prepare_s': round(compiled - start, 3), 'train_s': round(trained - compiled, 3),
        'evaluate_s': round(time.monotonic() - trained, 3),
        'peak_mib': records.peak_mib()})
    return finished

  def _batching(self) -> str:
    batching = self.config.engine.batching
    return planning.default_batching() if batching == 'auto' else batching

  def _plan(self, population: Population, prepared: datasets.Prepared):
    """The recorded plan of the cohort, or a new one, written down before step 0."""
    engine, name = self.config.engine, population.cohort.name
    plans = self.record.engine.setdefault('plans', {})
    if name in plans:
      plan, call = planning.Plan(**plans[name]), None
      population.batching = plan.batching
    else:
      plan, call = planning.decide(
          population, prepared.arrays, prepared.n_streams, chunk=engine.chunk,
          steps_per_call=prepared.steps_per_call or engine.steps_per_call,
          limit_mib=engine.memory_limit_mib,
          log_every=engine.log_every)
      plans[name] = dataclasses.asdict(plan)
      self.record.write(self.workdir)
    if call is None:
      call = loop.compile_for(population, plan, prepared.arrays, prepared.n_streams,
                              engine.log_every)
    return plan, call

  def _restore(self, population, plan, checkpoints, cohort, first_member):
    """(step, chunks): of the newest sound checkpoint, else the initial state.

    The metrics file is cut back to where it stood then.
    """
    start = max((r['metrics_bytes'] for r in records.all_finished(self.workdir)), default=0)

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
      self.metrics.truncate(start)
      self._replay_events()
      return 0, loop.initial_chunks(population, plan)
    step, state, position = found
    self.metrics.truncate(position['metrics_bytes'])
    self._replay_events()
    say(f'resumed {cohort.name} at step {step}/{cohort.steps}')
    return step, split_chunks(state, n, plan.chunk)

  def _evaluate(self, population, plan, chunks, prepared) -> list[dict[str, np.ndarray]]:
    """Means over the training subset, the validation and the test examples of each member."""
    pieces = [evaluation_index(parts, self.data.request.eval_batch)
              for parts in prepared.evaluation_sets]
    index, weights = (np.stack([p[i] for p in pieces]) for i in (0, 1))
    evaluation = population.compile_evaluation(population.abstract(plan.chunk), prepared.constant,
                                               index)
    return loop.evaluate(population, plan, evaluation, chunks, prepared.routes, prepared.constant,
                         index, weights, pieces[0][2])

  def _costs(self, population, prepared) -> dict[str, tuple[float, float]]:
    """{value of the cohort's time_by tag: (seconds per step, ratio to the reference)}."""
    cohort = population.cohort
    if not cohort.time_by:
      return {}
    kinds = {}
    for member in cohort.members:
      kinds.setdefault(str(member.tags[cohort.time_by]), member)
    arrays = prepared.constant
    prepare = timing.stepper(population, arrays, 1, cohort.batch_size)
    runs = {kind: prepare(member) for kind, member in kinds.items()}
    reference, spec = cohort.time_reference
    if reference not in runs:
      runs[reference] = self._reference_run(population, prepared, spec)
    return timing.relative_cost(runs, reference)

  def _reference_run(self, population, prepared, spec):
    """Times the reference model; compiled once per start and model."""
    cohort = population.cohort
    key = json.dumps([dataclasses.asdict(spec), cohort.batch_size, population.batching],
                     default=list)
    if key not in self._references:
      member = dataclasses.replace(
          cohort.members[0], hp={'learning_rate': cohort.members[0].hp['learning_rate']})
      alone = dataclasses.replace(cohort, model=spec, members=(member,))
      other = Population(alone, self.data.build(spec), prepared.task, prepared.constant,
                         population.batching)
      self._references[key] = timing.stepper(other, prepared.constant, 1,
                                             cohort.batch_size)(member)
    return self._references[key]

  def _finish(self, cohort, population, chunks, results, costs, first_member, directory,
              prepared):
    """Writes the cohort's evaluation lines, final parameters, and, last, its record."""
    train, val, test = results
    names = sorted(val)
    for split, values in (('train_eval', train), ('val', val), ('test', test)):
      stacked = np.stack([values[k] for k in names], -1)[:, None]
      for sink in (self.metrics, *([self._events] if self._events else [])):
        sink.write(cohort.name, range(first_member, first_member + len(cohort.members)), split,
                   [cohort.steps], names, stacked)
    n = len(cohort.members)
    state = jax.device_get(join_chunks(chunks, n))
    rows = []
    for i, member in enumerate(cohort.members):
      diverged = int(state.diverged_step[i])
      if diverged < 0 and not np.isfinite(val['loss'][i]):
        diverged = cohort.steps
      row = {'member': first_member + i, 'run': cohort.name, **member.tags, 'steps': cohort.steps,
             'parameters': population.n_parameters(), 'diverged_step': diverged,
             'test_images': len(prepared.evaluation_sets[member.split][2]),
             'train_loss': _number(train['loss'][i])}
      for split, values in (('val', val), ('test', test)):
        row |= {f'{split}_{k}': _number(values[k][i]) for k in sorted(values, reverse=True)}
      if costs:
        seconds, ratio = costs[str(member.tags[cohort.time_by])]
        row |= {'step_us': round(seconds * 1e6, 3), 'cost_ratio': round(ratio, 4)}
      rows.append({**row, 'config': self._config_number})
    final = {'params': state.params, 'hp': state.hp, 'collections': state.collections}
    shutil.rmtree(directory / 'final', ignore_errors=True)
    save_final(directory / 'final', final)
    finished = {
        'name': cohort.name, 'fingerprint': cohort.fingerprint(), 'first_member': first_member,
        'model': dataclasses.asdict(self.data.complete(cohort.model)), 'task': dataclasses.asdict(population.task),
        'metrics_bytes': self.metrics.sync(), 'rows': rows,
        'identities': [identity(m) for m in cohort.members]}
    self.workdir.write_json(records.finished_path(self.workdir, cohort.name), finished)
    records.write_results(self.workdir, [*self.rows, *(
        {k: v for k, v in row.items() if k != 'config'} for row in rows)])
    return finished

  # -- environment and events -------------------------------------------------

  def _environment(self, entry: dict[str, Any]) -> tuple[str, ...]:
    """Adds this start to environment.json; a changed environment becomes a note in the table."""
    earlier = self.workdir.read_environments()
    self.workdir.append_environment(entry)
    mixed: list[str] = []
    for other in [*earlier[1:], entry] if earlier else []:
      mixed += environment.compare(earlier[0], other).mixed
    mixed = list(dict.fromkeys(mixed))
    for line in mixed:
      say(f'warning: mixed environment: {line}')
    return tuple(f'mixed environment: {line}' for line in mixed)

  def _open_events(self) -> None:
    if self.config.io.tensorboard and self._events is None:
      self._events = EventSink(self.workdir.tensorboard)

  def _replay_events(self) -> None:
    """Writes the events of all lines that are left again, once a start."""
    if self._events is not None and not self._events.replayed:
      self._events.replay(self.workdir.metrics)


def _number(value) -> float:
  """A finite number or nan, as it comes back from finished.json."""
  return float(value) if np.isfinite(value) else float('nan')
