"""The fractional derivative of ReLU, and its Gaussian moments in closed form.

Maps an array of any shape to the same shape, entry by entry, in the dtype it is given;
`get_activation` adds the float32 arithmetic for narrower inputs.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations.moments import Moments, check_degree, check_variance
from model_lib.activations.registry import register
from model_lib.activations.settings import Bounds


@dataclasses.dataclass(frozen=True)
class PositivePower:
  """f(x) = scale max(x, 0)^power under x ~ N(0, q), for a power above 1/2.

  All from E max(z, 0)^p = 2^(p/2 - 1) Gamma((p + 1) / 2) / sqrt(pi), z ~ N(0, 1), p > -1.
  """

  scale: float
  power: float

  def moments(self, q: float) -> Moments:
    """The moments; E f'^2 is finite because 2 power - 2 > -1."""
    check_variance(q)
    a, s = self.scale, self.power
    mean, second = a * q**(s / 2) * _positive(s), a**2 * q**s * _positive(2 * s)
    slope_second = (a * s)**2 * q**(s - 1) * _positive(2 * s - 2)
    return Moments(
        mean=mean, second=second, gain=math.sqrt(q / second),
        slope_mean=a * s * q**((s - 1) / 2) * _positive(s - 1), slope_second=slope_second,
        chi_raw=q * slope_second / second, chi_centred=q * slope_second / (second - mean**2), q=q)

  def spectrum(self, q: float, degree: int) -> np.ndarray:
    """Hermite coefficients [degree + 1]; see `hermite_coefficients`.

    By partial integration E max(z, 0)^s He_k(z) = s E max(z, 0)^(s-1) He_{k-1}(z), so that the
    coefficient of h_{k+2} is (s - k) / sqrt((k + 1) (k + 2)) times that of h_k.
    """
    check_variance(q)
    check_degree(degree)
    s = self.power
    found = np.zeros(degree + 2)
    found[:2] = _positive(s), s * _positive(s - 1)
    for k in range(degree - 1):
      found[k + 2] = found[k] * (s - k) / math.sqrt((k + 1) * (k + 2))
    return self.scale * q**(s / 2) * found[:degree + 1]


def _positive(power: float) -> float:
  """E max(z, 0)^power."""
  return 2**(power / 2 - 1) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)


def _moments(order: float) -> PositivePower:
  return PositivePower(1 / math.gamma(2 - order), 1 - order)


@register(source='kunc2024', kinks=(0.0,), monotone='increasing', aliases=('fracrelu',),
          bounds={'order': Bounds(0, 0.5, high_open=True)}, closed_form=_moments)
def fractional_relu(x: jax.Array, order: float = 0.3) -> jax.Array:
  """x^(1 - order) / Gamma(2 - order) for x > 0, else 0: the derivative of that order of max(x, 0).

  Job et al. 2022, doi 10.1155/2022/1860779.

  For an order above 0 the slope grows like x^-order towards 0 from the right (it is 0 at 0): its
  mean square under a normal input, and with it chi, exists for orders below 1/2 alone.
  """
  positive = x > 0
  # relu, not 0, on the left, so that nan stays nan.
  power = jnp.where(positive, jnp.where(positive, x, 1)**(1 - order), jax.nn.relu(x))
  return power / math.gamma(2 - order)
