"""What the command line of a study answers: exit codes, one line, nothing written."""
from __future__ import annotations

import json
from pathlib import Path
import shutil
import time

import numpy as np
import pytest

from launch.study import load_run
from launch.study.records import Record
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from tests.launch import study_runs
from tests.launch.study_runs import COHORTS, LAST, STEPS, Start


@pytest.fixture(scope='module')
def without_jax(tmp_path_factory) -> dict[str, str]:
  """An environment in which `import jax` fails."""
  path = tmp_path_factory.mktemp('path')
  (path / 'jax').mkdir()
  (path / 'jax' / '__init__.py').write_text("raise RuntimeError('jax was imported')\n")
  return {'PYTHONPATH': str(path)}


# On a finished workdir.


def test_a_finished_run_prints_its_table_at_once(reference, without_jax):
  before = study_runs.files(reference.workdir)
  done = study_runs.run(reference.workdir, env=without_jax)
  assert done.seconds < 5
  assert done.out.startswith('Activations on digits, MLP 16, 48 steps')
  assert str(reference.workdir / 'table.md') in done.out and not done.err
  assert study_runs.files(reference.workdir) == before


def test_an_unfinished_run_imports_jax(interrupted, without_jax, tmp_path):
  """Negative control of the test before."""
  workdir = study_runs.copy(interrupted, tmp_path / 'run')
  done = study_runs.run(workdir, env=without_jax, code=1)
  assert 'RuntimeError: jax was imported' in done.err


def test_io_may_change(reference):
  study_runs.answer(reference.workdir, io__checkpoint_interval_s=5)


@pytest.mark.parametrize('finished', [True, False])
def test_a_changed_config_is_refused(reference, interrupted, finished):
  workdir = reference.workdir if finished else interrupted
  before = study_runs.files(workdir)
  done = study_runs.answer(workdir, code=2, mlp__batch_size=64, mlp__activations='relu,gelu')
  assert 'mlp.batch_size: 128 -> 64' in done.line
  assert '["relu", "identity", "crrelu"] -> ["relu", "gelu"]' in done.line
  assert not done.out
  assert study_runs.files(workdir) == before


# Usage.


USAGE = {
  '--config.mlp.activation=relu': 'nearest: mlp.activations',
  '--presett=smoke': '--preset',
  '--config.mlp.steps=many': 'expected an integer',
  '--config.no_such_field=1': 'no_such_field',
  '--extend=maybe': 'expected true or false',
  'loose': "unexpected argument 'loose'",
}


def test_wrong_usage(tmp_path, without_jax):
  workdir = tmp_path / 'run'
  answers = [study_runs.answer(workdir, flag, code=2) for flag in USAGE]
  for done, said in zip(answers, USAGE.values(), strict=True):
    assert said in done.line and done.line.startswith('activation_search: ')
  # As a command, and without jax.
  flag, *_ = USAGE
  assert study_runs.run(workdir, flag, code=2, env=without_jax).err == answers[0].err
  assert not workdir.exists()


def test_a_missing_workdir_flag():
  assert '--workdir' in study_runs.answer(Path(''), code=2).line


def test_unknown_names_and_previews_write_nothing(tmp_path):
  workdir = tmp_path / 'run'
  activation = study_runs.answer(workdir, code=2, mlp__activations='relu,gleu')
  dataset = study_runs.answer(workdir, code=2, dataset='digit')
  listed, resolved = (study_runs.answer(workdir, flag) for flag in ('--list', '--dry_run'))
  assert not workdir.exists()
  assert "'gelu'" in activation.line
  assert "unknown data set 'digit'; nearest: digits;" in dataset.line
  for done in (listed, resolved):
    assert not done.err and '1210' in done.out  # parameters: 64 * 16 + 16 + 16 * 10 + 10
    assert all(cohort in done.out for cohort in COHORTS)
  config = json.loads(resolved.out[:resolved.out.rindex('}') + 1])
  assert config['mlp']['steps'] == STEPS and 'MiB' in resolved.out


# Workdirs.


