"""The engine `bytecode`: an expression as a program of a small machine, as data.

A program is the expression in postfix order without the x: instruction i applies an operator to
one or two earlier results and writes result i + 1; result 0 is x. Where the arguments lie on the
stack is worked out when the program is made, so each instruction names the results it reads:

  program int32 [length, 4]    opcode, first argument, second argument, number of its scalar
  constants float32 [length]   of the opcode that gives a number
  first float32 [parameters]   where the learnable scalars start
  count int32                  instructions that are carried out

Opcodes: 0 gives a number; then the unary and binary operators in the order of the table. An n-ary
operator is a chain of binary ones. The learnable scalars are the layer's parameter `beta`
[parameters], in the order of the text: beta[i] is beta_i of the expression.

Under lax.map only the chosen operator runs. The derivative is written out: the results of the
forward pass are kept, and the operators' own derivatives carried out backwards, so that an operator
that was not chosen leaves no nan, under vmap neither. There is no forward-mode derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError
from model_lib.models.swept import Leaves, SweptActivation
from model_lib.search.engines import settings
from model_lib.search.expression import INPUT, NUMBER, Expression
from model_lib.search.grammar import parse
from model_lib.search.operators import OPERATORS, Operator, get_operator
from model_lib.spec import Call

_DEFAULTS = {'length': 16, 'parameters': 4}
_MOST = 256
_DEFAULT = 'relu(x)'
_CHAINS = {'sum_n': 'add', 'prod_n': 'mul', 'max_n': 'max', 'min_n': 'min'}
OPCODES = (NUMBER, *(name for name, operator in OPERATORS.items() if operator.kind != 'n-ary'))
_CODE = {name: code for code, name in enumerate(OPCODES)}


@dataclasses.dataclass(frozen=True)
class Bytecode(SweptActivation):
  """Expressions of at most `length` operators and numbers and `parameters` learnable scalars."""

  length: int = 16
  parameters_: int = 4

  @classmethod
  def from_spec(cls, call: Call) -> 'Bytecode':
    """The engine of `bytecode(length=16, parameters=4)`; UserError for impossible settings."""
    values = settings.read(call, _DEFAULTS)
    if max(values.values()) > _MOST:
      raise UserError(f'{call}: length and parameters are at most {_MOST}')
    return cls(values['length'], values['parameters'])

  @property
  def name(self) -> str:
    return f'bytecode(length={self.length}, parameters={self.parameters_})'

  def default(self) -> Leaves:
    return self.encode(_DEFAULT)

  def encode(self, text: str) -> Leaves:
    return dict(_encoded(text, self.length, self.parameters_))

  def first(self, leaves: Mapping[str, jax.Array], shape) -> dict[str, jax.Array]:
    return {'beta': leaves['first']}

  def apply(self, leaves: Mapping[str, jax.Array], params: Mapping[str, jax.Array],
            x: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return run(leaves['program'], leaves['constants'].astype(wide), leaves['count'],
               params['beta'].astype(wide), x.astype(wide)).astype(x.dtype)

  def gain(self) -> float:
    return 2**0.5  # of ReLU


@functools.lru_cache(maxsize=4096)
def _encoded(text: str, length: int, parameters: int) -> tuple[tuple[str, np.ndarray], ...]:
  expression = parse(text)
  instructions = _instructions(expression)
  if len(instructions) > length:
    raise UserError(f'expression {text!r} has {len(instructions)} operators and numbers; '
                    f'bytecode(length={length}) takes {length}')
  if expression.n_parameters > parameters:
    raise UserError(f'expression {text!r} has {expression.n_parameters} learnable scalars; '
                    f'bytecode(parameters={parameters}) takes {parameters}')
  program, constants = np.zeros((length, 4), np.int32), np.zeros(length, np.float32)
  for i, (code, reads, slot, value) in enumerate(instructions):
    program[i] = (code, *reads, *(0,) * (2 - len(reads)), slot)
    constants[i] = value
  first = np.zeros(parameters, np.float32)
  first[:expression.n_parameters] = [p.init for p in expression.parameters()]
  return (('program', program), ('constants', constants), ('first', first),
          ('count', np.int32(len(instructions))))


def _instructions(expression: Expression) -> list[tuple[int, tuple[int, ...], int, float]]:
  """(opcode, results that are read, number of the scalar, constant) in postfix order."""
  found: list[tuple[int, tuple[int, ...], int, float]] = []

  def emit(name: str, reads: tuple[int, ...], slot: int = 0, value: float = 0.0) -> int:
    found.append((_CODE[name], reads, slot, value))
    return len(found)

  def visit(node: Expression, slot: int) -> int:
    """Adds the node's instructions; returns the number of its result."""
    if node.operator == INPUT:
      return 0
    if node.operator == NUMBER:
      return emit(NUMBER, (), value=node.value)
    # A node's own scalar comes before those of its arguments, as in the text.
    inner, reads = slot + len(node.inits), ()
    for argument in node.args:
      reads += (visit(argument, inner),)
      inner += argument.n_parameters
      if node.operator in _CHAINS and len(reads) == 2:
        reads = (emit(_CHAINS[node.operator], reads),)
    return reads[0] if node.operator in _CHAINS else emit(
        node.operator, reads, slot if node.inits else 0)

  visit(expression, 0)
  return found


