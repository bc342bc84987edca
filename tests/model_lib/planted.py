"""Searched functions trained in one compiled program on made-up data, for the planted truths."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from pathlib import Path

import numpy as np

from data.device import DeviceFeed
from model_lib import models
from model_lib.errors import UserError
from model_lib.search import Evaluator, Expression, candidates, get_space
from model_lib.search.engines import gain
from model_lib.training import loop, planning
from model_lib.training.batch_order import BatchOrder
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec
from model_lib.training.metrics import MetricsFile
from model_lib.training.population import Population, Routes, evaluation_index

HELD_OUT = 2048  # examples for choosing a start, and as many for the test
_CHUNK = 250
_STEP = 0.01
_LATTICE = np.arange(-2000, 2001) * _STEP  # all a u + b with |u| <= 4, a <= 4, |b| <= 4


@functools.cache
def functions() -> tuple[Expression, ...]:
  """The valid functions of one core unit of the Swish space, each once.

  Learnable scalars stay at their first values, where some families are one function.
  """
  evaluator, found = Evaluator(_LATTICE[800:-800:8]), {}
  for expression in candidates(get_space('swish').expressions()).valid:
    values = evaluator.value(expression)
    scale = np.abs(values).max()
    found.setdefault((*np.round(values / scale, 6), round(np.log(scale), 5)), expression)
  return tuple(found.values())


@functools.cache
def sample(count: int) -> tuple[Expression, ...]:
  """The first `count` of the functions in a fixed random order that have a finite gain."""
  found = []
  for i in np.random.default_rng(0).permutation(len(functions())):
    try:
      gain(functions()[i])
    except UserError:
      continue
    found.append(functions()[i])
    if len(found) == count:
      return tuple(found)
  raise ValueError(f'there are {len(found)} functions with a gain, not {count}')


def largest_correlations(expressions: Sequence[Expression]) -> np.ndarray:
  """max |corr(f(a u + b), sin(3 u))| under u ~ N(0, 1) over 1/2 <= a <= 4 and |b| <= 4."""
  evaluator, u = Evaluator(_LATTICE), np.arange(-40, 41) / 10
  weights = np.exp(-u**2 / 2)
  weights /= weights.sum()
  target = np.sin(3 * u)  # its mean is 0
  target /= np.sqrt(weights @ target**2)
  a, b = np.arange(5, 41)[:, None, None] / 10, np.arange(-40, 41)[:, None] / 10
  places = np.rint((a * u + b) / _STEP).astype(int) + len(_LATTICE) // 2
  found = []
  for expression in expressions:
    values = evaluator.value(expression)[places]
    mean, second = values @ weights, values**2 @ weights
    variance = second - mean**2
    varies = variance > 1e-9 * second  # less is rounding
    found.append((np.abs(values @ (weights * target))[varies] / np.sqrt(variance[varies])).max())
  return np.array(found)


def train(
    expressions: Sequence[Expression], tables: Sequence[int], task, arrays: Mapping, folder: Path,
    *, width: int, outputs: int, rate: float, steps: int, batch: int, starts: int,
) -> list[dict[str, np.ndarray]]:
  """Trains an MLP of one hidden layer with every function, from several starts, by Adam.

  All functions meet the same first values and batches. The last 2 HELD_OUT examples are not trained
  on. A diverged run has an infinite loss.

  Returns:
    Means {'loss', metric: [expressions, tables, starts]} over the first half of these examples, by
    which to choose, and over the second, the test.
  """
  runs = tuple(
      Member({'function': str(expression), 'table': table, 'start': start}, start, start, 0,
             {'learning_rate': rate, 'candidate': str(expression),
              'init_gain': gain(expression)}, table)
      for expression in expressions for table in tables for start in range(starts))
  model = ModelSpec('mlp', {'widths': (width,), 'num_classes': outputs, 'activation': 'table'})
  cohort = Cohort('planted', model, runs, steps, batch, OptimizerSpec(schedule='cosine'))
  population = Population(cohort, models.build(model.name, **model.arguments), task, arrays, 'map')
  plan = planning.Plan('map', min(_CHUNK, len(runs)), steps, steps, 0.0, 0.0, 0.0)
  call = loop.compile_for(population, plan, arrays, starts, steps)
  n = len(arrays['inputs'])
  fit, choice, test = np.split(np.arange(n, dtype=np.int32), [n - 2 * HELD_OUT, n - HELD_OUT])
  feed = DeviceFeed(arrays, BatchOrder([(start, fit) for start in range(starts)], batch))
  index, weights, sets = evaluation_index([choice, test], 512)
  evaluation = population.compile_evaluation(population.abstract(plan.chunk), arrays, index[None])
  parts = []
  metrics = MetricsFile(folder / 'metrics.jsonl')
  try:
    # A chunk after the other: a state holds 0.1 MB of table, and there may be 50,000.
    for first in range(0, len(runs), plan.chunk):
      members = runs[first:first + plan.chunk]
      some = population.of(dataclasses.replace(cohort, members=members))
      routes = Routes(np.array([run.seed for run in members]),
                      np.array([run.labels for run in members]), np.zeros(len(members), np.int32))
      chunks = loop.train(some, plan, call, feed, routes, loop.initial_chunks(some, plan), 0,
                          run=cohort.name, first_member=first, metrics=metrics, log_every=steps)
      parts.append(loop.evaluate(some, plan, evaluation, chunks, routes, arrays, index[None],
                                 weights[None], sets))
  finally:
    metrics.close()
  means = [{name: np.concatenate([part[i][name] for part in parts]) for name in parts[0][i]}
           for i in range(2)]
  shape = len(expressions), len(tables), starts
  for part in means:
    part['loss'] = np.where(np.isfinite(part['loss']), part['loss'], np.inf)
  return [{name: value.reshape(shape) for name, value in part.items()} for part in means]
