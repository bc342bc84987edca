"""Which data a study reads. Plain data, no jax."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataRequest:
  """The data that all cohorts of a study read.

  Attributes:
    dataset: name known to `data.load`.
    splits: number of different train / validation / test splits.
    seed: of the splits and of the label permutations.
    eval_batch: examples per evaluation batch.
    train_most: examples of the training split that are used, the first ones; 0 for all.
    eval_most: examples of a set that are evaluated, evenly spaced; 0 for all.
    window: tokens per example, for text.
    kind: what the study's models read, 'images' or 'tokens' (text).
    separated: of text, whether a token of its own stands behind every document.
    weights: folder of a network that the study begins from, whose files count as data: other ones
      on resume are refused; '' for none.
    beside: further data, by the names under which cohorts ask for it (`Cohort.data`).
  """

  dataset: str
  splits: int = 1
  seed: int = 0
  train_most: int = 0
  eval_batch: int = 512
  eval_most: int = 0
  window: int = 128
  kind: str = 'images'
  separated: bool = False
  weights: str = ''
  beside: tuple[tuple[str, DataRequest], ...] = ()

  def __post_init__(self):
    if self.kind not in ('images', 'tokens'):
      raise ValueError(f"kind must be 'images' or 'tokens', got {self.kind!r}")
