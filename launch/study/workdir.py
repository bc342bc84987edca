"""The directory of a run: its files, its lock, and the small records kept beside the results."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.study import atomic
from launch.study.lock import Lock
from model_lib.errors import UserError

STATES = ('running', 'preempted', 'failed', 'done')


class Workdir:
  """A run's directory. Making the object touches nothing on the disk.

  All `write_*` methods replace a file in one step (see `atomic`), and all errors of the file system
  are a `UserError` of one line with the path.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(os.path.abspath(os.path.expanduser(path)))
    self._lock = Lock(self.path / 'lock')
    self._status_mutex = threading.Lock()
    self._left = False

  def __fspath__(self) -> str:
    return str(self.path)

  @property
  def config(self) -> Path:
    return self.path / 'config.json'

  @property
  def environment(self) -> Path:
    return self.path / 'environment.json'

  @property
  def status(self) -> Path:
    return self.path / 'status.json'

  @property
  def metrics(self) -> Path:
    return self.path / 'metrics.jsonl'

  @property
  def timing(self) -> Path:
    return self.path / 'timing.jsonl'

  @property
  def results(self) -> Path:
    return self.path / 'results.csv'

  @property
  def packed_results(self) -> Path:
    """What a large record has in place of results.csv."""
    return self.path / 'results.csv.gz'

  @property
  def claims(self) -> Path:
    return self.path / 'claims.json'

  @property
  def table_md(self) -> Path:
    return self.path / 'table.md'

  @property
  def table_tex(self) -> Path:
    return self.path / 'table.tex'

  @property
  def figures(self) -> Path:
    return self.path / 'figures'

  @property
  def checkpoints(self) -> Path:
    return self.path / 'checkpoints'

  @property
  def tensorboard(self) -> Path:
    return self.path / 'tensorboard'

  def exists(self, study: str) -> bool:
    """Whether this is a workdir of `study` already; False for a new one. Only reads.

    Raises:
      UserError: the path is a file, a directory with other files in it, or another study's.
    """
    with atomic.as_user_error(self.path, 'read'):
      try:
        names = set(os.listdir(self.path))
      except FileNotFoundError:
        return False
    if self.config.name not in names:
      # A first start that was killed leaves its lock, and the records of that start, behind.
      early = {'lock', self.environment.name, self.status.name}
      rest = {name for name in names if not atomic.is_temporary(name)}
      if not rest or ('lock' in rest and rest <= early):
        return False
      raise UserError(
          f'{self.path} is not empty and no workdir (no config.json in it); name another --workdir')
    found = self.read_config().get('study')
    if found != study:
      raise UserError(
          f'{self.path} is a workdir of the study {found}, not of {study}; name another --workdir')
    return True

  def create(self) -> None:
    """Makes the directory where it is missing. Raises UserError when that cannot be."""
    with atomic.as_user_error(self.path, 'create'):
      self.path.mkdir(parents=True, exist_ok=True)

  def lock(self, log: Callable[[str], None]) -> None:
    """Becomes the only process of the directory, and clears what a killed one left half-written.

    Args:
      log: gets one line when the lock of a dead process is replaced.

    Raises:
      UserError: another process has it, or one on another host may have it.
    """
    self._lock.acquire(log)
    for directory in (self.path, self.figures):
      atomic.remove_temporaries(directory)

  def unlock(self) -> None:
    """Gives the directory back; does nothing when it is not locked."""
    self._lock.release()

  @contextlib.contextmanager
  def locked(self, log: Callable[[str], None]) -> Iterator[None]:
    """`lock` and `unlock` around a block."""
    self.lock(log)
    try:
      yield
    finally:
      self.unlock()

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Writes config.json; it must have the key 'study', by which the directory is recognised."""
    if not isinstance(config.get('study'), str):
      raise ValueError("config.json needs the study's name under 'study'")
    atomic.write_json(self.config, config)

  def read_config(self) -> dict[str, Any]:
    """The content of config.json."""
    value = atomic.read_json(self.config)
    if not isinstance(value, dict):
      raise UserError(f'{self.config} is damaged: it holds no JSON object')
    return value

  def write_text(self, path: Path, text: str) -> None:
    """Replaces one of the directory's files by `text`; makes its directory where it is missing."""
    self._make_parent(path)
    atomic.write_text(path, text)

  def write_json(self, path: Path, value: Any) -> None:
    """Replaces one of the directory's files by JSON; NaN and infinities become null."""
    self._make_parent(path)
    atomic.write_json(path, value)

  def write_csv(
      self,
      path: Path,
      rows: Sequence[Mapping[str, Any]],
      columns: Sequence[str] | None = None,
  ) -> None:
    """Replaces one of the directory's files by a CSV table (see `atomic.write_csv`)."""
    self._make_parent(path)
    atomic.write_csv(path, rows, columns)

  def write_status(
      self,
      state: str,
      *,
      step: int | None = None,
      cohort: str | None = None,
      eta_s: float | None = None,
  ) -> None:
    """Writes status.json: state, step, cohort, eta_s, preemption_count, updated (ISO 8601, UTC).

    Args:
      state: 'running', 'preempted', 'failed' or 'done'. Writing 'preempted' counts a preemption and
        is the last word of this process: a later 'running' of another thread is dropped.
      step: the step reached in the cohort.
      cohort: name of the running cohort.
      eta_s: seconds until the cohort is done, as estimated.
    """
    if state not in STATES:
      raise ValueError(f'state must be one of {", ".join(STATES)}; got {state!r}')
    with self._status_mutex:
      if self._left:
        return
      self._left = state == 'preempted'
      old = self.read_status()
      if state == 'preempted' and old.get('state') == 'done':
        return  # It was done before the request to leave.
      atomic.write_json(self.status, {
          'state': state,
          'step': step if step is not None else old.get('step'),
          'cohort': cohort if cohort is not None else old.get('cohort'),
          'eta_s': eta_s,
          'preemption_count': old.get('preemption_count', 0) + (state == 'preempted'),
          'updated': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      })

  def read_status(self) -> dict[str, Any]:
    """The content of status.json, {} before the first one."""
    return atomic.read_json(self.status) if self.status.exists() else {}

  def append_environment(self, entry: Mapping[str, Any]) -> None:
    """Adds the entry of this start to environment.json."""
    atomic.write_json(self.environment, [*self.read_environments(), dict(entry)])

  def read_environments(self) -> list[dict[str, Any]]:
    """The entries of all starts, oldest first; [] before the first one."""
    return atomic.read_json(self.environment) if self.environment.exists() else []

  def append_timing(self, entry: Mapping[str, Any]) -> None:
    """Adds a line to timing.jsonl, the file of everything that differs between repetitions."""
    atomic.append_line(self.timing, json.dumps(entry))

  def _make_parent(self, path: Path) -> None:
    if path.parent != self.path:
      with atomic.as_user_error(path.parent, 'create'):
        path.parent.mkdir(parents=True, exist_ok=True)
