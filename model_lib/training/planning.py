"""Batching, chunk and steps per call of a cohort: decided once, before step 0.

Under vmap the chunk is part of the bits, and no decision that rests on free
memory or on a clock can be repeated. So a plan is made once, written down by the
caller, and used as it stands when the run is resumed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import math
import os
import time

import jax
import numpy as np

from model_lib.models.candidate import encode_ahead
from model_lib.training import population as population_lib
from model_lib.training.population import Population

MAX_STEPS_PER_CALL = 100
# With room for a single step, XLA removes the axis of the steps and writes a program of other bits.
MIN_CAPACITY = 2
INDEX_BLOCK_BYTES = 64 * 2**20
CALL_SECONDS = 1.5
# Members of a cohort differ in cost; more chunks than lanes let the lanes end together.
CHUNKS_PER_LANE = 4
# With a single member XLA removes the loop over the members; a chunk of our choice has two.
MIN_CHUNK = 2


@dataclasses.dataclass(frozen=True)
class Plan:
  """The engine's decisions for one cohort.

  Attributes:
    batching: 'map' or 'vmap'.
    chunk: members per call.
    steps_per_call: K; calls begin at its multiples.
    capacity: steps that the compiled call has room for, at least K. It is part of the
      program, so it is kept for a resume, which must not compile another one.
    estimate_mib: memory of one call by the compiler (arguments + outputs -
      aliases + temporaries) plus the state of the chunks that wait meanwhile.
    limit_mib: what it was held against.
    state_mib_per_member: parameters, optimizer state, swept numbers.
    lanes: chunks that are computed side by side; no part of the bits.
  """

  batching: str
  chunk: int
  steps_per_call: int
  capacity: int
  estimate_mib: float
  limit_mib: float
  state_mib_per_member: float
  lanes: int = 1


def default_limit_mib() -> float:
  """Half of the memory that is free now: the device's where it tells, else the host's."""
  stats = jax.devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return 0.5 * (stats['bytes_limit'] - stats['bytes_in_use']) / 2**20
  with open('/proc/meminfo', encoding='ascii') as f:
    fields = dict(line.split(':', 1) for line in f)
  return 0.5 * int(fields['MemAvailable'].split()[0]) / 1024


def default_batching() -> str:
  """'map' on a CPU, where a member's bits then depend on no other; 'vmap' elsewhere."""
  return 'map' if jax.default_backend() == 'cpu' else 'vmap'


def default_lanes(batching: str) -> int:
  """As many chunks side by side as XLA's thread pool has threads, under 'map' on a CPU; else 1.

  The pool has the size of the variable NPROC, or as many threads as cores may be used.
  """
  if batching != 'map' or jax.default_backend() != 'cpu':
    return 1
  return int(os.environ.get('NPROC') or len(os.sched_getaffinity(0)))


def record_rows(steps_per_call: int, log_every: int, last: int = 0) -> int:
  """Rows that the records of one call need: its multiples of log_every, and the `last` steps."""
  return math.ceil(steps_per_call / log_every) + max(1, min(last, steps_per_call))


def largest_call(steps: int, n_streams: int, batch_size: int) -> int:
  """Most steps per call: the index block [streams, K, B] must stay small."""
  return max(1, min(steps, MAX_STEPS_PER_CALL,
                    INDEX_BLOCK_BYTES // (4 * n_streams * batch_size)))


def even_chunk(n: int, chunk: int) -> int:
  """The smallest chunk that needs no more calls than `chunk` does for n members."""
  return math.ceil(n / math.ceil(n / max(1, min(chunk, n))))


def decide(population: Population, arrays, n_streams: int, *, chunk: int = 0,
           steps_per_call: int = 0, limit_mib: float = 0, log_every: int = 25, lanes: int = 0):
  """Makes the plan of a cohort; a setting of 0 is decided here.

  The chunk is the largest whose estimated memory stays under the limit, and where chunks
  run side by side at most a CHUNKS_PER_LANE-th of a lane's members; the steps per call
  follow from a timed call on a copy of the state, which is thrown away, so that one round
  over all chunks lasts at most about CALL_SECONDS.

  Args:
    population: of the cohort.
    arrays: device arrays of the task.
    n_streams: rows of the index block.

  Returns:
    (plan, the compiled call, whose capacity may exceed the plan's steps per call).
  """
  cohort = population.cohort
  n = len(cohort.members)
  abstract = population.abstract(1)
  state_mib = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(abstract)) / 2**20
  limit = limit_mib or default_limit_mib()
  largest = steps_per_call or largest_call(cohort.steps, n_streams, cohort.batch_size)
  capacity = max(MIN_CAPACITY, largest)
  rows = record_rows(capacity, log_every, cohort.last_steps)
  lanes = min(n, lanes or default_lanes(population.batching))
  # The state that waits outside of the calls is counted as well, hence the members' sum.
  most = int(max(1, (limit - n * state_mib) // (2.3 * state_mib * lanes)))
  if lanes > 1:
    most = min(most, max(MIN_CHUNK, math.ceil(n / (lanes * CHUNKS_PER_LANE))))
  size = min(chunk, n) if chunk else even_chunk(n, most)
  while True:
    if not steps_per_call:
      population.compile_initial(size)  # for the timed call; beside the call's own compilation
    with ThreadPoolExecutor(1, 'encode') as pool:  # XLA compiles without Python's lock
      encoded = pool.submit(encode_ahead, population.model, [m.hp for m in cohort.members])
      compiled = population.compile_call(population.abstract(size), arrays, n_streams, capacity,
                                         rows)
    encoded.result()  # raises what it raised
    chunks = math.ceil(n / size)
    running = min(lanes, chunks)
    estimate = (running * population_lib.call_bytes(compiled) / 2**20
                + (chunks - running) * size * state_mib)
    if chunk or estimate <= limit or size == 1:
      break
    size = even_chunk(n, max(1, min(size - 1, int(size * limit / estimate))))
  if not steps_per_call:
    steps_per_call = timed_steps(population, compiled, arrays, n_streams, largest, size,
                                 math.ceil(chunks / running))
  plan = Plan(population.batching, size, steps_per_call, capacity, round(estimate, 3),
              round(limit, 3), round(state_mib, 6), running)
  return plan, compiled


def timed_steps(population, compiled, arrays, n_streams, largest, size, calls) -> int:
  """Steps per call so that `calls` calls in a row last at most about CALL_SECONDS."""
  members = population_lib.pad_members(population.cohort.members, size)[0]
  state = population.initial(members)
  routes, index, slots = jax.device_put((
      np.zeros((size, 3), np.int32),
      np.zeros((n_streams, compiled.capacity, population.cohort.batch_size), np.int32),
      np.full(compiled.capacity, compiled.rows, np.int32)))
  seconds = []
  for _ in range(2):  # the first call also pays for first use
    start = time.perf_counter()
    state, _ = compiled(state, routes, arrays, index, slots, np.int32(1))
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - start)
  return int(max(1, min(largest, CALL_SECONDS // (min(seconds) * calls))))
