"""A checkpoint is whole or does not count: round trips, damage, failures, kills."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import errors
from model_lib import faults
from model_lib.training import checkpoint
from model_lib.training import final
from model_lib.training import manifest
from model_lib.training import savable

ROOT = pathlib.Path(__file__).parents[2]


class Moments(NamedTuple):
  mu: Any
  nu: Any


@flax.struct.dataclass
class State:
  params: Any
  opt: Any
  step: Any


def make_state(seed=0):
  key = jax.random.key(seed)
  kernel = jax.random.normal(key, (64, 33))
  return State(
      params={'dense.0': {'kernel': kernel, 'bias': kernel[0].astype(jnp.bfloat16)}},
      opt=(Moments(kernel * 2, [jnp.float32(seed), jnp.array([jnp.nan, -0.0, jnp.inf])]), (), None),
      step=jnp.int32(seed))


def abstract(state):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def accept(position):
  del position


def assert_same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def lines():
  return []


@pytest.fixture
def checkpoints(tmp_path, lines):
  made = checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints', log=lines.append)
  yield made
  made.close()


def save(checkpoints, *steps):
  for step in steps:
    checkpoints.save(step, make_state(step), {'step': step})
  checkpoints.wait()


def run(code, *args, fault=None, timeout=60):
  """A child process that dies of every warning. Returns the finished process."""
  environment = dict(os.environ, JAX_NUMPY_RANK_PROMOTION='raise', JAX_PLATFORMS='cpu')
  environment.pop(faults.VARIABLE, None)
  if fault:
    environment[faults.VARIABLE] = fault
  return subprocess.run([sys.executable, '-W', 'error', '-c', code, *map(str, args)], cwd=ROOT,
                        env=environment, capture_output=True, text=True, timeout=timeout,
                        check=False)


# Round trips.


def test_round_trip_keeps_bits_structure_and_position(checkpoints, lines):
  assert checkpoints.restore(make_state(), accept) is None
  save(checkpoints, 3, 10)
  position = {'step': 10}
  for expected in (make_state(), abstract(make_state())):
    step, state, got = checkpoints.restore(expected, accept)
    assert (step, got) == (10, position)
    assert_same_bits(state, make_state(10))
  with pytest.raises(AssertionError):  # The control: another seed has other bits.
    assert_same_bits(state, make_state(3))
  assert lines == []


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_typed_keys_and_numpy_leaves(checkpoints, impl):
  state = {'key': jax.random.split(jax.random.key(1, impl=impl), 3),
           'host': np.arange(5, dtype=np.int64)}
  checkpoints.save(1, state, {})
  state['host'][:] = 0  # The caller's array is the caller's again.
  _, got, _ = checkpoints.restore(
      {'key': abstract(state['key']), 'host': np.zeros(5, np.int64)}, accept)
  assert got['key'].dtype == state['key'].dtype
  np.testing.assert_array_equal(jax.random.key_data(got['key']),
                                jax.random.key_data(state['key']))
  assert isinstance(got['host'], np.ndarray) and got['host'].dtype == np.int64
  np.testing.assert_array_equal(got['host'], np.arange(5))


def test_donation_right_after_save_is_safe(checkpoints):
  overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  for step in range(1, 6):
    value = jax.random.normal(jax.random.key(step), (1 << 20,))
    want = np.array(value)
    checkpoints.save(step, {'x': value}, {})
    overwritten = overwrite(value)
    for _ in range(10):
      overwritten = overwrite(overwritten)
    jax.block_until_ready(overwritten)
    _, got, _ = checkpoints.restore({'x': abstract(overwritten)}, accept)
    np.testing.assert_array_equal(got['x'], want)


def test_restored_arrays_lie_on_the_asked_device_and_may_be_donated(checkpoints):
  save(checkpoints, 1)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  expected = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state())
  _, state, _ = checkpoints.restore(expected, accept)
  assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))
  jax.block_until_ready(jax.jit(lambda s: s, donate_argnums=0)(state))
  assert_same_bits(checkpoints.restore(expected, accept)[1], make_state(1))


@pytest.mark.parametrize('bad, message', [
    ({'x': jnp.zeros((0, 3))}, "leaf \\['x'\\] has shape \\(0, 3\\)"),
    ({'x': 3}, 'is a int'),
    ({'x': np.int64(7)}, 'is a int64'),
    ({'x': jax.jit(lambda: 1.0)()}, 'weakly typed'),
    ({'x': None, 'y': ()}, 'no leaves'),
])
def test_a_state_that_would_not_come_back_is_refused_before_writing(checkpoints, bad, message):
  with pytest.raises(ValueError, match=message):
    checkpoints.save(1, bad, {})
  assert os.listdir(checkpoints.directory) == [] and not checkpoints.in_flight


@pytest.mark.parametrize('position', [{'x': {1}}, {1: 2}, {'x': (1, 2)}, {'x': float('nan')}])
def test_a_position_that_json_changes_is_refused_before_writing(checkpoints, position):
  with pytest.raises(ValueError, match='JSON'):
    checkpoints.save(1, make_state(), position)
  assert os.listdir(checkpoints.directory) == []


def test_saving_a_step_twice_is_an_internal_error(checkpoints):
  save(checkpoints, 1)
  with pytest.raises(RuntimeError, match='exists already'):
    checkpoints.save(1, make_state(), {})
  save(checkpoints, 2)
  assert checkpoints.steps() == [1, 2]


def test_only_directories_named_by_a_step_are_steps(checkpoints):
  save(checkpoints, 20, 100)
  for name in ('7.orbax-checkpoint-tmp', '20.damaged', '007', '-1', 'x', '²'):
    (checkpoints.directory / name).mkdir()
  (checkpoints.directory / '9').write_text('a file')
  assert checkpoints.steps() == [20, 100]


# Damage.


def array_file(step):
  """The file with the arrays' data: the largest one."""
  return max((path for path in (step / 'state').rglob('*') if path.is_file()),
             key=lambda path: path.stat().st_size)


