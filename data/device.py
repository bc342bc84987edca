"""Small data: it lies on the device, the host sends only index blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class DeviceFeed:
  """Batches by gathering from arrays that are placed on the device once.

  The batch of stream s at step t is `array[idx[s, t - step]]` for every array.

  Args:
    arrays: name -> array [n, ...], e.g. {'inputs': ..., 'labels': ...}.
    order: has `.block(step, n) -> int32 [S, n, B]`, pure in `step`.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], order: object):
    import jax

    self._arrays = jax.device_put(dict(arrays))
    self._order = order

  def block(self, step: int, n: int) -> tuple[dict, np.ndarray]:
    """The arrays (the same objects at every call) and idx int32 [S, n, B]."""
    return self._arrays, self._order.block(step, n)

  def close(self) -> None:
    """Nothing to release; there so that both feeds are used alike."""
