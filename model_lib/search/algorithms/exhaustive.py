"""Exhaustive search: every candidate, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model_lib.search.algorithms.algorithm import Answer, Query
from model_lib.search.expression import Expression


class Exhaustive:
  """Asks for every candidate once; `candidates(space.expressions()).valid` is all of a space."""

  def __init__(self, candidates: Iterable[Expression]):
    self._left = dict.fromkeys(candidates)

  def ask(self, n: int) -> list[Query]:
    return [Query(expression) for expression, _ in zip(self._left, range(n))]

  def tell(self, answers: Sequence[Answer]) -> None:
    for answer in answers:
      self._left.pop(answer.query.expression, None)