def flip(step):
  path = array_file(step)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return path.relative_to(step).as_posix() + ': SHA-256 differs from the manifest'


def truncate(step):
  path = array_file(step)
  size = path.stat().st_size
  os.truncate(path, size - 1)
  return f'{path.relative_to(step).as_posix()}: {size - 1} bytes instead of {size}'


def remove_array(step):
  path = array_file(step)
  path.unlink()
  return path.relative_to(step).as_posix() + ': missing'


def remove_manifest(step):
  (step / manifest.NAME).unlink()
  return manifest.NAME + ': missing'


def garble_manifest(step):
  (step / manifest.NAME).write_text('{"format": 1,\n')
  return manifest.NAME + ': unreadable'


def change_a_sum(step):
  content = json.loads((step / manifest.NAME).read_text())
  content['files']['state/_METADATA']['sha256'] = '0' * 64
  (step / manifest.NAME).write_text(json.dumps(content))
  return 'state/_METADATA: SHA-256 differs'


def garble_position(step):
  """As a writer with a defect would: the sums are right, the JSON is not."""
  (step / 'position' / 'metadata').write_text('{"format": 1,')
  manifest.write(step)
  return 'position: unreadable'


def foreign_position(step):
  (step / 'position' / 'metadata').write_text('{"format": 1}')
  manifest.write(step)
  return 'position: unreadable (not a record of a checkpoint)'


