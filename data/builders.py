"""The TFDS builder of every dataset here, writing and opening prepared data.

A dataset is one TFDS dataset in ArrayRecord files with one example per record, in the
order of its source. Blocks of some hundred images per record would load a whole set about
five times faster, but a shuffled stream would then decode a block for every image that it
takes; one example per record keeps `data_source[i]` the i-th example for every reader.
Raw bytes (`Encoding.BYTES`, six times as fast to write as the default) and decoding the
records here, without TFDS's general path through nested features, make up for most of it.
Tokens are records of many tokens, since they are always loaded whole.

Nothing here needs TensorFlow: features are plain `Tensor`s (`Image` would need it).
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data import directories
from data.content import Content, hash_arrays, pixel_statistics
from data.errors import DataError

FORMAT = 1
VERSION = '1.0.0'
_METADATA = 'metadata.json'


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes a `Content`; use it through `write`."""

  VERSION = tfds.core.Version(VERSION)

  def __init__(self, content: Content, metadata: dict[str, object], **kwargs: object):
    self._content = content
    self._metadata = metadata
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    records = next(iter(self._content.inputs.values()))
    raw = tfds.features.Encoding.BYTES
    if self._content.kind == 'tokens':
      features = {
          'tokens': tfds.features.Tensor(shape=(None,), dtype=records[0].dtype, encoding=raw)}
    else:
      features = {
          'image': tfds.features.Tensor(shape=records.shape[1:], dtype=np.uint8, encoding=raw),
          'label': tfds.features.Scalar(np.int32)}
    return tfds.core.DatasetInfo(
        builder=self, description=self._content.about, disable_shuffling=True,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(self._metadata))

  def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict]]]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in self._content.inputs}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    records = self._content.inputs[split]
    if self._content.kind == 'tokens':
      for i, tokens in enumerate(records):
        yield i, {'tokens': tokens}
    else:
      for i, (image, label) in enumerate(zip(records, self._content.labels[split])):
        yield i, {'image': image, 'label': int(label)}


def place(name: str, root: pathlib.Path) -> pathlib.Path:
  """Directory of the prepared dataset `name` under the data directory `root`."""
  return root / name / VERSION


def write(content: Content, root: pathlib.Path) -> pathlib.Path:
  """Prepares `content` under `root` in one step and returns its directory.

  The data is written beside its place, read back, compared by its hash, and only then
  renamed. The same content already there is left as it is.

  Raises:
    DataError: other content is there under this name, or `root` cannot be written.
  """
  target = place(content.name, root)
  sha256 = content.sha256()
  if target.exists():
    _require_same(target, sha256)
    return target
  metadata = _describe(content, sha256)
  with directories.temporary_directory(root) as temporary:
    with directories.one_line_errors(target):
      written = _write_records(content, metadata, temporary, target)
      if not directories.move_into_place(written, target):
        _require_same(target, sha256)  # another process was first
  return target


def _write_records(content, metadata, temporary, target) -> pathlib.Path:
  # TFDS names are identifiers; ours, which the directory carries, may hold '-' and '.'.
  identifier = re.sub(r'\W', '_', content.name)
  builder_class = type(
      'PreparedBuilder', (ArrayBuilder,), {'name': identifier}, skip_registration=True)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # two lines of talk per preparation
      builder = builder_class(
          content, metadata, data_dir=str(temporary), file_format='array_record')
      builder.download_and_prepare()
    written = pathlib.Path(builder.data_path)
    if read_hash(written) != metadata['sha256']:
      raise DataError(f'{target}: what was written reads back differently; is the disk full?')
  except RuntimeError as e:  # ArrayRecord reports failed writes so
    raise DataError(f'{target}: cannot be written ({_first_line(e)})') from e
  return written


def _describe(content: Content, sha256: str) -> dict[str, object]:
  ranges, start = {}, 0
  for split, count in content.counts().items():
    ranges[split] = [start, start + count]
    start += count
  mean, std = 0.0, 1.0
  if content.kind == 'images':
    mean, std = pixel_statistics(content.inputs['train'])
  record = np.asarray(next(iter(content.inputs.values()))[0])
  shape = list(record.shape) if content.kind == 'images' else [-1]
  return {
      'shape': shape, 'dtype': record.dtype.name,
      'format': FORMAT, 'name': content.name, 'kind': content.kind, 'ranges': ranges,
      'official': content.official, 'num_classes': content.num_classes,
      'vocab': content.vocab, 'mean': mean, 'std': std, 'sha256': sha256,
      'about': content.about}


