"""Surrogates: losses predicted from features of a finite list of candidates; the best is asked for.

  features = output_features(candidates)
  search = NearestNeighbours(candidates, features, seed=0)

The features may be any: those of the outputs, Fisher eigenvalues, or both side by side.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from model_lib.search.algorithms.algorithm import Answer, Query, generator
from model_lib.search.expression import Expression


class Surrogate(abc.ABC):
  """Asks for random candidates first, then for those with the lowest score.

  What is predicted is the normal score of a loss, Phi^-1((rank - 1/2) / n) among the n told so
  far: losses have outliers, and diverged ones, tied as the worst, have no number.
  """

  def __init__(
      self, candidates: Sequence[Expression], features: np.ndarray, seed: int, initial: int = 10,
      explore: float = 0.0,
  ):
    """Args:
      candidates: each a function of its own, and valid.
      features: [candidates, d], finite; their scale counts.
      seed: of the random choices.
      initial: how many are chosen at random first.
      explore: the chance that a later one is chosen at random too.

    Raises:
      ValueError: features of another shape, or not finite, or no first candidate.
    """
    if initial < 1:
      raise ValueError(f'a surrogate learns from at least one candidate, not initial={initial}')
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) != len(candidates) or not np.isfinite(features).all():
      raise ValueError(f'features of {len(candidates)} candidates are finite numbers '
                       f'[{len(candidates)}, d], not of shape {features.shape}')
    self._candidates, self._features = tuple(candidates), features
    self._index = {expression: i for i, expression in enumerate(self._candidates)}
    self._seed, self._initial, self._explore = seed, initial, explore
    self._told: list[int] = []
    self._losses: list[float] = []

  @abc.abstractmethod
  def learn(self, index: int) -> None:
    """Takes a candidate into the model; called once for each, after its loss was noted."""

  @abc.abstractmethod
  def scores(self) -> np.ndarray:
    """[candidates], the lower the better."""

  def targets(self) -> np.ndarray:
    """Normal scores of the losses told so far, in their order."""
    n = len(self._losses)
    return special.ndtri((stats.rankdata(self._losses) - 0.5) / n)

  def ask(self, n: int) -> list[Query]:
    """The n best; before that the rest of the random ones, which no later one is mixed with."""
    free = np.ones(len(self._candidates), bool)
    free[self._told] = False
    at_first = self._initial - len(self._told)
    scores = np.zeros(len(free)) if at_first > 0 else self.scores()
    chosen = []
    for i in range(min(n, int(free.sum()), at_first if at_first > 0 else n)):
      rng = generator(self._seed, len(self._told) + i)
      if at_first > 0 or rng.random() < self._explore:
        index = int(rng.choice(np.flatnonzero(free)))
      else:
        index = int(np.where(free, scores, np.inf).argmin())
      free[index] = False
      chosen.append(Query(self._candidates[index]))
    return chosen

  def tell(self, answers: Sequence[Answer]) -> None:
    """Takes answers.

    Raises:
      ValueError: one is of no candidate, or of one that was told before.
    """
    for answer in answers:
      index = self._index.get(answer.query.expression)
      if index is None or index in self._told:
        raise ValueError(f'{str(answer.query.expression)!r} is no candidate, or was told before')
      self._told.append(index)
      self._losses.append(np.inf if answer.diverged else answer.loss)
      self.learn(index)


class NearestNeighbours(Surrogate):
  """k nearest neighbours: a candidate's score is the mean over those of them that are told.

  AQuaSurF's model and acquisition (Bingham & Miikkulainen, NeurIPS 2023, arXiv 2301.05785), there
  on a UMAP embedding and without random choices later on; how many there are here is this
  project's choice.
  """

  def __init__(
      self, candidates: Sequence[Expression], features: np.ndarray, seed: int, initial: int = 10,
      explore: float = 0.1, k: int = 3,
  ):
    """Args:
      candidates, features, seed, initial, explore: see `Surrogate`.
      k: number of neighbours; at most `initial`.

    Raises:
      ValueError: as there, or more neighbours than first candidates.
    """
    super().__init__(candidates, features, seed, initial, explore)
    if not 1 <= k <= initial:
      raise ValueError(f'k={k} neighbours need k from 1 to initial={initial}')
    # The k nearest so far, in no order: squared distances, and positions among those told.
    self._distances = np.full((len(self._candidates), k), np.inf)
    self._neighbours = np.zeros((len(self._candidates), k), int)
    self._norms = (self._features**2).sum(1)

  def learn(self, index: int) -> None:
    new = self._norms + self._norms[index] - 2 * self._features @ self._features[index]
    farthest = self._distances.argmax(1)
    nearer = np.flatnonzero(new < self._distances[np.arange(len(new)), farthest])
    self._distances[nearer, farthest[nearer]] = new[nearer]
    self._neighbours[nearer, farthest[nearer]] = len(self._told) - 1

  def scores(self) -> np.ndarray:
    return self.targets()[self._neighbours].mean(1)
