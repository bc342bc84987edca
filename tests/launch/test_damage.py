"""Damaged checkpoints: one line, the step before, the same bits at the end."""
from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tests.launch import study_runs
from tests.launch.study_runs import LAST, STEPS

MANIFEST = 'manifest.sha256.json'


def largest(step: Path) -> Path:
  """The file with the arrays."""
  files = (path for path in (step / 'state').rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def flip_a_byte(step: Path) -> str:
  file = largest(step)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  return f'{file.relative_to(step)}: SHA-256 differs'


def truncate(step: Path) -> str:
  file = largest(step)
  content = file.read_bytes()
  file.write_bytes(content[:-7])
  return f'{file.relative_to(step)}: {len(content) - 7} bytes instead of {len(content)}'


def remove_a_file(step: Path) -> str:
  file = largest(step)
  file.unlink()
  return f'{file.relative_to(step)}: missing'


def remove_the_manifest(step: Path) -> str:
  (step / MANIFEST).unlink()
  return MANIFEST


def falsify_the_manifest(step: Path) -> str:
  """Well-formed, with a sum that is not the file's."""
  file = largest(step)
  text = (step / MANIFEST).read_text()
  digest = next(v['sha256'] for k, v in find_files(json.loads(text)).items()
                if k == str(file.relative_to(step)))
  (step / MANIFEST).write_text(text.replace(digest, digest[::-1]))
  return f'{file.relative_to(step)}: SHA-256 differs'


def find_files(manifest: dict) -> dict:
  """The entries by file, whatever stands around them."""
  return next(v for v in manifest.values() if isinstance(v, dict))


@pytest.mark.parametrize('kinds', [
  (flip_a_byte, remove_the_manifest),
  pytest.param((truncate, remove_a_file, falsify_the_manifest), marks=pytest.mark.slow)])
def test_the_step_before_is_used(reference, interrupted, tmp_path, kinds):
  *_, before, newest = study_runs.steps(interrupted)
  workdirs = {kind: study_runs.copy(interrupted, tmp_path / kind.__name__) for kind in kinds}
  expected = [kind(workdir / 'checkpoints' / LAST / 'steps' / str(newest))
              for kind, workdir in workdirs.items()]
  answers = study_runs.run_all(*(functools.partial(study_runs.run, w) for w in workdirs.values()))
  for workdir, reason, done in zip(workdirs.values(), expected, answers, strict=True):
    told = [line for line in done.err.splitlines() if 'is not used' in line]
    assert len(told) == 1, done.err
    assert told[0].startswith(f'checkpoint {newest} is not used: {reason}')
    assert f'resumed {LAST} at step {before}/{STEPS}' in done.err
    assert 'Traceback' not in done.err
    study_runs.assert_same(workdir, reference)


@pytest.mark.slow
def test_all_steps_and_the_metrics_of_the_last_are_damaged(reference, interrupted, tmp_path):
  """Without a sound step the cohort begins again; the finished cohorts stay as they are."""
  workdir = study_runs.copy(interrupted, tmp_path / 'run')
  steps = study_runs.steps(workdir)
  for step in steps[:-1]:
    flip_a_byte(workdir / 'checkpoints' / LAST / 'steps' / str(step))
  with open(workdir / 'metrics.jsonl', 'r+b') as file:  # the newest step knows of more lines
    start = file.read().index(f'"run": "{LAST}"'.encode())
    file.truncate(start + 300)
  done = study_runs.run(workdir)
  told = [line for line in done.err.splitlines() if 'is not used' in line]
  assert [line.split()[1] for line in told] == [str(s) for s in reversed(steps)]
  assert 'metrics.jsonl has' in told[0] and 'resumed' not in done.err
  study_runs.assert_same(workdir, reference)
