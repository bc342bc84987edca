"""What every test runs under: fixed threads, no rank promotion, temporary data and caches.

The settings are environment variables, set before jax is imported: child processes get the same.
"""
from __future__ import annotations

from collections.abc import Iterator
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest

# Here, since tests of any folder may import it before tests/launch/conftest.py runs.
pytest.register_assert_rewrite('tests.launch.study_runs')

# XLA's thread pool: the bits of some programs depend on its size.
os.environ.setdefault('NPROC', '2')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

# No deadline, since compiling counts as the first example's time; the same examples on every run.
hypothesis.settings.register_profile(
    'actnorm', deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile('actnorm')


@pytest.fixture(scope='session', autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
  """An empty data directory, one for the session: no test reads or writes the user's own.

  $ACTNORM_DATA_DIR names it, for this process and for children.
  """
  path = tmp_path_factory.mktemp('data')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ACTNORM_DATA_DIR', str(path))
    yield path


@pytest.fixture(scope='session')
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
  """A compilation cache for child processes, so that a study started many times compiles once.

  jax reads the variables when it is imported: nothing changes in this process.
  """
  path = tmp_path_factory.mktemp('compile_cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(path))
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    # XLA's own caches are for GPUs; their path would be a part of every key of this cache, whose
    # entries tests/launch/conftest.py copies to another path.
    patch.setenv('JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES', 'none')
    yield path


@pytest.fixture(scope='module')
def unoptimized(request: pytest.FixtureRequest) -> Iterator[None]:
  """In the fast tier the module's programs are compiled without optimization, which saves time.

  For tests of values up to rounding, or within one program. What users get is optimized, so tests
  of the bits of members and of resumed runs, of times and of memory do without this, and a run
  that does not leave the slow tier out compiles everything as users do.
  """
  if 'not slow' not in request.config.option.markexpr:
    yield
    return
  import jax
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


# Whole studies in child processes take longest: they come first, since a process that has no file
# left waits for the other. (pytest-xdist's own order, most tests first, puts them last.)
_FIRST = ('test_readme.py', 'launch', 'experiments')
# What the tests marked `parity` compare with.
PARITY = ('torch', 'transformers', 'mup')


def _place(item: pytest.Item) -> int:
  part = item.path.relative_to(Path(__file__).parent).parts[0]
  return _FIRST.index(part) if part in _FIRST else len(_FIRST)


def _missing() -> str:
  """What the parity tests need and is not installed, '' if nothing."""
  return next((name for name in PARITY if importlib.util.find_spec(name) is None), '')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  items.sort(key=_place)
  missing = _missing()
  if missing:
    for item in items:
      if item.get_closest_marker('parity'):
        item.add_marker(pytest.mark.skip(reason=f'{missing} is not installed'))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
  """One line that says whether the parity tests ran."""
  missing = _missing()
  if missing:
    line = f'skipped ({missing} is not installed; the extra `parity` has it for Python 3.11)'
  else:
    reports = [
      report for outcome in ('passed', 'failed')
      for report in terminalreporter.stats.get(outcome, ())
      if report.when == 'call' and 'parity' in report.keywords]
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in PARITY)
    line = (f'ran {len(reports)} tests against {versions}' if reports
            else 'no parity test was selected')
  terminalreporter.write_line(f'parity: {line}')
