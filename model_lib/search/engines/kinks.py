"""Both sides of an expression at the knots of a grid, and its kinks.

A kink is a place where f or f' jumps. They are found from values and slopes in float64, so that no
operator needs a rule of its own: at a knot its two sides differ; between two knots the cubic
through both misses the middle, and cutting towards the larger change ends at a jump that does not
shrink with the interval. What changes by less than 1e-5 of the slopes around it is not seen, and
of several kinks between two knots one is found.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools

import numpy as np

from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression

SIDE = 1e-9  # distance from a place at which its two sides are evaluated
_SUSPECT = 1e-4  # error of the cubic in the middle, relative to the slopes around it
_JUMP = 1e-5  # least jump, relative to the slopes around it
_LEAST = 1e-2  # slopes are not looked at below this share of those around +-1
_FARTHEST = 32  # kinks between knots are not looked for beyond it
_PARTS, _CUTS = 16, 8  # from 1/64 to 4e-12
_BLOCK = 32  # intervals that are cut together


@dataclasses.dataclass(frozen=True)
class Kink:
  """A kink between two knots: its place, and (value, slope) on its left and right side."""

  place: float
  left: tuple[float, float]
  right: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Sides:
  """An expression on a grid.

  Attributes:
    values, slopes: float64 [2, knots], on the left and on the right side of each knot.
    scales: float64 [knots - 1], the largest finite slope around each interval.
    kinks: those between knots, in their order.
  """

  values: np.ndarray
  slopes: np.ndarray
  scales: np.ndarray
  kinks: tuple[Kink, ...]


class Grid:
  """Knots in increasing order, for many expressions."""

  def __init__(self, knots: np.ndarray):
    self.knots, self.widths = knots, np.diff(knots)
    middles = knots[:-1] + self.widths / 2
    self._points = np.concatenate([knots - SIDE, knots + SIDE, middles])
    self._typical = (np.abs(middles) > 0.5) & (np.abs(middles) < 2)
    self._near = np.abs(middles) < _FARTHEST

  def sides(self, expression: Expression, scale: float = 1.0) -> Sides:
    """Of f(x / scale): values and slopes on both sides of the knots, and the kinks between them."""
    n, h = len(self.knots), self.widths
    # Values of subexpressions are not kept from one expression to the next: they are long.
    values, slopes = _evaluated(expression, self._points, scale)
    (left, right, middle), (d_left, d_right, d_middle) = (
        (a[:n], a[n:2 * n], a[2 * n:]) for a in (values, slopes))
    with np.errstate(all='ignore'):
      left, right = left + SIDE * d_left, right - SIDE * d_right  # at the knot
      f0, f1, d0, d1 = right[:-1], left[1:], d_right[:-1], d_left[1:]
      around = np.abs([d_left[:-1], d0, d_middle, d1, d_right[1:], (f1 - f0) / h])
      scales = np.where(np.isfinite(around), around, 0).max(0)
      scales = np.maximum(scales, _LEAST * np.median(scales[self._typical])) + 1e-30
      errors = np.maximum(
          np.abs((f0 + f1) / 2 + h * (d0 - d1) / 8 - middle) / h,
          np.abs(1.5 * (f1 - f0) / h - (d0 + d1) / 4 - d_middle))
      suspects = np.flatnonzero((errors > _SUSPECT * scales) & self._near)
    found = []
    for start in range(0, len(suspects), _BLOCK):
      found += self._cut(expression, suspects[start:start + _BLOCK], scales, scale)
    return Sides(np.stack([left, right]), np.stack([d_left, d_right]), scales, tuple(found))

  def _cut(
      self, expression: Expression, intervals: np.ndarray, scales: np.ndarray, scale: float,
  ) -> Iterator[Kink]:
    widths = self.widths[intervals]
    low, high = self.knots[intervals] + SIDE, self.knots[intervals + 1] - SIDE
    rows = np.arange(len(intervals))
    for _ in range(_CUTS):
      places = np.linspace(low, high, _PARTS + 1)
      values, slopes = (part.reshape(places.shape) for part in
                        _evaluated(expression, places.ravel(), scale))
      with np.errstate(all='ignore'):
        changes = np.abs(np.diff(slopes, axis=0)) + np.abs(np.diff(values, axis=0)) / widths
      most = np.where(np.isnan(changes), -1, changes).argmax(0)
      low, high = places[most, rows], places[most + 1, rows]
    (f0, d0), (f1, d1) = (_evaluated(expression, ends, scale) for ends in (low, high))
    with np.errstate(all='ignore'):
      jumps = np.maximum(np.abs(d1 - d0), np.abs(f1 - f0) / widths) > _JUMP * scales[intervals]
    for i in np.flatnonzero(jumps):
      yield Kink(float(low[i] + high[i]) / 2, (f0[i], d0[i]), (f1[i], d1[i]))


def _evaluated(
    expression: Expression, points: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """Values and slopes of f(x / scale)."""
  evaluator = Evaluator(points / scale)
  return evaluator.value(expression), evaluator.slope(expression) / scale


@functools.lru_cache(maxsize=4)
def _uniform(limit: float) -> Grid:
  return Grid(np.linspace(-limit, limit, 1025))


def kinks(expression: Expression, limit: float = 8.0) -> tuple[float, ...]:
  """Where f or f' jumps in [-limit, limit], in order; learnable scalars have their first values."""
  of = _uniform(float(limit))
  sides = of.sides(expression)
  scales = np.maximum(np.append(sides.scales, 0), np.insert(sides.scales, 0, 0))
  with np.errstate(all='ignore'):
    jumps = np.maximum(np.abs(np.diff(sides.slopes, axis=0)[0]),
                       np.abs(np.diff(sides.values, axis=0)[0]) / of.widths[0]) > _JUMP * scales
  return tuple(sorted([*of.knots[jumps].tolist(), *(kink.place for kink in sides.kinks)]))
