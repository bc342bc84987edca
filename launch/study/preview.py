"""What a study would do: --list and --dry_run. Writes nothing.

Cohorts that are computed from earlier rows are shown as they come out when those
rows are all alike; the lines say so.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import json
import math

import numpy as np
import pandas as pd

from launch.study import config as config_lib
from launch.study import datasets
from launch.study import tables
from launch.study.asked import check_distinct
from launch.study.study import Measurement, Study
from model_lib.training import planning
from model_lib.training import timing
from model_lib.training.cohort import Cohort
from model_lib.training.population import Population

# A model of the time of a study on two CPU cores, good for an order of magnitude. Its numbers
# were read off timing.jsonl of runs on a shared machine (digits, MNIST and CIFAR-10 with an MLP
# of 64-64, digits with the ViT of 2 x 32); the ranges are those of the runs.

# Multiply-adds per second of an MLP's training: batch 128 took 0.14 to 0.23 ms a step with
# 9 thousand parameters, 1.1 ms with 55 thousand, 3.9 to 6.9 ms with 201 thousand.
_MACS_PER_S = 2.5e10
# Per parameter, and example or token: the layer's product, and in the backward pass one for
# its kernel and one for its input.
_MACS_PER_PARAMETER = 3
# A step's work over that of its dense layers. The ViT, batch 64 of 16 tokens, took 7.7 to 10.5 ms
# for 81 million multiply-adds: attention, norms and activations take longer than the products.
_BESIDE_DENSE = {'mlp': 1.0, 'resmlp': 1.0, 'deep_mlp': 1.0}  # without tokens: images flattened
_BESIDE_DENSE_TRANSFORMER = 3.0
# What no step goes below: 85 parameters and a batch of one took 5.6 to 7.7 us.
_STEP_OVERHEAD_S = 6e-6
# Compiling initialization, training and evaluation of a cohort: 2.4 to 4 s where
# little else ran, up to 11 s beside other programs. Timing the activations' cost compiles again.
_COMPILE_S = 3.0
_TIMING_COMPILE_S = 2.5
# Imports, and reading the data: 4 to 7 s.
_START_S = 6.0
# Memory of a call over the state that it moves: the compiler's estimates in config.json lie
# between 2.0 and 2.6 times the state, the data set not counted.
_CALL_MEMORY = 2.3


def expected_cohorts(study: Study, config) -> list[Sequence[Cohort | Measurement]]:
  """All that is asked for, each time as if every earlier run had the same result.

  Raises:
    UserError: two runs are the same; see `check_distinct`.
  """
  generator = study.cohorts(config)
  found: list[Sequence[Cohort | Measurement]] = []
  answer = None
  while True:
    try:
      asked = list(generator.send(answer))
    except StopIteration:
      return found
    check_distinct(config, asked)
    found.append(asked)
    answer = pd.DataFrame([
        {**m.tags, 'run': c.name, 'steps': c.steps, 'diverged_step': -1, 'last_loss': 0.0,
         **{f'{s}_{k}': 0.0 for s in ('train', 'val', 'test') for k in ('loss', 'accuracy')}}
        for c in asked if isinstance(c, Cohort) for m in c.members])


def _cost(cohort: Cohort, data: datasets.StudyData):
  """(parameters, state in MiB per member, estimated seconds of the cohort)."""
  data = data.of(cohort)
  prepared = data.prepare(cohort, 'device')
  model = data.build(cohort.model, cohort.optimizer)
  population = Population(cohort, model, prepared.task, prepared.arrays,
                          planning.default_batching())
  abstract = population.abstract(1)
  parameters = population.n_parameters()
  state = sum(math.prod(s.shape) * s.dtype.itemsize for s in _leaves(abstract)) / 2**20
  tokens = 1
  if cohort.model.name not in _BESIDE_DENSE:
    inputs = data.dataset.inputs.shape[1:]
    patch = dict(cohort.model.arguments).get('patch', 1)
    tokens = max(1, int(np.prod(inputs[:2])) // patch**2)
  dense = parameters * cohort.batch_size * tokens * _MACS_PER_PARAMETER / _MACS_PER_S
  step = dense * _BESIDE_DENSE.get(cohort.model.name, _BESIDE_DENSE_TRANSFORMER) + _STEP_OVERHEAD_S
  seconds = _COMPILE_S + len(cohort.members) * cohort.steps * step
  if cohort.time_by:
    kinds = len({m.tags[cohort.time_by] for m in cohort.members})
    seconds += _TIMING_COMPILE_S + kinds * timing.steps_per_kind() * step
  return parameters, state, seconds


def _leaves(tree):
  import jax
  return jax.tree.leaves(tree)


def _asked(study: Study, config):
  """The data of a study and its lists of cohorts."""
  study.check(config)
  return datasets.load(study.data(config), config.io.data_dir), expected_cohorts(study, config)


def _table(study: Study, parsed, data: datasets.StudyData | None, lists) -> tables.Table:
  config = parsed.config
  rows, total, peak, trains = [], _START_S, 0.0, False
  data_mib = data.dataset.inputs.nbytes / 2**20 if data else 0.0
  for cohort in itertools.chain.from_iterable(lists):
    if isinstance(cohort, Measurement):
      rows.append({'cohort': cohort.name, 'model': 'no training', 'seconds': cohort.seconds})
      total += cohort.seconds
      continue
    trains = True
    parameters, state, seconds = _cost(cohort, data)
    members = len(cohort.members)
    mib = data_mib + _CALL_MEMORY * state * members
    rows.append({'cohort': cohort.name, 'model': cohort.model.name, 'runs': members,
                 'steps': cohort.steps, 'parameters': parameters, 'mib': mib,
                 'seconds': seconds})
    total, peak = total + seconds, max(peak, mib)
  notes = [f'About {total / 60:.1f} minutes on two CPU cores.']
  if trains:
    notes = [f'{sum(r.get("runs", 0) for r in rows)} runs, about {total / 60:.1f} minutes on two '
             f'CPU cores, at most about {peak:.0f} MiB of data and state at a time.']
  if sum(any(isinstance(c, Cohort) for c in asked) for asked in lists) > 1:
    notes.append('Cohorts that depend on earlier results are shown as if all earlier results were '
                 'equal; runs that other results ask for (such as a wider range of learning '
                 'rates) come on top.')
  notes += [*study.preset_notes.get(parsed.preset, ()), *study.notes(config)]
  column = tables.Column
  return tables.Table(
      f'{study.name} on {data.dataset.name}' if data else study.name,
      (column('cohort', 'cohort', right=False), column('model', 'model', right=False),
       column('runs', 'runs', format=tables.integer()),
       column('steps', 'steps', format=tables.integer()),
       column('parameters', 'parameters', format=tables.integer()),
       column('mib', 'memory', 'MiB, estimate', format=tables.fixed(0)),
       column('seconds', 'time', 's, estimate', format=tables.fixed(0))),
      rows, notes)


def _factors(data: datasets.StudyData | None, lists) -> str:
  """The factors of the first cohort that has a base model, as a table; '' where none has."""
  for cohort in itertools.chain.from_iterable(lists):
    if isinstance(cohort, Cohort) and cohort.model.base:
      of = data.of(cohort)
      lines = of.build(cohort.model, cohort.optimizer).lines(of.example(), train=False)
      title = f'Parametrization of {cohort.name}, beside its base model:'
      return '\n'.join(['', title, *lines, ''])
  return ''


def runs(study: Study, parsed) -> str:
  """The text of --list."""
  return _table(study, parsed, *_asked(study, parsed.config)).to_text()


def dry_run(study: Study, parsed) -> str:
  """The text of --dry_run: the resolved config, then the estimates and the parametrization."""
  data, lists = _asked(study, parsed.config)
  return (json.dumps(config_lib.to_dict(parsed.config), indent=2) + '\n\n'
          + _table(study, parsed, data, lists).to_text() + _factors(data, lists))
