"""The text of expressions.

  expression := 'x' | number | operator '(' expression {',' expression} ')'

  max(relu(x), cosh(elu(x)))     prod_n(sigmoid(x), neg(x), hard_sigmoid(x))     mul(0.5, x)

An operator's name is a letter or '_' followed by letters, digits, '_' and '-'. White space between
tokens is free. `str` of an expression is its text; nothing is evaluated as Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
import re
from typing import TypeVar

from model_lib.errors import UserError
from model_lib.search.expression import (
    INPUT,
    Expression,
    X,
    number,
    wrong_arity,
)
from model_lib.search.operators import OPERATORS
from model_lib.spec import nearest

_WORD = re.compile(r'[A-Za-z_][A-Za-z0-9_-]*')
_NUMBER = re.compile(r'[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![A-Za-z0-9_.])')
_MAX_DEPTH = 64
_MAX_LENGTH = 4000
Tree = TypeVar('Tree')


class ExpressionError(UserError):
  """A text that is no expression; one line, with the position counted from 1."""


def parse(text: str, operators: Collection[str] | None = None) -> Expression:
  """Reads an expression.

  Args:
    text: e.g. 'max(relu(x), cosh(elu(x)))'.
    operators: the names that are allowed; None for all of the table.

  Returns:
    The expression; `parse(str(expression)) == expression`.

  Raises:
    ExpressionError: the text does not follow the grammar, an operator is unknown or not allowed,
      or it has a wrong number of arguments; the line names the position and the nearest names.
  """
  known = OPERATORS if operators is None else operators

  def build(name: str, args: tuple[Expression, ...]) -> Expression | str:
    if name not in known:
      problem = f'operator {name!r} is not in this space' if name in OPERATORS else (
          f'no operator is called {name!r}')
      return problem + nearest(name, [*known, INPUT])
    return wrong_arity(name, len(args)) or Expression(name, args)

  return read(text, X, number, build)


def read(
    text: str, leaf: Tree, constant: Callable[[float], Tree],
    build: Callable[[str, tuple[Tree, ...]], Tree | str],
) -> Tree:
  """Reads a text of the grammar into any tree.

  Args:
    text: what to read.
    leaf: stands for x.
    constant: makes a leaf of a number.
    build: makes a node of a name and its arguments, or says in words what is wrong.

  Raises:
    ExpressionError: the text does not follow the grammar, or `build` refused a node.
  """
  if not isinstance(text, str):
    raise ExpressionError(
        f"an expression is a string such as 'relu(x)', not {type(text).__name__} {text!r}")
  if len(text) > _MAX_LENGTH:
    raise ExpressionError(f'an expression has at most {_MAX_LENGTH} characters, not {len(text)}')
  at = 0

  def error(what: str, place: int, found: bool = True) -> ExpressionError:
    there = repr(text[place:place + 12]) if place < len(text) else 'the end'
    return ExpressionError(f'expression {text!r}: {what}, at position {place + 1}'
                           + (f', found {there}' if found else ''))

  def peek() -> str:
    nonlocal at
    while text[at:at + 1].isspace():
      at += 1
    return text[at:at + 1]

  def node(depth: int) -> Tree:
    nonlocal at
    if depth > _MAX_DEPTH:
      raise error(f'nested deeper than {_MAX_DEPTH}', at)
    peek()
    start = at
    match = _NUMBER.match(text, at)
    if match:
      at = match.end()
      try:
        return constant(float(match.group()))
      except UserError as problem:
        raise error(str(problem), start, found=False) from None
    match = _WORD.match(text, at)
    if match is None:
      raise error("expected an operator, a number or 'x'", at)
    at, name, args = match.end(), match.group(), []
    if peek() == '(':
      at += 1
      args.append(node(depth + 1))
      while peek() == ',':
        at += 1
        args.append(node(depth + 1))
      if peek() != ')':
        raise error("expected ',' or ')'", at)
      at += 1
    if name == INPUT:
      if args:
        raise error(f'{INPUT!r} is the input and takes no arguments', start, found=False)
      return leaf
    made = build(name, tuple(args))
    if isinstance(made, str):
      raise error(made, start, found=False)
    return made

  tree = node(0)
  if peek():
    raise error('expected the end', at)
  return tree
