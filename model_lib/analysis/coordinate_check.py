"""The coordinate check: how far a network's tensors move in its first steps, over several sizes.

z_t is a tensor of the forward pass on one fixed batch after t optimizer steps on that batch. What
is compared is the move z_t - z_0, whose root mean square does not depend on the size (width, or
number of blocks) under a parametrization that transfers. The values themselves are no test: z_0 is
the initialization's and hides a wrong learning rate. The slope of a tensor is that of

  log2 rms(z_t - z_0)  over  log2 size,

one per seed, by least squares through the largest sizes. `coordinate_rules` says what they must be.

  traces = []
  for width in (64, 128, 256, 512):
    model, base, delta = build(width)  # any Linen modules; base and delta as of `label_parameters`
    program = Program(Parametrized(model, base, delta, row=row), task, inputs, targets)
    traces.append(program.trace(width, rate=2**-10))
  found = slopes(traces)

Source: Yang et al. 2022, arXiv:2203.03466, appendix D.1, which shows the mean of |z_t|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis import statistics
from model_lib.analysis.probes import residual_stream
from model_lib.errors import UserError
from model_lib.models.attention import Attention
from model_lib.models.parametrized import Parametrized
from model_lib.models.recording import CALL, record_calls
from model_lib.parametrization.label import Label
from model_lib.training import state as state_lib
from model_lib.training.cohort import OptimizerSpec
from model_lib.training.population import compile_options

LOGITS = 'logits'
STREAM = {'stream start': 0.0, 'stream 1/4': 0.25, 'stream 1/2': 0.5, 'stream 3/4': 0.75,
          'stream end': 1.0}
ROLES = ('input', 'hidden', 'feature', 'attention', LOGITS)
UPPER = 4  # sizes, from the largest, that a slope goes through
_QUERIES = '_normalized'  # the method of Attention that gives queries, keys and their factor


class Trace(NamedTuple):
  """The first steps of one size.

  Attributes:
    size: width or number of blocks.
    rms, move_rms, move_l1: tensor -> [seeds, steps + 1], at entry t the rms of z_t, and the rms and
      the mean absolute value of z_t - z_0.
    loss: [seeds, steps + 1], of the fixed batch.
  """

  size: int
  rms: dict[str, np.ndarray]
  move_rms: dict[str, np.ndarray]
  move_l1: dict[str, np.ndarray]
  loss: np.ndarray


class Slope(NamedTuple):
  """How a tensor's move after `step` steps changes with the size.

  Attributes:
    tensor: path of the module whose output it is; '/logits' behind it for q.k of an attention.
    role: one of ROLES.
    step: t.
    slope: mean over seeds, and its interval; nan where a seed's move is 0 or not finite.
    sizes, moves: all sizes, and the mean over seeds of rms(z_t - z_0) at each.
  """

  tensor: str
  role: str
  step: int
  slope: statistics.Interval
  sizes: tuple[int, ...]
  moves: tuple[float, ...]


class Program:
  """The first steps of one model of one size, compiled once for all seeds, rates and rows.

  Args:
    model: called as `model.apply(variables, x, train=...)`; to be judged as a parametrization, a
      `Parametrized`.
    task: its `losses(output, targets)` gives the losses of the examples.
    inputs, targets: the fixed batch.
    optimizer: its schedule is not read: the rate is constant.
    steps: number of steps.
    axis: 'width': the output of every module, and queries times keys. 'depth', where the modules
      differ between sizes: the residual stream at STREAM's places. Always the model's output.
    batching: of the seeds, 'map' or 'vmap'; '' for map on a CPU.
    compiled: where programs are kept by what they compute, for rows that differ in numbers alone.
  """

  def __init__(self, model, task, inputs, targets, optimizer: OptimizerSpec = OptimizerSpec(),
               steps: int = 8, axis: str = 'width', batching: str = '',
               compiled: dict[str, Any] | None = None):
    if axis not in ('width', 'depth'):
      raise UserError(f"axis is {axis!r}; it must be 'width' or 'depth'")
    self.model, self.task, self.optimizer = model, task, optimizer
    self.steps, self.axis = steps, axis
    self._batch = np.asarray(inputs), np.asarray(targets)
    labels = model.labels(inputs, train=False) if isinstance(model, Parametrized) else None
    self._tx = state_lib.direction(optimizer, labels)
    self._batching = batching or ('map' if jax.default_backend() == 'cpu' else 'vmap')
    self._compiled = {} if compiled is None else compiled
    self._of_seeds: dict[int, Any] = {}

  def numbers(self, model=None) -> Mapping:
    """The model's `hp` with its default values; of another parametrization of it, that one's."""
    def defaults():
      # Only the hp leaves are returned, so the compiler drops the random draws.
      made = (model or self.model).init(jax.random.key(0), self._batch[0], train=False)
      return made.get('hp', {})

    return jax.device_get(jax.jit(defaults)())

  def trace(self, size: int, rate: float, seeds: Sequence[int] = (0, 1, 2),
            numbers: Mapping | None = None) -> Trace:
    """Trains every seed.

    Args:
      size: what the trace says of itself.
      rate: learning rate.
      seeds: of the initialization.
      numbers: the model's `hp`; None: `numbers()`.
    """
    hp = {'optimizer': {'learning_rate': np.float32(rate), 'weight_decay': np.float32(0)},
          'model': self.numbers() if numbers is None else numbers}
    keys = np.stack([np.zeros(len(seeds)), seeds], 1).astype(np.uint32)
    arguments = hp, keys, *self._batch
    if len(seeds) not in self._of_seeds:
      lowered = jax.jit(self._seeds).lower(*arguments)
      text = f'{jax.tree.structure(arguments)}\n{lowered.as_text()}'
      key = hashlib.sha256(text.encode()).hexdigest()
      if key not in self._compiled:  # without optimization, since it runs but a few steps
        self._compiled[key] = lowered.compile(compile_options())
      self._of_seeds[len(seeds)] = self._compiled[key]
    found, loss = jax.device_get(self._of_seeds[len(seeds)](*arguments))
    return Trace(size, *({name: three[i] for name, three in found.items()} for i in range(3)), loss)

  def _seeds(self, hp, keys, inputs, targets):
    def one(key):
      return self._one(hp, key, inputs, targets)

    return jax.lax.map(one, keys) if self._batching == 'map' else jax.vmap(one)(keys)

  def _one(self, hp, key, inputs, targets):
    state = state_lib.create(self.model, self._tx, inputs, hp, key)

    def step(carry, t):
      state, start = carry
      now = self._tensors(state, inputs)
      # The first pass gives z_0: a pass of its own before the scan would be compiled once more.
      start = jax.tree.map(lambda z, z0: jnp.where(t == 0, z, z0), now, start)
      sizes = {name: (_rms(z), _rms(z - start[name]), jnp.mean(jnp.abs(z - start[name])))
               for name, z in now.items()}
      state, loss, _ = state_lib.train_step(
        self.model, self.optimizer, self._tx, lambda step: 1.0, self.task, state, inputs, targets)
      return (state, start), (sizes, loss)

    shapes = jax.eval_shape(lambda: self._tensors(state, inputs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(step, (state, zeros), jnp.arange(self.steps + 1))[1]

  def _tensors(self, state, inputs) -> dict[str, jax.Array]:
    variables = {'params': state.params, 'hp': state.hp['model'], **state.collections}
    read = by_module if self.axis == 'width' else by_depth
    return {name: z.astype(jnp.promote_types(z.dtype, jnp.float32))
            for name, z in read(self.model, variables, inputs).items()}


def by_module(model, variables: Mapping, inputs) -> dict[str, jax.Array]:
  """Path -> output of every call of a module that gives floating-point numbers of its own.

  With '/logits' behind the path of an attention: queries times keys, [B, H, T, T], of hidden
  positions too. The model's output is 'logits'.
  """
  output, calls, _ = _recorded(model, variables, inputs, (CALL, _QUERIES))
  found: dict[str, jax.Array] = {}
  for call in calls:
    if call.method == _QUERIES:
      if isinstance(call.module, Attention):
        q, k, factor = call.output
        found[f'{call.site}/{LOGITS}'] = jnp.einsum('bthd,bshd->bhts', q, k) * factor
      continue
    z = call.array
    if z is None or z is output or not jnp.issubdtype(z.dtype, jnp.floating):
      continue
    same = [name for name, other in found.items() if other is z]
    if same and any(z is given for given in call.inputs):
      continue  # it gives back what it got, like the norm 'none'
    for name in same:  # what a module returns as another gave it has the name of the inner one
      del found[name]
    found[call.site] = z
  return {**found, LOGITS: output}


def by_depth(model, variables: Mapping, inputs) -> dict[str, jax.Array]:
  """STREAM -> the residual stream there, and the model's output.

  The stream is what the model sows into `intermediates` as 'stream' [L + 1, ...], or else what
  the sublayers of a `models.residual.Stack` read.

  Raises:
    UserError: the model has no stream.
  """
  output, calls, sown = _recorded(model, variables, inputs, (CALL,))
  stream = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(sown)
            if any(getattr(key, 'key', None) == 'stream' for key in path)]
  points = stream[0] if stream else [z for _, z in residual_stream(calls)]
  if len(points) < 2:
    raise UserError('the depth check needs a residual stream: a models.residual.Stack, or an array '
                    "[L + 1, ...] that the model sows into 'intermediates' as 'stream'")
  return {**{name: points[round(share * (len(points) - 1))] for name, share in STREAM.items()},
          LOGITS: output}


def _recorded(model, variables, inputs, methods):
  # Norms with a state normalize by the batch in training; their changes are dropped.
  state = [name for name in variables if name not in ('params', 'hp')]
  (output, updated), calls = record_calls(
    lambda: model.apply(variables, inputs, train=bool(state),
                        mutable=[*state, 'intermediates']), methods)
  return output, calls, updated.get('intermediates', {})


def _rms(z: jax.Array) -> jax.Array:
  largest = jnp.max(jnp.abs(z))  # squares of a stream that grows with depth would overflow
  scale = jnp.where(largest > 0, largest, 1.0)
  return scale * jnp.sqrt(jnp.mean(jnp.square(z / scale)))


def roles(labels: Mapping[str, Label], tensors: Sequence[str]) -> dict[str, str]:
  """Tensor -> role, by the matrices that the module has of its own.

  'hidden' and 'input': of kernels and tables of that kind. LOGITS: the model's output, and what an
  output kernel gives. 'attention': queries times keys. 'feature': all others.
  """
  kinds: dict[str, set[str]] = {}
  for path, label in labels.items():
    if len(label.shape) >= 2:
      kinds.setdefault(path.rpartition('/')[0], set()).add(label.kind)
  found = {}
  for tensor in tensors:
    own = kinds.get(tensor.partition('#')[0], set())
    kind = own.pop() if len(own) == 1 else ''
    found[tensor] = (LOGITS if tensor == LOGITS or kind == 'output' else
                     'attention' if tensor.endswith(f'/{LOGITS}') else
                     kind if kind in ('input', 'hidden') else 'feature')
  return found


def slopes(traces: Sequence[Trace], role: Mapping[str, str] | None = None, upper: int = UPPER,
           ) -> list[Slope]:
  """The slopes of the tensors that all sizes have, of every step from 1.

  Args:
    traces: one per size, with the same seeds.
    role: tensor -> role; None: all but the output are features.
    upper: number of sizes, from the largest, that they go through.

  Raises:
    UserError: fewer than two sizes.
  """
  traces = sorted(traces, key=lambda trace: trace.size)
  if len({trace.size for trace in traces}) < 2:
    raise UserError('a slope needs at least two sizes')
  last = traces[-upper:]
  sizes = np.log2([trace.size for trace in last])
  names = [name for name in traces[-1].rms if all(name in trace.rms for trace in traces)]
  found = []
  for name in names:
    moves = np.stack([trace.move_rms[name] for trace in traces])  # [sizes, seeds, steps + 1]
    for step in range(1, moves.shape[-1]):
      with np.errstate(divide='ignore', invalid='ignore'):
        heights = np.log2(moves[-len(last):, :, step].astype(np.float64))
      each = [_slope(sizes, column) for column in heights.T]
      own = LOGITS if name == LOGITS else (role or {}).get(name, 'feature')
      found.append(Slope(name, own, step, statistics.mean_interval(each),
                         tuple(trace.size for trace in traces),
                         tuple(float(m) for m in moves[:, :, step].mean(1))))
  return found


def _slope(x: np.ndarray, y: np.ndarray) -> float:
  if not np.isfinite(y).all():
    return math.nan
  x = x - x.mean()
  return float((x * y).sum() / (x * x).sum())
