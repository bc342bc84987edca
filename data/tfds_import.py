"""Any other TFDS image set, through a child process: the only user of TensorFlow and network.

The child (`python -m data.tfds_import NAME DIR`) lets TFDS download and decode the set and
saves plain .npy files into DIR; this process reads those.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping

import numpy as np

from data.content import Content
from data.errors import DataError


def read(name: str, temporary: pathlib.Path) -> Content:
  """Fetches the TFDS dataset `name`; intermediate files go into `temporary`.

  Raises:
    DataError: the child failed; its last line says why.
  """
  command = [sys.executable, '-m', 'data.tfds_import', name, str(temporary)]
  # The child ends when its standard input closes, that is also when this process is killed.
  child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
  try:
    output = child.stdout.read()
  finally:
    child.stdin.close()
    child.stdout.close()
    child.wait()
  if child.returncode:
    lines = output.strip().splitlines() or ['no message']
    raise DataError(f'tfds:{name}: {lines[-1]}')
  images = {}
  labels = {}
  for split in ('train', 'test'):
    images[split] = np.load(temporary / f'{split}-images.npy', allow_pickle=False)
    labels[split] = np.load(temporary / f'{split}-labels.npy', allow_pickle=False)
  num_classes = 1 + int(max(part.max() for part in labels.values()))
  return Content(
      name='tfds-' + re.sub(r'[^A-Za-z0-9._]+', '-', name).lower(), kind='images',
      inputs=images, labels=labels, num_classes=num_classes,
      about=f'the split train of the TFDS dataset {name}, and test or, where it has none, '
      'validation')


def held_out(splits: Iterable[str]) -> str:
  """The split that serves as the test set: test, or validation where there is none (ImageNet).

  Raises:
    DataError: there is neither.
  """
  names = list(splits)
  for name in ('test', 'validation'):
    if name in names:
      return name
  raise DataError(f'needs a split test or validation, has {", ".join(names) or "none"}')


def stack_examples(examples: Iterable[Mapping[str, object]]) -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [n, ...], int32 [n]) of examples with 'image' and 'label'.

  Raises:
    DataError: no examples, another feature layout, or images of different sizes.
  """
  images, labels = [], []
  for example in examples:
    if 'image' not in example or 'label' not in example:
      raise DataError(f'needs the features image and label, has {", ".join(example)}')
    image = np.asarray(example['image'])
    if image.dtype != np.uint8 or (images and image.shape != images[0].shape):
      raise DataError(f'image {len(images)} is {image.dtype} {list(image.shape)}; all must be '
                      'uint8 of one size')
    images.append(image)
    labels.append(int(example['label']))
  if not images:
    raise DataError('has an empty split')
  stacked = np.stack(images)
  return stacked[..., 0] if stacked.shape[-1] == 1 else stacked, np.asarray(labels, np.int32)


def _child(name: str, directory: pathlib.Path) -> None:
  try:
    import tensorflow  # noqa: F401  pylint: disable=unused-import
  except Exception as e:  # a broken TensorFlow raises anything
    raise DataError('this needs TensorFlow, which cannot be imported here '
                    f'({type(e).__name__}); pip install tensorflow') from e
  import tensorflow_datasets as tfds

  builder = tfds.builder(name, data_dir=str(directory / 'tfds'))
  builder.download_and_prepare()
  for saved, split in (('train', 'train'), ('test', held_out(builder.info.splits))):
    dataset = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    images, labels = stack_examples(dataset)
    np.save(directory / f'{saved}-images.npy', images)
    np.save(directory / f'{saved}-labels.npy', labels)


def _end_with_parent() -> None:
  os.read(0, 1)  # not sys.stdin: its lock would be held at exit
  os._exit(75)


if __name__ == '__main__':
  threading.Thread(target=_end_with_parent, daemon=True).start()
  try:
    _child(sys.argv[1], pathlib.Path(sys.argv[2]))
  except Exception as error:  # the parent prints the last line only
    sys.exit(f'{type(error).__name__}: {error}' if not isinstance(error, DataError)
             else str(error))
