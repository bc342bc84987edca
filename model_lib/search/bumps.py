"""Bumps as expressions: what is added to an activation, with a coefficient to be learned.

  f + epsilon b,  b(x) = (c_0 + c_1 v + c_2 v^2 + ...) e^(-v^2/2),  v = (x - centre) / width

CRReLU (Sun et al. 2024, arXiv 2405.12954) is relu + epsilon b with b = x e^(-x^2/2). The bumps of
`odd_bump` are its controls: just as large, and as odd, but drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from model_lib.activations.controls import FIRST_BUMP, FIRST_SQUARE, SECOND_BUMP, SECOND_SQUARE
from model_lib.search.expression import Expression, X, number

_NEGLIGIBLE = 1e-10  # of the largest coefficient: rounding errors of a fit


def add(a: Expression, b: Expression) -> Expression:
  """a + b."""
  return Expression('add', (a, b))


def times(a: Expression | float, b: Expression) -> Expression:
  """a b, where a may be a number."""
  return b if a == 1 else Expression('mul', (a if isinstance(a, Expression) else number(a), b))


def bump(
    coefficients: Sequence[float], centre: float = 0.0, width: float = 1.0, decays: bool = True,
) -> Expression:
  """(c_0 + c_1 v + c_2 v^2 + ...) e^(-v^2/2), v = (x - centre) / width, without parameters.

  Args:
    coefficients: c_0, c_1, ...; those below 1e-10 of the largest are left out.
    centre, width: of v.
    decays: False: the polynomial alone.
  """
  v = times(1 / width, add(X, number(-centre)) if centre else X)
  least = _NEGLIGIBLE * max(map(abs, coefficients))
  factor = times(math.sqrt(0.5), v)
  total = None
  for coefficient in reversed(coefficients):  # Horner's rule
    raised = None if total is None else v if total == number(1) else times(total, v)
    own = number(coefficient) if abs(coefficient) > least else None
    total = own if raised is None else raised if own is None else add(own, raised)
  total = number(0) if total is None else total
  return times(total, Expression('gaussian', (factor,))) if decays else total


def with_bump(
    function: Expression, added: Expression, epsilon: float = 0.01, learnable: bool = True,
) -> Expression:
  """f + epsilon b; a learnable epsilon is the given number plus a scalar that starts at 0.

  So any start is possible, 0 too, and the gradient is that of epsilon itself. Weight decay would
  pull a learnable epsilon to its start, not to 0.
  """
  factor = Expression('shift', (number(epsilon),)) if learnable else number(epsilon)
  return add(function, Expression('mul', (factor, added)))


def crrelu(epsilon: float = 0.01, learnable: bool = True) -> Expression:
  """max(x, 0) + epsilon x e^(-x^2/2)."""
  return with_bump(Expression('relu', (X,)), bump([0.0, 1.0]), epsilon, learnable)


def odd_bump(seed: int) -> Expression:
  """A random odd bump, the control of CRReLU's correction x e^(-x^2/2).

  It is x e^(-x^2/2) times an even polynomial of degree 6 at most, with the correction's norm under
  N(0, 1), E b^2 = 3^(-3/2), and orthogonal to it, to x and so to max(x, 0); the seed draws the
  direction among those. In a model it is the activation `control_spec`.
  """
  angle = _angle(seed)
  weights = (math.cos(angle) / math.sqrt(FIRST_SQUARE),
             math.sin(angle) / math.sqrt(SECOND_SQUARE))
  coefficients = np.zeros(2 * len(FIRST_BUMP))
  coefficients[1::2] = weights[0] * np.array(FIRST_BUMP) + weights[1] * np.array(SECOND_BUMP)
  return bump(coefficients)


def control_spec(seed: int, epsilon: float = 0.01) -> str:
  """max(x, 0) + epsilon odd_bump(seed), epsilon learned per layer, as an activation's spec."""
  return f'relu_bump(angle={_angle(seed)!r}, epsilon={epsilon!r})'


def _angle(seed: int) -> float:
  return float(np.random.Generator(np.random.Philox(seed)).uniform(0, 2 * math.pi))
