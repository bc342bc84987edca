"""Preparing, loading and streaming where importing TensorFlow fails; the import of TFDS sets."""
from __future__ import annotations

import numpy as np
import pytest

from data.errors import DataError
from data.tfds_import import held_out, stack_examples
from tests import helpers
from tests.data.make_files import write_cifar10

FAKE = {'PYTHONPATH': str(helpers.FAKE_TENSORFLOW)}


def test_the_stand_in_raises():
  child = helpers.run_python('import tensorflow', env=FAKE)
  assert child.returncode == 1 and 'TensorFlow was imported' in child.stderr


def test_prepare_load_and_stream(tmp_path):
  write_cifar10(tmp_path / 'c')
  prepared = helpers.run_module(
      'data.prepare', '--dataset=cifar10', f'--source={tmp_path / "c"}', '--variant=small',
      f'--data_dir={tmp_path / "d"}', env=FAKE)
  assert prepared.returncode == 0 and prepared.stderr == '', prepared
  assert prepared.stdout.count('\n') == 2
  code = f'''
import sys
import numpy as np
from data.load import load
from data.streaming import ImageSource, StreamFeed
from tests.data.make_files import SimpleOrder
root = {str(tmp_path / "d")!r}
dataset = load('cifar10-small', root)
load('digits', root)
load('pystdlib', root)
feed = StreamFeed(ImageSource('cifar10-small', root), SimpleOrder(120))
arrays, idx = feed.block(3, 4)
feed.close()
expected = dataset.inputs[SimpleOrder(120).block(3, 4)]
np.testing.assert_array_equal(arrays['inputs'][idx], expected)
assert 'tensorflow' not in sys.modules
'''
  child = helpers.run_python(code, env={**FAKE, 'PYTHONWARNINGS': 'error'})
  assert child.returncode == 0 and child.stdout == '' and child.stderr == '', child


@pytest.mark.parametrize('name', ['svhn_cropped', 'group/set:1.0.0'])
def test_tfds_sets_need_tensorflow(tmp_path, name):
  child = helpers.run_module(
      'data.prepare', f'--dataset=tfds:{name}', f'--data_dir={tmp_path / "d"}', env=FAKE)
  assert child.returncode == 2 and child.stdout == ''
  assert child.stderr == (
    f'data.prepare: tfds:{name}: this needs TensorFlow, which cannot be imported here '
    '(RuntimeError); pip install tensorflow\n')
  assert list((tmp_path / 'd').iterdir()) == []


def test_the_test_set_of_a_tfds_set():
  assert held_out(['train', 'validation', 'test']) == 'test'
  assert held_out(['train', 'validation']) == 'validation'
  with pytest.raises(DataError, match='has train'):
    held_out(['train'])


def example(shape, label, dtype=np.uint8):
  return {'image': np.full(shape, label, dtype), 'label': np.int64(label)}


def test_examples_of_a_tfds_set_are_stacked():
  images, labels = stack_examples(example((4, 4, 3), i) for i in range(5))
  assert images.shape == (5, 4, 4, 3) and images[3, 0, 0, 0] == 3
  assert labels.tolist() == [0, 1, 2, 3, 4] and labels.dtype == np.int32
  assert stack_examples([example((4, 4, 1), 0)])[0].shape == (1, 4, 4)  # one grey channel


@pytest.mark.parametrize('examples, part', [
  ([], 'empty split'),
  ([example((4, 4, 3), 0), example((4, 5, 3), 0)], r'image 1 is uint8 \[4, 5, 3\]'),
  ([example((4, 4, 3), 0, np.float32)], 'image 0 is float32'),
  ([{'text': b'x'}], 'needs the features image and label, has text'),
])
def test_tfds_sets_of_another_layout(examples, part):
  with pytest.raises(DataError, match=part):
    stack_examples(examples)
