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
from model_lib.models.parametrized import BRANCH
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
    UserError: there is no such start, or a parameter has no counterpart of its shape there, or one
      that acts with another factor (`models.parametrized`).
  """
  source = _source(cohort, workdir)
  params = {name: np.asarray(leaf) for name, leaf in _flat(source['params']).items()}
  of_source, found = _factors(source.get('hp', {})), []
  for state, members in zip(chunks, pad_members(cohort.members, chunk), strict=True):
    rows = [m.start for m in members]
    replaced = _replaced(state.params, params, rows, cohort)
    _check_factors(_factors(state.hp['model']), of_source, rows, cohort)
    found.append(state.replace(params=replaced))
  return found


def _factors(hp: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Path -> the forward factor of a parameter of each run; empty where all are 1."""
  return {name: np.asarray(leaf)
          for name, leaf in _flat(hp.get(BRANCH, {}).get('multiplier', {})).items()}


def _check_factors(own: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray],
                   rows: Sequence[int], cohort: Cohort) -> None:
  for name in (*own, *(name for name in source if name not in own)):
    if any(part in name for part in cohort.fresh):
      continue
    ours, theirs = own.get(name, np.ones(len(rows))), source.get(name, np.ones(max(rows) + 1))
    if (ours != theirs[np.asarray(rows)]).any():
      raise UserError(f'cohort {cohort.name}: its parameter {name} acts with another factor than '
                      f'in {cohort.start}; begin from one with the same parametrization and base')


def _source(cohort: Cohort, workdir: Workdir) -> Mapping[str, Any]:
  """The variables to begin from, leaves [runs, ...]."""
  kind, _, name = cohort.start.partition(':')
  if kind == COHORT:
    return load_cohort(workdir, name).variables
  if kind == WEIGHTS:
    from model_lib.interop.hugging_face import load_gpt2
    _, variables = load_gpt2(name)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], dict(variables))
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