@jax.custom_vjp
def run(program: jax.Array, constants: jax.Array, count: jax.Array, beta: jax.Array,
        x: jax.Array) -> jax.Array:
  """The last of the program's results, in x's dtype; the leaves are as above.

  Differentiable in beta and x, backwards only.
  """
  return _get(_forward(program, constants, count, beta, x), count)


def _get(results: jax.Array, i) -> jax.Array:
  """results[i]; places are never out of bounds, and the check would cost as much as an operator."""
  return jax.lax.dynamic_index_in_dim(results, i, keepdims=False)


def _set(results: jax.Array, i, value: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(results, value, i, 0)


def _forward(program, constants, count, beta, x):
  """All results [length + 2, *x.shape]; the last is room for what nobody reads."""
  # Filling the array with zeros would cost more than a short program.
  results = _set(jax.lax.empty((len(constants) + 2, *x.shape), x.dtype), 0, x)

  def step(i, results):
    code, a, b, slot = program[i]
    value = jax.lax.switch(
        code, _APPLY, _get(results, a), _get(results, b), constants[i], beta[slot])
    return _set(results, i + 1, value)

  return jax.lax.fori_loop(0, count, step, results)


def _run_forward(program, constants, count, beta, x):
  results = _forward(program, constants, count, beta, x)
  return _get(results, count), (program, constants, count, beta, results)


def _run_backward(saved, cotangent):
  """Backwards; each result but x is read once, and then its cotangent takes its place."""
  program, constants, count, beta, results = saved
  nobody = len(constants) + 1

  def step(k, carry):
    results, to_x, to_beta = carry
    i = count - 1 - k
    code, a, b, slot = program[i]
    to_a, to_b, to_scalar = jax.lax.switch(
        code, _PULL, _get(results, a), _get(results, b), constants[i], beta[slot],
        _get(results, i + 1))
    for read, to_read in ((a, to_a), (b, to_b)):
      to_x += jnp.where(read == 0, to_read, 0)
      results = _set(results, jnp.where(read == 0, nobody, read), to_read)
    return results, to_x, to_beta.at[slot].add(to_scalar)

  _, to_x, to_beta = jax.lax.fori_loop(
      0, count, step, (_set(results, jnp.where(count == 0, nobody, count), cotangent),
                       jnp.where(count == 0, cotangent, 0), jnp.zeros_like(beta)))
  return None, None, None, to_beta, to_x


run.defvjp(_run_forward, _run_backward)


def _branch(operator: Operator) -> Callable[..., jax.Array]:
  """The operator as a function of (first, second, constant, scalar)."""
  def branch(a, b, constant, scalar):
    del constant
    return operator.function(*(a, b)[:operator.arity], *(scalar,) * len(operator.inits))
  return branch


def _number(a, b, constant, scalar):
  del b, scalar
  return jnp.full_like(a, constant)


def _pull(branch: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
  """The branch's derivative: cotangents of (first, second, scalar)."""
  def pull(a, b, constant, scalar, cotangent):
    _, back = jax.vjp(lambda a, b, scalar: branch(a, b, constant, scalar), a, b, scalar)
    return back(cotangent)
  return pull


_APPLY = [_number, *(_branch(get_operator(name)) for name in OPCODES[1:])]
_PULL = [_pull(branch) for branch in _APPLY]
