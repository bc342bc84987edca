"""Loading: embedded sets, damage, windows, and splits."""
from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import builders
from data import stdlib_text
from data.content import Content, hash_arrays, pixel_statistics
from data.errors import DataError
from data.load import load, prepared_directory, window_tokens
from data.splits import make_splits, stratified_part
from tests import helpers
from tests.data.make_files import random_images


def image_content(name: str = 'small', n: int = 60) -> Content:
  return Content(
      name=name, kind='images',
      inputs={'train': random_images(n, (4, 3, 3)), 'test': random_images(n // 2, (4, 3, 3), 1)},
      labels={'train': np.arange(n, dtype=np.int32) % 5,
              'test': np.arange(n // 2, dtype=np.int32) % 5}, num_classes=5)


@pytest.fixture(scope='module')
def digits():
  return load('digits')


@pytest.fixture(scope='module')
def pystdlib():
  return load('pystdlib')


def test_digits_are_scikit_learns(digits):
  from sklearn.datasets import load_digits
  bunch = load_digits()
  assert digits.inputs.shape == (1797, 8, 8) and digits.inputs.dtype == np.uint8
  assert digits.inputs.max() == 16 and digits.num_classes == 10 and digits.official == {}

  def rows(images, labels):
    return sorted((image.astype(np.uint8).tobytes(), int(l)) for image, l in zip(images, labels))
  assert rows(digits.inputs, digits.labels) == rows(bunch.images, bunch.target)
  # 270 of 1,797 as test, each class in proportion.
  counts = np.bincount(digits.labels[1527:])
  assert counts.sum() == 270 and np.all(np.abs(counts - 0.15 * np.bincount(bunch.target)) < 1)


def test_the_hash_belongs_to_order_and_labels(digits):
  assert digits.sha256 == hashlib.sha256(
      digits.inputs.tobytes() + digits.labels.astype('<i4').tobytes()).hexdigest()
  turned = digits.labels[::-1]
  assert hash_arrays([digits.inputs], [turned]) != digits.sha256
  big = np.arange(5, dtype='>u2')
  assert hash_arrays([big], []) == hash_arrays([big.astype('<u2')], [])


def test_digits_load_fast_and_light():
  load('digits')
  code = (
    'import sys, time; import data.load;'
    'heavy = {"jax", "tensorflow_datasets", "grain", "sklearn"};'
    'assert not heavy & set(sys.modules), heavy & set(sys.modules);'
    'data.load.load("digits");'
    'assert not {"jax", "sklearn", "tensorflow", "grain"} & set(sys.modules);'
    'start = time.process_time(); data.load.load("digits");'
    'assert time.process_time() - start < 0.5')
  child = helpers.run_python(code)
  assert child.returncode == 0 and child.stdout == '' and child.stderr == '', child


def test_pystdlib_is_files_of_this_python(pystdlib):
  assert pystdlib.vocab == 256 and pystdlib.kind == 'tokens'
  assert 1 << 20 < len(pystdlib.inputs) <= stdlib_text.LIMIT
  train, validation, test = (
    pystdlib.inputs[slice(*pystdlib.official[s])].tobytes()
    for s in ('train', 'validation', 'test'))
  assert Path(dataclasses.__file__).parent.joinpath('__future__.py').read_bytes() in train
  assert b'import' in validation and b'import' in test
  assert sum(map(len, (train, validation, test))) == len(pystdlib.inputs)


def test_pystdlib_rules(tmp_path):
  for i in range(25):
    (tmp_path / f'm{i:02}.py').write_bytes(b'%02d;' % i * 10)
  for other in ('test/t.py', 'site-packages/s.py', 'config-3/c.py', '_sysconfigdata.py', 'n.txt'):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(b'no')
  (tmp_path / 'email').mkdir()
  (tmp_path / 'email' / 'a.py').write_bytes(b'first')
  content = stdlib_text.read(tmp_path, limit=605)
  parts = {split: [r.tobytes() for r in records] for split, records in content.inputs.items()}
  assert parts['train'][:2] == [b'first', b'00;' * 10]
  assert parts['validation'] == [b'07;' * 10, b'17;' * 10]
  assert parts['test'] == [b'08;' * 10, b'18;' * 10]
  assert content.counts() == {'train': 485, 'validation': 60, 'test': 60}
  with pytest.raises(DataError, match='9 Python files are too few'):
    stdlib_text.read(tmp_path, limit=250)


def test_a_separator_stands_behind_every_document(pystdlib):
  separated = load('pystdlib', separated=True)
  assert separated.vocab == 257 and separated.inputs.dtype == np.uint16
  records = stdlib_text.read().inputs
  for split, documents in records.items():
    tokens = separated.inputs[slice(*separated.official[split])]
    assert tokens[-1] == 256 and (tokens == 256).sum() == len(documents)
    np.testing.assert_array_equal(tokens[:len(documents[0]) + 1], [*documents[0], 256])
    np.testing.assert_array_equal(tokens[tokens < 256],
                                  pystdlib.inputs[slice(*pystdlib.official[split])])


def test_pydoc_topics_are_no_part_of_pystdlib(pystdlib):
  topics = load('pydoc_topics')
  assert topics.vocab == 256 and len(topics.inputs) > 100_000
  assert topics.official['test'][1] == len(topics.inputs)
  assert topics.inputs[:2000].tobytes() not in pystdlib.inputs.tobytes()
  with pytest.raises(DataError, match='topics.py: cannot be read'):
    stdlib_text.read_topics(Path('/nowhere'))


def test_tfds_alone_reads_the_same(tmp_path):
  """The decoding of records here against TFDS's own."""
  content = image_content('plain')
  directory = builders.write(content, tmp_path)
  source = tfds.builder_from_directory(str(directory)).as_data_source(split='test')
  examples = source.__getitems__(range(len(source)))
  np.testing.assert_array_equal([e['image'] for e in examples], content.inputs['test'])
  np.testing.assert_array_equal([e['label'] for e in examples], content.labels['test'])


def test_splits_keep_the_order_of_the_source(tmp_path):
  """'train' comes first although TFDS sorts 'test' before it."""
  content = image_content()
  builders.write(content, tmp_path)
  dataset = load('small', tmp_path)
  np.testing.assert_array_equal(dataset.inputs[:60], content.inputs['train'])
  np.testing.assert_array_equal(dataset.inputs[60:], content.inputs['test'])


def test_records_by_number(tmp_path):
  content = image_content()
  records = builders.Records(builders.write(content, tmp_path))
  found = records.read([65, 3, 60, 59, 3])
  np.testing.assert_array_equal(found[0][0], content.inputs['test'][5])
  np.testing.assert_array_equal(found[3][0], content.inputs['train'][59])
  assert [label for _, label in found] == [0, 3, 0, 4, 3]
  for number in (90, -1):
    with pytest.raises(IndexError, match=r'in \[0, 90\)'):
      records.read([number])


def test_not_prepared(tmp_path):
  builders.write(image_content('cifar10-jpeg75', 10), tmp_path)
  with pytest.raises(DataError) as error:
    load('cifar10-jpeg57', tmp_path)
  message = str(error.value)
  assert '\n' not in message and "nearest: cifar10-jpeg75)" in message
  assert ('python -m data.prepare --dataset=cifar10 --source=PATH --variant=jpeg57 '
          f'--data_dir={tmp_path}') in message


@pytest.mark.parametrize('name, near', [
  ('minst', '; nearest: mnist'), ('tfds-svhn', ''), ('digits-jpeg75', '; nearest: digits'),
  ('shakespeare', '; nearest: text-shakespeare')])
def test_a_name_that_nothing_makes(tmp_path, name, near):
  builders.write(image_content('text-shakespeare', 10), tmp_path)
  with pytest.raises(DataError) as error:
    load(name, tmp_path)
  assert str(error.value) == (
    f'unknown data set {name!r}{near}; prepared are digits, pydoc_topics, pystdlib, '
    f'text-shakespeare (in '
    f'{tmp_path}); python -m data.prepare makes mnist, fashion_mnist, cifar10, cifar100, text and '
    'tfds:NAME')


@pytest.mark.parametrize('file, change', [
  ('small-train.array_record-00000-of-00001', lambda c: c[:len(c) // 2]),
  ('small-train.array_record-00000-of-00001', lambda c: c[:300] + bytes((c[300] ^ 1,)) + c[301:]),
  ('small-test.array_record-00000-of-00001', None),
  ('metadata.json', lambda c: c[:-9]),
  ('metadata.json', lambda c: c.replace(b'"format": 1', b'"format": 2')),
  ('metadata.json', lambda c: c.replace(b'"sha256": "', b'"sha256": "0')),
  ('dataset_info.json', lambda c: b'{'),
])
def test_damaged_data_is_one_line(tmp_path, file, change):
  directory = builders.write(image_content(), tmp_path)
  assert load('small', tmp_path).inputs.shape == (90, 4, 3, 3)
  path = directory / file
  if change is None:
    path.unlink()
  else:
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
  with pytest.raises(DataError) as error:
    load('small', tmp_path)
  message = str(error.value)
  assert '\n' not in message and str(directory) in message and 'prepare it again' in message


def test_default_directory(monkeypatch, tmp_path):
  monkeypatch.setenv('ACTNORM_DATA_DIR', str(tmp_path / 'a'))
  builders.write(image_content(), tmp_path / 'a')
  assert prepared_directory('small') == tmp_path / 'a' / 'small' / '1.0.0'
  monkeypatch.delenv('ACTNORM_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  builders.write(image_content(), tmp_path / '.cache' / 'actnorm-lab' / 'data')
  assert tmp_path / '.cache' in prepared_directory('small').parents


def test_pixel_statistics_of_known_values():
  mean, std = pixel_statistics(np.asarray([[0, 0, 8, 8]], np.uint8))
  assert (mean, std) == (4.0, 4.0)
  assert pixel_statistics(np.full((2, 3), 7, np.uint8)) == (7.0, 1.0)


def token_dataset(tmp_path, train=100, validation=35, test=31):
  tokens = {'train': train, 'validation': validation, 'test': test}
  inputs, start = {}, 0
  for split, count in tokens.items():
    inputs[split] = np.split(np.arange(start, start + count).astype(np.uint16), [count // 3])
    start += count
  builders.write(
      Content(name='count', kind='tokens', inputs=inputs, labels={}, vocab=500), tmp_path)
  return load('count', tmp_path)


def test_windows(tmp_path):
  dataset = token_dataset(tmp_path)
  np.testing.assert_array_equal(dataset.inputs, np.arange(166))
  windows = window_tokens(dataset, 10)
  # 100 tokens: window 9 would need token 100, which belongs to validation.
  assert windows.official == {'train': (0, 9), 'validation': (9, 12), 'test': (12, 15)}
  starts = [*range(0, 90, 10), 100, 110, 120, 135, 145, 155]
  np.testing.assert_array_equal(windows.inputs, np.add.outer(starts, np.arange(11)))
  assert windows.inputs.dtype == np.uint16 and windows.sha256 == dataset.sha256
  with pytest.raises(DataError, match="split 'test' has 31 tokens"):
    window_tokens(dataset, 31)
  assert window_tokens(dataset, 30).official['test'] == (4, 5)
  with pytest.raises(ValueError, match='flat token dataset'):
    window_tokens(windows, 10)


def parts_of(split):
  return split.train, split.val, split.test


def check_partition(split, total):
  parts = parts_of(split)
  assert all(p.dtype == np.int32 and np.all(np.diff(p) > 0) for p in parts)
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(total))


def test_digits_splits(digits):
  splits = make_splits(digits, 3, seed=0)
  overall = np.bincount(digits.labels)
  for split in splits:
    check_partition(split, 1797)
    assert [len(p) for p in parts_of(split)] == [1257, 270, 270]
    for part, share in zip(parts_of(split), (0.7, 0.15, 0.15)):
      assert np.all(np.abs(np.bincount(digits.labels[part]) - share * overall) < 2)
  assert not np.array_equal(splits[0].test, splits[1].test)
  again = make_splits(digits, 2, seed=0)
  for one, two in zip(splits, again):
    for p, q in zip(parts_of(one), parts_of(two)):
      np.testing.assert_array_equal(p, q)
  assert not np.array_equal(make_splits(digits, 1, seed=1)[0].val, splits[0].val)


def test_splits_are_the_same_for_ever(digits):
  """Numbers drawn once; a change would move every recorded result."""
  split = make_splits(digits, 1, seed=0)[0]
  digest = hashlib.sha256(b''.join(p.astype('<i4').tobytes() for p in parts_of(split)))
  assert digest.hexdigest()[:16] == '71e2d97dc8b3581c'


def test_official_test_set_is_kept(tmp_path):
  builders.write(image_content(), tmp_path)
  dataset = load('small', tmp_path)
  for split in make_splits(dataset, 2, seed=3):
    check_partition(split, 90)
    np.testing.assert_array_equal(split.test, np.arange(60, 90))
    assert np.bincount(dataset.labels[split.val]).tolist() == [2, 1, 1, 1, 1]
  large = dataclasses.replace(
      dataset, labels=np.arange(70_000, dtype=np.int32) % 10,
      official={'train': (0, 60_000), 'test': (60_000, 70_000)})
  assert np.bincount(large.labels[make_splits(large, 1, 0)[0].val]).tolist() == [500] * 10


def test_token_splits(tmp_path):
  windows = window_tokens(token_dataset(tmp_path), 10)
  one, two = make_splits(windows, 2, seed=5)
  check_partition(one, 15)
  np.testing.assert_array_equal(one.val, [9, 10, 11])
  np.testing.assert_array_equal(one.train, two.train)
  no_validation = dataclasses.replace(windows, official={'train': (0, 12), 'test': (12, 15)})
  np.testing.assert_array_equal(make_splits(no_validation, 1, 0)[0].val, [11])
  with pytest.raises(ValueError, match='window_tokens'):
    make_splits(token_dataset(tmp_path), 1, 0)
  with pytest.raises(ValueError, match='at least 1'):
    make_splits(windows, 0, 0)


def test_stratified_part_counts():
  labels = np.repeat([0, 1, 2], [10, 5, 3])
  mask = stratified_part(labels, 7, np.random.Philox(0))
  # 7 * (10, 5, 3) / 18 = 3.89, 1.94, 1.17
  assert np.bincount(labels[mask]).tolist() == [4, 2, 1]
