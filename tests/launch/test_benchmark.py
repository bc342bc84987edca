"""The benchmark's arithmetic, its command line, and that both sides of a pair do the same work."""
from __future__ import annotations

import json
import time

import numpy as np
import pytest

from launch.benchmark import __main__ as command
from launch.benchmark import engine
from launch.benchmark import measure
from launch.benchmark import memory
from launch.benchmark import plain
from launch.benchmark import speed
from launch.study.progress import Progress
from model_lib.errors import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('unoptimized')

FIELDS = {'name', 'unit', 'n', 'q25', 'median', 'q75', 'at_least', 'at_most', 'met', 'details'}


def check(records, names):
  assert [r['name'] for r in records] == names
  for r in records:
    assert FIELDS <= r.keys()
    assert r['q25'] <= r['median'] <= r['q75'] and np.isfinite([r['q25'], r['q75']]).all()
    json.dumps(r)


def test_quartiles_are_numpys():
  values = list(np.random.default_rng(0).normal(size=11))
  np.testing.assert_allclose(measure.quartiles(values), np.percentile(values, [25, 50, 75]))
  assert measure.quartiles([3.0]) == [3.0, 3.0, 3.0]


def test_rounds_alternate():
  order = []

  def kind(name, seconds):
    def run():
      order.append(name)
      return seconds
    return run

  found = measure.interleave({'a': kind('a', 1.0), 'b': kind('b', 2.0)}, 3)
  assert found == {'a': [1.0] * 3, 'b': [2.0] * 3}
  assert order == ['a', 'b', 'b', 'a', 'a', 'b']


def test_a_ratio_is_taken_pair_by_pair():
  found = measure.ratio('x', [2.0, 30.0, 400.0], [1.0, 10.0, 100.0], at_most=3.0)
  assert (found['q25'], found['median'], found['q75']) == (2.5, 3.0, 3.5)
  assert found['met'] is True
  assert measure.record('x', [3.1], at_most=3.0)['met'] is False
  assert measure.record('x', [3.1], at_least=3.2)['met'] is False
  assert measure.record('x', [3.1], at_least=3.0)['met'] is True
  assert measure.record('x', [3.1])['met'] is None


def test_a_child_is_timed_and_its_own_peak_is_read():
  # In a process of its own: a child's peak is never less than what its parent has.
  done = helpers.run_python("""
from launch.benchmark import measure
big = 'import numpy; numpy.ones(100_000_000)'
for code in (big, 'pass'):
  print(*measure.run_child('timeit', '-n1', '-r1', code)[:2])
""")
  assert done.returncode == 0, done.stderr
  first, second = ([float(x) for x in line.split()] for line in done.stdout.splitlines())
  assert first[0] > 0 and first[1] > 760
  assert second[1] < 700, 'the peak of an earlier child was read'
  with pytest.raises(RuntimeError, match='exit code'):
    measure.run_child('launch.benchmark.nothing')


