"""Runs what a study asks for in a workdir, and goes on where a killed run stopped.

A finished cohort or measurement is files. A restart replays the study's generator over their rows,
which costs nothing, and goes on with the first that has no record.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import re
import shutil
import time
from typing import Any

import pandas as pd

from launch import environment
from launch.preemption import Preemption
from launch.study import config as config_lib
from launch.study import datasets
from launch.study import records
from launch.study.asked import check_distinct
from launch.study.cohort_runner import CohortRunner
from launch.study.load import load_cohort
from launch.study.progress import say
from launch.study.records import Record
from launch.study.study import Given, Measurement, Study
from launch.study.workdir import Workdir
from model_lib import faults
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, identity
from model_lib.training.metrics import MetricsFile


class Runner:
  """One start of a study in a locked workdir."""

  def __init__(self, study: Study, record: Record, workdir: Workdir, preemption: Preemption,
               data: datasets.StudyData | None, new_entry: dict[str, Any]):
    self.study, self.record, self.workdir, self.stop = study, record, workdir, preemption
    self.data = data
    self._config_number = 0
    self.notes = self._environment(new_entry)
    self.metrics = MetricsFile(workdir.metrics)
    self.rows: list[dict[str, Any]] = []
    self._by_identity: dict[str, dict[str, Any]] = {}
    self._measured: dict[str, dict[str, Any]] = {}  # measurement -> its record
    self._names: set[str] = set()
    self._cohorts = CohortRunner(config_lib.from_dict(study.config, record.configs[-1]), record,
                                 workdir, self.metrics, preemption, data)

  def close(self) -> None:
    """Closes the files."""
    self.metrics.close()
    self._cohorts.close()

  # -- the sequence of cohorts ------------------------------------------------

  def run(self) -> pd.DataFrame:
    """Runs all cohorts of all configs (first start and extensions); returns all rows."""
    for number, values in enumerate(self.record.configs):
      config = config_lib.from_dict(self.study.config, values)
      self._config_number = number
      earlier: set[str] = set()  # what this config has asked for before
      generator = self.study.cohorts(config)
      answer = None
      while True:
        try:
          asked = generator.send(answer)
        except StopIteration:
          break
        check_distinct(config, asked, earlier)
        earlier |= {identity(m) for c in asked if isinstance(c, Cohort) for m in c.members}
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
      self._check_name(cohort.name)
      finished = records.read_finished(self.workdir, cohort.name)
      is_new = finished is None
      if is_new:
        if self.rows:
          faults.reach('between_cohorts')
        finished = self._cohorts.run(cohort, f'{place + 1}/{len(asked)}', len(self.rows),
                                     self._config_number)
      elif finished['fingerprint'] != cohort.fingerprint():
        raise UserError(f'{records.finished_path(self.workdir, cohort.name)}: this cohort was '
                        'computed by another version of the study; use that version or another '
                        '--workdir')
      # Nothing to do, unless the run was killed right after the cohort's record.
      shutil.rmtree(records.cohort_directory(self.workdir, cohort.name) / 'steps',
                    ignore_errors=True)
      self._take(finished)
      if is_new:
        records.write_results(self.workdir, self.rows)
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

  def _check_name(self, name: str) -> None:
    """A study's mistakes in naming, which would lose rows."""
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
      given = Given(self.data, functools.partial(load_cohort, self.workdir), self._rows_of)
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

  def _rows_of(self, names: Sequence[str]) -> pd.DataFrame:
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in self.rows:
      by_run.setdefault(str(row['run']), []).append(row)
    return pd.DataFrame([row for name in names for row in by_run[name]])

  # -- the environment --------------------------------------------------------

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
