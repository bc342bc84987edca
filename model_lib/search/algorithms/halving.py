"""Successive halving on top of any algorithm: many short runs, and longer ones of the best.

Source: Jamieson & Talwalkar 2016, arXiv 1502.07943.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from model_lib.search.algorithms.algorithm import Algorithm, Answer, Query
from model_lib.search.expression import Expression


class Halving:
  """Brackets of expressions that another algorithm proposes.

  A bracket is trained for the first rung's steps; the best share of it goes on to the second, and
  so on, always at least one. Then the proposer is told of the whole bracket the losses at
  the first rung, the only ones that can be compared, and proposes the next. A diverged run goes
  on nowhere.
  """

  def __init__(
      self, proposer: Algorithm, rungs: Sequence[int | None] = (30, 100, None),
      bracket: int = 27, keep: float = 1 / 3,
  ):
    """Args:
      proposer: whose queries have no steps of their own.
      rungs: training steps, increasing; None, the full number, may be the last.
      bracket: how many are asked of the proposer at a time; it may propose fewer.
      keep: the share that goes on to the next rung.

    Raises:
      ValueError: the rungs do not increase, the bracket is empty, or keep is not from 0 to 1.
    """
    known = [steps for steps in rungs[:-1] if steps is not None] + [
        rungs[-1] or float('inf')] if rungs else []
    if len(known) < len(rungs) or not known or known != sorted(set(known)):
      raise ValueError(f'rungs increase, and None stands at the end alone, not {tuple(rungs)}')
    if bracket < 1 or not 0 < keep < 1:
      raise ValueError(f'bracket is at least 1 and keep between 0 and 1, not {bracket} and {keep}')
    self._proposer, self._rungs, self._size, self._keep = proposer, tuple(rungs), bracket, keep
    self._next_bracket()

  def ask(self, n: int) -> list[Query]:
    waiting = [expression for expression, answer in self._rung.items() if answer is None]
    return [Query(expression, self._rungs[self._at]) for expression in waiting[:n]]

  def tell(self, answers: Sequence[Answer]) -> None:
    """Takes answers.

    Raises:
      ValueError: one was not asked for: what is in a bracket is not free.
    """
    for answer in answers:
      expression, steps = answer.query.expression, answer.query.steps
      if expression not in self._rung or steps != self._rungs[self._at]:
        raise ValueError(f'{str(expression)!r} at {steps} steps was not asked for')
      self._rung[expression] = answer
      if all(self._rung.values()):
        self._end_rung()

  def _end_rung(self) -> None:
    answers = list(self._rung.values())
    if self._at == 0:
      self._first = [dataclasses.replace(answer, query=Query(answer.query.expression))
                     for answer in answers]
    alive = sorted((answer for answer in answers if not answer.diverged),
                   key=lambda answer: answer.loss)
    kept = alive[:max(1, int(self._keep * len(answers) + 1e-9))]  # a third of 9 is 3
    self._at += 1
    if self._at < len(self._rungs) and kept:
      self._rung = {answer.query.expression: None for answer in kept}
    else:
      self._proposer.tell(self._first)
      self._next_bracket()

  def _next_bracket(self) -> None:
    # Which rung it is, and who is on it, with what was answered.
    self._at = 0
    self._rung: dict[Expression, Answer | None] = {
        query.expression: None for query in self._proposer.ask(self._size)}
