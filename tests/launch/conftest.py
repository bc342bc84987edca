"""One uninterrupted run of the small study, and one that was killed, for all tests here."""
from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite('tests.launch.study_runs')

from tests.launch import study_runs
from tests.launch.study_runs import LAST, Reference, Start


@pytest.fixture(scope='session')
def reference(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path) -> Reference:
  """The run that was never interrupted. Its workdir must not be changed: copy it."""
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  study_runs.run(workdir)
  study_runs.assert_clean(workdir)
  return Reference.of(workdir)


@pytest.fixture(scope='session')
def interrupted(tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Path:
  """A run killed in its last cohort, with three committed steps. To be copied."""
  workdir = tmp_path_factory.mktemp('interrupted') / 'run'
  with Start(workdir) as start:
    start.until(lambda: len(study_runs.steps(workdir)) >= 3)
    start.kill()
  steps = study_runs.steps(workdir)
  assert 2 <= len(steps) and steps[-1] < study_runs.STEPS, steps
  assert LAST not in study_runs.finished(workdir)
  return workdir
