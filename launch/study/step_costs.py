"""What a training step of each kind of run costs, beside the same step of a reference model."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from launch.study import datasets
from model_lib.training import timing
from model_lib.training.population import Population


class StepCosts:
  """Times one run of each kind of a cohort; keeps the compiled reference from cohort to cohort."""

  def __init__(self):
    self._references: dict[str, Any] = {}

  def measure(self, population: Population, prepared: datasets.Prepared,
              data: datasets.StudyData) -> dict[str, tuple[float, float]]:
    """{value of the cohort's time_by tag: (seconds per step, ratio to the reference)}.

    Empty for a cohort without time_by. `data` are those that the cohort reads.
    """
    cohort = population.cohort
    if not cohort.time_by:
      return {}
    kinds = {}
    for member in cohort.members:
      kinds.setdefault(str(member.tags[cohort.time_by]), member)
    arrays = prepared.constant
    prepare = timing.stepper(population, arrays, 1, cohort.batch_size)
    runs = {kind: prepare(member) for kind, member in kinds.items()}
    reference, spec = cohort.time_reference
    if reference not in runs:
      runs[reference] = self._reference_run(population, prepared, data, spec)
    return timing.relative_cost(runs, reference)

  def _reference_run(self, population, prepared, data, spec):
    """Times the reference model; compiled once per start and model."""
    cohort = population.cohort
    key = json.dumps([dataclasses.asdict(spec), dataclasses.asdict(cohort.optimizer),
                      cohort.batch_size, population.batching, cohort.data], default=list)
    if key not in self._references:
      member = dataclasses.replace(
          cohort.members[0], hp={'learning_rate': cohort.members[0].hp['learning_rate']})
      alone = dataclasses.replace(cohort, model=spec, members=(member,))
      other = Population(alone, data.build(spec, cohort.optimizer), prepared.task,
                         prepared.constant, population.batching)
      self._references[key] = timing.stepper(other, prepared.constant, 1,
                                             cohort.batch_size)(member)
    return self._references[key]
