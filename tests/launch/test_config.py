"""Typed config trees: building, checking, overriding and comparing."""

from __future__ import annotations

import dataclasses
import json

import pytest

from launch.study import config as config_lib
from launch.study.config import EngineConfig, IoConfig, field
from model_lib.errors import UserError


@dataclasses.dataclass(frozen=True)
class Training:
  steps: int = field(500, 'Updates per run.', low=1, high=10_000)
  rates: tuple[float, ...] = field((1e-3, 1e-2), 'Learning rates.', low=0)
  warmup: int = field(10, 'Updates of warm-up.', low=0)

  def __post_init__(self):
    if self.warmup > self.steps:
      raise ValueError(f'warmup {self.warmup} is longer than steps {self.steps}')


@dataclasses.dataclass(frozen=True)
class Config:
  activations: tuple[str, ...] = field(('relu', 'gelu'), 'Activations.')
  seeds: tuple[int, ...] = field((0, 1), 'Seeds.', low=0)
  tags: tuple[str, ...] = field((), 'Free words.')
  dataset: str = field('digits', 'Dataset.')
  training: Training = Training()
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


def _message(function, *args) -> str:
  with pytest.raises(UserError) as caught:
    function(*args)
  text = str(caught.value)
  assert '\n' not in text
  return text


def test_round_trip_through_json():
  config = config_lib.apply_preset(Config(), {'training.steps': 7, 'training.warmup': 0})
  stored = json.loads(json.dumps(config_lib.to_dict(config)))
  assert stored == config_lib.to_dict(config)
  assert config_lib.from_dict(Config, stored) == config
  assert config_lib.from_dict(Config, stored) != Config()
  hash(config)


def test_preset_leaves_the_defaults_alone():
  preset = {'training.rates': [1, 2.5], 'engine.batching': 'vmap', 'io.tensorboard': False}
  config = config_lib.apply_preset(Config(), preset)
  assert config.training.rates == (1.0, 2.5)
  assert all(isinstance(rate, float) for rate in config.training.rates)
  assert (config.engine.batching, config.io.tensorboard) == ('vmap', False)
  assert Config().engine.batching == 'auto'
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.dataset = 'mnist'


def test_field_names_follow_the_source():
  names = config_lib.field_names(Config)
  assert names[:5] == ('activations', 'seeds', 'tags', 'dataset', 'training.steps')
  assert 'engine.log_every' in names and 'io.log_every' not in names
  assert all(leaf.metadata['help'].endswith('.') for leaf in config_lib.leaves(Config))


@pytest.mark.parametrize('path, value, parts', [
    ('training.stepz', 3, ['config.training.stepz', 'nearest: training.steps']),
    ('chunk', 3, ['no such field', 'engine.chunk']),
    ('xyzzy', 3, ['no such field']),
    ('training', 3, ['group of fields', 'training.steps']),
    ('training.steps', 0, ['config.training.steps', 'between 1 and 10000']),
    ('training.steps', 10_001, ['config.training.steps', 'between 1 and 10000']),
    ('training.steps', 2.0, ['expected an integer']),
    ('training.steps', True, ['expected an integer']),
    ('training.rates', [0.1, -0.1], ['config.training.rates', 'at least 0']),
    ('training.rates', [float('nan')], ['finite']),
    ('training.rates', 0.1, ['a list of numbers']),
    ('training.rates', [], ['at least one value']),
    ('activations', 'relu', ['a list of strings']),
    ('activations', [1], ['expected a string']),
    ('dataset', 1, ['expected a string']),
    ('io.tensorboard', 1, ['true or false']),
    ('io.checkpoint_interval_s', float('inf'), ['finite']),
    ('engine.batching', 'pmap', ['"pmap" is not one of auto, map, vmap']),
    ('training.warmup', 501, ['config.training: warmup 501 is longer than steps 500']),
])
def test_mistakes_are_one_line_with_the_path(path, value, parts):
  text = _message(config_lib.apply_preset, Config(), {path: value})
  for part in parts:
    assert part in text


def test_edges_of_the_ranges_are_allowed():
  values = {'training.steps': 10_000, 'training.warmup': 0, 'tags': [], 'training.rates': [0]}
  assert config_lib.apply_preset(Config(), values).tags == ()


def test_from_dict_names_the_unknown_field():
  stored = config_lib.to_dict(Config())
  stored['training']['lr'] = 1.0
  assert 'config.training.lr: no such field' in _message(config_lib.from_dict, Config, stored)
  stored = config_lib.to_dict(Config())
  stored['training'] = 3
  assert 'group of fields' in _message(config_lib.from_dict, Config, stored)


def test_diff_has_one_line_per_field():
  old = config_lib.to_dict(Config())
  new = config_lib.to_dict(config_lib.apply_preset(
      Config(), {'training.steps': 20, 'seeds': (0, 1, 2), 'dataset': 'mnist'}))
  assert config_lib.diff(old, json.loads(json.dumps(old))) == []
  assert config_lib.diff(old, new) == [
      'seeds: [0, 1] -> [0, 1, 2]', 'dataset: "digits" -> "mnist"', 'training.steps: 500 -> 20']
  assert config_lib.diff({'a': {'b': 1}}, {'a': {'c': (2,)}}) == [
      'a.b: 1 -> (absent)', 'a.c: (absent) -> [2]']


def test_a_type_that_no_flag_can_set_is_a_fault_of_the_study():
  @dataclasses.dataclass(frozen=True)
  class Odd:
    table: dict = dataclasses.field(default_factory=dict)

  with pytest.raises(TypeError, match='table'):
    config_lib.leaves(Odd)
