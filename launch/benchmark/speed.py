"""What the engine's training costs against plain jax + optax, and against no writing at all.

Every comparison is interleaved on the same machine, and the slower side is written
as well as we can (`plain.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from launch.benchmark import measure

MEMBERS, STEPS, LONG = 64, 300, 3000
SAMPLE = 8


def population(pairs: int, full: bool = False, members: int = MEMBERS,
               steps: int = STEPS) -> list[dict[str, Any]]:
  """One process for all members against one process per member, imports and compilation included.

  The engine's process loads the data through TFDS, plans, compiles, trains and
  writes its metrics; a plain process reads an .npz file and prints one number. Of
  the plain processes SAMPLE are timed per pair, one after the other, and the time
  is scaled to all; `full` runs all of them once, to confirm the scaling. No side
  has a persistent compilation cache.
  """
  from launch.benchmark import engine
  sample = min(SAMPLE, members)
  with tempfile.TemporaryDirectory() as directory:
    data = Path(directory) / 'digits.npz'
    engine.write_plain_data(data)
    number = 0

    def one() -> float:
      nonlocal number
      number += 1
      return measure.run_child('launch.benchmark.engine', Path(directory) / f'{number}.jsonl',
                               members, steps)[0]

    def apart(count: int) -> float:
      return sum(measure.run_child('launch.benchmark.plain', data, seed, steps)[0]
                 for seed in range(count))

    seconds = measure.interleave(
        {'one': one, 'apart': lambda: apart(sample) * members / sample}, pairs)
    records = [measure.ratio('process per run / population', seconds['apart'], seconds['one'],
                             at_least=20.0, timed=sample, scaled_to=members)]
    if full:
      whole = apart(members)
      alone = one()
      records.append(measure.ratio(f'the same, all {members} processes run', [whole], [alone],
                                   at_least=20.0))
  return records


def _floor(members: int, steps: int, inputs: int):
  """seconds() of the matrix products of all members' steps alone, in one jitted scan per member.

  Forward x W for each layer; backward x^T d for each, and d W^T for all but the first.
  The kernels move by a tiny multiple of x^T d, else the compiler would take the
  products out of the loop.
  """
  import jax
  import numpy as np

  from launch.benchmark import plain
  sizes = (inputs, *plain.WIDTHS, plain.CLASSES)
  rng = np.random.default_rng(0)
  x_bi = jax.device_put(np.float32(rng.standard_normal((plain.BATCH, inputs))))
  kernels = [np.float32(rng.standard_normal((i, o)) / np.sqrt(i))
             for i, o in zip(sizes[:-1], sizes[1:], strict=True)]

  def step(kernels, _):
    layer_inputs = [x_bi]
    for w in kernels:
      layer_inputs.append(layer_inputs[-1] @ w)
    d = layer_inputs.pop()
    moved = []
    for i, (x, w) in reversed(list(enumerate(zip(layer_inputs, kernels, strict=True)))):
      moved.append(w - 1e-9 * (x.T @ d))
      if i:
        d = d @ w.T
    return moved[::-1], None

  call = jax.jit(lambda kernels: jax.lax.scan(step, kernels, None, steps)[0],
                 donate_argnums=0).lower(kernels).compile()

  def seconds() -> float:
    states = [jax.device_put(kernels) for _ in range(members)]
    jax.block_until_ready(states)
    start = time.perf_counter()
    states = [call(state) for state in states]
    jax.block_until_ready(states)
    return time.perf_counter() - start

  macs = plain.BATCH * (3 * sum(i * o for i, o in zip(sizes[:-1], sizes[1:], strict=True))
                        - sizes[0] * sizes[1])
  return seconds, macs


def steps(pairs: int, members: int = MEMBERS, steps: int = STEPS) -> list[dict[str, Any]]:
  """Training alone, without compilation: the population against one compiled step per call.

  The engine's side is the whole training loop (index blocks drawn while it runs,
  metrics written). The other side calls one compiled step per batch, the members
  in turn; its index arrays lie on the device beforehand, its state is donated, and
  it waits for the device once, at the end. Both are also held against the floor:
  the matrix products of all steps alone.
  """
  import jax

  from launch.benchmark import engine
  from launch.benchmark import plain
  from model_lib.training import loop
  from model_lib.training.metrics import MetricsFile
  setting = engine.setup(members, steps)
  data = setting.prepared.constant
  images, labels = data['inputs'], data['labels'][:, 0]
  inputs = images[0].size
  task = setting.prepared.task
  one_step = jax.jit(lambda state, images, labels, index_b: plain.make_step(
      images, labels, task.mean, task.std)(state, index_b), donate_argnums=0)
  block_snb = setting.prepared.feed.block(0, steps)[1]
  index = [[jax.device_put(block_snb[m, s]) for s in range(steps)] for m in range(members)]
  one_step = one_step.lower(plain.initial(0, inputs), images, labels, index[0][0]).compile()
  floor, macs = _floor(members, steps, inputs)

  with tempfile.TemporaryDirectory() as directory:
    metrics = MetricsFile(Path(directory) / 'metrics.jsonl')

    def trained() -> float:
      chunks = loop.initial_chunks(setting.population, setting.plan)
      jax.block_until_ready(chunks)
      start = time.perf_counter()
      jax.block_until_ready(setting.train(chunks, metrics))
      return time.perf_counter() - start

    def stepped() -> float:
      states = [plain.initial(m, inputs) for m in range(members)]
      jax.block_until_ready(states)
      start = time.perf_counter()
      for s in range(steps):
        for m in range(members):
          states[m], _ = one_step(states[m], images, labels, index[m][s])
      jax.block_until_ready(states)
      return time.perf_counter() - start

    kinds = {'stepped': stepped, 'population': trained, 'floor': floor}
    measure.interleave(kinds, 1)  # warms up
    seconds = measure.interleave(kinds, pairs)
    metrics.close()
  total = members * steps
  rate = [macs * total / s / 1e9 for s in seconds['floor']]
  return [
      measure.ratio('one step per call / population', seconds['stepped'], seconds['population'],
                    at_least=1.5, batching=setting.plan.batching, lanes=setting.plan.lanes,
                    chunk=setting.plan.chunk, steps_per_call=setting.plan.steps_per_call),
      measure.ratio('population / matrix products', seconds['population'], seconds['floor']),
      measure.ratio('one step per call / matrix products', seconds['stepped'], seconds['floor']),
      measure.record('multiply-adds per second of the products', rate, '1e9 / s',
                     per_step=macs),
      measure.record('member-step of the population',
                     [s / total * 1e6 for s in seconds['population']], 'us')]


def single(pairs: int) -> list[dict[str, Any]]:
  """One member's call of 100 steps against the same scan written by hand, calls in turn."""
  import jax
  import numpy as np

  from launch.benchmark import engine
  from launch.benchmark import plain
  k = plain.STEPS_PER_CALL
  setting = engine.setup(1, k, steps_per_call=k)
  arrays = setting.prepared.constant
  images, labels = arrays['inputs'], arrays['labels'][:, 0]
  task = setting.prepared.task
  state = setting.population.initial(setting.population.cohort.members)
  hand_state = plain.initial(0, images[0].size)
  (routes,), index, slots = setting.inputs_of_call(k)
  index_kb = index[0]
  hand = plain.make_scan(task.mean, task.std).lower(hand_state, images, labels, index_kb).compile()

  def through_engine() -> float:
    nonlocal state
    start = time.perf_counter()
    state, _ = setting.call(state, routes, arrays, index, slots, np.int32(k))
    jax.block_until_ready(state)
    return time.perf_counter() - start

  def by_hand() -> float:
    nonlocal hand_state
    start = time.perf_counter()
    hand_state, _ = hand(hand_state, images, labels, index_kb)
    jax.block_until_ready(hand_state)
    return time.perf_counter() - start

  kinds = {'engine': through_engine, 'hand': by_hand}
  measure.interleave(kinds, 5)
  seconds = measure.interleave(kinds, pairs)
  return [measure.ratio('one member, engine / by hand', seconds['engine'], seconds['hand'],
                        at_most=1.05, steps_per_call=k)]


