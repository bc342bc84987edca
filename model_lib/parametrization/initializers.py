"""Standard deviations of a kernel's first values that fit the activation it consumes.

All are for zero-mean independent weights, zero biases and y = W f(x) with `fan_in` summands
(k^2 c for a convolution of width k over c channels); they return a standard deviation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations import Activation, get_activation
from model_lib.activations.host import evaluate

# Published constants that multiply f in a normalizer-free network, and the registry's name of f.
# Brock et al. 2021, arXiv 2101.08692; they were estimated from samples.
NFNET_GAINS = {
    'relu': 1.71396, 'gelu_tanh': 1.70150, 'silu': 1.78813, 'tanh': 1.59391, 'sigmoid': 4.80384,
    'elu': 1.27160, 'softplus': 1.92033, 'selu': 1.00085,
}


def he_std(fan_in: int, slope: float = 0.0) -> float:
  """(2 / ((1 + slope^2) fan_in))^(1/2): for max(x, 0) + slope min(x, 0).

  He et al. 2015, arXiv 1502.01852. With fan_out in place of fan_in it keeps the gradients'
  variance instead of the outputs'.
  """
  return math.sqrt(2 / ((1 + slope**2) * _count(fan_in)))


def gain_matched_std(activation: Activation, fan_in: int, q: float = 1.0) -> float:
  """(q / (fan_in E f(sqrt(q) z)^2))^(1/2), z ~ N(0, 1): the outputs then have variance q too.

  It is `he_std` for the functions that `he_std` is for.
  """
  return activation.moments(q).gain / math.sqrt(_count(fan_in))


@dataclasses.dataclass(frozen=True)
class KumarStd:
  """A standard deviation by Kumar's rule, and which of its cases it comes from.

  `case` is 'linearized'; 'relu', the rule's own case for ReLU; or 'second moment', where f has no
  derivative at 0 or a zero one and the rule says nothing: 1 / (fan_in E f^2) stands in.
  """

  std: float
  case: Literal['linearized', 'relu', 'second moment']


def kumar_std(activation: Activation, fan_in: int) -> KumarStd:
  """(fan_in f'(0)^2 (1 + f(0)^2))^(-1/2): f linearized at 0, its input of mean 0 and variance 1.

  Kumar 2017, arXiv 1704.08863. The sigmoid has 3.58 / sqrt(fan_in), tanh 1 / sqrt(fan_in); ReLU,
  not differentiable at 0, has sqrt(2 / fan_in).
  """
  if activation.name == 'relu':
    return KumarStd(he_std(fan_in), 'relu')
  value, slope = _at_zero(activation)
  if 0.0 in activation.kinks or abs(slope) < 1e-9:
    return KumarStd(gain_matched_std(activation, fan_in), 'second moment')
  return KumarStd(1 / (abs(slope) * math.sqrt(_count(fan_in) * (1 + value**2))), 'linearized')


def nfnet_distances() -> dict[str, tuple[float, float, float]]:
  """name -> (published gain, exact gain 1 / std f under N(0, 1), published / exact - 1)."""
  exact = {name: 1 / get_activation(name).moments().std for name in NFNET_GAINS}
  return {name: (gain, exact[name], gain / exact[name] - 1) for name, gain in NFNET_GAINS.items()}


def _at_zero(activation: Activation) -> tuple[float, float]:
  """f(0) and f'(0)."""
  function, zero = activation.at_first_values(), np.zeros(1)
  value = evaluate(function, zero)
  slope = evaluate(lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1], zero)
  return float(value[0]), float(slope[0])


def _count(fan_in: int) -> int:
  if fan_in < 1:
    raise ValueError(f'fan_in must be at least 1, not {fan_in}')
  return fan_in
