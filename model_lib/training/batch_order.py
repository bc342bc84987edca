"""Which examples make the batch of step s: a pure function of (seed, s).

A stream is a seed with the numbers of its examples. Epoch e visits them in the
order of a Philox(key = (seed, e)) permutation; the epochs follow one another
without a gap, so a batch may end one epoch and begin the next, every example is
seen equally often, and a batch larger than an epoch is no special case. Batch s
is the stretch [s * B, (s + 1) * B) of that endless sequence. Resuming needs the
step number alone, and the number of steps asked for at a time does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BatchOrder:
  """Index blocks for several streams at once."""

  def __init__(self, streams: Sequence[tuple[int, np.ndarray]], batch_size: int):
    """Args:
      streams: (seed, example numbers int32 [n > 0]) of each stream.
      batch_size: B, examples per step.
    """
    if batch_size < 1:
      raise ValueError(f'batch_size is {batch_size}; it must be at least 1')
    for seed, examples in streams:
      if seed < 0 or len(examples) == 0:
        raise ValueError(f'a stream needs a seed >= 0 and examples; got {seed}, {len(examples)}')
    self._streams = [(int(s), np.asarray(e, np.int32)) for s, e in streams]
    self.batch_size = batch_size
    self._epochs: dict[int, tuple[int, np.ndarray]] = {}
    # One generator, set back for each epoch: making one costs half of a permutation.
    self._bits = np.random.Philox(key=[0, 0])
    self._fresh = self._bits.state
    self._rng = np.random.Generator(self._bits)

  def __len__(self) -> int:
    return len(self._streams)

  def _epoch(self, stream: int, epoch: int) -> np.ndarray:
    """Order of one epoch, int32 [n]; the last one of each stream is kept."""
    kept = self._epochs.get(stream)
    if kept is None or kept[0] != epoch:
      seed, examples = self._streams[stream]
      self._fresh['state']['key'][:] = seed, epoch
      self._bits.state = self._fresh
      # Permuting positions gives the same order as permuting int32 examples, in half the time.
      kept = (epoch, examples[self._rng.permutation(len(examples))])
      self._epochs[stream] = kept
    return kept[1]

  def block(self, step: int, n: int) -> np.ndarray:
    """Example numbers of the steps [step, step + n), int32 [streams, n, B]."""
    b = self.batch_size
    block_snb = np.empty((len(self._streams), n, b), np.int32)
    for s, (_, examples) in enumerate(self._streams):
      flat = block_snb[s].reshape(-1)
      at, position = 0, step * b
      while at < n * b:
        epoch, offset = divmod(position, len(examples))
        piece = self._epoch(s, epoch)[offset:offset + n * b - at]
        flat[at:at + len(piece)] = piece
        at += len(piece)
        position += len(piece)
    return block_snb
