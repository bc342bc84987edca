"""One uninterrupted run of the small study, and one that was killed, for all tests here.

The test processes share them: the first that needs one makes it, each takes a copy of its own.
"""
from __future__ import annotations

from collections.abc import Callable
import fcntl
import os
from pathlib import Path
import shutil

import pytest

from tests.launch import study_runs
from tests.launch.study_runs import LAST, Reference, Start


@pytest.fixture(scope='session')
def made_once(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path,
              data_dir: Path) -> Callable[[str, Callable[[Path], None]], Path]:
  """made_once(name, make): a copy of the directory that `make` fills, once for all processes.

  With it goes what was compiled and prepared on the way: later starts find both as if their own
  process had made it.
  """
  base = tmp_path_factory.getbasetemp()
  shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
  own = {'cache': compile_cache, 'data': data_dir}

  def made(name: str, make: Callable[[Path], None]) -> Path:
    original, beside = shared / f'shared-{name}', shared / f'shared-{name}-beside'
    with open(shared / f'shared-{name}.lock', 'w') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not beside.exists():
        shutil.rmtree(original, ignore_errors=True)  # of a process that failed
        make(original)
        for part, directory in own.items():
          shutil.copytree(directory, beside / part)
    for part, directory in own.items():
      shutil.copytree(beside / part, directory, dirs_exist_ok=True)
    return study_runs.copy(original, tmp_path_factory.mktemp(name) / 'run')
  return made


@pytest.fixture(scope='session')
def reference(made_once) -> Reference:
  """The run that was never interrupted. Its workdir must not be changed: copy it."""
  def make(workdir: Path) -> None:
    study_runs.run(workdir)
    study_runs.assert_clean(workdir)
  return Reference.of(made_once('reference', make))


@pytest.fixture(scope='session')
def interrupted(made_once, reference: Reference) -> Path:
  """A run killed in its last cohort, with three committed steps. To be copied."""
  def make(workdir: Path) -> None:
    with Start(workdir) as start:
      start.until(lambda: len(study_runs.steps(workdir)) >= 3)
      start.kill()
    steps = study_runs.steps(workdir)
    assert 2 <= len(steps) and steps[-1] < study_runs.STEPS, steps
    assert LAST not in study_runs.finished(workdir)
  return made_once('interrupted', make)
