"""Which activations are the same function: by their values, and up to affine maps.

Linear layers around an activation absorb f(x) -> a f(x) + d and f(x) -> f(-x): functions related
by them span the same networks, although their initializations and learning rates differ.
"""

from __future__ import annotations

from collections.abc import Iterable
import functools

import numpy as np

from model_lib.activations.host import evaluate
from model_lib.activations.registry import get_activation, names

# Symmetric, denser near 0 where functions differ, and no point is a kink but 0.
_GRID = np.sinh(np.linspace(-3.0, 3.0, 301))
_TOLERANCE = 1e-6  # relative to 1 + |f|: constants are printed with six to seven digits
_AFFINE_TOLERANCE = 1e-5  # of a profile of length 1; two constants each add to the difference


@functools.lru_cache(maxsize=None)
def fingerprint(spec: str) -> np.ndarray:
  """f at 301 fixed points within +-10, float64; a gated activation's is that of its gate."""
  values = evaluate(get_activation(spec).at_first_values(), _GRID)
  return np.broadcast_to(values, _GRID.shape)


def duplicate_groups(specs: Iterable[str], affine: bool = False) -> tuple[tuple[str, ...], ...]:
  """Groups of at least two specs with the same function, each in alphabetical order.

  Args:
    specs: of activations of one kind.
    affine: whether a f(x) + d and a f(-x) + d count as f, for any a other than 0 and any d.

  Returns:
    Disjoint groups.
  """
  same = _affinely_equal if affine else _equal
  groups: list[list[str]] = []
  for spec in sorted(set(specs)):
    for group in groups:
      if same(fingerprint(group[0]), fingerprint(spec)):
        group.append(spec)
        break
    else:
      groups.append([spec])
  return tuple(tuple(group) for group in groups if len(group) > 1)


@functools.lru_cache(maxsize=None)
def affine_duplicates(name: str) -> tuple[str, ...]:
  """The other pointwise entries that equal a pointwise one up to a f(+-x) + d."""
  pointwise = [other for other in names() if get_activation(other).kind == 'pointwise']
  groups = [group for group in _all_groups(tuple(pointwise)) if name in group]
  return tuple(other for group in groups for other in group if other != name)


@functools.lru_cache(maxsize=1)
def _all_groups(specs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  return duplicate_groups(specs, affine=True)


def _equal(left: np.ndarray, right: np.ndarray) -> bool:
  with np.errstate(invalid='ignore'):  # inf - inf
    close = np.abs(left - right) <= _TOLERANCE * (1 + np.abs(left))
  return bool(np.all(close | (left == right) | (np.isnan(left) & np.isnan(right))))


def _affinely_equal(left: np.ndarray, right: np.ndarray) -> bool:
  left, flipped, right = _profile(left), _profile(left[::-1]), _profile(right)
  distances = [np.linalg.norm(one - sign * right) for one in (left, flipped) for sign in (1, -1)]
  return min(distances) < _AFFINE_TOLERANCE


def _profile(values: np.ndarray) -> np.ndarray:
  """The values, centred and of length 1."""
  centred = values - values.mean()
  length = np.linalg.norm(centred)
  return centred / length if length else centred
