"""Which expressions are the same function: by their values, and up to affine maps.

Fingerprints are keys: thousands of expressions are told apart without comparing pairs. (For the
activations of the registry, of which there are few, `activations.fingerprint` compares pairs, with
a shift and a stretch of the input too.)
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import hashlib

import numpy as np
from scipy import special

from model_lib.search.canonical import canonical
from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression

# Quantiles of N(0, 1) at the middles of 1,000 equal shares: within +-3.3, symmetric, not 0.
GRID = special.ndtri((np.arange(1000) + 0.5) / 1000)
_TINY = 1e-300  # what is smaller counts as 0
_PROBES = 2  # settings of the learnable scalars


class Fingerprints:
  """Makes fingerprints, with the values of subexpressions cached between calls."""

  def __init__(self):
    self._evaluator = Evaluator(GRID)

  def functional(self, expression: Expression, digits: int = 6) -> bytes:
    """A key that is the same for the same function.

    It is made of f on 1,000 quantiles of N(0, 1), in float64, rounded to `digits` significant
    digits; nan and the infinities are values like others. Learnable scalars are set to two lists
    of fixed numbers between 0.6 and 1.4, in the order of the canonical form: the key is that of
    the family of functions, and two families that are one after a change of parameters, like
    beta x and (beta - 1) x + x, have two keys.
    """
    return _key(*(part for row in self._rows(expression) for part in _rounded(row, digits)))

  def affine(self, expression: Expression, digits: int = 6) -> bytes:
    """A key that is also the same for a f(x) + b and a f(-x) + b, for all b and a other than 0.

    The linear layers around an activation absorb these maps. It is made of (f - mean) / sd under
    N(0, 1), rounded to `digits` decimals, in that of its four signs and flips that is first in
    order. Where f is constant or not finite on the grid, it is the functional key. What is below
    10^-digits of the largest value is not seen.
    """
    rows = self._rows(expression)
    with np.errstate(all='ignore'):
      profiles = np.array([(row - row.mean()) / row.std() for row in rows])
      constant = any(row.std() <= 1e-12 * np.abs(row).max() for row in rows)
    if constant or not np.isfinite(profiles).all():
      return self.functional(expression, digits)
    profiles = np.round(profiles, digits)
    # + 0.0 makes 0.0 of -0.0.
    return _key(min((sign * profiles[:, ::flip] + 0.0).tobytes()
                    for sign in (1, -1) for flip in (1, -1)))

  def _rows(self, expression: Expression) -> list[np.ndarray]:
    if not expression.n_parameters:
      return [self._evaluator.value(expression)]
    expression = canonical(expression)
    rows = [self._evaluator.value(expression, _probe(i, expression.n_parameters))
            for i in range(_PROBES)]
    # A scalar without effect, as in zero(scale(x)), does not make another function.
    same = all(np.array_equal(row, rows[0], equal_nan=True) for row in rows)
    return rows[:1] if same else rows


def distinct(
    expressions: Iterable[Expression], *, affine: bool = False, digits: int = 6,
) -> tuple[tuple[Expression, ...], ...]:
  """The expressions in groups of one function, groups and members in the order given.

  Args:
    expressions: any number.
    affine: whether a f(+-x) + b counts as f.
    digits: see `Fingerprints`.
  """
  prints = Fingerprints()
  key = prints.affine if affine else prints.functional
  groups: dict[bytes, list[Expression]] = {}
  for expression in expressions:
    groups.setdefault(key(expression, digits), []).append(expression)
  return tuple(map(tuple, groups.values()))


@dataclasses.dataclass(frozen=True)
class Counts:
  """How many functions some expressions are, by two rules; see `count_functions`."""

  raw: int
  functions: int
  byte_strings: int

  def __str__(self) -> str:
    return (f'{self.raw} expressions: {self.functions} functions (float64, rounded), '
            f'{self.byte_strings} float32 byte strings (equal functions that rounding splits '
            'count apart)')


def count_functions(expressions: Iterable[Expression], digits: int = 6) -> Counts:
  """Counts functions by the functional fingerprint and by AQuaSurF's rule.

  AQuaSurF (arXiv 2301.05785) takes two expressions for one function where their float32 outputs on
  1,000 samples of N(0, 1), seed 0, clipped to +-5, are the same bytes. Of the 5,103 expressions
  of its benchmark the paper counts 2,913 functions; here and on other platforms it is 2,895 to
  2,915, and rounding decides: expm1(x) + 1 and e^x differ in last bits, and are counted twice.
  In float64, rounded to 4 to 7 digits, such pairs are one: 2,791 functions.

  Args:
    expressions: without learnable scalars, or these have their first values in the byte strings.
    digits: of the functional fingerprint.
  """
  expressions = tuple(expressions)
  samples = np.random.RandomState(0).standard_normal(1000).clip(-5, 5).astype(np.float32)
  narrow = Evaluator(samples)
  return Counts(
      raw=len(expressions), functions=len(distinct(expressions, digits=digits)),
      byte_strings=len({narrow.value(expression).tobytes() for expression in expressions}))


def _rounded(values: np.ndarray, digits: int) -> tuple[np.ndarray, np.ndarray]:
  """Mantissas (whole numbers of that many digits, or 0, nan, inf) and decimal exponents."""
  size = np.abs(values)
  ordinary = np.isfinite(values) & (size > _TINY)
  exponents = np.floor(np.log10(np.where(ordinary, size, 1.0)))
  scaled = np.rint(np.where(ordinary, values, 0.0) * 10.0**(digits - 1 - exponents))
  carried = np.abs(scaled) == 10.0**digits  # 9.9999996 is 10.0
  mantissas = np.where(carried, scaled / 10, scaled)
  special_values = np.where(np.isnan(values), np.nan, np.where(np.isinf(values), values, 0.0))
  return np.where(ordinary, mantissas, special_values) + 0.0, exponents + carried


def _probe(index: int, count: int) -> list[float]:
  """Numbers from 0.6 to 1.4 without a pattern: multiples of the golden section, and of 2^(1/2)."""
  return [0.6 + 0.8 * ((0.6180339887 * (i + 1) + 0.4142135624 * index) % 1) for i in range(count)]


def _key(*parts: np.ndarray | bytes) -> bytes:
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    digest.update(part if isinstance(part, bytes) else part.tobytes())
  return digest.digest()
