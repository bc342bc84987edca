"""What a saved tree is: which trees come back as they were, its record, and reading it.

A directory written by Orbax, whole or not at all:

  state/      the arrays, a flat mapping from the leaf's path in the tree to the array
  position/   JSON: format, step, dtype and shape of every leaf, the caller's position

Orbax casts a wrong dtype silently, so every leaf is compared with the record and with
what the caller expects. Nothing is unpickled.
"""

from __future__ import annotations

import glob
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from model_lib import errors

PyTree = Any

FORMAT = 1
UNCOMMITTED = '*.orbax-checkpoint-tmp*'  # what Orbax leaves of a save that was killed


class CheckpointError(errors.UserError):
  """A checkpoint cannot be written or read; the message names its path."""


def one_line(error: BaseException) -> str:
  """The error's text in one line of at most 300 characters, the system's reason if it has one."""
  text = ' '.join(str(error).split()) or type(error).__name__
  # TensorStore buries the system's reason, e.g. 'No space left on device', in a long chain.
  reason = re.search(r'([^:]+) \[os_error_code=', text)
  text = reason.group(1).strip() if reason else text
  return text if len(text) <= 300 else text[:297] + '...'


def check_path(path: pathlib.Path) -> None:
  """Refuses the paths below which Orbax loses the arrays: it uses them as a glob pattern."""
  if glob.has_magic(str(path)):
    raise CheckpointError(f"{path}: a checkpoint's path must not contain *, ? or [")


def flatten(tree: PyTree) -> dict[str, Any]:
  """The leaves by path, e.g. "['params']['Dense_0']['kernel']"."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in pairs}
  if len(leaves) != len(pairs):
    raise ValueError('two leaves of the tree have the same path')
  return leaves


def describe(leaves: dict[str, Any]) -> dict[str, list]:
  """{path: [dtype, [d0, d1, ...]]}; a typed key has a dtype such as 'key<fry>'."""
  return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}


def leaves_of(tree: PyTree) -> dict[str, Any]:
  """The leaves of a tree to save, by path.

  Raises:
    ValueError: it has a leaf that would not come back as it was, or none.
  """
  leaves = flatten(tree)
  if not leaves:
    raise ValueError('the tree to save has no leaves')
  for name, leaf in leaves.items():
    if not isinstance(leaf, (jax.Array, np.ndarray)):
      raise ValueError(f'leaf {name} is a {type(leaf).__name__}, not a jax or numpy array')
    if leaf.size == 0:
      raise ValueError(f'leaf {name} has shape {leaf.shape}: empty arrays cannot be saved')
    if getattr(leaf, 'weak_type', False):
      # It would return strongly typed, and type promotion would change the resumed run.
      raise ValueError(f'leaf {name} is weakly typed: make it with an explicit dtype')
  return leaves


def compare(saved: dict[str, list], wanted: dict[str, list]) -> str:
  """The first difference between two descriptions as `<leaf>: <reason>`, or ''."""
  for name in sorted(saved.keys() | wanted.keys()):
    if name not in saved:
      return f'state{name}: missing in the checkpoint'
    if name not in wanted:
      return f'state{name}: not in the expected state'
    for what, have, want in zip(('dtype', 'shape'), saved[name], wanted[name]):
      if have != want:
        return f'state{name}: {what} {have} instead of {want}'
  return ''


def _target(leaf: Any) -> Any:
  """What tells Orbax the type and the place of one restored leaf."""
  if isinstance(leaf, np.ndarray):
    return leaf
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    # Without a sharding Orbax takes the one of the machine that saved, and warns.
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def handler() -> ocp.CompositeCheckpointHandler:
  """A new handler of the two parts; a checkpointer takes it over."""
  return ocp.CompositeCheckpointHandler(
      state=ocp.StandardCheckpointHandler(), position=ocp.JsonCheckpointHandler())


def new_record(step: int | None, leaves: dict[str, Any], position: Any) -> dict[str, Any]:
  """The JSON that is saved beside the arrays; `step` is None for a final artifact."""
  return {'format': FORMAT, 'step': step, 'leaves': describe(leaves), 'position': position}


def save_args(leaves: dict[str, Any], record: dict[str, Any]) -> ocp.args.Composite:
  """What a checkpointer's `save` takes for a tree that `leaves_of` let pass."""
  return ocp.args.Composite(
      state=ocp.args.StandardSave(leaves), position=ocp.args.JsonSave(record))


def read_record(checkpointer: ocp.Checkpointer, path: pathlib.Path) -> dict[str, Any]:
  """The JSON of a verified directory.

  Raises:
    ValueError: it is none of ours.
    CheckpointError: it is of another format.
  """
  args = ocp.args.Composite(position=ocp.args.JsonRestore())
  record = checkpointer.restore(path, args=args).position
  if not isinstance(record, dict) or record.keys() < {'format'}:
    raise ValueError('not a record of a checkpoint')
  if record['format'] != FORMAT:
    # Not damage: every step would be moved away and the run would begin again.
    raise CheckpointError(f'{path}: checkpoint format {record["format"]!r}, this version reads '
                          f'{FORMAT}: use the version that wrote it or a new directory')
  if not isinstance(record.get('leaves'), dict) or not {'step', 'position'} <= record.keys():
    raise ValueError('not a record of a checkpoint')
  return record


def read_arrays(
    checkpointer: ocp.Checkpointer, path: pathlib.Path, leaves: dict[str, Any]
) -> dict[str, Any]:
  """The arrays of a verified directory whose record fits `leaves`.

  Raises:
    CheckpointError: they cannot be read as the record says; nothing is damaged.
  """
  targets = {name: _target(leaf) for name, leaf in leaves.items()}
  args = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
  try:
    restored = checkpointer.restore(path, args=args).state
  except Exception as error:
    # Its sums are right, so it is not the checkpoint that is damaged: leave it there.
    raise CheckpointError(f'{path}: cannot be restored: {one_line(error)}') from error
  difference = compare(describe(restored), describe(leaves))
  if difference:  # float64 without jax_enable_x64 ends here.
    raise CheckpointError(f'{path}: restored {difference}')
  return restored
