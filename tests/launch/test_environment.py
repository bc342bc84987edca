"""The record of what the bits depend on, and the checks at start-up."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import environment
from model_lib.errors import UserError

ROOT = Path(__file__).parents[2]


def test_snapshot_is_json_and_complete(monkeypatch):
  monkeypatch.setenv('JAX_ENABLE_X64', '0')
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
  monkeypatch.setenv('NPROC', '3')
  entry = environment.snapshot(['study', '--workdir=w'])
  assert json.loads(json.dumps(entry)) == entry
  assert entry['argv'] == ['study', '--workdir=w']
  assert {'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy'} <= set(entry['versions'])
  assert entry['variables']['XLA_FLAGS'].endswith('=4')
  assert entry['variables']['JAX_ENABLE_X64'] == '0'
  assert entry['threads'] == 3 and entry['cpus_usable'] >= 1
  assert entry['cpu_model'] and entry['python'] == sys.version.split()[0]
  assert len(entry['git']['commit']) == 40


def test_git_tells_a_changed_file(tmp_path):
  def git(*arguments):
    subprocess.run(
        ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path), *arguments],
        check=True, capture_output=True)

  assert environment._git(tmp_path) is None
  git('init', '-q')
  (tmp_path / 'a.py').write_text('x = 1\n')
  git('add', 'a.py')
  git('commit', '-q', '-m', 'one')
  clean = environment._git(tmp_path)
  assert clean['dirty'] is False and clean['changes'] is None
  (tmp_path / 'a.py').write_text('x = 2\n')
  dirty = environment._git(tmp_path)
  assert dirty['dirty'] is True and dirty['commit'] == clean['commit'] and dirty['changes']
  assert environment.compare({'git': clean}, {'git': dirty}).mixed


ENTRY = {
    'python': '3.11.7', 'versions': {'jax': '0.10.2', 'chex': '0.1.9'}, 'host': 'a',
    'git': {'commit': 'c1', 'dirty': False, 'changes': None}, 'cpu_model': 'X', 'threads': 2,
    'variables': {'XLA_FLAGS': ''}, 'data': {'digits': 'd1'}, 'device_kind': 'cpu', 'argv': ['s'],
    'started': 'then'}


@pytest.mark.parametrize('path, value, mixed', [
    (('versions', 'jax'), '0.11.0', True),
    (('versions', 'libtpu'), '1', True),
    (('versions', 'chex'), '0.2', False),
    (('python',), '3.12.1', True),
    (('git', 'commit'), 'c2', True),
    (('cpu_model',), 'Y', True),
    (('device_kind',), 'NVIDIA H100', True),
    (('threads',), 4, True),
    (('data', 'digits'), 'd2', True),
    (('data', 'mnist'), 'm1', False),
    (('variables', 'XLA_FLAGS'), '--x', True),
    (('variables', 'JAX_ENABLE_X64'), '1', True),
    (('variables', 'JAX_COMPILATION_CACHE_DIR'), '/tmp', False),
    (('host',), 'b', False),
    (('argv',), ['s', '--extend'], False),
])
def test_compare(path, value, mixed):
  new = copy.deepcopy(ENTRY)
  place = new
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  found = environment.compare(ENTRY, new)
  assert len(found.mixed) == (1 if mixed else 0)
  assert len(found.harmless) == (0 if mixed else 1)
  line = (found.mixed or found.harmless)[0]
  assert line.startswith('.'.join(path)) and '\n' not in line


def test_compare_same_and_unknown():
  later = copy.deepcopy(ENTRY) | {'started': 'now'}
  assert environment.compare(ENTRY, later) == ([], [])
  assert environment.compare({'host': 'a'}, ENTRY) == ([], [])


@pytest.fixture
def no_jax(monkeypatch):
  monkeypatch.setenv('NPROC', 'restored at the end')
  monkeypatch.delenv('NPROC')
  monkeypatch.delitem(sys.modules, 'jax', raising=False)


def test_threads(no_jax, monkeypatch):
  assert environment.fix_threads(None) == len(os.sched_getaffinity(0)) == int(os.environ['NPROC'])
  monkeypatch.setenv('NPROC', '5')
  assert environment.fix_threads(None) == 5
  assert environment.fix_threads(3) == 3 and os.environ['NPROC'] == '3'


@pytest.mark.parametrize('text', ['0', 'two', '-1', '', '1.5'])
def test_threads_refuses(no_jax, monkeypatch, text):
  monkeypatch.setenv('NPROC', text)
  with pytest.raises(UserError, match='NPROC='):
    environment.fix_threads(None)


def test_threads_come_before_jax(no_jax, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax', sys)
  monkeypatch.setenv('NPROC', '2')
  assert environment.fix_threads(2) == 2
  with pytest.raises(RuntimeError, match='too late'):
    environment.fix_threads(3)
  monkeypatch.delenv('NPROC')
  with pytest.raises(RuntimeError, match='too late'):
    environment.fix_threads(2)
  assert 'NPROC' not in os.environ


def _check_in(directory: Path, study_file: Path) -> subprocess.CompletedProcess:
  code = 'import sys; from launch import environment; environment.check_editable(sys.argv[1])'
  path = os.pathsep.join([str(directory), str(ROOT)])
  return subprocess.run(
      [sys.executable, '-c', code, str(study_file)], cwd=directory, capture_output=True, text=True,
      env=os.environ | {'PYTHONPATH': path}, check=False)


def test_editable(tmp_path):
  study = ROOT / 'experiments' / 'study.py'
  done = _check_in(tmp_path, study)
  assert done.returncode == 0, done.stderr
  other = _check_in(tmp_path, tmp_path / 'checkout' / 'experiments' / 'study.py')
  assert "UserError: the package 'data' comes from" in other.stderr


@pytest.mark.parametrize('name', ['data.py', 'data/__init__.py', 'experiments/__init__.py'])
def test_foreign_package_is_refused(tmp_path, name):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text('')
  done = _check_in(tmp_path, ROOT / 'experiments' / 'study.py')
  line = done.stderr.strip().splitlines()[-1]
  assert f'comes from {tmp_path}' in line and f'pip install -e {ROOT}' in line


def test_a_study_started_by_its_path_is_told_its_module():
  path = Path('experiments') / 'gallery.py'
  done = subprocess.run(
      [sys.executable, str(path), '--list'], cwd=ROOT, capture_output=True, text=True,
      env=os.environ | {'PYTHONPATH': str(ROOT)}, check=False)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == f'gallery: run `python -m experiments.gallery` from {ROOT}\n'


def test_missing_package_is_refused(monkeypatch):
  monkeypatch.setattr(environment, 'TOP_LEVEL', ('launch', 'no_such_package'))
  with pytest.raises(UserError, match='no_such_package'):
    environment.check_editable(ROOT / 'experiments' / 'study.py')
