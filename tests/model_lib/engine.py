"""Small cohorts on made-up images, trained by the real engine; shared by the tests of training."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data.device import DeviceFeed
from model_lib.models import parametrized
from model_lib.training import loop, planning
from model_lib.training import population as population_lib
from model_lib.training.batch_order import BatchOrder
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec
from model_lib.training.metrics import MetricsFile
from model_lib.training.optimizers import family
from model_lib.training.population import Population, Routes, evaluation_index
from model_lib.training.tasks import Classification

MLP = ModelSpec('mlp', {'widths': (64, 64)})
# Four tokens of one narrow block: well under 1 ms per step.
VIT = ModelSpec('vit', {'patch': 4, 'dim': 16, 'depth': 1, 'heads': 2, 'mlp_ratio': 2})
MODELS = {'mlp': MLP, 'vit': VIT}
STEPS = 50


def images(n: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
  """Ten blurred 8 x 8 prototypes, uint8; labels, and in table 1 a permutation of them."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 10, n)
  prototypes = rng.uniform(40, 215, (10, 8, 8))
  pixels = prototypes[labels] + rng.normal(0, 40, (n, 8, 8))
  tables = np.stack([labels, rng.permutation(labels)], 1).astype(np.int32)
  return {'inputs': pixels.clip(0, 255).astype(np.uint8), 'labels': tables}


def members(n: int, **hp) -> tuple[Member, ...]:
  """Runs that differ in every way in which runs of one program can differ."""
  return tuple(
      Member({'number': i}, seed=i % 5, data_seed=i % 3, split=i % 2, labels=int(i % 7 == 6),
             hp={'learning_rate': 1e-3 * 1.1 ** i, **hp})
      for i in range(n))


def cohort(model: ModelSpec = MLP, runs: Sequence[Member] = (), steps: int = STEPS,
           batch_size: int = 32, optimizer: OptimizerSpec = OptimizerSpec()) -> Cohort:
  return Cohort('arms', model, tuple(runs), steps, batch_size, optimizer)


# Different training sets of the two splits, and one evaluation set for both.
SPLITS = (np.arange(0, 300, dtype=np.int32), np.arange(40, 340, dtype=np.int32))
HELD_OUT = (np.arange(340, 370, dtype=np.int32), np.arange(370, 400, dtype=np.int32))


@dataclasses.dataclass
class Trained:
  """What a training leaves: states [members, ...], the metrics file, means per evaluation set."""

  state: object
  lines: bytes
  evaluated: list[dict[str, np.ndarray]]

  def leaves(self, member: int) -> dict[str, bytes]:
    """Every leaf of one member's state, as bytes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(self.state)
    return {jax.tree_util.keystr(path): np.asarray(leaf)[member].tobytes() for path, leaf in flat}

  def records(self, member: int) -> list[str]:
    """One member's lines without its number."""
    marker = f'"member": {member}, '
    return [line.replace(marker, '') for line in self.lines.decode().splitlines()
            if marker in line]

  def means(self, member: int) -> list[dict[str, bytes]]:
    return [{name: v[member].tobytes() for name, v in part.items()} for part in self.evaluated]

  def bits(self, member: int):
    """All that must not depend on a member's company."""
    return self.leaves(member), self.records(member), self.means(member)

  def losses(self) -> np.ndarray:
    """[members, recorded steps]; nan where a loss was not finite."""
    rows = [json.loads(line) for line in self.lines.decode().splitlines()]
    n = 1 + max(row['member'] for row in rows)
    values = [np.nan if row['loss'] is None else row['loss'] for row in rows]
    return np.array(values).reshape(-1, n).T


def distances(a: Trained, b: Trained) -> tuple[float, float]:
  """Largest relative differences: of the losses, and ||x - y|| / ||x|| of each parameter tensor."""
  worst = 0.0
  for x, y in zip(jax.tree.leaves(a.state.params), jax.tree.leaves(b.state.params), strict=True):
    axes = tuple(range(1, x.ndim))  # the members stay apart
    x, y = x.astype(np.float64), y.astype(np.float64)
    share = np.sqrt(((x - y) ** 2).sum(axes)) / np.sqrt((x ** 2).sum(axes))
    worst = max(worst, float(share.max()))
  return float((abs(a.losses() - b.losses()) / a.losses()).max()), worst


