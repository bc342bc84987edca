"""The engine `table`: a cubic Hermite table of f and f', as data.

[-limit, limit] is cut by uniform knots, at h = 2 limit / (knots - 1). In an interval, with
s = (x - knot) / h from 0 to 1,

  f(x) = c0 + s (c1 + s (c2 + s c3)),   f'(x) = (c1 + s (2 c2 + 3 s c3)) / h,

which meets f and f' at both ends, each taken on the interval's own side: a kink at a knot is exact.
A kink between knots is moved to the nearest one, which costs up to half an interval times the jump
of f'. Beyond the limits f goes on as a line. The derivative is the polynomial's.

On a CPU a row of four numbers is gathered at 0.8 ns an entry under lax.map (knots in L1 or not:
513 to 1,025 differ by less than the noise); locating the row costs as much again, since XLA carries
it out inside the gather's loop, entry by entry, and the two polynomials as much as that. Slower:
four gathers of single numbers (1.9 times as long as one of rows), two of complex numbers (1.3
times), an index through x - x mod 1 in float32 bits (XLA folds the addition that rounds).
Fusions with more operations than bytes are cut into two by XLA's thread pool, at 20 us each, which
nothing gains where both cores are busy with lanes; reading the rows keeps these below it.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError
from model_lib.models.swept import Leaves, SweptActivation
from model_lib.search.engines import settings
from model_lib.search.engines.kinks import grid
from model_lib.search.expression import Expression
from model_lib.search.grammar import parse
from model_lib.spec import Call

_DEFAULTS = {'knots': 1025, 'limit': 8.0}
_MOST_KNOTS = 65537
_DEFAULT = 'relu(x)'


@dataclasses.dataclass(frozen=True)
class Table(SweptActivation):
  """f by interpolation between `knots` places from -limit to limit.

  Learnable scalars of an expression keep their first values.
  """

  knots: int = 1025
  limit: float = 8.0

  @classmethod
  def from_spec(cls, call: Call) -> 'Table':
    """The engine of `table(knots=1025, limit=8)`; UserError for impossible settings."""
    values = settings.read(call, _DEFAULTS)
    if values['knots'] % 2 == 0 or not 3 <= values['knots'] <= _MOST_KNOTS:
      raise UserError(f'{call}: knots is odd (one of them is 0) and from 3 to {_MOST_KNOTS}')
    return cls(values['knots'], float(values['limit']))

  @property
  def name(self) -> str:
    return f'table(knots={self.knots}, limit={self.limit:g})'

  def default(self) -> Leaves:
    return self.encode(_DEFAULT)

  def encode(self, text: str) -> Leaves:
    return {'table': _encoded(text, self.knots, self.limit)}

  def first(self, leaves, shape) -> dict[str, jax.Array]:
    return {}

  def apply(self, leaves: Mapping[str, jax.Array], params, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return interpolate(leaves['table'], wide, self.limit).astype(x.dtype)

  def gain(self) -> float:
    return 2**0.5  # of ReLU


@functools.lru_cache(maxsize=1024)
def _encoded(text: str, knots: int, limit: float) -> np.ndarray:
  encoded = coefficients(parse(text), knots, limit)
  encoded.flags.writeable = False  # it is shared
  return encoded


def coefficients(expression: Expression, knots: int, limit: float) -> np.ndarray:
  """float32 [knots + 1, 4]: the line on the left, the intervals, the line on the right.

  Where the expression is not finite at a knot, its intervals are not.
  """
  of = grid(limit, knots)
  sides = of.sides(expression)
  (left, right), (d_left, d_right) = sides.values.copy(), sides.slopes.copy()
  moved: dict[int, list] = {}
  for kink in sides.kinks:
    moved.setdefault(round((kink.place + limit) / of.step), []).append(kink)
  for knot, found in moved.items():
    (f_left, slope_left), (f_right, slope_right) = found[0].left, found[-1].right
    d_left[knot], d_right[knot] = slope_left, slope_right
    if abs(f_right - f_left) > 1e-6 * (abs(f_left) + abs(f_right)) and len(found) == 1:
      at = of.knots[knot] - found[0].place
      left[knot], right[knot] = f_left + at * slope_left, f_right + at * slope_right
  f0, f1, d0, d1 = right[:-1], left[1:], of.step * d_right[:-1], of.step * d_left[1:]
  # The rows of the lines are read at s = 1 + (x + limit) / h and s = (x - limit) / h.
  first, last = of.step * d_left[0], of.step * d_right[-1]
  with np.errstate(all='ignore'):
    rows = np.stack([f0, d0, 3 * (f1 - f0) - 2 * d0 - d1, 2 * (f0 - f1) + d0 + d1], 1)
    return np.concatenate([[[left[0] - first, first, 0, 0]], rows,
                           [[right[-1], last, 0, 0]]]).astype(np.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def interpolate(table: jax.Array, x: jax.Array, limit: float) -> jax.Array:
  """f(x) by the rows of `coefficients`; nan gives nan. The table has no derivative."""
  return _value(*_located(table, x, limit)[:2])


@interpolate.defjvp
def _interpolate_jvp(limit, primals, tangents):
  rows, s, rate = _located(*primals, limit)
  _, c1, c2, c3 = rows
  slope = (c1 + s * (2 * c2 + 3 * s * c3)) * rate
  return _value(rows, s), slope * tangents[1]


def _located(table: jax.Array, x: jax.Array, limit: float):
  """The four coefficients at x, s, and 1 / h."""
  half = table.shape[0] // 2 - 1  # intervals on each side of 0
  rate = np.float32(half / limit)
  u = x * rate
  place = u + np.float32(half + 1)
  # The row is cut off and limited by the gather itself, whose loop runs entry by entry; s comes from
  # the same `place`, so that both belong to one interval where it was rounded over a knot.
  row = place.astype(jnp.int32)
  start = jnp.clip(jnp.floor(place), 0, 2 * half + 1) - np.float32(half + 1)
  # Indices are never negative: the wrap-around of x[i] would be one more pass.
  found = jax.lax.gather(
      table, row[..., None], jax.lax.GatherDimensionNumbers(
          offset_dims=(row.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)),
      (1, 4), mode='clip')
  return [found[..., k] for k in range(4)], u - start, rate


def _value(rows, s: jax.Array) -> jax.Array:
  c0, c1, c2, c3 = rows
  return c0 + s * (c1 + s * (c2 + s * c3))
