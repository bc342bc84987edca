"""Moments and Hermite spectrum of an activation under a normal input, by float64 quadrature.

The gain is what an initialization multiplies a weight's standard deviation by so that the second
moment survives the layer; chi is the factor by which gradients, or the distance of two inputs,
then grow.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import Protocol

import jax
import numpy as np

from model_lib.activations.host import evaluate

_REACH = 12.0  # standard deviations; the normal mass beyond is 4e-33
_WIDTH = 0.25  # of a panel; most kinks of the catalogue are multiples of it
_ORDER = 16
_REFINEMENTS = 5
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Moments:
  """Expectations under x ~ N(0, q); float64 numbers without unit.

  Attributes:
    mean: E[f].
    second: E[f^2].
    gain: (q / E[f^2])^(1/2); at q = 1 the factor after which f has second moment 1.
    slope_mean: E[f'] = E[x f] / q, which is also right where f jumps.
    slope_second: E[f'^2]; nan where f jumps, since f' then has no square integral.
    chi_raw: gain^2 E[f'^2], at q = 1 E[f'^2] / E[f^2]: growth of a gradient's second moment
      per layer of a plain network with that gain.
    chi_centred: q E[f'^2] / Var f: the same where the outputs are centred and scaled.
    q: variance of x.
  """

  mean: float
  second: float
  gain: float
  slope_mean: float
  slope_second: float
  chi_raw: float
  chi_centred: float
  q: float = 1.0

  @property
  def variance(self) -> float:
    """E[f^2] - E[f]^2."""
    return self.second - self.mean**2

  @property
  def std(self) -> float:
    """(E[f^2] - E[f]^2)^(1/2)."""
    return math.sqrt(self.variance)

  @property
  def slope_share(self) -> float:
    """(E f')^2 / E f'^2: 1 for a linear function, 0 for an even one; nan where f jumps."""
    return self.slope_mean**2 / self.slope_second


class ClosedForm(Protocol):
  """Moments and Hermite coefficients of one function without quadrature."""

  def moments(self, q: float) -> Moments:
    """Under x ~ N(0, q)."""

  def spectrum(self, q: float, degree: int) -> np.ndarray:
    """[degree + 1]; see `hermite_coefficients`."""


@dataclasses.dataclass(frozen=True)
class _Samples:
  """f at the nodes of a rule for the standard normal z: E g(z) = sum(weights * g)."""

  z: np.ndarray  # [panel, node]
  values: np.ndarray  # f(sqrt(q) z), [panel, node]
  slopes: np.ndarray  # f'(sqrt(q) z)
  weights: np.ndarray  # [panel, node], the normal density included


def gaussian_moments(
    function: Callable[[jax.Array], jax.Array],
    kinks: tuple[float, ...] = (),
    jumps: tuple[float, ...] = (),
    q: float = 1.0,
) -> Moments:
  """Integrates f, f^2, x f and f'^2 against the normal density of variance q.

  Gauss-Legendre panels within 12 standard deviations with the kinks on their edges, halved
  until the Legendre coefficients of the integrands say that the result is good to 1e-9. The
  derivative is that of the panel's interpolating polynomial. Everything is NumPy in float64 on
  the host: no compilation, no change of the process's configuration, and calling this under a
  trace is allowed.

  Args:
    function: maps an array of shape [n] to [n], pointwise, in the dtype it is given.
    kinks: the points where f' (or f) is discontinuous.
    jumps: the points where f is.
    q: variance of x, above 0.

  Returns:
    The moments.

  Raises:
    ArithmeticError: no convergence, which a kink that is not in `kinks` causes.
  """
  samples = _samples(function, kinks + jumps, q)
  f, weights = samples.values, samples.weights
  mean, second = float(np.sum(weights * f)), float(np.sum(weights * f**2))
  slope_second = math.nan if jumps else float(np.sum(weights * samples.slopes**2))
  variance = second - mean**2
  return Moments(
      mean=mean, second=second, gain=_ratio(q, second)**0.5,
      slope_mean=float(np.sum(weights * samples.z * f)) / math.sqrt(q),
      slope_second=slope_second, chi_raw=q * _ratio(slope_second, second),
      # Below that a constant's variance is its rounding error.
      chi_centred=q * _ratio(slope_second, variance if variance > 1e-14 * second else 0.0), q=q)


def check_variance(q: float) -> None:
  """ValueError for a q that is no variance."""
  if not (math.isfinite(q) and q > 0):
    raise ValueError(f'the variance q must be above 0, not {q}')


def check_degree(degree: int) -> None:
  """ValueError for a degree beyond the limit of `hermite_coefficients`."""
  if not 0 <= degree <= 1000:
    raise ValueError(f'degree must be from 0 to 1000, not {degree}')


def hermite_coefficients(
    function: Callable[[jax.Array], jax.Array],
    kinks: tuple[float, ...] = (),
    jumps: tuple[float, ...] = (),
    q: float = 1.0,
    degree: int = 64,
) -> np.ndarray:
  """a_k = E[f(sqrt(q) z) h_k(z)], z ~ N(0, 1), for k = 0 ... degree.

  h_k = He_k / sqrt(k!) are the normalized probabilists' Hermite polynomials, so that the sum of
  all a_k^2 is E[f^2], a_0 = E[f] and a_1 = sqrt(q) E[f']. a_k^2 falls like k^(-5/2) for a
  function with a kink and like k^(-3/2) for one that jumps.

  Args:
    function, kinks, jumps, q: as for `gaussian_moments`.
    degree: the last k, at most 1,000: beyond, the panels do not resolve the polynomials.

  Returns:
    Coefficients of shape [degree + 1], float64.

  Raises:
    ArithmeticError: no convergence.
    ValueError: a degree beyond the limit.
  """
  check_degree(degree)
  samples = _samples(function, kinks + jumps, q)
  weighted = samples.weights * samples.values
  # h_{k+1} = (z h_k - sqrt(k) h_{k-1}) / sqrt(k+1), stable in this direction.
  before, current = np.zeros_like(samples.z), np.ones_like(samples.z)
  coefficients = np.empty(degree + 1)
  for k in range(degree + 1):
    coefficients[k] = np.sum(weighted * current)
    before, current = current, (samples.z * current - math.sqrt(k) * before) / math.sqrt(k + 1)
  return coefficients


def _ratio(above: float, below: float) -> float:
  """above / below; inf (or nan for 0 / 0) where below is 0."""
  if below:
    return above / below
  return math.nan if above == 0 or math.isnan(above) else math.inf


def _samples(
    function: Callable[[jax.Array], jax.Array], breaks: tuple[float, ...], q: float,
) -> _Samples:
  """f on panels so narrow that its moments are good to the tolerance."""
  check_variance(q)
  unit_nodes, unit_weights = np.polynomial.legendre.leggauss(_ORDER)
  scale, width = math.sqrt(q), _WIDTH
  for refinement in range(_REFINEMENTS + 1):
    middle, half_widths = _panels(width, tuple(point / scale for point in breaks), refinement)
    z = middle[:, None] + half_widths[:, None] * unit_nodes
    values = np.broadcast_to(evaluate(function, (scale * z).ravel()), z.size).reshape(z.shape)
    slopes = values @ _differentiation(unit_nodes).T / (scale * half_widths[:, None])
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    integrands = np.stack([values, values**2, slopes**2]) * density
    totals, error = _integrate(integrands, half_widths)
    if error <= _TOLERANCE * max(1.0, *totals[1:]):
      return _Samples(z, values, slopes, density * unit_weights * half_widths[:, None])
    width /= 2
  raise ArithmeticError(
      f'the Gaussian moments did not converge (error about {error:.1e}): is a kink undeclared?')


def _panels(
    width: float, breaks: tuple[float, ...], refinement: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Middles and half widths [panel] of the panels between -12 and 12.

  A refinement also grades those beside a break, where a power may be that no polynomial follows.
  """
  edges = np.linspace(-_REACH, _REACH, round(2 * _REACH / width) + 1)
  graded = width * 0.25**np.arange(1, 8 * refinement + 1)
  near = [point + step for point in breaks for step in (0.0, *graded, *-graded)]
  edges = np.union1d(edges, [point for point in near if abs(point) < _REACH])
  # An edge that rounding set beside a kink would leave a panel of width 1e-16.
  edges = edges[np.concatenate([[True], np.diff(edges) > 1e-12])]
  return (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2


def _differentiation(unit_nodes: np.ndarray) -> np.ndarray:
  """[node, node]: from values at the nodes of [-1, 1] to derivatives of their interpolant."""
  difference = unit_nodes[:, None] - unit_nodes + np.eye(_ORDER)
  product = difference.prod(axis=1)
  matrix = product[:, None] / product / difference
  np.fill_diagonal(matrix, 0.0)
  np.fill_diagonal(matrix, -matrix.sum(axis=1))
  return matrix


def _integrate(integrands: np.ndarray, half_widths: np.ndarray) -> tuple[list[float], float]:
  """Integrals of [3, panel, node] values, and the largest of their error estimates."""
  unit_nodes, unit_weights = np.polynomial.legendre.leggauss(_ORDER)
  integrals = np.einsum('ipn,n,p->i', integrands, unit_weights, half_widths)
  # The last Legendre coefficients of a panel are about as large as what the rule cannot see.
  basis = np.polynomial.legendre.legvander(unit_nodes, _ORDER - 1)[:, -4:]
  norms = (2 * np.arange(_ORDER - 4, _ORDER) + 1) / 2
  tails = np.abs(np.einsum('ipn,n,nk->ipk', integrands, unit_weights, basis) * norms).max(-1)
  return [float(x) for x in integrals], float((2 * tails * half_widths).sum(-1).max())
