"""The search spaces of the literature, by name.

  space = get_space('act_bench')
  space.size()                                       # 5103
  list(space.expressions())                          # all, in a fixed order
  space.sample(np.random.default_rng(0))             # one

A schema says how operators are put together: 'binary(unary(x), unary(x))' is any binary operator
over two unary ones. The raw expressions are all ways to fill it; many are the same function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
import dataclasses
import itertools
import math
import types

import numpy as np

from model_lib.errors import UserError
from model_lib.search.expression import Expression, X, number
from model_lib.search.grammar import read
from model_lib.search.operators import OPERATORS, get_operator
from model_lib.spec import nearest

_KINDS = ('unary', 'binary', 'n-ary')
ONE_CORE_UNIT = 'binary(unary(x), unary(x))'


@dataclasses.dataclass(frozen=True)
class Space:
  """Operators and the schemas that put them together.

  Attributes:
    name: of the space.
    operators: names of the table; their order is that of the enumeration.
    schemas: the first is the default of `expressions` and `size`.
    source: who defined it, and where the operators were found.
    unconfirmed: those of the operators that are from memory.

  Raises:
    UserError: no such operator, one given twice, or a schema that cannot be filled.
  """

  name: str
  operators: tuple[str, ...]
  schemas: tuple[str, ...]
  source: str
  unconfirmed: tuple[str, ...] = ()

  def __post_init__(self):
    for name in self.operators:
      get_operator(name)
      if self.operators.count(name) > 1:
        raise UserError(f'space {self.name!r}: operator {name!r} is given twice')
    for schema in self.schemas:
      self._choices(_holes(_schema(schema)))

  def of_kind(self, kind: str) -> tuple[str, ...]:
    """The operators of a kind, in the space's order."""
    return tuple(name for name in self.operators if OPERATORS[name].kind == kind)

  def restricted(self, operators: Collection[str]) -> 'Space':
    """The space with these operators alone, in the space's order, and the schemas it can fill.

    Raises:
      UserError: an operator is unknown or not of this space, or no schema can be filled.
    """
    for name in operators:
      if name not in self.operators:
        get_operator(name)
        raise UserError(f'operator {name!r} is not in the space {self.name!r}'
                        f'{nearest(name, self.operators)}')
    kept = tuple(name for name in self.operators if name in operators)
    kinds = {OPERATORS[name].kind for name in kept}
    schemas = tuple(schema for schema in self.schemas if set(_holes(_schema(schema))) <= kinds)
    if not schemas:
      raise UserError(
          f'the operators {list(kept)} leave no candidate in the space {self.name!r}: its schemas '
          f'are {", ".join(map(repr, self.schemas))}, and {sorted(set(_KINDS) - kinds)} are empty')
    return dataclasses.replace(
        self, operators=kept, schemas=schemas,
        unconfirmed=tuple(name for name in self.unconfirmed if name in kept))

  def size(self, schema: str | None = None) -> int:
    """Number of raw expressions of a schema."""
    return math.prod(map(len, self._choices(_holes(_schema(schema or self.schemas[0])))))

  def expressions(self, schema: str | None = None) -> Iterator[Expression]:
    """All raw expressions of a schema; the last operator of the text changes fastest."""
    tree = _schema(schema or self.schemas[0])
    return (_filled(tree, iter(names))
            for names in itertools.product(*self._choices(_holes(tree))))

  def sample(
      self, rng: np.random.Generator, schema: str | None = None, parameters: int = 0,
  ) -> Expression:
    """One raw expression: the schema, then each operator, all equally likely.

    Args:
      rng: its state alone decides.
      schema: None for a random one of the space's.
      parameters: how many edges, equally likely ones, get a learnable factor.

    Raises:
      UserError: more parameters than edges.
    """
    schema = schema or self.schemas[rng.integers(len(self.schemas))]
    tree = _schema(schema)
    names = [kind[rng.integers(len(kind))] for kind in self._choices(_holes(tree))]
    expression = _filled(tree, iter(names))
    free = [path for path in expression.edges() if path not in expression.edges_with_parameter()]
    if not 0 <= parameters <= len(free):
      raise UserError(f'expression {str(expression)!r} has {len(free)} edges without a parameter: '
                      f'parameters={parameters} is not from 0 to {len(free)}')
    chosen = [free[i] for i in rng.choice(len(free), parameters, replace=False)]
    # The longest paths first: a parameter moves what is below it one step down.
    for path in sorted(chosen, key=len, reverse=True):
      expression = expression.with_parameter(path)
    return expression

  def _choices(self, holes: Sequence[str]) -> list[tuple[str, ...]]:
    choices = [self.of_kind(kind) for kind in holes]
    for kind, names in zip(holes, choices, strict=True):
      if not names:
        raise UserError(f'space {self.name!r} has no {kind} operator, which its schemas use')
    return choices


