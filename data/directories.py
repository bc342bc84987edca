"""Where prepared data lies, and how a new dataset gets there in one step.

A dataset is written into a temporary directory beside its place and renamed when it is
whole and on the disk. A process that dies in between leaves only the temporary
directory, whose name carries host and process id; the next preparation removes it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator

from data.errors import DataError

_PREFIX = '.preparing'
_active: set[pathlib.Path] = set()
_numbers = itertools.count()


def data_directory(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """The given directory, else $ACTNORM_DATA_DIR, else ~/.cache/actnorm-lab/data."""
  if data_dir:
    return pathlib.Path(data_dir).expanduser()
  from_environment = os.environ.get('ACTNORM_DATA_DIR')
  if from_environment:
    return pathlib.Path(from_environment).expanduser()
  return pathlib.Path.home() / '.cache' / 'actnorm-lab' / 'data'


@contextlib.contextmanager
def temporary_directory(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new directory under `root`, removed at the end whatever happens.

  Raises:
    DataError: `root` cannot be made or written.
  """
  path = root / f'{_PREFIX}-{socket.gethostname()}-{os.getpid()}-{next(_numbers)}'
  with one_line_errors(root):
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    _active.add(path)
    path.mkdir()
  try:
    yield path
  finally:
    shutil.rmtree(path, ignore_errors=True)
    _active.discard(path)


def remove_active() -> None:
  """Removes this process's temporary directories; for a signal handler."""
  for path in tuple(_active):
    # A writer thread may still add a file while the tree is being removed.
    for _ in range(3):
      shutil.rmtree(path, ignore_errors=True)
      if not path.exists():
        break


def remove_leftovers(root: pathlib.Path) -> None:
  """Removes temporary directories of dead processes of this host."""
  for path in root.glob(f'{_PREFIX}-*'):
    host, pid, _ = path.name[len(_PREFIX) + 1:].rsplit('-', 2)
    if host == socket.gethostname() and path not in _active:
      # Our own number on a directory that is not ours: an earlier process had it.
      if int(pid) == os.getpid() or not _alive(int(pid)):
        shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


@contextlib.contextmanager
def one_line_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError (no space, no permission, a file in the way) into one line."""
  try:
    yield
  except OSError as e:
    full = e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    cure = 'free some space or pass another --data_dir' if full else 'pass another --data_dir'
    raise DataError(
        f'{e.filename or path}: cannot be written ({e.strerror or e}); {cure}') from e


def move_into_place(source: pathlib.Path, target: pathlib.Path) -> bool:
  """Makes `source` durable and renames it to `target`; False if `target` is there already."""
  for folder, _, files in os.walk(source):
    for name in files:
      _fsync(os.path.join(folder, name))
    _fsync(folder)
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.rename(source, target)
  except OSError as e:
    if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
      return False
    raise
  _fsync(target.parent)
  return True


def _fsync(path: str | os.PathLike[str]) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
