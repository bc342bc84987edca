"""--extend adds seeds and arms; the rows that were there keep their bits."""
from __future__ import annotations

from pathlib import Path
import re
import sys

import pytest

from experiments.activation_search import STUDY
from launch.preemption import Preemption
from launch.study import config as config_lib
from launch.study import records
from model_lib.errors import UserError
from tests.launch import study_runs
from tests.launch.study_runs import LAST

SEEDS = {'mlp__fresh_seeds': 4}
ARM = {'mlp__activations': 'relu,identity,crrelu,gelu'}


def added(workdir, reference) -> list[dict[str, str]]:
  """The rows beyond the reference's, after checking that those kept every bit."""
  old, new = study_runs.rows(reference.workdir), study_runs.rows(workdir)
  assert len(new) > len(old) and new[:len(old)] == old
  assert (workdir / 'metrics.jsonl').read_bytes().startswith(reference.metrics)
  finals = study_runs.finals(workdir)
  assert {k: finals[k] for k in reference.finals} == reference.finals
  assert [int(r['member']) for r in new] == list(range(len(new)))
  assert study_runs.status(workdir)['state'] == 'done'
  study_runs.assert_clean(workdir)
  return new[len(old):]


@pytest.fixture(scope='module')
def both(reference, interrupted, tmp_path_factory):
  """A finished run and one that is not, each extended by a seed and an activation at once."""
  folder = tmp_path_factory.mktemp('extended')
  finished = study_runs.copy(reference.workdir, folder / 'finished')
  unfinished = study_runs.copy(interrupted, folder / 'unfinished')
  # One after the other: the second finds what the first has compiled.
  answers = [study_runs.run(workdir, '--extend', **SEEDS, **ARM)
             for workdir in (finished, unfinished)]
  return finished, unfinished, answers


@pytest.fixture(scope='module')
def extended(both):
  return both[0]


def test_a_seed_and_an_activation(extended, reference):
  rows = added(extended, reference)
  runs = {(r['phase'], r['activation'], r['seed'], r['lr_factor']) for r in rows
          if r['phase'] != 'null_fresh'}
  assert len(runs) == len(rows) - 1  # the copy of ReLU has one seed more
  assert {s for p, a, s, _ in runs if (p, a) == ('fresh', 'gelu')} == {'0', '1', '2', '3'}
  for activation in ('relu', 'identity', 'crrelu'):
    assert {s for p, a, s, _ in runs if (p, a) == ('fresh', activation)} == {'3'}
  assert {a for p, a, *_ in runs if p == 'selection'} == {'gelu'}
  assert all(r['run'].endswith('+1') for r in rows)
  tables = [(w / 'table.md').read_text() for w in (extended, reference.workdir)]
  assert [bool(re.search(r'\| gelu +\|', table)) for table in tables] == [True, False]


def test_it_is_the_config_from_then_on(extended, reference):
  """The extended command is finished, with and without --extend; the old one takes away."""
  for flags in ((), ('--extend',)):
    done = study_runs.answer(extended, *flags, **SEEDS, **ARM)
    assert 'gelu' in done.out and not done.err
  before = study_runs.files(extended)
  assert 'takes away' in study_runs.answer(extended, '--extend', code=2).line
  assert study_runs.files(extended) == before


def test_a_run_that_is_not_finished(both):
  """It is finished first, then extended: the same as one after the other."""
  finished, unfinished, answers = both
  assert f'resumed {LAST} at step' in answers[1].err and 'resumed' not in answers[0].err
  study_runs.assert_same(unfinished, study_runs.Reference.of(finished))


@pytest.mark.slow
def test_killed_while_it_is_extended(extended, reference, tmp_path):
  workdir = study_runs.copy(reference.workdir, tmp_path / 'run')
  with study_runs.Start(workdir, '--extend', **SEEDS, **ARM) as start:
    start.until(lambda: study_runs.steps(workdir, 'mlp-select-fixed+1'))
    start.kill()
  done = study_runs.run(workdir, **SEEDS, **ARM)
  assert 'resumed mlp-select-fixed+1' in done.err
  study_runs.assert_same(workdir, study_runs.Reference.of(extended))


@pytest.mark.slow
def test_killed_before_it_began(reference, tmp_path):
  """An extension that got no further than config.json is not forgotten."""
  workdir = study_runs.copy(reference.workdir, tmp_path / 'run')
  kill = ("import os\nfrom launch.study import runner\n"
          "runner.environment.compare = lambda *_: os.kill(os.getpid(), 9)")
  study_runs.run(workdir, '--extend', before=kill, code=study_runs.SIGKILLED, **SEEDS)
  assert study_runs.status(workdir)['state'] == 'running'
  study_runs.run(workdir, **SEEDS)
  assert len(added(workdir, reference)) == 4  # ReLU, its copy, the identity, CRReLU


@pytest.mark.parametrize('exists', [False, True])
def test_there_is_nothing_to_extend(tmp_path, exists):
  """A mistyped directory, or one in which nothing has begun, starts no study of its own."""
  workdir = tmp_path / 'new'
  if exists:
    workdir.mkdir()
    (workdir / 'lock').write_text('')  # of a first start that was killed at once
  before = list(tmp_path.rglob('*'))
  with pytest.raises(UserError) as refused:
    sys.modules['launch.study.main']._main(  # the package's `main` is the function
      STUDY, ['study', f'--workdir={workdir}', '--preset=smoke', '--extend'], Preemption())
  assert str(refused.value) == (
    f'{workdir} holds no run to extend; drop --extend to start one')
  assert list(tmp_path.rglob('*')) == before


def test_a_study_that_allows_no_extension_says_so():
  old = config_lib.to_dict(STUDY.config())
  new = {**old, 'splits': 6}
  with pytest.raises(UserError, match='splits: 5 -> 6; it may enlarge mlp.activations, vit.act'):
    records.check_change(old, new, True, STUDY.extendable, Path('w'))
  with pytest.raises(UserError, match=r'it may enlarge nothing: this study names no fields that '
                                      r'--extend may enlarge \(Study\(extendable=...\)\)$'):
    records.check_change(old, new, True, (), Path('w'))


NO_EXTENSIONS = (
  ({'mlp__fresh_seeds': 2}, 'takes away'),
  ({'mlp__activations': 'gelu,relu,identity,crrelu'}, 'takes away'),
  ({'mlp__steps': 50}, '--extend cannot change mlp.steps: 48 -> 50'),
)


def test_what_is_no_extension(reference):
  before = study_runs.files(reference.workdir)
  for change, said in NO_EXTENSIONS:
    assert said in study_runs.answer(reference.workdir, '--extend', code=2, **change).line
  assert study_runs.files(reference.workdir) == before


def test_extend_is_offered_where_it_can_work():
  old = {'seeds': 2, 'steps': 10}
  for new, offered in (({'seeds': 3, 'steps': 10}, True), ({'seeds': 3, 'steps': 20}, False)):
    with pytest.raises(UserError, match='holds a run with another config') as error:
      records.check_change(old, new, False, ('seeds',), Path('w'))
    assert ('add --extend' in str(error.value)) == offered
