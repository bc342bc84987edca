"""The compiled program of a cohort: members on a leading axis, K steps per call.

One call moves a chunk of members by `count` <= K steps. The steps run in a loop
whose trip count is an argument: one executable serves the timed probe, every K
and a short last call, and the number of steps per call cannot change the bits.

Members are batched by `lax.map` (a member's bits then depend neither on its
neighbours nor on the chunk) or by `vmap` (its bits then belong to the chunk's
size). All chunks have one size; the last is padded with copies of its first
member, which are dropped on the host.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from model_lib.errors import UserError
from model_lib.models.candidate import encode
from model_lib.models.parametrized import Parametrized
from model_lib.training import state as state_lib
from model_lib.training.cohort import Cohort, Member
from model_lib.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Routes:
  """Where each member's batches come from, int32 [members] each.

  Attributes:
    stream: row of the index block.
    labels: row of the label tables.
    split: row of the evaluation index.
  """

  stream: np.ndarray
  labels: np.ndarray
  split: np.ndarray

  def stacked(self) -> np.ndarray:
    """int32 [members, 3]."""
    return np.stack([self.stream, self.labels, self.split], 1).astype(np.int32)


def compile_options() -> dict[str, int] | None:
  """Options for programs that run once: the initialization, and checks at it.

  Random draws compile several times longer than a training step; without
  optimization that time falls to a tenth. The choice is part of the bits, hence fixed.
  """
  return {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None


def side_by_side_options(batching: str) -> dict[str, str] | None:
  """Options for the programs of members that train and are evaluated under vmap.

  On a CPU jaxlib 0.10 hands reductions to YNNPACK, and some gradients of norms come out wrong under
  vmap (off by a third; jax-ml/jax issue 39103). Without these fusions they are right; 0.11 is right
  with them. Under map, where they were checked, nothing changes.
  """
  if (batching == 'vmap' and jax.default_backend() == 'cpu'
      and jaxlib.version.__version_info__[:2] == (0, 10)):
    return {'xla_cpu_experimental_ynn_fusion_type': ''}
  return None


@dataclasses.dataclass(frozen=True)
class TrainingCall:
  """A compiled training call.

  Attributes:
    compiled: (state, routes [C, 3], arrays, index [S, capacity, B], slots [capacity],
      count) -> (state, records [C, rows, metrics]); the state is donated.
    capacity: most steps per call.
    rows: of the records.
  """

  compiled: Any
  capacity: int
  rows: int

  def __call__(self, *arguments):
    return self.compiled(*arguments)

  def memory_analysis(self):
    """The compiler's, see call_bytes."""
    return self.compiled.memory_analysis()


