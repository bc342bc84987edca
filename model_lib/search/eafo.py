"""EAFO: activations changed along the gradient of the entropy of their output.

  step = eafo_step(parse('tanh(x)'), sign='descent')
  step.expression                       # tanh + epsilon delta, epsilon learnable
  step.before.primary, step.after.primary

With a pre-activation U of density p, the entropy of f(U) grows along a change of f by
d/d eps H(f + eps g) = int p g' / f', so that its steepest descent in the Lebesgue metric is

  delta = d/du [p / f'] = p' / f' - p f'' / f'^2,

which needs no inverse of f. delta is 0 exactly where f is a scaled distribution function of U,
which has the largest entropy between two bounds (`Density.boundary_function`). For ReLU's positive
branch it is -u p(u): the correction that Sun et al. 2024 (arXiv 2405.12954) add, x e^(-x^2/2),
with the other sign. Both signs can be had here, and the caller names one.

At a kink f'' counts as what it is beside it. Where f' = 0 the entropy has no derivative, and the
correction of the rest is continued by its fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
import types
import typing
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg, special

from model_lib.activations.host import evaluate
from model_lib.analysis.densities import Density, gaussian
from model_lib.analysis.entropy import Entropies, entropies
from model_lib.errors import UserError
from model_lib.search.bumps import add, bump, times, with_bump
from model_lib.search.expression import Expression, number

Metric = Literal['lebesgue', 'gaussian']
Normalise = Literal['none', 'var', 'rms']
Sign = Literal['paper', 'descent']

REACH = 8.0  # standard deviations of U that the grid covers
POINTS = 2049
DAMPING = 1e-3  # of max f'^2
TERMS = 4  # of the fit
_FLAT = 1e-290
_ROUNDING = 1e-12
_NO_FIT = 0.99  # residual from which on the fit is no part of delta
_NOTHING = 1e-9  # norm of delta times the sd of f: that of a stationary point is about 1e-15


def _elu(u):
  return np.where(u > 0, u, (u + 1) * np.exp(-np.minimum(u, 0)))


def _softplus(u):
  return (u + 1 - special.expit(u)) / special.expit(u)


def _sigmoid(u):
  s = special.expit(u)
  return (u + 1 - 2 * s) / (s * (1 - s))


# -delta / p for U ~ N(0, 1), which is u / f' + f'' / f'^2, by the names of the registry; ndtr, the
# normal distribution function, is the case of none. relu on its positive branch.
CLOSED_FORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = types.MappingProxyType({
    'identity': lambda u: u,
    'relu': lambda u: np.where(u > 0, u, 0.0),
    'leaky_relu': lambda u: np.where(u > 0, u, u / 0.01),
    'elu': _elu,
    'softplus': _softplus,
    'tanh': lambda u: (u - 2 * np.tanh(u)) * np.cosh(u)**2,
    'sigmoid': _sigmoid,
    'ndtr': np.zeros_like,
    'arctan': lambda u: u * (u**2 - 1),
    'asinh': lambda u: u**3 / np.sqrt(1 + u**2),
})


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
  """The direction of a step at the grid's points; arrays [K], float64.

  Attributes:
    u: the points, of the interval.
    weights: p(u) at them, adding up to 1; the metric's weights are these or equal ones.
    value: f(u).
    gradient: the direction of steepest descent (or ascent, sign 'paper'), 0 where f is flat.
    delta: the same without its share of f (normalise 'rms'), or of f - E f and 1 ('var').
    live: where f' is not 0, inside the interval.
    ends: the interval's, where they lie among the points.
    damped: whether 1 / f' was damped.
    decays: whether the direction is to be fitted with the factor e^(-u^2/2).
    centred: whether the share of 1 is taken out.
    scaled: whether that of f is.
    density: of U.
  """

  u: np.ndarray
  weights: np.ndarray
  value: np.ndarray
  gradient: np.ndarray
  delta: np.ndarray
  live: np.ndarray
  ends: tuple[float, ...]
  damped: bool
  decays: bool
  centred: bool
  scaled: bool
  density: Density


@dataclasses.dataclass(frozen=True)
class Step:
  """f -> f + epsilon delta.

  Attributes:
    expression: the new function; with a learnable epsilon its last scalar is epsilon's change.
    added: the fitted delta, without the share of f.
    epsilon: its coefficient at the start.
    sign: 'descent' lowers the entropy in the chosen units, 'paper' raises it.
    damped: whether 1 / f' was damped, because f' changes its sign.
    residual: |delta - fit| / |delta| in the metric, before f's share is taken out.
    before, after: entropies on the interval that the step was taken for.
    whole_before, whole_after: those of the whole output. That of f + epsilon b with f flat on an
      interval, as CRReLU's, goes to minus infinity like 1/2 log |epsilon| for both signs.
    min_slope, max_curvature: of the new function, on the grid and in the interval.
    epsilon_range: between these every epsilon keeps the sign of the slope there; nan where it
      changes its sign already, since then any epsilon moves the place.
  """

  expression: Expression
  added: Expression
  epsilon: float
  sign: Sign
  damped: bool
  residual: float
  before: Entropies
  after: Entropies
  whole_before: Entropies
  whole_after: Entropies
  min_slope: float
  max_curvature: float
  epsilon_range: tuple[float, float]


def correction(
    function: Callable[[jax.Array], jax.Array], *, sign: Sign, density: Density | None = None,
    metric: Metric = 'lebesgue', normalise: Normalise = 'none',
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Correction:
  """The direction in which f is to be changed, by automatic differentiation in float64.

  Args:
    function: f, pointwise, [n] -> [n], in the dtype it is given.
    sign: 'descent' lowers the entropy; 'paper' is the opposite, which the paper prints.
    density: of U; None is N(0, 1).
    metric: in which it is steepest: 'lebesgue' (the paper) or 'gaussian', L2(p).
    normalise: whose entropy it is the gradient of: that of f, of f / sd f, or of f over its root
      mean square. Of the last two the share of f (and of 1) is taken out: they change neither
      entropy, and E f^2 (Var f and E f) stays to first order.
    within: the branch to be changed, for a function like relu that is flat elsewhere.

  1 / f' is damped, to f' / (f'^2 + 1e-3 max f'^2), if f' changes its sign on the grid: only then,
  since in saturated tails damping puts its own shape in place of delta. A damped direction is not
  the gradient any more, and may raise what it is to lower.

  Raises:
    UserError: an unknown option, f or a derivative is not finite on the grid, or f is flat on all
      of it.
  """
  for word, options, given in (('sign', Sign, sign), ('metric', Metric, metric),
                               ('normalise', Normalise, normalise)):
    if given not in typing.get_args(options):
      raise UserError(f'eafo: {word} is one of {", ".join(typing.get_args(options))}, not {given}')
  density = density or gaussian()
  low, high = np.clip(density.mean + density.sd * np.array([-REACH, REACH]), *within)
  if not low < high:
    raise UserError(f'eafo: there is no density of U within {within}')
  u = np.linspace(low, high, POINTS)
  value, slope, curvature = _derivatives(function, u)
  p = density.pdf(u)
  weights = p * np.where((u == low) | (u == high), 0.5, 1.0)  # trapezoids
  weights /= weights.sum()
  # The ends of a branch have the slope of either side.
  inner = (u > within[0]) & (u < within[1])
  live = inner & (np.abs(slope) > _FLAT) & (p > _FLAT)
  if not live.any():
    raise UserError(f'eafo: the function is flat on all of the grid within {within}')
  inverse, damped = inverse_slope(slope, live)
  gradient = np.where(live, density.slope(u) * inverse - p * curvature * inverse**2, 0.0)
  if metric == 'gaussian':
    gradient[live] /= p[live]
  if normalise != 'none':
    # - share / 2 log Var f (or log E f^2), where the share of U in flat parts has no units.
    share = (weights @ live) / (weights @ inner)
    own = value - (weights @ value if normalise == 'var' else 0.0)
    size = share * own / (weights @ own**2)
    gradient = gradient + (size if metric == 'gaussian' else p * size)
  if sign == 'paper':
    gradient = -gradient
  ends = tuple(end for end in within if low <= end <= high)
  found = Correction(
      u, weights, value, gradient, delta=gradient, live=live, ends=ends, damped=damped,
      decays=metric == 'lebesgue', centred=normalise == 'var', scaled=normalise != 'none',
      density=density)
  scale, shift = _shares(found, gradient)
  return dataclasses.replace(found, delta=gradient - scale * value - shift)


def inverse_slope(
    slope: np.ndarray, live: np.ndarray, damping: float | None = None,
) -> tuple[np.ndarray, bool]:
  """1 / f' where `live`, else 0, and whether it is damped.

  Args:
    slope: f' [K].
    live: [K] bool.
    damping: None: `DAMPING` if f' changes its sign, else 0.
  """
  size = np.abs(slope[live]).max()
  changes = slope[live].min() < -_ROUNDING * size and slope[live].max() > _ROUNDING * size
  damping = (DAMPING if changes else 0.0) if damping is None else damping
  safe = np.where(live, slope, 1.0)
  # Not f' / f'^2, which squares away the small slopes of saturated tails.
  inverse = safe / (safe**2 + damping * size**2) if damping else 1 / safe
  return np.where(live, inverse, 0.0), damping > 0


def eafo_step(
    expression: Expression, epsilon: float = 0.01, learnable: bool = True, *, sign: Sign,
    density: Density | None = None, metric: Metric = 'lebesgue', normalise: Normalise = 'none',
    within: tuple[float, float] = (-math.inf, math.inf), breaks: tuple[float, ...] = (),
) -> Step:
  """One step f + epsilon delta, with delta fitted by a bump, as an expression to be trained.

  The fit is by least squares in the metric, so that it is a direction of descent too (where
  nothing was damped), and keeps f at the ends of the interval: their move would change the entropy
  by more than delta says. It is on
  v^j e^(-v^2/2), j = 0 ... 3, where v = (u - mean) / sd of U; in the Gaussian metric, where delta
  does not decay, on v^j alone. The share of f and 1 that `normalise` takes out stays at its start
  when epsilon is learned.

  Args:
    expression: f, its own scalars at their first values.
    epsilon: the coefficient, or the start of a learned one; `with_bump` says how it is learned.
    learnable: whether it is.
    sign, density, metric, normalise, within: see `correction`.
    breaks: where f or f' jumps, for the entropies.

  Raises:
    UserError: see `correction` and `entropies`; delta is 0, f a scaled distribution function; or
      delta grows so fast in the tails that no bump follows it, as for erf.
  """
  found = correction(expression, sign=sign, density=density, metric=metric, normalise=normalise,
                     within=within)
  coefficients, residual = _fit(found)
  added = bump(coefficients, found.density.mean, found.density.sd, found.decays)
  values = evaluate(added, found.u)
  scale, shift = _shares(found, values)
  start = times(1 - epsilon * scale, expression)
  start = add(number(-epsilon * shift), start) if shift else start
  changed = with_bump(start, added, epsilon, learnable)

  everything = (-math.inf, math.inf)
  whole = [entropies(f, density, breaks) for f in (expression, changed)]
  branch = whole if within == everything else [
      entropies(f, density, breaks, within) for f in (expression, changed)]
  _, slope, curvature = (values[found.live] for values in _derivatives(changed, found.u))
  own, change = (_derivatives(f, found.u)[1][found.live] for f in (expression, added))
  return Step(
      changed, added, epsilon, sign, found.damped, residual, *branch, *whole,
      min_slope=float(slope.min()), max_curvature=float(np.abs(curvature).max()),
      epsilon_range=(math.nan, math.nan) if found.damped else _range(change / own - scale))


def eafo(
    expression: Expression, steps: int, epsilon: float = 0.01, learnable: bool = False, **options,
) -> tuple[Step, ...]:
  """Steps one after another, each from the last one's function; see `eafo_step`."""
  found = []
  for _ in range(steps):
    found.append(eafo_step(expression, epsilon, learnable, **options))
    expression = found[-1].expression
  return tuple(found)


