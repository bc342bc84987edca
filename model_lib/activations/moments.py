"""Moments of an activation under a standard normal input, by float64 quadrature.

The gain E[f^2]^(-1/2) is what an initialization multiplies a weight's standard deviation by
so that the second moment survives the layer; chi = E[f'^2] / E[f^2] (raw) or / Var f
(centred) is the factor by which gradients, or the distance of two inputs, then grow.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

_REACH = 12.0  # the normal mass beyond is 4e-33
_WIDTH = 0.25  # of a panel; most kinks of the catalogue are multiples of it
_ORDER = 16
_REFINEMENTS = 5
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Moments:
  """Expectations under x ~ N(0, 1); float64 numbers without unit.

  Attributes:
    mean: E[f].
    second: E[f^2].
    gain: E[f^2]^(-1/2).
    slope_second: E[f'^2]; nan where f jumps, since f' then has no square integral.
    chi_raw: E[f'^2] / E[f^2].
    chi_centred: E[f'^2] / (E[f^2] - E[f]^2).
  """

  mean: float
  second: float
  gain: float
  slope_second: float
  chi_raw: float
  chi_centred: float

  @property
  def std(self) -> float:
    """(E[f^2] - E[f]^2)^(1/2)."""
    return math.sqrt(self.second - self.mean**2)


def gaussian_moments(
    function: Callable[[jax.Array], jax.Array],
    kinks: tuple[float, ...] = (),
    jumps: tuple[float, ...] = (),
) -> Moments:
  """Integrates f, f^2 and f'^2 against the standard normal density.

  Gauss-Legendre panels between -12 and 12 with the kinks on their edges, halved until the
  Legendre coefficients of the integrands say that the result is good to 1e-9. The derivative
  is JAX's own, taken in float64 on the CPU whatever the process has configured; nothing of
  that configuration changes, and calling this under a trace is allowed.

  Args:
    function: maps an array of shape [n] to [n], pointwise, in the dtype it is given.
    kinks: the points where f' (or f) is discontinuous.
    jumps: the points where f is.

  Returns:
    The moments.

  Raises:
    ArithmeticError: no convergence, which a kink that is not in `kinks` causes.
  """
  width = _WIDTH
  for _ in range(_REFINEMENTS + 1):
    nodes, half_widths = _panels(width, kinks + jumps)
    value, slope = _evaluate(function, nodes.ravel())
    density = np.exp(-0.5 * nodes**2) / math.sqrt(2 * math.pi)
    integrands = np.stack([value, value**2, slope**2]).reshape(3, *nodes.shape) * density
    (mean, second, slope_second), error = _integrate(integrands, half_widths)
    if error <= _TOLERANCE * max(1.0, second, slope_second):
      break
    width /= 2
  else:
    raise ArithmeticError(
        f'the Gaussian moments did not converge (error about {error:.1e}): is a kink undeclared?')
  if jumps:
    slope_second = math.nan
  return Moments(
      mean=mean, second=second, gain=second**-0.5, slope_second=slope_second,
      chi_raw=slope_second / second, chi_centred=slope_second / (second - mean**2))


def _panels(width: float, breaks: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Nodes [panel, node] and half widths [panel] of the panels between -12 and 12."""
  edges = np.linspace(-_REACH, _REACH, round(2 * _REACH / width) + 1)
  edges = np.union1d(edges, [point for point in breaks if abs(point) < _REACH])
  # An edge that rounding set beside a kink would leave a panel of width 1e-16.
  edges = edges[np.concatenate([[True], np.diff(edges) > 1e-12])]
  middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
  unit_nodes, _ = np.polynomial.legendre.leggauss(_ORDER)
  return middle[:, None] + half[:, None] * unit_nodes, half


def _integrate(integrands: np.ndarray, half_widths: np.ndarray) -> tuple[tuple[float, ...], float]:
  """Integrals of [3, panel, node] values, and the largest of their error estimates."""
  unit_nodes, unit_weights = np.polynomial.legendre.leggauss(_ORDER)
  integrals = np.einsum('ipn,n,p->i', integrands, unit_weights, half_widths)
  # The last Legendre coefficients of a panel are about as large as what the rule cannot see.
  basis = np.polynomial.legendre.legvander(unit_nodes, _ORDER - 1)[:, -4:]
  norms = (2 * np.arange(_ORDER - 4, _ORDER) + 1) / 2
  tails = np.abs(np.einsum('ipn,n,nk->ipk', integrands, unit_weights, basis) * norms).max(-1)
  return tuple(map(float, integrals)), float((2 * tails * half_widths).sum(-1).max())


def _evaluate(
    function: Callable[[jax.Array], jax.Array], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Values and derivatives at float64 points."""
  with jax.enable_x64(True), jax.ensure_compile_time_eval(), jax.default_device(_cpu()):
    x = jnp.asarray(points)
    value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    return np.asarray(value), np.asarray(slope)


def _cpu() -> jax.Device | None:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves the CPU out: the default device computes
    return None
