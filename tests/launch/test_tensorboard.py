"""Event files: read back by TensorBoard's own reader, and written where TensorFlow cannot be."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from launch.study import tensorboard as tb
from tests import helpers


def _scalars(directory):
  accumulator = EventAccumulator(str(directory), size_guidance={'scalars': 0})
  accumulator.Reload()
  return {tag: [(e.step, e.value, e.wall_time) for e in accumulator.Scalars(tag)]
          for tag in accumulator.Tags()['scalars']}


def _lines(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _row(run='a', member=0, split='train', step=0, **metrics):
  return {'run': run, 'member': member, 'split': split, 'step': step, **metrics}


def test_the_readers_values_are_the_writers_in_float32(tmp_path):
  with tb.EventWriter(tmp_path) as writer:
    writer.add(0, {'loss': 0.1, 'big': 1e300}, wall_time=100.5)
    writer.add(7, {'loss': 1 / 3})
    writer.add(9, {'loss': math.nan}, wall_time=3.0)
  found = _scalars(tmp_path)
  assert found['loss'][0] == (0, float(np.float32(0.1)), 100.5)
  assert found['loss'][0][1] != 0.1
  assert found['loss'][1][:2] == (7, float(np.float32(1 / 3)))
  assert abs(found['loss'][1][2] - time.time()) < 60
  assert math.isnan(found['loss'][2][1]) and found['big'] == [(0, math.inf, 100.5)]


@pytest.mark.parametrize('size', [0, 1, 3, 4, 5, 8, 1023, 1024, 1025, 1027, 1028, 4099])
def test_the_checksum_is_tensorboards(size):
  data = np.random.default_rng(size).bytes(size)
  assert tb._masked(tb._crc32c(data)) == masked_crc32c(data)


def test_the_checksum_of_the_standard():
  assert tb._crc32c(b'123456789') == 0xE3069283  # the check value of CRC-32C (RFC 3720)


def test_a_flipped_byte_is_noticed(tmp_path):
  with tb.EventWriter(tmp_path) as writer:
    writer.add(1, {'loss': 0.5}, wall_time=1.0)
  path, = tmp_path.iterdir()
  content = bytearray(path.read_bytes())
  content[-6] ^= 1
  path.write_bytes(content)
  assert _scalars(tmp_path) == {}


def test_a_population_has_members_and_quartiles_over_all():
  losses = {m: float(m) for m in range(101)}
  values = tb.population_values({'loss': losses}, 'train', members=2)
  assert values == {'loss/train/member_0000': 0.0, 'loss/train/member_0001': 1.0,
                    'loss/train/q25': 25.0, 'loss/train/median': 50.0, 'loss/train/q75': 75.0}


def test_quartiles_are_numpys_over_the_finite_values():
  rng = np.random.default_rng(0)
  for size in (1, 2, 3, 10):
    x = rng.normal(size=size)
    values = tb.population_values({'m': {**dict(enumerate(x)), 98: math.nan, 99: math.inf}}, 'val')
    np.testing.assert_allclose(
        [values[f'm/val/{q}'] for q in ('q25', 'median', 'q75')], np.quantile(x, [.25, .5, .75]))
  assert 'm/val/median' not in tb.population_values({'m': {0: math.nan}}, 'val')


def test_replay_has_a_directory_per_cohort_and_one_event_per_step(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  _lines(path, [
      _row(member=m, split=split, step=s, loss=10 * s + m, accuracy=None if m else 0.5)
      for s in (0, 5) for m in (0, 1, 2) for split in ('train', 'val')]
      + [_row(run='b/c', member=70, loss=1.0)])
  os.utime(path, (1000, 1000))
  assert tb.replay(path, tmp_path / 'tb', members=2) == 3
  found = _scalars(tb.cohort_directory(tmp_path / 'tb', 'a'))
  assert found['loss/val/member_0001'] == [(0, 1.0, 1000.0), (5, 51.0, 1000.0)]
  assert 'loss/val/member_0002' not in found
  assert [v for _, v, _ in found['loss/train/q75']] == [1.5, 51.5]
  assert math.isnan(found['accuracy/train/member_0001'][0][1])
  assert [v for _, v, _ in found['accuracy/train/median']] == [0.5, 0.5]
  other = _scalars(tb.cohort_directory(tmp_path / 'tb', 'b/c'))
  assert other['loss/train/member_0070'] == [(0, 1.0, 1000.0)]


def test_replay_replaces_our_files_only(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  _lines(path, [_row(loss=1.0), _row(step=1, loss=2.0)])
  directory = tmp_path / 'tb'
  tb.replay(path, directory)
  foreign = directory / 'a' / 'events.out.tfevents.0000000001.other'
  foreign.write_bytes(b'')
  with open(path, 'a') as file:
    file.write('{"run": "a", "mem')  # a write that was cut off
  tb.replay(path, directory)
  assert foreign.exists() and len(list((directory / 'a').iterdir())) == 2
  foreign.unlink()
  assert [v[:2] for v in _scalars(directory / 'a')['loss/train/median']] == [(0, 1.0), (1, 2.0)]


def test_a_resumed_run_adds_a_file_after_the_replayed_one(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  _lines(path, [_row(loss=1.0)])
  tb.replay(path, tmp_path)
  with tb.EventWriter(tb.cohort_directory(tmp_path, 'a')) as writer:
    writer.add(3, {'loss/train/median': 4.0})
  assert [v[:2] for v in _scalars(tmp_path / 'a')['loss/train/median']] == [(0, 1.0), (3, 4.0)]


def test_without_metrics_there_is_nothing_to_replay(tmp_path):
  assert tb.replay(tmp_path / 'metrics.jsonl', tmp_path / 'tb') == 0
  assert not (tmp_path / 'tb').exists()


def test_cohort_names_cannot_leave_the_directory_or_meet(tmp_path):
  names = ['a', 'a/b', 'a%2Fb', '..', '.', '', '%2E', 'relu(x=1)', '../x']
  places = [tb.cohort_directory(tmp_path, name) for name in names]
  assert len(set(places)) == len(names)
  assert all(place.parent == tmp_path and '..' not in place.parts for place in places)


_CHILD = '''
import sys
from launch.study import tensorboard as tb
with tb.EventWriter(sys.argv[1]) as writer:
  writer.add(2, {'loss': 0.25}, wall_time=1.0)
assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules
try:
  import tensorflow
except RuntimeError:
  print('raises')
'''


def test_it_writes_where_importing_tensorflow_raises(tmp_path):
  env = helpers.child_environment(
      {'PYTHONPATH': os.pathsep.join([str(helpers.FAKE_TENSORFLOW), str(helpers.ROOT)])})
  done = subprocess.run([sys.executable, '-W', 'error', '-c', _CHILD, str(tmp_path)], env=env,
                        capture_output=True, text=True, timeout=60)
  assert done.returncode == 0 and done.stdout == 'raises\n', done.stderr
  assert _scalars(tmp_path) == {'loss': [(2, 0.25, 1.0)]}


@pytest.mark.benchmark
def test_a_population_costs_little(tmp_path):
  rng = np.random.default_rng(0)
  steps = [{k: dict(enumerate(rng.random(64).tolist())) for k in 'abc'} for _ in range(120)]
  seconds = []
  for number in range(5):
    with tb.EventWriter(tmp_path / str(number)) as writer:
      start = time.process_time()
      for step, metrics in enumerate(steps):
        writer.add(step, tb.population_values(metrics, 'train'))
      writer.flush()
      seconds.append(time.process_time() - start)
  assert sorted(seconds)[2] < 0.15  # of CPU, so that a busy machine does not fail it