class Population:
  """Initialization, training calls and evaluation of one cohort's members."""

  def __init__(self, cohort: Cohort, model, task, arrays: dict[str, Any], batching: str):
    """Args:
      cohort: the members and the program.
      model: Linen module, or one with factors of its parameters (`models.parametrized`); called
        as model.apply(variables, inputs, train=...).
      task: from model_lib.training.tasks.
      arrays: host or device arrays that the task reads (their shapes are compiled in).
      batching: 'map' or 'vmap'.

    Raises:
      UserError: another batching, a weight decay on a model that is projected, or a batch that
        micro-batches do not divide.
    """
    if batching not in ('map', 'vmap'):
      raise UserError(f"batching is '{batching}'; it must be map or vmap")
    if state_lib.projection(model) and any(m.hp.get('weight_decay') for m in cohort.members):
      raise UserError(f'{cohort.name}: a weight decay with ngpt, which keeps the lengths of its '
                      'matrices, would change its steps and shrink its trained factors; set it to 0')
    parts = cohort.optimizer.micro_batches
    if parts < 1 or cohort.batch_size % parts:
      raise UserError(f'{cohort.name}: a batch of {cohort.batch_size} cannot be cut into {parts} '
                      'equal micro-batches')
    self.cohort, self.model, self.task, self.batching = cohort, model, task, batching
    self.factor = state_lib.schedule(cohort.optimizer, cohort.steps)
    self.example = task.example_inputs(arrays, min(2, cohort.batch_size))
    labels = (model.labels(self.example, train=False) if isinstance(model, Parametrized) else None)
    self.tx = state_lib.direction(cohort.optimizer, labels)
    self._init: dict[int, Future] = {}
    self._model_hp = self._abstract = None
    self._metric_names: tuple[str, ...] = ()

  def of(self, cohort: Cohort) -> Population:
    """The same program with other members; what is compiled is shared."""
    other = copy.copy(self)
    other.cohort = cohort
    return other

  # -- initialization ---------------------------------------------------------

  def model_hp(self):
    """The model's `hp` collection with its default values."""
    if self._model_hp is None:
      def defaults():
        # Only the hp leaves are returned, so the compiler drops the random draws.
        return self.model.init(jax.random.key(0), self.example, train=False).get('hp', {})
      self._model_hp = jax.device_get(jax.jit(defaults)())
    return self._model_hp

  def _stacked_hp(self, members: Sequence[Member]) -> dict:
    return state_lib.stack_hp(members, self.model_hp(), functools.partial(encode, self.model))

  def initial(self, members: Sequence[Member]) -> TrainState:
    """State of `members` at step 0, leaves [members, ...]."""
    hp = self._stacked_hp(members)
    self.compile_initial(len(members))
    return self._init[len(members)].result()(hp, state_lib.seed_keys(members))

  def compile_initial(self, n: int) -> None:
    """Begins to compile the initialization of n members, beside whatever the caller does next.

    XLA compiles on one core; the training call can be compiled meanwhile.
    """
    if n in self._init:
      return
    members = [self.cohort.members[0]] * n
    hp = self._stacked_hp(members)

    def create(args):
      return state_lib.create(self.model, self.tx, self.example, *args)

    # Traced here: what a thread traces would not see this thread's configuration.
    lowered = jax.jit(lambda hp, keys: jax.lax.map(create, (hp, keys))).lower(
        hp, state_lib.seed_keys(members))
    pool = ThreadPoolExecutor(1, 'compile')
    self._init[n] = pool.submit(lowered.compile, compiler_options=compile_options())
    pool.shutdown(wait=False)

  def abstract(self, n: int) -> TrainState:
    """Shapes and dtypes of the state of n members."""
    if self._abstract is None:  # traced once
      hp = self._stacked_hp(self.cohort.members[:1])
      self._abstract = jax.eval_shape(
          lambda hp, key: state_lib.create(self.model, self.tx, self.example, hp, key),
          jax.tree.map(lambda v: v[0], hp), np.zeros(2, np.uint32))
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype), self._abstract)

  def n_parameters(self) -> int:
    """Trainable numbers of one member."""
    return sum(math.prod(s.shape[1:]) for s in jax.tree.leaves(self.abstract(1).params))

  # -- training ---------------------------------------------------------------

  def metric_names(self, arrays) -> tuple[str, ...]:
    """Names of the recorded metrics, in the order of the records' last axis."""
    if self._metric_names:  # asked for again at the first step, where tracing would delay it
      return self._metric_names
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), self.abstract(1))

    def metrics(state, arrays, route, index_b):
      _, loss, details = self._step(state, arrays, route, index_b)
      return {'loss': loss, **details()}

    self._metric_names = tuple(sorted(jax.eval_shape(
        metrics, state, arrays, np.zeros(3, np.int32),
        np.zeros(self.cohort.batch_size, np.int32))))
    return self._metric_names

  def _batch(self, state, arrays, index_b, route):
    """Inputs and targets; floating inputs in the parameters' dtype, in which the models compute."""
    inputs, targets = self.task.batch(arrays, index_b, route[1])
    if jnp.issubdtype(inputs.dtype, jnp.floating):
      inputs = inputs.astype(parameter_dtype(state))
    return inputs, targets

  def _step(self, state, arrays, route, index_b):
    inputs, targets = self._batch(state, arrays, index_b, route)
    return state_lib.train_step(self.model, self.cohort.optimizer, self.tx, self.factor, self.task,
                                state, inputs, targets)

  def _call(self, state, route, arrays, index_skb, slots_k, count, rows):
    """Moves one member by `count` steps; returns its state and records [rows, metrics]."""
    index_kb = index_skb[route[0]]

    def body(k, carry):
      state, records = carry
      state, loss, details = self._step(state, arrays, route, index_kb[k])

      def record(records):
        metrics = {'loss': loss, **details()}
        row = jnp.stack([metrics[name] for name in sorted(metrics)]).astype(records.dtype)
        return jax.lax.dynamic_update_index_in_dim(records, row, slots_k[k], 0)

      return state, jax.lax.cond(slots_k[k] < rows, record, lambda records: records, records)

    names = self.metric_names(arrays)
    records = jnp.zeros((rows, len(names)), parameter_dtype(state))
    return jax.lax.fori_loop(0, count, body, (state, records))

  def compile_call(self, state, arrays, n_streams: int, steps_per_call: int,
                   rows: int) -> TrainingCall:
    """Compiles the training call for a chunk of the size of `state`.

    Args:
      state: of the chunk, or its shapes.
      steps_per_call: the capacity: any count up to it can be run.
      rows: of the records. slots[k] is the row of step k's record, or `rows` where
        the step is not recorded.
    """
    def call(state, routes, arrays, index_skb, slots_k, count):
      def one(args):
        return self._call(*args, arrays, index_skb, slots_k, count, rows)
      if self.batching == 'map':
        return jax.lax.map(one, (state, routes))
      return jax.vmap(lambda s, r: one((s, r)))(state, routes)

    n = len(jax.tree.leaves(state)[0])
    shape = jax.ShapeDtypeStruct
    compiled = jax.jit(call, donate_argnums=0).lower(
        state, shape((n, 3), jnp.int32), arrays,
        shape((n_streams, steps_per_call, self.cohort.batch_size), jnp.int32),
        shape((steps_per_call,), jnp.int32), shape((), jnp.int32)).compile(
            compiler_options=side_by_side_options(self.batching))
    return TrainingCall(compiled, steps_per_call, rows)

  # -- evaluation -------------------------------------------------------------

  def compile_evaluation(self, state, arrays, batches: np.ndarray):
    """Compiles (state, routes, arrays, index [splits, E, B], weights [splits, E, B]) -> sums.

    Sums are {'loss', metrics...: [C, E]}: weighted sums over each batch, so that
    any grouping of batches into data sets is done on the host, in one order.
    """
    def one(args, arrays, index, weights):
      state, route = args
      variables = {'params': state.params, 'hp': state.hp['model'], **state.collections}

      def batch(_, pair):
        index_b, weight_b = pair
        inputs, targets = self._batch(state, arrays, index_b, route)
        logits = self.model.apply(variables, inputs, train=False)
        losses, extra = self.task.losses(logits, targets)
        sums = {k: (v * weight_b).sum() for k, v in {'loss': losses, **extra}.items()}
        return None, sums

      return jax.lax.scan(batch, None, (index[route[2]], weights[route[2]]))[1]

    def call(state, routes, arrays, index, weights):
      if self.batching == 'map':
        return jax.lax.map(lambda a: one(a, arrays, index, weights), (state, routes))
      return jax.vmap(lambda s, r: one((s, r), arrays, index, weights))(state, routes)

    n = len(jax.tree.leaves(state)[0])
    shape = jax.ShapeDtypeStruct
    return jax.jit(call).lower(
        state, shape((n, 3), jnp.int32), arrays, shape(batches.shape, jnp.int32),
        shape(batches.shape, jnp.float32)).compile(
            compiler_options=side_by_side_options(self.batching))


