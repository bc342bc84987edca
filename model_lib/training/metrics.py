"""The metrics file: append-only JSON lines whose length is part of every checkpoint.

A line holds `run`, `member`, `split`, `step` and the metrics, and no time: these
four are unique in the file, and lines of a run are ordered by step, then member,
whatever the chunk and the steps per call. A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model_lib import faults
from model_lib.errors import UserError


class Sink(Protocol):
  """Whatever takes recorded metrics: the metrics file, TensorBoard events."""

  def write(self, run: str, members: Sequence[int], split: str, steps: Sequence[int],
            names: Sequence[str], values: np.ndarray) -> None:
    """values: [members, steps, names]."""


def read_lines(path: Path, run: str, splits: Collection[str]) -> Iterator[dict[str, Any]]:
  """The lines of a run and some splits; a number that was not finite is None."""
  head = f'{{"run": {json.dumps(run)}, '
  wanted = tuple(f'"split": "{split}"' for split in splits)
  with open(path, encoding='utf-8') as file:
    for line in file:
      # Most lines are training's: they are told apart without being parsed.
      if line.startswith(head) and any(mark in line for mark in wanted):
        yield json.loads(line)


class MetricsFile:
  """metrics.jsonl, open for appending."""

  def __init__(self, path: Path):
    self.path = path
    try:
      self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as e:
      raise UserError(f'{path}: cannot be opened for writing ({e.strerror})') from e

  @property
  def position(self) -> int:
    """Bytes in the file."""
    return os.fstat(self._fd).st_size

  def truncate(self, position: int) -> None:
    """Cuts the file back to a checkpoint's position.

    Raises:
      UserError: the file is shorter than that, so lines have been lost.
    """
    if self.position < position:
      raise UserError(f'{self.path}: has {self.position} bytes, the finished cohorts wrote '
                      f'{position}; put the file back or start in a new workdir')
    os.ftruncate(self._fd, position)
    os.fsync(self._fd)

  def write(self, run, members, split, steps, names, values) -> None:
    """Appends one line per step and member; values [members, steps, names]."""
    lines = []
    head = f'{{"run": {json.dumps(run)}, "member": '
    for s, step in enumerate(steps):
      middle = f', "split": "{split}", "step": {int(step)}'
      # float() of a float32 is exact, so its repr gives the same bits back.
      for member, row in zip(members, values[:, s].tolist(), strict=True):
        numbers = ''.join(f', "{name}": {v!r}' if math.isfinite(v) else f', "{name}": null'
                          for name, v in zip(names, row, strict=True))
        lines.append(f'{head}{int(member)}{middle}{numbers}}}\n')
    data = ''.join(lines).encode()
    half = len(data) - 20
    before = self.position
    try:
      self._append(data[:half])
      faults.reach('metrics_line')
      self._append(data[half:])
    except OSError as e:
      os.ftruncate(self._fd, before)  # A full disk takes nothing or whole lines.
      raise UserError(f'{self.path}: cannot be written ({e.strerror}); '
                      'make room and run the same command again') from e

  def _append(self, data: bytes) -> None:
    view = memoryview(data)
    while view:
      view = view[os.write(self._fd, view):]

  def sync(self) -> int:
    """Forces the lines to the disk; returns the position to store in a checkpoint."""
    os.fsync(self._fd)
    return self.position

  def close(self) -> None:
    os.close(self._fd)