def map_against_vmap(model: ModelSpec, dtype, folder: Path) -> dict[str, tuple[float, float]]:
  """`distances` of four members, and where vmap gives the first its neighbour's learning rate."""
  runs = members(4)
  swapped = (dataclasses.replace(runs[0], hp=runs[1].hp), *runs[1:])
  mapped, batched = (
      Engine(model, chunk=4, k=50, streams=4, batching=batching, dtype=dtype, evaluates=False)
      for batching in ('map', 'vmap'))
  base = mapped.train(runs, folder)
  assert base.losses().shape == (4, STEPS)
  assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(base.state.params))
  return {'same': distances(base, batched.train(runs, folder)),
          'swapped': distances(base, batched.train(swapped, folder))}


def cast_floats(tree, dtype):
  """Floating leaves (arrays or shapes) in another dtype."""
  def cast(leaf):
    if not np.issubdtype(leaf.dtype, np.floating):
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(leaf.shape, dtype)
    return leaf.astype(dtype)
  return jax.tree.map(cast, tree)


class Engine:
  """The compiled program of a model in one batching, chunk and K; trains any of its members."""

  def __init__(self, model: ModelSpec, *, chunk: int, k: int = 10, batching: str = 'map',
               steps: int = STEPS, optimizer: OptimizerSpec = OptimizerSpec(), streams: int = 1,
               log_every: int = 1, dtype=np.float32, arrays: Mapping | None = None, task=None,
               evaluates: bool = True, lanes: int = 1):
    self.arrays = arrays = images() if arrays is None else arrays
    self.task = task or Classification(127.0, 70.0)
    self.population = Population(
        cohort(model, members(1), steps, optimizer=optimizer),
        parametrized.build(model.name, model.arguments, model.base, model.delta,
                           family(optimizer)), self.task, arrays, batching)
    capacity = max(planning.MIN_CAPACITY, k)
    self.plan = planning.Plan(batching, chunk, k, capacity, 0.0, 0.0, 0.0, lanes)
    self.streams, self.log_every, self.dtype = streams, log_every, dtype
    abstract = cast_floats(self.population.abstract(chunk), dtype)
    rows = planning.record_rows(capacity, log_every)
    self.call = self.population.compile_call(abstract, arrays, streams, capacity, rows)
    pieces = evaluation_index(HELD_OUT, 16)
    self.index, self.weights = (np.stack([p, p]) for p in pieces[:2])
    self.sets = pieces[2]
    self.evaluation = None
    if evaluates:
      self.evaluation = self.population.compile_evaluation(abstract, arrays, self.index)

  def routes(self, runs: Sequence[Member]) -> tuple[BatchOrder, Routes]:
    pairs = list(dict.fromkeys((m.data_seed, m.split) for m in runs))
    assert len(pairs) <= self.streams
    pairs += pairs[:1] * (self.streams - len(pairs))
    order = BatchOrder([(seed, SPLITS[split]) for seed, split in pairs],
                       self.population.cohort.batch_size)
    rows = [(pairs.index((m.data_seed, m.split)), m.labels, m.split) for m in runs]
    return order, Routes(*(np.array(column, np.int32) for column in zip(*rows)))

  def train(self, runs: Sequence[Member], folder: Path, **options) -> Trained:
    """Trains `runs` from the start through loop.train and a metrics file, then evaluates."""
    population, plan = self.population, self.plan
    population.cohort = dataclasses.replace(population.cohort, members=tuple(runs))
    order, routes = self.routes(runs)
    path = folder / 'metrics.jsonl'
    path.unlink(missing_ok=True)
    metrics = MetricsFile(path)
    chunks = [cast_floats(c, self.dtype) for c in loop.initial_chunks(population, plan)]
    try:
      chunks = loop.train(
          population, plan, self.call, DeviceFeed(self.arrays, order), routes, chunks, 0,
          run='arms', first_member=0, metrics=metrics, checkpoints=None,
          log_every=self.log_every, **options)
    finally:
      metrics.close()
    evaluated = []
    if self.evaluation is not None:
      evaluated = loop.evaluate(population, plan, self.evaluation, chunks, routes, self.arrays,
                                self.index, self.weights, self.sets)
    state = population_lib.join_chunks(chunks, len(runs))
    return Trained(jax.tree.map(np.asarray, state), path.read_bytes(), evaluated)
