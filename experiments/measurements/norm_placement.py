"""What norm_placement measures in its networks beside training them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch.study import Given


def measure_gradients(given: Given, cohorts: Sequence[str], first_seed: int, batch_size: int,
                      batches: int) -> list[dict]:
  """Gradient norms of the stem and of the median block, before the first step and after the last.

  Over batches of training images, of the size that training takes.
  """
  import jax
  from launch.study.datasets import part_of_train
  from model_lib.analysis.block_gradients import gradient_norms, initializer
  images, split = given.data.dataset, given.data.splits[0]
  numbers = part_of_train(split)
  numbers = numbers[:min(batches, len(numbers) // batch_size) * batch_size]
  labels = np.asarray(images.labels, np.int32)[numbers].reshape(-1, batch_size)
  found = []
  for name in cohorts:
    trained = given.trained(name)
    x = (images.inputs[numbers].astype(np.float32) - trained.task['mean']) / trained.task['std']
    norms = jax.jit(gradient_norms(trained.model))
    start = initializer(trained.model, x[:2])
    x = x.reshape(-1, batch_size, *x.shape[1:])
    for place, row in enumerate(trained.rows):
      if row['role'] != 'tested' or row['diverged_step'] >= 0:
        continue
      end = jax.tree.map(lambda leaf, place=place: leaf[place], trained.variables)
      begin = {**end, 'params': start(end['hp'], first_seed + row['seed'])}
      for at, variables in (('start', begin), ('end', end)):
        stem, blocks = map(np.asarray, norms(variables, x, labels))
        found.append({'phase': 'gradients', 'arm': row['arm'], 'blocks': row['blocks'],
                      'stem': row['stem'], 'seed': row['seed'], 'at': at,
                      'stem_gradient': float(stem), 'block_gradient': float(np.median(blocks)),
                      'gradient_ratio': float(stem / np.median(blocks))})
  return found
