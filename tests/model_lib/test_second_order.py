"""Second-order share of a branch: gradients by differences, slopes in depth, the published form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from model_lib.analysis.second_order import (
    FUNCTIONS, Network, depth_slope, linearization_distances, second_order_share)

DEPTHS = (2, 4, 8, 16, 32)


def _data(examples: int = 32, inputs: int = 64) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  return rng.normal(size=(examples, inputs)), rng.integers(0, 10, examples)


@dataclasses.dataclass(frozen=True)
class _Moved(Network):
  """The network with an entry of W1 or W2 of branch 1 moved."""

  which: int = 0
  by: float = 0.0

  def weights(self, block):
    found = super().weights(block)
    if block == 1:
      found[self.which][3, 5] += self.by
    return found


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('which', [0, 1])
def test_gradients_against_differences(function, which) -> None:
  x, labels = _data(8)
  own = dict(depth=5, alpha=0.5, width=16, function=function)

  def loss(by):
    network = _Moved(**own, which=which, by=by)
    u, v = network.ends(x.shape[1])
    h = x @ u
    for block in range(network.depth):
      h = h + network.branch_scale * network.branch(h, network.weights(block))
    logits = h @ v
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), labels])

  gradient = Network(**own).gradients(x, labels)[1][which][3, 5]
  assert (loss(1e-5) - loss(-1e-5)) / 2e-5 == pytest.approx(gradient, rel=1e-4, abs=1e-10)
  assert gradient != 0


def test_the_derivative_along_a_step() -> None:
  network, (x, _) = Network(4, 0.5, 16), _data(8, 16)
  weights = network.weights(1)
  rng = np.random.default_rng(1)
  step = tuple(rng.normal(size=w.shape) for w in weights)

  def at(t):
    return network.branch(x, tuple(w + t * d for w, d in zip(weights, step, strict=True)))

  np.testing.assert_allclose(network.derivative(x, weights, step), (at(1e-5) - at(-1e-5)) / 2e-5,
                             rtol=1e-6, atol=1e-8)


def _shares(alpha, depths, seeds, **kwargs) -> np.ndarray:
  x, labels = _data()
  return np.array([[second_order_share(Network(depth, alpha, seed=seed, **kwargs), x, labels)
                    for depth in depths] for seed in range(seeds)])


@pytest.mark.parametrize('alpha', [0.5, 0.75, 1.0])
def test_slopes_in_depth(alpha) -> None:
  """alpha - 1 within 0.1: the three differ by more than twice that."""
  assert depth_slope(DEPTHS, _shares(alpha, DEPTHS, 3)) == pytest.approx(alpha - 1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('alpha', [0.5, 0.75, 1.0])
def test_slopes_in_depth_at_full_size(alpha) -> None:
  depths = 2 ** np.arange(1, 9)
  found = depth_slope(depths, _shares(alpha, depths, 10))
  print(alpha, found)
  assert found == pytest.approx(alpha - 1, abs=0.1)


def test_the_share_is_of_second_order_in_the_rate() -> None:
  x, labels = _data()
  network = Network(4, 1.0)
  small, large = (second_order_share(network, x, labels, rate=rate) for rate in (1e-4, 1e-3))
  assert large / small == pytest.approx(10, rel=0.05)


def test_the_published_measure_is_its_indexing() -> None:
  """`notebook` is far above rounding and falls with depth; `correct` is rounding."""
  x, labels = _data(16)
  found = {depth: [linearization_distances(
    Network(depth, 0.5, 64, 'relu', seed, uniform_ends=True), x, labels) for seed in range(15)]
    for depth in (2, 32)}
  medians = {(name, depth): np.median([each[name] for each in rows])
             for depth, rows in found.items() for name in ('notebook', 'correct')}
  assert medians['correct', 2] < 1e-12 and medians['correct', 32] < 1e-12
  assert medians['notebook', 32] > 1e-8
  assert medians['notebook', 32] < 0.5 * medians['notebook', 2]
