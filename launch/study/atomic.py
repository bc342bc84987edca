"""Files that are either the old one or the new one, at every moment and after a crash.

A file is written under a temporary name beside its place, fsynced, and renamed over it; then the
directory is fsynced. What the machine refuses (disk full, quota, no permission, read-only, a parent
that is a file ...) is a `UserError` that names the path. The old file is then as it was.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_lib.errors import UserError

_SUFFIX = '.partial'
_REASONS = {
    errno.ENOSPC: 'the disk is full; make room and run the same command again',
    errno.EFBIG: 'the file would exceed the largest allowed size (ulimit -f)',
    errno.EDQUOT: 'the disk quota is used up; make room and run the same command again',
    errno.EACCES: 'permission denied',
    errno.EPERM: 'permission denied',
    errno.EROFS: 'the file system is read-only',
    errno.ENOTDIR: 'a part of the path is a file, not a directory',
    errno.EEXIST: 'a file of that name is in the way',
    errno.EISDIR: 'a directory of that name is in the way',
    errno.ENOENT: 'the directory is gone or cannot be made',
    errno.ENAMETOOLONG: 'the name is too long',
    errno.EIO: 'the disk reports an input/output error',
    errno.ESTALE: 'the network file system has lost the directory',
}


@contextlib.contextmanager
def as_user_error(path: Path, action: str = 'write') -> Iterator[None]:
  """Turns what the file system refuses into a UserError with the path; other errors pass."""
  try:
    yield
  except OSError as error:
    if error.errno not in _REASONS:
      raise
    reason = _REASONS[error.errno]
    if action == 'read' and error.errno == errno.ENOENT:
      reason = 'there is no such file'
    raise UserError(f'cannot {action} {path}: {reason}') from error


def fsync_directory(directory: Path) -> None:
  """Makes the names in a directory survive a power loss."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
  """Replaces `path` by `content` in one step. Raises UserError; the old file then stands."""
  path = Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.{threading.get_native_id()}{_SUFFIX}')
  with as_user_error(path):
    try:
      with open(temporary, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
      raise
    fsync_directory(path.parent)


def is_temporary(name: str) -> bool:
  """Whether `write_bytes` makes names like this one."""
  return name.startswith('.') and name.endswith(_SUFFIX)


def remove_temporaries(directory: Path) -> None:
  """Removes what a killed writer left; the caller is the only writer of the directory."""
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    for entry in os.scandir(directory):
      if is_temporary(entry.name):
        with contextlib.suppress(FileNotFoundError):
          os.unlink(entry.path)


def write_text(path: Path, text: str) -> None:
  """Replaces `path` by `text` (UTF-8, newlines as they are)."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: Path, value: Any) -> None:
  """Replaces `path` by JSON, two spaces deep. NaN and infinities, which JSON lacks, become null."""
  text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
  write_text(path, text + '\n')


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
  """Replaces `path` by a CSV table; floats keep all their digits, None is an empty cell.

  Args:
    path: the file.
    rows: one mapping per row; a missing column is an empty cell.
    columns: the columns in order; by default the keys of all rows in order of appearance.

  Raises:
    ValueError: a row has a key that is no column.
    UserError: the file cannot be written.
  """
  if columns is None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def append_line(path: Path, line: str) -> None:
  """Appends one line in one write. A line cut off by a crash is ended first and stays alone."""
  with as_user_error(path):
    with open(path, 'ab+') as file:
      if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b'\n':
          line = '\n' + line
      file.write(line.encode('utf-8') + b'\n')


def read_json(path: Path) -> Any:
  """The content of a JSON file. Raises UserError when it is missing, unreadable or no JSON."""
  with as_user_error(path, 'read'):
    try:
      return json.loads(Path(path).read_bytes())
    except ValueError as error:
      raise UserError(f'{path} is damaged: {" ".join(str(error).split())}') from error


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return value
