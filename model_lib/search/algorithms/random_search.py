"""Random search without repetition."""

from __future__ import annotations

from collections.abc import Sequence

from model_lib.search.algorithms.algorithm import Answer, Key, Query, draw_new, generator
from model_lib.search.spaces import Space


class RandomSearch:
  """Draws from the space until a function is valid and was not told.

  All raw expressions of a schema are equally likely, so a function with many texts comes early.
  """

  def __init__(self, space: Space, key: Key, seed: int):
    """Args:
      space: to draw from, all its schemas.
      key: see `algorithm.Key`.
      seed: of the draws.
    """
    self._space, self._key, self._seed = space, key, seed
    self._known, self._told = set(), 0

  def ask(self, n: int) -> list[Query]:
    queries, known = [], set(self._known)
    for index in range(self._told, self._told + n):
      rng = generator(self._seed, index)
      new = draw_new(lambda: self._space.sample(rng), self._key, known)
      if new is None:
        break
      queries.append(Query(new[0]))
      known.add(new[1])
    return queries

  def tell(self, answers: Sequence[Answer]) -> None:
    self._told += len(answers)
    self._known.update(self._key(answer.query.expression) for answer in answers)
