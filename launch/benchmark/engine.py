"""The engine's side of the benchmarks: a population on digits, set up as a study does it.

As a program it trains the whole population and prints the median of its last losses:

  python -m launch.benchmark.engine METRICS.jsonl MEMBERS STEPS
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from launch.benchmark import plain
from launch.study import datasets
from launch.study.request import DataRequest
from model_lib.training import loop
from model_lib.training import planning
from model_lib.training.cohort import Cohort, Member, ModelSpec
from model_lib.training.metrics import MetricsFile
from model_lib.training.population import Population, TrainingCall

LOG_EVERY = 25
RUN = 'benchmark'


@dataclasses.dataclass(frozen=True)
class Setting:
  """A compiled population and what its training reads."""

  population: Population
  prepared: datasets.Prepared
  plan: planning.Plan
  call: TrainingCall

  def train(self, chunks: list, metrics: MetricsFile, sinks=(), progress=None, call=None) -> list:
    """loop.train from step 0, without checkpoints."""
    return loop.train(
        self.population, self.plan, call or self.call, self.prepared.feed, self.prepared.routes,
        chunks, 0, run=RUN, first_member=0, metrics=metrics, sinks=sinks, progress=progress,
        log_every=LOG_EVERY)

  def inputs_of_call(self, count: int):
    """(routes of each chunk, index block, slots) of the first `count` steps, on the device."""
    call = self.call
    counts = loop.recorded(0, count, self.population.cohort.steps, LOG_EVERY)
    return jax.device_put((
        loop.route_chunks(self.prepared.routes, self.plan),
        loop.padded_index(self.prepared.feed.block(0, count)[1], call.capacity),
        loop.slots_for(0, counts, call.capacity, call.rows)))


def cohort(members: int, steps: int, model: ModelSpec | None = None,
           batch_size: int = plain.BATCH) -> Cohort:
  """Runs that differ in their seeds: of the initialization and of the batch order."""
  model = model or ModelSpec('mlp', {'widths': list(plain.WIDTHS)})
  return Cohort(RUN, model, tuple(
      Member({'seed': i}, i, i, 0, {'learning_rate': plain.RATE}) for i in range(members)),
      steps, batch_size)


def setup(members: int, steps: int, steps_per_call: int = 0) -> Setting:
  """A population of `cohort`; see `prepare`."""
  return prepare(cohort(members, steps), steps_per_call)


def prepare(runs: Cohort, steps_per_call: int = 0) -> Setting:
  """Loads digits, plans and compiles; with steps_per_call = 0 the plan decides it."""
  data = datasets.StudyData(DataRequest('digits'), '')
  prepared = data.prepare(runs, 'device')
  population = Population(runs, data.build(runs.model, runs.optimizer), prepared.task,
                          prepared.arrays, planning.default_batching())
  plan, call = planning.decide(population, prepared.arrays, prepared.n_streams,
                               steps_per_call=steps_per_call, log_every=LOG_EVERY)
  return Setting(population, prepared, plan, call)


def write_plain_data(path: Path) -> None:
  """What plain programs read: digits, and the numbers of training and validation examples."""
  data = datasets.StudyData(DataRequest('digits'), '')
  np.savez(path, images=data.dataset.inputs, labels=data.dataset.labels,
           train=data.splits[0].train, val=data.splits[0].val, mean=data.dataset.mean,
           std=data.dataset.std)


def main(path: str, members: int, steps: int) -> None:
  """Trains the population."""
  setting = setup(members, steps)
  losses = []
  metrics = MetricsFile(Path(path))
  chunks = loop.initial_chunks(setting.population, setting.plan)
  chunks = setting.train(chunks, metrics, progress=lambda step, loss: losses.append(loss))
  jax.block_until_ready(chunks)
  metrics.sync()
  metrics.close()
  print(float(np.median(losses[-1])))


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
