"""Ratios are medians over rounds taken side by side; the stepper times the real call."""
from __future__ import annotations

import pytest

from model_lib.training import timing
from tests.model_lib.engine import MLP, Engine, images, members


class Clock:
  """Kinds whose cost drifts: every reading is larger than the one before by `drift`."""

  def __init__(self, drift: float):
    self.now, self.drift, self.order = 1.0, drift, []

  def kind(self, name: str, cost: float):
    def run() -> float:
      self.order.append(name)
      self.now *= self.drift
      return cost * self.now
    return run


def test_a_drifting_clock_does_not_move_the_ratios():
  clock = Clock(1.01)
  runs = {'relu': clock.kind('relu', 1.0), 'gelu': clock.kind('gelu', 3.0)}
  found = timing.relative_cost(runs, 'relu', rounds=7)
  assert found['gelu'][1] == pytest.approx(3.03, rel=1e-9)  # one reading of drift, not thirty
  assert found['relu'][1] == pytest.approx(1.01, rel=1e-9)
  assert found['gelu'][0] == pytest.approx(3 * found['relu'][0], rel=0.05)
  # Against the mean of each kind's first readings the drift would show.
  assert clock.now > 1.3


def test_rounds_are_interleaved_and_the_first_is_dropped():
  clock = Clock(1.0)
  readings = iter([100.0, 1.0, 1.0, 1.0])

  def cold() -> float:
    clock.order.append('gelu')
    return next(readings)

  found = timing.relative_cost({'gelu': cold, 'relu': clock.kind('relu', 1.0)}, 'relu', rounds=3)
  assert clock.order == ['relu', 'gelu', 'relu', 'relu'] * 4
  assert found['gelu'] == (1.0, 1.0)


def test_one_slow_round_does_not_move_the_median():
  readings = iter([1.0, 1.0, 50.0, 1.0, 1.0, 1.0])
  found = timing.relative_cost({'a': lambda: next(readings), 'b': lambda: 1.0}, 'b', rounds=5)
  assert found['a'] == (1.0, 1.0)


def test_stepper():
  """It times the training call of any member, again and again, on states of its own."""
  population = Engine(MLP, chunk=1, steps=timing.STEPS, evaluates=False).population
  prepare = timing.stepper(population, images(), 1, 32)
  run, other = prepare(members(2)[0]), prepare(members(2)[1])
  seconds = [run(), other(), run(), run()]
  assert all(1e-7 < s < 1.0 for s in seconds)
