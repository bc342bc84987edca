"""Eigenvalues of the Fisher matrix of a network at init, in the Kronecker-factored form.

For a dense layer with inputs a, and g the derivatives of log p(class | x) with respect to its
pre-activations, K-FAC (Martens & Grosse 2015, arXiv 1503.05671) takes the Fisher block as

  E[(a, 1) (a, 1)^T]  (x)  E[g g^T]

whose eigenvalues are all products of the two factors' eigenvalues. The expectation over classes is
that under the network's own probabilities, exact instead of sampled.

AQuaSurF (arXiv 2301.05785) describes a candidate by the cumulative histogram of these
eigenvalues, layer by layer, on a logarithmic scale: `features`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from model_lib.search.proxies.initialized import Initialized
from model_lib.search.proxies.values import Task, finite

LOWEST, HIGHEST = -12.0, 4.0  # decades of the histogram; what is outside counts in the end bins
BINS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Fisher:
  """log10 of the eigenvalues per layer, each [candidate, inputs + 1, outputs].

  What is below 1e-12, or 0 up to rounding, is -12; nan where a candidate's factors are not finite.
  """

  layers: tuple[np.ndarray, ...]

  @classmethod
  def of(cls, net: Initialized, task: Task) -> Fisher:
    del task
    # Numbers near the smallest that a float64 holds make a product 20 times slower.
    p = np.where(net.probabilities < 1e-60, 0.0, net.probabilities)
    # The columns s_j of (diag(sqrt p) - p sqrt(p)^T) have sum_j s_j s_j^T = diag p - p p^T.
    root = np.sqrt(p)
    columns = np.eye(p.shape[-1]) * root[..., None] - root[..., None] * p[..., None, :]
    deltas = (*net.back(columns), columns)
    n = len(net.inputs)
    layers = []
    for features, delta in zip((net.inputs[None], *net.hidden), deltas, strict=True):
      extended = np.concatenate([features, np.ones((*features.shape[:-1], 1))], axis=-1)
      flat = delta.reshape(len(delta), -1, delta.shape[-1])
      inner = _log_eigenvalues(extended.swapaxes(1, 2) @ extended / n)
      outer = _log_eigenvalues(flat.swapaxes(1, 2) @ flat / n)
      layers.append(np.maximum(inner[:, :, None] + outer[:, None, :], LOWEST))
    return cls(tuple(layers))


def _log_eigenvalues(matrices: np.ndarray) -> np.ndarray:
  """log10 of eigenvalues in ascending order; -300 for those that are 0 up to rounding."""
  fine = finite(matrices)
  found = np.linalg.eigvalsh(np.where(fine[:, None, None], matrices, 0.0))
  least = found[:, -1:] * matrices.shape[-1] * np.finfo(found.dtype).eps
  logs = np.log10(np.where(found > least, found, 1e-300))
  return np.where(fine[:, None], logs, np.nan)


def features(fisher: Fisher, bins: int = BINS) -> np.ndarray:
  """Share of the eigenvalues of a layer up to each bin's right edge: [candidate, 3 * bins].

  Bins are equal parts of the decades from -12 to 4. Rows of nan where the eigenvalues are.
  """
  found = []
  for logs in fisher.layers:
    logs = logs.reshape(len(logs), -1)
    fine = finite(logs)
    place = (np.where(fine[:, None], logs, 0.0) - LOWEST) * (bins / (HIGHEST - LOWEST))
    place = np.clip(place, 0, bins - 1).astype(np.int64) + bins * np.arange(len(logs))[:, None]
    counts = np.bincount(place.ravel(), minlength=bins * len(logs)).reshape(-1, bins)
    found.append(np.where(fine[:, None], counts.cumsum(axis=1) / logs.shape[1], np.nan))
  return np.concatenate(found, axis=1)


def trace(fisher: Fisher, task: Task) -> np.ndarray:
  """log10 of the sum of all eigenvalues."""
  del task
  return np.log10(sum(np.sum(10.0**logs, axis=(1, 2)) for logs in fisher.layers))


def largest(fisher: Fisher, task: Task) -> np.ndarray:
  """log10 of the largest eigenvalue of any layer."""
  del task
  return np.max([logs.max(axis=(1, 2)) for logs in fisher.layers], axis=0)


def spread(fisher: Fisher, task: Task) -> np.ndarray:
  """log10 of the largest eigenvalue over the geometric mean of all, each counted as >= 1e-12."""
  every = np.concatenate([logs.reshape(len(logs), -1) for logs in fisher.layers], axis=1)
  return largest(fisher, task) - every.mean(axis=1)
