"""Readers of IDX and CIFAR files: what they return, and one line for every damaged file."""
from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest

from data.cifar import read_cifar
from data.errors import DataError
from data.idx import read_idx, read_mnist_layout
from tests.data.make_files import (
  cifar_rows, idx_bytes, random_images, write_archive, write_cifar10, write_mnist)


def one_line(error: pytest.ExceptionInfo) -> str:
  message = str(error.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('packed', [True, False])
def test_idx_values_and_sum(tmp_path, packed):
  array = random_images(7, (5, 4))
  content = idx_bytes(array)
  path = tmp_path / ('a.gz' if packed else 'a')
  path.write_bytes(gzip.compress(content) if packed else content)
  found, digest = read_idx(path, 3)
  np.testing.assert_array_equal(found, array)
  assert digest == hashlib.sha256(content).hexdigest()


def test_idx_known_bytes(tmp_path):
  path = tmp_path / 'labels'
  path.write_bytes(bytes.fromhex('00000801 00000003 070102'))
  np.testing.assert_array_equal(read_idx(path, 1)[0], [7, 1, 2])


@pytest.mark.parametrize('change, parts', [
  (lambda c: c[:-3], ('truncated at byte 153', '3 are missing')),
  (lambda c: c[:9], ('9 bytes are too few',)),
  (lambda c: b'', ('0 bytes are too few',)),
  (lambda c: c + b'xy', ('2 bytes after the last value',)),
  (lambda c: b'\0\0\x0d\x03' + c[4:], ('bad magic number 0x00000d03 at byte 0', '0x00000803')),
  (lambda c: b'\0\0\x08\x01' + c[4:], ('bad magic number 0x00000801',)),
])
def test_damaged_idx(tmp_path, change, parts):
  path = tmp_path / 'images'
  path.write_bytes(change(idx_bytes(random_images(7, (5, 4)))))
  with pytest.raises(DataError) as error:
    read_idx(path, 3)
  message = one_line(error)
  assert message.startswith(f'{path}: ')
  assert all(part in message for part in parts), message


@pytest.mark.parametrize('change, part', [
  (lambda c: c[:len(c) // 2], 'truncated'),
  (lambda c: c[:-4], 'truncated'),
  (lambda c: c[:40] + bytes((c[40] ^ 255,)) + c[41:], 'not a sound gzip file'),
  (lambda c: b'plain', 'not a sound gzip file'),
])
def test_damaged_gzip(tmp_path, change, part):
  path = tmp_path / 'images.gz'
  path.write_bytes(change(gzip.compress(idx_bytes(random_images(7, (5, 4))))))
  with pytest.raises(DataError) as error:
    read_idx(path, 3)
  assert str(path) in one_line(error) and part in str(error.value)


def test_mnist_layout(tmp_path):
  arrays = write_mnist(tmp_path / 'm')
  images, labels, sums = read_mnist_layout(tmp_path / 'm', 10)
  np.testing.assert_array_equal(images['test'], arrays['t10k-images-idx3-ubyte'])
  np.testing.assert_array_equal(labels['train'], arrays['train-labels-idx1-ubyte'])
  assert labels['train'].dtype == np.int32 and len(sums) == 4


def test_mnist_label_out_of_range(tmp_path):
  arrays = write_mnist(tmp_path / 'm')
  labels = arrays['t10k-labels-idx1-ubyte'].copy()
  labels[13] = 10
  path = tmp_path / 'm' / 't10k-labels-idx1-ubyte.gz'
  path.write_bytes(gzip.compress(idx_bytes(labels)))
  with pytest.raises(DataError) as error:
    read_mnist_layout(tmp_path / 'm', 10)
  assert one_line(error) == f'{path}: record 13 has the label 10, out of range 0..9'


def test_mnist_files_that_disagree_or_miss(tmp_path):
  arrays = write_mnist(tmp_path / 'm')
  path = tmp_path / 'm' / 'train-labels-idx1-ubyte.gz'
  path.write_bytes(gzip.compress(idx_bytes(arrays['train-labels-idx1-ubyte'][:-1])))
  with pytest.raises(DataError, match='39 labels for 40 images'):
    read_mnist_layout(tmp_path / 'm', 10)
  path.unlink()
  with pytest.raises(DataError, match='train-labels-idx1-ubyte.gz: missing'):
    read_mnist_layout(tmp_path / 'm', 10)
  with pytest.raises(DataError, match='no such directory'):
    read_mnist_layout(tmp_path / 'absent', 10)


def expected_image(row: np.ndarray, label_bytes: int) -> np.ndarray:
  """Pixel by pixel from the layout's definition: byte = plane * 1024 + y * 32 + x."""
  image = np.empty((32, 32, 3), np.uint8)
  for y in range(32):
    for x in range(32):
      for plane in range(3):
        image[y, x, plane] = row[label_bytes + plane * 1024 + y * 32 + x]
  return image


def test_cifar10_directory_parent_and_archive_agree(tmp_path):
  rows = write_cifar10(tmp_path / 'cifar-10-batches-bin')
  images, labels, sums = read_cifar('cifar10', tmp_path / 'cifar-10-batches-bin', 10)
  assert images['train'].shape == (100, 32, 32, 3) and images['test'].shape == (20, 32, 32, 3)
  np.testing.assert_array_equal(
      images['train'][23], expected_image(rows['data_batch_2.bin'][3], 1))
  np.testing.assert_array_equal(labels['test'], rows['test_batch.bin'][:, 0])
  assert sums['data_batch_1.bin, record 0'] == hashlib.sha256(
      rows['data_batch_1.bin'][0].tobytes()).hexdigest()
  archive = tmp_path / 'cifar-10-binary.tar.gz'
  files = {f'cifar-10-batches-bin/{name}': array.tobytes() for name, array in rows.items()}
  # A file of the right name in another folder, or above the archive, is none of ours.
  write_archive(archive, {**files, '../../data_batch_1.bin': b'x', 'other/test_batch.bin': b'y'})
  before = sorted(p.name for p in tmp_path.iterdir())
  for source in (tmp_path, archive):
    again, labels_again, _ = read_cifar('cifar10', source, 10)
    for split in ('train', 'test'):
      np.testing.assert_array_equal(again[split], images[split])
      np.testing.assert_array_equal(labels_again[split], labels[split])
  assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_cifar100_takes_the_fine_label(tmp_path):
  rows = {'train.bin': cifar_rows(200, 2, 100), 'test.bin': cifar_rows(100, 2, 100, 1)}
  for name, array in rows.items():
    (tmp_path / name).write_bytes(array.tobytes())
  images, labels, _ = read_cifar('cifar100', tmp_path, 100)
  np.testing.assert_array_equal(labels['train'], np.arange(200) % 100)
  np.testing.assert_array_equal(images['test'][5], expected_image(rows['test.bin'][5], 2))


@pytest.mark.parametrize('change, part', [
  (lambda c: c[:-1], 'no whole number of 3073-byte records (19 and 3072 bytes)'),
  (lambda c: c + b'z', '(20 and 1 bytes)'),
  (lambda c: b'', '0 bytes are no whole number'),
  (lambda c: c[:3073 * 4] + b'\x0b' + c[3073 * 4 + 1:], 'record 4 has the label 11, out of range'),
])
def test_damaged_cifar(tmp_path, change, part):
  write_cifar10(tmp_path / 'c')
  path = tmp_path / 'c' / 'data_batch_3.bin'
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(DataError) as error:
    read_cifar('cifar10', tmp_path / 'c', 10)
  assert one_line(error).startswith(f'{path}: ') and part in str(error.value)


def test_missing_cifar_and_damaged_archive(tmp_path):
  rows = write_cifar10(tmp_path / 'c')
  (tmp_path / 'c' / 'test_batch.bin').unlink()
  with pytest.raises(DataError, match=r'test_batch\.bin: missing'):
    read_cifar('cifar10', tmp_path / 'c', 10)
  with pytest.raises(DataError, match='no such file or directory'):
    read_cifar('cifar10', tmp_path / 'absent', 10)
  archive = tmp_path / 'c.tar.gz'
  write_archive(archive, {f'cifar-10-batches-bin/{n}': a.tobytes() for n, a in rows.items()})
  whole = archive.read_bytes()
  for damaged in (whole[:len(whole) // 2], b'no archive', b''):
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match='not a whole .tar.gz') as error:
      read_cifar('cifar10', archive, 10)
    assert str(archive) in one_line(error)
  write_archive(archive, {'cifar-10-batches-bin/test_batch.bin': b'1'})
  with pytest.raises(DataError, match='holds no file cifar-10-batches-bin/data_batch_1.bin'):
    read_cifar('cifar10', archive, 10)
