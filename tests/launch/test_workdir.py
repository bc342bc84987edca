"""The run directory: atomic files, the lock, the records, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.study import atomic
from launch.study.lock import Owner
from launch.study.workdir import Workdir
from model_lib.errors import UserError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from launch.study.workdir import Workdir
workdir = Workdir(sys.argv[1])
workdir.create()
workdir.lock(print)
print('locked', flush=True)
time.sleep(60)
"""


@pytest.fixture
def workdir(tmp_path):
  made = Workdir(tmp_path / 'run')
  made.create()
  return made


@pytest.fixture
def holder(workdir):
  """A process that holds the lock."""
  process = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(workdir.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'locked\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def message(function, *args) -> str:
  with pytest.raises(UserError) as caught:
    function(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


# Files.


def test_write_replaces_and_leaves_nothing_beside(workdir):
  workdir.write_text(workdir.table_md, 'old\n')
  workdir.write_text(workdir.table_md, 'new é\n')
  assert workdir.table_md.read_bytes() == 'new é\n'.encode()
  workdir.write_text(workdir.figures / 'a.txt', 'x')
  assert sorted(os.listdir(workdir.path)) == ['figures', 'table.md']


def test_json_and_csv(workdir):
  workdir.write_json(workdir.claims, [{'ours': float('nan'), 'n': 3, 'interval': (0.1, 1.0)}])
  assert json.loads(workdir.claims.read_text()) == [{'ours': None, 'n': 3, 'interval': [0.1, 1.0]}]
  rows = [{'name': 'a,"b"', 'loss': 0.1 + 0.2}, {'name': 'c', 'loss': None, 'extra': 1e-300}]
  workdir.write_csv(workdir.results, rows)
  with open(workdir.results, newline='') as file:
    read = list(csv.DictReader(file))
  assert [float(read[0]['loss']), float(read[1]['extra'])] == [0.1 + 0.2, 1e-300]
  assert read[0]['name'] == 'a,"b"' and read[1]['loss'] == '' and read[0]['extra'] == ''
  assert b'\r' not in workdir.results.read_bytes()
  with pytest.raises(ValueError, match='extra'):
    workdir.write_csv(workdir.results, rows, ['name', 'loss'])


@pytest.fixture
def small_files():
  """A disk on which no file may grow beyond 4 KiB."""
  old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old_limit[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
  signal.signal(signal.SIGXFSZ, old_handler)


def test_full_disk_keeps_the_old_file(workdir, small_files):
  workdir.write_text(workdir.results, 'old')
  text = message(workdir.write_text, workdir.results, 'x' * 5000)
  assert str(workdir.results) in text and 'largest allowed size' in text
  assert workdir.results.read_text() == 'old'
  assert os.listdir(workdir.path) == ['results.csv']
  workdir.write_text(workdir.results, 'y' * 4000)
  assert workdir.results.read_text() == 'y' * 4000


def test_a_plain_write_would_have_lost_the_old_file(workdir, small_files):
  workdir.results.write_text('old')
  with pytest.raises(OSError):
    workdir.results.write_text('x' * 5000)
  assert workdir.results.read_text() != 'old'


def test_killed_writer_leaves_the_old_file(workdir):
  code = (
      'import os, sys, signal\nfrom launch.study import atomic\n'
      'os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n'
      'atomic.write_text(sys.argv[1], "new")')
  workdir.write_text(workdir.results, 'old')
  done = subprocess.run([sys.executable, '-c', code, str(workdir.results)], cwd=ROOT, check=False)
  assert done.returncode == -signal.SIGKILL
  assert workdir.results.read_text() == 'old'
  left = set(os.listdir(workdir.path)) - {'results.csv'}
  assert len(left) == 1 and atomic.is_temporary(*left)
  workdir.lock(print)
  assert sorted(os.listdir(workdir.path)) == ['lock', 'results.csv']
  workdir.unlock()


def test_write_into_a_directory_that_is_gone(tmp_path):
  assert 'the directory is gone or cannot be made' in message(atomic.write_text, tmp_path / 'no' / 'file', 'x')
  (tmp_path / 'table').mkdir()
  text = message(atomic.write_text, tmp_path / 'table', 'x')
  assert 'a directory of that name' in text and os.listdir(tmp_path) == ['table']


def test_append_line_ends_a_torn_line(tmp_path):
  path = tmp_path / 'timing.jsonl'
  atomic.append_line(path, '{"a": 1}')
  with open(path, 'a') as file:
    file.write('{"a": ')
  atomic.append_line(path, '{"a": 2}')
  atomic.append_line(path, '{"a": 3}')
  assert path.read_text().split('\n') == ['{"a": 1}', '{"a": ', '{"a": 2}', '{"a": 3}', '']


# Which directories are taken.


def test_parent_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('x')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    workdir = Workdir(path)
    assert str(path) in message(workdir.exists, 'study')
    assert str(path) in message(workdir.create)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs a directory that takes no files')
def test_directory_that_cannot_be_written():
  assert 'cannot create /proc/self/run' in message(Workdir('/proc/self/run').create)
  assert '/proc/self/lock' in message(Workdir('/proc/self').lock, print)


def test_new_empty_and_half_begun_directories_are_new(tmp_path):
  workdir = Workdir(tmp_path / 'run')
  assert not workdir.exists('study')
  assert not workdir.path.exists()
  workdir.create()
  assert not workdir.exists('study')
  (workdir.path / 'lock').write_text('')
  (workdir.path / '.config.json.7.7.partial').write_text('{')
  workdir.write_status('running')
  assert not workdir.exists('study')


@pytest.mark.parametrize('names', [['thesis.tex'], ['lock', 'thesis.tex'], ['status.json']])
def test_foreign_directory_is_refused(workdir, names):
  for name in names:
    (workdir.path / name).write_text('x')
  text = message(workdir.exists, 'study')
  assert str(workdir.path) in text and 'no workdir' in text
  assert sorted(os.listdir(workdir.path)) == sorted(names)


def test_workdir_of_another_study_is_refused(workdir):
  workdir.write_config({'study': 'crrelu', 'config': {'a': 1}})
  assert workdir.exists('crrelu')
  text = message(workdir.exists, 'search')
  assert 'crrelu' in text and 'search' in text
  workdir.config.write_text('{"study": ')
  assert f'{workdir.config} is damaged' in message(workdir.exists, 'crrelu')
  workdir.config.write_text('[]')
  assert 'is damaged' in message(workdir.exists, 'crrelu')
  with pytest.raises(ValueError):
    workdir.write_config({'config': {}})


# The lock.


def test_lock_is_removed_on_unlock_and_can_be_taken_again(workdir):
  lines = []
  for _ in range(2):
    with workdir.locked(lines.append):
      owner = Owner.read((workdir.path / 'lock').read_bytes())
      assert owner.pid == os.getpid() and owner.alive()
    assert os.listdir(workdir.path) == []
  assert lines == []


def test_live_owner_is_refused(workdir, holder):
  text = message(workdir.lock, print)
  assert str(workdir.path) in text and f'process {holder.pid}' in text
  assert (workdir.path / 'lock').exists()


def test_owner_that_has_not_yet_written_its_name_is_refused(workdir, holder):
  (workdir.path / 'lock').write_bytes(b'')
  assert 'in use by another process' in message(workdir.lock, print)


def test_dead_owner_is_replaced_with_one_line(workdir, holder):
  holder.kill()
  holder.wait()
  lines = []
  workdir.lock(lines.append)
  assert len(lines) == 1 and f'process {holder.pid}' in lines[0]
  assert message(Workdir(workdir.path).lock, print)
  workdir.unlock()


def test_owner_waiting_for_its_parent_is_dead(workdir, holder):
  holder.kill()
  deadline = time.monotonic() + 5
  while 'Z' not in Path(f'/proc/{holder.pid}/stat').read_text().rpartition(')')[2][:3]:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  workdir.lock(lambda line: None)
  workdir.unlock()


def test_other_process_with_the_same_number_is_no_owner(workdir):
  owner = json.loads(json.dumps(Owner.current().__dict__))
  lock = workdir.path / 'lock'
  lock.write_text(json.dumps(owner | {'started': '1'}))
  lines = []
  workdir.lock(lines.append)
  workdir.unlock()
  lock.write_text(json.dumps(owner | {'boot': 'the one before'}))
  workdir.lock(lines.append)
  workdir.unlock()
  assert len(lines) == 2


def test_live_owner_counts_where_flock_does_not_reach(workdir):
  lock = workdir.path / 'lock'
  lock.write_text(json.dumps(Owner.current().__dict__))
  assert f'process {os.getpid()}' in message(workdir.lock, print)
  lock.write_text(json.dumps(Owner.current().__dict__ | {'host': 'elsewhere', 'started': '1'}))
  text = message(workdir.lock, print)
  assert 'elsewhere' in text and f'remove {lock}' in text
  lock.write_text('{"host": ')
  workdir.lock(print)
  workdir.unlock()


# Records.


def test_status(workdir):
  assert workdir.read_status() == {}
  workdir.write_status('running', step=5, cohort='lr', eta_s=12.5)
  status = workdir.read_status()
  assert set(status) == {'state', 'step', 'cohort', 'eta_s', 'preemption_count', 'updated'}
  assert (status['state'], status['step'], status['preemption_count']) == ('running', 5, 0)
  workdir.write_status('preempted')
  workdir.write_status('running', step=6)
  status = workdir.read_status()
  assert (status['state'], status['step'], status['cohort']) == ('preempted', 5, 'lr')
  again = Workdir(workdir.path)
  again.write_status('running', step=7)
  again.write_status('preempted')
  assert again.read_status()['preemption_count'] == 2
  with pytest.raises(ValueError):
    again.write_status('paused')


def test_environment_and_timing_grow(workdir):
  assert workdir.read_environments() == []
  workdir.append_environment({'host': 'a'})
  workdir.append_environment({'host': 'b'})
  assert workdir.read_environments() == [{'host': 'a'}, {'host': 'b'}]
  workdir.append_timing({'wall_s': 1.0})
  workdir.append_timing({'wall_s': 2.0})
  assert [json.loads(line)['wall_s'] for line in open_lines(workdir.timing)] == [1.0, 2.0]
  workdir.environment.write_text('[{')
  assert str(workdir.environment) in message(workdir.append_environment, {'host': 'c'})


def open_lines(path: Path) -> list[str]:
  return path.read_text().splitlines()


def test_paths_are_the_documented_ones(workdir):
  names = {
      'config': 'config.json', 'environment': 'environment.json', 'status': 'status.json',
      'metrics': 'metrics.jsonl', 'timing': 'timing.jsonl', 'results': 'results.csv',
      'packed_results': 'results.csv.gz',
      'claims': 'claims.json', 'table_md': 'table.md', 'table_tex': 'table.tex',
      'figures': 'figures', 'checkpoints': 'checkpoints', 'tensorboard': 'tensorboard'}
  assert {name: getattr(workdir, name).name for name in names} == names
  assert Workdir('~/x').path == Path.home() / 'x'


def test_what_is_done_is_not_preempted(tmp_path):
  """A request to leave that comes after the end changes nothing; a new start may."""
  workdir = Workdir(tmp_path)
  workdir.write_status('done')
  workdir.write_status('preempted')
  assert workdir.read_status()['state'] == 'done'
  again = Workdir(tmp_path)
  again.write_status('running')
  again.write_status('preempted')
  assert again.read_status()['state'] == 'preempted'
