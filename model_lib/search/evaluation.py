"""Values and slopes of many expressions on one grid, in NumPy, each subexpression once.

Every operator is traced once, at a scalar, and carried out in NumPy on arrays of any shape, as
operators are pointwise: thousands of expressions are evaluated without a compiler. Slopes are by the chain rule, with the operators' partial derivatives
from JAX's own rules. What does not depend on x has no slope, as in JAX: (-2)^1 is differentiable
although the derivative of a^b with respect to b is not a number there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations.host import trace
from model_lib.search.expression import INPUT, NUMBER, Expression
from model_lib.search.operators import get_operator

_CACHED = 4096  # subexpressions; of 1,601 points in float64, 50 MiB


class Evaluator:
  """Evaluates expressions at fixed points, with the subexpressions cached."""

  def __init__(self, points: np.ndarray):
    """Args:
      points: [n], float64 or float32; the arithmetic is in that type.
    """
    self._points = np.array(points)
    self._points.flags.writeable = False
    self._values: dict[tuple, np.ndarray] = {}
    self._slopes: dict[tuple, np.ndarray | None] = {}

  def value(
      self, expression: Expression, parameters: Sequence[float] | None = None,
  ) -> np.ndarray:
    """f(points) [n], with the learnable scalars at these values, or at their first ones."""
    return self._value(expression, _scalars(expression, parameters))

  def slope(
      self, expression: Expression, parameters: Sequence[float] | None = None,
  ) -> np.ndarray:
    """f'(points) [n]."""
    slope = self._slope(expression, _scalars(expression, parameters))
    return np.zeros_like(self._points) if slope is None else slope

  def _value(self, node: Expression, scalars: tuple[float, ...]) -> np.ndarray:
    if node.operator == INPUT:
      return self._points
    if node.operator == NUMBER:
      return np.full_like(self._points, node.value)
    key = (node, scalars)
    if key not in self._values:
      own, inner = _split(node, scalars)
      inputs = [self._value(argument, part)
                for argument, part in zip(node.args, inner, strict=True)]
      if len(self._values) >= _CACHED:
        self._values.clear()
      self._values[key] = self._run(node, None, inputs, own)
    return self._values[key]

  def _slope(self, node: Expression, scalars: tuple[float, ...]) -> np.ndarray | None:
    """The derivative, or None where the node does not depend on x."""
    if node.operator == INPUT:
      return np.ones_like(self._points)
    if node.operator == NUMBER or get_operator(node.operator).constant:
      return None
    key = (node, scalars)
    if key not in self._slopes:
      own, inner = _split(node, scalars)
      total = None
      for i, (argument, part) in enumerate(zip(node.args, inner, strict=True)):
        slope = self._slope(argument, part)
        if slope is not None:
          inputs = [self._value(*pair) for pair in zip(node.args, inner, strict=True)]
          with np.errstate(all='ignore'):  # infinite times 0
            term = self._run(node, i, inputs, own) * slope
            total = term if total is None else total + term
      if len(self._slopes) >= _CACHED:
        self._slopes.clear()
      self._slopes[key] = total
    return self._slopes[key]

  def _run(
      self, node: Expression, partial: int | None, inputs: list[np.ndarray],
      own: tuple[float, ...],
  ) -> np.ndarray:
    dtype = self._points.dtype
    run = _in_numpy(node.operator, len(inputs), partial, dtype)
    value = run(*inputs, *(np.asarray(scalar, dtype) for scalar in own))
    # What does not depend on the inputs comes as a scalar.
    return value if value.shape else np.full_like(self._points, value)


@functools.lru_cache(maxsize=None)
def _in_numpy(
    name: str, n_inputs: int, partial: int | None, dtype: np.dtype,
) -> Callable[..., np.ndarray]:
  """The operator, or its derivative with respect to one input, in NumPy."""
  operator = get_operator(name)
  function = operator.function
  if partial is not None:
    def function(*inputs):  # noqa: F811
      def of_one(a):
        return operator.function(*inputs[:partial], a, *inputs[partial + 1:])
      return jax.jvp(of_one, (inputs[partial],), (jnp.ones_like(inputs[partial]),))[1]
  scalar = np.empty((), dtype)
  return trace(function, *[scalar] * (n_inputs + len(operator.inits)), x64=dtype == np.float64)


def _scalars(expression: Expression, parameters: Sequence[float] | None) -> tuple[float, ...]:
  if parameters is None:
    return tuple(parameter.init for parameter in expression.parameters()) if (
        expression.n_parameters) else ()
  if len(parameters) != expression.n_parameters:
    raise ValueError(f'{expression} has {expression.n_parameters} parameters, '
                     f'not {len(parameters)}')
  return tuple(map(float, parameters))


def _split(
    node: Expression, scalars: tuple[float, ...],
) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
  """A node's own scalars, and those of each argument."""
  at = len(node.inits)
  own, inner = scalars[:at], []
  for argument in node.args:
    inner.append(scalars[at:at + argument.n_parameters])
    at += argument.n_parameters
  return own, inner
