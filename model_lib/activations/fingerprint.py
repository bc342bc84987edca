"""Which activations are the same function: by their values, and up to affine maps.

Linear layers around an activation absorb f(x) -> a f(b x + c) + d: functions related by it span the
same networks, although their initializations and learning rates differ.

b and c are found without a search: |df'|, the measure of where the slope changes, moves and
stretches with the input, so that its quantiles give every function a frame of its own. In their
frames related functions are nearly equal, and a least squares fit makes the rest exact. The slope
of a polynomial or of a sine never settles, and no fit moves a jump: these are compared with
b = +-1 and c = 0, or as their frames have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import functools

import numpy as np
from scipy import optimize

from model_lib.activations.host import trace
from model_lib.activations.registry import get_activation, names

# Symmetric, denser near 0 where functions differ, and no point is a kink but 0.
_GRID = np.sinh(np.linspace(-3.0, 3.0, 301))
# From -2e5 to 2e5, in rows of the same length.
_WIDE = np.sinh(np.linspace(-13.0, 13.0, 14 * _GRID.size)).reshape(14, _GRID.size)
_TOLERANCE = 1e-6  # relative to 1 + |f|: constants are printed with six to seven digits
_AFFINE_TOLERANCE = 1e-5  # of a profile of length 1; two constants each add to the difference
_NEAR = 0.01  # of the same, before b and c are fitted: a frame is known to a grid step
# Of |df'|, where a frame begins and ends; kinks of equal size add up to no such number.
_SHARES = (0.22, 0.78)


@functools.lru_cache(maxsize=None)
def fingerprint(spec: str) -> np.ndarray:
  """f at 301 fixed points within +-10, float64; a gated activation's is that of its gate."""
  return _in_numpy(spec)(_GRID)


def duplicate_groups(specs: Iterable[str], affine: bool = False) -> tuple[tuple[str, ...], ...]:
  """Groups of at least two specs with the same function, each in alphabetical order.

  Args:
    specs: of activations of one kind.
    affine: whether a f(b x + c) + d counts as f, for any a and b other than 0 and any c and d.

  Returns:
    Disjoint groups.
  """
  same = _affinely_equal if affine else _equal
  groups: list[list[str]] = []
  for spec in sorted(set(specs)):
    for group in groups:
      if same(group[0], spec):
        group.append(spec)
        break
    else:
      groups.append([spec])
  return tuple(tuple(group) for group in groups if len(group) > 1)


@functools.lru_cache(maxsize=None)
def affine_duplicates(name: str) -> tuple[str, ...]:
  """The other pointwise entries that equal a pointwise one up to a f(b x + c) + d."""
  pointwise = [other for other in names() if get_activation(other).kind == 'pointwise']
  groups = [group for group in _all_groups(tuple(pointwise)) if name in group]
  return tuple(other for group in groups for other in group if other != name)


@functools.lru_cache(maxsize=1)
def _all_groups(specs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  return duplicate_groups(specs, affine=True)


@functools.lru_cache(maxsize=None)
def _in_numpy(spec: str) -> Callable[[np.ndarray], np.ndarray]:
  """The function in NumPy, for 301 points; a constant is repeated."""
  function = trace(get_activation(spec).at_first_values(), _GRID)
  return lambda x: np.broadcast_to(function(x), x.shape)


def _equal(left: str, right: str) -> bool:
  left, right = fingerprint(left), fingerprint(right)
  with np.errstate(invalid='ignore'):  # inf - inf
    close = np.abs(left - right) <= _TOLERANCE * (1 + np.abs(left))
  return bool(np.all(close | (left == right) | (np.isnan(left) & np.isnan(right))))


def _affinely_equal(left: str, right: str) -> bool:
  near, flip = min(
      (min(np.linalg.norm(_shape(left)[::flip] - sign * _shape(right)) for sign in (1, -1)), flip)
      for flip in (1, -1))
  if near > _NEAR:
    return False
  f, g = _in_numpy(left), _in_numpy(right)
  (middle, scale), (other_middle, other_scale) = _frame(left), _frame(right)
  inputs = other_middle + other_scale * _GRID
  target = _profile(g(inputs))

  def line(parameters):
    """(b, c) from the logarithm of what b is multiplied by and the move of the middle."""
    stretch, move = np.clip(parameters, -1, 1)  # the frames are nearly right
    b = flip * scale / other_scale * np.exp(stretch)
    return b, middle + scale * move - b * other_middle

  def residual(parameters):
    b, c = line(parameters)
    ours = _profile(f(b * inputs + c))
    return ours * np.sign(ours @ target) - target

  start = np.zeros(2)
  if near > _AFFINE_TOLERANCE:
    start = optimize.least_squares(residual, start, method='lm', max_nfev=60).x
  b, c = line(start)
  # Over the reach of both, since a part of one may look like the other.
  return all(_distance(f(b * x + c), g(x)) < _AFFINE_TOLERANCE
             for x in (inputs, _GRID, (_GRID - c) / b))


@functools.lru_cache(maxsize=None)
def _frame(spec: str) -> tuple[float, float]:
  """(middle, scale) of where the slope changes; (0, 1) where it changes in all places.

  The scale is 1 where the slope changes in a single place: such a function has none of its own.
  """
  points = _WIDE.ravel()
  values = np.concatenate([_in_numpy(spec)(row) for row in _WIDE])
  with np.errstate(invalid='ignore', over='ignore'):
    mass = np.abs(np.diff(np.diff(values) / np.diff(points)))
  total = mass.sum()
  if not np.isfinite(total) or total == 0 or mass[np.abs(points[1:-1]) > 1e3].sum() > 0.01 * total:
    return 0.0, 1.0
  share = np.cumsum(mass) / total
  low, high = (points[1:-1][np.searchsorted(share, part)] for part in _SHARES)
  step = 0.02 * (1 + abs(low))
  return (low + high) / 2, (high - low if high - low > step else 1.0)


@functools.lru_cache(maxsize=None)
def _shape(spec: str) -> np.ndarray:
  """The profile in the function's own frame."""
  middle, scale = _frame(spec)
  return _profile(_in_numpy(spec)(middle + scale * _GRID))


def _distance(left: np.ndarray, right: np.ndarray) -> float:
  left, right = _profile(left), _profile(right)
  return min(float(np.linalg.norm(left - sign * right)) for sign in (1, -1))


def _profile(values: np.ndarray) -> np.ndarray:
  """The values, centred and of length 1."""
  centred = values - values.mean()
  length = np.linalg.norm(centred)
  return centred / length if length else centred
