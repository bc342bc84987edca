"""Operators in a standard form, in which none decides a mixture by its size alone.

The form is this project's choice:

  unary   u(x) / rms u, the rms under N(0, 1). Beyond +-3, where 0.3 % of N(0, 1) lie, u goes on as
          its tangent there, on a side where at +-20 it is more than twice the tangent in size (x^2,
          e^x, ...). The others (relu, sin, ...) are themselves everywhere.
  binary  b(a, b) / rms b, the rms under two independent N(0, 1) (to 0.1 % by our quadrature).

The mean stays, or all constants were 0; an rms of 0 counts as 1. Learnable scalars of operators
keep their first values.

An operator has no standard form, by a rule in float32, if its value or slope, over the rms, is not
finite or beyond +-1000, at 0 or between 1e-6 and 20 on either side (binary: 10, which no unary
operator exceeds for |x| <= 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations.host import evaluate
from model_lib.search.operators import Operator, get_operator

RANGE = 3.0  # of x in which every unary operator is itself
_FAR = 20.0
_RANGES = {'unary': _FAR, 'binary': 10.0}
_LARGEST = 1e3  # value or slope of a standard form in its range
_SAME = 1e-6  # difference of two standard forms, relative to their size, up to which they are one

_PANELS = np.linspace(-9, 9, 37)  # kinks of the operators, and +-RANGE, are ends of panels
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


@dataclasses.dataclass(frozen=True)
class Term:
  """An operator in standard form, of one or two arrays.

  Attributes:
    operator: itself.
    left, right: slope of a unary one's tangent beyond -RANGE and RANGE; None where it is itself.
    rms: what all is divided by.
  """

  operator: Operator
  left: float | None = None
  right: float | None = None
  rms: float = 1.0

  def __call__(self, *inputs: jax.Array) -> jax.Array:
    if self.operator.kind == 'binary':
      return _plain(self.operator)(*inputs) / self.rms
    x, = inputs
    y = _plain(self.operator)(jnp.clip(x, None if self.left is None else -RANGE,
                                       None if self.right is None else RANGE))
    if self.left is not None:
      y += self.left * jnp.minimum(x + RANGE, 0)
    if self.right is not None:
      y += self.right * jnp.maximum(x - RANGE, 0)
    return y / self.rms


@functools.lru_cache(maxsize=None)
def standard(name: str) -> tuple[Term, np.ndarray | None]:
  """An operator's standard form and its values at the nodes; None where it has none."""
  operator = get_operator(name)
  nodes, weights = quadrature()
  if operator.kind == 'binary':
    term, inputs = Term(operator), np.meshgrid(nodes, nodes, indexing='ij')
    weights = np.outer(weights, weights)
  else:
    term, inputs = Term(operator, *_tangents(operator)), [nodes]
  side = np.geomspace(1e-6, _RANGES[operator.kind], 65)
  line = np.concatenate([-side[::-1], [0.0], side]).astype(np.float32)
  points = np.meshgrid(*[line] * operator.arity, indexing='ij')
  with np.errstate(all='ignore'):
    values = evaluate(term, *inputs)
    rms = math.sqrt(np.sum(np.square(values) * weights)) or 1.0
    reached = [evaluate(term, *points, x64=False), *_partials(term, points)]
    # What is not a number fails the comparison too.
    if not all(np.all(np.abs(part) <= _LARGEST * rms) for part in reached):
      return term, None
  return dataclasses.replace(term, rms=rms), values / rms


def _tangents(operator: Operator) -> Iterator[float | None]:
  """Slopes of a unary operator at -RANGE and RANGE; None on a side where it stays itself."""
  ends = np.array([-RANGE, RANGE])
  slopes, = _partials(_plain(operator), [ends])
  at, far = (evaluate(_plain(operator), places) for places in (ends, ends * (_FAR / RANGE)))
  tangents = at + slopes * ends * (_FAR / RANGE - 1)
  for slope, tangent, value in zip(slopes, tangents, far, strict=True):
    yield float(slope) if abs(value) > 2 * abs(tangent) else None


def _partials(
    function: Callable[..., jax.Array], inputs: list[np.ndarray]) -> Iterator[np.ndarray]:
  """The derivative with respect to each input, at the inputs and in their precision."""
  for i in range(len(inputs)):
    def partial(*arrays, i=i):
      tangents = tuple(jnp.full_like(array, k == i) for k, array in enumerate(arrays))
      return jax.jvp(function, arrays, tangents)[1]
    yield evaluate(partial, *inputs, x64=inputs[0].dtype == np.float64)


def _plain(operator: Operator) -> Callable[..., jax.Array]:
  """The operator with its learnable scalars at their first values."""
  return lambda *arrays: operator.function(*arrays, *operator.inits)


def same(one: np.ndarray, other: np.ndarray) -> bool:
  """Whether two profiles are one up to rounding."""
  return bool(np.all(np.abs(one - other) <= _SAME * (np.abs(one) + np.abs(other) + _SAME)))


def quadrature() -> tuple[np.ndarray, np.ndarray]:
  """Gauss-Legendre nodes in all panels, and their weights with the density of N(0, 1)."""
  half = np.diff(_PANELS)[:, None] / 2
  nodes = ((_PANELS[:-1] + _PANELS[1:])[:, None] / 2 + half * _NODES).ravel()
  return nodes, (half * _WEIGHTS).ravel() * np.exp(-nodes**2 / 2) / np.sqrt(2 * np.pi)
