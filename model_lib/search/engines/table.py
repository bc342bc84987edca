"""The engine `table`: a cubic Hermite table of f and f', as data.

The knots are 0 and the numbers +-m 2^e whose mantissa m has `per_octave` values: from 2^-17 to the
limit they stand as float32 itself does. So the interval of x is read off its bits, t = x - knot is
exact, and what happens close to 0 is resolved as well as an exponential that grows to 1e38. In an
interval that begins at a knot,

  f(x) = c0 + t (c1 + t (c2 + t c3)),   f'(x) = c1 + t (2 c2 + 3 t c3),

which meets f and f' at both ends, each taken on the interval's own side: a kink at a knot is exact.
Where there are kinks between knots, x is stretched by a factor near 1 that brings the one that
matters most (and its mirror image) to a knot; the others are moved to the nearest one, which costs
up to half an interval times the jump of f'. Beyond the limit f goes on as a line. The derivative is
the polynomial's.

What it costs on a CPU, by XLA's own profile of its loops (AMD EPYC, one core): per layer of 128 x
64 entries 2.5 us for index and t, 5.1 for the gather of rows, 2.1 for f and 2.9 for f' times the
cotangent, where ReLU takes 2. The gather goes entry by entry, 0.6 ns for a row of four numbers,
with a fifth of the rows too: memory does not bound it. To a step of an MLP 64-64-64-10 that takes
about 97 us with ReLU, 80 of them matrix products, the table adds 21. Index and t inside the loops
that use them took 5 us more a layer, signed indices 1.3. A gather fused with the polynomial took as
long as both. Slower than one gather of rows were four of single numbers, one flat array and complex
numbers; of no use were a barrier around the index (removed before loops are fused), uint16 and
uniform knots. Fusions with more operations than bytes are cut in two for XLA's thread pool, at 20
us each, although both cores are busy: with the stretching, the loop of index and t would be one.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError
from model_lib.models.swept import KEPT, Leaves, SweptActivation
from model_lib.search.engines import settings
from model_lib.search.engines.kinks import Grid, Kink
from model_lib.search.expression import Expression
from model_lib.search.grammar import parse
from model_lib.spec import Call

_DEFAULTS = {'per_octave': 128, 'limit': 128}
_MOST = {'per_octave': 1024, 'limit': 2**20}
_LEAST_EXPONENT = -17  # below 1e-5, the epsilon of the operators that have one
_MANTISSA = 23  # bits in float32
_SIGN = np.int32(-2**31)
_DEFAULT = 'relu(x)'


@dataclasses.dataclass(frozen=True)
class Table(SweptActivation):
  """f by interpolation between `per_octave` places in each octave up to the limit, powers of 2.

  Learnable scalars of an expression keep their first values.
  """

  per_octave: int = 128
  limit: int = 128

  @classmethod
  def from_spec(cls, call: Call) -> 'Table':
    """The engine of `table(per_octave=128, limit=128)`; UserError for impossible settings."""
    values = settings.read(call, _DEFAULTS)
    for key, value in values.items():
      if value & (value - 1) or value > _MOST[key]:
        raise UserError(f'{call}: {key} is a power of 2 up to {_MOST[key]}')
    return cls(**values)

  @property
  def name(self) -> str:
    return f'table(limit={self.limit}, per_octave={self.per_octave})'

  def default(self) -> Leaves:
    return self.encode(_DEFAULT)

  def encode(self, text: str) -> Leaves:
    return dict(_encoded(text, self.per_octave, self.limit))

  def first(self, leaves, shape) -> dict[str, jax.Array]:
    return {}

  def apply(self, leaves: Mapping[str, jax.Array], params, x: jax.Array) -> jax.Array:
    stretched = x.astype(jnp.float32) * leaves['stretch']
    return interpolate(leaves['table'], stretched, leaves['stretch'] > 0, self.per_octave
                       ).astype(x.dtype)

  def gain(self) -> float:
    return 2**0.5  # of ReLU


@functools.lru_cache(maxsize=KEPT)
def _encoded(text: str, per_octave: int, limit: int) -> tuple[tuple[str, np.ndarray], ...]:
  table, stretch = coefficients(parse(text), per_octave, limit)
  table.flags.writeable = False  # it is shared
  return ('table', table), ('stretch', stretch)


@functools.lru_cache(maxsize=4)
def _grid(per_octave: int, limit: int) -> tuple[Grid, np.ndarray]:
  """The knots on both sides of 0, and those from which t is counted: 2^-17 and on."""
  octaves = np.arange(_LEAST_EXPONENT, int(np.log2(limit)))
  starts = np.append((2.0**octaves[:, None] * (1 + np.arange(per_octave) / per_octave)).ravel(),
                     float(limit))
  sizes = np.append(0.0, starts[1:])
  return Grid(np.concatenate([-sizes[:0:-1], sizes])), starts


def coefficients(
    expression: Expression, per_octave: int, limit: int) -> tuple[np.ndarray, np.float32]:
  """The rows, and the factor by which x is stretched before.

  float32 [2 (n + 1), 4]: of n intervals and a line for x > 0, then for x < 0, away from 0. Where
  the expression is not finite at a knot, its intervals are not.
  """
  of, starts = _grid(per_octave, limit)
  sides, stretch = of.sides(expression), np.float32(1)
  if sides.kinks:
    # The one that matters most where pre-activations are comes to lie on its nearest knot.
    most = max(sides.kinks, key=_weight).place
    knot = of.knots[np.abs(of.knots - most).argmin()]
    if knot:
      stretch = np.float32(knot / most)
      sides = of.sides(expression, float(stretch))
  (left, right), (d_left, d_right) = sides.values.copy(), sides.slopes.copy()
  moved: dict[int, list] = {}
  for kink in sides.kinks:
    moved.setdefault(int(np.abs(of.knots - kink.place).argmin()), []).append(kink)
  for knot, found in moved.items():
    (f_left, slope_left), (f_right, slope_right) = found[0].left, found[-1].right
    d_left[knot], d_right[knot] = slope_left, slope_right
    if abs(f_right - f_left) > 1e-6 * (abs(f_left) + abs(f_right)) and len(found) == 1:
      at = of.knots[knot] - found[0].place
      left[knot], right[knot] = f_left + at * slope_left, f_right + at * slope_right
  zero = len(of.knots) // 2
  with np.errstate(all='ignore'):
    above = _rows(of.knots[zero:], starts, right[zero:], left[zero:], d_right[zero:], d_left[zero:])
    # f(-x), whose odd coefficients change their signs.
    below = _rows(of.knots[zero:], starts, left[zero::-1], right[zero::-1], -d_left[zero::-1],
                  -d_right[zero::-1]) * [1, -1, 1, -1]
    return np.concatenate([above, below]).astype(np.float32), stretch


def _weight(kink: Kink) -> float:
  jump = abs(kink.right[1] - kink.left[1]) + abs(kink.right[0] - kink.left[0])
  return min(jump, 1e3) * np.exp(-kink.place**2 / 2)


def _rows(knots: np.ndarray, starts: np.ndarray, near: np.ndarray, far: np.ndarray,
          d_near: np.ndarray, d_far: np.ndarray) -> np.ndarray:
  """Coefficients [n + 1, 4] in t = x - start; `near` and `far` are the sides away from and to 0."""
  h = np.diff(knots)
  f0, f1, d0, d1 = near[:-1], far[1:], d_near[:-1], d_far[1:]
  c2, c3 = (3 * (f1 - f0) / h - 2 * d0 - d1) / h, (2 * (f0 - f1) / h + d0 + d1) / h**2
  rows = np.stack([f0, d0, c2, c3], 1)
  # The first interval begins at 0 and is counted from 2^-17.
  at, (a, b, c, d) = starts[0], rows[0]
  rows[0] = a + at * (b + at * (c + at * d)), b + at * (2 * c + at * 3 * d), c + 3 * at * d, d
  return np.concatenate([rows, [[near[-1], d_near[-1], 0, 0]]])


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def interpolate(table: jax.Array, x: jax.Array, true: jax.Array, per_octave: int) -> jax.Array:
  """f(x) by the rows of `coefficients`; nan gives nan. The table has no derivative.

  `true` is a scalar that is true, but not when XLA compiles: see `_located`.
  """
  return _value(*_located(table, x, true, per_octave))


@interpolate.defjvp
def _interpolate_jvp(per_octave, primals, tangents):
  # Located once: XLA does not see that two branches are equal.
  (c0, c1, c2, c3), t = _located(*primals, per_octave)
  slope = c1 + t * (2 * c2 + 3 * t * c3)
  return _value((c0, c1, c2, c3), t), slope * tangents[1]


def _value(coefficients, t: jax.Array) -> jax.Array:
  c0, c1, c2, c3 = coefficients
  return c0 + t * (c1 + t * (c2 + t * c3))


def _located(table: jax.Array, x: jax.Array, true: jax.Array, per_octave: int):
  """The four coefficients at x, and t."""
  # In a branch of its own the index is computed in vectors. XLA would else fuse it with the loop
  # that copies rows, entry by entry, and compute t again in each loop that reads it.
  row, t = jax.lax.cond(
      true, lambda: _row(x, table.shape[0] // 2, per_octave),
      lambda: (jnp.zeros(x.shape, jnp.uint32), jnp.zeros(x.shape, jnp.float32)))
  # Unsigned indices need no look below 0, and no wrap-around as x[i] has it.
  found = jax.lax.gather(
      table, row[..., None], jax.lax.GatherDimensionNumbers(
          offset_dims=(row.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)),
      (1, 4), mode='clip')
  return [found[..., k] for k in range(4)], t


def _row(x: jax.Array, half: int, per_octave: int) -> tuple[jax.Array, jax.Array]:
  """The row of x, uint32, in a table of 2 half rows, and t."""
  dropped = _MANTISSA - int(np.log2(per_octave))
  first = int(np.float32(2.0**_LEAST_EXPONENT).view(np.int32)) >> dropped
  last = first + half - 1
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  start = jnp.clip(bits & np.int32(0x7fffffff >> dropped << dropped), first << dropped,
                   last << dropped)
  row = (start >> dropped) + jnp.where(bits < 0, half - first, -first)
  t = x - jax.lax.bitcast_convert_type(start | (bits & _SIGN), jnp.float32)
  return row.astype(jnp.uint32), t
