"""Entropy of an activation's output f(U), by three estimators in three units.

  gaussian entropies:  entropies(get_activation('gelu').at_first_values())
  of a recorded layer: entropies(f, recorded(samples))

The estimators, in nats:

  plug_in   - sum P_b log P_b + log h over bins of width h, centred on the multiples of h. It is
            defined for every f: atoms and several branches need nothing special. f(U) / sd f on
            bins of width 0.1 is this project's primary measure.
  monotone  H(U) + E log |f'(U)|, as in Sun et al. 2024 (arXiv 2405.12954). It is the entropy of
            f(U) only where f is strictly monotone: it is -inf where f is flat on an interval, and
            too large by the entropy of the branch where f takes a value more than once.
  mixed     - sum m_a log m_a - int q log q: f(U) has the mass m_a at each value that f takes on an
            interval (an atom), and the density q, of mass 1 - sum m_a, elsewhere; q adds up the
            branches. It is the differential entropy where there are no atoms.

The units: of f itself ('raw'), of f / sd f ('var') and of f / (E f^2)^(1/2) ('rms'). The last two
do not change when f is multiplied by a number; without atoms they are the first minus
1/2 log Var f and 1/2 log E f^2. (With atoms only the mass 1 - sum m_a of the mixed entropy is
shifted, which these formulas would forget.) The paper's claim is that a lower entropy is better.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from model_lib.activations.host import evaluate
from model_lib.analysis.densities import Density, gaussian
from model_lib.errors import UserError

WIDTH = 0.1  # of the primary measure's bins
FINE_WIDTH = 0.01
PRIMARY = 'plug-in entropy of f(U) / sd f on bins of width 0.1, + log 0.1; lower is better (paper)'

_CELLS = 2**14
_ATOM = 1e-6  # the least mass of an atom: flatter tails are those of float64
_POINT = 1e-12  # a cell of less mass falls into one bin
_FLAT = 1e-290  # slope
_MOST_PIECES = 5 * 10**7


@dataclasses.dataclass(frozen=True)
class Units:
  """One estimator's entropy of f, of f / sd f, and of f / (E f^2)^(1/2), in nats."""

  raw: float
  var: float
  rms: float


@dataclasses.dataclass(frozen=True)
class Entropies:
  """What `entropies` found; see the top of the file.

  Attributes:
    plug_in, plug_in_fine: on bins of width 0.1 and 0.01.
    monotone, mixed: the other two estimators.
    strictly_monotone: whether `monotone` is the entropy of f(U).
    atoms: (value, mass) of each atom.
    mean, second: E f and E f^2.
    samples: how many recorded values the plug-in entropy is of; 0: the exact masses of the bins.
      That of n samples is too small by about (occupied bins - 1) / (2 n), n far above the bins.
  """

  plug_in: Units
  plug_in_fine: Units
  monotone: Units
  mixed: Units
  strictly_monotone: bool
  atoms: tuple[tuple[float, float], ...]
  mean: float
  second: float
  samples: int

  @property
  def primary(self) -> float:
    """Plug-in entropy of f(U) / sd f on bins of width 0.1, + log 0.1."""
    return self.plug_in.var

  def row(self) -> dict[str, float | bool]:
    """All conventions as flat columns."""
    found: dict[str, float | bool] = {'primary': self.primary}
    for name in ('plug_in', 'plug_in_fine', 'monotone', 'mixed'):
      found |= {f'{name}_{unit}': value
                for unit, value in dataclasses.asdict(getattr(self, name)).items()}
    return found | {'strictly_monotone': self.strictly_monotone, 'atoms': len(self.atoms),
                    'atom_mass': sum(mass for _, mass in self.atoms)}


