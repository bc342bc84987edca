"""How far two functions are apart: the same inputs, in float32 and in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

# Relative to the largest output: rounding of a few layers in each precision.
TOLERANCES = {'float32': 1e-4, 'float64': 1e-11}


@dataclasses.dataclass(frozen=True)
class Precision:
  """The difference of two outputs in one precision.

  Attributes:
    dtype: of variables, inputs and arithmetic.
    max_difference: max |after - before|.
    where: the index of it in the output.
    rms_difference: root mean square of after - before.
    largest: max |before|.
    tolerance: allowed max_difference, as a part of `largest`.
  """

  dtype: str
  max_difference: float
  where: tuple[int, ...]
  rms_difference: float
  largest: float
  tolerance: float

  @property
  def equal(self) -> bool:
    """Whether the difference is finite and within the tolerance."""
    return math.isfinite(self.largest) and self.max_difference <= self.tolerance * self.largest

  def __str__(self) -> str:
    verdict = 'equal' if self.equal else 'NOT equal'
    return (f'{self.dtype}: {verdict}, max |difference| {self.max_difference:.2e} at '
            f'{list(self.where)}, largest output {self.largest:.3g}, '
            f'tolerance {self.tolerance:.0e} of it')


@dataclasses.dataclass(frozen=True)
class Report:
  """The differences by precision."""

  precisions: tuple[Precision, ...]

  @property
  def equal(self) -> bool:
    """Whether the outputs agree in every precision."""
    return all(precision.equal for precision in self.precisions)

  def __getitem__(self, dtype: str) -> Precision:
    return {precision.dtype: precision for precision in self.precisions}[dtype]

  def __str__(self) -> str:
    return '\n'.join(map(str, self.precisions))


def compare(before: Callable, after: Callable, variables: Any, surgery: Callable[[Any], Any],
            inputs: Any, tolerances: Mapping[str, float] = TOLERANCES) -> Report:
  """Compares before(variables, inputs) with after(surgery(variables), inputs).

  The surgery is done anew in each precision: in float64 on variables cast to it, so that the
  comparison there shows the mathematics and not the rounding of folded float32 numbers.

  Args:
    before: pure function of (variables, inputs), any shape of output.
    after: the same for the new variables; output of the same shape.
    variables: tree of arrays; the floating ones are cast.
    surgery: pure function from variables to new variables, on the host.
    inputs: tree of arrays; the floating ones are cast.
    tolerances: by dtype, 'float32' or 'float64': the largest difference as a part of the largest
      |output|.
  """
  return Report(tuple(_compare(before, after, variables, surgery, inputs, dtype, tolerance)
                      for dtype, tolerance in tolerances.items()))


@functools.lru_cache(maxsize=4)
def _both(before: Callable, after: Callable) -> Callable:
  """(variables, new variables, inputs) -> both outputs, compiled once for a pair of functions."""
  return jax.jit(lambda old, new, x: (before(old, x), after(new, x)))


def _compare(before, after, variables, surgery, inputs, dtype, tolerance) -> Precision:
  def cast(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(dtype) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) else leaf

  with jax.enable_x64(dtype == 'float64'):
    old, x = jax.tree.map(cast, variables), jax.tree.map(cast, inputs)
    a, b = (np.asarray(y) for y in _both(before, after)(old, surgery(old), x))
  if a.dtype != dtype or b.dtype != dtype or a.shape != b.shape:
    raise AssertionError(f'outputs are {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}, '
                         f'not {dtype} of one shape')
  difference = np.abs(b.astype(np.float64) - a)
  # A difference that is no number counts as the largest.
  worst = np.where(np.isnan(difference), np.inf, difference)
  where = np.unravel_index(int(worst.argmax()), worst.shape)
  return Precision(dtype, float(worst[where]), tuple(map(int, where)),
                   float(np.sqrt(np.mean(np.square(difference)))), float(np.abs(a).max()),
                   tolerance)
