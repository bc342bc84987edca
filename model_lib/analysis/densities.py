"""Densities of a pre-activation: a normal one, and those that are recorded from a model.

Both are mixtures of normal densities of one width: a normal density is one of them, and a kernel
density estimate has one beside every group of recorded values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from model_lib.analysis import probes
from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer

REACH = 8.5  # widths beyond the outermost centre; the normal mass there is 2e-17
_GROUPS = 4096  # of recorded values at most; usually each is half a kernel's width


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
  """p(u) = sum over k of weights[k] N(u; centres[k], width^2).

  Attributes:
    centres, weights: [k], float64; the weights add up to 1.
    width: standard deviation of every component.
    samples: the recorded values [n] that it estimates, or None.
  """

  centres: np.ndarray
  weights: np.ndarray
  width: float
  samples: np.ndarray | None = None

  @property
  def mean(self) -> float:
    return float(self.weights @ self.centres)

  @property
  def sd(self) -> float:
    spread = float(self.weights @ (self.centres - self.mean)**2)
    return math.sqrt(spread + self.width**2)

  @property
  def reach(self) -> tuple[float, float]:
    """The interval outside of which there is no mass to speak of."""
    margin = REACH * self.width
    return float(self.centres.min()) - margin, float(self.centres.max()) + margin

  def pdf(self, u: np.ndarray) -> np.ndarray:
    """p(u), [n]."""
    return self._sum(lambda z: np.exp(-0.5 * z**2), u) / (self.width * math.sqrt(2 * math.pi))

  def slope(self, u: np.ndarray) -> np.ndarray:
    """p'(u), [n]."""
    return -self._sum(lambda z: z * np.exp(-0.5 * z**2), u) / (
        self.width**2 * math.sqrt(2 * math.pi))

  def masses(self, edges: np.ndarray) -> np.ndarray:
    """The mass between neighbouring edges [n + 1] -> [n], with all digits in both tails."""
    total = np.zeros(edges.size - 1)
    for centre, weight in zip(self.centres, self.weights, strict=True):
      z = (edges - centre) / self.width
      right = z[:-1] > 0
      below, above = special.ndtr(z), special.ndtr(-z)
      total += weight * np.where(right, above[:-1] - above[1:], below[1:] - below[:-1])
    return total

  def boundary_function(self, low: float = 0.0, high: float = 1.0) -> Callable:
    """low + (high - low) cdf(x): the worst activation between two bounds (WAFBC), for JAX.

    It makes the output uniform, which has the largest entropy of all densities between the bounds.
    Sun et al. 2024, arXiv 2405.12954.
    """
    def function(x: jax.Array) -> jax.Array:
      shape = (self.centres.size,) + (1,) * x.ndim
      centres, weights = (jnp.asarray(v, x.dtype).reshape(shape)
                          for v in (self.centres, self.weights))
      z = (x[None] - centres) / self.width
      return low + (high - low) * jnp.sum(weights * jax.scipy.special.ndtr(z), axis=0)
    return function

  def _sum(self, kernel: Callable[[np.ndarray], np.ndarray], u: np.ndarray) -> np.ndarray:
    u = np.asarray(u, np.float64)
    total = np.zeros_like(u)
    for centre, weight in zip(self.centres, self.weights, strict=True):
      total += weight * kernel((u - centre) / self.width)
    return total


def gaussian(mean: float = 0.0, sd: float = 1.0) -> Density:
  """N(mean, sd^2).

  Raises:
    UserError: they are not finite, or sd is not above 0.
  """
  if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
    raise UserError(f'a normal density has a finite mean and an sd above 0, not {mean}, {sd}')
  return Density(np.array([float(mean)]), np.ones(1), float(sd))


def recorded(samples: np.ndarray, width: float | None = None) -> Density:
  """The kernel density estimate of recorded values, and the values themselves.

  Args:
    samples: any shape; all entries count alike.
    width: of the normal kernel; None: 0.9 min(sd, IQR / 1.349) n^(-1/5) (Silverman 1986,
      equation 3.31), which widens a normal density's standard deviation by 0.4 % at n = 100,000.

  Raises:
    UserError: fewer than 100 values, one that is not finite, values that are all equal, or a width
      that is not above 0.
  """
  values = np.asarray(samples, np.float64).ravel()
  if values.size < 100 or not np.isfinite(values).all() or values.min() == values.max():
    raise UserError(f'a density is estimated from at least 100 finite values that differ, and '
                    f'these {values.size} are not such; record more batches, or a run that did '
                    'not diverge')
  if width is None:
    quartiles = np.subtract(*np.percentile(values, [75, 25])) / 1.349
    spread = min(values.std(), quartiles) if quartiles > 0 else values.std()
    width = 0.9 * spread * values.size**-0.2
  if not (math.isfinite(width) and width > 0):
    raise UserError(f'the width of a kernel is finite and above 0, not {width}')
  groups = min(math.ceil(2 * (values.max() - values.min()) / width), _GROUPS)
  counts, edges = np.histogram(values, groups)
  filled = counts > 0
  sums, _ = np.histogram(values, edges, weights=values)
  return Density(sums[filled] / counts[filled], counts[filled] / values.size, float(width), values)


def preactivations(
    model: nn.Module, variables: Mapping, x: jax.Array, train: bool = False,
    rngs: Mapping | None = None,
) -> dict[str, np.ndarray]:
  """Inputs of every activation layer with one input, by site, float64 [n].

  Args:
    model, variables, x, train, rngs: of `model.apply(variables, x, train=train)`.

  Raises:
    UserError: the model has no such layer.
  """
  @jax.jit  # op by op there would be a compilation for each
  def inputs(variables, x, rngs):
    calls = probes.record(model, variables, x, train, rngs).calls
    return {call.site: call.inputs[0] for call in calls
            if isinstance(call.module, ActivationLayer) and len(call.inputs) == 1}

  found = {site: np.asarray(values, np.float64).ravel()
           for site, values in inputs(variables, x, rngs).items()}
  if not found:
    raise UserError('no pre-activations: the model has no activation layer with one input')
  return found