def empty_step(step):
  for path in sorted(step.rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  return manifest.NAME + ': missing'


DAMAGES = [flip, truncate, remove_array, remove_manifest, garble_manifest, change_a_sum,
           garble_position, foreign_position, empty_step]


def assert_fell_back(checkpoints, lines, reason, expected=None, ask=accept):
  """Step 2 is set aside for `reason` with one line, 1 is used, and 2 can be saved again."""
  step, state, position = checkpoints.restore(expected or make_state(), ask)
  assert (step, position) == (1, {'step': 1})
  assert_same_bits(state, make_state(1))
  line, = lines
  moved = checkpoints.directory / 'damaged' / '2-1'
  assert line.startswith(f'checkpoint 2 is not used: {reason}') and '\n' not in line
  assert line.endswith(f'moved to {moved}') and moved.is_dir()
  assert checkpoints.steps() == [1]
  save(checkpoints, 2)
  step, state, _ = checkpoints.restore(expected or make_state(), accept)
  assert step == 2 and len(lines) == 1
  assert_same_bits(state, make_state(2))


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_step_is_set_aside_and_the_one_before_used(checkpoints, lines, damage):
  save(checkpoints, 1, 2)
  assert_fell_back(checkpoints, lines, damage(checkpoints.path(2)))


OTHER_STATES = {
    'dtype': (lambda s: s.replace(step=jnp.float32(0)),
              'state.step: dtype float32 instead of int32'),
    'bfloat16': (lambda s: s.replace(opt=jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.opt)),
                 'state.opt[0].mu: dtype bfloat16 instead of float32'),
    'shape': (lambda s: s.replace(step=jnp.zeros(1, jnp.int32)),
              'state.step: shape [1] instead of []'),
    'missing': (lambda s: s.replace(params={}),
                "state.params['dense.0']['bias']: missing in the checkpoint"),
    'more': (lambda s: s.replace(params={**s.params, 'a': s.step}),
             "state.params['a']: not in the expected state"),
}


@pytest.mark.parametrize('name', OTHER_STATES)
def test_a_step_of_another_tree_is_set_aside(checkpoints, lines, name):
  change, reason = OTHER_STATES[name]
  save(checkpoints, 1)
  checkpoints.save(2, change(make_state(2)), {'step': 2})
  assert_fell_back(checkpoints, lines, reason)


def test_a_refused_step_is_set_aside(checkpoints, lines):
  save(checkpoints, 1, 2)
  refuse = lambda position: 'metrics.jsonl is too short' if position['step'] == 2 else None
  assert_fell_back(checkpoints, lines, 'position: metrics.jsonl is too short', ask=refuse)


def test_an_exception_from_accept_leaves_the_step_in_its_place(checkpoints, lines):
  save(checkpoints, 1)

  def refuse(position):
    raise errors.UserError('the data has another hash')

  with pytest.raises(errors.UserError, match='another hash'):
    checkpoints.restore(make_state(), refuse)
  assert checkpoints.steps() == [1] and lines == []


def test_a_step_under_another_number_is_set_aside(checkpoints, lines):
  save(checkpoints, 1)
  os.rename(checkpoints.path(1), checkpoints.path(5))
  assert checkpoints.restore(make_state(), accept) is None
  assert lines[0].startswith('checkpoint 5 is not used: position: written as step 1; moved')


def test_several_damages_and_repeated_ones_each_get_a_line_and_a_place(checkpoints, lines):
  save(checkpoints, 1, 2, 3)
  for step in (2, 3):
    flip(checkpoints.path(step))
  assert checkpoints.restore(make_state(), accept)[0] == 1
  save(checkpoints, 2)
  remove_array(checkpoints.path(2))
  (checkpoints.path(2) / 'position' / 'metadata').unlink()
  assert checkpoints.restore(make_state(), accept)[0] == 1
  assert sorted(os.listdir(checkpoints.directory / 'damaged')) == ['2-1', '2-2', '3-1']
  assert len(lines) == 3 and '(and 1 more)' in lines[2]


