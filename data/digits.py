"""The embedded image set `digits`: 1,797 handwritten 8x8 digits, values 0..16, 10 classes.

Source: the test part of the UCI 'Optical Recognition of Handwritten Digits' data as
scikit-learn ships it. The file's own order puts other writers last, so the cut into
train (1,527) and test (270) is stratified with a fixed seed and not by position.
"""

from __future__ import annotations

import numpy as np

from data.content import Content
from data.splits import stratified_part

_SEED = 1797
_TEST = 270


def read() -> Content:
  """The content of `digits`; reads scikit-learn's file, no network."""
  from sklearn.datasets import load_digits  # 0.8 s, needed to prepare only

  bunch = load_digits()
  images = bunch.images.astype(np.uint8)
  labels = bunch.target.astype(np.int32)
  held = stratified_part(labels, _TEST, np.random.Philox(_SEED))
  return Content(
      name='digits', kind='images',
      inputs={'train': images[~held], 'test': images[held]},
      labels={'train': labels[~held], 'test': labels[held]},
      num_classes=10, official=False,
      about="scikit-learn's handwritten digits; the cut is stratified with a fixed seed")
