"""A Gaussian process over a finite list of candidates, and the search by expected improvement.

Sources: Rasmussen & Williams 2006, chapters 2 and 5; for the expected improvement Jones, Schonlau
& Welch 1998. The grid of hyperparameters is this project's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import math

import numpy as np
from scipy import linalg, special

from model_lib.search.algorithms.surrogate import Surrogate
from model_lib.search.expression import Expression

_LENGTHS = (0.25, 0.5, 1.0, 2.0)  # times the median distance of two candidates
_NOISES = (0.01, 0.1, 0.3, 1.0)
_EVERY = 10  # answers between two choices of length and noise
_SAMPLE = 300  # candidates, of which the median distance is taken
_LEAST = 1e-12  # variance of targets that are all equal


class GaussianProcess:
  """Targets y at observed candidates, whose features are x: y = g(x) + e, with

    g ~ GP(0, s^2 k),    k(x, x') = exp(-|x - x'|^2 / (2 length^2)),    e ~ N(0, noise s^2)

  and the most likely s. What does not hang on y is kept for all candidates, so a new observation
  costs O(observations candidates).
  """

  def __init__(self, features: np.ndarray, length: float, noise: float):
    """Args:
      features: [candidates, d].
      length: of the kernel, in the unit of the features.
      noise: see above; over 0.
    """
    self._features, self._norms = features, (features**2).sum(1)
    self._length, self._noise = length, noise
    self._observed: list[int] = []
    self._factor = np.zeros((16, 16))  # L, with L L^T = k(X, X) + noise I; room to grow
    self._solved = np.zeros((16, len(features)))  # L^-1 k(X, candidates); room to grow
    self._variance = np.ones(len(features))  # of g / s, given the observations

  def observe(self, index: int) -> None:
    """Adds a candidate to the observed ones."""
    n = len(self._observed)
    if n == len(self._factor):
      self._factor = np.pad(self._factor, (0, n))
      self._solved = np.pad(self._solved, ((0, n), (0, 0)))
    squares = self._norms + self._norms[index] - 2 * self._features @ self._features[index]
    kernel = np.exp(-np.maximum(squares, 0) / (2 * self._length**2))
    # L's new row solves L l = k(X, x), which is a column of what is kept.
    row = self._solved[:n, index].copy()
    corner = math.sqrt(1 + self._noise - row @ row)
    self._factor[n, :n], self._factor[n, n] = row, corner
    self._solved[n] = (kernel - row @ self._solved[:n]) / corner
    self._variance -= self._solved[n]**2
    self._observed.append(index)

  def predict(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of g at every candidate, given y at the observed ones in their order."""
    n = len(self._observed)
    whitened = linalg.solve_triangular(self._factor[:n, :n], targets, lower=True)
    scale = math.sqrt(max(whitened @ whitened / n, _LEAST))
    return whitened @ self._solved[:n], scale * np.sqrt(np.maximum(self._variance, 0))


def log_likelihood(kernel: np.ndarray, noise: float, targets: np.ndarray) -> float:
  """max over s of log N(y; 0, s^2 (K + noise I)) for a kernel matrix K [n, n] and targets [n]."""
  n = len(targets)
  factor = np.linalg.cholesky(kernel + noise * np.eye(n))
  whitened = linalg.solve_triangular(factor, targets, lower=True)
  variance = max(whitened @ whitened / n, _LEAST)
  return float(-n / 2 * (1 + math.log(2 * math.pi * variance)) - np.log(np.diag(factor)).sum())


def most_likely(
    squares: np.ndarray, targets: np.ndarray, lengths: Sequence[float], noises: Sequence[float],
) -> tuple[float, float]:
  """The length and the noise, of all pairs, with the highest `log_likelihood`.

  Args:
    squares: [n, n], squared distances of the observed candidates.
    targets: [n].
    lengths, noises: to choose from.
  """
  return max(itertools.product(lengths, noises), key=lambda pair: log_likelihood(
      np.exp(-squares / (2 * pair[0]**2)), pair[1], targets))


def expected_improvement(mean: np.ndarray, sd: np.ndarray, best: float) -> np.ndarray:
  """E max(best - g, 0) for g ~ N(mean, sd^2); where sd = 0, max(best - mean, 0)."""
  safe = np.where(sd > 0, sd, 1)
  z = (best - mean) / safe
  density = np.exp(-z**2 / 2) / math.sqrt(2 * math.pi)
  return np.where(sd > 0, safe * (z * special.ndtr(z) + density), np.maximum(best - mean, 0))


class GaussianProcessSearch(Surrogate):
  """Asks for the largest expected improvement on the lowest mean of a candidate that is told.

  Length and noise are those of a small grid under which the targets are most likely, chosen anew
  after every ten answers.
  """

  def __init__(
      self, candidates: Sequence[Expression], features: np.ndarray, seed: int, initial: int = 10,
  ):
    """Args: see `Surrogate`."""
    super().__init__(candidates, features, seed, initial)
    sample = self._features[::-(-len(self._candidates) // _SAMPLE)]
    distances = np.sqrt(_squares(sample)[np.triu_indices(len(sample), 1)])
    self._unit = float(np.median(distances)) or 1.0
    self._model = GaussianProcess(self._features, self._unit, _NOISES[1])

  def learn(self, index: int) -> None:
    self._model.observe(index)
    if len(self._told) % _EVERY == 0:
      length, noise = most_likely(
          _squares(self._features[self._told]), self.targets(),
          [share * self._unit for share in _LENGTHS], _NOISES)
      self._model = GaussianProcess(self._features, length, noise)
      for told in self._told:
        self._model.observe(told)

  def scores(self) -> np.ndarray:
    mean, sd = self._model.predict(self.targets())
    return -expected_improvement(mean, sd, mean[self._told].min())


def _squares(rows: np.ndarray) -> np.ndarray:
  """Squared distances of all pairs, [n, n]."""
  norms = (rows**2).sum(1)
  return np.maximum(norms[:, None] + norms[None] - 2 * rows @ rows.T, 0)
