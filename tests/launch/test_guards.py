"""Guards against two processes in one workdir and against a study's mistakes in naming."""
from __future__ import annotations

import dataclasses
import sys

import pytest

from experiments.activation_search import STUDY
from launch import environment
from launch.preemption import Preemption
from launch.study import DataRequest, EngineConfig, IoConfig, Study, field, preview, session
from launch.study import config as config_lib
from launch.study.asked import check_distinct
from launch.study.records import Record
from launch.study.runner import Runner
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec


def test_a_start_refuses_what_another_process_wrote_meanwhile(tmp_path):
  """config.json appeared between the look at the workdir and its lock."""
  workdir = Workdir(tmp_path / 'run')
  workdir.create()
  config = config_lib.apply_preset(STUDY.config(), STUDY.presets['smoke'])
  workdir.write_config({'study': STUDY.name, 'of': 'another process'})
  before = workdir.config.read_bytes()
  with pytest.raises(UserError, match='another process changed this run'):
    sys.modules['launch.study.main']._run(  # the package's `main` is the function
        STUDY, config, workdir, None, b'', 'smoke', Preemption())
  assert workdir.config.read_bytes() == before
  assert [p.name for p in workdir.path.iterdir()] == ['config.json']  # and the lock is free


def member(**tags) -> Member:
  return Member(tags, 0, 0, 0, {'learning_rate': 1e-3})


def cohort(name: str, *members: Member) -> Cohort:
  return Cohort(name, ModelSpec('mlp'), members, 1, 1)


def test_names_are_unique():
  runner = object.__new__(Runner)
  runner._names = set()
  runner._check_name('a')
  with pytest.raises(ValueError, match='two cohorts are called a'):
    runner._check_name('a')
  for name in ('', 'a/b', '.a', 'a b'):
    with pytest.raises(ValueError, match='no name for a cohort'):
      runner._check_name(name)


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = field((8, 8), 'A list that may repeat.')
  norms: tuple[str, ...] = field(('none', 'pre:rms'), 'Arms.')
  seeds: int = field(2, 'Runs per arm.')
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


def arms(config: Config):
  """A cohort per arm, as in README's own study."""
  yield [cohort(f'norm{i}', *(member(norm=norm, seed=s) for s in range(config.seeds)))
         for i, norm in enumerate(config.norms)]


def again(config: Config):
  """Asks for the same runs in a second list."""
  yield from arms(config)
  yield [cohort('more', member(norm='none', seed=0))]


def test_no_two_runs_have_equal_tags():
  """Neither in one cohort nor in two, of one list or of different ones."""
  (asked,) = arms(Config())
  check_distinct(Config(), asked)
  (twice,) = arms(Config(norms=('none', 'pre:rms', 'none')))
  with pytest.raises(UserError, match='^config.norms: none stands there twice$'):
    check_distinct(Config(norms=('none', 'pre:rms', 'none')), twice)
  tags = '{"norm": "none", "seed": 0}'
  for wrong in (twice, [cohort('a', *asked[0].members, asked[0].members[0])]):
    with pytest.raises(ValueError, match=f'two runs have the tags {tags}') as mistake:
      check_distinct(Config(), wrong)  # no list of this config has it twice
    assert not isinstance(mistake.value, UserError)
  with pytest.raises(ValueError, match='cohort norm0: two runs have the tags'):
    check_distinct(Config(), asked, {tags})


def test_equal_arms_are_refused_before_anything_is_trained(tmp_path, data_dir):
  """At --list, at a start, and in the runner for what is asked for later."""
  config = Config(norms=('none', 'none'))
  study = Study('made_up', Config, {}, lambda config: DataRequest('digits'), arms,
                lambda run: None)
  workdir = Workdir(tmp_path / 'run')
  for start in (lambda: preview.expected_cohorts(study, config),
                lambda: session.open_data(study, config, None, workdir)):
    with pytest.raises(UserError, match='^config.norms: none stands there twice$'):
      start()
  assert not workdir.path.exists()
  workdir.create()
  record = Record(study.name, '', [config_lib.to_dict(Config())])
  runner = Runner(dataclasses.replace(study, cohorts=again), record, workdir, Preemption(), None,
                  environment.snapshot())
  runner._answer = lambda asked: None  # as if it were trained
  try:
    with pytest.raises(ValueError, match='cohort more: two runs have the tags'):
      runner.run()
  finally:
    runner.close()
