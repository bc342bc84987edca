"""A run killed at any moment and started again ends with the bits of one that was never stopped."""
from __future__ import annotations

import os
import random
import shutil
import textwrap
import time

import pytest

from model_lib import faults
from tests.launch import study_runs
from tests.launch.study_runs import LAST, SIGKILLED, Start

# In the order in which a run passes them: each start goes on where the one before was killed.
FORCED = ('save_arrays:5', 'commit_manifest:4', 'metrics_line:9', 'between_cohorts:1',
          'final_table:1')


def killed_at(workdir, fault):
  """Starts a run that kills itself at a fault point; checks that it did."""
  done = study_runs.run(workdir, env={faults.VARIABLE: fault}, code=SIGKILLED)
  assert study_runs.status(workdir)['state'] == 'running'
  return done


def killed_at_random(workdir, reference, rng):
  """Kills a start at a random moment after the first committed step and before its end.

  The moment is a random length of metrics.jsonl beyond the present one, and up to 0.1 s more.
  """
  now, end = study_runs.lines(workdir), len(reference.metrics)
  aim = now + rng.random() * 0.9 * (end - now)
  delay = rng.random() * 0.1
  with Start(workdir) as start:
    start.until(lambda: study_runs.saved(workdir) and study_runs.lines(workdir) >= aim)
    time.sleep(delay)
    assert study_runs.saved(workdir)
    assert study_runs.status(workdir)['state'] == 'running'
    start.kill()
  assert study_runs.status(workdir)['state'] == 'running'
  return study_runs.lines(workdir)


def test_killed_again_and_again(reference, tmp_path):
  """Every forced point and two random moments, one start after the other."""
  workdir, rng = tmp_path / 'run', random.Random(2)
  killed_at(workdir, FORCED[0])
  assert len(study_runs.committed(workdir)) in (3, 4)
  # Nobody had committed the step whose arrays were being written.
  assert study_runs.steps(workdir, 'mlp-select-fixed')[-1] == 16
  killed_at(workdir, FORCED[1])
  newest = max(int(p.name) for p in (workdir / 'checkpoints/mlp-select-fixed/steps').iterdir()
               if p.name.isdecimal())
  assert newest == study_runs.steps(workdir, 'mlp-select-fixed')[-1] + 4  # without its manifest
  done = killed_at(workdir, FORCED[2])
  assert done.err.count(f'checkpoint {newest} is not used') == 1
  assert not (workdir / 'metrics.jsonl').read_bytes().endswith(b'\n')
  killed_at_random(workdir, reference, rng)
  if len(study_runs.finished(workdir)) < 3:
    killed_at(workdir, FORCED[3])
  killed_at_random(workdir, reference, rng)
  killed_at(workdir, FORCED[4])
  assert len(study_runs.finished(workdir)) == 4 and not (workdir / 'table.md').exists()
  # The last start has one CPU; the number of threads is the recorded one.
  prefix = ('taskset', '-c', str(min(os.sched_getaffinity(0)))) if shutil.which('taskset') else ()
  done = study_runs.run(workdir, prefix=prefix)
  study_runs.assert_same(workdir, reference)
  study_runs.assert_events(workdir)
  assert done.out.startswith('Activations on digits')
  assert 'mixed environment: threads' not in (workdir / 'table.md').read_text()


@pytest.mark.slow
def test_killed_before_the_first_save_of_a_resumed_run(reference, interrupted, tmp_path):
  """A resumed run is killed before its first save; the one after it resumes at the same step."""
  workdir = study_runs.copy(interrupted, tmp_path / 'run')
  step = study_runs.steps(workdir)[-1]
  killed_at(workdir, 'save_arrays:1')
  assert study_runs.steps(workdir)[-1] == step
  done = study_runs.run(workdir)
  assert f'resumed {LAST} at step {step}/{study_runs.STEPS}' in done.err
  study_runs.assert_same(workdir, reference)


# Neither may the plan be made again, nor free memory be asked for.
PLANNED = textwrap.dedent('''
  from model_lib.training import planning
  def refuse(*args, **kwargs):
    raise RuntimeError('planned again')
  planning.decide = planning.default_limit_mib = planning.timed_steps = refuse
''')


def test_another_memory_and_another_io(reference, interrupted, tmp_path):
  """The plan is the recorded one: free memory and the clock are not looked at again."""
  workdir = study_runs.copy(interrupted, tmp_path / 'run')
  prefix = ('prlimit', f'--as={8 * 2**30}') if shutil.which('prlimit') else ()
  study_runs.run(workdir, before=PLANNED, prefix=prefix, io__checkpoint_interval_s=100,
                 io__tensorboard='false')
  study_runs.assert_same(workdir, reference)


@pytest.mark.slow
def test_a_second_plan_is_noticed(reference, tmp_path):
  """Negative control: a run without a recorded plan makes one."""
  done = study_runs.run(tmp_path / 'run', before=PLANNED, code=1)
  assert 'planned again' in done.err


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(12))
def test_killed_at_a_random_moment(reference, tmp_path, seed):
  """Each run is killed once; every third one is killed again when it resumes."""
  workdir, rng = tmp_path / 'run', random.Random(100 + seed)
  killed_at_random(workdir, reference, rng)
  if seed % 3 == 0:
    killed_at_random(workdir, reference, rng)
  study_runs.run(workdir)
  study_runs.assert_same(workdir, reference)


@pytest.mark.slow
@pytest.mark.parametrize('fault', FORCED)
def test_killed_at_a_point(reference, tmp_path, fault):
  """Each point alone, then the resumed run again at the same point of a later save or line."""
  workdir = tmp_path / 'run'
  killed_at(workdir, fault)
  if not fault.startswith('final_table'):
    killed_at(workdir, fault)
  study_runs.run(workdir)
  study_runs.assert_same(workdir, reference)
