"""The sides of the search's benchmark: candidates trained as one population, apart, in PyTorch.

As a program it trains the first candidates of a file and prints the seconds that it took after its
imports, compilation included:

  python -m launch.benchmark.candidates SIDE FILE.json DATA.npz FIRST LAST STEPS

The file is a list of [text, gain]. All sides train an MLP 64-64-64-10 (64 inputs, two hidden
layers) on digits with Adam, 128 examples a step, and then tell what a search asks for: the loss on
the validation split. SIDE is `population`; `plain`, a population of as many ReLUs, which no engine
for candidates can beat; `compiled`, the search's own engine for one expression, a population of one
compiled anew for each; `apart`, the least that one can write by hand for the same; or `eager`,
PyTorch without a compiler, on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import importlib
import json
from pathlib import Path
import sys
import tempfile
import time

import numpy as np

from launch.benchmark import measure

WIDTHS = (64, 64)
CLASSES, BATCH, RATE, STEPS_PER_CALL = 10, 128, 1e-3, 100
Candidate = tuple[str, float]  # an expression and its gain


def cohort(candidates: Sequence[Candidate] | int, steps: int):
  """Runs of the candidates, or that many of plain ReLU, with the same start and batches."""
  if isinstance(candidates, int):
    return _cohort('relu', [{}] * candidates, steps)
  return _cohort('table', [{'candidate': text, 'init_gain': gain} for text, gain in candidates],
                 steps)


def _cohort(activation: str, hps: Sequence[dict], steps: int):
  from launch.benchmark import engine
  from model_lib.training.cohort import Cohort, Member, ModelSpec
  return Cohort(
      engine.RUN, ModelSpec('mlp', {'widths': list(WIDTHS), 'activation': activation}),
      tuple(Member({'number': i}, 0, 0, 0, {'learning_rate': RATE, **hp})
            for i, hp in enumerate(hps)), steps, BATCH)


def population(
    candidates: Sequence[Candidate] | int, data: Path, steps: int) -> tuple[float, np.ndarray]:
  """All candidates as members of one compiled population, metrics written.

  Returns:
    Seconds, and the validation loss of each.
  """
  _import_engine()
  del data
  start = time.perf_counter()
  losses = _trained(cohort(candidates, steps))
  return time.perf_counter() - start, losses


def compiled(
    candidates: Sequence[Candidate], data: Path, steps: int) -> tuple[float, np.ndarray]:
  """One candidate after the other by the engine `expression`: a population of one for each.

  Its steps per call are given: no call is timed for them.

  Returns:
    Seconds, and the validation loss of each.
  """
  _import_engine()
  del data
  start = time.perf_counter()
  losses = [_trained(_cohort(f'expression({text})', [{'init_gain': gain}], steps), STEPS_PER_CALL)
            for text, gain in candidates]
  return time.perf_counter() - start, np.concatenate(losses)


def _import_engine() -> None:
  """Imports what a population needs: no side's imports are counted."""
  for name in ('data.builders', 'launch.benchmark.engine', 'model_lib.training.loop'):
    importlib.import_module(name)


def _trained(runs, steps_per_call: int = 0) -> np.ndarray:
  """Trains a cohort as a study does and evaluates it; the validation losses."""
  import jax

  from launch.benchmark import engine
  from model_lib.training import loop
  from model_lib.training.metrics import MetricsFile
  from model_lib.training.population import evaluation_index
  setting = engine.prepare(runs, steps_per_call)
  own, prepared = setting.population, setting.prepared
  validation = prepared.evaluation_sets[0][1]
  index, weight, sets = evaluation_index([validation], len(validation))
  with (tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool):
    # The evaluation is compiled while the population trains.
    evaluation = pool.submit(own.compile_evaluation, own.abstract(setting.plan.chunk),
                             prepared.constant, index[None])
    metrics = MetricsFile(Path(directory) / 'metrics.jsonl')
    chunks = jax.block_until_ready(
        setting.train(loop.initial_chunks(own, setting.plan), metrics))
    means, = loop.evaluate(own, setting.plan, evaluation.result(), chunks, prepared.routes,
                           prepared.constant, index[None], weight[None], sets)
    metrics.sync()
    metrics.close()
  return means['loss']


