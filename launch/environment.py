"""What a run's bits depend on besides its config: versions, code, machine, threads, variables.

Everything here works before jax is imported and imports nothing heavy.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_lib.errors import UserError

PACKAGES = (
    'jax', 'jaxlib', 'jax-cuda13-plugin', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
    'scipy', 'tensorflow-datasets', 'array-record', 'grain', 'chex', 'ml-collections', 'absl-py')
TOP_LEVEL = ('data', 'launch', 'model_lib', 'experiments')

# Variables with these beginnings change how XLA computes ...
_VARIABLES = ('XLA_FLAGS', 'JAX_', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')
# ... but these only where it looks for caches, what it prints, and how much it tells.
_HARMLESS_VARIABLES = (
    'JAX_COMPILATION_CACHE', 'JAX_PERSISTENT_CACHE', 'JAX_TRACEBACK', 'JAX_LOG', 'JAX_DEBUG_LOG',
    'JAX_NUMPY_RANK_PROMOTION', 'JAX_CHECK_TRACER_LEAKS', 'JAX_EXPLAIN_CACHE_MISSES')
# Versions of libraries that read, check or parse, and compute nothing.
_HARMLESS_PACKAGES = ('chex', 'ml-collections', 'absl-py')


class Differences(NamedTuple):
  """Lines about what differs between two starts of a run.

  Attributes:
    mixed: what may change the bits; with any of these the run is a "mixed environment".
    harmless: what does not, e.g. the host's name or the command line.
  """

  mixed: list[str]
  harmless: list[str]


def snapshot(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """The entry of this start for environment.json.

  The caller adds what only jax or the data know: `device_kind`, `device_count`, `data` ({dataset:
  sha256}).

  Args:
    argv: the command line; sys.argv by default.
  """
  return {
      'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'argv': list(sys.argv if argv is None else argv),
      'python': platform.python_version(),
      'versions': _versions(),
      'git': _git(Path(__file__).resolve().parents[1]),
      'host': platform.node(),
      'platform': platform.platform(),
      'cpu_model': _cpu_model(),
      'cpus_usable': _usable_cpus(),
      'threads': int(os.environ['NPROC']) if os.environ.get('NPROC', '').isdecimal() else None,
      'variables': {
          name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
  }


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
  """What differs between two entries of environment.json; a key only one of them has is left out.

  Versions, Python, code, CPU model, device kind and count, threads, data and the variables that
  steer XLA may change the bits; everything else is harmless.
  """
  mixed, harmless = [], []
  for key in ('python', 'cpu_model', 'device_kind', 'device_count', 'threads'):
    if key in old and key in new and old[key] != new[key]:
      mixed.append(f'{key}: {old[key]} -> {new[key]}')
  for key in ('host', 'platform', 'cpus_usable', 'argv'):
    if key in old and key in new and old[key] != new[key]:
      harmless.append(f'{key}: {old[key]} -> {new[key]}')
  for key in ('versions', 'variables', 'data', 'git'):
    before, after = old.get(key), new.get(key)
    if before is None or after is None:
      continue
    for name in sorted({*before, *after}):
      if before.get(name) == after.get(name):
        continue
      line = f'{key}.{name}: {before.get(name)} -> {after.get(name)}'
      is_harmless = (
          (key == 'variables' and name.startswith(_HARMLESS_VARIABLES))
          or (key == 'versions' and name in _HARMLESS_PACKAGES)
          or (key == 'git' and name == 'dirty')  # 'changes' says it better
          # Another part of the same run may read one data set more.
          or (key == 'data' and (name not in before or name not in after)))
      (harmless if is_harmless else mixed).append(line)
  return Differences(mixed, harmless)


def fix_threads(recorded: int | None) -> int:
  """Fixes the size of XLA's thread pool, on which the bits depend, and returns it.

  Sets the variable NPROC, which XLA reads when its CPU client is made: call it before jax is
  imported.

  Args:
    recorded: the number the run began with; None at its first start. Then the user's NPROC counts,
      else the number of CPUs this process may use.

  Raises:
    UserError: NPROC is no whole number of at least 1.
    RuntimeError: jax is imported already with another value: a fault of the program.
  """
  given = os.environ.get('NPROC')
  if given is not None and not (given.isdecimal() and int(given) >= 1):
    raise UserError(f'NPROC={given}: expected a whole number of threads, at least 1')
  threads = recorded if recorded is not None else int(given) if given else _usable_cpus()
  if 'jax' in sys.modules and given != str(threads):
    raise RuntimeError(f'jax is imported with NPROC={given}; {threads} threads come too late')
  os.environ['NPROC'] = str(threads)
  return threads


def check_editable(study_file: str | os.PathLike[str]) -> None:
  """Checks that all packages of the code base come from the checkout of the running study.

  `data` and `launch` are common names: an installed package, or a file in the current directory,
  may stand in front of ours.

  Args:
    study_file: the launch file, CHECKOUT/experiments/NAME.py.

  Raises:
    UserError: the file was started by its path, which puts its own directory in front of the
      checkout; or the first package that resolves elsewhere or nowhere, and where.
  """
  root = Path(study_file).resolve().parents[1]
  program = sys.modules['__main__']
  if program.__spec__ is None and getattr(program, '__file__', None) == study_file:
    module = '.'.join(Path(study_file).resolve().relative_to(root).with_suffix('').parts)
    raise UserError(f'run `python -m {module}` from {root}')
  cure = f'run from {root}, or install it with: pip install -e {root}'
  for name in TOP_LEVEL:
    spec = importlib.util.find_spec(name)
    if spec is None:
      raise UserError(f'the package {name!r} is not found; {cure}')
    places = list(spec.submodule_search_locations or ()) or [spec.origin or 'nowhere']
    if Path(places[0]).resolve() != root / name:
      raise UserError(f'the package {name!r} comes from {places[0]}, not from {root}; {cure}')


def _versions() -> dict[str, str]:
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _git(root: Path) -> dict[str, Any] | None:
  """Commit, whether tracked files differ from it, and the hash of the difference."""
  def ask(*arguments: str) -> bytes:
    return subprocess.run(
        ['git', '-C', str(root), *arguments], capture_output=True, check=True, timeout=10).stdout

  try:
    commit = ask('rev-parse', 'HEAD').decode().strip()
    changes = ask('diff', '--no-ext-diff', '--no-color', '--binary', 'HEAD')
  except (OSError, subprocess.SubprocessError):
    return None
  digest = hashlib.sha256(changes).hexdigest() if changes else None
  return {'commit': commit, 'dirty': bool(changes), 'changes': digest}


def _cpu_model() -> str:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          return line.partition(':')[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def _usable_cpus() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
