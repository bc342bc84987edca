"""One start of a study, from the loaded data to the report."""

from __future__ import annotations

import jax
import numpy as np

from launch import environment
from launch.preemption import Preemption
from launch.study import config as config_lib
from launch.study import datasets
from launch.study import finish
from launch.study.asked import check_distinct
from launch.study.progress import say
from launch.study.records import Record
from launch.study.runner import Runner
from launch.study.study import Run, Study
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort
from model_lib.training.loop import Preempted

__all__ = ['NothingSurvived', 'Preempted', 'open_data', 'run', 'say']


class NothingSurvived(Exception):
  """Every run of a study diverged; the message says where to look."""


def open_data(study: Study, config, record: Record | None,
              workdir: Workdir) -> datasets.StudyData | None:
  """Checks the config against the registries and loads the data. Writes nothing in the workdir.

  A study without data has none to load.

  Raises:
    UserError, DataError: a name that does not exist, data that is missing, or
      data that is not the one the run began with.
  """
  study.check(config)
  for earlier in record.configs[:-1] if record else ():
    if study.data(config_lib.from_dict(study.config, earlier)) != study.data(config):
      raise UserError(f'{workdir.path}: --extend cannot change the data that a run reads')
  data = datasets.load(study.data(config), config.io.data_dir)
  if data is None:
    return None
  begun = _hashes(record) if record is not None else {}
  for name, sha256 in data.hashes().items():
    if begun.get(name, sha256) != sha256:
      raise UserError(
          f'{workdir.path} was begun with other data: {name} had sha256 {begun[name][:12]}..., now '
          f'{sha256[:12]}...; bring the data back, or name another --workdir')
  # A study without a check of its own finds its misspelt models and repeated arms here.
  asked = next(study.cohorts(config), ())
  check_distinct(config, asked)
  for cohort in asked:
    if isinstance(cohort, Cohort):
      data.of(cohort).check(cohort)
  return data


def _hashes(record: Record) -> dict[str, str]:
  """Data sets by name that the run was begun with."""
  found = record.data
  return {found['name']: found['sha256'], **found.get('beside', {})} if found else {}


def run(study: Study, record: Record, workdir: Workdir, preemption: Preemption,
        data: datasets.StudyData | None, threads: int) -> None:
  """Runs or resumes the study in its locked workdir and writes its report.

  Raises:
    Preempted: after a save, when the run was asked to stop.
    NothingSurvived: every run diverged.
    UserError: a mistake in the config or the workdir.
  """
  device = jax.devices()[0]
  record.engine = {'cpu_threads': threads, 'device_kind': device.device_kind,
                   'devices': 1, **record.engine}
  record.data = {'name': data.dataset.name, 'sha256': data.dataset.sha256} if data else {}
  others = {name: sha256 for name, sha256 in data.hashes().items()
            if name != data.dataset.name} if data else {}
  if others:
    record.data['beside'] = others
  if workdir.status.exists():
    # Before config.json has an extension: a kill in between must not leave it beside 'done'.
    workdir.write_status('running')
  record.write(workdir)
  entry = environment.snapshot() | {
      'device_kind': device.device_kind, 'device_count': 1,
      'data': data.hashes() if data else {}}
  runner = Runner(study, record, workdir, preemption, data, entry)
  try:
    rows = runner.run()
  finally:
    runner.close()
  # The rows of measurements have no such entry: nothing was trained for them.
  diverged = rows.diverged_step.dropna() if 'diverged_step' in rows else ()
  if len(diverged) and not np.any(diverged < 0):
    raise NothingSurvived(f'none of the {len(diverged)} runs survived; see {workdir.results}')
  with preemption.busy('writing the report'):
    config = config_lib.from_dict(study.config, record.configs[-1])
    report = Run(config, rows, lambda: finish.read_metrics(workdir.metrics),
                 record.data.get('name', ''), runner.notes, data.class_shares() if data else ())
    finish.finish(study, report, workdir, config.io.figures)
