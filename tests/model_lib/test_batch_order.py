"""The batch order against a slow reference, and the properties that resuming rests on."""
from __future__ import annotations

import itertools

from hypothesis import given, strategies as st
import numpy as np
import pytest

from model_lib.training.batch_order import BatchOrder


def slow(seed: int, examples, batch: int, steps: int) -> np.ndarray:
  """[steps, batch]: whole epochs one after the other, cut into batches."""
  def endless():
    for epoch in itertools.count():
      yield from np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(
          np.asarray(examples, np.int32))
  return np.fromiter(itertools.islice(endless(), steps * batch), np.int32).reshape(steps, batch)


STREAM = st.tuples(
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=13, unique=True))


@given(st.lists(STREAM, min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 12))
def test_equals_the_slow_reference(streams, batch, steps):
  found = BatchOrder(streams, batch).block(0, steps)
  assert found.dtype == np.int32 and found.shape == (len(streams), steps, batch)
  for own, (seed, examples) in zip(found, streams, strict=True):
    np.testing.assert_array_equal(own, slow(seed, examples, batch, steps))


@given(st.lists(STREAM, min_size=1, max_size=2), st.integers(1, 9),
       st.lists(st.tuples(st.integers(0, 15), st.integers(1, 15)), min_size=1, max_size=5))
def test_blocks_do_not_depend_on_what_was_asked_before(streams, batch, questions):
  """Any start, any length, any order of asking: pieces of the one sequence."""
  order = BatchOrder(streams, batch)
  whole = BatchOrder(streams, batch).block(0, 30)
  for step, n in questions:
    np.testing.assert_array_equal(order.block(step, n), whole[:, step:step + n])


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 4))
def test_every_example_equally_often(count, batch, rounds):
  """After a whole number of epochs exactly; batches larger than an epoch included."""
  steps = rounds * count  # steps * batch is then a multiple of count
  seen = np.bincount(BatchOrder([(3, np.arange(count))], batch).block(0, steps).ravel())
  assert seen.tolist() == [rounds * batch] * count


def test_wrap_around_inside_a_batch():
  """Seven examples, batches of three: the third ends one epoch and begins the next."""
  flat = BatchOrder([(0, np.arange(7))], 3).block(0, 7).ravel()
  assert sorted(flat[:7]) == sorted(flat[7:14]) == sorted(flat[14:]) == list(range(7))
  assert flat[:7].tolist() != flat[7:14].tolist()


def test_streams_differ_by_seed_and_share_by_seed():
  examples = np.arange(50)
  a, b, c = BatchOrder([(1, examples), (2, examples), (1, examples)], 10).block(0, 5)
  assert not np.array_equal(a, b)
  np.testing.assert_array_equal(a, c)


def test_known_values():
  """The order is part of the bits of every run: it must not change with the code."""
  found = BatchOrder([(5, np.arange(10))], 4).block(2, 2)
  np.testing.assert_array_equal(found, slow(5, np.arange(10), 4, 4)[None, 2:])
  assert found.tolist() == [[[2, 1, 6, 3], [1, 2, 0, 9]]]


@pytest.mark.parametrize('streams, batch, part', [
  ([(0, np.arange(3))], 0, 'batch_size is 0'),
  ([(-1, np.arange(3))], 1, 'seed >= 0'),
  ([(0, np.arange(0))], 1, 'examples; got 0, 0'),
])
def test_impossible_orders(streams, batch, part):
  with pytest.raises(ValueError, match=part):
    BatchOrder(streams, batch)
