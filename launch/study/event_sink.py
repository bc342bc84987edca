"""TensorBoard events as a sink of the training loop: a view of metrics.jsonl, never a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launch.study import tensorboard
from launch.study.tensorboard import EventWriter


class EventSink:
  """Writes one event per cohort and step; begun anew from metrics.jsonl at every start."""

  def __init__(self, directory: Path):
    self.directory = directory
    self._writers: dict[str, EventWriter] = {}
    self.replayed = False

  def replay(self, metrics: Path) -> None:
    """Replaces the event files by those of the lines in metrics.jsonl."""
    self.close()
    tensorboard.replay(metrics, self.directory)
    self.replayed = True

  def write(self, run, members, split, steps, names, values: np.ndarray) -> None:
    """See model_lib.training.metrics.Sink; values [members, steps, names]."""
    if run not in self._writers:
      self._writers[run] = EventWriter(tensorboard.cohort_directory(self.directory, run))
    writer = self._writers[run]
    for s, step in enumerate(steps):
      metrics = {name: dict(zip(members, values[:, s, k].tolist(), strict=True))
                 for k, name in enumerate(names)}
      writer.add(int(step), tensorboard.population_values(metrics, split))
    writer.flush()

  def close(self) -> None:
    """Closes the files; a later write opens new ones."""
    for writer in self._writers.values():
      writer.close()
    self._writers.clear()