def entropies(
    function: Callable[[jax.Array], jax.Array], density: Density | None = None,
    breaks: tuple[float, ...] = (), within: tuple[float, float] = (-math.inf, math.inf),
) -> Entropies:
  """Entropies of f(U), U ~ density, in float64 without a compiler and without random numbers.

  Args:
    function: pointwise, [n] -> [n], in the dtype it is given.
    density: of U; None is N(0, 1). For recorded values the plug-in entropies are those of their
      histogram, and the others those of their kernel density estimate.
    breaks: where f or f' jumps; one that is missing costs an accuracy of 1e-3 or better.
    within: U is conditioned on this interval: (0, inf) is the positive branch.

  Returns:
    The entropies; good to about 1e-6, and to 1e-3 where f has several branches.

  Raises:
    UserError: f is constant or not finite on the interval, the interval has no mass, or f has a
      range of too many bins.
  """
  density = density or gaussian()
  cells = _cells(function, density, breaks, within)
  mean = float(cells.mass @ cells.value)
  inside = (cells.slope * cells.step)**2 / 12  # variance of the line within a cell
  variance = float(cells.mass @ ((cells.value - mean)**2 + inside))
  scales = _scales(mean, variance)
  atoms = _atoms(cells)
  share = 1.0 - sum(mass for _, mass in atoms)
  monotone, mixed = _monotone(cells, atoms), _mixed(cells, atoms)
  if density.samples is None:
    count = 0
    plug_in, fine = ([_plug_in(_masses_of_bins(cells, scale * width), width) for scale in scales]
                     for width in (WIDTH, FINE_WIDTH))
  else:
    kept = density.samples[(density.samples > within[0]) & (density.samples < within[1])]
    outputs, count = evaluate(function, kept), kept.size
    own_scales = _scales(float(outputs.mean()), float(outputs.var()))
    plug_in, fine = ([_plug_in(_shares_of_bins(outputs / (scale * width)), width)
                      for scale in own_scales] for width in (WIDTH, FINE_WIDTH))
  return Entropies(
      plug_in=Units(*plug_in), plug_in_fine=Units(*fine),
      monotone=Units(*(monotone - math.log(scale) for scale in scales)),
      mixed=Units(*(mixed - share * math.log(scale) for scale in scales)),
      strictly_monotone=not atoms and _is_monotone(cells), atoms=atoms, mean=mean,
      second=mean**2 + variance, samples=count)


def entropy_slope(
    function: Callable[[jax.Array], jax.Array], direction: Callable[[jax.Array], jax.Array],
    density: Density | None = None, breaks: tuple[float, ...] = (),
    within: tuple[float, float] = (-math.inf, math.inf),
) -> float:
  """d/d eps at 0 of the entropy of f(U) + eps g(U) as it is: E [g'(U) / f'(U)].

  Args:
    function, density, breaks, within: as for `entropies`; f' is not 0 on the interval.
    direction: g, pointwise.

  Raises:
    UserError: f' is 0 somewhere on the interval, or see `entropies`.
  """
  density = density or gaussian()
  cells = _cells(function, density, breaks, within)
  if (cells.slope == 0).any():
    raise UserError('entropy_slope: f is flat in places, and the entropy there has no derivative; '
                    'give the interval of a branch, such as within=(0, inf) for relu')
  return float(cells.mass @ (_cells(direction, density, breaks, within).slope / cells.slope))


def input_entropy(
    density: Density, within: tuple[float, float] = (-math.inf, math.inf),
) -> float:
  """H(U) = - int p log p in nats, U conditioned on the interval."""
  cells = _cells(lambda u: u, density, (), within)
  return -float(special.xlogy(cells.mass, cells.mass / cells.step).sum())


@dataclasses.dataclass(frozen=True)
class _Cells:
  """f on narrow cells of u, on each of which it counts as its tangent in the middle; all [cell].

  No cell reaches over a known break.
  """

  step: np.ndarray  # width of the cell
  mass: np.ndarray
  value: np.ndarray
  slope: np.ndarray
  after_break: np.ndarray

  @property
  def live(self) -> np.ndarray:
    """Where the output has a density that float64 can hold."""
    return (np.abs(self.slope) > _FLAT) & (self.mass > 0)


def _cells(
    function: Callable[[jax.Array], jax.Array], density: Density, breaks: tuple[float, ...],
    within: tuple[float, float],
) -> _Cells:
  low, high = np.clip(density.reach, *within)
  if not low < high:
    raise UserError(f'entropy: there is no density of U within {within}')
  inner = [point for point in breaks if low < point < high]
  edges = np.union1d(np.linspace(low, high, _CELLS + 1), inner)
  mass = density.masses(edges)
  if not mass.sum() > _POINT:
    raise UserError(f'entropy: there is no density of U within {within}')
  middle = (edges[1:] + edges[:-1]) / 2
  value, slope = evaluate(
      lambda u: jnp.stack(jax.jvp(function, (u,), (jnp.ones_like(u),))), middle)
  bad = ~(np.isfinite(value) & np.isfinite(slope))
  if bad.any():
    raise UserError('entropy: the function or its slope is not finite at '
                    f'{bad.sum()} of {bad.size} points, first at {middle[bad][0]:.4g}')
  return _Cells(np.diff(edges), mass / mass.sum(), value, slope, np.isin(edges[:-1], inner))


def _scales(mean: float, variance: float) -> tuple[float, float, float]:
  second = mean**2 + variance
  if not variance > 1e-18 * second:
    raise UserError(f'entropy: the function is constant, {mean:.6g}, and has no spread to divide '
                    'by')
  return 1.0, math.sqrt(variance), math.sqrt(second)


