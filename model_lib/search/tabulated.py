"""The look-up benchmark: a space's functions trained once, and searches that only look up.

  table = Table.read('act_bench_digits.npz')
  curves = regret_curves(table, lambda seed: RandomSearch(space, table.row, seed), 200, marks)

A table has, for every valid function of a space and several training seeds, losses and accuracies
at several numbers of steps of one and the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import io
import json
import os
from pathlib import Path
from typing import Any
import zipfile
import zlib

import numpy as np

from model_lib.analysis.statistics import split_half_tau
from model_lib.errors import UserError
from model_lib.search.algorithms.algorithm import Algorithm, Answer, Query
from model_lib.search.expression import Expression
from model_lib.search.fingerprint import Fingerprints
from model_lib.search.grammar import parse

_MEASURES = ('validation_loss', 'test_loss', 'validation_accuracy', 'test_accuracy')
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """What training gave for every function.

  Attributes:
    expressions: texts, one of each function.
    seeds: of the training runs, in the order of the second axis.
    steps: after which was measured, increasing, in the order of the third axis.
    validation_loss, test_loss, validation_accuracy, test_accuracy: [functions, seeds, steps]; nan
      or an infinity where training diverged.
    meta: how it was made; what JSON can hold.

  Raises:
    UserError: sizes that do not agree, seeds or functions that stand twice, steps that do not
      increase, or a text that is no expression.
  """

  expressions: tuple[str, ...]
  seeds: tuple[int, ...]
  steps: tuple[int, ...]
  validation_loss: np.ndarray
  test_loss: np.ndarray
  validation_accuracy: np.ndarray
  test_accuracy: np.ndarray
  meta: Mapping[str, Any]

  def __post_init__(self):
    shape = (len(self.expressions), len(self.seeds), len(self.steps))
    for name in _MEASURES:
      array = getattr(self, name)
      if array.shape != shape or array.dtype.kind != 'f':
        raise UserError(f'a table of {shape[0]} functions, {shape[1]} seeds and {shape[2]} steps '
                        f'cannot have {name} of shape {array.shape} and type {array.dtype}')
    if 0 in shape:
      raise UserError(f'a table needs functions, seeds and steps, not {shape} of them')
    if len(set(self.seeds)) < len(self.seeds) or any(
        after <= before for before, after in zip((0, *self.steps), self.steps)):
      raise UserError(f'a table has every seed once and increasing steps, not seeds {self.seeds} '
                      f'and steps {self.steps}')
    if len(self._by_key) < len(self.expressions):
      raise UserError(f'a table has every function once, but its {len(self.expressions)} '
                      f'expressions are {len(self._by_key)} functions')

  def write(self, path: str | os.PathLike) -> None:
    """Writes the table as one npz of numbers and fixed-width text, in one step.

    Raises:
      OSError: it cannot be written; an old file then stands.
      TypeError: the meta is not what JSON can hold.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, format=np.array(_FORMAT), expressions=np.array(self.expressions),
        seeds=np.array(self.seeds), steps=np.array(self.steps),
        meta=np.array(json.dumps(dict(self.meta), sort_keys=True)),
        **{name: getattr(self, name) for name in _MEASURES})
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
      with open(temporary, 'wb') as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)

  @classmethod
  def read(cls, path: str | os.PathLike) -> 'Table':
    """Reads what `write` wrote; nothing in the file is run.

    Raises:
      UserError: there is no such file, it is damaged or cut, or it is no table.
    """
    try:
      with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
      if damaged:
        raise ValueError(f'the sum of {damaged} does not match')
      with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
      if stored['format'] != _FORMAT:
        raise ValueError(f'format {stored["format"]}, not {_FORMAT}')
      return cls(
          tuple(map(str, stored['expressions'])), tuple(map(int, stored['seeds'])),
          tuple(map(int, stored['steps'])), *(stored[name] for name in _MEASURES),
          json.loads(str(stored['meta'])))
    except KeyError as error:
      reason = f'it has no entry {error}'
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:
      reason = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'{path} is no whole table of searched functions ({reason}); make it anew')

  def row(self, expression: Expression) -> int | None:
    """Where the expression's function stands, whatever its text; None: not in the table.

    It is the `Key` of searches on the table: what is not in it is not valid.
    """
    if expression not in self._rows:
      key = self._fingerprints.functional(expression)
      self._rows[expression] = self._by_key.get(key)
    return self._rows[expression]

  @functools.cached_property
  def candidates(self) -> tuple[Expression, ...]:
    """The expressions, in the order of the first axis."""
    return tuple(map(parse, self.expressions))

  def regrets(self, column: int) -> np.ndarray:
    """[functions]: mean last test loss over the other seeds, minus the lowest such mean.

    A function that diverged on one of them has infinity.
    """
    others = np.delete(self.test_loss[:, :, -1], column, axis=1)
    if not others.size:
      raise UserError('regret is in the loss of the other seeds: a table needs at least two')
    means = np.where(np.isfinite(others).all(1), others.mean(1), np.inf)
    return means - means.min()

  @functools.cached_property
  def _fingerprints(self) -> Fingerprints:
    return Fingerprints()

  @functools.cached_property
  def _by_key(self) -> dict[bytes, int]:
    return {self._fingerprints.functional(expression): row
            for row, expression in enumerate(self.candidates)}

  @functools.cached_property
  def _rows(self) -> dict[Expression, int | None]:
    return {}


