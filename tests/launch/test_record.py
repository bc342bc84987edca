"""The record of a finished run: which files, what is taken out, what is refused."""
from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from launch import record as record_lib
from launch.record import main, neutral, record
from launch.study.records import Record
from launch.study.workdir import Workdir
from model_lib.errors import UserError

ENTRY = {
  'started': '2026-01-31T12:00:00+00:00', 'host': 'joes-machine', 'python': '3.11.7',
  'argv': [f'{record_lib.ROOT}/experiments/activation_search.py', '--workdir=/home/joe/w',
           '--config.mlp.activations=relu,ash(axes=last)', '--config.io.data_dir=~/data'],
  'versions': {'jax': '0.10.2'}, 'git': {'commit': 'a' * 40, 'dirty': False, 'changes': None},
  'cpu_model': 'A CPU', 'threads': 2, 'device_kind': 'cpu',
  'variables': {'XLA_FLAGS': '--xla_dump_to=/home/joe/dump --xla_x=1'}}


@pytest.fixture
def workdir(tmp_path):
  """A finished run, as far as files go."""
  found = Workdir(tmp_path / 'run')
  found.create()
  config = {'rate': 1 / 3, 'io': {'data_dir': '/home/joe/data'}}
  Record('activation_search', 'cpu', [config], {'cpu_threads': 2},
         {'name': 'digits', 'sha256': '0' * 64}).write(found)
  found.append_environment(ENTRY)
  found.write_text(found.results, 'member,seed\n0,0\n')
  found.write_json(found.claims, [])
  found.write_text(found.table_md, '### T\n\n| a |\n| - |\n| 1/3 of x /2 |\n')
  found.write_text(found.table_tex, 'x\n')
  found.append_timing({'cohort': 'a'})
  found.write_text(found.figures / 'a.png', 'picture')
  for name in ('metrics.jsonl', 'checkpoints/a/final/x', 'tensorboard/events', 'figures/b.svg'):
    found.write_text(found.path / name, 'large')
  found.write_status('done')
  return found


def files(directory):
  return {str(p.relative_to(directory)): p.read_bytes()
          for p in sorted(Path(directory).rglob('*')) if p.is_file()}


def test_a_record_has_its_files_and_no_others(workdir, tmp_path):
  target = record(workdir, results=tmp_path / 'results')
  assert target == tmp_path / 'results/activation_search/cpu'
  found = files(target)
  assert sorted(found) == [
    'claims.json', 'config.json', 'environment.json', 'figures/a.png', 'results.csv',
    'status.json', 'table.md', 'table.tex', 'timing.jsonl']
  for name in set(found) - {'config.json', 'environment.json'}:
    assert found[name] == (workdir.path / name).read_bytes(), name
  assert [p.name for p in target.parent.iterdir()] == ['cpu']


def test_no_trace_of_the_machine_is_left(workdir, tmp_path):
  target = record(workdir, 'cpu', results=tmp_path / 'results')
  text = b''.join(files(target).values()).decode()
  for trace in ('joe', '/home', str(record_lib.ROOT), '~'):
    assert trace not in text
  (entry,) = json.loads((target / 'environment.json').read_text())
  assert entry == {**ENTRY, 'host': '-', 'argv': [
    'experiments/activation_search.py', '--workdir=DIR', ENTRY['argv'][2],
    '--config.io.data_dir=DIR'],
    'variables': {'XLA_FLAGS': '--xla_dump_to=DIR --xla_x=1'}}
  config = json.loads((target / 'config.json').read_text())
  assert config['config'] == {'rate': 1 / 3, 'io': {'data_dir': 'DIR'}} == config['configs'][0]


@pytest.mark.parametrize('text', [
  'relu(x) / 2', '1/3', 'arXiv 2402.09092, https://arxiv.org/abs/2402.09092', 'runs/cpu', 'a~b'])
def test_what_is_no_absolute_path_stays(text):
  assert neutral({'key': [text]}) == {'key': [text]}


def test_large_rows_are_packed_the_same_each_time(workdir, tmp_path):
  rows = 'member,seed\n' + '0,0\n' * 300_000
  workdir.write_text(workdir.results, rows)
  first = files(record(workdir, 'cpu', results=tmp_path / 'a'))
  assert first['results.csv.gz'][4:8] == bytes(4)  # the time, which git would see
  assert 'results.csv' not in first and gzip.decompress(first['results.csv.gz']).decode() == rows
  assert first == files(record(workdir, 'cpu', results=tmp_path / 'b'))


