"""Opens one run of a workdir: `model, variables, config = load_run(workdir, member)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import numbers
import os
from typing import Any

from launch.study import records
from launch.study.workdir import Workdir
from model_lib.errors import UserError


@dataclasses.dataclass(frozen=True)
class Trained:
  """The networks of a finished cohort.

  Attributes:
    model: the Linen module, or one with factors of its parameters (`models.parametrized`).
    spec: what it was built from, a `ModelSpec` as a dict.
    variables: parameters, swept numbers (`hp`) and further collections of all members,
      leaves [members, ...].
    rows: their rows of results.csv.
    task: the mean and the standard deviation that inputs are standardized with.
  """

  model: Any
  spec: Mapping[str, Any]
  variables: dict[str, Any]
  rows: Sequence[Mapping[str, Any]]
  task: Mapping[str, Any]


def load_cohort(workdir: Workdir, cohort: str, step: int | None = None) -> Trained:
  """The networks of a cohort that is finished; with `step` as they were there (`Cohort.keep_at`).

  Raises:
    UserError: it is not finished, kept none at that step, or its files are damaged.
  """
  from model_lib.models import parametrized
  import model_lib.search.engines  # enters table, bytecode and expression among the activations
  from model_lib.training.final import load_final

  finished = records.read_finished(workdir, cohort)
  if finished is None:
    raise UserError(f'{workdir.path}: no cohort {cohort} is finished')
  if finished['model'] is None:
    raise UserError(f'{workdir.path}: {cohort} is a measurement, for which nothing was trained')
  final = load_final(records.networks(workdir, cohort, step), None)
  variables = {'params': final['params'], 'hp': final['hp'].get('model', {}),
               **final.get('collections', {})}
  spec = finished['model']
  # The factors are among the variables; older records know of no base.
  model = parametrized.build(spec['name'], spec['arguments'], spec.get('base', {}),
                             spec.get('delta', {}))
  return Trained(model, spec, variables, _rows(finished), finished['task'])


def _rows(finished: Mapping[str, Any]) -> list[dict[str, Any]]:
  """As they stand in results.csv: nan where a number is missing, without that of the config."""
  return [{key: value for key, value in row.items() if key != 'config'}
          for row in records.with_nan(finished['rows'])]


def load_run(workdir: str | os.PathLike[str], member: int) -> tuple[Any, dict, dict]:
  """The trained model of one row of results.csv.

  Args:
    workdir: of a study whose cohort with this member is finished.
    member: its number, the column `member` of results.csv.

  Returns:
    model: the Linen module, or one with factors of its parameters (`models.parametrized`).
    variables: its parameters, swept numbers (`hp`) and further collections, so that
      `model.apply(variables, inputs, train=False)` gives the logits.
    config: {'study', 'config', 'row', 'model', 'task'}; `task` has the mean and the
      standard deviation that inputs are standardized with.

  Raises:
    UserError: no such member, one for which nothing was trained, a directory that keeps no
      networks, or damaged files.
  """
  import jax

  if not isinstance(member, numbers.Integral) or isinstance(member, bool):
    raise UserError(f'member must be an integer, the number of a row of results.csv; got '
                    f'{member!r}')
  directory = Workdir(workdir)
  record = records.Record.read(directory)
  finished = records.all_finished(directory)
  if not finished and directory.read_status().get('state') == 'done':
    raise UserError(f'{directory.path}: there are no checkpoints here (a record keeps no '
                    'networks); run the study in a workdir')
  for cohort in finished:
    place = member - cohort['first_member']
    if 0 <= place < len(cohort['rows']):
      break
  else:
    count = sum(len(c['rows']) for c in finished)
    raise UserError(f'{directory.path}: there is no finished member {member}; '
                    f'finished are 0 to {count - 1}' if count else
                    f'{directory.path}: no cohort is finished yet; run the study on')
  if cohort['model'] is None:
    raise UserError(f'{directory.path}: member {member} is a row of the measurement '
                    f'{cohort["name"]}, for which nothing was trained')
  trained = load_cohort(directory, cohort['name'])
  variables = jax.tree.map(lambda leaf: leaf[place], trained.variables)
  return trained.model, variables, {
      'study': record.study, 'config': record.configs[-1], 'row': _rows(cohort)[place],
      'model': trained.spec, 'task': trained.task}