def _require_same(directory: pathlib.Path, sha256: str) -> None:
  there = read_metadata(directory)['sha256']
  if there != sha256:
    raise DataError(
        f'{directory}: already holds other content (sha256 {there}, the source has {sha256}); '
        'remove the directory, or give the source a name of its own with --variant')


def read_metadata(directory: pathlib.Path) -> dict:
  """The description of a prepared dataset.

  Raises:
    DataError: it is missing, damaged or of another format.
  """
  path = directory / _METADATA
  try:
    metadata = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as e:
    raise DataError(f'{path}: cannot be read ({_first_line(e)}); remove {directory} and '
                    'prepare it again') from e
  if not isinstance(metadata, dict) or metadata.get('format') != FORMAT:
    raise DataError(f'{path}: not of format {FORMAT}; remove {directory} and prepare it again')
  return metadata


class Records:
  """Random access to the records of a prepared dataset, all splits in one numbering.

  Args:
    directory: as `place` gives it.

  Raises:
    DataError: the directory holds no readable dataset.
  """

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self.metadata = read_metadata(directory)
    try:
      builder = tfds.builder_from_directory(str(directory))
      # `ranges` keeps the order of the source; TFDS sorts its splits by name.
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      self._sources = [builder.as_data_source(split=s, deserialize_method=raw)
                       for s in self.metadata['ranges']]
    except Exception as e:  # pylint: disable=broad-exception-caught
      raise self._damaged(e) from e
    self._ends = np.cumsum([len(s) for s in self._sources])
    self._key = 'tokens' if self.metadata['kind'] == 'tokens' else 'image'
    self._shape = tuple(self.metadata['shape'])
    self._dtype = np.dtype(self.metadata['dtype']).newbyteorder('<')

  def __len__(self) -> int:
    return int(self._ends[-1])

  def read(self, numbers: Sequence[int] | np.ndarray) -> list[tuple[np.ndarray, int]]:
    """(image, label) or (tokens, 0) of the records with these numbers, in this order."""
    numbers = np.asarray(numbers)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
      raise IndexError(f'record numbers must lie in [0, {len(self)}), got '
                       f'{numbers.min()}..{numbers.max()}')
    owner = np.searchsorted(self._ends, numbers, side='right')
    found: list = [None] * len(numbers)
    for i, source in enumerate(self._sources):
      where = np.flatnonzero(owner == i)
      if where.size:
        start = int(self._ends[i]) - len(source)
        try:
          raw = source.__getitems__([int(n) - start for n in numbers[where]])
          records = [self._decode(each) for each in raw]
        except Exception as e:  # pylint: disable=broad-exception-caught
          raise self._damaged(e) from e
        for position, record in zip(where, records):
          found[position] = record
    return found

  def _decode(self, raw: bytes) -> tuple[np.ndarray, int]:
    features = tf_example_pb2.Example.FromString(raw).features.feature
    content = features[self._key].bytes_list.value[0]
    array = np.frombuffer(content, self._dtype).reshape(self._shape)
    return array, features['label'].int64_list.value[0] if self._key == 'image' else 0

  def _damaged(self, error: Exception) -> DataError:
    return DataError(f'{self._directory}: damaged ({_first_line(error)}); remove the directory '
                     'and prepare it again')


def read_arrays(records: Records) -> tuple[np.ndarray, np.ndarray]:
  """All inputs and labels, in order: images [n, ...] and int32 [n], or tokens [n] and []."""
  if records.metadata['kind'] == 'tokens':
    tokens = np.concatenate([tokens for tokens, _ in records.read(range(len(records)))])
    return tokens.astype(tokens.dtype.newbyteorder('=')), np.zeros(0, np.int32)
  images = np.empty((len(records), *records.metadata['shape']), np.uint8)
  labels = np.empty(len(records), np.int32)
  for start in range(0, len(records), 1000):  # bounds the memory for decoded records
    stop = min(start + 1000, len(records))
    for i, (image, label) in enumerate(records.read(range(start, stop)), start=start):
      images[i] = image
      labels[i] = label
  return images, labels


def lengths(records: Records) -> np.ndarray:
  """Tokens in each record of a text, int64 [records]."""
  return np.array([len(tokens) for tokens, _ in records.read(range(len(records)))])


def read_hash(directory: pathlib.Path) -> str:
  """The content hash of what a prepared directory really holds."""
  inputs, labels = read_arrays(Records(directory))
  return hash_arrays([inputs], [labels])


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