def parameter_dtype(state: TrainState):
  """The dtype that holds all parameters of a state."""
  return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(state.params)))


def call_bytes(compiled) -> int:
  """Memory of one call in bytes, from the compiler: argument + output - alias + temporaries.

  On a CPU the analysis' own peak leaves the temporaries out, so it is not used.
  """
  m = compiled.memory_analysis()
  return (m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
          + m.temp_size_in_bytes)


# -- members <-> chunks --------------------------------------------------------


def pad_members(members: Sequence[Member], chunk: int) -> list[list[Member]]:
  """Cuts members into lists of one size; the last is filled with copies of its first member."""
  parts = [list(members[i:i + chunk]) for i in range(0, len(members), chunk)]
  parts[-1] += [parts[-1][0]] * (chunk - len(parts[-1]))
  return parts


def split_chunks(tree, n: int, chunk: int) -> list:
  """The reverse of join_chunks: leaves [n, ...] to padded chunks of leaves [chunk, ...]."""
  if n == chunk:
    return [tree]
  parts = []
  for start in range(0, n, chunk):
    rows = np.arange(start, start + chunk)
    rows[rows >= n] = start
    parts.append(jax.tree.map(lambda leaf, rows=rows: jnp.asarray(np.asarray(leaf)[rows]), tree))
  return parts


def join_chunks(chunks: list, n: int):
  """Chunks of leaves [chunk, ...] to one tree of leaves [n, ...], the padding dropped."""
  if len(chunks) == 1 and len(jax.tree.leaves(chunks[0])[0]) == n:
    return chunks[0]
  return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(x) for x in leaves])[:n], *chunks)


def evaluation_index(parts: Sequence[np.ndarray], batch_size: int):
  """Example numbers of several sets as whole batches.

  Args:
    parts: int32 example numbers of each set, such as (validation, test).
    batch_size: examples per evaluation batch; the last of a set is filled with
      its first example at weight 0.

  Returns:
    index int32 [E, B], weights float32 [E, B], and the set of each batch int32 [E].
  """
  index, weights, sets = [], [], []
  for number, examples in enumerate(parts):
    for start in range(0, len(examples), batch_size):
      piece = examples[start:start + batch_size]
      fill = batch_size - len(piece)
      index.append(np.concatenate([piece, np.full(fill, examples[0])]).astype(np.int32))
      weights.append(np.concatenate([np.ones(len(piece)), np.zeros(fill)]).astype(np.float32))
      sets.append(number)
  return np.stack(index), np.stack(weights), np.array(sets, np.int32)
