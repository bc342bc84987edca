"""Batches from the device and from a stream: the same examples, from any step."""
from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from data import builders
from data.content import Content
from data.device import DeviceFeed
from data.errors import DataError
from data.load import load
from data.streaming import ImageSource, StreamFeed
from tests.data.make_files import SimpleOrder, random_images


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """(data directory, dataset) of 50 + 20 images."""
  root = tmp_path_factory.mktemp('feeds')
  content = Content(
      name='small', kind='images', num_classes=7,
      inputs={'train': random_images(50, (4, 3)), 'test': random_images(20, (4, 3), 1)},
      labels={'train': np.arange(50, dtype=np.int32) % 7,
              'test': np.arange(20, dtype=np.int32) % 7})
  builders.write(content, root)
  return root, load('small', root)


def gathered(feed, step, n):
  arrays, idx = feed.block(step, n)
  assert idx.dtype == np.int32
  return {key: np.asarray(array)[idx] for key, array in arrays.items()}


def feeds(prepared):
  root, dataset = prepared
  arrays = {'inputs': dataset.inputs, 'labels': dataset.labels}
  return (DeviceFeed(arrays, SimpleOrder(70)),
          StreamFeed(ImageSource('small', root), SimpleOrder(70)))


def test_stream_equals_device(prepared):
  device, stream = feeds(prepared)
  numbers = SimpleOrder(70).block(4, 5)
  assert numbers.shape == (2, 5, 3) and len(np.unique(numbers)) > 20
  expected = {'inputs': prepared[1].inputs[numbers], 'labels': prepared[1].labels[numbers]}
  for feed in (device, stream):
    found = gathered(feed, 4, 5)
    assert found.keys() == expected.keys()
    for key in expected:
      np.testing.assert_array_equal(found[key], expected[key])
      assert found[key].dtype == expected[key].dtype
  stream.close()


def test_any_start_and_any_block_length(prepared):
  device, stream = feeds(prepared)
  for step, n in ((0, 3), (3, 1), (4, 6), (1000, 2), (2, 2), (2, 2), (4, 1)):
    a, b = gathered(device, step, n), gathered(stream, step, n)
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=f'{key} at {step}')
  stream.close()


def test_stream_holds_exactly_the_block(prepared):
  _, stream = feeds(prepared)
  arrays, idx = stream.block(0, 4)
  assert arrays['inputs'].shape == (2 * 4 * 3, 4, 3)
  np.testing.assert_array_equal(idx.reshape(-1), np.arange(24))
  stream.close()


def test_device_arrays_are_placed_once(prepared):
  import jax
  device, _ = feeds(prepared)
  first, second = device.block(0, 1)[0], device.block(7, 2)[0]
  assert isinstance(first['inputs'], jax.Array)
  assert all(first[key] is second[key] for key in first)
  device.close()


class CountingSource:
  """Counts the steps that were read, and fails on request."""

  def __init__(self, fail_at: int | None = None):
    self.calls, self.fail_at = 0, fail_at

  def gather(self, numbers):
    self.calls += 1
    if self.fail_at is not None and self.calls > self.fail_at:
      raise DataError('disk/file: damaged')
    return {'inputs': np.asarray(numbers, np.int32)}


def wait_for(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_reading_runs_ahead_and_stops(prepared):
  source = CountingSource()
  before = threading.active_count()
  feed = StreamFeed(source, SimpleOrder(70), threads=2, prefetch=5)
  feed.block(0, 1)
  wait_for(lambda: source.calls >= 5)  # ahead of the one step that was asked for
  time.sleep(0.2)
  assert source.calls <= 1 + 5 + 2  # and bounded
  feed.close()
  feed.close()
  wait_for(lambda: threading.active_count() <= before)
  np.testing.assert_array_equal(
      feed.block(9, 1)[0]['inputs'], SimpleOrder(70).block(9, 1).reshape(-1))
  feed.close()


def test_continuing_reads_nothing_twice():
  source = CountingSource()
  feed = StreamFeed(source, SimpleOrder(70), threads=1, prefetch=2)
  for step in range(0, 40, 4):
    feed.block(step, 4)
  assert source.calls <= 40 + 2 + 2
  feed.close()


def test_a_reading_error_reaches_the_caller():
  feed = StreamFeed(CountingSource(fail_at=2), SimpleOrder(70))
  with pytest.raises(DataError, match='disk/file: damaged'):
    feed.block(0, 10)
  feed.close()


def test_damage_on_the_disk_reaches_the_caller(tmp_path):
  content = Content(
      name='small', kind='images', num_classes=2, inputs={'train': random_images(500, (30, 30))},
      labels={'train': np.zeros(500, np.int32)})
  directory = builders.write(content, tmp_path)
  path = directory / 'small-train.array_record-00000-of-00001'
  damaged = bytearray(path.read_bytes())
  damaged[2000:2200] = bytes(200)
  path.write_bytes(damaged)
  feed = StreamFeed(ImageSource('small', tmp_path), SimpleOrder(500))
  with pytest.raises(DataError, match='damaged'):
    feed.block(0, 200)
  feed.close()


def test_tokens_are_not_streamed(tmp_path):
  tokens = np.arange(30, dtype=np.uint8)
  builders.write(Content(name='t', kind='tokens', inputs={'train': [tokens]}, labels={},
                         vocab=256), tmp_path)
  with pytest.raises(ValueError, match='tokens are not streamed'):
    ImageSource('t', tmp_path)