def test_a_data_set_that_is_not_the_default_is_named(workdir, tmp_path):
  found = Record.read(workdir)
  found.data['name'] = 'cifar10-jpeg75'
  found.write(workdir)
  assert record(workdir, results=tmp_path / 'results').name == 'cpu-cifar10-jpeg75'
  assert record(workdir, 'mine', results=tmp_path / 'results').name == 'mine'


def test_an_old_record_is_replaced_as_a_whole(workdir, tmp_path):
  target = record(workdir, 'cpu', results=tmp_path / 'results')
  (target / 'stale').write_text('x')
  workdir.write_text(workdir.table_md, 'new\n')
  record(workdir, 'cpu', results=tmp_path / 'results')
  assert not (target / 'stale').exists() and (target / 'table.md').read_text() == 'new\n'
  assert [p.name for p in target.parent.iterdir()] == ['cpu']


def test_a_failed_record_leaves_the_old_one(workdir, tmp_path, monkeypatch):
  target = record(workdir, 'cpu', results=tmp_path / 'results')
  before = files(target)
  workdir.table_tex.unlink()
  with pytest.raises(UserError, match='table.tex is missing'):
    record(workdir, 'cpu', results=tmp_path / 'results')
  workdir.write_text(workdir.table_tex, 'x')

  def full(path, content):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(record_lib.atomic, 'write_bytes', full)
  with pytest.raises(UserError, match='disk is full'):
    record(workdir, 'cpu', results=tmp_path / 'results')
  assert files(target) == before and [p.name for p in target.parent.iterdir()] == ['cpu']


@pytest.mark.parametrize('change, message', [
  ({'git': {**ENTRY['git'], 'dirty': True, 'changes': 'x'}}, 'differs from commit aaaaaaaaaaaa'),
  ({'git': None}, 'of no known commit'),
  ({'versions': {'jax': '0.11.2'}}, 'mixes environments .*0.10.2 -> 0.11.2'),
])
def test_a_dirty_or_mixed_environment_is_refused(workdir, tmp_path, change, message):
  workdir.append_environment({**ENTRY, **change})
  with pytest.raises(UserError, match=f'{message}.*--allow_dirty'):
    record(workdir, 'cpu', results=tmp_path / 'results')
  assert not (tmp_path / 'results').exists()
  assert record(workdir, 'cpu', allow_dirty=True, results=tmp_path / 'results').is_dir()


def test_a_mixed_environments_note_names_no_path(workdir, tmp_path):
  note = 'Note: mixed environment: variables.XLA_FLAGS: None -> --xla_dump_to=/home/joe/x.\n'
  workdir.write_text(workdir.table_md, f'| 1 / 3, /5 |\n\n{note}')
  target = record(workdir, 'cpu', allow_dirty=True, results=tmp_path / 'results')
  text = (target / 'table.md').read_text()
  assert '| 1 / 3, /5 |' in text and '--xla_dump_to=DIR' in text and 'joe' not in text


def test_another_start_of_the_same_environment_is_clean(workdir, tmp_path):
  workdir.append_environment({**ENTRY, 'host': 'other', 'started': '2026-02-01T00:00:00+00:00'})
  assert record(workdir, 'cpu', results=tmp_path / 'results').is_dir()


@pytest.mark.parametrize('state', ['running', 'preempted', 'failed'])
def test_an_unfinished_run_is_one_line(workdir, capsys, state):
  workdir.write_status('running')  # as an extension does; what is done is never 'preempted'
  workdir.write_status(state)
  assert main([str(workdir.path), '--name=never', '--allow_dirty']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and f'its status is {state}' in error
  assert not (record_lib.RESULTS / 'activation_search/never').exists()


@pytest.mark.parametrize('arguments, message', [
  (['/nowhere'], '/nowhere is no workdir'), ([], 'WORKDIR'),
  (['--nam=x'], 'unknown flag --nam; nearest: --name;'),
  (['WORKDIR', '--name=../up'], '--name=../up')])
def test_a_mistake_is_one_line(workdir, capsys, arguments, message):
  arguments = [str(workdir.path) if a == 'WORKDIR' else a for a in arguments]
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error
