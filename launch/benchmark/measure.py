"""Interleaved pairs, quartiles and the records of the report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE_VARIABLES = ('JAX_COMPILATION_CACHE_DIR',)


def quartiles(values: Sequence[float]) -> list[float]:
  """[lower quartile, median, upper quartile], linear between order statistics."""
  ordered = sorted(values)

  def at(share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

  return [at(0.25), at(0.5), at(0.75)]


def interleave(kinds: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
  """{kind: seconds of each round}; every second round runs the kinds in reverse order.

  A machine's clock drifts, and other work on it comes and goes: kinds are compared
  within a round only.
  """
  seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
  for number in range(rounds):
    for kind in (list(kinds) if number % 2 == 0 else list(kinds)[::-1]):
      seconds[kind].append(kinds[kind]())
  return seconds


def ratio(name: str, above: Sequence[float], below: Sequence[float], **target) -> dict[str, Any]:
  """Record of above / below, pair by pair."""
  pairs = [a / b for a, b in zip(above, below, strict=True)]
  return record(name, pairs, above_s=quartiles(above), below_s=quartiles(below), **target)


def record(name: str, values: Sequence[float], unit: str = 'ratio', at_least: float | None = None,
           at_most: float | None = None, **details) -> dict[str, Any]:
  """One line of the report; `met` compares the median with the target, None without one."""
  low, median, high = quartiles(values)
  met = None
  if at_least is not None:
    met = median >= at_least
  elif at_most is not None:
    met = median <= at_most
  return {'name': name, 'unit': unit, 'n': len(values), 'q25': low, 'median': median,
          'q75': high, 'at_least': at_least, 'at_most': at_most, 'met': met, 'details': details}


def child_environment() -> dict[str, str]:
  """This process' environment without a persistent compilation cache."""
  env = {k: v for k, v in os.environ.items() if k not in CACHE_VARIABLES}
  return {**env, 'PYTHONPATH': os.pathsep.join(
      [str(ROOT), *filter(None, [env.get('PYTHONPATH')])])}


def run_child(module: str, *args: object) -> tuple[float, float, str]:
  """Runs `python -m module args...` to its end.

  Returns:
    Wall time in seconds, peak resident memory in MiB (never less than this process
    has itself: Linux counts what the child is before it becomes another program),
    and its standard output.

  Raises:
    RuntimeError: it failed.
  """
  start = time.perf_counter()
  with subprocess.Popen([sys.executable, '-m', module, *map(str, args)], cwd=ROOT,
                        env=child_environment(), stdout=subprocess.PIPE, text=True) as process:
    output = process.stdout.read()
    # wait4 and not getrusage(RUSAGE_CHILDREN): that one is the largest of all children so far.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(f'{module} ended with exit code {process.returncode}')
  return time.perf_counter() - start, usage.ru_maxrss / 1024, output