def test_another_format_is_refused_in_one_line_and_stays(checkpoints, monkeypatch, lines):
  monkeypatch.setattr(savable, 'FORMAT', 2)
  save(checkpoints, 1)
  monkeypatch.undo()
  with pytest.raises(checkpoint.CheckpointError, match='checkpoint format 2, this version reads 1'):
    checkpoints.restore(make_state(), accept)
  assert checkpoints.steps() == [1] and lines == []


# Retention.


def test_the_newest_verified_steps_are_kept(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  seen = []
  for step in (1, 2, 3, 10):
    save(checkpoints, step)
    seen.append(checkpoints.steps())
  checkpoints.close()
  assert seen == [[1], [1, 2], [2, 3], [3, 10]]
  with pytest.raises(ValueError, match='keep=0'):
    checkpoint.Checkpoints(tmp_path, keep=0)


def test_nothing_is_removed_before_the_new_step_verifies(checkpoints, monkeypatch):
  save(checkpoints, 1, 2, 3)
  monkeypatch.setattr(manifest, 'verify', lambda path: ['state/x: SHA-256 differs'])
  checkpoints.save(4, make_state(4), {})
  with pytest.raises(checkpoint.CheckpointError, match='4: checkpoint not written: read back'):
    checkpoints.wait()
  monkeypatch.undo()
  assert checkpoints.steps() == [1, 2, 3]
  save(checkpoints, 4)
  assert checkpoints.steps() == [2, 3, 4]


def test_construction_removes_only_what_is_unfinished(tmp_path):
  for name in ('7.orbax-checkpoint-tmp', '8.orbax-checkpoint-tmp-123', '3.removed', '5', 'mine'):
    (tmp_path / name / 'state').mkdir(parents=True)
  checkpoint.Checkpoints(tmp_path).close()
  assert sorted(os.listdir(tmp_path)) == ['5', 'mine']


# Failures.


def test_a_failed_save_raises_once_and_the_object_stays_usable(checkpoints, monkeypatch):
  save(checkpoints, 1)

  def full(path):
    raise OSError(28, 'No space left on device')

  for raiser in (checkpoints.wait, lambda: checkpoints.save(3, make_state(3), {}),
                 lambda: checkpoints.restore(make_state(), accept)):
    monkeypatch.setattr(manifest, 'write', full)
    checkpoints.save(2, make_state(2), {})
    checkpoints._idle.wait()
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match='No space left') as caught:
      raiser()
    assert str(checkpoints.path(2)) in str(caught.value) and '\n' not in str(caught.value)
    assert isinstance(caught.value, errors.UserError)
    checkpoints.wait()
    assert os.listdir(checkpoints.directory) == ['1'] and not checkpoints.in_flight
  save(checkpoints, 2)
  assert checkpoints.steps() == [1, 2]


def test_close_raises_the_last_error_but_does_not_hide_another(tmp_path, monkeypatch):
  monkeypatch.setattr(manifest, 'write', lambda path: 1 / 0)
  lines = []
  first, second = (checkpoint.Checkpoints(tmp_path / name, log=lines.append) for name in 'ab')
  for each in (first, second):
    each.save(1, make_state(), {})
  with pytest.raises(checkpoint.CheckpointError, match='division by zero'):
    first.close()
  first.close()
  with pytest.raises(KeyError):
    try:
      raise KeyError('the cause')
    finally:
      second.close()
  line, = lines
  assert 'division by zero' in line
  with pytest.raises(RuntimeError, match='save after close'):
    first.save(2, make_state(), {})


def test_a_directory_that_cannot_be_used_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(checkpoint.CheckpointError, match='cannot be used for checkpoints') as caught:
    checkpoint.Checkpoints(tmp_path / 'file' / 'checkpoints')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['lr=[0.1]', 'what?', 'a*'])
def test_a_path_in_which_orbax_loses_arrays_is_refused(tmp_path, name):
  with pytest.raises(checkpoint.CheckpointError, match='must not contain'):
    checkpoint.Checkpoints(tmp_path / name / 'checkpoints')
  with pytest.raises(checkpoint.CheckpointError, match='must not contain'):
    final.save_final(tmp_path / name, {'x': jnp.ones(2)})
  assert os.listdir(tmp_path) == []


