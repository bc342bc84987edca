"""`load(name)`: a whole prepared dataset in memory."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from data import directories
from data.errors import DataError
from data.names import ARCHIVES, DATASETS, EMBEDDED, nearest


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset in host memory; the arrays are read-only.

  Attributes:
    name: as it must appear in tables and figures ('cifar10-jpeg75').
    kind: 'images' or 'tokens'.
    inputs: uint8 [n, H, W] or [n, H, W, C], training examples first; tokens [n], or
      [windows, length + 1] after `window_tokens`.
    labels: int32 [n]; empty for tokens.
    num_classes: 0 for tokens.
    official: split -> (start, stop) along the first axis of `inputs`; empty when the
      publisher made no split (`digits`).
    sha256: content hash, checked against what was read.
    mean, std: of all values of the prepared training images, in grey levels;
      standardize as (x - mean) / std. 0 and 1 for tokens.
    vocab: number of different tokens; 0 for images.
  """

  name: str
  kind: str
  inputs: np.ndarray
  labels: np.ndarray
  num_classes: int
  official: dict[str, tuple[int, int]]
  sha256: str
  mean: float
  std: float
  vocab: int


def load(name: str, data_dir: str | os.PathLike[str] | None = None,
         separated: bool = False) -> Dataset:
  """Loads a prepared dataset; prepares the embedded ones (`names.EMBEDDED`) first.

  Args:
    name: 'digits', 'pystdlib', or a name that `python -m data.prepare` has prepared.
    data_dir: default $ACTNORM_DATA_DIR, else ~/.cache/actnorm-lab/data.
    separated: of tokens, whether the token `vocab` is put behind every document, which then
      counts in `vocab`. Documents are the records of the prepared data: files of `pystdlib`.

  Raises:
    DataError: an unknown name, one that is not prepared (with the command that prepares it), or
      damaged data.
  """
  from data import builders

  records = builders.Records(prepared_directory(name, data_dir))
  metadata = records.metadata
  inputs, labels = builders.read_arrays(records)
  if builders.hash_arrays([inputs], [labels]) != metadata['sha256']:
    raise DataError(f'{prepared_directory(name, data_dir)}: the content hash differs from the '
                    'recorded one; remove the directory and prepare it again')
  inputs.flags.writeable = labels.flags.writeable = False
  ranges = {split: tuple(bounds) for split, bounds in metadata['ranges'].items()}
  vocab = metadata['vocab']
  if separated and metadata['kind'] != 'tokens':
    raise DataError(f'{name}: images are no documents with a separator between them')
  if separated:
    inputs, ranges = _separated(inputs, ranges, builders.lengths(records), vocab)
    vocab += 1
  return Dataset(
      name=name, kind=metadata['kind'], inputs=inputs, labels=labels,
      num_classes=metadata['num_classes'],
      official=ranges if metadata['official'] else {},
      sha256=metadata['sha256'], mean=metadata['mean'], std=metadata['std'],
      vocab=vocab)


def _separated(tokens: np.ndarray, ranges: dict[str, tuple[int, int]], lengths: np.ndarray,
               separator: int) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
  """The tokens with one more behind each document, and the splits' ranges among them."""
  ends = np.cumsum(lengths)
  wide = tokens.astype(np.promote_types(tokens.dtype, np.min_scalar_type(separator)))
  inputs = np.insert(wide, ends, separator)
  inputs.flags.writeable = False
  # A split begins behind as many separators as there are documents before it.
  return inputs, {split: tuple(int(at + np.searchsorted(ends, at, 'right')) for at in bounds)
                  for split, bounds in ranges.items()}


def prepared_directory(
    name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """The directory of a prepared dataset; prepares it when it is an embedded one.

  Raises:
    DataError: a set that is not embedded has not been prepared.
  """
  from data import builders, digits, stdlib_text

  root = directories.data_directory(data_dir)
  embedded = {'digits': digits.read, 'pystdlib': stdlib_text.read,
              'pydoc_topics': stdlib_text.read_topics}
  directory = builders.place(
      name if name == 'digits' or name not in embedded else stdlib_text.directory_name(name), root)
  if not directory.is_dir():
    if name not in embedded:
      raise DataError(_not_prepared(name, root))
    builders.write(embedded[name](), root)
  return directory


def _not_prepared(name, root) -> str:
  there = sorted({*EMBEDDED, *(p.parent.name for p in root.glob('*/1.0.0'))})
  base, _, variant = name.partition('-')
  made = (*ARCHIVES, 'text')
  if base not in made:
    return (f'unknown data set {name!r}{nearest(name, {*there, *DATASETS})}; prepared are '
            f'{", ".join(there)} (in {root}); python -m data.prepare makes {", ".join(made)} and '
            'tfds:NAME')
  hint = f' --variant={variant}' if variant else ''
  return (f'dataset {name!r} is not prepared in {root} (there: {", ".join(there)}'
          f'{nearest(name, there)}); run: python -m data.prepare --dataset={base} '
          f'--source=PATH{hint} --data_dir={root}')


def window_tokens(dataset: Dataset, length: int) -> Dataset:
  """Cuts a token dataset into windows that do not overlap in their targets.

  Window i of a split holds tokens [i * length, i * length + length + 1) of that split: the
  model reads the first `length` and predicts the last `length`. No window crosses from one
  split into another; a rest shorter than a window is left out.

  Returns:
    The dataset with inputs [windows, length + 1] and `official` counted in windows.

  Raises:
    DataError: a split is shorter than one window.
  """
  if dataset.kind != 'tokens' or dataset.inputs.ndim != 1:
    raise ValueError(f'{dataset.name}: only a flat token dataset can be cut into windows')
  parts, official, start = [], {}, 0
  for split, (first, last) in dataset.official.items():
    count = (last - first - 1) // length
    if count < 1:
      raise DataError(f'{dataset.name}: the split {split!r} has {last - first} tokens, fewer '
                      f'than one window of {length} + 1')
    windows = np.lib.stride_tricks.sliding_window_view(dataset.inputs[first:last], length + 1)
    parts.append(windows[:count * length:length])
    official[split] = (start, start + count)
    start += count
  inputs = np.concatenate(parts)
  inputs.flags.writeable = False
  return dataclasses.replace(dataset, inputs=inputs, official=official)
