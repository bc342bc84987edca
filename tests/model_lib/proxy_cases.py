"""A small task and candidates for the tests of the proxies."""

import numpy as np

from model_lib.search import parse
from model_lib.search.proxies import Evaluated, Task


def task_of(n=40, n_val=30, d=5, classes=3, seed=0):
  """Classes that are sectors of the first two inputs."""
  x = np.random.default_rng(seed).standard_normal((n + n_val, d)).astype(np.float32)
  y = ((np.arctan2(x[:, 0], x[:, 1]) / np.pi + 1) / 2 * classes).astype(np.int32) % classes
  return Task(x[:n], y[:n], x[n:], y[n:])


def evaluated(*texts):
  return Evaluated.of([parse(text) for text in texts])
