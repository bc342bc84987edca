"""Calls side by side: their number, their order, their errors."""
from __future__ import annotations

import threading
import time

import jax.numpy as jnp
import pytest

from model_lib.training.lanes import Lanes


@pytest.mark.parametrize('n', [1, 2, 3])
def test_results_come_in_the_order_of_the_calls(n):
  def call(i):
    time.sleep(0.01 * (5 - i))  # the last one is done first
    return jnp.asarray(i)
  with Lanes(n) as lanes:
    finish = lanes.start([lambda i=i: call(i) for i in range(5)])
    assert [int(x) for x in finish()] == list(range(5))


def test_as_many_at_a_time_as_there_are_lanes():
  running, most, lock = 0, 0, threading.Lock()

  def call():
    nonlocal running, most
    with lock:
      running += 1
      most = max(most, running)
    time.sleep(0.05)
    with lock:
      running -= 1
    return jnp.zeros(())

  for n in (1, 2, 3):
    most = 0
    with Lanes(n) as lanes:
      lanes.start([call] * 7)()
    assert most == n


@pytest.mark.parametrize('n', [1, 2])
def test_an_error_of_a_call_is_raised(n):
  def fails():
    raise RuntimeError('a call failed')
  with Lanes(n) as lanes, pytest.raises(RuntimeError, match='a call failed'):
    lanes.start([lambda: jnp.zeros(()), fails])()
