"""Networks for the tests of the coordinate check: rows of one network share its program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import flax.traverse_util
import numpy as np

from model_lib.analysis.coordinate_check import Program, Slope, Trace, roles, slopes
from model_lib.models.parametrized import build
from model_lib.training import optimizers
from model_lib.training.cohort import OptimizerSpec
from model_lib.training.tasks import Classification, NextToken

ADAM = OptimizerSpec('adam', eps=1e-12)
SGD = OptimizerSpec('sgd')


def images(n: int = 16, side: int = 8):
  """(task, inputs, targets) of noise with random labels."""
  rng = np.random.default_rng(0)
  return (Classification(0.0, 1.0), rng.standard_normal((n, side, side)).astype(np.float32),
          rng.integers(0, 10, n).astype(np.int32))


def tokens(n: int = 2, length: int = 8, vocab: int = 64):
  """(task, inputs, targets) of random tokens."""
  found = np.random.default_rng(0).integers(0, vocab, (n, length + 1)).astype(np.int32)
  return NextToken(), found[:, :-1], found[:, 1:]


@dataclasses.dataclass(frozen=True)
class Family:
  """Networks of several sizes: name and arguments as of `models.build`, `at`: size -> arguments."""

  name: str
  at: Callable[[int], dict]
  base: int
  wider: Mapping
  batch: tuple
  arguments: Mapping = dataclasses.field(default_factory=dict)
  optimizer: OptimizerSpec = ADAM
  axis: str = 'width'

  def model(self, size: int, row: str):
    return build(self.name, {**self.arguments, **self.at(size), 'parametrization': row},
                 self.at(self.base), self.wider, optimizers.family(self.optimizer))


Change = Callable[[dict], Mapping]  # flat hp -> what it has instead


def traced(family: Family, sizes: Sequence[int], rate: float,
           runs: Mapping[str, tuple[str, Change | None]], steps: int = 4,
           seeds: Sequence[int] = (0, 1, 2),
           ) -> tuple[dict[str, list[Trace]], dict[str, list[Slope]]]:
  """Traces and slopes of each run: a row, and what is changed in its numbers.

  Rows whose models differ in numbers alone share a program; with attention, whose factor is a
  constant, they need not.
  """
  task, inputs, targets = family.batch
  traces: dict[str, list[Trace]] = {name: [] for name in runs}
  found, role, compiled = {}, {}, {}
  for size in sizes:
    program = None
    for name, (row, change) in runs.items():
      model = family.model(size, row)
      if program is None or hasattr(model, 'heads'):
        program = Program(model, task, inputs, targets, family.optimizer, steps, family.axis,
                          compiled=compiled)
      numbers = flax.traverse_util.flatten_dict(dict(program.numbers(model)))
      numbers = {**numbers, **{path: np.float32(value)
                               for path, value in (change(numbers) if change else {}).items()}}
      traces[name].append(program.trace(size, rate, seeds,
                                        flax.traverse_util.unflatten_dict(numbers)))
      role = roles(model.labels(inputs, train=False), list(traces[name][0].rms))
  for name in runs:
    found[name] = slopes(traces[name], role)
  return traces, found


def mlp(optimizer: OptimizerSpec = ADAM) -> Family:
  return Family('mlp', lambda n: {'widths': (n, n)}, 16, {'widths': (32, 32)}, images(),
                {'activation': 'tanh'}, optimizer)


def deep(width: int = 64) -> Family:
  """Tensor Programs VI's network; of ReLU times 2^1/2 with `SCALED`."""
  return Family('deep_mlp', lambda depth: {'depth': depth}, 4, {'depth': 4, 'width': 2 * width},
                images(64), {'width': width},
                dataclasses.replace(ADAM, trained=('stack/',)), 'depth')


def scaled(numbers: dict) -> Mapping:
  """ReLU times 2^1/2 in `deep`."""
  del numbers
  return {('stack', 'activation_scale'): 2 ** 0.5}


def without_rate(numbers: dict) -> Mapping:
  """Every learning rate has the factor 1: the mistake that the check is for."""
  return {path: 1.0 for path in numbers if path[:2] == ('parametrization', 'learning_rate')}


def zero_head(numbers: dict) -> Mapping:
  """The readout starts as zeros."""
  del numbers
  return {('parametrization', 'start', 'head', 'kernel'): 0.0}