def weights(gain: float, inputs: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Kernels N(0, 1 / inputs), behind an activation N(0, gain^2 / inputs); biases 0."""
  rng = np.random.default_rng(0)
  sizes = (inputs, *WIDTHS, CLASSES)
  scales = (1.0, *(gain,) * len(WIDTHS))
  return [(np.float32(rng.standard_normal((i, o)) * scale / np.sqrt(i)), np.zeros((1, o), 'f4'))
          for i, o, scale in zip(sizes[:-1], sizes[1:], scales, strict=True)]


def batches(train: np.ndarray, steps: int) -> np.ndarray:
  """int32 [steps, B]: permutations of the examples, one after the other."""
  rng = np.random.default_rng(0)
  order = np.concatenate([rng.permutation(train) for _ in range(-(-steps * BATCH // len(train)))])
  return order[:steps * BATCH].reshape(steps, BATCH).astype(np.int32)


def apart(
    candidates: Sequence[Candidate], data: Path, steps: int) -> tuple[float, np.ndarray]:
  """One candidate after the other in plain jax and optax, each with a program of its own.

  The program evaluates after each of its calls: a second program for it took a fifth longer.

  Returns:
    Seconds, and the validation loss of each.
  """
  import jax
  import optax

  from model_lib.search import parse
  file = np.load(data)
  start = time.perf_counter()
  inputs = (file['images'].reshape(len(file['images']), -1) - file['mean']) / file['std']
  x, y = jax.device_put((np.float32(inputs), file['labels'].astype(np.int32)))
  index, validation = batches(file['train'], steps), file['val']
  optimizer = optax.adam(RATE)

  def program(expression):
    def mean_loss(params, index_b):
      h = x[index_b]
      for w, b in params[:-1]:
        h = expression(h @ w + b)
      w, b = params[-1]
      return optax.softmax_cross_entropy_with_integer_labels(h @ w + b, y[index_b]).mean()

    def step(carry, index_b):
      params, state = carry
      loss, grads = jax.value_and_grad(mean_loss)(params, index_b)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), loss

    def call(carry, index):
      carry, _ = jax.lax.scan(step, carry, index)
      return carry, mean_loss(carry[0], validation)

    return jax.jit(call, donate_argnums=0)

  found = []
  for text, gain in candidates:
    params = jax.device_put(weights(gain, x.shape[1]))
    carry, call = (params, optimizer.init(params)), program(parse(text))
    for first in range(0, steps, STEPS_PER_CALL):
      carry, loss = call(carry, index[first:first + STEPS_PER_CALL])
    found.append(float(loss))
  return time.perf_counter() - start, np.array(found)


def eager(
    candidates: Sequence[Candidate], data: Path, steps: int) -> tuple[float, np.ndarray]:
  """One candidate after the other in PyTorch, eager, on one thread.

  Returns:
    Seconds, and the validation loss of each.
  """
  import torch

  from model_lib.search import parse
  torch.set_num_threads(1)  # of two processes, one per core
  file = np.load(data)
  start = time.perf_counter()
  inputs = (file['images'].reshape(len(file['images']), -1) - file['mean']) / file['std']
  x, y = torch.tensor(np.float32(inputs)), torch.tensor(file['labels'].astype(np.int64))
  index = torch.tensor(batches(file['train'], steps).astype(np.int64))
  validation = torch.tensor(file['val'].astype(np.int64))
  operators = _in_torch(torch)

  def value(node, h):
    if node.operator == 'x':
      return h
    return operators[node.operator](*(value(argument, h) for argument in node.args))

  def mean_loss(expression, params, index_b):
    h = x[index_b]
    for w, b in zip(params[0:-2:2], params[1:-2:2], strict=True):
      h = value(expression, torch.addmm(b, h, w))
    return torch.nn.functional.cross_entropy(torch.addmm(params[-1], h, params[-2]), y[index_b])

  found = []
  for text, gain in candidates:
    expression = parse(text)
    params = [torch.tensor(p, requires_grad=True)
              for pair in weights(gain, x.shape[1]) for p in pair]
    optimizer = torch.optim.Adam(params, lr=RATE)
    for index_b in index:
      loss = mean_loss(expression, params, index_b)
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    with torch.no_grad():
      found.append(mean_loss(expression, params, validation).item())
  return time.perf_counter() - start, np.array(found)


def _in_torch(torch) -> dict:
  """The operators of the space act_bench."""
  f, special = torch.nn.functional, torch.special
  return {
      'zero': torch.zeros_like, 'one': torch.ones_like, 'identity': lambda a: a, 'neg': torch.neg,
      'abs': torch.abs, 'reciprocal': torch.reciprocal, 'square': torch.square, 'exp': torch.exp,
      'erf': torch.erf, 'erfc': torch.erfc, 'sinh': torch.sinh, 'cosh': torch.cosh,
      'tanh': torch.tanh, 'expm1': torch.expm1, 'sigmoid': torch.sigmoid,
      'log_sigmoid': f.logsigmoid, 'asinh': torch.asinh, 'atan': torch.atan, 'i0e': special.i0e,
      'i1e': special.i1e, 'relu': f.relu, 'elu': f.elu, 'selu': f.selu, 'swish': f.silu,
      'softplus': f.softplus, 'softsign': f.softsign,
      'hard_sigmoid': lambda a: torch.clamp(0.2 * a + 0.5, 0, 1),
      'add': torch.add, 'sub': torch.sub, 'mul': torch.mul, 'div': torch.div, 'pow': torch.pow,
      'max': torch.maximum, 'min': torch.minimum}


def plain(
    candidates: Sequence[Candidate], data: Path, steps: int) -> tuple[float, np.ndarray]:
  """A population of as many plain ReLUs."""
  return population(len(candidates), data, steps)


SIDES = {'population': population, 'plain': plain, 'compiled': compiled, 'apart': apart,
         'eager': eager}


def seconds(side: str, file: Path, data: Path, first: int, last: int, steps: int,
            ) -> tuple[float, float]:
  """A child's seconds for the candidates [first, last), and its peak resident memory in MiB."""
  _, peak, output = measure.run_child(
      'launch.benchmark.candidates', side, file, data, first, last, steps)
  return float(output.splitlines()[-1]), peak


def main(side: str, file: str, data: str, first: int, last: int, steps: int) -> None:
  """Trains the candidates [first, last) of the file and prints the seconds."""
  with open(file, encoding='utf-8') as f:
    candidates = [(text, gain) for text, gain in json.load(f)[first:last]]
  taken, losses = SIDES[side](candidates, Path(data), steps)
  print('median validation loss', np.nanmedian(losses), file=sys.stderr)
  print(taken)


if __name__ == '__main__':
  main(*sys.argv[1:4], *map(int, sys.argv[4:7]))
