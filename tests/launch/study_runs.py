"""A small study run in child processes, and what two runs of it must have in common.

The whole run takes a few seconds and yet has four cohorts, two programs, twelve calls and
twelve saves per cohort: there is always something to be interrupted.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
from pathlib import Path
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pytest

from experiments import activation_search
from launch.preemption import Preemption
from launch.study import main, records
from launch.study.workdir import Workdir
from tests import helpers

STUDY = 'experiments.activation_search'
LAST = 'mlp-fresh-crrelu'
COHORTS = ('mlp-select-fixed', 'mlp-select-crrelu', 'mlp-fresh-fixed', LAST)
STEPS = 48
# The rates are so far apart that the middle one is chosen: one at an edge would ask for more
# cohorts. Neither of log_every and steps_per_call divides the other.
CONFIG: Mapping[str, object] = {
  'mlp.activations': 'relu,identity,crrelu', 'mlp_widths': '16', 'mlp.base_rate': 0.01,
  'rate_factors': '0.1,3,100', 'mlp.steps': STEPS, 'mlp.null_copies': 1, 'mlp.shuffled_seeds': 1,
  'mlp.fresh_seeds': 3, 'splits': 2, 'engine.steps_per_call': 4, 'engine.log_every': 3,
  'io.checkpoint_interval_s': 0, 'io.figures': 'false', 'io.progress_interval_s': 0,
}

SIGKILLED = -signal.SIGKILL


def arguments(workdir: Path, *flags: str, study: str = STUDY, **changes: object) -> list[str]:
  """The command line after the module; `changes` are config fields with `__` for the dots.

  Those of another study come on top of its preset `smoke` alone.
  """
  config = {**(CONFIG if study == STUDY else {}),
            **{name.replace('__', '.'): value for name, value in changes.items()}}
  return [f'--workdir={workdir}', '--preset=smoke',
          *(f'--config.{name}={value}' for name, value in config.items()), *flags]


@dataclasses.dataclass
class Done:
  """How a start ended: exit code, stdout, stderr, seconds."""

  code: int
  out: str
  err: str
  seconds: float

  @property
  def line(self) -> str:
    """The only line on stderr."""
    lines = self.err.splitlines()
    assert len(lines) == 1, self.err
    return lines[0]


class Start:
  """One start of the study in a child process, killed at the end of the `with` block."""

  def __init__(self, workdir: Path, *flags: str, env: Mapping[str, str] | None = None,
               prefix: Sequence[str] = (), before: str = '', study: str = STUDY,
               **changes: object):
    """Starts it.

    Args:
      workdir, flags, changes: see `arguments`.
      env: variables on top of the usual ones.
      prefix: a command that runs the rest of its arguments, such as taskset.
      before: Python code that is run before the study.
      study: its module.
    """
    args = arguments(workdir, *flags, study=study, **changes)
    command = helpers.module_command(study, *args)
    if before:
      imports = f'from {study} import STUDY\nfrom launch.study import main\n'
      command[1:] = ['-c', f'{before}\n{imports}main(STUDY, {["study", *args]!r})']
    self.began = time.monotonic()
    self.process = subprocess.Popen(
        [*prefix, *command], cwd=helpers.ROOT, text=True, env=helpers.child_environment(env),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  def __enter__(self) -> Start:
    return self

  def __exit__(self, *_: object) -> None:
    self.process.kill()
    self.process.communicate()

  def until(self, condition: Callable[[], object], timeout: float = 120) -> Any:
    """Waits for the condition, which is asked every 2 ms; returns what it gave."""
    limit = time.monotonic() + timeout
    while not (found := condition()):
      if self.process.poll() is not None:
        raise AssertionError(f'ended with {self.process.returncode} before the condition held:\n'
                             f'{self.process.stderr.read()[-4000:]}')
      assert time.monotonic() < limit, f'the condition did not hold in {timeout} s'
      time.sleep(0.002)
    return found

  def signal(self, number: int) -> Done:
    """Sends a signal and waits for the end; `seconds` counts from the signal."""
    self.began = time.monotonic()
    self.process.send_signal(number)
    return self.wait()

  def kill(self) -> None:
    """SIGKILL; fails when the process had ended before."""
    assert self.process.poll() is None, self.process.stderr.read()[-4000:]
    assert self.signal(signal.SIGKILL).code == SIGKILLED

  def wait(self, timeout: float = 300) -> Done:
    """Waits for the end."""
    try:
      out, err = self.process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise AssertionError(f'ran on: {self.process.communicate()[1][-4000:]}') from None
    return Done(self.process.returncode, out, err, time.monotonic() - self.began)


def run(workdir: Path, *flags: str, code: int = 0, timeout: float = 300, **options: Any) -> Done:
  """Starts the study, waits for its end, and checks its exit code."""
  with Start(workdir, *flags, **options) as start:
    done = start.wait(timeout)
  assert done.code == code, f'exit code {done.code}, stderr:\n{done.err[-6000:]}'
  return done


def answer(workdir: Path, *flags: str, code: int = 0, **changes: object) -> Done:
  """What the command says where nothing is trained, without a process of its own.

  Signals are left alone. That jax is not imported for it has to be seen in a child, by `run`.
  """
  out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), \
      contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
    patch.setattr(Preemption, 'install', lambda self: self)
    main(activation_search.STUDY, ['study', *arguments(workdir, *flags, **changes)])
  done = Done(ended.value.code, out.getvalue(), err.getvalue(), time.monotonic() - began)
  assert done.code == code, f'exit code {done.code}, stderr:\n{done.err[-6000:]}'
  return done


def run_all(*starts: Callable[[], Done]) -> list[Done]:
  """Calls functions that start the study, two at a time: a start keeps one CPU busy."""
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return [job.result() for job in [pool.submit(start) for start in starts]]


def copy(source: Path, target: Path) -> Path:
  """A copy of a workdir, with its times."""
  shutil.copytree(source, target)
  return target


# What is on the disk.


def committed(workdir: Path, cohort: str = '*') -> list[Path]:
  """Manifests of the committed steps, the newest of a cohort last."""
  found = (workdir / 'checkpoints').glob(f'{cohort}/steps/[0-9]*/manifest.sha256.json')
  return sorted((p for p in found if p.parent.name.isdecimal()),
                key=lambda p: (p.parts[-4], int(p.parent.name)))


def steps(workdir: Path, cohort: str = LAST) -> list[int]:
  """The committed steps of a cohort."""
  return [int(p.parent.name) for p in committed(workdir, cohort)]


def finished(workdir: Path) -> list[str]:
  """Names of the finished cohorts."""
  return [p.parent.name for p in (workdir / 'checkpoints').glob('*/finished.json')]


def saved(workdir: Path) -> bool:
  """Whether a step is committed, or was and its cohort is finished since."""
  return bool(committed(workdir) or finished(workdir))


def lines(workdir: Path) -> int:
  """Bytes of metrics.jsonl: how far the run is."""
  path = workdir / 'metrics.jsonl'
  return path.stat().st_size if path.exists() else 0


def status(workdir: Path) -> dict[str, Any]:
  """status.json; {} before the first one."""
  return Workdir(workdir).read_status()


def files(workdir: Path) -> dict[str, bytes]:
  """Every file with its content."""
  return {str(p.relative_to(workdir)): p.read_bytes()
          for p in sorted(workdir.rglob('*')) if p.is_file()}


def metrics(workdir: Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl."""
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def rows(workdir: Path) -> list[dict[str, str]]:
  """results.csv as text, without the columns of time."""
  with open(workdir / 'results.csv', newline='') as file:
    found = list(csv.DictReader(file))
  return [{k: v for k, v in row.items() if k not in records.TIMING_COLUMNS} for row in found]


