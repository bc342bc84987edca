"""Reader of CIFAR-10 and CIFAR-100 in their 'binary version'.

A record is one label byte (CIFAR-100: coarse, then fine) and 3,072 bytes: the red, green
and blue planes of a 32 x 32 image. The source is the directory of the .bin files, the
directory above it, or the .tar.gz, whose members are read in place: nothing is extracted.
"""

from __future__ import annotations

import hashlib
import pathlib
import tarfile
import zlib

import numpy as np

from data.errors import DataError
from data.idx import check_labels

_PIXELS = 32 * 32 * 3


def _layout(name: str) -> tuple[str, dict[str, list[str]], int]:
  """(folder in the archive, split -> files, label bytes per record)."""
  if name == 'cifar10':
    train = [f'data_batch_{i}.bin' for i in range(1, 6)]
    return 'cifar-10-batches-bin', {'train': train, 'test': ['test_batch.bin']}, 1
  return 'cifar-100-binary', {'train': ['train.bin'], 'test': ['test.bin']}, 2


def read_cifar(
    name: str, source: pathlib.Path, num_classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
  """Reads 'cifar10' or 'cifar100'.

  Args:
    name: which of the two layouts.
    source: directory or .tar.gz.
    num_classes: (fine) labels must lie in [0, num_classes).

  Returns:
    (images, labels, sums): split -> uint8 [n, 32, 32, 3], split -> int32 [n], and
    'FILE, record 0' -> SHA-256 of the first record of each file.

  Raises:
    DataError: a file is missing, is no whole number of records, or has a bad label.
  """
  folder, files, label_bytes = _layout(name)
  wanted = [file for group in files.values() for file in group]
  contents = _read_files(source, folder, wanted)
  images, labels, sums = {}, {}, {}
  record = label_bytes + _PIXELS
  for split, group in files.items():
    rows_by_file = []
    for file in group:
      where, content = contents.pop(file)
      if not content or len(content) % record:
        raise DataError(f'{where}: {len(content)} bytes are no whole number of '
                        f'{record}-byte records ({len(content) // record} and '
                        f'{len(content) % record} bytes)')
      rows = np.frombuffer(content, np.uint8).reshape(-1, record)
      check_labels(where, rows[:, label_bytes - 1], num_classes)
      sums[f'{file}, record 0'] = hashlib.sha256(content[:record]).hexdigest()
      rows_by_file.append(rows)
    count = sum(map(len, rows_by_file))
    images[split] = np.empty((count, 32, 32, 3), np.uint8)
    labels[split] = np.empty(count, np.int32)
    start = 0
    for rows in rows_by_file:
      stop = start + len(rows)
      planes = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
      images[split][start:stop] = planes.transpose(0, 2, 3, 1)
      labels[split][start:stop] = rows[:, label_bytes - 1]
      start = stop
  return images, labels, sums


def _read_files(
    source: pathlib.Path, folder: str, names: list[str]) -> dict[str, tuple[str, bytes]]:
  """File name -> (where it lies, for messages; its bytes)."""
  if source.is_dir():
    if (source / folder).is_dir() and not (source / names[0]).exists():
      source = source / folder
    contents = {}
    for name in names:
      try:
        contents[name] = str(source / name), (source / name).read_bytes()
      except FileNotFoundError as e:
        raise DataError(f'{source / name}: missing') from e
      except OSError as e:
        raise DataError(f'{source / name}: cannot be read ({e.strerror or e})') from e
    return contents
  if not source.is_file():
    raise DataError(f'{source}: no such file or directory; --source is the .tar.gz or the '
                    f'directory {folder}')
  return _read_archive(source, folder, names)


def _read_archive(
    source: pathlib.Path, folder: str, names: list[str]) -> dict[str, tuple[str, bytes]]:
  contents = {}
  try:
    with tarfile.open(source, 'r|*') as archive:
      for member in archive:
        path = pathlib.PurePosixPath(member.name)
        if member.isfile() and path.name in names and path.parent.name in ('', folder):
          contents[path.name] = f'{source}:{member.name}', archive.extractfile(member).read()
  except (tarfile.TarError, EOFError, zlib.error) as e:
    raise DataError(f'{source}: not a whole .tar.gz ({e}); fetch the file again') from e
  except OSError as e:
    raise DataError(f'{source}: cannot be read ({e.strerror or e})') from e
  for name in names:
    if name not in contents:
      raise DataError(f'{source}: holds no file {folder}/{name}')
  return contents
