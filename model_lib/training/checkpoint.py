"""Checkpoints that are whole or do not count.

A step is a directory `<directory>/<step>` with the arrays and the record of `savable.py`, and

  manifest.sha256.json    written after the commit (`manifest.py`)

Orbax alone notices neither flipped bits nor a wrong dtype (it casts), so a step counts
only when its manifest verifies and its leaves are those that the caller expects. A step
that does not count is moved to `<directory>/damaged/` with one log line, and the step
before it is used. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from model_lib import faults
from model_lib.training import manifest
from model_lib.training import quiet
from model_lib.training import savable
from model_lib.training.savable import CheckpointError

__all__ = ['CheckpointError', 'Checkpoints']

PyTree = Any

_REMOVED = '.removed'


class Checkpoints:
  """The checkpoints of one run, written in the background, restored verified.

  The caller holds the lock of the run's directory: a second writer is not expected, and
  what an earlier process left unfinished is removed on construction. One thread saves,
  waits and closes; `in_flight` may be read from any thread.

  A failed save raises a CheckpointError once, at the next `wait`, `save`, `restore` or
  `close`; nothing of it counts as a checkpoint, and the object can be used on. A process
  that ends without `close()` loses the save in flight, so call it in a `finally`.
  """

  def __init__(
      self,
      directory: str | os.PathLike[str],
      keep: int = 3,
      log: Callable[[str], None] = logging.getLogger(__name__).warning,
  ):
    """Opens, or makes, the directory.

    Args:
      directory: holds one directory per step, and `damaged/`.
      keep: number of verified steps that are kept, at least 1.
      log: takes one line for each step that is set aside.

    Raises:
      CheckpointError: the directory cannot be made, cleaned or used.
    """
    if keep < 1:
      raise ValueError(f'keep={keep} must be at least 1')
    self.directory = pathlib.Path(os.path.abspath(directory))
    savable.check_path(self.directory)
    self._keep = keep
    self._log = log
    self._idle = threading.Event()
    self._idle.set()
    self._may_commit = threading.Event()
    self._error: CheckpointError | None = None
    self._closed = False
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      for pattern in (savable.UNCOMMITTED, '*' + _REMOVED):
        for path in self.directory.glob(pattern):
          shutil.rmtree(path)
    except OSError as error:
      raise CheckpointError(f'{self.directory}: cannot be used for checkpoints: '
                            f'{savable.one_line(error)}') from error
    quiet.failed_saves()
    self._checkpointer = self._new_checkpointer()

  def _new_checkpointer(self) -> ocp.AsyncCheckpointer:
    options = ocp.options.AsyncOptions(
        # Made at once, so that a full or vanished disk shows in `save` itself.
        create_directories_asynchronously=False,
        post_finalization_callback=self._may_commit.wait)
    return ocp.AsyncCheckpointer(savable.handler(), async_options=options)

  @property
  def in_flight(self) -> bool:
    """Whether a save has begun whose manifest is not in place yet (any thread)."""
    return not self._idle.is_set()

  def path(self, step: int) -> pathlib.Path:
    """The directory of a step."""
    return self.directory / str(step)

  def steps(self) -> list[int]:
    """The committed steps, ascending; whether they verify is `restore`'s business."""
    names = (path.name for path in self.directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in names
                  if name.isascii() and name.isdecimal() and str(int(name)) == name)

  def save(self, step: int, state: PyTree, position: dict[str, Any]) -> None:
    """Saves in the background; returns when the arrays have been copied.

    The caller may donate or change the arrays of `state` afterwards. A save still in
    flight is awaited first.

    Args:
      step: number of the step, not negative, not saved yet.
      state: pytree of jax or numpy arrays, none of them empty or weakly typed.
      position: JSON value that belongs to the state.

    Raises:
      CheckpointError: this save, or the one before it, could not be written.
      ValueError: the state or the position cannot be saved; nothing was written.
      RuntimeError: the step exists already, or the object is closed.
    """
    leaves = savable.leaves_of(state)
    record = savable.new_record(step, leaves, position)
    try:
      round_trip = json.loads(json.dumps(record))
    except TypeError as error:
      raise ValueError(f'the position is not JSON: {error}') from error
    if round_trip['position'] != position:
      raise ValueError('the position does not come back from JSON as it was')
    self.wait()
    if self._closed:
      raise RuntimeError('save after close')
    path = self.path(step)
    if step < 0 or path.exists():
      raise RuntimeError(f'internal error: {path} exists already or is no step')
    self._idle.clear()
    self._may_commit.clear()
    try:
      self._checkpointer.save(path, args=savable.save_args(leaves, record))
      faults.reach('save_arrays')
      threading.Thread(target=self._finish, args=(step,), daemon=True,
                       name='checkpoint_manifest').start()
    except BaseException as error:
      self._may_commit.set()  # Orbax's thread ends before what it wrote is removed.
      self._discard(path)
      self._idle.set()
      if isinstance(error, Exception):
        raise self._failure(path, error) from error
      raise
    self._may_commit.set()

  def _finish(self, step: int) -> None:
    """Runs in the background from the copy to the manifest and the removal of old steps."""
    path = self.path(step)
    try:
      self._checkpointer.wait_until_finished()
      faults.reach('commit_manifest')
      manifest.write(path)
      problems = manifest.verify(path)
      if problems:
        raise OSError(f'read back wrong: {problems[0]}')
      self._remove_old()
    except Exception as error:
      self._discard(path)
      self._error = self._failure(path, error)
    finally:
      self._idle.set()

  def _failure(self, path: pathlib.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f'{path}: checkpoint not written: {savable.one_line(error)}')

  def _discard(self, path: pathlib.Path) -> None:
    """Removes what a failed save left, and the Orbax object, which may repeat the error."""
    with contextlib.suppress(Exception):
      self._checkpointer.close()
    for left in (path, *self.directory.glob(savable.UNCOMMITTED)):
      self._remove(left)
    self._checkpointer = self._new_checkpointer()

  def _remove(self, path: pathlib.Path) -> None:
    # Renamed first: a kill in between must not leave half a step under a step's name.
    doomed = path.with_name(path.name + _REMOVED)
    # What cannot be removed stays until the next save or start.
    with contextlib.suppress(OSError):
      os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)

  def _remove_old(self) -> None:
    """Removes verified steps beyond `keep`; the newest has just been verified."""
    verified = [step for step in self.steps() if (self.path(step) / manifest.NAME).exists()]
    for step in verified[:-self._keep]:
      self._remove(self.path(step))

  def wait(self) -> None:
    """Returns when no save is in flight; raises the error of the last one, once."""
    self._idle.wait()
    error, self._error = self._error, None
    if error is not None:
      raise error

  def close(self) -> None:
    """Waits for the save in flight and ends Orbax's threads; may be called again.

    Raises the error of the last save; while another exception is on its way (in a
    `finally`) the error is logged instead, so that it does not hide the first one.
    """
    unwinding = sys.exc_info()[0] is not None
    self._idle.wait()
    if not self._closed:
      self._closed = True
      self._checkpointer.close()
    try:
      self.wait()
    except CheckpointError as error:
      if not unwinding:
        raise
      self._log(str(error))

  def restore(
      self, abstract_state: PyTree, accept: Callable[[dict[str, Any]], str | None]
  ) -> tuple[int, PyTree, dict[str, Any]] | None:
    """The newest step that is whole, fits `abstract_state` and is accepted.

    Every newer one is moved to `<directory>/damaged/<step>-<n>` with one log line.

    Args:
      abstract_state: the expected tree, of arrays or jax.ShapeDtypeStruct; jax leaves
        come back with their shardings (the first device where there is none), numpy
        leaves as numpy arrays.
      accept: takes the position; returns None, or the reason why the step cannot be
        used. An exception from it is passed on and leaves the step in its place.

    Returns:
      (step, state, position), or None when no step is left.

    Raises:
      CheckpointError: a step is of another format, or whole and yet not readable; it
        stays in its place.
    """
    self.wait()
    wanted = savable.flatten(abstract_state)
    for step in reversed(self.steps()):
      position, reason = self._examine(step, savable.describe(wanted), accept)
      if reason:
        self._set_aside(step, reason)
        continue
      leaves = savable.read_arrays(self._checkpointer, self.path(step), wanted)
      structure = jax.tree_util.tree_structure(abstract_state)
      return step, structure.unflatten([leaves[name] for name in wanted]), position
    return None

  def _examine(
      self, step: int, wanted: dict[str, list], accept: Callable[[dict[str, Any]], str | None]
  ) -> tuple[dict[str, Any], str]:
    """(position, '') of a step that can be used, else ({}, '<file>: <reason>')."""
    problems = manifest.verify(self.path(step))
    if problems:
      more = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
      return {}, problems[0] + more
    try:
      record = savable.read_record(self._checkpointer, self.path(step))
    except CheckpointError:
      raise
    except Exception as error:
      return {}, f'position: unreadable ({savable.one_line(error)})'
    if record['step'] != step:
      return {}, f'position: written as step {record["step"]}'
    difference = savable.compare(record['leaves'], wanted)
    if difference:
      return {}, difference
    refusal = accept(record['position'])
    return record['position'], f'position: {refusal}' if refusal else ''

  def _set_aside(self, step: int, reason: str) -> None:
    damaged = self.directory / 'damaged'
    number = 1
    while (target := damaged / f'{step}-{number}').exists():
      number += 1
    try:
      damaged.mkdir(exist_ok=True)
      os.rename(self.path(step), target)
    except OSError as error:
      raise CheckpointError(f'{self.path(step)}: damaged ({reason}) and cannot be moved to '
                            f'{target}: {savable.one_line(error)}') from error
    self._log(f'checkpoint {step} is not used: {reason}; moved to {target}')