@dataclasses.dataclass(frozen=True)
class _Hole:
  """A node of a schema."""

  kind: str
  args: tuple['_Hole | Expression', ...]


def _schema(text: str) -> _Hole | Expression:
  def build(name: str, args: tuple) -> _Hole | str:
    if name not in _KINDS:
      return f'a schema is made of {", ".join(map(repr, _KINDS))} and x, not {name!r}'
    wanted = _KINDS.index(name) + 1
    if name == 'n-ary' and len(args) < 2:
      return f"'n-ary' takes at least 2 arguments, not {len(args)}"
    if name != 'n-ary' and len(args) != wanted:
      return f'{name!r} takes {wanted} argument{"s" * (wanted > 1)}, not {len(args)}'
    return _Hole(name, args)

  return read(text, X, number, build)


def _holes(tree: _Hole | Expression) -> list[str]:
  """Kinds of the operators to choose, in the order of the text."""
  if isinstance(tree, Expression):
    return []
  return [tree.kind, *(kind for argument in tree.args for kind in _holes(argument))]


def _filled(tree: _Hole | Expression, names: Iterator[str]) -> Expression:
  if isinstance(tree, Expression):
    return tree
  return Expression(next(names), tuple(_filled(argument, names) for argument in tree.args))


_ACT_BENCH_UNARY = (
    'zero', 'one', 'identity', 'neg', 'abs', 'reciprocal', 'square', 'exp', 'erf', 'erfc', 'sinh',
    'cosh', 'tanh', 'expm1', 'sigmoid', 'log_sigmoid', 'asinh', 'atan', 'i0e', 'i1e', 'relu',
    'elu', 'selu', 'swish', 'softplus', 'softsign', 'hard_sigmoid')
_AQUASURF_BINARY = ('add', 'sub', 'mul', 'div', 'pow', 'max', 'min')
_AQUASURF = 'Bingham & Miikkulainen, NeurIPS 2023, arXiv 2301.05785; its code and README'

SPACES = types.MappingProxyType({space.name: space for space in (
    Space(
        'swish',
        ('identity', 'neg', 'abs', 'square', 'cube', 'sqrt', 'scale', 'shift', 'log_abs', 'exp',
         'sin', 'sinh', 'cosh', 'tanh', 'asinh', 'atan', 'sinc', 'relu', 'min_zero', 'sigmoid',
         'softplus', 'gaussian', 'erf', 'beta',
         'add', 'mul', 'sub', 'safe_div', 'max', 'min', 'gate', 'exp_square_difference',
         'exp_abs_difference', 'mix'),
        (ONE_CORE_UNIT, 'binary(unary(binary(unary(x), unary(x))), unary(x))'),
        'Ramachandran, Zoph & Le 2017, arXiv 1710.05941; the list in a public re-implementation, '
        'which leaves out cos(x)',
        unconfirmed=('min',)),
    Space(
        'pangaea',
        ('exp_plus_one', 'exp_neg_plus_one', 'expm1', 'two_cosh', 'two_sinh', 'identity', 'sin',
         'sinh', 'asinh', 'cos', 'cosh', 'tanh', 'atan', 'erf', 'erfc', 'exp', 'neg', 'reciprocal',
         'sigmoid', 'softsign', 'swish', 'square', 'softplus',
         'add', 'sub', 'mul', 'div', 'max', 'min'),
        ('unary(unary(x))', ONE_CORE_UNIT),
        'Bingham & Miikkulainen 2022, arXiv 2006.03179; the 23 unary and 6 binary operators of a '
        'public port (the paper has 27 and 7), and its initial trees'),
    Space('act_bench', _ACT_BENCH_UNARY + _AQUASURF_BINARY, (ONE_CORE_UNIT,), _AQUASURF),
    Space(
        'aquasurf',
        _ACT_BENCH_UNARY + ('elish', 'leaky_relu', 'mish', 'gelu') + _AQUASURF_BINARY
        + ('sum_n', 'prod_n', 'max_n', 'min_n'),
        (ONE_CORE_UNIT, 'unary(unary(x))', 'n-ary(unary(x), unary(x), unary(x))'), _AQUASURF),
)})


def get_space(name: str) -> Space:
  """A named space: 'swish', 'pangaea', 'act_bench' or 'aquasurf'.

  Raises:
    UserError: there is none of that name.
  """
  if name not in SPACES:
    raise UserError(f'no search space is called {name!r}{nearest(name, SPACES)}; '
                    f'there are: {", ".join(SPACES)}')
  return SPACES[name]
