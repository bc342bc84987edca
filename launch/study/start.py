"""Where a cohort begins that does not begin from its initialization (`Cohort.start`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from launch.study.load import load_cohort
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort
from model_lib.training.population import pad_members
from model_lib.training.state import TrainState

COHORT, WEIGHTS = 'cohort', 'weights'


def started(chunks: Sequence[TrainState], cohort: Cohort, chunk: int,
            workdir: Workdir) -> list[TrainState]:
  """The states at step 0 with the parameters of `cohort.start`, all else as it was.

  Args:
    chunks: the members' states, padded to `chunk` members each.

  Raises:
    UserError: there is no such start, or a parameter has no counterpart of its shape there.
  """
  params = {name: np.asarray(leaf) for name, leaf in _flat(_source(cohort, workdir)).items()}
  return [
      state.replace(params=_replaced(state.params, params, [m.start for m in members], cohort))
      for state, members in zip(chunks, pad_members(cohort.members, chunk), strict=True)]


def _source(cohort: Cohort, workdir: Workdir) -> Mapping[str, Any]:
  """Parameters to begin from, leaves [runs, ...]."""
  kind, _, name = cohort.start.partition(':')
  if kind == COHORT:
    return load_cohort(workdir, name).variables['params']
  if kind == WEIGHTS:
    from model_lib.interop.hugging_face import load_gpt2
    _, variables = load_gpt2(name)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], variables['params'])
  raise UserError(f"cohort {cohort.name}: start {cohort.start!r} is neither 'cohort:NAME' nor "
                  "'weights:FOLDER'")


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(dict(tree), sep='/')


def _replaced(params: Mapping[str, Any], source: Mapping[str, np.ndarray], rows: Sequence[int],
              cohort: Cohort) -> dict[str, Any]:
  replaced = {}
  for name, leaf in _flat(params).items():
    if any(part in name for part in cohort.fresh):
      replaced[name] = leaf
      continue
    have = source.get(name)
    if have is None or have.shape[1:] != leaf.shape[1:]:
      raise UserError(
          f'cohort {cohort.name}: its parameter {name} has shape {tuple(leaf.shape[1:])}; '
          f'{cohort.start} has {"none" if have is None else tuple(have.shape[1:])}')
    if max(rows) >= len(have):
      raise UserError(f'cohort {cohort.name}: a run begins from number {max(rows)} of '
                      f'{cohort.start}, which has {len(have)}')
    replaced[name] = jax.numpy.asarray(have[np.asarray(rows)], leaf.dtype)
  return flax.traverse_util.unflatten_dict(replaced, sep='/')
