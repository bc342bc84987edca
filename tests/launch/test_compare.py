"""`python -m launch.compare` on small workdirs written by hand."""
from __future__ import annotations

import gzip

import pandas as pd
import pytest

from launch import compare
from launch.study import claims
from launch.study.workdir import Workdir
from model_lib.analysis import statistics
from tests import helpers

CLAIM = claims.Claim('worse', 'The identity is worse.', 'Sec. 1', 0.9, 'loss', 'interval', 'null')


def _rows(shift=0.0):
  rows = []
  for phase, factors in (('selection', (0.3, 1.0)), ('fresh', (1.0,))):
    for activation in ('relu', 'gelu'):
      for factor in factors:
        for seed in range(3):
          rows.append(dict(
              member=len(rows), run='c', phase=phase, model='mlp', activation=activation, copy=0,
              lr_factor=factor, seed=seed, split=seed, steps=50, diverged_step=-1,
              train_loss=0.1, test_loss=0.5 + shift + seed * 0.1, test_accuracy=0.9, step_us=80.0))
  return rows


def _workdir(path, study='experiments.a', rows=None, state='done', preset='smoke', verdict=None):
  workdir = Workdir(path)
  workdir.create()
  workdir.write_config({'study': study, 'preset': preset, 'config': {'steps': 50}})
  workdir.write_csv(workdir.results, rows or _rows())
  outcome = verdict or claims.Outcome('reproduced', 0.88, (0.8, 0.95), 3)
  claims.write_claims(workdir.claims, [claims.Verdict(CLAIM, outcome)])
  workdir.write_status(state)
  return str(path)


def test_rows_are_grouped_by_what_a_run_is(tmp_path):
  first = _workdir(tmp_path / 'w1')
  rows = _rows(shift=1.0)
  lost = next(r for r in rows if r['phase'] == 'fresh' and r['seed'] == 2)
  lost.update(diverged_step=7, test_loss=None)
  second = _workdir(tmp_path / 'w2', rows=rows, preset='cpu')
  table, _ = compare.compare([first, second])
  assert len(table.rows) == 2 * (2 * 2 + 2)
  found = {(r['workdir'], r['phase'], r['activation'], r['lr_factor']): r for r in table.rows}
  row = found['w1', 'selection', 'gelu', 0.3]
  expected = statistics.mean_interval([0.5, 0.6, 0.7])
  assert (row['n'], row['diverged'], row['test_loss']) == (3, 0, pytest.approx(expected.mean))
  assert row['test_loss interval'] == pytest.approx((expected.low, expected.high))
  diverged = found['w2', 'fresh', 'relu', 1.0]
  assert (diverged['n'], diverged['diverged']) == (2, 1)
  assert diverged['test_loss'] == pytest.approx(1.55)
  keys = [column.key for column in table.columns]
  assert 'model' not in keys and 'train_loss' not in keys and 'step_us' in keys
  assert 'The same in all rows: model = mlp.' in table.notes
  assert 'Configs differ in preset: smoke (w1), cpu (w2).' in table.notes
  assert not any('config.steps' in note for note in table.notes)


def test_where_and_metrics_narrow_the_table(tmp_path):
  path = _workdir(tmp_path / 'w')
  table, _ = compare.compare([path], [('phase', 'fresh'), ('activation', 'relu')], ['train_loss'])
  assert len(table.rows) == 1 and table.rows[0]['train_loss'] == pytest.approx(0.1)
  assert 'test_loss' not in [column.key for column in table.columns]


def test_a_record_with_packed_rows_is_read_as_well(tmp_path, capsys):
  """As launch.record keeps them above 1 MB; results.csv is taken where both are."""
  path = _workdir(tmp_path / 'w')
  assert compare.main([path]) == 0
  expected = capsys.readouterr().out
  rows = (tmp_path / 'w' / 'results.csv').read_bytes()
  packed = tmp_path / 'w' / 'results.csv.gz'
  packed.write_bytes(b'of another day')
  assert compare.main([path]) == 0 and capsys.readouterr().out == expected
  (tmp_path / 'w' / 'results.csv').unlink()
  packed.write_bytes(gzip.compress(rows))
  assert compare.main([path]) == 0 and capsys.readouterr().out == expected
  for damaged in (b'no gzip', packed.read_bytes()[:40], packed.read_bytes()[:30] + b'x' * 40):
    packed.write_bytes(damaged)
    assert compare.main([path]) == 2
    error = capsys.readouterr().err
    assert 'results.csv.gz is damaged' in error and error.count('\n') == 1


