"""Opens one run of a workdir: `model, variables, config = load_run(workdir, member)`."""

from __future__ import annotations

import os
from typing import Any

from launch.study import records
from launch.study.workdir import Workdir
from model_lib.errors import UserError


def load_run(workdir: str | os.PathLike[str], member: int) -> tuple[Any, dict, dict]:
  """The trained model of one row of results.csv.

  Args:
    workdir: of a study whose cohort with this member is finished.
    member: its number, the column `member` of results.csv.

  Returns:
    model: the Linen module.
    variables: its parameters, swept numbers (`hp`) and further collections, so that
      `model.apply(variables, inputs, train=False)` gives the logits.
    config: {'study', 'config', 'row', 'model', 'task'}; `task` has the mean and the
      standard deviation that inputs are standardized with.

  Raises:
    UserError: no such member, or damaged files.
  """
  import jax

  from model_lib import models
  from model_lib.training.final import load_final

  directory = Workdir(workdir)
  record = records.Record.read(directory)
  finished = records.all_finished(directory)
  for cohort in finished:
    place = member - cohort['first_member']
    if 0 <= place < len(cohort['rows']):
      break
  else:
    count = sum(len(c['rows']) for c in finished)
    raise UserError(f'{directory.path}: there is no finished member {member}; '
                    f'finished are 0 to {count - 1}' if count else
                    f'{directory.path}: no cohort is finished yet; run the study on')
  final = load_final(records.cohort_directory(directory, cohort['name']) / 'final', None)
  one = jax.tree.map(lambda leaf: leaf[place], final)
  variables = {'params': one['params'], 'hp': one['hp'].get('model', {}),
               **one.get('collections', {})}
  spec = cohort['model']
  return models.build(spec['name'], **spec['arguments']), variables, {
      'study': record.study, 'config': record.configs[-1], 'row': cohort['rows'][place],
      'model': spec, 'task': cohort['task']}
