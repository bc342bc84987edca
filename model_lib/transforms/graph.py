"""Finds normalizations in the graph of a function, or says that none is left.

A normalization divides by something that depends on the data. In a jaxpr that is one of: rsqrt,
sqrt, cbrt, pow, a negative integer power, log (a power is exp of a log), or a division whose
divisor depends on the data. One quotient is let through: a softmax, exp(a) over the sum of the
same exp(a). A callback or foreign call, which cannot be looked into, is a finding too. A finding
may also be an activation with a root or a quotient (softsign, squareplus). Not looked for: matrix
factorizations and solves (whitening), and log1p, which softplus needs.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
from jax.extend import core
import numpy as np

_ROOTS = ('rsqrt', 'sqrt', 'cbrt', 'pow', 'log')
_OPAQUE = ('pure_callback', 'io_callback', 'ffi_call', 'custom_call')
_SHAPE_ONLY = ('broadcast_in_dim', 'reshape', 'squeeze', 'stop_gradient', 'copy',
               'convert_element_type', 'expand_dims')


@dataclasses.dataclass(frozen=True)
class Finding:
  """An operation that may normalize.

  Attributes:
    primitive: its name.
    scope: the modules it stands in, such as 'MLP/norm_0'; '' where the trace has no names.
    shape: of its result.
  """

  primitive: str
  scope: str
  shape: tuple[int, ...]


def find_normalizations(function: Callable, *args) -> tuple[Finding, ...]:
  """The operations of function(*args) that may normalize; () where there is none of them.

  All of `args` counts as data, what the function closes over as constant: pass a model's
  variables as an argument, and a batch norm's running variance is found as well.
  """
  closed = jax.make_jaxpr(function)(*args)
  return tuple(_walk(closed.jaxpr, [True] * len(closed.jaxpr.invars), '')[0])


def _walk(jaxpr, data_in: list[bool], scope: str) -> tuple[list[Finding], list[bool]]:
  """Findings, and which results depend on the data, given which inputs do."""
  data = {var for var, is_data in zip(jaxpr.invars, data_in, strict=True) if is_data}
  made, findings = {}, []

  def is_data(atom):
    return not isinstance(atom, core.Literal) and atom in data

  for eqn in jaxpr.eqns:
    name, inputs = eqn.primitive.name, [is_data(atom) for atom in eqn.invars]
    stack = str(eqn.source_info.name_stack)
    here = '/'.join(part for part in (scope, stack) if part)
    inner = list(_bodies(eqn))
    outputs = [any(inputs)] * len(eqn.outvars)
    for body in inner:
      known = _inputs_of(eqn, body, inputs)
      found, results = _walk(body, known, here)
      findings += found
      if len(inner) == 1 and name != 'while' and len(results) == len(outputs):
        outputs = results
    if any(inputs) and not inner and _normalizes(eqn, inputs, made):
      findings.append(Finding(name, here, tuple(eqn.outvars[0].aval.shape)))
    data.update(var for var, tainted in zip(eqn.outvars, outputs, strict=True) if tainted)
    made.update({var: eqn for var in eqn.outvars})
  return findings, [is_data(atom) for atom in jaxpr.outvars]


def _bodies(eqn):
  """The jaxprs inside of an equation: scan, cond, jit, remat, custom derivatives, kernels."""
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _inputs_of(eqn, body, inputs: list[bool]) -> list[bool]:
  """Which inputs of the body are data; in a `while` all are as soon as one is (the carry)."""
  name = eqn.primitive.name
  if name == 'scan':
    return _carried(eqn, body, inputs)
  if name != 'while' and len(body.invars) == len(inputs):
    return inputs
  if name == 'cond' and len(body.invars) == len(inputs) - 1:
    return inputs[1:]
  return [any(inputs)] * len(body.invars)


def _carried(eqn, body, inputs: list[bool]) -> list[bool]:
  """The same for a scan: what is data in the carry after a step is so before the next one.

  A scan's inputs are constants, carry, arrays to step over; its results the carry, then stacks.
  The names of its parameters differ between versions of jax, an axis more tells them as well.
  """
  def unstacked(outside, inside):
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))

  carried = unstacked(eqn.outvars, body.outvars)
  first = unstacked(eqn.invars, body.invars) - carried
  known = list(inputs)
  while True:
    after = _walk(body, known, '')[1][:carried]
    merged = [a or b for a, b in zip(known[first:first + carried], after, strict=True)]
    if merged == known[first:first + carried]:
      return known
    known[first:first + carried] = merged


def _normalizes(eqn, inputs: list[bool], made: dict) -> bool:
  name = eqn.primitive.name
  if name in _OPAQUE:
    return True
  if not np.issubdtype(eqn.outvars[0].aval.dtype, np.inexact) and (
      eqn.outvars[0].aval.dtype != jax.numpy.bfloat16):
    return False
  if name == 'integer_pow':
    return eqn.params['y'] < 0
  if name == 'div':
    return inputs[1] and not _is_softmax(eqn, made)
  return name in _ROOTS


def _is_softmax(eqn, made: dict) -> bool:
  """exp(a) / sum(exp(a)), the sum along some axes and spread out again."""
  numerator, divisor = (_source(atom, made) for atom in eqn.invars)
  total = made.get(divisor) if not isinstance(divisor, core.Literal) else None
  if total is None or total.primitive.name != 'reduce_sum':
    return False
  summed = _source(total.invars[0], made)
  origin = made.get(summed) if not isinstance(summed, core.Literal) else None
  return origin is not None and origin.primitive.name == 'exp' and summed is numerator


def _source(atom, made: dict):
  """The variable behind changes of shape and dtype."""
  while not isinstance(atom, core.Literal) and atom in made and (
      made[atom].primitive.name in _SHAPE_ONLY):
    atom = made[atom].invars[0]
  return atom
