"""Guards against two processes in one workdir and against a study's mistakes in naming."""
from __future__ import annotations

import dataclasses
import sys

import pytest

from experiments.activation_search import STUDY
from launch.preemption import Preemption
from launch.study import config as config_lib
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


@pytest.fixture
def runner() -> Runner:
  bare = object.__new__(Runner)
  bare._names, bare._by_identity = set(), {}
  return bare


def test_names_and_tags_are_unique(runner):
  runner._check(cohort('a', member(seed=0), member(seed=1)))
  with pytest.raises(ValueError, match='two cohorts are called a'):
    runner._check(cohort('a', member(seed=2)))
  with pytest.raises(ValueError, match='two runs have the tags'):
    runner._check(cohort('b', member(seed=3), member(seed=3)))
  for name in ('', 'a/b', '.a', 'a b'):
    with pytest.raises(ValueError, match='no name for a cohort'):
      runner._check(dataclasses.replace(cohort('c', member(seed=4)), name=name))
