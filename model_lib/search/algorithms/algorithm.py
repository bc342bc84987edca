"""What every search algorithm is: it asks for losses of expressions, and is told them.

  while queries := algorithm.ask(8):
    algorithm.tell([Answer(query, train(query)) for query in queries])

What an algorithm asks is a pure function of its arguments, its seed and the answers told so far,
in their order: how the answers were cut into calls of `tell`, and how often `ask` was called in
between, changes nothing. A search is resumed by telling a new algorithm the old answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
import dataclasses
import math
from typing import Protocol

import numpy as np

from model_lib.search.expression import Expression
from model_lib.search.fingerprint import Fingerprints
from model_lib.search.validity import ValidityFilter

# Equal keys: equal functions, of which one is tried. None: not a valid function, never asked for.
Key = Callable[[Expression], Hashable | None]
TRIES = 1000  # draws without a new valid function after which a space counts as searched through


@dataclasses.dataclass(frozen=True)
class Query:
  """An expression to train.

  Attributes:
    expression: a valid one.
    steps: of training; None for the full number.
  """

  expression: Expression
  steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
  """What became of a query.

  Attributes:
    query: as it was asked.
    loss: on the validation set, lower is better; nan or an infinity where training diverged.
    learned: the learnable scalars after training.
  """

  query: Query
  loss: float
  learned: tuple[float, ...] = ()

  @property
  def diverged(self) -> bool:
    return not math.isfinite(self.loss)


class Algorithm(Protocol):
  """A search algorithm."""

  def ask(self, n: int) -> list[Query]:
    """The next queries, at most n, which may be trained at the same time.

    Without a `tell` in between, the same ones again. An empty list: there is no more to ask.
    """

  def tell(self, answers: Sequence[Answer]) -> None:
    """Takes answers to what was asked."""


class FunctionKeys:
  """The key of an expression: its functional fingerprint, or None where the filter refuses it."""

  def __init__(self):
    self._fingerprints, self._judge = Fingerprints(), ValidityFilter()
    self._keys: dict[Expression, bytes | None] = {}

  def __call__(self, expression: Expression) -> bytes | None:
    if expression not in self._keys:
      valid = self._judge(expression).valid
      self._keys[expression] = self._fingerprints.functional(expression) if valid else None
    return self._keys[expression]


def generator(seed: int, index: int) -> np.random.Generator:
  """The random numbers of a search's query number `index`, or of whatever else it counts."""
  return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def draw_new(
    draw: Callable[[], Expression], key: Key, known: Collection[Hashable],
) -> tuple[Expression, Hashable] | None:
  """The first drawn expression that is valid and not known, with its key; None after `TRIES`."""
  for _ in range(TRIES):
    expression = draw()
    found = key(expression)
    if found is not None and found not in known:
      return expression, found
  return None
