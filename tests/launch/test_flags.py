"""A study's command line: what it parses to, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from launch.study import flags as flags_lib
from launch.study.config import EngineConfig, IoConfig, field
from model_lib.errors import UserError


@dataclasses.dataclass(frozen=True)
class Comparison:
  activations: tuple[str, ...] = field(('relu', 'gelu'), 'Activations to compare.')
  seeds: tuple[int, ...] = field((0, 1, 2), 'Seeds of the runs.', low=0)
  rates: tuple[float, ...] = field((1e-3,), 'Learning rates.', low=0)
  decay: float = field(0.1, 'Weight decay.', low=0, high=1)
  norm: str = field('pre:layer', 'Norm and place.')


@dataclasses.dataclass(frozen=True)
class Config:
  dataset: str = field('digits', 'Dataset.')
  comparison: Comparison = Comparison()
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


PRESETS = {
    'smoke': {'comparison.seeds': (0,), 'comparison.decay': 0.0},
    'cpu': {},
    'gpu': {'comparison.seeds': tuple(range(8)), 'dataset': 'cifar10'},
}


def parse(*arguments):
  return flags_lib.parse(['study', *arguments], 'study', Config, PRESETS)


def test_order_is_defaults_preset_overrides():
  parsed = parse('--workdir=w', '--preset=gpu', '--config.dataset=mnist')
  assert parsed.config.comparison.seeds == tuple(range(8))
  assert parsed.config.dataset == 'mnist'
  assert parsed.config.comparison.decay == 0.1
  assert (parsed.workdir, parsed.preset, parsed.preset_given) == ('w', 'gpu', True)
  assert parsed.overrides == ('dataset',)
  assert (parsed.extend, parsed.list_runs, parsed.dry_run) == (False, False, False)


def test_default_preset_and_switches():
  parsed = parse('--workdir', 'w', '--extend')
  assert (parsed.preset, parsed.preset_given, parsed.extend) == ('cpu', False, True)
  assert parsed.config == Config() and parsed.overrides == ()
  assert parse('--list').workdir is None and parse('--list').list_runs
  assert parse('--dry_run').workdir is None and parse('--dry_run').dry_run


def test_typed_overrides():
  config = parse(
      '--workdir=w', '--config.comparison.decay=1', '--config.engine.chunk', '16',
      '--config.io.tensorboard=false', '--noconfig.io.figures', '-config.comparison.norm=post:rms',
      '--config.comparison.rates=1e-3,0.5', '--config.comparison.seeds=(3, 4,)').config
  assert config.comparison.decay == 1.0 and isinstance(config.comparison.decay, float)
  assert config.engine.chunk == 16
  assert (config.io.tensorboard, config.io.figures) == (False, False)
  assert config.comparison.norm == 'post:rms'
  assert config.comparison.rates == (1e-3, 0.5)
  assert config.comparison.seeds == (3, 4)
  assert config.comparison.activations == ('relu', 'gelu')


def test_the_last_of_two_counts():
  config = parse('--workdir=w', '--config.comparison.seeds=1', '--config.comparison.seeds=2').config
  assert config.comparison.seeds == (2,)


@pytest.mark.parametrize('text, items', [
    ('relu', ('relu',)),
    ('relu,gelu', ('relu', 'gelu')),
    ('relu, crrelu(epsilon=0.02, per=channel) ,gelu',
     ('relu', 'crrelu(epsilon=0.02, per=channel)', 'gelu')),
    ('switch(relu, glu_of(elu(alpha=2)))', ('switch(relu, glu_of(elu(alpha=2)))',)),
    ('(1, 2)', ('1', '2')),
    ('[1,]', ('1',)),
    ('(a),(b)', ('(a)', '(b)')),
    ('(a)(b)', ('(a)(b)',)),
    ("('relu', \"gelu\")", ('relu', 'gelu')),
    ('', ()),
    ('()', ()),
])
def test_split_list(text, items):
  assert flags_lib.split_list(text) == items


@pytest.mark.parametrize('text', ['a,,b', ',a', 'f(a', 'f)a', 'f(a]', ','])
def test_split_list_refuses(text):
  with pytest.raises(ValueError):
    flags_lib.split_list(text)


@pytest.mark.parametrize('arguments, parts', [
    ([], ['--workdir=DIR is missing']),
    (['--workdir='], ['--workdir=']),
    (['--workdir', '--dry_run'], ['--workdir=--dry_run']),
    (['--workdir=w', '--presett=cpu'], ['unknown flag --presett', '--preset']),
    (['--workdir=w', '--chunk=3'], ['unknown flag --chunk', '--config.engine.chunk']),
    (['--workdir=w', '--qqqq=3'], ['unknown flag --qqqq', '--help']),
    (['--workdir=w', '--preset=cpuu'], ['--preset=cpuu', 'smoke, cpu, gpu', "nearest: 'cpu'"]),
    (['--workdir=w', '--preset'], ['preset']),
    (['--workdir=w', '--config.comparison.seed=3'],
     ['--config.comparison.seed: no such field', 'nearest: comparison.seeds']),
    (['--workdir=w', '--config.chunk=3'], ['no such field', 'engine.chunk']),
    (['--workdir=w', '--config.=3'], ['no such field']),
    (['--workdir=w', '--config.comparison=3'], ['group of fields', 'comparison.seeds']),
    (['--workdir=w', '--config.dataset.x=3'], ['--config.dataset.x: no such field']),
    (['--workdir=w', '--config=foo'], ['--config takes no value', '--config.FIELD=VALUE']),
    (['--workdir=w', '--config', 'foo'], ['--config takes no value']),
    (['--workdir=w', '--config.engine.chunk=abc'],
     ['--config.engine.chunk=abc: expected an integer']),
    (['--workdir=w', '--config.engine.chunk=1.5'], ['=1.5: expected an integer']),
    (['--workdir=w', '--config.comparison.decay=x'], ['decay=x: expected a number']),
    (['--workdir=w', '--config.io.figures=maybe'], ['figures=maybe: expected true or false']),
    (['--workdir=w', '--config.engine.chunk'], ['config.engine.chunk']),
    (['--workdir=w', '--config.comparison.seeds=1,x'], ['=1,x: expected a list of integers']),
    (['--workdir=w', '--config.comparison.seeds='], ['at least one value']),
    (['--workdir=w', '--config.comparison.seeds=-1'], ['config.comparison.seeds', 'at least 0']),
    (['--workdir=w', '--config.comparison.decay=2'], ['config.comparison.decay', '0 and 1']),
    (['--workdir=w', '--config.comparison.decay=nan'], ['finite']),
    (['--workdir=w', '--config.comparison.activations=relu(a,gelu'], ["')' is missing"]),
    (['--workdir=w', '--config.engine.batching=pmap'], ['is not one of auto, map, vmap']),
    (['--workdir=w', 'stray'], ["unexpected argument 'stray'"]),
    (['stray', '--workdir=w'], ["unexpected argument 'stray'"]),
    (['--workdir=w', '--', '--config.engine.chunk=1'], ['unexpected argument']),
    (['--workdir=w', '--dry_run=perhaps'], ['dry_run']),
    (['--workdir=w', '--flagfile=/nowhere/flags'], ['/nowhere/flags']),
])
def test_mistakes_are_one_line(arguments, parts, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as caught:
    parse(*arguments)
  text = str(caught.value)
  assert '\n' not in text
  for part in parts:
    assert part in text
  assert list(tmp_path.iterdir()) == []


def test_nothing_global_changes():
  before = set(flags.FLAGS)
  first = parse('--workdir=a', '--config.engine.chunk=1')
  second = parse('--workdir=b')
  assert (first.config.engine.chunk, second.config.engine.chunk) == (1, 0)
  assert set(flags.FLAGS) == before and not flags.FLAGS.is_parsed()


def test_a_wrong_preset_of_the_study_is_found():
  with pytest.raises(UserError, match='config.comparison.seedz'):
    flags_lib.parse(['s', '--workdir=w'], 's', Config, {'cpu': {'comparison.seedz': (1,)}})


@pytest.mark.parametrize('flag', ['--help', '-h', '--helpfull'])
def test_help(flag, capsys):
  with pytest.raises(SystemExit) as caught:
    parse('--nonsense', flag)
  assert caught.value.code == 0
  text = capsys.readouterr().out
  assert text.startswith("A study's command line")
  assert '--config.comparison.activations=relu,gelu' in text
  assert 'Activations to compare.' in text
  assert '--preset=smoke|cpu|gpu' in text
  assert 'One of auto, map, vmap.' in text


@pytest.mark.parametrize('arguments, seeds, decay', [
    ([], '0,1,2', '0.1'), (['--preset=smoke'], '0', '0.0'), (['-preset', 'smoke'], '0', '0.0'),
    (['--preset=smoke', '--preset', 'gpu'], '0,1,2,3,4,5,6,7', '0.1')])
def test_help_has_the_values_of_the_preset(arguments, seeds, decay, capsys):
  with pytest.raises(SystemExit):
    parse(*arguments, '--help')
  text = capsys.readouterr().out
  assert f'--config.comparison.seeds={seeds}\n' in text
  assert f'--config.comparison.decay={decay}\n' in text
  preset = arguments[-1].removeprefix('--preset=') if arguments else 'cpu'
  assert f'flags of study, with the values of --preset={preset}:\n' in text
  with pytest.raises(UserError, match="--preset=cpuu: .*nearest: 'cpu'"):
    parse('--preset=cpuu', '--help')


def test_start_up_is_light():
  code = (
      'import sys, launch.study.flags, launch.study.workdir, launch.environment, '
      'launch.preemption\n'
      'heavy = {"jax", "numpy", "tensorflow_datasets", "scipy"} & set(sys.modules)\n'
      'sys.exit(", ".join(sorted(heavy)) or 0)')
  began = time.monotonic()
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=False,
      cwd=Path(__file__).parents[2])
  assert done.returncode == 0, done.stderr
  assert time.monotonic() - began < 4