FULL_DISK = """
import resource, shutil, signal, sys, pathlib
import numpy as np
from model_lib.training import checkpoint
directory, how = pathlib.Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
lines = []
checkpoints = checkpoint.Checkpoints(directory / 'c', log=lines.append)
random = np.random.default_rng(0)
small, big = (np.frombuffer(random.bytes(n), np.uint8) for n in (1000, 16_000_000))
checkpoints.save(1, {'x': small}, {})
checkpoints.wait()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
if how == 'limit':
  resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
for raiser in (checkpoints.wait, lambda: checkpoints.save(3, {'x': small}, {})):
  try:
    checkpoints.save(2, {'x': big}, {})
    raiser()
  except checkpoint.CheckpointError as error:
    print(str(error).replace(str(directory), 'DIR'))
assert checkpoints.steps() == [1] and not checkpoints.in_flight, checkpoints.steps()
assert sorted(p.name for p in (directory / 'c').iterdir()) == ['1']
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
checkpoints.save(2, {'x': small}, {})
step, state, _ = checkpoints.restore({'x': small}, lambda position: None)
assert step == 2 and (state['x'] == small).all()
# A directory that vanishes fails in save itself.
shutil.rmtree(directory / 'c')
(directory / 'c').write_text('')
try:
  checkpoints.save(4, {'x': small}, {})
except checkpoint.CheckpointError as error:
  print(str(error).replace(str(directory), 'DIR').partition(':')[0])
import logging
logging.getLogger('absl').error('other errors of absl are still shown')
checkpoints.close()
assert lines == []
print('end')
"""


def assert_survives_full_disk(directory, how, reason):
  done = run(FULL_DISK, directory, how)  # Its time limit is the test of a hang at the exit.
  assert done.stderr == 'ERROR:absl:other errors of absl are still shown\n'
  assert done.stdout == f'DIR/c/2: checkpoint not written: {reason}\n' * 2 + 'DIR/c/4\nend\n'
  assert done.returncode == 0


def test_a_full_disk_is_one_line_and_the_process_goes_on_and_ends(tmp_path):
  assert_survives_full_disk(tmp_path, 'limit', 'File too large')


@pytest.mark.slow
def test_a_full_file_system_is_one_line_and_the_process_goes_on_and_ends(tmp_path):
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(tmp_path)],
                           capture_output=True, check=False)
  if mounted.returncode:
    pytest.skip('mounting a tmpfs is not permitted')
  try:
    assert_survives_full_disk(tmp_path, 'tmpfs', 'No space left on device')
  finally:
    subprocess.run(['umount', str(tmp_path)], check=True)


# Kills.

KILLED = """
import sys
import jax
from model_lib.training import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1])
for step in (1, 2, 3):
  x = jax.random.normal(jax.random.key(step), (1000, 500))
  checkpoints.save(step, {'x': x}, {'step': step})
  if step < 3: checkpoints.wait()
checkpoints.close()
print('not killed')
"""


def normal(step):
  return {'x': jax.random.normal(jax.random.key(step), (1000, 500))}


def test_kill_while_arrays_are_written(tmp_path):
  done = run(KILLED, tmp_path, fault='save_arrays:3')
  assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, '', '')
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3.orbax-checkpoint-tmp']
  lines = []
  checkpoints = checkpoint.Checkpoints(tmp_path, log=lines.append)
  assert sorted(os.listdir(tmp_path)) == ['1', '2']
  step, state, position = checkpoints.restore(normal(0), accept)
  assert (step, position, lines) == (2, {'step': 2}, [])
  assert_same_bits(state, normal(2))
  checkpoints.save(3, normal(3), {'step': 3})
  assert checkpoints.restore(normal(0), accept)[0] == 3
  checkpoints.close()


