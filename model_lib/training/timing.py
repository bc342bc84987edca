"""Cost of one training step, by kind of member, as ratios taken side by side.

The clock of a shared machine drifts, so the kinds are timed in turn, several
rounds long, and each round's ratio to the reference of the same round is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from model_lib.training.cohort import Member
from model_lib.training.population import Population

COPIES = 4
STEPS = 25
ROUNDS = 5


def stepper(population: Population, arrays, n_streams: int, batch_size: int):
  """A compiled call for COPIES members and a function that times a kind of member in it.

  Returns:
    prepare(member) -> run() -> seconds per member and step.
  """
  compiled = population.compile_call(population.abstract(COPIES), arrays, n_streams, STEPS, 1)
  index = np.zeros((n_streams, STEPS, batch_size), np.int32)
  index[:] = np.arange(STEPS * batch_size).reshape(STEPS, batch_size) % len(arrays['inputs'])
  index = jax.device_put(index)
  routes = np.zeros((COPIES, 3), np.int32)
  slots = np.full(STEPS, 1, np.int32)

  def prepare(member: Member) -> Callable[[], float]:
    state = population.initial([member] * COPIES)

    def run() -> float:
      nonlocal state
      start = time.perf_counter()
      state, _ = compiled(state, routes, arrays, index, slots, np.int32(STEPS))
      jax.block_until_ready(state)
      return (time.perf_counter() - start) / (COPIES * STEPS)

    return run

  return prepare


def steps_per_kind(rounds: int = ROUNDS) -> int:
  """Member-steps of `relative_cost` for each kind: its own, and as many of the reference."""
  return 2 * (rounds + 1) * COPIES * STEPS


def relative_cost(runs: Mapping[str, Callable[[], float]], reference: str,
                  rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
  """{kind: (median seconds per step, median over rounds of its ratio to the reference)}.

  Each round times every kind and, right beside it, the reference.
  """
  seconds: dict[str, list[float]] = {k: [] for k in runs}
  ratios: dict[str, list[float]] = {k: [] for k in runs}
  for round_number in range(rounds + 1):
    for kind, run in runs.items():
      base, own = runs[reference](), run()
      if round_number:  # the first round warms up
        seconds[kind].append(own)
        ratios[kind].append(own / base)
  return {k: (float(np.median(seconds[k])), float(np.median(ratios[k]))) for k in runs}
