"""What a study would do: --list and --dry_run. Writes nothing.

Cohorts that are computed from earlier rows are shown as they come out when those
rows are all alike; the lines say so.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd

from launch.study import config as config_lib
from launch.study import datasets
from launch.study import tables
from launch.study.study import Study
from model_lib.training import planning
from model_lib.training.cohort import Cohort
from model_lib.training.population import Population

# Multiply-adds per second that one lax.map member reaches on two CPU cores, forward and
# backward, measured with `python -m launch.benchmark`; only an order of magnitude is meant.
_MACS_PER_S = 4e10
_STEP_OVERHEAD_S = 4e-5
_COMPILE_S = 6.0
# Work of a step beside its dense layers, as a factor on the parameters of a transformer.
_FORWARD_BACKWARD = 3


def expected_cohorts(study: Study, config) -> list[Cohort]:
  """All cohorts, later ones as if every earlier run had the same result."""
  generator = study.cohorts(config)
  found: list[Cohort] = []
  answer = None
  while True:
    try:
      asked = list(generator.send(answer))
    except StopIteration:
      return found
    found += asked
    answer = pd.DataFrame([
        {**m.tags, 'run': c.name, 'steps': c.steps, 'diverged_step': -1,
         **{f'{s}_{k}': 0.0 for s in ('train', 'val', 'test') for k in ('loss', 'accuracy')}}
        for c in asked for m in c.members])


def _cost(cohort: Cohort, data: datasets.StudyData):
  """(parameters, state in MiB per member, estimated seconds of the cohort)."""
  prepared = data.prepare(cohort, 'device')
  model = data.build(cohort.model)
  population = Population(cohort, model, prepared.task, prepared.arrays,
                          planning.default_batching())
  abstract = population.abstract(1)
  parameters = population.n_parameters()
  state = sum(math.prod(s.shape) * s.dtype.itemsize for s in _leaves(abstract)) / 2**20
  tokens = 1
  if cohort.model.name != 'mlp':
    inputs = data.dataset.inputs.shape[1:]
    patch = dict(cohort.model.arguments).get('patch', 1)
    tokens = max(1, int(np.prod(inputs[:2])) // patch**2)
  macs = parameters * cohort.batch_size * tokens * _FORWARD_BACKWARD
  seconds = _COMPILE_S + len(cohort.members) * cohort.steps * (
      macs / _MACS_PER_S + _STEP_OVERHEAD_S)
  return parameters, state, seconds


def _leaves(tree):
  import jax
  return jax.tree.leaves(tree)


def _table(study: Study, config) -> tables.Table:
  study.check(config)
  data = datasets.StudyData(study.data(config), config.io.data_dir)
  rows, total, peak = [], 0.0, 0.0
  for cohort in expected_cohorts(study, config):
    parameters, state, seconds = _cost(cohort, data)
    members = len(cohort.members)
    mib = 2.3 * state * members
    rows.append({'cohort': cohort.name, 'model': cohort.model.name, 'runs': members,
                 'steps': cohort.steps, 'parameters': parameters, 'mib': mib,
                 'seconds': seconds})
    total, peak = total + seconds, max(peak, mib)
  column = tables.Column
  return tables.Table(
      f'{study.name} on {data.dataset.name}',
      (column('cohort', 'cohort', right=False), column('model', 'model', right=False),
       column('runs', 'runs', format=tables.integer()),
       column('steps', 'steps', format=tables.integer()),
       column('parameters', 'parameters', format=tables.integer()),
       column('mib', 'memory', 'MiB, estimate', format=tables.fixed(0)),
       column('seconds', 'time', 's, estimate', format=tables.fixed(0))),
      rows,
      [f'{sum(r["runs"] for r in rows)} runs, about {total / 60:.1f} minutes on two CPU cores, '
       f'at most about {peak:.0f} MiB of state at a time.',
       'Cohorts that depend on earlier results are shown as if all earlier results were equal.'])


def runs(study: Study, parsed) -> str:
  """The text of --list."""
  return _table(study, parsed.config).to_text()


def dry_run(study: Study, parsed) -> str:
  """The text of --dry_run: the resolved config, then the estimates."""
  return (json.dumps(config_lib.to_dict(parsed.config), indent=2) + '\n\n'
          + _table(study, parsed.config).to_text())
