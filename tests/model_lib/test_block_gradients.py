"""Gradient norms of a vision transformer's parts, and the parameters that training begins with."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from model_lib import models
from model_lib.analysis.block_gradients import gradient_norms, initializer
from model_lib.training.population import Population
from model_lib.training.tasks import Classification
from tests.model_lib import model_cases as cases
from tests.model_lib.engine import MLP, cohort, images, members


def test_gradient_norms_are_those_of_the_parameters() -> None:
  model = models.build('vit', **{**cases.SIZES['vit'], 'depth': 2}, activation='relu',
                       norm='pre:rms', stem_norm='post:rms')
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 4, 4, 4)).astype(np.float32)
  labels = rng.integers(0, 10, (3, 4)).astype(np.int32)
  variables = cases.numbers(model, x[0])

  def loss(params, x, labels):
    logits = model.apply({**variables, 'params': params}, x, train=True)
    return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 10)).sum(-1).mean()

  def compiled(function):
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})

  stem, blocks = 0.0, np.zeros(2)
  gradient = compiled(jax.grad(loss))
  for batch in zip(x, labels, strict=True):
    g = jax.device_get(gradient(variables['params'], *batch))
    stem += sum((leaf.astype(np.float64)**2).sum() for leaf in g['stem'].values()) / 3
    for path, leaf in jax.tree_util.tree_leaves_with_path(g['blocks']):
      number = path[0].key.rpartition('_')[2]
      if number != 'final':
        blocks[int(number)] += (leaf.astype(np.float64)**2).sum() / 3
  found = compiled(gradient_norms(model))(variables, x, labels)
  np.testing.assert_allclose(found[0], np.sqrt(stem), rtol=1e-4)
  np.testing.assert_allclose(found[1], np.sqrt(blocks), rtol=1e-4)
  assert abs(blocks[0] / blocks[1] - 1) > 1e-2  # exchanged blocks would show


def test_a_start_is_the_state_that_training_begins_with() -> None:
  runs = members(3, init_gain=0.5)
  arrays = images()
  population = Population(cohort(MLP, runs), models.build(MLP.name, **MLP.arguments),
                          Classification(127.0, 70.0), arrays, 'map')
  begun = population.initial(runs)
  start = initializer(population.model, np.zeros((2, 8, 8), np.float32))
  hp = jax.tree.map(lambda leaf: leaf[2], begun.hp['model'])

  def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]

  expected = bits(jax.tree.map(lambda leaf: leaf[2], begun.params))
  assert bits(start(hp, runs[2].seed)) == expected
  assert bits(start(hp, runs[1].seed)) != expected
  wider = jax.tree.map(lambda leaf: leaf * 2, hp)
  assert bits(start(wider, runs[2].seed)) != expected
