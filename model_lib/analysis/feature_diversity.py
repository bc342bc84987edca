"""Feature diversity of a residual stream along its depth.

Yang et al. 2023 (Tensor Programs VI), arXiv:2310.02244, definition 7.6. With the stream x_l,
l = 0 ... L, of B examples with n features,

  d(eps) = mean over l of rms(x_{l + eps L} - x_l),    kappa = 1 - slope of log d on log eps,

rms over examples and features. The path of a smooth function of l / L has kappa 0 (its layers
repeat each other), a random walk 1/2, independent layers 1. At the start the stream of any scaling
is a random walk: what training made of it shows in x_t - x_0 too (the same layers at step t and at
the start), and only where x_t - x_0 is not small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_lib.errors import UserError

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8)  # of the depth: eps


def increments(stream: np.ndarray, shares: Sequence[float] = SHARES) -> np.ndarray:
  """d(eps) of a stream [L + 1, B, n] for each share of the depth.

  Raises:
    UserError: a share of L layers is no whole number above 0 or exceeds L.
  """
  stream, found = np.asarray(stream), []
  depth = len(stream) - 1
  for share in shares:
    lag = round(share * depth)
    if not 0 < lag <= depth or abs(lag - share * depth) > 1e-6:
      raise UserError(f'a share {share:g} of {depth} layers is no number of layers; take a depth '
                      'of which each share is one')
    # One layer at a time: all differences together are as large as the stream.
    found.append(np.mean([rms(stream[l + lag] - stream[l]) for l in range(depth + 1 - lag)]))
  return np.array(found)


def slope(stream: np.ndarray, shares: Sequence[float] = SHARES) -> float:
  """Slope of log d(eps) on log eps (least squares), 1 - kappa; UserError as `increments`.

  The higher, the less diverse: 1 for a smooth path, 1/2 for a random walk.
  """
  return float(np.polyfit(np.log2(shares), np.log2(increments(stream, shares)), 1)[0])


def moved_share(stream: np.ndarray, start: np.ndarray) -> float:
  """rms(x_t - x_0) / rms(x_t) over all layers of the stream at step t and at the start."""
  stream = np.asarray(stream)
  return rms(stream - np.asarray(start)) / rms(stream)


def rms(x: np.ndarray) -> float:
  """The root of the mean square of all entries, in float64."""
  return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
