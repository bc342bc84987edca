"""Cohorts one after the other: evaluation on the way, and programs that are compiled once."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from launch import environment
from launch.preemption import Preemption
from launch.study import DataRequest, EngineConfig, IoConfig, Study, datasets
from launch.study import config as config_lib
from launch.study.load import load_cohort
from launch.study.records import Record
from launch.study.runner import Runner
from launch.study.start import started
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec
from model_lib.training.loop import Preempted
from model_lib.training.population import Population
from model_lib.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Config:
  engine: EngineConfig = EngineConfig(log_every=3, steps_per_call=4, chunk=2)
  io: IoConfig = IoConfig(checkpoint_interval_s=0, tensorboard=False, progress_interval_s=0)


def cohort(name: str, steps: int = 12, widths: int = 8, **settings) -> Cohort:
  """Three runs of a small network which are the same in every cohort but for its name."""
  members = tuple(Member({'seed': i, 'cohort': name}, i, i, 0, {'learning_rate': 0.01 * (i + 1)})
                  for i in range(3))
  return Cohort(name, ModelSpec('mlp', {'widths': [widths]}), members, steps, 16, **settings)


@pytest.fixture(scope='module')
def data(data_dir):
  text = DataRequest('pystdlib', eval_batch=16, eval_most=32, window=8, kind='tokens')
  return datasets.load(DataRequest('digits', 1, 0, beside=(('text', text),)), '')


class StopAt(Preemption):
  """Asks to stop when a line of a step stands in the metrics file."""

  def __init__(self, metrics: Path, mark: str):
    super().__init__()
    self.metrics, self.mark = metrics, mark

  @property
  def requested(self) -> bool:
    return self.mark in self.metrics.read_text()

  @requested.setter
  def requested(self, value: bool) -> None:
    pass


def start(path: Path, data, *lists, stop: Preemption | None = None):
  """Runs lists of cohorts, one list after the other, in a workdir."""
  def cohorts(config):
    for asked in lists:
      yield asked

  study = Study('made_up', Config, {}, lambda config: data.request, cohorts, lambda run: None)
  workdir = Workdir(path)
  workdir.create()
  record = Record(study.name, '', [config_lib.to_dict(Config())])
  record.write(workdir)
  runner = Runner(study, record, workdir, stop or Preemption(), data, environment.snapshot())
  try:
    return runner.run()
  finally:
    runner.close()


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data):
  """(workdir, rows) of a run that was evaluated on the way and never stopped."""
  path = tmp_path_factory.mktemp('whole') / 'run'
  return path, start(path, data, [cohort('a', evaluate_at=(3, 8), keep_at=(8,))])


def test_an_evaluation_on_the_way_is_that_of_a_shorter_run(tmp_path, data, whole):
  _, rows = whole
  for steps, suffix in ((8, '_at_8'), (12, '')):
    short = start(tmp_path / str(steps), data, [cohort('a', steps=steps)])
    assert 'val_loss_at_3' not in short
    for column in ('val_loss', 'test_loss', 'val_accuracy'):
      assert (rows[f'{column}{suffix}'] == short[column]).all()
      assert (rows[f'{column}_at_3'] != short[column]).any()


@pytest.mark.parametrize('mark', ['"split": "val", "step": 3,', '"split": "train", "step": 6,'])
def test_stopped_at_or_after_a_mark_and_resumed(tmp_path, data, whole, mark):
  path = tmp_path / 'stopped'
  with pytest.raises(Preempted):
    start(path, data, [cohort('a', evaluate_at=(3, 8))],
          stop=StopAt(path / 'metrics.jsonl', mark))
  resumed = start(path, data, [cohort('a', evaluate_at=(3, 8))])
  assert resumed.equals(whole[1])
  assert (path / 'metrics.jsonl').read_bytes() == (whole[0] / 'metrics.jsonl').read_bytes()


def test_the_last_losses_are_recorded_and_averaged(tmp_path, data, whole):
  """Five steps, although every third is recorded and a call has four."""
  rows = start(tmp_path / 'run', data, [cohort('a', last_steps=5)])
  lines = pd.read_json(tmp_path / 'run/metrics.jsonl', lines=True)
  lines = lines[lines.split == 'train']
  assert sorted(set(lines.step)) == [3, 6, 8, 9, 10, 11, 12]
  own = lines[lines.step >= 8].groupby('member').loss.mean()
  assert rows.last_loss.to_numpy() == pytest.approx(own.to_numpy(), rel=1e-12)
  assert (rows.val_loss == whole[1].val_loss).all() and 'last_loss' not in whole[1]
  with pytest.raises(ValueError, match='last_steps 13 of 12'):
    cohort('a', last_steps=13)


def parameters(path, name, step=None):
  return jax.tree.map(np.asarray, load_cohort(Workdir(path), name, step).variables['params'])


def test_networks_kept_on_the_way_are_those_of_a_shorter_run(tmp_path, data, whole):
  short = tmp_path / 'run'
  start(short, data, [cohort('a', steps=8)])
  jax.tree.map(np.testing.assert_array_equal, parameters(whole[0], 'a', 8), parameters(short, 'a'))
  assert any((a != b).any() for a, b in zip(
      *(jax.tree.leaves(parameters(whole[0], 'a', step)) for step in (8, None)), strict=True))
  with pytest.raises(UserError, match='kept_3'):
    load_cohort(Workdir(whole[0]), 'a', 3)
  with pytest.raises(ValueError, match='keep_at'):
    cohort('a', evaluate_at=(3,), keep_at=(8,))


def test_a_cohort_begins_where_another_ended(tmp_path, data):
  """With a learning rate of 0 it stays there; each run begins from the one that it names."""
  still = cohort('b', steps=2)
  still = dataclasses.replace(still, start='cohort:a', members=tuple(
      dataclasses.replace(m, start=1 - i, hp={**m.hp, 'learning_rate': 0.0})
      for i, m in enumerate(still.members[:2])))
  path = tmp_path / 'run'
  start(path, data, [cohort('a', steps=4), still])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1::-1], b),
               parameters(path, 'a'), parameters(path, 'b'))
  state = TrainState(*[None] * 7).replace(params=parameters(path, 'b'), hp={'model': {}})
  other = state.replace(params={'hidden_9': {'kernel': np.zeros((2, 3, 5))}})
  for changes, at, message in (
      ({'start': 'cohort:c'}, state, 'no cohort c is finished'),
      ({'start': 'somewhere'}, state, "neither 'cohort:NAME' nor"),
      ({}, other, r'b: its parameter hidden_9/kernel has shape \(3, 5\); cohort:a has none'),
      ({'members': (dataclasses.replace(still.members[0], start=9),)}, state,
       'begins from number 9 of cohort:a, which has 3')):
    with pytest.raises(UserError, match=message):
      started([at], dataclasses.replace(still, **changes), 2, Workdir(path))
  # What is named as fresh stays as it was initialized.
  kept, = started([other], dataclasses.replace(still, fresh=('hidden_9',)), 2, Workdir(path))
  np.testing.assert_array_equal(kept.params['hidden_9']['kernel'], 0)


def test_marks_are_between_the_first_and_the_last_step():
  for marks in ((0,), (12,), (5, 5), (8, 3)):
    with pytest.raises(ValueError, match='must ascend between 0 and 12'):
      cohort('a', evaluate_at=marks)


def test_a_cohort_reads_the_data_it_names(tmp_path, data):
  model = ModelSpec('gpt', {'dim': 8, 'heads': 2, 'depth': 1})
  text = dataclasses.replace(cohort('text', steps=4), model=model, data='text')
  rows = start(tmp_path / 'run', data, [cohort('images', steps=4), text])
  images, texts = (rows[rows.run == name] for name in ('images', 'text'))
  # Guessing one of 10 classes costs ln 10 = 2.3, one of 256 bytes ln 256 = 5.5.
  assert images.test_loss.max() < 3 < 4.5 < texts.test_loss.min()
  assert (texts.test_images == 32).all() and (images.test_images == 270).all()
  trained = load_cohort(Workdir(tmp_path / 'run'), 'text')
  assert trained.spec['arguments']['vocab'] == 256 and trained.spec['arguments']['length'] == 8
  assert data.hashes().keys() == {'digits', 'pystdlib'}


def test_evenly_spaced_examples():
  examples = np.arange(100, 200)
  assert datasets.evenly_spaced(examples, 1000).tolist() == examples.tolist()
  assert datasets.evenly_spaced(examples, 4).tolist() == [100, 133, 166, 199]


def test_cohorts_of_one_program_compile_once(tmp_path, data, monkeypatch):
  compiled = []
  for name in ('compile_call', 'compile_evaluation'):
    def counted(self, *arguments, original=getattr(Population, name), name=name):
      compiled.append(name)
      return original(self, *arguments)
    monkeypatch.setattr(Population, name, counted)
  rows = start(tmp_path / 'three', data, [cohort('a')], [cohort('b')], [cohort('c')])
  assert sorted(compiled) == ['compile_call', 'compile_evaluation']
  for name in 'bc':
    assert (rows[rows.cohort == name].test_loss.to_numpy()
            == rows[rows.cohort == 'a'].test_loss.to_numpy()).all()
  start(tmp_path / 'two', data, [cohort('a')], [cohort('b', widths=9)])
  assert len(compiled) == 6
