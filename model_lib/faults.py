"""Points at which a test may kill the process.

`ACTNORM_FAULT='commit_manifest:2'` in the environment sends SIGKILL to the process
when it passes the point `commit_manifest` for the second time, as a power cut or
the out-of-memory killer would: no handler, no `finally`, no flush. Without the
variable a point costs one look-up.
"""

from __future__ import annotations

import collections
import os
import signal
import threading

VARIABLE = 'ACTNORM_FAULT'

_passed: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()


def reach(point: str) -> None:
  """Says that `point` is passed; kills the process when the environment asks for it.

  Args:
    point: name of the point, e.g. 'save_arrays'.

  Raises:
    ValueError: the environment variable is not of the form `point:n` with n >= 1.
  """
  setting = os.environ.get(VARIABLE)
  if not setting:
    return
  name, _, number = setting.partition(':')
  if not number.isdecimal() or int(number) < 1:
    raise ValueError(f'{VARIABLE}={setting!r} is not of the form point:n with n >= 1')
  with _lock:  # Points are passed in the main thread and in the checkpoint thread.
    _passed[point] += 1
    passed = _passed[point]
  if name == point and passed == int(number):
    os.kill(os.getpid(), signal.SIGKILL)
