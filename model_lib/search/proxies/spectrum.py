"""Proxies from the function alone, under a standard normal input: Hermite energy and slopes.

With a_k the Hermite coefficients of f, E f^2 is the sum of all a_k^2: k = 0 is the mean, k = 1 the
linear part, and the rest is what the function bends.
"""

from __future__ import annotations

import numpy as np

from model_lib.search.proxies.values import Evaluated, Task, hermite

_DECIMALS = 12  # rounding must not rank the candidates that share an exact 0


def shares(evaluated: Evaluated) -> np.ndarray:
  """Energy in k = 0, in k = 1 and in k >= 2 over E f^2: [candidate, 3], rows of sum 1."""
  low = np.round(hermite(evaluated.values, 1)**2 / evaluated.second[:, None], _DECIMALS)
  return np.concatenate([low, np.maximum(1 - low.sum(axis=1, keepdims=True), 0)], axis=1)


def share_mean(evaluated: Evaluated, task: Task) -> np.ndarray:
  """(E f)^2 / E f^2."""
  del task
  return shares(evaluated)[:, 0]


def share_linear(evaluated: Evaluated, task: Task) -> np.ndarray:
  """(E z f)^2 / E f^2."""
  del task
  return shares(evaluated)[:, 1]


def share_bent(evaluated: Evaluated, task: Task) -> np.ndarray:
  """1 - share_mean - share_linear."""
  del task
  return shares(evaluated)[:, 2]


def nonlinearity(evaluated: Evaluated, task: Task) -> np.ndarray:
  """Residual variance of the best affine fit over Var f: 0 for a line, 1 for an even function."""
  del task
  mean, line, rest = shares(evaluated).T
  del mean
  return rest / (line + rest)


def chi_raw(evaluated: Evaluated, task: Task) -> np.ndarray:
  """E f'^2 / E f^2: growth of a gradient's second moment per layer, at gain (E f^2)^(-1/2)."""
  del task
  return evaluated.slope_second / evaluated.second


def chi_centred(evaluated: Evaluated, task: Task) -> np.ndarray:
  """E f'^2 / Var f: the same where outputs are standardized."""
  del task
  return evaluated.slope_second / (evaluated.second - evaluated.mean**2)


def chi_distance(evaluated: Evaluated, task: Task) -> np.ndarray:
  """|ln chi_raw|, one over the depth scale of signal_propagation.depth_scale in layers."""
  return np.round(np.abs(np.log(chi_raw(evaluated, task))), _DECIMALS)