def _atoms(cells: _Cells) -> tuple[tuple[float, float], ...]:
  """(value, mass) of the values at which f' is exactly 0 with some mass."""
  flat = cells.slope == 0
  order = np.argsort(cells.value[flat])
  values, masses = cells.value[flat][order], cells.mass[flat][order]
  if not values.size:
    return ()
  apart = np.diff(values) > 1e-12 * max(1.0, np.abs(values).max())
  group = np.concatenate([[0], np.cumsum(apart)])
  totals = np.bincount(group, masses)
  first = values[np.searchsorted(group, np.arange(totals.size))]
  # + 0.0 makes 0.0 of -0.0.
  return tuple((float(value) + 0.0, float(mass))
               for value, mass in zip(first, totals, strict=True) if mass > _ATOM)


def _is_monotone(cells: _Cells) -> bool:
  slopes, steps = cells.slope[cells.live], np.diff(cells.value)
  rounding = 1e-12 * np.abs(cells.value).max()
  return any((sign * slopes > 0).all() and (sign * steps >= -rounding).all() for sign in (1, -1))


def _monotone(cells: _Cells, atoms: tuple[tuple[float, float], ...]) -> float:
  """H(U) + E log |f'(U)|."""
  if atoms:
    return -math.inf
  own = special.xlogy(cells.mass, cells.mass / cells.step).sum()
  live = cells.live
  return float(cells.mass[live] @ np.log(np.abs(cells.slope[live])) - own)


def _mixed(cells: _Cells, atoms: tuple[tuple[float, float], ...]) -> float:
  """- sum m log m over the atoms - E log q(f(U)) over the rest."""
  live = cells.live
  value = cells.value
  # p(u) / |f'(u)|, what a branch adds to the density of the output at f(u).
  own = np.zeros_like(value)
  own[live] = cells.mass[live] / (cells.step[live] * np.abs(cells.slope[live]))
  q = own.copy()
  for branch in _branches(cells):
    order = branch if value[branch[-1]] > value[branch[0]] else branch[::-1]
    half = np.abs(cells.slope[order] * cells.step[order]) / 2
    low, high = value[order[0]] - half[0], value[order[-1]] + half[-1]
    met = live & (value > low) & (value < high)
    met[branch] = False
    q[met] += np.interp(value[met], value[order], own[order])
  atomic = sum(mass * math.log(mass) for _, mass in atoms)
  return -atomic - float(cells.mass[live] @ np.log(q[live]))


def _branches(cells: _Cells) -> list[np.ndarray]:
  """Indices of the cells of each stretch on which f is strictly monotone and has no break."""
  direction = np.where(cells.live, np.sign(cells.slope), 0)
  begins = (np.diff(direction, prepend=np.nan) != 0) | cells.after_break
  stretches = np.split(np.arange(direction.size), np.flatnonzero(begins)[1:])
  # In tails slopes may change their signs by rounding.
  return [part for part in stretches
          if direction[part[0]] and cells.mass[part].sum() > 1e-9]


def _masses_of_bins(cells: _Cells, width: float) -> np.ndarray:
  """Masses of the bins of f(U) centred on the multiples of `width`."""
  middle = cells.value / width + 0.5
  half = np.where(cells.mass > _POINT, np.abs(cells.slope) * cells.step / (2 * width), 0.0)
  low, high = middle - half, middle + half
  first = np.floor(low)
  pieces = (np.floor(high) - first).astype(np.int64) + 1
  if pieces.sum() > _MOST_PIECES:
    raise UserError(f'entropy: the function covers more than {_MOST_PIECES} bins of width '
                    f'{width:.3g}')
  cell = np.repeat(np.arange(pieces.size), pieces)
  place = first[cell] + (np.arange(cell.size) - np.repeat(np.cumsum(pieces) - pieces, pieces))
  covered = np.minimum(high[cell], place + 1) - np.maximum(low[cell], place)
  part = np.where(pieces[cell] == 1, 1.0, covered / np.maximum(high - low, 1e-300)[cell])
  place = place - place.min()
  if place.max() > 10**6:
    place = np.unique(place, return_inverse=True)[1]
  return np.bincount(place.astype(np.int64), cells.mass[cell] * part)


def _shares_of_bins(outputs: np.ndarray) -> np.ndarray:
  """Shares of the recorded outputs in the bins centred on the whole numbers."""
  if not np.isfinite(outputs).all():
    raise UserError('entropy: the function is not finite at a recorded value')
  return np.unique(np.floor(outputs + 0.5), return_counts=True)[1] / outputs.size


def _plug_in(masses: np.ndarray, width: float) -> float:
  return float(special.entr(masses).sum()) + math.log(width)