def test_a_foreign_directory(tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  assert 'is not empty and no workdir' in study_runs.answer(tmp_path, code=2).line
  assert list(study_runs.files(tmp_path)) == ['thesis.tex']


def test_a_parent_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  done = study_runs.answer(tmp_path / 'file' / 'run', code=2)
  assert 'a part of the path is a file' in done.line


def test_a_second_start(reference, tmp_path):
  """It says which process has the workdir, and leaves it alone."""
  workdir = tmp_path / 'run'
  with Start(workdir) as first:
    first.until(lambda: study_runs.status(workdir).get('cohort'))
    done = study_runs.answer(workdir, code=2)
    assert f'is in use by process {first.process.pid} on host' in done.line
    assert first.process.poll() is None
    first.kill()


@pytest.mark.slow
def test_two_starts_at_once(reference, tmp_path):
  """One goes on, the other says who it is."""
  workdir = tmp_path / 'run'
  with Start(workdir) as first, Start(workdir) as second:
    limit = time.monotonic() + 120
    while first.process.poll() is None and second.process.poll() is None:
      assert time.monotonic() < limit
      time.sleep(0.01)
    going, refused = (first, second) if first.process.poll() is None else (second, first)
    done = refused.wait()
    assert done.code == 2
    assert f'is in use by process {going.process.pid} on host' in done.line
    going.kill()


def test_other_data(reference, interrupted, tmp_path):
  """Digits of another hash: refused on an old workdir, which stays as it is."""
  import dataclasses
  from data import builders, digits
  content = digits.read()
  changed = content.inputs['test'].copy()
  changed[0, 0, 0] ^= 1
  builders.write(dataclasses.replace(
      content, inputs={**content.inputs, 'test': changed}), tmp_path / 'data')
  before = study_runs.files(interrupted)
  done = study_runs.answer(interrupted, code=2, io__data_dir=tmp_path / 'data')
  recorded = json.loads((interrupted / 'config.json').read_text())['data']['sha256']
  assert 'was begun with other data' in done.line and recorded[:12] in done.line
  assert study_runs.files(interrupted) == before


def test_nothing_survives(reference, tmp_path):
  workdir = tmp_path / 'run'
  done = study_runs.run(workdir, code=3, mlp__base_rate=1e30, mlp__activations='relu,identity',
                        io__checkpoint_interval_s=100)
  assert done.err.splitlines()[-1].endswith(f'runs survived; see {workdir / "results.csv"}')
  assert 'Traceback' not in done.err and 'Warning' not in done.err
  assert study_runs.status(workdir)['state'] == 'failed'
  assert all(0 <= int(r['diverged_step']) <= STEPS for r in study_runs.rows(workdir))


# What is in the files.


def test_lines_are_unique_and_ordered(reference):
  lines = study_runs.metrics(reference.workdir)
  keys = [(line['run'], line['member'], line['split'], line['step']) for line in lines]
  assert len(set(keys)) == len(keys)
  runs = [line['run'] for line in lines]
  assert list(dict.fromkeys(runs)) == list(COHORTS)
  assert runs == sorted(runs, key=COHORTS.index)
  for cohort in COHORTS:
    training = [(step, member) for run, member, split, step in keys
                if run == cohort and split == 'train']
    assert training == sorted(training)
    assert sorted({step for step, _ in training}) == list(range(3, STEPS + 1, 3))
    assert [key[3] for key in keys if key[0] == cohort] == sorted(
        key[3] for key in keys if key[0] == cohort)


@pytest.mark.slow
def test_the_calls_do_not_show(reference, tmp_path):
  """Other steps per call and another chunk: the same file, rows and parameters."""
  workdir = tmp_path / 'run'
  study_runs.run(workdir, engine__steps_per_call=7, engine__chunk=2,
                 io__checkpoint_interval_s=1000)
  study_runs.assert_same(workdir, reference)


# After the run.


def test_a_loaded_run_has_the_loss_of_its_row(reference):
  import jax
  from data.load import load
  from data.splits import make_splits
  digits = load('digits')
  for row in (study_runs.rows(reference.workdir)[i] for i in (1, 10, -1)):
    model, variables, config = load_run(reference.workdir, int(row['member']))
    test = make_splits(digits, 2, 0)[int(row['split'])].test
    task = config['task']
    inputs = (digits.inputs[test].astype(np.float32) - task['mean']) / task['std']
    logp = jax.nn.log_softmax(model.apply(variables, inputs, train=False))
    loss = -np.asarray(logp, np.float64)[np.arange(len(test)), digits.labels[test]].mean()
    assert loss == pytest.approx(float(row['test_loss']), rel=1e-5)
    assert {k: str(v) for k, v in config['row'].items() if k == 'activation'} == {
        'activation': row['activation']}


def test_loading_where_no_networks_are_kept(tmp_path):
  """A finished workdir whose checkpoints were removed, as in a record; one that has just begun."""
  workdir = Workdir(tmp_path)
  Record('activation_search', 'cpu', [{}]).write(workdir)
  for state, said in (('running', 'no cohort is finished yet'),
                      ('done', r'there are no checkpoints here \(a record keeps no networks\)')):
    workdir.write_status(state)
    with pytest.raises(UserError, match=said):
      load_run(tmp_path, 0)


def test_loading_what_is_not_there(reference, interrupted, tmp_path):
  with pytest.raises(UserError, match=r'no finished member 99; finished are 0 to \d+$'):
    load_run(reference.workdir, 99)
  last = len(study_runs.rows(reference.workdir)) - 1
  with pytest.raises(UserError, match=f'no finished member {last}'):
    load_run(interrupted, last)
  with pytest.raises(UserError) as none:
    load_run(tmp_path / 'none', 0)
  for member in ('0', 1.0, True, None):
    with pytest.raises(UserError, match='member must be an integer, the number of a row of resul'):
      load_run(reference.workdir, member)
  load_run(reference.workdir, np.int64(0))
  workdir = study_runs.copy(reference.workdir, tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints' / LAST / 'final' / 'position')
  with pytest.raises(UserError) as damaged:
    load_run(workdir, last)
  for error in (none, damaged):
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)
