"""metrics.jsonl: what its lines hold, where it is cut, and what a full disk says."""
from __future__ import annotations

import json

from hypothesis import given, strategies as st
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.training.metrics import MetricsFile
from tests import helpers


@pytest.fixture
def metrics(tmp_path):
  file = MetricsFile(tmp_path / 'metrics.jsonl')
  yield file
  file.close()


def rows(file: MetricsFile) -> list[dict]:
  return [json.loads(line) for line in file.path.read_text().splitlines()]


def write(file: MetricsFile, steps=(10, 20), members=(4, 5, 6), run='arms', split='train'):
  values = np.arange(len(members) * len(steps) * 2, dtype=np.float32).reshape(
      len(members), len(steps), 2)
  file.write(run, members, split, steps, ['accuracy', 'loss'], values)
  return values


def test_lines(metrics):
  values = write(metrics, run='a "quoted" run')
  found = rows(metrics)
  assert [(r['step'], r['member']) for r in found] == [
    (10, 4), (10, 5), (10, 6), (20, 4), (20, 5), (20, 6)]
  assert list(found[0]) == ['run', 'member', 'split', 'step', 'accuracy', 'loss']
  assert {(r['run'], r['split']) for r in found} == {('a "quoted" run', 'train')}
  assert [r['loss'] for r in found] == values[..., 1].T.ravel().tolist()


@given(hnp.arrays(np.float32, (2, 3, 1), elements=st.floats(width=32)))
def test_numbers_come_back_bit_for_bit(tmp_path_factory, values):
  """Also subnormal numbers and -0; what is not finite is null."""
  file = MetricsFile(tmp_path_factory.mktemp('metrics') / 'metrics.jsonl')
  file.write('arms', [0, 1], 'train', [1, 2, 3], ['loss'], values)
  file.close()
  found = np.array([np.nan if r['loss'] is None else r['loss'] for r in rows(file)])
  back = found.astype(np.float32).reshape(3, 2).T[..., None]
  expected = np.where(np.isfinite(values), values, np.float32(np.nan))
  finite = np.isfinite(expected)
  np.testing.assert_array_equal(np.isfinite(back), finite)
  assert back[finite].tobytes() == expected[finite].tobytes()


def test_the_order_does_not_show_the_steps_per_call(tmp_path):
  """Steps written in one block or one at a time give the same file."""
  values = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
  files = []
  for cuts in ([0, 4], [0, 1, 2, 3, 4], [0, 3, 4]):
    file = MetricsFile(tmp_path / str(len(files)))
    for a, b in zip(cuts, cuts[1:]):
      file.write('arms', range(3), 'train', range(a, b), ['x', 'y'], values[:, a:b])
    file.close()
    files.append(file.path.read_bytes())
  assert files[0] == files[1] == files[2]


def test_truncate(metrics):
  write(metrics, steps=[10])
  position = metrics.sync()
  first = metrics.path.read_bytes()
  assert position == len(first) == metrics.position
  write(metrics, steps=[20])
  metrics.truncate(position)
  assert metrics.path.read_bytes() == first
  write(metrics, steps=[30])  # appends where it was cut
  assert [r['step'] for r in rows(metrics)] == [10] * 3 + [30] * 3


def test_opening_keeps_the_lines(metrics):
  write(metrics)
  again = MetricsFile(metrics.path)
  assert again.position == metrics.position > 0
  again.close()


def test_a_shorter_file_is_refused(metrics):
  write(metrics)
  before = metrics.path.read_bytes()
  with pytest.raises(UserError, match=f'{len(before)} bytes.*wrote {len(before) + 1};') as error:
    metrics.truncate(len(before) + 1)
  assert '\n' not in str(error.value) and str(metrics.path) in str(error.value)
  assert metrics.path.read_bytes() == before
  metrics.truncate(len(before))


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be opened'):
    MetricsFile(tmp_path / 'file' / 'metrics.jsonl')


FULL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from model_lib.errors import UserError
from model_lib.training.metrics import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = MetricsFile(Path({path!r}))
file.write('arms', [0], 'train', [1], ['loss'], np.ones((1, 1, 1), np.float32))
sound = file.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
  file.write('arms', [0], 'train', [2], ['loss'], np.ones((1, 1, 1), np.float32))
except UserError as e:
  print(e)
file.truncate(sound)
"""


def test_a_full_disk_is_one_line(tmp_path):
  """The half line that was still written is what a resume cuts off."""
  path = tmp_path / 'metrics.jsonl'
  done = helpers.run_python(FULL.format(path=str(path), limit=100))
  assert done.returncode == 0, done.stderr
  line, = done.stdout.splitlines()
  assert str(path) in line and 'File too large' in line and 'make room' in line
  assert [json.loads(text)['step'] for text in path.read_text().splitlines()] == [1]


def test_enough_room_says_nothing(tmp_path):
  done = helpers.run_python(FULL.format(path=str(tmp_path / 'metrics.jsonl'), limit=1000))
  assert done.returncode == 0 and not done.stdout, done.stderr
