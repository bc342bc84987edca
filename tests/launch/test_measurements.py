"""Rows without training: computed once, files afterwards, the same under --extend."""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from launch import environment
from launch.preemption import Preemption
from launch.study import EngineConfig, IoConfig, Measurement, Study, field
from launch.study import config as config_lib
from launch.study.records import Record
from launch.study.runner import Runner
from launch.study.workdir import Workdir
from model_lib.errors import UserError

calls: list[int] = []


@dataclasses.dataclass(frozen=True)
class Config:
  size: int = field(2, 'Rows.')
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


def count(given, size):
  """Rows of which all but the first have a value that is not finite."""
  assert given.data is None
  with pytest.raises(UserError, match='no cohort x is finished'):
    given.trained('x')
  calls.append(size)
  return [{'place': i, 'value': math.nan if i else 0.5} for i in range(size)]


def start(path: Path, measurements, *sizes: int):
  """One start of a study of measurements, with a config for each size; rows, and what it saw."""
  answers = []

  def cohorts(config):
    answers.append((yield measurements(config)))

  study = Study('made_up', Config, {}, lambda config: None, cohorts, lambda run: None)
  workdir = Workdir(path)
  workdir.create()
  configs = [config_lib.to_dict(Config(size=size)) for size in sizes]
  record = Record(study.name, '', configs)
  record.write(workdir)
  runner = Runner(study, record, workdir, Preemption(), None, environment.snapshot())
  try:
    return runner.run(), answers
  finally:
    runner.close()


def one(config):
  return [Measurement('count', count, {'size': config.size})]


def two(config):
  """The first does not depend on what the extension changes; the second has it in its name."""
  return [Measurement('count', count, {'size': 2}),
          Measurement(f'count{config.size}', count, {'size': config.size})]


def test_rows_are_computed_once_and_come_back_the_same(tmp_path):
  calls.clear()
  rows, (answer,) = start(tmp_path, one, 2)
  again, (second,) = start(tmp_path, one, 2)
  assert calls == [2]
  assert rows.equals(again) and answer.equals(second) and answer.equals(rows)
  assert list(rows.columns) == ['member', 'run', 'place', 'value']
  assert rows.value[0] == 0.5 and math.isnan(rows.value[1])
  assert (tmp_path / 'results.csv').read_text().splitlines() == [
      'member,run,place,value', '0,count,0,0.5', '1,count,1,nan']


def test_an_extension_adds_and_repeats_nothing(tmp_path):
  calls.clear()
  start(tmp_path, two, 2)
  rows, _ = start(tmp_path, two, 2, 3)
  assert calls == [2, 2, 3]
  assert list(rows.member) == list(range(7))
  assert list(rows.run) == ['count'] * 2 + ['count2'] * 2 + ['count3'] * 3


def test_what_would_not_be_the_same_is_refused(tmp_path):
  start(tmp_path, one, 2)
  with pytest.raises(ValueError, match='count depends on what --extend may change'):
    start(tmp_path, one, 2, 3)
  with pytest.raises(UserError, match='measured by another version of the study'):
    start(tmp_path, one, 3)
  with pytest.raises(ValueError, match='two cohorts are called count'):
    start(tmp_path / 'twice', lambda config: one(config) * 2, 2)
  with pytest.raises(ValueError, match='no name for a cohort'):
    start(tmp_path / 'name', lambda config: [Measurement('a/b', count, {'size': 1})], 1)
