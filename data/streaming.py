"""Large data: batches are read from ArrayRecord files through Grain, ahead of their use."""

from __future__ import annotations

import os
import threading

import grain
import numpy as np

from data.builders import Records
from data.load import prepared_directory

_END = 2**31 - 1  # steps; an order wraps around, so a stream has no end of its own


class ImageSource:
  """The examples of a prepared image dataset on disk, numbered as `load` numbers them."""

  def __init__(self, name: str, data_dir: str | os.PathLike[str] | None = None):
    self._records = Records(prepared_directory(name, data_dir))
    if self._records.metadata['kind'] != 'images':
      raise ValueError(f'{name}: tokens are not streamed, load() keeps them in memory')

  def __len__(self) -> int:
    return len(self._records)

  def gather(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """{'inputs': uint8 [m, ...], 'labels': int32 [m]} of the examples `numbers` [m]."""
    examples = self._records.read(numbers)
    return {
        'inputs': np.stack([image for image, _ in examples]),
        'labels': np.asarray([label for _, label in examples], np.int32)}


class StreamFeed:
  """Batches read from a source; gathers the same examples as `DeviceFeed`.

  A Grain dataset over step numbers reads the batch of each step; its threads run ahead of
  the training by `prefetch` steps. A call that does not continue the one before starts the
  stream again at its step, which costs one pipeline fill and nothing else.

  Args:
    source: has `gather(numbers [m]) -> dict of arrays [m, ...]`, called from threads.
    order: has `.block(step, n) -> int32 [S, n, B]`, pure in `step`; called from the
      threads, one at a time.
    threads: reading threads.
    prefetch: steps read ahead; they cost prefetch * S * B examples of memory.
  """

  def __init__(self, source: object, order: object, threads: int = 2, prefetch: int = 4):
    self._source = source
    self._order = order
    self._options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    self._lock = threading.Lock()
    self._iterator = None
    self._next = -1

  def block(self, step: int, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The examples of steps [step, step + n), and where each batch lies in them.

    Returns:
      (arrays, idx): arrays of [S * n * B, ...] in the order of the streams, then of the
      steps, then of the batch; idx int32 [S, n, B] counts through them.
    """
    if self._iterator is None or step != self._next:
      self.close()
      self._iterator = iter(
          grain.MapDataset.range(step, _END).map(self._fetch).to_iter_dataset(self._options))
    batches = [next(self._iterator) for _ in range(n)]
    self._next = step + n
    shape = batches[0][0]
    arrays = {}
    for key in batches[0][1]:
      parts = [batch[1][key].reshape(*shape, *batch[1][key].shape[1:]) for batch in batches]
      array = np.stack(parts, axis=1)
      arrays[key] = array.reshape(-1, *array.shape[3:])
    streams, size = shape
    idx = np.arange(streams * n * size, dtype=np.int32).reshape(streams, n, size)
    return arrays, idx

  def _fetch(self, step: int) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
    with self._lock:
      numbers = np.asarray(self._order.block(int(step), 1))[:, 0]
    return numbers.shape, self._source.gather(numbers.reshape(-1))

  def close(self) -> None:
    """Stops the reading threads; the feed can be used again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None
