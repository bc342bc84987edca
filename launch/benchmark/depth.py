"""A sweep of learning rates over a deep MLP: one program against one jit or process per run.

As a program it trains runs of the sweep and prints the seconds that it took after its imports,
compilation included:

  python -m launch.benchmark.depth SIDE DATA.npz FIRST LAST STEPS

All sides train the blocks of `deep_mlp` (16 of width 64, sqrt(2) ReLU) with Adam on random labels
of digits, 64 examples a step: 12 learning rates times 3 seeds. SIDE is `population`, the runs as
members of one program; or `apart`, what a careful user would write in plain jax and optax, with a
scan over the blocks and one over the steps, compiled anew for each learning rate and seed.
"""

from __future__ import annotations

import json
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

import numpy as np

from launch.benchmark import measure

WIDTH, DEPTH, BASE_DEPTH, CLASSES, BATCH, STEPS = 64, 16, 4, 10, 64, 500
RATES = tuple(2 ** (-10.5 + i / 2) for i in range(12))
RUNS = tuple((rate, seed) for seed in range(3) for rate in RATES)
EPS, STEPS_PER_CALL = 1e-12, 100
BRANCH, GAIN, READOUT = (DEPTH / BASE_DEPTH) ** -0.5, 2 ** 0.5, 4 * WIDTH ** -0.5
SAMPLE = 6  # runs of the slow sides that are timed in a pair


def cohort(steps: int, runs=RUNS):
  """The runs as members of one cohort."""
  from launch.benchmark import engine
  from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec
  numbers = {'branch_scale': BRANCH, 'activation_scale': GAIN, 'readout_scale': READOUT}
  return Cohort(
      engine.RUN, ModelSpec('deep_mlp', {'width': WIDTH, 'depth': DEPTH}),
      tuple(Member({'rate': rate, 'seed': seed}, seed, seed, 0,
                   {'learning_rate': rate, **numbers}, labels=1) for rate, seed in runs),
      steps, BATCH, OptimizerSpec(eps=EPS, trained=('stack/',)))


def population(data: Path, runs, steps: int) -> tuple[float, np.ndarray]:
  """All runs as one compiled population, metrics written; `data` is not read.

  Returns:
    Seconds, and the last loss of each.
  """
  import jax

  from data import builders  # which loading the data imports: no side's imports are counted
  from launch.benchmark import engine
  from model_lib.training import loop
  from model_lib.training.metrics import MetricsFile
  del data, builders
  start = time.perf_counter()
  setting = engine.prepare(cohort(steps, runs))
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / 'metrics.jsonl'
    metrics = MetricsFile(path)
    jax.block_until_ready(
        setting.train(loop.initial_chunks(setting.population, setting.plan), metrics))
    metrics.sync()
    metrics.close()
    taken = time.perf_counter() - start
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  last = max(line['step'] for line in lines)
  return taken, np.array([line['loss'] for line in lines if line['step'] == last], float)


def apart(data: Path, runs, steps: int) -> tuple[float, np.ndarray]:
  """One run after the other in plain jax and optax, each with a program of its own.

  Returns:
    Seconds, and the last loss of each.
  """
  import jax
  import jax.numpy as jnp
  import optax
  file = np.load(data)
  start = time.perf_counter()
  inputs = (file['images'].reshape(len(file['images']), -1) - file['mean']) / file['std']
  x, y = jax.device_put((np.float32(inputs), np.random.default_rng(0).permutation(
      file['labels']).astype(np.int32)))

  def program(rate, first, last):
    optimizer = optax.adam(rate, eps=EPS)

    def mean_loss(kernels, index_b):
      def block(h, kernel):
        f = GAIN * jax.nn.relu(h @ kernel)
        return h + BRANCH * (f - f.mean(-1, keepdims=True)), None

      h, _ = jax.lax.scan(block, x[index_b] @ first, kernels)
      return optax.softmax_cross_entropy_with_integer_labels(
          READOUT * (h @ last), y[index_b]).mean()

    def step(carry, index_b):
      kernels, state = carry
      loss, grads = jax.value_and_grad(mean_loss)(kernels, index_b)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(kernels, updates), state), loss

    return optimizer, jax.jit(lambda carry, index: jax.lax.scan(step, carry, index),
                              donate_argnums=0)

  found = []
  for rate, seed in runs:
    rng = np.random.default_rng(seed)
    first, kernels, last = (
        jax.device_put(np.float32(rng.standard_normal(shape) * shape[-2] ** -0.5))
        for shape in ((x.shape[1], WIDTH), (DEPTH, WIDTH, WIDTH), (WIDTH, CLASSES)))
    epochs = -(-steps * BATCH // len(file['train']))
    order = np.concatenate([rng.permutation(file['train']) for _ in range(epochs)])
    index = order[:steps * BATCH].reshape(steps, BATCH).astype(np.int32)
    optimizer, call = program(rate, first, last)
    carry = kernels, optimizer.init(kernels)
    for number in range(0, steps, STEPS_PER_CALL):
      carry, losses = call(carry, jnp.asarray(index[number:number + STEPS_PER_CALL]))
    found.append(float(losses[-1]))
  return time.perf_counter() - start, np.array(found)


SIDES = {'population': population, 'apart': apart}


def depth(pairs: int, full: bool = False, steps: int = STEPS, count: int = len(RUNS),
          sample: int = SAMPLE) -> list[dict[str, Any]]:
  """Seconds of the sweep as one program, as one jit per run in one process, and as processes.

  One program against jits: each side is a process that is timed after its imports. Against
  processes: whole processes, imports included. Of the slow sides `sample` runs are timed and the
  time is scaled to all; `full` runs all of them apart once.
  """
  from launch.benchmark import engine
  sample = min(sample, count)
  with tempfile.TemporaryDirectory() as directory:
    data = Path(directory) / 'digits.npz'
    engine.write_plain_data(data)
    peaks, whole = [], []

    def child(side: str, first: int, last: int) -> tuple[float, float]:
      """Seconds after the imports, and all of them."""
      wall, peak, output = measure.run_child('launch.benchmark.depth', side, data, first, last,
                                             steps)
      if side == 'population':
        peaks.append(peak)
        whole.append(wall)
      return float(output.splitlines()[-1]), wall

    seconds = measure.interleave({
        'population': lambda: child('population', 0, count)[0],
        'apart': lambda: child('apart', 0, sample)[0] * count / sample,
        'processes': lambda: sum(child('apart', i, i + 1)[1]
                                 for i in range(sample)) * count / sample}, pairs)
    records = [
        measure.ratio('one jit per run / one program', seconds['apart'], seconds['population'],
                      at_least=3.0, timed=sample, scaled_to=count),
        measure.ratio('process per run / one process', seconds['processes'], whole,
                      timed=sample, scaled_to=count),
        measure.record('peak resident memory of the program',
                       [peak * 2 ** 20 / 1e9 for peak in peaks], 'GB')]
    if full:
      records.append(measure.ratio(
          f'the same, all {count} jits run', [child('apart', 0, count)[0]],
          [child('population', 0, count)[0]], at_least=3.0))
  return records


def main(side: str, data: str, first: int, last: int, steps: int) -> None:
  """Trains the runs [first, last) and prints the seconds."""
  taken, losses = SIDES[side](Path(data), RUNS[first:last], steps)
  print('median of the last losses', np.nanmedian(losses), file=sys.stderr)
  print(taken)


if __name__ == '__main__':
  main(*sys.argv[1:3], *map(int, sys.argv[3:6]))
