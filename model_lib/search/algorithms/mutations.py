"""Mutations of expressions: those of PANGAEA, and the change of one operator alone.

  mutate = Mutations(get_space('pangaea'))
  child = mutate(parse('add(tanh(x), scale(x))'), np.random.default_rng(0))

  change      one operator becomes another of its kind
  regenerate  every operator is drawn anew; the tree and its parameters stay
  insert      an operator on an edge: unary and binary ones all equally likely; a binary one
              also gets a random unary operator of x, on a random side
  remove      an operator gives way to its argument, one of several at random
  parameter   a learnable factor is added to an edge, removed from one, or moved to another

Source: Bingham & Miikkulainen 2022, arXiv 2006.03179; the list is that of a public port. The
bounds are this project's choice.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import types
from typing import TypeVar

import numpy as np

from model_lib.errors import UserError
from model_lib.search.expression import EDGE, Expression, X
from model_lib.search.operators import OPERATORS
from model_lib.search.spaces import Space
from model_lib.spec import nearest

_Item = TypeVar('_Item')


@dataclasses.dataclass(frozen=True)
class Mutations:
  """Makes a random neighbour of an expression.

  Attributes:
    space: the operators. Those of an expression that are not among them, such as the factors on
      the edges of PANGAEA's trees, are not changed or removed as operators.
    kinds: names of the mutations, each equally likely where it can be done. ('change',) stays
      inside a schema.
    max_operators: no mutation makes a larger expression, as counted by `Expression.size`; none
      makes one without an operator, or with two factors on one edge.
    max_parameters: no mutation makes more learnable scalars.

  Raises:
    UserError: there is no mutation of that name, or none is given.
  """

  space: Space
  kinds: tuple[str, ...] = ('change', 'regenerate', 'insert', 'remove', 'parameter')
  max_operators: int = 7
  max_parameters: int = 3

  def __post_init__(self):
    for kind in self.kinds:
      if kind not in MUTATIONS:
        raise UserError(f'no mutation is called {kind!r}{nearest(kind, MUTATIONS)}; '
                        f'there are: {", ".join(MUTATIONS)}')
    if not self.kinds:
      raise UserError(f'a search needs at least one mutation of: {", ".join(MUTATIONS)}')

  def __call__(self, expression: Expression, rng: np.random.Generator) -> Expression:
    """A neighbour; the expression itself where no mutation can be done."""
    for i in rng.permutation(len(self.kinds)):
      mutant = MUTATIONS[self.kinds[i]](self, expression, rng)
      if mutant is not None and self._within_bounds(mutant):
        return mutant
    return expression

  def _within_bounds(self, mutant: Expression) -> bool:
    twice = any(node.operator == EDGE == node.args[0].operator for _, node in mutant.walk())
    return not twice and 1 <= mutant.size <= self.max_operators and (
        mutant.n_parameters <= self.max_parameters)

  def _change(self, expression: Expression, rng: np.random.Generator) -> Expression | None:
    room = self.max_parameters - expression.n_parameters
    changes = []
    for path, node in expression.walk():
      if node.args and node.operator in self.space.operators:
        names = [name for name in self.space.of_kind(OPERATORS[node.operator].kind)
                 if name != node.operator
                 and len(OPERATORS[name].inits) - len(node.inits) <= room]
        if names:
          changes.append((path, node, names))
    if not changes:
      return None
    path, node, names = _one(changes, rng)
    return expression.replaced(path, Expression(_one(names, rng), node.args))

  def _regenerate(self, expression: Expression, rng: np.random.Generator) -> Expression:
    def name(node: Expression) -> str:
      if node.operator not in self.space.operators:
        return node.operator
      return _one(self.space.of_kind(OPERATORS[node.operator].kind), rng)
    return with_operators(expression, name)

  def _insert(self, expression: Expression, rng: np.random.Generator) -> Expression | None:
    unary, room = self.space.of_kind('unary'), self.max_operators - expression.size
    names = unary * (room >= 1) + self.space.of_kind('binary') * (room >= 2 and bool(unary))
    if not names:
      return None
    path, name = _one(expression.edges(), rng), _one(names, rng)
    args = [expression.at(path)]
    if OPERATORS[name].kind == 'binary':
      args.insert(rng.integers(2), Expression(_one(unary, rng), (X,)))
    return expression.replaced(path, Expression(name, tuple(args)))

  def _remove(self, expression: Expression, rng: np.random.Generator) -> Expression | None:
    paths = [path for path, node in expression.walk()
             if node.args and node.operator in self.space.operators]
    if expression.size < 2 or not paths:
      return None
    path = _one(paths, rng)
    argument = _one(expression.at(path).args, rng)
    if path and argument.operator == expression.at(path[:-1]).operator == EDGE:
      argument = argument.args[0]  # an edge holds one factor
    return expression.replaced(path, argument)

  def _parameter(self, expression: Expression, rng: np.random.Generator) -> Expression | None:
    held = expression.edges_with_parameter()
    free = [path for path in expression.edges() if path not in held]
    ways = ['add'] * bool(free and expression.n_parameters < self.max_parameters)
    ways += ['remove'] * bool(held) + ['move'] * bool(free and held)
    if not ways:
      return None
    way = _one(ways, rng)
    if way == 'add':
      return expression.with_parameter(_one(free, rng))
    if way == 'remove':
      return expression.without_parameter(_one(held, rng))
    # The paths change when a factor goes, but the order of the edges stays.
    to = expression.edges().index(_one(free, rng))
    bare = expression.without_parameter(_one(held, rng))
    return bare.with_parameter(bare.edges()[to])


MUTATIONS = types.MappingProxyType({
    'change': Mutations._change, 'regenerate': Mutations._regenerate,
    'insert': Mutations._insert, 'remove': Mutations._remove,
    'parameter': Mutations._parameter})


def with_operators(expression: Expression, name: Callable[[Expression], str]) -> Expression:
  """The expression with the operator of every node named anew, in the order of the text."""
  if not expression.args:
    return expression
  own = name(expression)
  return Expression(own, tuple(with_operators(argument, name) for argument in expression.args))


def _one(items: 'tuple[_Item, ...] | list[_Item]', rng: np.random.Generator) -> _Item:
  return items[rng.integers(len(items))]
