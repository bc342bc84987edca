"""Small files in the published formats, for the tests of the readers."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import struct
import tarfile

import numpy as np


def idx_bytes(array: np.ndarray, magic: bytes | None = None) -> bytes:
  """A uint8 array as an IDX file."""
  head = bytes((0, 0, 8, array.ndim)) if magic is None else magic
  return head + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def random_images(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def write_mnist(folder: pathlib.Path, train: int = 40, test: int = 20) -> dict[str, np.ndarray]:
  """The four gzipped IDX files, 5 x 4 pixels; returns what they hold."""
  folder.mkdir(parents=True)
  arrays = {}
  for seed, (prefix, n) in enumerate((('train', train), ('t10k', test))):
    arrays[f'{prefix}-images-idx3-ubyte'] = random_images(n, (5, 4), seed)
    arrays[f'{prefix}-labels-idx1-ubyte'] = (np.arange(n) % 10).astype(np.uint8)
  for name, array in arrays.items():
    (folder / f'{name}.gz').write_bytes(gzip.compress(idx_bytes(array), mtime=0))
  return arrays


def cifar_rows(n: int, label_bytes: int, classes: int, seed: int = 0) -> np.ndarray:
  rows = random_images(n, (label_bytes + 3072,), seed)
  rows[:, label_bytes - 1] = np.arange(n) % classes
  return rows


def write_cifar10(folder: pathlib.Path, per_file: int = 20) -> dict[str, np.ndarray]:
  folder.mkdir(parents=True)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  rows = {name: cifar_rows(per_file, 1, 10, seed) for seed, name in enumerate(names)}
  for name, array in rows.items():
    (folder / name).write_bytes(array.tobytes())
  return rows


def write_archive(path: pathlib.Path, files: dict[str, bytes]) -> None:
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def write_bpe(folder: pathlib.Path, merges: list[tuple[str, str]]) -> None:
  """encoder.json and vocab.bpe with the 256 byte characters and the given merges."""
  from data.bpe import byte_characters
  folder.mkdir(parents=True)
  tokens = [*byte_characters(), *(a + b for a, b in merges)]
  encoder = {token: number for number, token in enumerate(tokens)}
  (folder / 'encoder.json').write_text(json.dumps(encoder), encoding='utf-8')
  lines = ['#version: 0.2', *(f'{a} {b}' for a, b in merges), '']
  (folder / 'vocab.bpe').write_text('\n'.join(lines), encoding='utf-8')


class SimpleOrder:
  """A batch order for tests: S streams of hashed example numbers, pure in the step."""

  def __init__(self, examples: int, streams: int = 2, batch: int = 3):
    self.examples, self.streams, self.batch = examples, streams, batch

  def block(self, step: int, n: int) -> np.ndarray:
    steps = np.arange(step, step + n)[None, :, None]
    streams = np.arange(self.streams)[:, None, None]
    places = np.arange(self.batch)[None, None, :]
    mixed = 7919 * steps + 104729 * streams + 31 * places + steps * places
    return (mixed % self.examples).astype(np.int32)
