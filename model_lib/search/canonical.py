"""The canonical form of an expression.

Applied from the leaves up; each rule is exact in real arithmetic, and none gives a value where the
original has none (so neither a - a nor 0 a nor a / a is simplified: the fingerprint finds those):

  constants      zero(a) = 0, one(a) = 1, beta(a) = beta(x); + - * / neg abs square cube relu
                 min_zero min max of numbers, where float64 has the exact result
  neutral        identity(a) = a; a + 0, a - 0, a 1, a / 1, a^1 = a
  idempotent     f(f(a)) = f(a) for abs, relu, min_zero; max(a, a) = min(a, a) = a;
                 abs(a) = relu(a) = a where a's operator has no negative values
  signs          neg(neg(a)) = a; f(neg(a)) = f(a) or neg(f(a)) for even and odd f; f(abs(a)) = f(a)
                 for even f; neg moves out of products and quotients, and out of a sum if all of its
                 terms have it; a + neg(b) = a - b; a - 2 = a + (-2)
  order          nested sums, products, maxima and minima become one, sum_n ... if there are three or
                 more arguments; commutative arguments are sorted by their texts
  other names    a a = a^2 = square(a), a^3 = cube(a), a^-1 = 1 / a = reciprocal(a),
                 a sigmoid(a) = swish(a), gate(a, b) = sigmoid(a) b, max(a, 0) = relu(a),
                 min(a, 0) = min_zero(a)

Two equal parts with learnable scalars are not one function, since each has its own: the rules that
need equal parts leave them alone. The scalars are numbered anew, in the order of the new text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
import functools

from model_lib.search.expression import NUMBER, Expression, X, number
from model_lib.search.operators import get_operator

_PAIR_AND_MANY = {'add': 'sum_n', 'mul': 'prod_n', 'max': 'max_n', 'min': 'min_n'}
_PAIR = {many: pair for pair, many in _PAIR_AND_MANY.items()}
_ON_NUMBERS: dict[str, Callable[[Fraction], Fraction]] = {
    'neg': lambda a: -a, 'abs': abs, 'square': lambda a: a * a, 'cube': lambda a: a**3,
    'relu': lambda a: max(a, Fraction(0)), 'min_zero': lambda a: min(a, Fraction(0)),
}
_NEUTRAL = {'add': 0.0, 'mul': 1.0}
_POWERS = {1.0: 'identity', 2.0: 'square', 3.0: 'cube', -1.0: 'reciprocal'}


@functools.lru_cache(maxsize=2**16)
def canonical(expression: Expression) -> Expression:
  """The canonical form; expressions with the same one are the same function."""
  if not expression.args:
    return expression
  return _node(expression.operator, *map(canonical, expression.args))


def _node(name: str, *args: Expression) -> Expression:
  """The canonical form of an operator over canonical arguments."""
  if name in _PAIR or name in _PAIR_AND_MANY:
    return _associative(_PAIR.get(name, name), args)
  if len(args) == 1:
    return _unary(name, *args)
  if name in _BINARY:
    return _BINARY[name](*args)
  if get_operator(name).commutative:
    args = tuple(sorted(args, key=str))
  return Expression(name, args)


def _unary(name: str, a: Expression) -> Expression:
  operator = get_operator(name)
  if name == 'identity':
    return a
  if name in ('zero', 'one'):
    return number(name == 'one')
  if name == 'beta':
    return Expression(name, (X,))
  if a.operator == NUMBER and name in _ON_NUMBERS:
    folded = _exact(_ON_NUMBERS[name](Fraction(a.value)))
    if folded is not None:
      return folded
  if name == 'neg' and a.operator == 'neg':
    return a.args[0]
  if name == 'neg' and a.operator == 'sub':
    return _node('sub', *a.args[::-1])
  if a.operator == 'neg' and operator.parity == 'odd':
    return _node('neg', _node(name, *a.args))
  if a.operator in ('neg', 'abs') and operator.parity == 'even' and a.operator != name:
    return _node(name, *a.args)
  if operator.idempotent and a.operator == name:
    return a
  if name in ('abs', 'relu') and a.args and get_operator(a.operator).nonnegative:
    return a
  return Expression(name, (a,))


def _sub(a: Expression, b: Expression) -> Expression:
  if b.operator == 'neg':
    return _node('add', a, b.args[0])
  if b.operator == NUMBER:
    return _node('add', a, number(-b.value))
  if a == number(0):
    return _node('neg', b)
  if a.operator == 'neg':
    return _node('neg', _node('add', a.args[0], b))
  return Expression('sub', (a, b))


def _div(a: Expression, b: Expression) -> Expression:
  if a.operator == b.operator == NUMBER and b.value:
    folded = _exact(Fraction(a.value) / Fraction(b.value))
    if folded is not None:
      return folded
  if b == number(1):
    return a
  if b == number(-1):
    return _node('neg', a)
  if a == number(1):
    return _node('reciprocal', b)
  for part, other in ((a, (a.args[:1] + (b,))), (b, (a,) + b.args[:1])):
    if part.operator == 'neg':
      return _node('neg', _node('div', *other))
  return Expression('div', (a, b))


def _pow(a: Expression, b: Expression) -> Expression:
  if b.operator == NUMBER and b.value in _POWERS:
    return _node(_POWERS[b.value], a)
  return Expression('pow', (a, b))


def _gate(a: Expression, b: Expression) -> Expression:
  return _node('mul', _node('sigmoid', a), b)


_BINARY = {'sub': _sub, 'div': _div, 'pow': _pow, 'gate': _gate}


def _associative(name: str, args: Sequence[Expression]) -> Expression:
  """A sum, product, maximum or minimum of canonical arguments."""
  parts, numbers, negative = [], [], False
  waiting = list(args)
  while waiting:
    part = waiting.pop()
    if part.operator in (name, _PAIR_AND_MANY[name]):
      waiting.extend(part.args)
    elif part.operator == NUMBER:
      numbers.append(Fraction(part.value))
    elif part.operator == 'neg' and name == 'mul':
      negative = not negative
      waiting.extend(part.args)
    else:
      parts.append(part)
  if name == 'mul' and negative:
    numbers.append(Fraction(-1))
  constants = _folded(name, numbers)
  if name in ('max', 'min'):
    parts = _without_repeats(parts)
  if name == 'add' and len(parts) > 1 and not constants and (
      all(part.operator == 'neg' for part in parts)):
    return _node('neg', _node('add', *(part.args[0] for part in parts)))
  if name == 'mul' and constants == [number(-1)] and parts:
    return _node('neg', _joined(name, parts))
  return _joined(name, constants + parts) if constants or parts else number(_NEUTRAL[name])


def _joined(name: str, parts: list[Expression]) -> Expression:
  """The parts, of which none is to be taken apart any more."""
  parts = sorted(parts, key=str)
  if len(parts) == 1:
    return parts[0]
  if len(parts) > 2:
    return Expression(_PAIR_AND_MANY[name], tuple(parts))
  a, b = parts
  if name == 'add' and 'neg' in (a.operator, b.operator):
    return _node('sub', b, a.args[0]) if a.operator == 'neg' else _node('sub', a, b.args[0])
  if name == 'mul' and not (a.n_parameters or b.n_parameters):
    if a == b:
      return _node('square', a)
    for gate, value in ((a, b), (b, a)):
      if gate.operator == 'sigmoid' and gate.args[0] == value:
        return _node('swish', value)
  if name in ('max', 'min') and number(0) in parts:
    return _node('relu' if name == 'max' else 'min_zero', b if a == number(0) else a)
  return Expression(name, (a, b))


def _folded(name: str, numbers: list[Fraction]) -> list[Expression]:
  """The numbers among the parts as one, or as they are if it is no float64; [] if it is neutral."""
  if not numbers:
    return []
  operation = {'add': lambda a, b: a + b, 'mul': lambda a, b: a * b, 'max': max, 'min': min}[name]
  folded = _exact(functools.reduce(operation, numbers))
  if folded is None:
    return [number(float(value)) for value in numbers]
  return [folded] if folded.value != _NEUTRAL.get(name) else []


def _exact(value: Fraction) -> Expression | None:
  """The number, if float64 has it."""
  try:
    return number(float(value)) if Fraction(float(value)) == value else None
  except OverflowError:
    return None


def _without_repeats(parts: list[Expression]) -> list[Expression]:
  return [part for i, part in enumerate(parts) if part.n_parameters or part not in parts[:i]]
