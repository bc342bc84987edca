"""One process per directory, also after crashes, reboots and on shared file systems.

The kernel's `flock` on the file decides between processes of one machine: it is free as soon as its
owner is dead. The content (host, boot, pid, start time) says who the owner is, and protects where
`flock` does not reach: between machines that share a file system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.study import atomic
from model_lib.errors import UserError

# A file system without flock: there the content alone decides.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


@dataclasses.dataclass(frozen=True)
class Owner:
  """A process: `started` in clock ticks since the boot `boot`; both are '' where unknown."""

  host: str
  boot: str
  pid: int
  started: str
  since: str = ''

  @classmethod
  def current(cls) -> Owner:
    """This process."""
    return cls(
        host=platform.node(), boot=_boot(), pid=os.getpid(), started=_started(os.getpid()),
        since=time.strftime('%Y-%m-%d %H:%M:%S %z'))

  @classmethod
  def read(cls, text: bytes) -> Owner | None:
    """The owner that a lock file names; None when it names none, e.g. after a crash in writing."""
    try:
      value: Any = json.loads(text)
      return cls(
          str(value['host']), str(value['boot']), int(value['pid']), str(value['started']),
          str(value['since']))
    except (ValueError, KeyError, TypeError):
      return None

  def alive(self) -> bool:
    """Whether that very process still runs; for an owner on this host."""
    if self.boot != _boot():
      return False
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return False
    except PermissionError:
      pass
    return _started(self.pid) == self.started


class Lock:
  """The lock file `path`; the directory must exist."""

  def __init__(self, path: Path):
    self.path = Path(path)
    self._file: Any = None

  def acquire(self, log: Callable[[str], None]) -> None:
    """Takes the lock. A dead owner on this host is replaced, which `log` gets one line about.

    Raises:
      UserError: another process holds it, or one on another host may hold it, or the file cannot be
        written.
    """
    with atomic.as_user_error(self.path):
      file = self._flocked()
      try:
        file.seek(0)
        owner = Owner.read(file.read())
        if owner is not None:
          if owner.host != platform.node():
            raise UserError(
                f'{self.path.parent} is in use by process {owner.pid} on host {owner.host} since '
                f'{owner.since}; if that process is gone, remove {self.path}')
          if owner.alive():
            raise UserError(self._in_use(owner))
          log(f'replaced the lock of process {owner.pid}, which is dead (it began {owner.since})')
        file.seek(0)
        file.truncate()
        file.write(json.dumps(dataclasses.asdict(Owner.current())).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())
      except BaseException:
        file.close()
        raise
    self._file = file

  def release(self) -> None:
    """Removes the lock file and frees the lock; nothing happens when it is not held."""
    file, self._file = self._file, None
    if file is None:
      return
    with contextlib.suppress(OSError):
      # While the lock is still held: else the file of the next owner might be removed.
      if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
        os.unlink(self.path)
    file.close()

  def _flocked(self) -> Any:
    while True:
      file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), 'rb+', buffering=0)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
          return file
      except FileNotFoundError:
        pass
      except BlockingIOError:
        owner = Owner.read(file.read())
        file.close()
        raise UserError(self._in_use(owner)) from None
      except OSError as error:
        if error.errno not in _NO_FLOCK:
          raise
        return file
      # The owner removed its file between our open and our flock: look at the new one.
      file.close()

  def _in_use(self, owner: Owner | None) -> str:
    if owner is None:
      return f'{self.path.parent} is in use by another process; wait for it or stop it'
    who = f'process {owner.pid} on host {owner.host} since {owner.since}'
    if owner.host == platform.node() and not owner.alive():
      return f'{self.path.parent} is in use by a child of the dead {who}; stop that child'
    return f'{self.path.parent} is in use by {who}; wait for it or stop it'


def _boot() -> str:
  try:
    return Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return ''


def _started(pid: int) -> str:
  """Start time of a process; 'dead' for one that only waits for its parent; '' where unknown."""
  try:
    # The name of the program stands in parentheses and may itself contain blanks and parentheses.
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return ''
  return 'dead' if fields[0] in 'ZX' else fields[19]
