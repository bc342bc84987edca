"""The operators of the search spaces, as a table.

An operator maps one, two or (n-ary) at least two arrays of one shape to an array of that shape,
entry by entry, in the dtype it is given; functions that the registry of activations has are taken
from there. An operator may have learnable scalars of its own: Swish's beta, and the factor on an
edge of a PANGAEA tree, which is `scale`. Their first values are this project's choice, since
no source for the papers' was found: 1 for a factor, 0 for a summand, 1/2 for a mixture.

Where a paper writes an epsilon (log(|x| + eps), a / (b + eps)) without a confirmed value, it is
`EPSILON` here.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import types
from typing import Literal

import jax
import jax.numpy as jnp

from model_lib.activations import get_activation
from model_lib.errors import UserError
from model_lib.spec import nearest

EPSILON = 1e-5

Kind = Literal['unary', 'binary', 'n-ary']
_ARITY = {'unary': 1, 'binary': 2, 'n-ary': None}


@dataclasses.dataclass(frozen=True)
class Operator:
  """An operator and what the canonical form needs to know of it.

  Attributes:
    name: as in an expression.
    kind: 'unary', 'binary' or 'n-ary'.
    formula: in a, b and beta, the learnable scalar; in x for those of the registry.
    function: maps `arity` arrays, then the learnable scalars, to an array.
    inits: first values of the learnable scalars.
    commutative: whether the order of the arguments is free.
    parity: 'odd' or 'even' for a unary one that is; '' otherwise.
    idempotent: whether f(f(a)) = f(a).
    nonnegative: whether a unary one has no value below 0.
    constant: whether a unary one does not depend on its argument.
  """

  name: str
  kind: Kind
  formula: str
  function: Callable[..., jax.Array]
  inits: tuple[float, ...] = ()
  commutative: bool = False
  parity: Literal['', 'odd', 'even'] = ''
  idempotent: bool = False
  nonnegative: bool = False
  constant: bool = False

  @property
  def arity(self) -> int | None:
    """How many arguments; None for n-ary, which takes two or more."""
    return _ARITY[self.kind]


_TABLE: dict[str, Operator] = {}
OPERATORS = types.MappingProxyType(_TABLE)


def get_operator(name: str) -> Operator:
  """Looks an operator up.

  Raises:
    UserError: there is none of that name; the line gives the nearest ones.
  """
  if name not in _TABLE:
    raise UserError(f'no search operator is called {name!r}{nearest(name, _TABLE)}')
  return _TABLE[name]


def _enter(kind: Kind, name: str, formula: str, function: Callable[..., jax.Array], **facts):
  _TABLE[name] = Operator(name, kind, formula, function, **facts)


def _activation(name: str, spec: str | None = None, **facts) -> None:
  activation = get_activation(spec or name)
  settings = {p.name: p.init for p in activation.parameters} | dict(activation.constants)
  _enter('unary', name, activation.formula, functools.partial(activation.function, **settings),
         parity=activation.parity, **facts)


def _reduced(operation: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  return lambda *arrays: functools.reduce(operation, arrays)


_unary = functools.partial(_enter, 'unary')
_unary('identity', 'a', lambda a: a, parity='odd', idempotent=True)
_unary('zero', '0', jnp.zeros_like, constant=True)
_unary('one', '1', jnp.ones_like, constant=True)
_unary('neg', '-a', jnp.negative, parity='odd')
_unary('abs', '|a|', get_activation('abs').function, parity='even', idempotent=True,
       nonnegative=True)
_unary('reciprocal', '1 / a', lambda a: 1 / a, parity='odd')
_unary('square', 'a^2', jnp.square, parity='even', nonnegative=True)
_unary('cube', 'a^3', lambda a: a * a * a, parity='odd')
_unary('sqrt', 'a^(1/2)', jnp.sqrt, nonnegative=True)
_unary('log_abs', 'ln(|a| + eps)', lambda a: jnp.log(jnp.abs(a) + EPSILON), parity='even')
_unary('exp', 'e^a', jnp.exp, nonnegative=True)
_unary('expm1', 'e^a - 1', jnp.expm1)
_unary('exp_plus_one', '1 + e^a', lambda a: 1 + jnp.exp(a), nonnegative=True)
_unary('exp_neg_plus_one', '1 + e^-a', lambda a: 1 + jnp.exp(-a), nonnegative=True)
_unary('two_cosh', 'e^a + e^-a', lambda a: 2 * jnp.cosh(a), parity='even', nonnegative=True)
_unary('two_sinh', 'e^a - e^-a', lambda a: 2 * jnp.sinh(a), parity='odd')
_unary('gaussian', 'e^(-a^2)', get_activation('gaussian').function, parity='even',
       nonnegative=True)
_unary('sin', 'sin(a)', jnp.sin, parity='odd')
_unary('cos', 'cos(a)', jnp.cos, parity='even')
_unary('sinh', 'sinh(a)', jnp.sinh, parity='odd')
_unary('cosh', 'cosh(a)', jnp.cosh, parity='even', nonnegative=True)
_unary('erfc', '1 - erf(a)', jax.scipy.special.erfc, nonnegative=True)
_unary('i0e', 'e^-|a| I_0(a)', jax.scipy.special.i0e, parity='even', nonnegative=True)
_unary('i1e', 'e^-|a| I_1(a)', jax.scipy.special.i1e, parity='odd')
_unary('hard_sigmoid', 'min(max(0.2 a + 0.5, 0), 1)',
       lambda a: jnp.clip(0.2 * a + 0.5, 0, 1), nonnegative=True)
_unary('min_zero', 'min(a, 0)', lambda a: jnp.minimum(a, 0), idempotent=True)
_activation('tanh')
_activation('asinh')
_activation('atan', 'arctan')
_activation('erf')
_activation('sinc')
_activation('sigmoid', nonnegative=True)
_activation('log_sigmoid')
_activation('relu', idempotent=True, nonnegative=True)
_activation('elu')
_activation('selu')
_activation('swish', 'silu')
_activation('softplus', nonnegative=True)
_activation('softsign', 'soft_sign')
_activation('elish')
_activation('leaky_relu')
_activation('mish')
_activation('gelu')
_unary('scale', 'beta a', lambda a, beta: beta * a, inits=(1.0,), parity='odd')
_unary('shift', 'a + beta', lambda a, beta: a + beta, inits=(0.0,))
_unary('beta', 'beta', lambda a, beta: jnp.zeros_like(a) + beta, inits=(1.0,),
       constant=True)

_binary = functools.partial(_enter, 'binary')
_binary('add', 'a + b', jnp.add, commutative=True)
_binary('sub', 'a - b', jnp.subtract)
_binary('mul', 'a b', jnp.multiply, commutative=True)
_binary('div', 'a / b', jnp.divide)
_binary('pow', 'a^b', jnp.power)
_binary('max', 'max(a, b)', jnp.maximum, commutative=True)
_binary('min', 'min(a, b)', jnp.minimum, commutative=True)
_binary('safe_div', 'a / (b + eps)', lambda a, b: a / (b + EPSILON))
_binary('gate', 'sigmoid(a) b', lambda a, b: jax.nn.sigmoid(a) * b)
_binary('exp_square_difference', 'e^(-beta (a - b)^2)',
        lambda a, b, beta: jnp.exp(-beta * jnp.square(a - b)), inits=(1.0,), commutative=True)
_binary('exp_abs_difference', 'e^(-beta |a - b|)',
        lambda a, b, beta: jnp.exp(-beta * jnp.abs(a - b)), inits=(1.0,), commutative=True)
_binary('mix', 'beta a + (1 - beta) b', lambda a, b, beta: beta * a + (1 - beta) * b,
        inits=(0.5,))

_nary = functools.partial(_enter, 'n-ary', commutative=True)
_nary('sum_n', 'a + b + ...', _reduced(jnp.add))
_nary('prod_n', 'a b ...', _reduced(jnp.multiply))
_nary('max_n', 'max(a, b, ...)', _reduced(jnp.maximum))
_nary('min_n', 'min(a, b, ...)', _reduced(jnp.minimum))
