"""Expressions: immutable trees of operators over the input x.

  f = parse('mul(x, sigmoid(scale(x)))')
  f.parameters()                         # (Parameter('beta_0', 1.0, 'layer'),)
  y = f(x, beta_0=1.5)                   # x sigmoid(1.5 x), in float32

A leaf is x or a number. The learnable scalars are counted in the order of the text from left to
right: beta_0, beta_1, ...

The parameters of PANGAEA stand on edges: an edge carries a value out of x or out of an operator,
and a parameter on it multiplies that value. Such a parameter is the operator `scale`, of which
an edge holds at most one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from model_lib.activations import Parameter
from model_lib.errors import UserError
from model_lib.search.operators import get_operator

INPUT, NUMBER, EDGE = 'x', 'number', 'scale'
Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Expression:
  """A node: an operator's name and its arguments; 'x', or 'number' with its value, for a leaf.

  `n_parameters` is the number of learnable scalars in it.

  Raises:
    UserError: no such operator, a wrong number of arguments, or a number that is not finite.
  """

  operator: str
  args: tuple['Expression', ...] = ()
  value: float | None = None

  def __post_init__(self):
    if self.operator == NUMBER:
      if self.args or self.value is None or not math.isfinite(self.value):
        raise UserError(f'a number in an expression is finite and has no arguments, '
                        f'not {self.value!r}')
      # -0.0 equals 0.0, and an integer its float: one text for both.
      object.__setattr__(self, 'value', float(self.value) + 0.0)
    elif self.value is not None:
      raise UserError(f'operator {self.operator!r} has no value of its own')
    elif self.operator == INPUT:
      if self.args:
        raise UserError(f'{INPUT!r} is the input and takes no arguments')
    else:
      problem = wrong_arity(self.operator, len(self.args))
      if problem:
        raise UserError(problem)
    # Trees are keys of caches: without this, each look-up would walk the whole tree.
    object.__setattr__(self, '_hash', hash((self.operator, self.args, self.value)))
    object.__setattr__(self, 'n_parameters', len(self.inits) + sum(
        argument.n_parameters for argument in self.args))

  def __hash__(self) -> int:
    return self._hash

  def __str__(self) -> str:
    """The text that `parse` reads back as an equal expression."""
    if self.operator == NUMBER:
      return repr(int(self.value)) if self.value.is_integer() and abs(
          self.value) < 2**53 else repr(self.value)
    return f'{self.operator}({", ".join(map(str, self.args))})' if self.args else self.operator

  def __call__(self, x: jax.Array, **params: jax.Array | float) -> jax.Array:
    """Applies the function; computes in at least float32 and returns x's dtype.

    Args:
      x: any shape.
      **params: learnable scalars by name, each of a shape that broadcasts against x with the same
        number of axes, or (); a missing one has its first value.

    Raises:
      TypeError: a parameter that does not exist.
    """
    values = {parameter.name: parameter.init for parameter in self.parameters()}
    unknown = sorted(set(params) - set(values))
    if unknown:
      raise TypeError(f'{self} has no parameter {unknown[0]!r}; it has: {sorted(values)}')
    values.update(params)
    x = jnp.asarray(x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    wide = jnp.promote_types(dtype, jnp.float32)
    scalars = iter([jnp.asarray(value, wide) for value in values.values()])
    return self._apply(x.astype(wide), scalars).astype(dtype)

  def parameters(
      self, per: Literal['layer', 'channel', 'unit'] = 'layer',
  ) -> tuple[Parameter, ...]:
    """The learnable scalars in the order of the text, each once per `per`."""
    inits = [init for _, node in self.walk() for init in node.inits]
    return tuple(Parameter(f'beta_{i}', init, per) for i, init in enumerate(inits))

  @property
  def inits(self) -> tuple[float, ...]:
    """First values of this node's own learnable scalars."""
    return get_operator(self.operator).inits if self.args else ()

  @property
  def size(self) -> int:
    """Number of operators: leaves, and the parameters on edges, are not counted."""
    return sum(bool(node.args) and node.operator != EDGE for _, node in self.walk())

  def walk(self, path: Path = ()) -> Iterator[tuple[Path, 'Expression']]:
    """Every node with the argument positions that lead to it, in the order of the text."""
    yield path, self
    for i, argument in enumerate(self.args):
      yield from argument.walk((*path, i))

  def at(self, path: Path) -> 'Expression':
    """The node to which the argument positions lead."""
    return self.args[path[0]].at(path[1:]) if path else self

  def replaced(self, path: Path, node: 'Expression') -> 'Expression':
    """The expression with the node at `path` replaced."""
    if not path:
      return node
    args = list(self.args)
    args[path[0]] = args[path[0]].replaced(path[1:], node)
    return dataclasses.replace(self, args=tuple(args))

  def edges(self) -> tuple[Path, ...]:
    """Paths of the nodes whose outgoing edges can hold a parameter: x and the operators.

    A unary operator on x has two edges, an inner operator one.
    """
    return tuple(path for path, node in self.walk() if node.operator not in (EDGE, NUMBER))

  def edges_with_parameter(self) -> tuple[Path, ...]:
    """Those of `edges` that hold a parameter."""
    return tuple(path for path in self.edges() if path and self.at(path[:-1]).operator == EDGE)

  def with_parameter(self, path: Path) -> 'Expression':
    """The expression with a parameter on one of `edges` that holds none.

    Raises:
      UserError: there is no such edge, or it holds one.
    """
    if path not in self.edges():
      raise UserError(f'expression {str(self)!r} has no edge {path}; its edges: {self.edges()}')
    if path in self.edges_with_parameter():
      raise UserError(f'the edge {path} of expression {str(self)!r} holds a parameter already')
    return self.replaced(path, Expression(EDGE, (self.at(path),)))

  def without_parameter(self, path: Path) -> 'Expression':
    """The expression without the parameter on one of `edges_with_parameter`.

    Raises:
      UserError: the edge holds none.
    """
    if path not in self.edges_with_parameter():
      raise UserError(f'the edge {path} of expression {str(self)!r} holds no parameter; '
                      f'those that do: {self.edges_with_parameter()}')
    return self.replaced(path[:-1], self.at(path))

  def _apply(self, x: jax.Array, scalars: Iterator[jax.Array]) -> jax.Array:
    if self.operator == INPUT:
      return x
    if self.operator == NUMBER:
      return jnp.full_like(x, self.value)
    operator = get_operator(self.operator)
    # This node's scalars come before those of its arguments, as in the text.
    own = [next(scalars) for _ in operator.inits]
    return operator.function(*(argument._apply(x, scalars) for argument in self.args), *own)


X = Expression(INPUT)


def number(value: float) -> Expression:
  """A constant.

  Raises:
    UserError: it is not finite.
  """
  return Expression(NUMBER, value=value)


def wrong_arity(operator: str, given: int) -> str:
  """What is wrong with that many arguments, or '' where nothing is.

  Raises:
    UserError: no such operator.
  """
  arity = get_operator(operator).arity
  if given == arity or (arity is None and given >= 2):
    return ''
  wanted = 'at least 2 arguments' if arity is None else (
      f'{arity} argument{"s" * (arity > 1)}')
  return f'operator {operator!r} takes {wanted}, not {given}'
