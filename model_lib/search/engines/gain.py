"""The gain of an expression: the factor on the next kernel's start that keeps the variance at 1."""

from __future__ import annotations

import functools

import numpy as np

from model_lib.errors import UserError
from model_lib.search.engines.kinks import kinks
from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression

# |x|^x has a millionth of its second moment beyond 12.
_LIMIT = 20.0
_PANELS = np.linspace(-_LIMIT, _LIMIT, 161)
_MOST_KINKS = 16  # that become ends of panels; more would each change the sum by little
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_TAIL = 1e-9  # share of the integral in the outermost panel above which there is none


@functools.lru_cache(maxsize=4096)
def gain(expression: Expression) -> float:
  """E[f(z)^2]^-1/2, z ~ N(0, 1), with learnable scalars at their first values.

  By Gauss-Legendre quadrature on panels that end at the kinks, in float64.

  Raises:
    UserError: there is none, since E f^2 is 0 or not finite.
  """
  ends = _PANELS
  inside = [place for place in kinks(expression) if np.abs(ends - place).min() > 1e-7]
  inside = inside[:_MOST_KINKS]
  if inside:
    # Always as many panels, so that operators are traced once: the others are halved ones.
    middles = (ends[:-1] + ends[1:]) / 2
    apart = [m for m in middles if np.abs(np.array(inside) - m).min() > 1e-7]
    ends = np.sort(np.concatenate([ends, inside, apart[:_MOST_KINKS - len(inside)]]))
    points, weights = _quadrature(ends)
    evaluator = Evaluator(points)
  else:
    evaluator, weights = _shared()
  with np.errstate(all='ignore'):
    parts = (np.square(evaluator.value(expression)) * weights).reshape(-1, len(_NODES)).sum(1)
  second = parts.sum()
  if not (np.isfinite(second) and second > 0 and max(parts[0], parts[-1]) < _TAIL * second):
    raise UserError(f'expression {str(expression)!r} has no finite gain: E f^2 under N(0, 1) is '
                    f'{second if second == 0 or np.isnan(second) else float("inf"):g}')
  return float(second**-0.5)


def _quadrature(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Nodes in all panels, and their weights with the density of N(0, 1)."""
  half = np.diff(ends)[:, None] / 2
  points = ((ends[:-1] + ends[1:])[:, None] / 2 + half * _NODES).ravel()
  return points, (half * _WEIGHTS).ravel() * np.exp(-points**2 / 2) / np.sqrt(2 * np.pi)


@functools.lru_cache(maxsize=1)
def _shared() -> tuple[Evaluator, np.ndarray]:
  points, weights = _quadrature(_PANELS)
  return Evaluator(points), weights
