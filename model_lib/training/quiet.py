"""Keeps what Orbax prints about a failed save off the screen: we raise it in one line.

A save fails when its first array does. The others fail a little later, when nobody waits for
them any more: each prints a traceback of its own, up to some twenty for a full disk.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings

_PATHS = (f'{os.sep}orbax{os.sep}', '.orbax-checkpoint-tmp')


def _not_orbax(record: logging.LogRecord) -> bool:
  """Of absl's log: no errors from Orbax's files. Of asyncio's: none about an array of a save."""
  if record.levelno < logging.ERROR:
    return True
  error = record.exc_info[1] if record.exc_info else None
  return _PATHS[0] not in record.pathname and _PATHS[1] not in str(error)


@functools.cache
def failed_saves() -> None:
  """Installs the filters, once a process; everything else is shown as before."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_not_orbax)
  warnings.filterwarnings('ignore', "coroutine 'async_serialize.*was never awaited", RuntimeWarning)
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    # TensorStore calls back into the event loop of the save, which has ended.
    late = isinstance(unraisable.exc_value, RuntimeError) and unraisable.object is None
    if not (late and str(unraisable.exc_value) == 'Event loop is closed'):
      before(unraisable)

  sys.unraisablehook = hook
