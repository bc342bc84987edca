"""Which expressions can be trained as an activation, and why the others cannot.

Everything is measured at 1,600 points, 0.025 apart, from -20 to 20. The points lie beside 0, where
a pre-activation hardly ever is; a pole at 0 shows in the slopes beside it. Means are under N(0, 1).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
import dataclasses
import types
from typing import Literal

import numpy as np

from model_lib.activations.activation import Monotone, Parity
from model_lib.errors import UserError
from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression
from model_lib.search.fingerprint import distinct

Reason = Literal['', 'not finite', 'gradient not finite', 'constant', 'linear', 'slope too small',
                 'slope too large']
LINEAR = 1e-3  # residual of the best affine fit over the standard deviation
SLOPE = (1e-3, 1e3)  # E f'^2
_CONSTANT = 1e-6  # standard deviation over |mean|
_ROUNDING = 1e-9

_POINTS = np.linspace(-20, 20, 1600, endpoint=False) + 0.0125
_WEIGHTS = np.exp(-_POINTS**2 / 2) / np.exp(-_POINTS**2 / 2).sum()


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether an expression is valid, and what it is like.

  Attributes:
    reason: why it is refused; '' where it is valid.
    detail: the same with its number, for people.
    slope_moment: E f'(u)^2 for u ~ N(0, 1); nan where it is not finite.
    monotone: 'increasing' or 'decreasing' on the points, not strictly; '' where it is neither.
    parity: 'odd' or 'even' on the points; '' where it is neither.
  """

  reason: Reason
  detail: str
  slope_moment: float = float('nan')
  monotone: Monotone = ''
  parity: Parity = ''

  @property
  def valid(self) -> bool:
    return not self.reason


class ValidityFilter:
  """Judges expressions at the first values of their learnable scalars, subexpressions cached.

  An expression is valid if in float32, in which it is trained, value and derivative are finite on
  +-20; if it is neither constant nor, up to 0.1 % of its standard deviation, affine; and if
  E f'^2 is between 1e-3 and 1e3.
  """

  def __init__(self):
    self._narrow = Evaluator(_POINTS.astype(np.float32))
    self._wide = Evaluator(_POINTS)

  def __call__(self, expression: Expression) -> Verdict:
    for reason, values in (('not finite', self._narrow.value(expression)),
                           ('gradient not finite', self._narrow.slope(expression))):
      bad = ~np.isfinite(values)
      if bad.any():
        at = _POINTS[bad][np.argmin(np.abs(_POINTS[bad]))]
        return Verdict(reason, f'{reason} at {bad.sum()} of {bad.size} points, first at {at:.4g}')
    values, slopes = self._wide.value(expression), self._wide.slope(expression)
    mean = values @ _WEIGHTS
    centred = values - mean
    sd = np.sqrt(centred**2 @ _WEIGHTS)
    if sd <= _CONSTANT * abs(mean) or sd == 0:
      return Verdict('constant', f'constant: {mean:.6g}', 0.0)
    moment = float(slopes**2 @ _WEIGHTS)
    line = _POINTS * ((centred * _POINTS) @ _WEIGHTS / (_POINTS**2 @ _WEIGHTS))
    residual = np.sqrt((centred - line)**2 @ _WEIGHTS) / sd
    if residual < LINEAR:
      return Verdict('linear', f'linear: {residual:.2g} of its standard deviation is not', moment)
    low, high = SLOPE
    reason = 'slope too small' if moment < low else '' if moment <= high else 'slope too large'
    detail = f"{reason}: E f'^2 is {moment:.3g}, outside [{low:g}, {high:g}]" if reason else ''
    return Verdict(reason, detail, moment, _monotone(values), _parity(values))


@dataclasses.dataclass(frozen=True)
class Candidates:
  """What a search may try, and what became of the rest.

  Attributes:
    valid: one expression, the first, of each valid function.
    raw: number of expressions given.
    distinct: number of functions among them.
    refused: number of functions per reason, the most frequent first.
  """

  valid: tuple[Expression, ...]
  raw: int
  distinct: int
  refused: Mapping[str, int]

  def __str__(self) -> str:
    return (f'{self.raw} expressions, {self.distinct} functions, {len(self.valid)} valid; refused: '
            + (', '.join(f'{n} {reason}' for reason, n in self.refused.items()) or 'none'))


def candidates(expressions: Iterable[Expression]) -> Candidates:
  """The valid functions among expressions, each once.

  Raises:
    UserError: none is valid; the line gives the reasons and how often each was met.
  """
  groups = distinct(expressions)
  judge, valid, refused = ValidityFilter(), [], collections.Counter()
  for group in groups:
    verdict = judge(group[0])
    if verdict.valid:
      valid.append(group[0])
    else:
      refused[verdict.reason] += 1
  found = Candidates(tuple(valid), sum(map(len, groups)), len(groups),
                     types.MappingProxyType(dict(refused.most_common())))
  if not valid:
    raise UserError(f'no valid candidate is left ({found}); give the search more operators')
  return found


def _monotone(values: np.ndarray) -> Monotone:
  steps, least = np.diff(values), _ROUNDING * np.abs(values).max()
  if (steps >= -least).all():
    return 'increasing'
  return 'decreasing' if (steps <= least).all() else ''


def _parity(values: np.ndarray) -> Parity:
  least = _ROUNDING * np.abs(values)
  if (np.abs(values - values[::-1]) <= least).all():
    return 'even'
  return 'odd' if (np.abs(values + values[::-1]) <= least).all() else ''
