"""Regression with the kernels of the infinitely wide network: no training, one Cholesky each.

The network has two hidden layers, no biases, and gain-corrected weights: every layer's
pre-activations are N(0, 1). For two inputs whose pre-activations correlate by rho, with u, v of
that correlation,

  kappa(rho) = E f(u) f(v) / E f^2        kappa'(rho) = E f'(u) f'(v) / E f^2
  NNGP: kappa(kappa(rho))
  NTK:  kappa(kappa(rho)) + [kappa(rho) + rho kappa'(rho)] kappa'(kappa(rho))

(Lee et al. 2018, arXiv 1711.00165; Jacot et al. 2018, arXiv 1806.07572.) rho of two inputs is
the cosine between them, so that all inputs have the variance 1. Each kernel is thus one function
of rho per candidate; it is tabulated, and read at the task's cosines.

The tables of a smooth f are exact to rounding. ReLU's, whose Hermite series is cut, are good to
1e-4 (NNGP) and 0.03 of 3 (NTK, near rho = 1; 0.006 within +-0.95).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import linalg

from model_lib.analysis.signal_propagation import Dual
from model_lib.search.proxies.values import Evaluated, Task, finite, hermite

_DEGREE = 128  # of the Hermite series; what is beyond counts as one more term
_POINTS = 1000  # training examples at most
RIDGE = 1e-2  # added to the diagonal of a kernel that is 1 there
# In the angle a kernel is smooth at rho = 1, where it has a power 3/2 of 1 - rho for a kink.
ANGLES = np.linspace(0, np.pi, 2049)


@dataclasses.dataclass(frozen=True, eq=False)
class Kernels:
  """The two kernels at the cosines of ANGLES, not normalized: [candidate, angle], float64."""

  nngp: np.ndarray
  ntk: np.ndarray

  @classmethod
  def of(cls, evaluated: Evaluated, task: Task) -> Kernels:
    del task
    rho = np.cos(ANGLES)
    values = hermite(evaluated.values, _DEGREE)**2
    slopes = hermite(evaluated.slopes, _DEGREE)**2
    nngp, ntk = np.empty((2, len(values), rho.size))
    for i, (second, slope_second) in enumerate(zip(evaluated.second, evaluated.slope_second)):
      of_f, of_slope = Dual(values[i], second, 1.0), Dual(slopes[i], slope_second, 1.0)
      kappa = np.clip(of_f(rho) / second, -1, 1)
      tangent = kappa + rho * of_slope(rho) / second
      nngp[i] = of_f(kappa) / second
      ntk[i] = nngp[i] + tangent * of_slope(kappa) / second
    return cls(nngp, ntk)


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
  """Kernel ridge regression onto one-hot classes, less their mean; both [candidate].

  Attributes:
    accuracy: on the validation examples.
    error: mean over these of the squared distance to the one-hot class.
  """

  accuracy: np.ndarray
  error: np.ndarray


def regress(tables: np.ndarray, task: Task, dtype: type = np.float32) -> Regression:
  """Regression on at most 1,000 training examples with the kernels of `tables`.

  A candidate has nan where its table is not finite or the Cholesky decomposition fails.

  Args:
    tables: kernels at ANGLES, [candidate, angle].
    task: the examples.
    dtype: of the linear algebra; with RIDGE, single precision is enough.
  """
  x, y = task.x[:_POINTS], task.y[:_POINTS]
  targets = np.eye(task.n_classes)[y]
  wanted = np.eye(task.n_classes)[task.y_val]
  centre = targets.mean(axis=0)
  within, across = _Places(x, x, dtype), _Places(task.x_val, x, dtype)
  accuracy, error = np.full((2, len(tables)), np.nan)
  for i in np.flatnonzero(finite(tables) & (tables[:, 0] > 0)):
    table = tables[i] / tables[i, 0]
    weights = _solve(within.read(table), (targets - centre).astype(dtype))
    if weights is not None:
      found = across.read(table) @ weights + centre
      accuracy[i] = np.mean(found.argmax(axis=1) == task.y_val)
      error[i] = np.mean(np.sum((found - wanted)**2, axis=1))
  return Regression(accuracy, error)


def _solve(matrix: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
  """(matrix + RIDGE)^-1 targets, with 1 on the matrix's diagonal; destroys the matrix."""
  matrix[np.diag_indices_from(matrix)] = 1 + RIDGE
  factor, solve = linalg.get_lapack_funcs(('potrf', 'potrs'), (matrix,))
  # Transposed, a symmetric matrix is in Fortran's order and need not be copied.
  triangle, failed = factor(matrix.T, lower=True, clean=False, overwrite_a=True)
  return None if failed else solve(triangle, targets, lower=True)[0]


class _Places:
  """Where the angles between the rows of a and of b lie in ANGLES, to read many tables there."""

  def __init__(self, a: np.ndarray, b: np.ndarray, dtype: type):
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
            for rows in (a.astype(np.float64), b.astype(np.float64)))
    place = np.arccos(np.clip(a @ b.T, -1, 1)) / ANGLES[1]
    self._left = np.minimum(place.astype(np.int64), ANGLES.size - 2)
    self._rest = (place - self._left).astype(dtype)
    # Fresh memory for each table would take longer than reading it.
    self._found, self._start = np.empty((2, *place.shape), dtype)

  def read(self, table: np.ndarray) -> np.ndarray:
    """The table between its points, linearly; valid until the next call."""
    dtype = self._found.dtype
    np.take(np.diff(table).astype(dtype), self._left, out=self._found, mode='clip')
    np.take(table[:-1].astype(dtype), self._left, out=self._start, mode='clip')
    self._found *= self._rest
    self._found += self._start
    return self._found


def nngp(kernels: Kernels, task: Task) -> Regression:
  """With the kernel of the network whose last layer alone is trained."""
  return regress(kernels.nngp, task)


def ntk(kernels: Kernels, task: Task) -> Regression:
  """With the kernel of the network all of whose layers are trained."""
  return regress(kernels.ntk, task)


def accuracy(regression: Regression, task: Task) -> np.ndarray:
  del task
  return regression.accuracy


def error(regression: Regression, task: Task) -> np.ndarray:
  del task
  return regression.error
