"""Features of expressions for the surrogates: principal components of their outputs.

  features = side_by_side(output_features(candidates), others)

Source of the idea: Bingham & Miikkulainen, NeurIPS 2023, arXiv 2301.05785, who embed the outputs
with UMAP instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression
from model_lib.search.fingerprint import GRID


def output_features(expressions: Sequence[Expression], components: int = 16) -> np.ndarray:
  """The first principal components of the standardized outputs, [n, components].

  Each function's outputs at 1,000 quantiles of N(0, 1), the learnable scalars at their first
  values, get mean 0 and variance 1 over the quantiles: the linear layers around an activation
  absorb shift and scale. A distance between rows approximates the root mean square difference
  of two standardized functions. The sign of a component is that in which its largest loading is
  positive.

  Args:
    expressions: valid ones.
    components: at most the number of expressions.

  Raises:
    ValueError: more components than expressions or quantiles, or an output that is constant or
      not finite.
  """
  if not 1 <= components <= min(len(expressions), GRID.size):
    raise ValueError(f'{len(expressions)} expressions have 1 to '
                     f'{min(len(expressions), GRID.size)} components, not {components}')
  evaluator = Evaluator(GRID)
  outputs = np.array([evaluator.value(expression) for expression in expressions])
  bad = ~(np.isfinite(outputs).all(1) & (np.ptp(outputs, axis=1) > 0))
  if bad.any():
    first = expressions[int(np.argmax(bad))]
    raise ValueError(f'{str(first)!r} is constant or not finite: take valid expressions alone')
  outputs -= outputs.mean(1, keepdims=True)
  outputs /= outputs.std(1, keepdims=True)
  outputs -= outputs.mean(0)
  _, loadings = np.linalg.eigh(outputs.T @ outputs)
  loadings = loadings[:, ::-1][:, :components]
  largest = loadings[np.abs(loadings).argmax(0), np.arange(components)]
  return outputs @ (loadings * np.sign(largest)) / np.sqrt(GRID.size)


def side_by_side(*blocks: np.ndarray) -> np.ndarray:
  """Feature blocks [n, d_i] as one [n, sum d_i], in which each counts the same.

  Each block is centred and divided by the square root of its total variance, so that it makes up
  the same share of the mean squared distance of two rows. A constant block becomes 0.
  """
  centred = [block - block.mean(0) for block in blocks]
  totals = [np.sqrt(block.var(0).sum()) or 1.0 for block in centred]
  return np.concatenate([block / total for block, total in zip(centred, totals)], axis=1)
