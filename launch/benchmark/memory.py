"""Memory: of the quickstart, of a population's call; and the estimate behind the chunks.

As a program it measures one call in a fresh process and prints a JSON line:

  python -m launch.benchmark.memory CASE map|vmap
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from launch.benchmark import measure
from model_lib.errors import UserError

QUICKSTART = ('experiments.activation_search', '--preset=quick')
FACTOR_MEMBERS = 256


@dataclasses.dataclass(frozen=True)
class Case:
  """One call whose memory is measured; each lies above 256 MiB."""

  model: str
  arguments: tuple[tuple[str, Any], ...]
  members: int


CASES = {
    'mlp-1024': Case('mlp', (('widths', (1024, 1024)),), 24),
    'mlp-2048': Case('mlp', (('widths', (2048, 2048)),), 8),
    'mlp-256': Case('mlp', (('widths', (256, 256)),), 384),
    'vit-192': Case('vit', (('patch', 2), ('dim', 192), ('depth', 4), ('heads', 4)), 12),
}


def memory(quickstart: Path | None = None) -> list[dict[str, Any]]:
  """All memory records; `quickstart` is a finished workdir to read instead of a new run."""
  records = [quickstart_peak(quickstart)]
  records += [factor(batching) for batching in ('map', 'vmap')]
  for name in CASES:
    for batching in ('map', 'vmap'):
      output = measure.run_child('launch.benchmark.memory', name, batching)[2]
      found = json.loads(output.splitlines()[-1])
      error = abs(found['estimate_mib'] / found['rise_mib'] - 1)
      records.append(measure.record(
          f'estimate / rise, {name}, {batching}', [found['estimate_mib'] / found['rise_mib']],
          **found) | {'met': error <= 0.25, 'within': 0.25})
  return records


def quickstart_peak(workdir: Path | None) -> dict[str, Any]:
  """Peak resident memory of the quickstart's study in GB."""
  if workdir is None:
    with tempfile.TemporaryDirectory() as directory:
      module, preset = QUICKSTART
      peak = measure.run_child(module, preset, f'--workdir={directory}/run')[1]
  else:
    path = Path(workdir) / 'timing.jsonl'
    try:
      lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
      peak = max(line['peak_mib'] for line in lines)
    except (OSError, ValueError, KeyError) as e:
      raise UserError(f'--quickstart: {path} is not the record of a run ({e!r})') from e
  return measure.record('peak resident memory of the quickstart', [peak * 2**20 / 1e9], 'GB',
                        at_most=3.0)


def _population(case: Case, batching: str, batch_size: int = 128):
  """The compiled call of a case with everything to run it: (population, call, device arrays)."""
  import jax

  from launch.benchmark import engine
  from launch.study import datasets
  from launch.study.request import DataRequest
  from model_lib.training.cohort import ModelSpec
  from model_lib.training.population import Population
  runs = engine.cohort(case.members, 4, ModelSpec(case.model, dict(case.arguments)), batch_size)
  data = datasets.StudyData(DataRequest('digits'), '')
  prepared = data.prepare(runs, 'device')
  population = Population(runs, data.build(runs.model, runs.optimizer), prepared.task,
                          prepared.arrays, batching)
  call = population.compile_call(population.abstract(case.members), prepared.arrays,
                                 prepared.n_streams, 4, 2)
  jax.block_until_ready(prepared.arrays)
  return population, call, prepared


def _activation_bytes(population, arrays) -> int:
  """What one member's backward pass keeps of its forward pass, parameters not counted."""
  import jax
  import numpy as np
  state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype),
                       population.abstract(1))

  def kept(state, arrays, index_b):
    inputs, targets = population.task.batch(arrays, index_b, 0)

    def loss(params):
      logits = population.model.apply(
          {'params': params, 'hp': state.hp['model'], **state.collections}, inputs, train=False)
      return population.task.losses(logits, targets)[0].mean()

    return inputs, jax.vjp(loss, state.params)[1]

  batch = population.cohort.batch_size
  leaves = jax.tree.leaves(jax.eval_shape(kept, state, arrays, np.zeros(batch, np.int32)))
  return sum(x.size * x.dtype.itemsize for x in leaves if x.ndim and x.shape[0] == batch)


def factor(batching: str) -> dict[str, Any]:
  """(arguments + temporaries - one chunk's activations) / (members x state) of 256 small MLPs.

  The output is the donated state again and costs nothing. A chunk's activations are
  one member's under map and all members' under vmap.
  """
  import jax
  population, call, prepared = _population(
      Case('mlp', (('widths', (64, 64)),), FACTOR_MEMBERS), batching)
  analysis = call.memory_analysis()
  state = sum(s.size * s.dtype.itemsize
              for s in jax.tree.leaves(population.abstract(FACTOR_MEMBERS)))
  activations = _activation_bytes(population, prepared.arrays) * (
      FACTOR_MEMBERS if batching == 'vmap' else 1)
  used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
  mib = {'state_mib': state, 'arguments_mib': analysis.argument_size_in_bytes,
         'temporaries_mib': analysis.temp_size_in_bytes, 'activations_mib': activations}
  return measure.record(
      f'memory of {FACTOR_MEMBERS} small MLPs / their state, {batching}',
      [(used - activations) / state], at_most=2.3,
      **{k: round(v / 2**20, 2) for k, v in mib.items()})


def _status_mib(field: str) -> float:
  with open('/proc/self/status', encoding='ascii') as file:
    return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def rise(name: str, batching: str) -> dict[str, float]:
  """Rise of this process' resident memory by a state and a call of it, against the estimate.

  The state is made of ones, page by page: the initialization is another program
  with other temporaries. The peak is that of the whole time since then.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from model_lib.training.population import call_bytes
  case = CASES[name]
  population, call, prepared = _population(case, batching)
  abstract = population.abstract(case.members)
  index = np.zeros((prepared.n_streams, 4, population.cohort.batch_size), np.int32)
  routes = np.zeros((case.members, 3), np.int32)
  slots = np.full(4, 2, np.int32)
  ones = jax.jit(lambda: jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), abstract)).lower()
  ones = ones.compile()
  with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
    file.write('5')  # sets the peak back to what is resident now
  before = _status_mib('VmRSS')
  state = jax.block_until_ready(ones())
  for _ in range(2):
    state, records = call(state, routes, prepared.arrays, index, slots, np.int32(2))
    jax.block_until_ready((state, records))
  return {'estimate_mib': call_bytes(call) / 2**20, 'rise_mib': _status_mib('VmHWM') - before,
          'state_mib': sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(abstract)) / 2**20}


if __name__ == '__main__':
  print(json.dumps(rise(sys.argv[1], sys.argv[2])))