@dataclasses.dataclass
class _Clock:
  """Cuts the wall time of a training loop into its calls and the gaps between them.

  Attributes:
    calls: seconds from a call's dispatch until the loop has its result.
    gap: seconds of everything else, since the last cut.
  """

  last: float
  dispatched: float | None = None
  gap: float = 0.0
  calls: list[float] = dataclasses.field(default_factory=list)
  _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def dispatch(self) -> None:
    """A call is about to be sent; a round over several chunks counts from its first."""
    with self._lock:  # the chunks of a round are sent from several threads
      if self.dispatched is None:
        self.dispatched = time.perf_counter()
        self.gap += self.dispatched - self.last

  def ready(self) -> None:
    """The results are there."""
    self.last = time.perf_counter()
    self.calls.append(self.last - self.dispatched)
    self.dispatched = None


def overhead(pairs: int, members: int = MEMBERS, steps: int = LONG) -> list[dict[str, Any]]:
  """Share of a population's wall time that is not the compiled program.

  Metrics every 25 steps go to metrics.jsonl and TensorBoard, progress to
  status.json; the time runs from the end of compilation to the last fsync. The
  share is that of the gaps, in which no compiled call runs and the device idles.

  Most of the host's work is done while a call runs. What that costs the calls is
  shown beside it: after each call of the loop a bare call runs, the same program
  and steps on a state of its own with nothing to draw or write (its time is taken
  out of the loop's), and the pair's difference is a share of the call. It is a
  difference of long times: on a busy machine its quartiles lie far apart, and the
  CPU time of the loop's own thread still tells what the host does.
  """
  import jax
  import numpy as np

  from launch.benchmark import engine
  from launch.study.event_sink import EventSink
  from launch.study.progress import Progress
  from launch.study.workdir import Workdir
  from model_lib.training import loop
  from model_lib.training.lanes import Lanes
  from model_lib.training.metrics import MetricsFile
  setting = engine.setup(members, steps)
  plan, arrays = setting.plan, setting.prepared.constant
  k = plan.steps_per_call
  parts, index, slots = setting.inputs_of_call(k)
  own = loop.initial_chunks(setting.population, plan)

  bare_lanes = Lanes(plan.lanes)

  def bare(count: int) -> float:
    start = time.perf_counter()
    results = bare_lanes.start([
        functools.partial(setting.call, chunk, part, arrays, index, slots, np.int32(count))
        for chunk, part in zip(own, parts, strict=True)])()
    own[:] = [state for state, _ in results]
    return time.perf_counter() - start

  gaps, differences, walls, shares, host = [], [], [], [], []
  bare(k)
  for _ in range(pairs):
    with tempfile.TemporaryDirectory() as directory:
      workdir = Workdir(directory)
      metrics = MetricsFile(workdir.metrics)
      events = EventSink(workdir.tensorboard)
      progress = Progress(workdir, engine.RUN, '1/1', members, 0, steps, 30.0)
      chunks = loop.initial_chunks(setting.population, plan)
      jax.block_until_ready(chunks)
      neighbours = []
      done, bare_cpu = 0, 0.0
      clock, cpu = _Clock(time.perf_counter()), time.thread_time()

      def timed(*args, clock=clock):
        clock.dispatch()
        return setting.call(*args)

      def after(step, losses, clock=clock, progress=progress, neighbours=neighbours):
        nonlocal done, bare_cpu
        clock.ready()
        progress(step, losses)
        start, start_cpu = time.perf_counter(), time.thread_time()
        neighbours.append(bare(step - done))
        bare_cpu += time.thread_time() - start_cpu
        clock.last += time.perf_counter() - start
        done = step

      setting.train(chunks, metrics, [events], after,
                    dataclasses.replace(setting.call, compiled=timed))
      metrics.sync()
      clock.gap += time.perf_counter() - clock.last
      host.append(time.thread_time() - cpu - bare_cpu)
      progress.close()
      events.close()
      metrics.close()
    own_time = [c - b for c, b in zip(clock.calls, neighbours, strict=True)]
    wall = sum(clock.calls) + clock.gap
    gaps.append(clock.gap)
    walls.append(wall)
    differences += own_time
    shares += [difference / call for difference, call in zip(own_time, clock.calls, strict=True)]
  return [
      measure.record('outside of the compiled program', [
          100 * g / w for g, w in zip(gaps, walls, strict=True)], '% of wall', at_most=2.0,
                     wall_s=walls, gaps_s=gaps),
      measure.record('calls longer than bare ones', [100 * s for s in shares], '% of a call',
                     difference_ms=[1e3 * d for d in measure.quartiles(differences)]),
      measure.record("CPU time of the loop's thread", [
          100 * h / w for h, w in zip(host, walls, strict=True)], '% of wall')]