def test_nothing_commits_before_save_has_passed_its_fault_point(checkpoints, monkeypatch):
  save(checkpoints, 0)
  seen = []

  def late(point):
    if point == 'save_arrays':
      time.sleep(0.3)  # Without the gate this small save would have committed by now.
      seen.extend(os.listdir(checkpoints.directory))

  monkeypatch.setattr(faults, 'reach', late)
  checkpoints.save(1, {'x': jnp.ones(1)}, {})
  checkpoints.wait()
  assert sorted(seen) == ['0', '1.orbax-checkpoint-tmp'] and checkpoints.steps() == [0, 1]


def test_kill_between_commit_and_manifest(tmp_path):
  done = run(KILLED, tmp_path, fault='commit_manifest:3')
  assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, '', '')
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3']
  assert [(tmp_path / str(n) / manifest.NAME).exists() for n in (1, 2, 3)] == [True, True, False]
  lines = []
  checkpoints = checkpoint.Checkpoints(tmp_path, log=lines.append)
  step, state, _ = checkpoints.restore(normal(0), accept)
  assert step == 2 and lines == [f'checkpoint 3 is not used: {manifest.NAME}: missing; '
                                 f'moved to {tmp_path / "damaged" / "3-1"}']
  assert_same_bits(state, normal(2))
  checkpoints.save(3, normal(3), {'step': 3})
  assert checkpoints.restore(normal(0), accept)[0] == 3
  checkpoints.close()


def test_a_fault_point_that_is_not_reached_kills_nothing(tmp_path):
  done = run(KILLED, tmp_path, fault='commit_manifest:4')
  assert (done.returncode, done.stdout, done.stderr) == (0, 'not killed\n', '')
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3']


def test_a_malformed_fault_is_an_error(monkeypatch):
  for setting in ('save_arrays', 'save_arrays:0', 'save_arrays:x'):
    monkeypatch.setenv(faults.VARIABLE, setting)
    with pytest.raises(ValueError, match='point:n'):
      faults.reach('save_arrays')
  monkeypatch.setenv(faults.VARIABLE, 'another:1')
  faults.reach('save_arrays')


# in_flight.


def test_in_flight_until_the_manifest_is_in_place(checkpoints, monkeypatch):
  write, let_go = manifest.write, threading.Event()

  def slow(path):
    let_go.wait(20)
    write(path)

  monkeypatch.setattr(manifest, 'write', slow)
  assert not checkpoints.in_flight
  checkpoints.save(1, make_state(1), {})
  watched = []

  def watch():
    while checkpoints.in_flight:
      time.sleep(0.001)
    watched.append((checkpoints.path(1) / manifest.NAME).exists())

  watchers = [threading.Thread(target=watch), threading.Thread(target=watch),
              threading.Thread(target=checkpoints.wait)]
  for watcher in watchers:
    watcher.start()
  deadline = time.monotonic() + 20
  while not checkpoints.path(1).exists() and time.monotonic() < deadline:
    time.sleep(0.005)  # Committed by Orbax: still in flight for us.
  time.sleep(0.05)
  assert checkpoints.path(1).exists() and checkpoints.in_flight and watched == []
  assert all(watcher.is_alive() for watcher in watchers)
  let_go.set()
  checkpoints.wait()
  for watcher in watchers:
    watcher.join(20)
  assert watched == [True, True] and not checkpoints.in_flight


def test_never_idle_without_a_manifest_over_many_saves(checkpoints):
  seen, stop = [], threading.Event()

  def watch():
    while not stop.is_set():
      if not checkpoints.in_flight:
        # Unlike `steps` before it, a step that begins in between cannot be seen here.
        newest = max(checkpoints.steps(), default=None)
        whole = newest is None or (checkpoints.path(newest) / manifest.NAME).exists()
        seen.append(whole or checkpoints.in_flight)
      time.sleep(0.0005)

  watcher = threading.Thread(target=watch)
  watcher.start()
  for step in range(12):
    checkpoints.save(step, {'x': jnp.ones(10)}, {})
    assert checkpoints.in_flight or (checkpoints.path(step) / manifest.NAME).exists()
    checkpoints.wait()
    time.sleep(0.002)
  stop.set()
  watcher.join()
  assert seen and all(seen)


