"""Signal propagation in wide random networks: variance and correlation from layer to layer.

A layer of width n -> infinity maps the pre-activations h of one input to

  h' = skip h + branch (W f(h) + b),   W ~ N(0, weight_variance / n),  b ~ N(0, bias_variance)

skip = 0 and branch = 1 is a plain network, skip = 1 a residual one. Over the draw of the
weights the entries of h are normal, so the variance q of one input and the correlation rho of
two with the same variance follow

  q'     = skip^2 q + branch^2 (weight_variance E f(u)^2 + bias_variance)
  q' rho' = skip^2 q rho + branch^2 (weight_variance E f(u) f(v) + bias_variance)

with u, v ~ N(0, q) of correlation rho. `normalized` layers give f the stream divided by its
standard deviation (pre-norm): there u, v ~ N(0, 1).

Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2016, arXiv 1611.01232; Yang & Schoenholz
2017, arXiv 1712.08969.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from scipy import optimize

from model_lib.activations import Activation
from model_lib.activations.moments import hermite_coefficients

_DEGREE = 400
_LOWEST, _HIGHEST = 1e-6, 1e4  # where variances are looked for


@dataclasses.dataclass(frozen=True)
class Dual:
  """The dual activation rho -> E f(u) f(v), u, v ~ N(0, q) of correlation rho.

  Attributes:
    squares: a_k^2, k = 0 ... degree, the squared Hermite coefficients: the value is
      sum a_k^2 rho^k.
    second: E f^2, the sum of all a_k^2.
    q: variance of u and v.
  """

  squares: np.ndarray
  second: float
  q: float

  @property
  def tail(self) -> float:
    """The part of E f^2 beyond the last coefficient, which bounds the error of a value."""
    return max(self.second - float(self.squares.sum()), 0.0)

  def __call__(self, rho: float | np.ndarray) -> np.ndarray:
    """E f(u) f(v). The tail counts as one more term: exact at rho = 1, and to
    2 tail |rho|^(degree + 1) elsewhere."""
    coefficients = np.append(self.squares, self.tail)
    return np.polynomial.polynomial.polyval(np.asarray(rho, np.float64), coefficients)

  def slope(self, rho: float | np.ndarray) -> np.ndarray:
    """d/drho E f(u) f(v) = q E f'(u) f'(v), for |rho| < 1; at 1 use the moments' E f'^2."""
    derivative = np.polynomial.polynomial.polyder(self.squares)
    return np.polynomial.polynomial.polyval(np.asarray(rho, np.float64), derivative)


def dual_activation(activation: Activation, q: float = 1.0, degree: int = _DEGREE) -> Dual:
  """The dual activation of f at variance q, from its Hermite coefficients; cached."""
  return _dual(activation, float(q), degree)


@functools.lru_cache(maxsize=4096)
def _dual(activation: Activation, q: float, degree: int) -> Dual:
  return Dual(activation.spectrum(q, degree)**2, activation.moments(q).second, q)


@dataclasses.dataclass(frozen=True)
class FixedPoint:
  """Where the maps of a layer stop, and how fast they get there.

  Attributes:
    q: the variance q = q'(q).
    chi_q: dq'/dq there; the fixed point is stable for |chi_q| < 1.
    chi_1: drho'/drho at rho = 1: growth of a gradient's second moment per layer. Above 1
      (chaos) two close inputs part, below (order) all inputs meet. nan where f jumps.
    rho: the stable correlation, 1 in the ordered phase.
    chi_rho: drho'/drho there.
    depth_q: 1 / |ln |chi_q||, the number of layers in which a deviation of q falls by e; inf
      where chi_q is 1.
    depth_rho: 1 / |ln |chi_rho||, the same for the correlation.
  """

  q: float
  chi_q: float
  chi_1: float
  rho: float
  chi_rho: float

  @property
  def depth_q(self) -> float:
    return depth_scale(self.chi_q)

  @property
  def depth_rho(self) -> float:
    return depth_scale(self.chi_rho)


def depth_scale(chi: float) -> float:
  """1 / |ln |chi||, in layers; inf at |chi| = 1 to rounding, 0 at chi = 0."""
  if chi == 0:
    return 0.0
  rate = abs(math.log(abs(chi)))
  return 1 / rate if rate > 1e-9 else math.inf


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of the network above; see the formulas at the top of the file."""

  activation: Activation
  weight_variance: float
  bias_variance: float = 0.0
  skip: float = 0.0
  branch: float = 1.0
  normalized: bool = False

  def variance(self, q: float) -> float:
    """q'(q)."""
    return self.skip**2 * q + self.branch**2 * (
        self.weight_variance * self.activation.moments(self._seen(q)).second + self.bias_variance)

  def correlation(self, rho: float | np.ndarray, q: float) -> np.ndarray:
    """rho'(rho) for two inputs of variance q; rho of any shape."""
    return (self.skip**2 * q * np.asarray(rho) + self.branch**2 * (
        self.weight_variance * dual_activation(self.activation, self._seen(q))(rho)
        + self.bias_variance)) / self.variance(q)

  def variance_slope(self, q: float) -> float:
    """dq'/dq."""
    if self.normalized:
      return self.skip**2
    # d/dq E f(sqrt(q) z)^2 = E[f^2 (z^2 - 1)] / (2 q): the third Hermite coefficient of f^2.
    change = _second_of_square(self.activation, q) / (math.sqrt(2) * q)
    return self.skip**2 + self.branch**2 * self.weight_variance * change

  def correlation_slope(self, rho: float, q: float) -> float:
    """drho'/drho at rho; at rho = 1 from E f'^2, nan there where f jumps."""
    seen = self._seen(q)
    if rho < 1:
      slope = float(dual_activation(self.activation, seen).slope(rho))
    else:
      slope = seen * self.activation.moments(seen).slope_second
    return (self.skip**2 * q + self.branch**2 * self.weight_variance * slope) / self.variance(q)

  def variances(self, q: float, depth: int) -> np.ndarray:
    """q before the first layer and after each of `depth` layers: shape [depth + 1]."""
    found = [q]
    for _ in range(depth):
      found.append(self.variance(found[-1]))
    return np.array(found)

  def variance_fixed_points(self) -> tuple[float, ...]:
    """All q in [1e-6, 1e4] with q'(q) = q and a sign change of q' - q, in ascending order.

    Empty for a function whose map is linear in q: positively homogeneous without a bias.
    """
    def excess(log_q):
      q = math.exp(log_q)
      return self.variance(q) / q - 1
    grid = np.linspace(math.log(_LOWEST), math.log(_HIGHEST), 47)
    values = np.array([excess(log_q) for log_q in grid])
    # A zero to rounding everywhere is a line of fixed points, not a crossing.
    values[np.abs(values) < 1e-9] = 0
    return tuple(
        math.exp(optimize.brentq(excess, low, high, xtol=1e-13))
        for low, high, left, right in zip(grid, grid[1:], values, values[1:]) if left * right < 0)

  def fixed_point(self, q: float | None = None) -> FixedPoint:
    """The fixed point at variance q, by default the stable one of `variance_fixed_points`.

    Raises:
      ValueError: there is no stable fixed point, or several: give q.
    """
    if q is None:
      stable = [q for q in self.variance_fixed_points() if abs(self.variance_slope(q)) < 1]
      if len(stable) != 1:
        raise ValueError(
            f'{self.activation.spec} has {len(stable)} stable variances between {_LOWEST:g} and '
            f'{_HIGHEST:g}; pass q')
      q = stable[0]
    chi_1 = self.correlation_slope(1.0, q)
    rho = self._stable_correlation(q)
    return FixedPoint(q=q, chi_q=self.variance_slope(q), chi_1=chi_1, rho=rho,
                      chi_rho=self.correlation_slope(rho, q))

  def _stable_correlation(self, q: float) -> float:
    """The smallest rho in [0, 1] that the map from rho = 0 tends to."""
    def excess(rho):
      return float(self.correlation(rho, q)) - rho
    grid = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.logspace(-2.2, -6, 20)])
    values = np.array([excess(rho) for rho in grid])
    if values[0] <= 1e-12:
      return 0.0
    below = np.flatnonzero(values < -1e-9)
    if not below.size:
      return 1.0
    return optimize.brentq(excess, grid[below[0] - 1], grid[below[0]], xtol=1e-13)

  def _seen(self, q: float) -> float:
    """The variance of f's input."""
    return 1.0 if self.normalized else q


@functools.lru_cache(maxsize=4096)
def _second_of_square(activation: Activation, q: float) -> float:
  """E[f(sqrt(q) z)^2 h_2(z)]."""
  function = activation.at_first_values()
  return float(hermite_coefficients(
      lambda x: function(x)**2, activation.kinks, activation.jumps, q, degree=2)[2])
