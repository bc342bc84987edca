"""test.sh and quickstart.sh with a stand-in for Python that records calls and installs nothing."""
from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess

import pytest

from tests import helpers

# `-m venv DIR` copies the stand-in to DIR/bin/python; what is listed in $FAILS fails.
STAND_IN = r'''#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
  -V | -VV) echo "Python ${VERSION:-3.11.7}" ;;
  "-c import sys"*) [ "${VERSION:-3.11.7}" != 3.10.1 ] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*"$FAILS"*) [ -z "$FAILS" ] || { echo "pip: no such version" >&2; exit 1; } ;;
  "-m pytest"*) echo "stand-in summary"; exit 5 ;;
  "-m experiments"*) exit 75 ;;
esac
'''


class Clone:
  """A directory with the scripts and the files they read, and the stand-in beside it."""

  def __init__(self, base: Path):
    self.root = base / 'a clone'
    self.calls_file = base / 'calls'
    self.python = base / 'stand-in'
    self.python.write_text(STAND_IN)
    self.python.chmod(0o755)
    (self.root / 'launch').mkdir(parents=True)
    for path in ('setup.cfg', 'pyproject.toml', 'launch/constraints.txt', 'launch/environment.sh',
                 'launch/test.sh', 'launch/quickstart.sh'):
      shutil.copy(helpers.ROOT / path, self.root / path)

  def run(self, script, *args, **env):
    """Calls a script from elsewhere: (exit code, what Python was called for, stdout, stderr)."""
    self.calls_file.unlink(missing_ok=True)
    done = subprocess.run(
        ['bash', str(self.root / 'launch' / script), *args],
        cwd='/', capture_output=True, text=True,
        env={'PATH': os.environ['PATH'], 'PYTHON': str(self.python), 'CALLS': str(self.calls_file),
             'FAILS': '', **env})
    calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
    calls = [call for call in calls if call.startswith('-m ') and call != '-m pip --version']
    return done.returncode, calls, done.stdout, done.stderr


FAST = '-m pytest -m not slow and not benchmark -n 2 --dist loadfile --no-loadscope-reorder'


@pytest.fixture
def clone(tmp_path):
  return Clone(tmp_path)


def installs(calls, extra):
  return [call for call in calls
          if call.startswith('-m pip install') and '-c launch/constraints.txt' in call
          and call.count(f'-e .[{extra}]')]


def test_first_call_installs_and_second_does_not(clone):
  code, calls, stdout, _ = clone.run('test.sh')
  assert code == 5 and 'stand-in summary' in stdout
  assert calls[0] == '-m venv .venv'
  assert len(installs(calls, 'test')) == 1 and len(installs(calls, 'parity')) == 1
  assert calls[-1] == FAST
  assert clone.run('test.sh')[1] == [FAST]


@pytest.mark.parametrize('path', ['setup.cfg', 'launch/constraints.txt'])
def test_a_changed_requirement_installs_again(clone, path):
  clone.run('test.sh')
  with open(clone.root / path, 'a') as file:
    file.write('# changed\n')
  calls = clone.run('test.sh')[1]
  assert installs(calls, 'test') and installs(calls, 'parity') and '-m venv .venv' not in calls


def test_a_moved_clone_installs_again(clone):
  clone.run('test.sh')
  clone.root = clone.root.rename(clone.root.with_name('moved'))
  assert installs(clone.run('test.sh')[1], 'test')


def test_arguments_reach_pytest(clone):
  clone.run('test.sh')
  assert clone.run('test.sh', '-k', 'a or b')[1] == [f'{FAST} -k a or b']
  assert clone.run('test.sh', '--all')[1] == ['-m pytest']
  assert clone.run('test.sh', '--all', '-x')[1] == ['-m pytest -x']


def test_quickstart_shares_the_environment(clone):
  code, calls, _, _ = clone.run('quickstart.sh', '--workdir=/tmp/mine')
  assert code == 75 and installs(calls, 'test') and not installs(calls, 'parity')
  assert calls[-1] == (
      '-m experiments.activation_search --preset=quick --workdir=runs/quickstart '
      '--workdir=/tmp/mine')
  assert not installs(clone.run('test.sh')[1], 'test')


def test_parity_that_cannot_be_installed_is_one_line(clone):
  code, calls, stdout, stderr = clone.run('test.sh', FAILS='parity')
  assert code == 5 and not stderr and calls[-1].startswith('-m pytest')
  assert [line for line in stdout.splitlines() if line.startswith('parity: skipped (')]
  # The general registry first, then the one with the CPU builds.
  assert ['download.pytorch.org' in call for call in installs(calls, 'parity')] == [False, True]


def test_a_failed_install_stops_and_is_tried_again(clone):
  code, calls, _, stderr = clone.run('test.sh', FAILS='test')
  assert code == 1 and 'no such version' in stderr and not calls[-1].startswith('-m pytest')
  assert installs(clone.run('test.sh')[1], 'test')


def test_an_old_python_is_one_line(clone):
  code, calls, stdout, stderr = clone.run('test.sh', VERSION='3.10.1')
  assert (code, calls, stdout) == (2, [], '') and stderr.count('\n') == 1
  assert '3.11 or newer' in stderr and 'Python 3.10.1' in stderr
  assert not (clone.root / '.venv').exists()


def test_a_missing_python_is_one_line(clone):
  code, _, _, stderr = clone.run('quickstart.sh', PYTHON='/nowhere/python')
  assert code == 2 and stderr.count('\n') == 1 and 'not a working Python' in stderr


def test_an_environment_of_another_version_is_one_line(clone):
  clone.run('test.sh')
  other = clone.python.with_name('other')
  other.write_text(STAND_IN.replace('3.11.7', '3.12.1'))
  other.chmod(0o755)
  code, calls, _, stderr = clone.run('test.sh', PYTHON=str(other))
  assert (code, calls) == (2, []) and stderr.count('\n') == 1
  assert '.venv holds Python 3.11.7 and PYTHON asks for Python 3.12.1' in stderr
