"""Runs the project's programs in child processes, whose environment holds nothing by accident."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent
# On a child's PYTHONPATH it makes `import tensorflow` raise, and tfds still finds a package.
FAKE_TENSORFLOW = ROOT / 'tests' / 'fake_tensorflow'

# What a child needs to find its programs and devices, and what conftest.py sets.
_INHERITED = (
  'PATH', 'HOME', 'TMPDIR', 'LD_LIBRARY_PATH', 'CUDA_VISIBLE_DEVICES',
  'NPROC', 'JAX_PLATFORMS', 'JAX_NUMPY_RANK_PROMOTION', 'ACTNORM_DATA_DIR',
  'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
  'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES',
)


def child_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
  """The environment of a child: the few inherited variables, then `env` on top."""
  inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
  return {**inherited, 'LANG': 'C.UTF-8', **(env or {})}


def module_command(module: str, *args: object) -> list[str]:
  """The command `python -m module args...` with this interpreter; for subprocess.Popen."""
  return [sys.executable, '-m', module, *map(str, args)]


def run_module(
    module: str,
    *args: object,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    preexec_fn: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
  """Runs `python -m module args...` from the repository root and waits for it.

  Returns the finished process, stdout and stderr as text; its exit code is the caller's to check.

  Raises:
    AssertionError: after `timeout` seconds; the child is killed and the end of its output shown.
  """
  return _run(module_command(module, *args), env, timeout, preexec_fn)


def run_python(
    code: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
  """Runs `python -c code`, otherwise as `run_module`."""
  return _run([sys.executable, '-c', code], env, timeout, None)


def _run(command, env, timeout, preexec_fn):
  process = subprocess.Popen(
      command, cwd=ROOT, env=child_environment(env), preexec_fn=preexec_fn, text=True,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  try:
    stdout, stderr = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    stdout, stderr = process.communicate()
    raise AssertionError(
        f'{command[1:]} ran for more than {timeout} s\n{stdout[-2000:]}\n{stderr[-4000:]}'
    ) from None
  except BaseException:
    process.kill()
    raise
  return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
