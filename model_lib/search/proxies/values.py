"""What the proxies are computed from: candidates on one quadrature grid, and a small task."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import special

from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression

_REACH, _WIDTH, _ORDER = 12, 1 / 8, 6


def _rule() -> tuple[np.ndarray, np.ndarray]:
  """Nodes z [1152] and weights with E g(z) = sum(weights * g) for z ~ N(0, 1)."""
  nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
  middles = np.arange(-_REACH, _REACH, _WIDTH)[:, None] + _WIDTH / 2
  z = (middles + nodes * _WIDTH / 2).ravel()
  density = np.exp(-z**2 / 2) / np.sqrt(2 * np.pi)
  return z, density * np.tile(weights * _WIDTH / 2, middles.size)


Z, WEIGHTS = _rule()


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
  """Candidates at Z, in float64, at the first values of their learnable scalars.

  The rule is Gauss-Legendre on 192 panels within +-12: Gauss-Hermite rules converge slowly at
  kinks. Moments of smooth functions, and of those with kinks at multiples of 1/8, are good to
  1e-9; with a kink elsewhere they are good to 5e-5, with a jump there to 0.02, and E f'^2 at a
  kink, where f' jumps, to 0.01, for a jump of 1 in f' or 2 in f.

  Attributes:
    expressions: the candidates.
    values: f(Z), [candidate, 1152].
    slopes: f'(Z) as automatic differentiation gives it: a jump has no slope.
  """

  expressions: tuple[Expression, ...]
  values: np.ndarray
  slopes: np.ndarray

  @classmethod
  def of(cls, expressions: Sequence[Expression]) -> Evaluated:
    at = Evaluator(Z)
    return cls(tuple(expressions), np.array([at.value(f) for f in expressions]),
               np.array([at.slope(f) for f in expressions]))

  @property
  def mean(self) -> np.ndarray:
    """E f, [candidate]."""
    return self.values @ WEIGHTS

  @property
  def second(self) -> np.ndarray:
    """E f^2, [candidate]."""
    return self.values**2 @ WEIGHTS

  @property
  def slope_second(self) -> np.ndarray:
    """E f'^2, [candidate]."""
    return self.slopes**2 @ WEIGHTS

  @property
  def gain(self) -> np.ndarray:
    """1 / (E f^2)^(1/2), [candidate]: with it each layer's second moment is 1."""
    return self.second**-0.5


def hermite(rows: np.ndarray, degree: int) -> np.ndarray:
  """a_k = E[g(z) h_k(z)] for k = 0 ... degree: [..., degree + 1].

  h_k = He_k / sqrt(k!) as in `activations.moments.hermite_coefficients`, which is for one
  function and refines its grid; this one is a matrix product for all candidates.

  Args:
    rows: g(Z), [..., 1152].
    degree: at most 200: He_k overflows beyond.
  """
  if not 0 <= degree <= 200:
    raise ValueError(f'degree must be from 0 to 200, not {degree}')
  norms = np.exp(-0.5 * special.gammaln(np.arange(degree + 1) + 1.0))
  polynomials = np.polynomial.hermite_e.hermevander(Z, degree) * norms
  return rows @ (WEIGHTS[:, None] * polynomials)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A small labelled data set.

  Attributes:
    x: training inputs [n, d], standardized, in random order: the first rows make the batch.
    y: their classes [n], 0 ... n_classes - 1.
    x_val, y_val: validation examples.
    seed: of the networks' weights, the same for every candidate.

  Raises:
    ValueError: shapes that do not fit, or no examples.
  """

  x: np.ndarray
  y: np.ndarray
  x_val: np.ndarray
  y_val: np.ndarray
  seed: int = 0

  def __post_init__(self):
    for x, y in ((self.x, self.y), (self.x_val, self.y_val)):
      if x.ndim != 2 or y.shape != x.shape[:1] or not y.size or x.shape[1] != self.x.shape[1]:
        raise ValueError(f'inputs [n, d] and classes [n] with n > 0 are needed, not {x.shape} '
                         f'and {y.shape}')
      if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError('classes are integers from 0 on')

  @property
  def n_classes(self) -> int:
    return int(max(self.y.max(), self.y_val.max())) + 1


def finite(*arrays: np.ndarray) -> np.ndarray:
  """[candidate]: whether everything of a candidate is finite, in all arrays [candidate, ...]."""
  return np.all([np.isfinite(a.reshape(len(a), -1)).all(axis=1) for a in arrays], axis=0)
