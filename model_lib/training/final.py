"""Final artifacts: one verified directory per tree, such as the trained parameters."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from model_lib.training import manifest
from model_lib.training import savable
from model_lib.training.savable import CheckpointError

PyTree = Any


def save_final(path: str | os.PathLike[str], tree: PyTree) -> None:
  """Writes a tree, e.g. trained parameters, as a verified directory; returns when it is there.

  `path` holds the old content, or the new one; between the two renames it may be absent
  for a moment, never half-written.

  Args:
    path: directory to make or to replace.
    tree: pytree of jax or numpy arrays; typed keys are not allowed here.

  Raises:
    CheckpointError: it cannot be written.
    ValueError: the tree cannot be saved; nothing was written.
  """
  path = pathlib.Path(os.path.abspath(path))
  savable.check_path(path)
  leaves = savable.leaves_of(tree)
  for name, leaf in leaves.items():
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(f'leaf {name} is a typed key: store jax.random.key_data of it')
  record = savable.new_record(None, leaves, {
      jax.tree_util.keystr(keys): [jax.tree_util.keystr((key,), simple=True) for key in keys]
      for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]})
  partial, old = (path.with_name(path.name + end) for end in ('.partial', '.old'))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in (partial, old, *path.parent.glob(partial.name + savable.UNCOMMITTED)):
      shutil.rmtree(left, ignore_errors=True)
    with contextlib.closing(ocp.Checkpointer(savable.handler())) as checkpointer:
      checkpointer.save(partial, args=savable.save_args(leaves, record))
    manifest.write(partial)
    with contextlib.suppress(FileNotFoundError):
      os.rename(path, old)
    os.rename(partial, path)
  except Exception as error:
    raise CheckpointError(f'{path}: not written: {savable.one_line(error)}') from error
  shutil.rmtree(old, ignore_errors=True)


def load_final(path: str | os.PathLike[str], abstract: PyTree | None = None) -> PyTree:
  """Reads what `save_final` wrote, after verifying it.

  Args:
    path: the directory.
    abstract: the expected tree as in `Checkpoints.restore`. None: nested dicts on the
      first device, keyed by dict keys, attribute names and list positions, as strings.

  Raises:
    CheckpointError: it is missing, damaged, or not of the expected tree.
  """
  path = pathlib.Path(os.path.abspath(path))
  if not path.is_dir():
    raise CheckpointError(f'{path}: no such directory')
  problems = manifest.verify(path)
  if problems:
    raise CheckpointError(f'{path}: damaged: {problems[0]}')
  with contextlib.closing(ocp.Checkpointer(savable.handler())) as checkpointer:
    try:
      record = savable.read_record(checkpointer, path)
    except CheckpointError:
      raise
    except Exception as error:
      raise CheckpointError(f'{path}: damaged: position: {savable.one_line(error)}') from error
    if abstract is None:
      wanted = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
                for name, (dtype, shape) in record['leaves'].items()}
    else:
      wanted = savable.flatten(abstract)
    difference = savable.compare(record['leaves'], savable.describe(wanted))
    if difference:
      raise CheckpointError(f'{path}: {difference}')
    leaves = savable.read_arrays(checkpointer, path, wanted)
  if abstract is not None:
    structure = jax.tree_util.tree_structure(abstract)
    return structure.unflatten([leaves[name] for name in wanted])
  tree: dict[str, Any] = {}
  for name, keys in record['position'].items():
    node = tree
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = leaves[name]
  return tree
