"""A disk that is full, or a file that may not grow: one line, exit 2, and nothing is lost."""
from __future__ import annotations

from pathlib import Path
import json
import subprocess

import pytest

from tests.launch import study_runs


def limited(size: int) -> str:
  """Code after which files end at `size` bytes: a write beyond that is an OSError."""
  return f'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))'


def refused(workdir: Path, path: str, **options) -> str:
  """Runs where the disk is too small for `path`; checks the answer and what is left."""
  # A cut-off .pyc file in the repository would trouble others.
  done = study_runs.run(workdir, code=2, env={'PYTHONDONTWRITEBYTECODE': '1'}, **options)
  told = [line for line in done.err.splitlines() if line.startswith('activation_search: ')]
  assert len(told) == 1 and told[0] == done.err.splitlines()[-1], done.err
  assert f'{workdir}/{path}' in told[0], told[0]
  assert not any(word in done.err for word in ('Traceback', 'Exception', 'Warning')), done.err
  study_runs.assert_clean(workdir)
  return told[0]


def test_the_metrics(reference, interrupted, tmp_path):
  """The file is limited a little above its length: whole lines or none."""
  workdir = study_runs.copy(interrupted, tmp_path / 'run')
  limit = max((workdir / 'metrics.jsonl').stat().st_size + 200, 33_000)
  assert limit < len(reference.metrics), 'too late to be limited'
  said = refused(workdir, 'metrics.jsonl', before=limited(limit))
  assert 'File too large' in said
  assert (workdir / 'metrics.jsonl').read_bytes().endswith(b'\n')
  study_runs.metrics(workdir)  # every line is JSON
  study_runs.run(workdir)
  study_runs.assert_same(workdir, reference)


def test_a_checkpoint(reference, tmp_path, size=14_000):
  """The arrays of the first save in flight are larger; the calls go on meanwhile."""
  workdir = tmp_path / 'run'
  said = refused(workdir, 'checkpoints/mlp-select-fixed/steps/', before=limited(size))
  assert 'checkpoint not written' in said
  assert not study_runs.committed(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('size', [9_000, 14_000, 20_000, 30_000])
def test_going_on_after_a_checkpoint(reference, tmp_path, size):
  test_a_checkpoint(reference, tmp_path, size)
  study_runs.run(tmp_path / 'run')
  study_runs.assert_same(tmp_path / 'run', reference)


@pytest.mark.slow
def test_the_rows(reference, tmp_path):
  """All cohorts are done but not reported; results.csv is the first file that is too large.

  The limit comes with it, since config.json, which is written before, may be the larger file.
  """
  workdir = study_runs.copy(reference.workdir, tmp_path / 'run')
  rows = (workdir / 'results.csv').read_bytes()
  state = study_runs.status(workdir)
  (workdir / 'status.json').write_text(json.dumps({**state, 'state': 'running'}))
  late = '\n'.join([
    'from launch.study import records', 'write = records.write_results',
    'def limited_write(*arguments):',
    *('  ' + line for line in limited(len(rows) - 1).splitlines()),
    '  return write(*arguments)', 'records.write_results = limited_write'])
  said = refused(workdir, 'results.csv', before=late)
  assert 'the file would exceed the largest allowed size' in said
  assert (workdir / 'results.csv').read_bytes() == rows
  (workdir / 'results.csv').unlink()  # as after a kill right before it was written
  study_runs.run(workdir)
  study_runs.assert_same(workdir, reference)


@pytest.mark.slow
def test_a_small_disk(reference, interrupted, tmp_path):
  """A file system without room, then with enough."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', str(disk)],
                           capture_output=True, check=False)
  if mounted.returncode:
    pytest.skip('mounting a tmpfs is not permitted')
  try:
    workdir = study_runs.copy(interrupted, disk / 'run')
    filler = disk / 'filler'
    try:
      with open(filler, 'wb', buffering=0) as file:
        while file.write(bytes(2**16)):
          pass
    except OSError:
      pass
    with open(filler, 'r+b') as file:
      file.truncate(filler.stat().st_size - 64 * 1024)  # room for a few files, not for a save
    done = study_runs.run(workdir, code=2)
    last = done.err.splitlines()[-1]
    assert last.startswith('activation_search: ') and str(workdir) in last, done.err
    assert 'Traceback' not in done.err
    assert any(words in last for words in ('disk is full', 'No space left'))
    filler.unlink()
    study_runs.run(workdir)
    study_runs.assert_same(workdir, reference)
  finally:
    subprocess.run(['umount', str(disk)], check=True)
