"""What every reader hands to the builder: named splits of arrays, and their content hash."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Content:
  """The decoded content of one dataset, before it is written and after it is read.

  Attributes:
    name: name of the dataset, with its variant: 'cifar10', 'cifar10-jpeg75'.
    kind: 'images' or 'tokens'.
    inputs: split name -> images uint8 [n, H, W] or [n, H, W, C], or a list of token
      arrays [length] (one per record). The order of the keys is the order of the data.
    labels: split name -> int32 [n]; empty for tokens.
    num_classes: number of classes, 0 for tokens.
    vocab: number of different tokens, 0 for images.
    official: whether the splits are the publisher's own (else they are our cut).
    about: one sentence on origin and checks, stored beside the data.
  """

  name: str
  kind: str
  inputs: Mapping[str, object]
  labels: Mapping[str, np.ndarray]
  num_classes: int = 0
  vocab: int = 0
  official: bool = True
  about: str = ''

  def counts(self) -> dict[str, int]:
    """Number of examples (images) or of tokens per split."""
    if self.kind == 'tokens':
      return {k: int(sum(len(r) for r in v)) for k, v in self.inputs.items()}
    return {k: len(v) for k, v in self.inputs.items()}

  def sha256(self) -> str:
    """SHA-256 over the bytes of all inputs, then of all labels, split after split."""
    arrays = []
    for records in self.inputs.values():
      arrays.extend(records if self.kind == 'tokens' else [records])
    return hash_arrays(arrays, self.labels.values())


def hash_arrays(inputs: Iterable[np.ndarray], labels: Iterable[np.ndarray]) -> str:
  """SHA-256 (hex) of the content: inputs in order, then labels as little-endian int32.

  Multi-byte tokens count as little-endian, so that the sum belongs to the values and
  not to a machine. Where one array ends and the next begins does not matter.
  """
  digest = hashlib.sha256()
  for array in inputs:
    array = np.asarray(array)
    digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder('<')).data)
  for array in labels:
    digest.update(np.ascontiguousarray(array, '<i4').data)
  return digest.hexdigest()


def pixel_statistics(images: np.ndarray) -> tuple[float, float]:
  """Mean and standard deviation of all values of a uint8 array, in units of one grey level.

  Both come from the exact histogram h(v): mean = sum v h / n, var = sum (v - mean)^2 h / n.
  A constant array gets the standard deviation 1, so that dividing by it is harmless.
  """
  values = np.arange(256, dtype=np.float64)
  weights = np.bincount(images.reshape(-1), minlength=256) / images.size
  mean = float(values @ weights)
  std = float(np.sqrt((values - mean) ** 2 @ weights))
  return mean, std if std > 0 else 1.0