def search_curve(
    table: Table, algorithm: Algorithm, column: int, marks: Sequence[int], batch: int = 1,
) -> np.ndarray:
  """Regret of one search's incumbent after each budget.

  The search sees the validation loss of one seed. The incumbent is the function with the lowest
  one at the last steps; its regret is in the test loss of the other seeds (`Table.regrets`), so a
  run that was lucky gains nothing (images that both seeds' splits share still do). A query costs
  its steps; one for more steps than the function had before goes on from there and costs the
  difference.

  Args:
    table: of which every query's function must be a row.
    algorithm: a fresh one.
    column: which seed it sees, as an index.
    marks: candidate-steps, increasing.
    batch: queries per call of `ask`.

  Returns:
    [marks]; nan before the first run to the last steps. A search that ends early keeps its last.

  Raises:
    ValueError: a query whose function or steps the table has not.
  """
  regrets, losses = table.regrets(column), table.validation_loss[:, column]
  curve, at, spent = np.full(len(marks), np.nan), 0, 0
  paid: dict[int, int] = {}
  best, regret = np.inf, np.nan
  while queries := algorithm.ask(batch):
    answers = []
    for query in queries:
      row, steps = table.row(query.expression), query.steps or table.steps[-1]
      if row is None or steps not in table.steps:
        raise ValueError(f'{str(query.expression)!r} at {steps} steps is not in the table; give '
                         'the algorithm table.row as its key')
      before = paid.get(row, 0)
      spent += steps - before if steps > before else steps
      while at < len(marks) and spent > marks[at]:
        curve[at], at = regret, at + 1
      if at == len(marks):
        return curve
      paid[row] = max(steps, before)
      loss = float(losses[row, table.steps.index(steps)])
      if steps == table.steps[-1] and loss < best:
        best, regret = loss, regrets[row]
      answers.append(Answer(query, loss))
    algorithm.tell(answers)
  curve[at:] = regret
  return curve


def regret_curves(
    table: Table, make: Callable[[int], Algorithm], searches: int, marks: Sequence[int],
) -> np.ndarray:
  """`search_curve` of searches 0, 1, ..., [searches, marks]; they take the seen seeds in turn.

  Args:
    table: see there.
    make: makes the algorithm of a seed.
    searches: how many.
    marks: see there.
  """
  return np.array([search_curve(table, make(seed), seed % len(table.seeds), marks)
                   for seed in range(searches)])


def exhaustive_regret(table: Table) -> np.ndarray:
  """[seeds]: regret of the lowest validation loss of all, per seed seen; the bound of a search.

  What is left is the cost of choosing by one noisy seed. It is where every search ends that tries
  all; one that tried less can lie below it, since it also met fewer lucky functions.
  """
  losses = table.validation_loss[:, :, -1]
  losses = np.where(np.isfinite(losses), losses, np.inf)
  return np.array([table.regrets(column)[losses[:, column].argmin()]
                   for column in range(len(table.seeds))])


def reliability(values: np.ndarray, top: float = 1.0) -> float:
  """How well one half of the seeds ranks functions as the other does: split-half Kendall's tau-b.

  It is the ceiling of a proxy that is as noisy as half of the seeds; one without noise of its own
  can come somewhat higher.

  Args:
    values: [functions, seeds], lower is better. One that is not finite is worse than all finite
      ones.
    top: the share of the functions that is ranked, the best. They are chosen by one seed and
      ranked by halves of the others, each seed choosing once: functions that were chosen by a
      value that is ranked too would be lucky ones, and the tau biased.

  Returns:
    For top = 1, `analysis.statistics.split_half_tau` over all seeds; else the mean over the seeds
    that choose. nan for fewer than 2 seeds, or 3 where some are chosen.
  """
  values = np.asarray(values, np.float64)
  finite = values[np.isfinite(values)]
  if finite.size:
    # So much that also a mean over seeds with one such value is above all that have none.
    worst = finite.max() + values.shape[1] * np.ptp(finite) + 1
    values = np.where(np.isfinite(values), values, worst)
  if top == 1:
    return split_half_tau(values.T)
  count = round(top * len(values))
  taus = [split_half_tau(np.delete(values, chooser, axis=1)[
      np.argsort(values[:, chooser], kind='stable')[:count]].T)
      for chooser in range(values.shape[1])]
  return float(np.mean(taus))