def results(workdir: Path) -> str:
  """The bytes of results.csv without the columns of time, which stand last."""
  text = (workdir / 'results.csv').read_text()
  header = next(csv.reader(io.StringIO(text)))
  timing = [column for column in records.TIMING_COLUMNS if column in header]
  if not timing:  # a study that times nothing
    return text
  assert header[-len(timing):] == timing
  return '\n'.join(line.rsplit(',', len(timing))[0]
                   for line in text.splitlines())


def leaves(tree: Mapping, prefix: str = '') -> Iterator[tuple[str, np.ndarray]]:
  """(path, array) of every leaf of nested dicts."""
  for name in sorted(tree):
    path = f'{prefix}/{name}'
    if isinstance(tree[name], Mapping):
      yield from leaves(tree[name], path)
    else:
      yield path, np.asarray(tree[name])


def finals(workdir: Path) -> dict[str, str]:
  """cohort + path of a leaf -> type, shape and hash of the final values of all its members."""
  from model_lib.training.final import load_final
  found = {}
  for cohort in sorted(finished(workdir)):
    if records.read_finished(Workdir(workdir), cohort)['model'] is None:
      continue  # a measurement, which trains nothing
    final = load_final(workdir / 'checkpoints' / cohort / 'final', None)
    for path, array in leaves(final):
      digest = hashlib.sha256(array.tobytes()).hexdigest()
      found[cohort + path] = f'{array.dtype} {array.shape} {digest}'
  return found


@dataclasses.dataclass
class Reference:
  """A run that was never interrupted: its workdir and what must come out again."""

  workdir: Path
  metrics: bytes
  results: str
  finals: dict[str, str]

  @classmethod
  def of(cls, workdir: Path) -> Reference:
    return cls(workdir, (workdir / 'metrics.jsonl').read_bytes(), results(workdir),
               finals(workdir))


def assert_same(workdir: Path, reference: Reference) -> None:
  """The same final parameters, metric lines and rows, and nothing half-written."""
  assert status(workdir)['state'] == 'done'
  found = Reference.of(workdir)
  assert found.metrics == reference.metrics
  assert found.results == reference.results
  assert found.finals == reference.finals and len(found.finals) > 10
  assert_clean(workdir)


def assert_events(workdir: Path) -> None:
  """The TensorBoard events hold what metrics.jsonl holds, each value once."""
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  expected: dict[tuple[str, str], dict[int, float]] = {}
  for line in metrics(workdir):
    for name in ('loss', 'accuracy', 'grad_norm'):
      if name in line:
        tag = f'{name}/{line["split"]}/member_{line["member"]:04d}'
        expected.setdefault((line['run'], tag), {})[line['step']] = float(np.float32(line[name]))
  found = {}
  for cohort in COHORTS:
    events = EventAccumulator(str(workdir / 'tensorboard' / cohort), size_guidance={'scalars': 0})
    events.Reload()
    for tag in events.Tags()['scalars']:
      if 'member_' in tag:
        scalars = events.Scalars(tag)
        found[cohort, tag] = {e.step: e.value for e in scalars}
        assert len(found[cohort, tag]) == len(scalars)
  assert found == expected and len({run for run, _ in found}) == len(COHORTS)


def assert_clean(workdir: Path) -> None:
  """Nothing half-written or left over by a process that was killed."""
  left = [str(p) for p in workdir.rglob('*')
          if p.name.endswith(('.partial', '.old', '.removed')) or '-checkpoint-tmp' in p.name]
  assert not left
  assert not (workdir / 'lock').exists()