def test_claims_stand_side_by_side(tmp_path):
  first = _workdir(tmp_path / 'w1')
  second = _workdir(tmp_path / 'w2', verdict=claims.Outcome('not reproduced', 0.5, None, 8))
  _, table = compare.compare([first, second])
  assert table.cells() == [['worse', '0.9', '0.88', '[0.8000, 0.9500]', '3', 'reproduced',
                            '0.5', '-', '8', 'not reproduced']]


def test_workdirs_of_one_name_are_told_apart(tmp_path):
  paths = [_workdir(tmp_path / part / 'w') for part in 'ab']
  table, _ = compare.compare(paths)
  assert {row['workdir'] for row in table.rows} == set(paths)


def test_the_command_prints_and_writes(tmp_path):
  path, out = _workdir(tmp_path / 'w'), tmp_path / 'deep' / 'out'
  done = helpers.run_module('launch.compare', path, f'--out={out}', '--where=phase=fresh')
  assert done.returncode == 0, done.stderr
  assert done.stdout == (out / 'compare.md').read_text()
  assert '| worse |' in done.stdout and '\\toprule' in (out / 'compare.tex').read_text()
  assert sorted(p.name for p in out.iterdir()) == ['compare.md', 'compare.tex']


def _damage(name, text):
  def change(path):
    (path / name).write_text(text)
  return change


@pytest.mark.parametrize('change, message', [
    (lambda p: (p / 'config.json').unlink(), 'is no workdir'),
    (lambda p: (p / 'results.csv').unlink(), 'has no results.csv'),
    (_damage('status.json', '{"state": "preempted"}'), 'its status is preempted'),
    (_damage('results.csv', ''), 'results.csv is damaged'),
    (_damage('results.csv', 'a,b\n1,2\n'), 'no column member'),
    (_damage('claims.json', '[{'), 'claims.json is damaged'),
])
def test_what_cannot_be_compared_ends_in_one_line(tmp_path, capsys, change, message):
  path = _workdir(tmp_path / 'w')
  assert compare.main([path]) == 0
  capsys.readouterr()
  change(tmp_path / 'w')
  assert compare.main([path]) == 2
  error = capsys.readouterr()
  assert error.out == '' and error.err.count('\n') == 1 and message in error.err


@pytest.mark.parametrize('arguments, message', [
    ([], 'required: WORKDIR'),
    (['{w}', '--wat'], 'unknown flag --wat; see'), (['--otu=x'], 'nearest: --out;'),
    (['{w}', '{w}'], 'given twice'),
    (['{w}', '--where=phase'], '--where=column=value'),
    (['{w}', '--where=pase=x'], 'no column pase'),
    (['{w}', '--where=phase=x'], 'no row'), (['{w}', '--metrics=loss'], 'no outcome loss'),
    (['{w}', '{other}'], 'is a run of experiments.a and'), (['nowhere'], 'is no workdir'),
])
def test_wrong_arguments_end_in_one_line(tmp_path, capsys, arguments, message):
  names = {'w': _workdir(tmp_path / 'w'), 'other': _workdir(tmp_path / 'o', study='experiments.b')}
  assert compare.main([a.format(**names) for a in arguments]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error


def test_a_missing_activation_in_one_workdir_is_no_error(tmp_path):
  paths = [_workdir(tmp_path / 'a'), _workdir(tmp_path / 'b', rows=_rows()[:3])]
  table, _ = compare.compare(paths)
  assert pd.Series([row['workdir'] for row in table.rows]).value_counts().to_dict() == {
      'a': 6, 'b': 1}
