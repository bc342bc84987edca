"""A function of a batch over many sequences, with one compilation; and of many networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from model_lib.errors import UserError
from model_lib.training.planning import default_batching, default_lanes


def in_batches(function: Callable[..., Any], arrays: Any, batch: int) -> Any:
  """What `function` gives for each sequence, on the host.

  The last batch is filled up with copies of its last sequence, whose results are dropped, so that
  a jitted function sees one shape.

  Args:
    function: tree of arrays [batch, ...] -> tree of arrays [batch, ...]; a sequence's result does
      not depend on its neighbours.
    arrays: tree of arrays [N, ...].
    batch: sequences of one call; N where there are fewer.

  Returns:
    The tree of numpy arrays [N, ...].

  Raises:
    UserError: no sequences, or a batch below 1.
  """
  arrays = jax.tree.map(np.asarray, arrays)
  count = len(jax.tree.leaves(arrays)[0])
  if not count or batch < 1:
    raise UserError(f'{count} sequences in batches of {batch}: both must be at least 1')
  batch = min(batch, count)
  rows = np.minimum(np.arange(-(-count // batch) * batch), count - 1)
  parts = [
    jax.tree.map(np.asarray, function(jax.tree.map(lambda x: x[block], arrays)))
    for block in rows.reshape(-1, batch)]
  return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)


def side_by_side(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
  """What `function` gives for each item, in their order.

  The first alone, since it compiles; of the others on a CPU as many at a time as XLA has threads,
  which a small network does not keep busy alone. A setting of jax that belongs to a thread must be
  made in the function.
  """
  found = [function(item) for item in items[:1]]
  with ThreadPoolExecutor(default_lanes(default_batching())) as pool:
    return found + list(pool.map(function, items[1:]))
