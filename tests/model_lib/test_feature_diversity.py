"""Feature diversity: on paths of known exponent, and on trained networks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model_lib import models
from model_lib.analysis.feature_diversity import increments, moved_share, slope
from model_lib.errors import UserError
from model_lib.models.hyper import set_hp

DEPTH = 256


def _paths() -> dict[str, np.ndarray]:
  """[L + 1, 8, 16]: a smooth path, a random walk, and independent layers."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(DEPTH + 1, 8, 16))
  place = np.linspace(0, 1, DEPTH + 1)[:, None, None]
  return {'smooth': np.sin(place * noise[:1] + noise[1:2]), 'walk': np.cumsum(noise, 0),
          'independent': noise}


@pytest.mark.parametrize(('path', 'expected'), [('smooth', 1.0), ('walk', 0.5),
                                                ('independent', 0.0)])
def test_paths_of_known_exponent(path, expected) -> None:
  stream = _paths()[path]
  assert slope(stream) == pytest.approx(expected, abs=0.03)
  assert slope(7 * stream) == pytest.approx(slope(stream))


def test_increments_are_means_over_all_layers() -> None:
  stream = np.square(np.arange(5.0))[:, None, None] * np.ones((1, 2, 3))
  np.testing.assert_allclose(increments(stream, (1 / 4, 1 / 2, 1)), [4, 8, 16])


def test_a_share_that_is_no_layer_is_refused() -> None:
  with pytest.raises(UserError, match='a share 0.015625 of 16 layers is no number of layers'):
    slope(np.zeros((17, 2, 2)))


def test_the_share_that_moved() -> None:
  rng = np.random.default_rng(0)
  start, change = rng.normal(size=(2, 65, 8, 64))
  assert moved_share(start + change, start) == pytest.approx(0.5 ** 0.5, abs=0.02)
  assert moved_share(start, start) == 0


@functools.cache
def _streams(alpha: float, activation: str, c: float, steps: int,
             depth: int) -> tuple[np.ndarray, np.ndarray]:
  """The stream before and after Adam on the stack, for random images and labels."""
  base, rate = 4, 2 ** -8.5
  model = models.build('deep_mlp', width=64, depth=depth, activation=activation)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(1024, 64)), jnp.float32)
  y = jnp.asarray(np.argmax(x @ rng.normal(size=(64, 10)), 1), jnp.int32)
  variables = jax.jit(lambda key: model.init(key, x[:2], train=False))(jax.random.key(0))
  m = depth / base
  hp = set_hp(variables['hp'], branch_scale=m ** -alpha, activation_scale=c, readout_scale=0.5)
  params = variables['params']
  # gamma = 1 - alpha: the rate of Adam, and its eps with the gradient's size.
  tx = optax.adam(rate * m ** (alpha - 1), eps=1e-12)

  def loss(stack, index):
    logits = model.apply({'params': {**params, 'stack': stack}, 'hp': hp}, x[index], train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[index]).mean()

  @jax.jit
  def train(stack, order):
    def step(carry, index):
      stack, state = carry
      updates, state = tx.update(jax.grad(loss)(stack, index), state)
      return (optax.apply_updates(stack, updates), state), None
    return jax.lax.scan(step, (stack, tx.init(stack)), order)[0][0]

  @jax.jit
  def probe(stack):
    _, taps = model.apply({'params': {**params, 'stack': stack}, 'hp': hp}, x[:256], train=False,
                          mutable=['intermediates'])
    return taps['intermediates']['stack']['stream'][0]

  order = rng.integers(0, 1024, (steps, 64))
  return np.asarray(probe(params['stack'])), np.asarray(probe(train(params['stack'], order)))


CASES = {'relu': (0.5, 'relu', 2 ** 0.5), 'abs': (0.5, 'abs', 1.0), 'ode': (1.0, 'relu', 2 ** 0.5)}


def _row(case: str, steps: int, depth: int) -> dict[str, float]:
  start, end = _streams(*CASES[case], steps, depth)
  return {'start': slope(start), 'end': slope(end), 'update': slope(end - start),
          'moved': moved_share(end, start)}


def test_diversity_after_few_steps() -> None:
  """What the slow test says, at a size that separates less."""
  walk, ode = (_row(case, steps=20, depth=64) for case in ('relu', 'ode'))
  assert abs(walk['start'] - 0.5) <= 0.03 and abs(ode['start'] - 0.5) <= 0.03
  assert min(walk['moved'], ode['moved']) >= 0.3
  assert walk['update'] <= 0.6 and ode['update'] - walk['update'] > 0.1


@pytest.mark.slow
def test_diversity_of_deep_networks() -> None:
  """The slope is 0.6 at most with alpha = gamma = 1/2, and 0.7 with alpha = 1."""
  rows = {case: _row(case, steps=100, depth=DEPTH) for case in CASES}
  print(rows)
  for row in rows.values():
    assert row['start'] == pytest.approx(0.5, abs=0.03) and row['moved'] >= 0.3
  for stream in ('end', 'update'):
    slopes = {case: row[stream] for case, row in rows.items()}
    assert slopes['relu'] <= 0.6 and slopes['abs'] <= 0.6 and slopes['ode'] >= 0.7
    assert slopes['ode'] - max(slopes['relu'], slopes['abs']) >= 0.2