# Final artifacts.


def make_params():
  params = make_state(4).params
  return {'params': params, 'batch_stats': {'norm': {'mean': jnp.arange(3.0)}}}


def test_final_round_trip_with_and_without_an_expected_tree(tmp_path):
  path = tmp_path / 'final'
  final.save_final(path, make_params())
  assert_same_bits(final.load_final(path), make_params())
  assert_same_bits(final.load_final(path, abstract(make_params())), make_params())
  final.save_final(path, {'layers': [jnp.ones(2), jnp.zeros(2)]})  # Replaces.
  assert_same_bits(final.load_final(path), {'layers': {'0': jnp.ones(2), '1': jnp.zeros(2)}})
  assert os.listdir(tmp_path) == ['final']


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_final_is_refused_in_one_line(tmp_path, damage):
  path = tmp_path / 'final'
  final.save_final(path, make_params())
  damage(path)
  with pytest.raises(checkpoint.CheckpointError, match='final: damaged: ') as caught:
    final.load_final(path)
  assert '\n' not in str(caught.value)


def test_other_refusals_of_final_artifacts(tmp_path):
  path = tmp_path / 'final'
  with pytest.raises(checkpoint.CheckpointError, match='no such directory'):
    final.load_final(path)
  with pytest.raises(ValueError, match='typed key'):
    final.save_final(path, {'key': jax.random.key(0)})
  assert os.listdir(tmp_path) == []
  final.save_final(path, {'x': jnp.ones(3)})
  wrong = {'x': jax.ShapeDtypeStruct((3,), jnp.bfloat16)}
  with pytest.raises(checkpoint.CheckpointError, match='dtype float32 instead of bfloat16'):
    final.load_final(path, wrong)
  (tmp_path / 'file').write_text('')
  with pytest.raises(checkpoint.CheckpointError, match='not written'):
    final.save_final(tmp_path / 'file' / 'final', {'x': jnp.ones(3)})


def test_a_failed_final_leaves_the_old_one(tmp_path, monkeypatch):
  path = tmp_path / 'final'
  final.save_final(path, {'x': jnp.ones(3)})
  monkeypatch.setattr(manifest, 'write', lambda path: 1 / 0)
  with pytest.raises(checkpoint.CheckpointError, match='division by zero'):
    final.save_final(path, {'x': jnp.zeros(3)})
  monkeypatch.undo()
  assert_same_bits(final.load_final(path), {'x': jnp.ones(3)})
  final.save_final(path, {'x': jnp.zeros(3)})
  assert os.listdir(tmp_path) == ['final']


# Devices.

SHARDED = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from model_lib.training import checkpoint
P = jax.sharding.PartitionSpec
mesh = jax.make_mesh((4,), ('member',), axis_types=(jax.sharding.AxisType.Auto,))
one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
four = jax.NamedSharding(mesh, P('member'))
value = np.arange(24, dtype=np.float32).reshape(8, 3)
checkpoints = checkpoint.Checkpoints(sys.argv[1])
for step, (before, after) in enumerate(((one, four), (four, one), (four, None))):
  checkpoints.save(step, {'x': jax.device_put(value, before)}, {})
  expected = {'x': jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=after)}
  _, state, _ = checkpoints.restore(expected, lambda position: None)
  first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  assert state['x'].sharding == (after or first), state['x'].sharding
  np.testing.assert_array_equal(np.asarray(state['x']), value)
checkpoints.close()
"""


def test_restore_on_another_number_of_devices(tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
  done = run(SHARDED, tmp_path)
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
