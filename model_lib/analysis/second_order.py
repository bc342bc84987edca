"""What of a branch's change is of second order in its weights, after one step, at any depth.

Residual blocks of two matrices, x_l = x_{l-1} + (L / L_b)^-alpha f_l(x_{l-1}) with

  f(x) = W2' phi(W1' phi(x)),   W' = (g / N)^1/2 W,   W ~ N(0, 1),

g = 2 for ReLU and 1 for tanh, and logits V x_L / N. After one Adam step on the weights of the
second branch alone, which moves their entries by about rate (L / L_b)^(alpha - 1),

  share = |df - df_lin| / |df_lin|,   df_lin = the derivative of f along the step,

norms over neurons and examples, the branch's input being what it was. df_lin goes as the step and
the rest as its square, so that share goes as L^(alpha - 1): at alpha = 1/2 a deep branch is
linear in its weights, at alpha = 1 it is not (Dey et al. 2025, CompleteP). That is for a smooth
phi: with ReLU, whose second order sits in its kinks, the few entries that cross one make it noisy.

The published measure is another one (figure 6 and its notebook, with L_b = 2, rates
rate N^-1/2 (L / L_b)^(alpha - 1), one neuron h of one example, and W1 alone moved):

  |h_1 - lin| / |lin|,   lin = h_0 + sum over i, j of dW_ij dh_0/dW_ij     `correct`
                         lin = h_0 + sum over i, j of dW_0j dh_0/dW_ij     `notebook`

The notebook takes the first row of dW for all of its rows. With the right sum the measure is
rounding, since h is piecewise linear in W1 and the step does not reach a kink of ReLU.

Everything is NumPy in float64, in which that rounding can be told from an effect. The weights of
a block are drawn anew where they are needed, and do not depend on L.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import numpy as np

FUNCTIONS: dict[str, tuple[Callable, Callable, float]] = {  # phi, phi', g
  'relu': (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0), 2.0),
  'tanh': (np.tanh, lambda x: 1 - np.tanh(x) ** 2, 1.0),
}
BASE_DEPTH = 2
_MOVED = 1  # number of the branch that moves, from 0


@dataclasses.dataclass(frozen=True)
class Network:
  """The residual network of the module's docstring.

  Attributes:
    depth: L, at least 2.
    alpha: exponent of the branches.
    width: N.
    function: key of FUNCTIONS.
    seed: of the weights.
    classes: outputs.
    uniform_ends: whether the first and the last matrix are uniform within fan_in^-1/2, before
      their factors D^-1/2 and 1 / N, as in the notebook, instead of N(0, 1).
  """

  depth: int
  alpha: float
  width: int = 64
  function: str = 'tanh'
  seed: int = 0
  classes: int = 10
  uniform_ends: bool = False

  @property
  def branch_scale(self) -> float:
    """(L / L_b)^-alpha."""
    return (self.depth / BASE_DEPTH) ** -self.alpha

  def ends(self, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """U [D, N] and V [N, classes], their factors included."""
    rng = np.random.default_rng([self.seed, 0])
    shapes = (inputs, self.width), (self.width, self.classes)
    u, v = (rng.uniform(-1, 1, shape) * shape[0] ** -0.5 if self.uniform_ends
            else rng.standard_normal(shape) for shape in shapes)
    return u * inputs ** -0.5, v / self.width

  def weights(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    """W1 and W2 [out, in] of a block, without their factors."""
    rng = np.random.default_rng([self.seed, 1 + block])
    first, second = rng.standard_normal((2, self.width, self.width))
    return first, second

  def branch(self, x: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """f(x), x [B, N]."""
    phi, _, _ = FUNCTIONS[self.function]
    return self._factor * phi(self._inner(x, weights[0])) @ weights[1].T

  def derivative(self, x: np.ndarray, weights: tuple[np.ndarray, np.ndarray],
                 step: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The derivative of f(x) along a step of its weights."""
    phi, slope, _ = FUNCTIONS[self.function]
    inner = self._inner(x, weights[0])
    moved = slope(inner) * self._inner(x, step[0])
    return self._factor * (phi(inner) @ step[1].T + moved @ weights[1].T)

  def pull_back(self, x: np.ndarray, weights: tuple[np.ndarray, np.ndarray], gradient: np.ndarray,
                ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """From dL/df [B, N] to dL/dx through f, and dL/dW1, dL/dW2."""
    phi, slope, _ = FUNCTIONS[self.function]
    inner = self._inner(x, weights[0])
    of_second = self._factor * gradient.T @ phi(inner)
    back = self._factor * (gradient @ weights[1]) * slope(inner)
    of_first = self._factor * back.T @ phi(x)
    return self._factor * (back @ weights[0]) * slope(x), (of_first, of_second)

  def gradients(self, x: np.ndarray, labels: np.ndarray,
                ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The input of the moved branch, and the gradients of its weights for the mean cross-entropy.

    Args:
      x: inputs [B, D].
      labels: int [B].
    """
    u, v = self.ends(x.shape[1])
    stream = [x @ u]
    for block in range(self.depth):
      stream.append(stream[-1] + self.branch_scale * self.branch(stream[-1], self.weights(block)))
    logits = stream[-1] @ v
    odds = np.exp(logits - logits.max(1, keepdims=True))
    error = odds / odds.sum(1, keepdims=True) - np.eye(self.classes)[labels]
    gradient = error @ v.T / len(x)
    for block in range(self.depth - 1, _MOVED, -1):
      gradient = gradient + self.branch_scale * self.pull_back(
        stream[block], self.weights(block), gradient)[0]
    own = self.weights(_MOVED)
    return stream[_MOVED], self.pull_back(
      stream[_MOVED], own, self.branch_scale * gradient)[1]

  @property
  def _factor(self) -> float:
    return math.sqrt(FUNCTIONS[self.function][2] / self.width)

  def _inner(self, x: np.ndarray, first: np.ndarray) -> np.ndarray:
    return self._factor * FUNCTIONS[self.function][0](x) @ first.T


def _adam(network: Network, gradient: np.ndarray, rate: float, eps: float) -> np.ndarray:
  """The first step, -rate (L / L_b)^(alpha - 1) g / (|g| + eps (L / L_b)^-alpha)."""
  ratio, alpha = network.depth / BASE_DEPTH, network.alpha
  return -rate * ratio ** (alpha - 1) * gradient / (np.abs(gradient) + eps * ratio ** -alpha)


def second_order_share(network: Network, x: np.ndarray, labels: np.ndarray, rate: float = 1e-2,
                       eps: float = 1e-12) -> float:
  """|df - df_lin| / |df_lin| after a step of both weights of the branch.

  Args:
    network: of depth at least 2.
    x, labels: inputs [B, D] and classes [B].
    rate, eps: of Adam at depth L_b.
  """
  inputs, gradients = network.gradients(x, labels)
  weights = network.weights(_MOVED)
  step = tuple(_adam(network, gradient, rate, eps) for gradient in gradients)
  change = network.branch(inputs, tuple(w + d for w, d in zip(weights, step, strict=True)))
  change -= network.branch(inputs, weights)
  linear = network.derivative(inputs, weights, step)
  return float(np.linalg.norm(change - linear) / np.linalg.norm(linear))


def linearization_distances(network: Network, x: np.ndarray, labels: np.ndarray,
                            rate: float = 1e-4, eps: float = 1e-8) -> dict[str, float]:
  """The published measure, as `notebook` and as `correct`.

  The published setting is Network(depth, alpha, 256, 'relu', seed, uniform_ends=True) with 128
  images of MNIST, of mean 0 and variance 1.

  Args:
    network: of depth at least 2.
    x, labels: inputs [B, D] and classes [B].
    rate, eps: of Adam at depth L_b; the rate is divided by N^1/2.
  """
  inputs, (of_first, _) = network.gradients(x, labels)
  first, second = network.weights(_MOVED)
  step = _adam(network, of_first, rate * network.width ** -0.5, eps)
  unit = np.zeros_like(inputs)
  unit[0, 0] = 1.0  # the first neuron of the first example
  of_neuron = network.pull_back(inputs, (first, second), unit)[1][0]
  before = network.branch(inputs, (first, second))[0, 0]
  after = network.branch(inputs, (first + step, second))[0, 0]
  linear = {'notebook': before + np.sum(step[0] * of_neuron),
            'correct': before + np.sum(step * of_neuron)}
  return {name: float(abs(after / value - 1)) for name, value in linear.items()}


def depth_slope(depths: np.ndarray, values: np.ndarray) -> float:
  """Slope of the mean of log2 values [seeds, depths] on log2 of the depths."""
  return float(np.polyfit(np.log2(depths), np.log2(values).mean(0), 1)[0])
