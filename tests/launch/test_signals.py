"""SIGTERM, SIGINT and SIGUSR1 in every phase: saved, exit 75 in 5 s, the same bits at the end."""
from __future__ import annotations

import signal
import subprocess
import time

import numpy as np
import pytest

from launch.preemption import EXIT_PREEMPTED
from tests import helpers
from tests.launch import study_runs
from tests.launch.study_runs import COHORTS, STEPS, Reference, Start

WITHIN_S = 5.0
NO_CACHE = {'JAX_COMPILATION_CACHE_DIR': ''}


def preempt(start: Start, workdir, number: int, count: int) -> str:
  """Sends the signal, checks how the process leaves; returns what it said."""
  done = start.signal(number)
  assert done.code == EXIT_PREEMPTED, done.err[-4000:]
  assert done.seconds < WITHIN_S
  found = study_runs.status(workdir)
  assert found['state'] == 'preempted' and found['preemption_count'] == count
  assert 'Traceback' not in done.err
  assert not (workdir / 'lock').exists()
  return done.err


def in_preparation(workdir, cohort):
  """Whether the cohort is announced; it is compiled next. With a warm cache that is over soon."""
  found = study_runs.status(workdir)
  return found.get('cohort') == cohort and found.get('step') == 0


def writing(workdir, cohort):
  """A step of the cohort whose arrays are being written."""
  return list((workdir / 'checkpoints' / cohort / 'steps').glob('*.orbax-checkpoint-tmp*'))


def compiling(workdir, number=signal.SIGTERM, count=1):
  with Start(workdir, env=NO_CACHE) as start:
    start.until(lambda: in_preparation(workdir, COHORTS[0]))
    time.sleep(0.2)  # from the data to the compiler; compiling takes seconds
    said = preempt(start, workdir, number, count)
  assert f'{number.name}: left (in preparing a cohort)' in said
  assert not study_runs.saved(workdir)


def saving(workdir, number=signal.SIGTERM, count=1):
  cohort = COHORTS[2]
  with Start(workdir) as start:
    start.until(lambda: study_runs.steps(workdir, cohort) and writing(workdir, cohort))
    said = preempt(start, workdir, number, count)
  assert said.count('preempted: saved') == 1
  assert study_runs.steps(workdir, cohort)[-1] <= STEPS and not writing(workdir, cohort)


def evaluating(workdir, number=signal.SIGTERM, count=1):
  """After the last save of a cohort."""
  with Start(workdir) as start:
    start.until(lambda: STEPS in study_runs.steps(workdir, '*'))
    said = preempt(start, workdir, number, count)
  assert f'{number.name}: left (in evaluating)' in said
  assert STEPS in study_runs.steps(workdir, '*') and len(study_runs.finished(workdir)) < 4


PHASES = (compiling, saving, evaluating)


@pytest.mark.parametrize('numbers', [
  (signal.SIGTERM, signal.SIGTERM),
  pytest.param((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), marks=pytest.mark.slow)])
def test_phases_one_after_the_other(reference, tmp_path, numbers):
  """One run that is preempted in two phases, or in all by all signals, ends with the same bits."""
  workdir = tmp_path / 'run'
  for count, (phase, number) in enumerate(zip(PHASES, numbers), 1):
    phase(workdir, number, count)
  done = study_runs.run(workdir)
  assert len(numbers) < len(PHASES) or f'at step {STEPS}/{STEPS}' in done.err
  assert study_runs.status(workdir)['preemption_count'] == len(numbers)
  study_runs.assert_same(workdir, reference)


@pytest.mark.slow
@pytest.mark.parametrize('phase', PHASES)
def test_a_phase_alone(reference, tmp_path, phase):
  workdir = tmp_path / 'run'
  phase(workdir)
  study_runs.run(workdir)
  study_runs.assert_same(workdir, reference)


# The cost of a step is timed over hundreds of steps, which would take a minute here.
UNTIMED = '''
from model_lib.training import timing
timing.relative_cost = lambda runs, reference: {kind: (1.0, 1.0) for kind in runs}
'''
LONG = {'before': UNTIMED, 'mlp__activations': 'relu', 'mlp__null_copies': 0,
        'mlp__shuffled_seeds': 0, 'mlp__batch_size': 1250, 'mlp_widths': '1024,1024',
        'mlp__fresh_seeds': 2, 'engine__steps_per_call': 24}


@pytest.fixture(scope='module')
def whole(compile_cache, tmp_path_factory) -> Reference:
  """An uninterrupted run of LONG, whose calls last seconds."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  study_runs.run(workdir, **LONG)
  return Reference.of(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('steps_per_call, said, saved', [
  (2, 'preempted: saved', 1), (24, 'left (the running call took more than 3 s)', 0)])
def test_in_the_middle_of_a_call(whole, tmp_path, steps_per_call, said, saved):
  """Its end is near: the loop saves it. It is more than 3 s away: the last save counts."""
  workdir, cohort = tmp_path / 'run', COHORTS[0]
  config = {**LONG, 'engine__steps_per_call': steps_per_call}
  with Start(workdir, **config) as start:
    start.until(lambda: study_runs.committed(workdir) and not writing(workdir, cohort))
    before = study_runs.steps(workdir, cohort)
    assert said in preempt(start, workdir, signal.SIGTERM, 1)
  after = study_runs.steps(workdir, cohort)
  assert before[-1] < STEPS and len(after) == len(before) + saved
  done = study_runs.run(workdir, timeout=600, **config)
  assert f'resumed {cohort} at step {after[-1]}/{STEPS}' in done.err
  study_runs.assert_same(workdir, whole)


def test_data_preparation(tmp_path):
  """Nothing half-prepared is left, and the second time it is prepared whole."""
  tokens = np.arange(4_000_000, dtype=np.uint16) % 1000
  np.save(tmp_path / 'train.npy', tokens)
  np.save(tmp_path / 'valid.npy', tokens[:1000])
  np.save(tmp_path / 'test.npy', tokens[:1000])
  data_dir = tmp_path / 'data'
  arguments = ('--dataset=text', '--variant=long', f'--source={tmp_path}', f'--data_dir={data_dir}')
  with subprocess.Popen(helpers.module_command('data.prepare', *arguments), cwd=helpers.ROOT,
                        env=helpers.child_environment(), stderr=subprocess.PIPE,
                        stdout=subprocess.PIPE, text=True) as process:
    while not (data_dir.exists() and any(data_dir.iterdir())):
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.002)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < WITHIN_S
  assert process.returncode == EXIT_PREEMPTED
  assert said.count('\n') == 1 and 'stopped by SIGTERM' in said
  assert not [p for p in data_dir.rglob('*') if p.is_file()]
  done = helpers.run_module('data.prepare', *arguments)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('text-long: ')
