"""Calls side by side: the chunks of a population on the cores of one CPU.

A member's small matrix products keep one core busy, and the calls that one thread
sends to the CPU run one after the other. Calls from several threads run side by side.
The program is the same and so are the bits; only the order in time differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax

T = TypeVar('T')


class Lanes:
  """Runs calls of compiled programs, at most `n` at a time.

  With one lane the caller's own thread sends the calls, and JAX's asynchronous dispatch lets it
  go on meanwhile, as an accelerator wants it.
  """

  def __init__(self, n: int):
    self._pool = ThreadPoolExecutor(n, 'lane') if n > 1 else None

  def __enter__(self) -> Lanes:
    return self

  def __exit__(self, *exception) -> None:
    if self._pool:
      self._pool.shutdown()

  def start(self, calls: Sequence[Callable[[], T]]) -> Callable[[], list[T]]:
    """Sends the calls; returns the function that waits for their results, in the calls' order.

    A call that fails raises its error there.
    """
    if self._pool is None:
      results = [call() for call in calls]
      return lambda: jax.block_until_ready(results)
    futures: list[Future] = [
        self._pool.submit(lambda call=call: jax.block_until_ready(call())) for call in calls]
    return lambda: [future.result() for future in futures]
