"""Regularized evolution: the oldest dies, not the worst.

Source: Real, Aggarwal, Huang & Le 2019, arXiv 1802.01548, used with the mutations of PANGAEA by
Bingham & Miikkulainen 2022, arXiv 2006.03179. The sizes of population and tournament are this
project's choice, for budgets near 100 functions.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from model_lib.search.algorithms.algorithm import Answer, Key, Query, draw_new, generator
from model_lib.search.algorithms.mutations import Mutations
from model_lib.search.expression import Expression


class Evolution:
  """The last `population` functions that did not diverge are alive; tournaments choose parents.

  The first ones are drawn from the space. Then, for each query, `tournament` of the living are
  drawn with replacement, and the best is mutated. A child that is no valid function, or that was
  told before, is drawn again, its parent too; where no new one is found, the space is drawn from.
  A diverged one is thrown away: it is never alive.
  """

  def __init__(
      self, mutations: Mutations, key: Key, seed: int, population: int = 20, tournament: int = 5,
  ):
    """Args:
      mutations: make the children; their space gives the first generation.
      key: see `algorithm.Key`.
      seed: of every draw.
      population: number of the living.
      tournament: number of those among whom the parent is the best.
    """
    self._mutations, self._key, self._seed, self._tournament = mutations, key, seed, tournament
    self._alive: collections.deque[Answer] = collections.deque(maxlen=population)
    self._known, self._told = set(), 0

  def ask(self, n: int) -> list[Query]:
    missing = self._alive.maxlen - len(self._alive)
    queries, known = [], set(self._known)
    # Children need a whole population: where some are missing, only these are asked for.
    for index in range(self._told, self._told + (min(n, missing) if missing else n)):
      rng = generator(self._seed, index)
      new = None if missing else draw_new(lambda: self._child(rng), self._key, known)
      # No new child: the neighbourhood is searched through, and a migrant comes.
      new = new or draw_new(lambda: self._mutations.space.sample(rng), self._key, known)
      if new is None:
        break
      queries.append(Query(new[0]))
      known.add(new[1])
    return queries

  def tell(self, answers: Sequence[Answer]) -> None:
    for answer in answers:
      self._told += 1
      self._known.add(self._key(answer.query.expression))
      if not answer.diverged:
        self._alive.append(answer)

  def _child(self, rng: np.random.Generator) -> Expression:
    players = rng.integers(len(self._alive), size=self._tournament)
    parent = min((self._alive[i] for i in players), key=lambda answer: answer.loss)
    return self._mutations(parent.query.expression, rng)