def test_children_have_no_compilation_cache(monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/nowhere')
  assert 'JAX_COMPILATION_CACHE_DIR' not in measure.child_environment()


@pytest.mark.parametrize('argv, message', [
  (['--parts=steps,sped'], "--parts: sped is no part"),
  (['--parts='], '--parts: none is no part'),
  (['--pairs=9'], 'at least 10 pairs'),
  (['--pairs=many'], 'invalid int value'),
  (['--quikstart=x'], 'unknown flag --quikstart; nearest: --quickstart;'),
])
def test_mistakes_are_one_line(argv, message, capsys):
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
  record = measure.ratio('a / b', [1.0, 2.0], [2.0, 1.0], at_least=20.0)
  monkeypatch.setattr(speed, 'steps', lambda pairs: [record | {'n': pairs}])
  monkeypatch.setattr('launch.environment.fix_threads', lambda recorded: 2)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/nowhere')
  out = tmp_path / 'found.json'
  assert command.main(['--parts=steps', '--pairs=12', f'--out={out}']) == 0
  printed = capsys.readouterr().out
  assert 'a / b' in printed and 'NO' in printed and '>= 20' in printed
  written = json.loads(out.read_text())
  assert written['parts'] == {'steps': [json.loads(json.dumps(record | {'n': 12}))]}
  assert written['environment']['argv'][-1] == f'--out={out}'
  assert written['environment']['versions']['jax'] and written['environment']['device_kind']
  assert not [p for p in tmp_path.iterdir() if p != out]


def test_the_light_part_imports_no_jax():
  done = helpers.run_python(
      'import sys, launch.benchmark.__main__\nsys.exit("jax" in sys.modules)')
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def setting():
  return engine.setup(1, 50, steps_per_call=50)


def test_both_sides_train_the_same_model(setting):
  """From one initial state and on the same batches the losses agree."""
  (routes,), index, slots = setting.inputs_of_call(50)
  state = setting.population.initial(setting.population.cohort.members)
  layers = [state.params[name] for name in ('hidden_0', 'hidden_1', 'head')]
  params = [(layer['kernel'][0] + 0, layer['bias'] + 0) for layer in layers]
  _, optimizer_state = plain.initial(0, 64)
  arrays, task = setting.prepared.constant, setting.prepared.task
  _, records = setting.call(state, routes, arrays, index, slots, np.int32(50))
  scan = plain.make_scan(task.mean, task.std)
  _, losses = scan((params, optimizer_state), arrays['inputs'], arrays['labels'][:, 0], index[0])
  recorded = np.asarray(records)[0, :2, setting.population.metric_names(arrays).index('loss')]
  np.testing.assert_allclose(recorded, np.asarray(losses)[[24, 49]], rtol=1e-4)
  assert abs(recorded[0] / np.asarray(losses)[23] - 1) > 1e-3  # another step has another loss


def test_the_plain_script_learns(tmp_path, capsys):
  engine.write_plain_data(tmp_path / 'digits.npz')
  plain.main(str(tmp_path / 'digits.npz'), 3, 200)
  assert 0.0 < float(capsys.readouterr().out) < 0.3


def test_single_gives_a_record():
  check(speed.single(2), ['one member, engine / by hand'])


def test_steps_gives_records():
  records = speed.steps(2, members=2, steps=5)
  assert [r['at_least'] for r in records] == [1.5, None, None, None, None]
  # 128 examples: forward and kernel gradients of all layers, input gradients of the last two.
  assert records[3]['details']['per_step'] == 128 * (2 * (64 * 64 + 64 * 64 + 640) + 4096 + 640)


def test_overhead_sees_a_slow_writer(monkeypatch):
  """What sleeps between two calls must show in full."""
  slow = Progress.__call__

  def sleep(self, step, losses):
    time.sleep(0.3)
    slow(self, step, losses)

  monkeypatch.setattr(Progress, '__call__', sleep)
  outside, longer, host = speed.overhead(1, members=2, steps=50)
  check([outside, longer, host], ['outside of the compiled program', 'calls longer than bare ones',
                                  "CPU time of the loop's thread"])
  assert outside['details']['gaps_s'][0] >= 0.3
  assert outside['met'] is False and outside['median'] > 50


def test_quickstart_peak_is_read(tmp_path):
  (tmp_path / 'timing.jsonl').write_text('{"peak_mib": 1000.0}\n{"peak_mib": 2000.0}\n')
  found = memory.quickstart_peak(tmp_path)
  assert found['median'] == pytest.approx(2.097152) and found['met'] is True
  (tmp_path / 'timing.jsonl').write_text('{"peak_mib": 4000.0}\n')
  assert memory.quickstart_peak(tmp_path)['met'] is False
  with pytest.raises(UserError, match='not the record of a run'):
    memory.quickstart_peak(tmp_path / 'none')


def test_activations_are_counted():
  """Kept for the backward pass: at least the inputs of the three layers."""
  case = memory.Case('mlp', (('widths', (96, 32)),), 1)
  population, _, prepared = memory._population(case, 'map', batch_size=16)
  least = 4 * 16 * (64 + 96 + 32)
  assert least <= memory._activation_bytes(population, prepared.arrays) <= 4 * least


@pytest.mark.slow
@pytest.mark.benchmark
@pytest.mark.parametrize('part', command.PARTS)
def test_targets(part):
  """In a process of its own: this one has jax, a thread count and perhaps a cache already."""
  done = helpers.run_module('launch.benchmark', f'--parts={part}', timeout=3000)
  assert done.returncode == 0, done.stderr
  assert ' NO' not in done.stdout, done.stdout
