"""Proxies from a small network at its initialization: one batch forward, and back.

The network d-64-64-classes has weights N(0, gain^2 / fan_in) with gain 1 in the first layer
and 1 / (E f^2)^(1/2) in the others, and biases 0. The normal numbers are the same for
every candidate. Functions are evaluated exactly, not from a table.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import special

from model_lib.search.evaluation import Evaluator
from model_lib.search.proxies.values import WEIGHTS, Evaluated, Task, finite

WIDTH = 64
_BATCH = 128
_JACOBIANS = 32  # examples in the Jacobians' correlation, fewer than inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Initialized:
  """Networks of C candidates at init, on the first B = min(128, n) training examples; float64.

  Attributes:
    inputs: [B, d].
    classes: [B].
    weights: [d, 64], then [C, 64, 64] and [C, 64, classes] with the gains in them.
    hidden: f of the two layers' pre-activations, each [C, B, 64].
    slopes: f' there.
    logits: [C, B, classes].
    gain: [C].
    slope_means: E f'(z), z ~ N(0, 1): [C].
    noise: [B, d], standard normal.
  """

  inputs: np.ndarray
  classes: np.ndarray
  weights: tuple[np.ndarray, np.ndarray, np.ndarray]
  hidden: tuple[np.ndarray, np.ndarray]
  slopes: tuple[np.ndarray, np.ndarray]
  logits: np.ndarray
  gain: np.ndarray
  slope_means: np.ndarray
  noise: np.ndarray

  @classmethod
  def of(cls, evaluated: Evaluated, task: Task) -> Initialized:
    rng = np.random.default_rng(task.seed)
    x = task.x[:_BATCH].astype(np.float64)
    sizes = (x.shape[1], WIDTH, WIDTH, task.n_classes)
    first, *later = [
        rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in zip(sizes, sizes[1:])]
    second, last = (evaluated.gain[:, None, None] * weight for weight in later)
    at = Evaluator((x @ first).ravel())
    shape = (len(evaluated.expressions), len(x), WIDTH)
    hidden, slopes = np.empty((2, 2, *shape))
    for i, f in enumerate(evaluated.expressions):
      hidden[0, i].flat, slopes[0, i].flat = at.value(f), at.slope(f)
    inner = hidden[0] @ second
    for i, f in enumerate(evaluated.expressions):
      at = Evaluator(inner[i].ravel())
      hidden[1, i].flat, slopes[1, i].flat = at.value(f), at.slope(f)
    return cls(
        inputs=x, classes=task.y[:_BATCH], weights=(first, second, last), hidden=tuple(hidden),
        slopes=tuple(slopes), logits=hidden[1] @ last, gain=evaluated.gain,
        slope_means=evaluated.slopes @ WEIGHTS, noise=rng.standard_normal(x.shape))

  def back(self, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives with respect to the pre-activations of layers 1 and 2, [C, B, J, 64].

    Args:
      delta: those with respect to the logits, for J quantities per example: [C, B, J, classes].
    """
    def through(weight, slopes, delta):
      flat = delta.reshape(len(delta), -1, delta.shape[-1]) @ weight.swapaxes(1, 2)
      return flat.reshape(*delta.shape[:-1], WIDTH) * slopes[:, :, None, :]
    _, second, last = self.weights
    inner = through(last, self.slopes[1], delta)
    return through(second, self.slopes[0], inner), inner

  @property
  def probabilities(self) -> np.ndarray:
    """[C, B, classes]."""
    return special.softmax(self.logits, axis=-1)


def loss(net: Initialized, task: Task) -> np.ndarray:
  """Mean cross-entropy on the batch."""
  del task
  chosen = np.take_along_axis(net.logits, net.classes[None, :, None], axis=-1)[..., 0]
  return np.mean(special.logsumexp(net.logits, axis=-1) - chosen, axis=-1)


def gradient_norm(net: Initialized, task: Task) -> np.ndarray:
  """ln of the norm of the batch loss's gradient, over all weights and biases.

  A proxy of Abdelfattah et al. 2021, arXiv 2101.08134; they sum the norms of the layers.
  """
  batch = len(net.inputs)
  delta = (net.probabilities - np.eye(task.n_classes)[net.classes])[:, :, None, :] / batch
  total = 0.0
  for features, change in zip((net.inputs, *net.hidden), (*net.back(delta), delta), strict=True):
    change = change[:, :, 0, :]
    for_weights = features.swapaxes(-1, -2) @ change
    total += np.sum(for_weights**2, axis=(1, 2)) + np.sum(np.sum(change, axis=1)**2, axis=1)
  return 0.5 * np.log(total)


def naswot(net: Initialized, task: Task) -> np.ndarray:
  """ln det (K / N + 1e-6 I): K_ij is in how many of the N hidden units two codes agree.

  Mellor et al. 2021, arXiv 2006.04647, for ReLU: there a unit's code is whether it is
  active. Ours, for any f: whether f' is above its mean E f', which for ReLU is the same. Ours
  too is the 1e-6: a code that occurs twice lowers the score, instead of making it -inf.
  """
  del task
  codes = np.concatenate(net.slopes, axis=-1)
  fine = finite(codes)
  # 1 and -1: the product counts agreements less disagreements. Rounding makes no code.
  signs = np.where(codes > net.slope_means[:, None, None] + 1e-9, 1.0, -1.0)
  agree = (signs @ signs.swapaxes(1, 2) / signs.shape[-1] + 1) / 2
  return np.where(fine, np.linalg.slogdet(agree + 1e-6 * np.eye(agree.shape[-1]))[1], np.nan)


def zen(net: Initialized, task: Task) -> np.ndarray:
  """ln of the mean length by which the last features move per unit of Gaussian input noise.

  Lin et al. 2021, arXiv 2102.01063, take a finite difference at Gaussian inputs and add the
  scales that batch normalization removed. Ours is the derivative along the noise, at the task's
  inputs; with the gains there is no scale to add. The features are those after the gain.
  """
  del task
  first, second, _ = net.weights
  moved = (((net.noise @ first) * net.slopes[0]) @ second) * net.slopes[1]
  lengths = np.linalg.norm(moved, axis=-1) * net.gain[:, None]
  return np.log(np.mean(lengths, axis=-1))


def jacobian_covariance(net: Initialized, task: Task) -> np.ndarray:
  """- sum of ln(l + k) + 1 / (l + k), k = 1e-5, over the eigenvalues l of a correlation matrix.

  It is that of the gradients, of the sum of an example's logits by its input, of 32 examples.
  Mellor et al., the first version of arXiv 2006.04647.
  """
  del task
  ones = np.ones_like(net.logits)[:, :, None, :]
  outer, _ = net.back(ones)
  rows = outer[:, :_JACOBIANS, 0, :] @ net.weights[0].T
  rows = rows - rows.mean(axis=-1, keepdims=True)
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  fine = finite(rows)
  rows = np.where(fine[:, None, None], rows, 0.0)
  shifted = np.linalg.eigvalsh(rows @ rows.swapaxes(1, 2)) + 1e-5
  return np.where(fine, -np.sum(np.log(shifted) + 1 / shifted, axis=-1), np.nan)
