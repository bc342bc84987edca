"""Reader of IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Layout (big-endian): two zero bytes, a type byte (0x08 = unsigned byte), a byte with the
number of axes, one uint32 per axis, then the values with the last axis running fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import pathlib
import struct
import zlib

import numpy as np

from data.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: pathlib.Path, axes: int) -> tuple[np.ndarray, str]:
  """Reads a uint8 IDX file.

  Args:
    path: the file; a name that ends in '.gz' is decompressed.
    axes: how many axes the array must have.

  Returns:
    The array (uint8, `axes` axes) and the SHA-256 of the decompressed file.

  Raises:
    DataError: missing, truncated, wrong magic number, or bytes left over.
  """
  content = _read(path)
  if len(content) < 4 + 4 * axes:
    raise DataError(f'{path}: {len(content)} bytes are too few for an IDX header of {axes} axes')
  magic = content[:4]
  expected = bytes((0, 0, _UNSIGNED_BYTE, axes))
  if magic != expected:
    raise DataError(f'{path}: bad magic number 0x{magic.hex()} at byte 0, expected '
                    f'0x{expected.hex()} (unsigned bytes, {axes} axes)')
  shape = struct.unpack_from(f'>{axes}I', content, 4)
  start = 4 + 4 * axes
  missing = math.prod(shape) - (len(content) - start)
  if missing > 0:
    raise DataError(f'{path}: truncated at byte {len(content)}: the header promises '
                    f'{" x ".join(map(str, shape))} values, {missing} are missing')
  if missing < 0:
    raise DataError(f'{path}: {-missing} bytes after the last value (byte '
                    f'{start + math.prod(shape)})')
  array = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
  return array, hashlib.sha256(content).hexdigest()


def _read(path: pathlib.Path) -> bytes:
  try:
    if path.suffix != '.gz':
      return path.read_bytes()
    with gzip.open(path) as f:
      return f.read()
  except EOFError as e:
    raise DataError(f'{path}: the gzip stream is truncated at byte '
                    f'{path.stat().st_size}; fetch the file again') from e
  except (gzip.BadGzipFile, zlib.error) as e:
    raise DataError(f'{path}: not a sound gzip file ({e}); fetch the file again') from e
  except OSError as e:
    raise DataError(f'{path}: cannot be read ({e.strerror or e})') from e


def read_mnist_layout(
    source: pathlib.Path, num_classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
  """Reads the four IDX files of MNIST or Fashion-MNIST from a directory.

  Args:
    source: directory with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].
    num_classes: labels must lie in [0, num_classes).

  Returns:
    (images, labels, sums): split -> uint8 [n, H, W], split -> int32 [n], and
    file name without .gz -> SHA-256 of its decompressed bytes.

  Raises:
    DataError: a file is missing or damaged, counts disagree, a label is out of range.
  """
  if not source.is_dir():
    raise DataError(f'{source}: no such directory; --source must hold the four IDX files')
  images, labels, sums = {}, {}, {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    for axes, name in ((3, f'{prefix}-images-idx3-ubyte'), (1, f'{prefix}-labels-idx1-ubyte')):
      path = source / f'{name}.gz'
      if not path.exists():
        path = source / name
      if not path.exists():
        raise DataError(f'{source / name}.gz: missing (also without .gz)')
      array, sums[name] = read_idx(path, axes)
      if axes == 3:
        images[split] = array
      else:
        check_labels(path, array, num_classes)
        labels[split] = array.astype(np.int32)
    if len(images[split]) != len(labels[split]):
      raise DataError(f'{path}: {len(labels[split])} labels for {len(images[split])} images')
  if images['train'].shape[1:] != images['test'].shape[1:]:
    raise DataError(f'{source}: train images are {images["train"].shape[1:]}, '
                    f'test images {images["test"].shape[1:]}')
  return images, labels, sums


def check_labels(path: object, labels: np.ndarray, num_classes: int) -> None:
  """Raises DataError that names the first record whose label is not in [0, num_classes)."""
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size:
    raise DataError(f'{path}: record {wrong[0]} has the label {labels[wrong[0]]}, '
                    f'out of range 0..{num_classes - 1}')
