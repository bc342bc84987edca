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
_LEAST = 1e-6  # slopes are not looked at below this share of their median
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
  """Uniform knots from -limit to limit, for many expressions; subexpressions are cached."""

  def __init__(self, limit: float, knots: int):
    self.knots, self.step = np.linspace(-limit, limit, knots, retstep=True)
    middles = self.knots[:-1] + self.step / 2
    self._evaluator = Evaluator(np.concatenate([self.knots - SIDE, self.knots + SIDE, middles]))

  def sides(self, expression: Expression) -> Sides:
    """Values and slopes on both sides of the knots, and the kinks between them."""
    n = len(self.knots)
    values, slopes = self._evaluator.value(expression), self._evaluator.slope(expression)
    (left, right, middle), (d_left, d_right, d_middle) = (
        (a[:n], a[n:2 * n], a[2 * n:]) for a in (values, slopes))
    with np.errstate(all='ignore'):
      left, right = left + SIDE * d_left, right - SIDE * d_right  # at the knot
      f0, f1, d0, d1 = right[:-1], left[1:], d_right[:-1], d_left[1:]
      around = np.abs([d_left[:-1], d0, d_middle, d1, d_right[1:], (f1 - f0) / self.step])
      scales = np.where(np.isfinite(around), around, 0).max(0)
      scales = np.maximum(scales, _LEAST * np.median(scales)) + 1e-30
      errors = np.maximum(
          np.abs((f0 + f1) / 2 + self.step * (d0 - d1) / 8 - middle) / self.step,
          np.abs(1.5 * (f1 - f0) / self.step - (d0 + d1) / 4 - d_middle))
      suspects = np.flatnonzero(errors > _SUSPECT * scales)
    found = []
    for start in range(0, len(suspects), _BLOCK):
      found += self._cut(expression, suspects[start:start + _BLOCK], scales)
    return Sides(np.stack([left, right]), np.stack([d_left, d_right]), scales, tuple(found))

  def _cut(
      self, expression: Expression, intervals: np.ndarray, scales: np.ndarray) -> Iterator[Kink]:
    count = len(intervals)
    # One shape for all blocks: an operator is traced once per shape.
    intervals = np.concatenate([intervals, np.full(_BLOCK - count, intervals[0])])
    scale = scales[intervals]
    low, high = self.knots[intervals] + SIDE, self.knots[intervals + 1] - SIDE
    rows = np.arange(_BLOCK)
    for _ in range(_CUTS):
      places = np.linspace(low, high, _PARTS + 1)
      points = Evaluator(places.ravel())
      values = points.value(expression).reshape(places.shape)
      slopes = points.slope(expression).reshape(places.shape)
      with np.errstate(all='ignore'):
        changes = np.abs(np.diff(slopes, axis=0)) + np.abs(np.diff(values, axis=0)) / self.step
      most = np.where(np.isnan(changes), -1, changes).argmax(0)
      low, high = places[most, rows], places[most + 1, rows]
    sides = [(points.value(expression), points.slope(expression))
             for points in map(Evaluator, (low, high))]
    (f0, d0), (f1, d1) = sides
    with np.errstate(all='ignore'):
      jumps = np.maximum(np.abs(d1 - d0), np.abs(f1 - f0) / self.step) > _JUMP * scale
    for i in np.flatnonzero(jumps[:count]):
      yield Kink(float(low[i] + high[i]) / 2, (f0[i], d0[i]), (f1[i], d1[i]))


@functools.lru_cache(maxsize=4)
def grid(limit: float, knots: int) -> Grid:
  """The grid, with its cache, of all expressions of a setting."""
  return Grid(limit, knots)


def kinks(expression: Expression, limit: float = 8.0) -> tuple[float, ...]:
  """Where f or f' jumps in [-limit, limit], in order; learnable scalars have their first values."""
  of = grid(float(limit), 1025)
  sides = of.sides(expression)
  scales = np.maximum(np.append(sides.scales, 0), np.insert(sides.scales, 0, 0))
  with np.errstate(all='ignore'):
    jumps = np.maximum(np.abs(np.diff(sides.slopes, axis=0)[0]),
                       np.abs(np.diff(sides.values, axis=0)[0]) / of.step) > _JUMP * scales
  return tuple(sorted([*of.knots[jumps].tolist(), *(kink.place for kink in sides.kinks)]))