def _derivatives(
    function: Callable[[jax.Array], jax.Array], u: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """f, f' and f'' at u, float64."""
  def slope(u):
    return jax.jvp(function, (u,), (jnp.ones_like(u),))[1]

  def all_three(u):
    return jnp.stack([function(u), slope(u), jax.jvp(slope, (u,), (jnp.ones_like(u),))[1]])
  found = evaluate(all_three, u)
  bad = ~np.isfinite(found).all(0)
  if bad.any():
    raise UserError(f'eafo: the function, its slope or its curvature is not finite at {bad.sum()} '
                    f'of {bad.size} points, first at {u[bad][0]:.4g}')
  return tuple(found)


def _range(ratio: np.ndarray) -> tuple[float, float]:
  """Between which epsilons 1 + epsilon delta' / f' is positive, for ratios delta' / f'."""
  high, low = float(ratio.max()), float(ratio.min())
  return (-1 / high if high > _ROUNDING else -math.inf, -1 / low if low < -_ROUNDING else math.inf)


def _shares(found: Correction, direction: np.ndarray) -> tuple[float, float]:
  """(a, b): direction - a f - b is orthogonal to f (and to 1) in L2(p)."""
  if not found.scaled:
    return 0.0, 0.0
  means = [float(found.weights @ v) if found.centred else 0.0 for v in (direction, found.value)]
  own = found.value - means[1]
  scale = float(found.weights @ ((direction - means[0]) * own) / (found.weights @ own**2))
  shift = means[0] - scale * means[1]
  least = _ROUNDING * math.sqrt(found.weights @ own**2)
  return scale, shift if abs(shift) > least else 0.0


def _fit(found: Correction) -> tuple[np.ndarray, float]:
  """Coefficients [TERMS] of v^j e^(-v^2/2), and the residual."""
  live = found.live
  basis, rows = (_basis(found, u) for u in (found.u[live], np.array(found.ends)))
  if len(rows):
    basis = basis @ linalg.null_space(rows)
  # The metric's own inner product: a projection in another one need not descend.
  root = (np.ones(basis.shape[0]) if found.decays else np.sqrt(found.weights[live]))[:, None]
  target = root[:, 0] * found.gradient[live]
  size = np.linalg.norm(target)
  spread = math.sqrt(found.weights @ (found.value - found.weights @ found.value)**2)
  if size * spread < _NOTHING:
    raise UserError('eafo: the correction is 0: the entropy is stationary at this function')
  solved = np.linalg.lstsq(root * basis, target, rcond=None)[0]
  residual = float(np.linalg.norm((root * basis) @ solved - target) / size)
  if residual > _NO_FIT:
    raise UserError(f'eafo: the correction grows in the tails and {residual:.4f} of it is left '
                    'beside the best bump; start from a function that saturates more slowly')
  return linalg.null_space(rows) @ solved if len(rows) else solved, residual


def _basis(found: Correction, u: np.ndarray) -> np.ndarray:
  """v^j e^(-v^2/2), or v^j, [n, TERMS]."""
  v = (u - found.density.mean) / found.density.sd
  powers = v[:, None]**np.arange(TERMS)
  return powers * np.exp(-0.5 * v**2)[:, None] if found.decays else powers
