"""What an activation or a norm costs: time of forward plus backward, and what it saves in between.

Each layer is applied to s x, with s a number that the compiler does not know, in training mode;
gradients are taken for x and the layer's parameters. So `none` and `identity` too read and write
their arrays once in each direction, and a ratio to them compares real work. Times are ratios
within interleaved rounds (`training.timing.relative_cost`).

The saved bytes are those of the arrays that JAX keeps from the forward pass for the backward pass,
the input among them where it is kept, the layer's own parameters and constants left out. They are
counted before compilation: XLA may keep less, by computing something twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import time
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from model_lib.activations import get_activation
from model_lib.models.activation_layer import ActivationLayer
from model_lib.normalization import get_norm
from model_lib.training import timing

_MAPS = ('adain', 'spade')  # norms whose condition has positions
CALLS = 20  # in a row, of which the fastest counts: others use the machine, threads have to wake


@dataclasses.dataclass(frozen=True)
class Cost:
  """One layer beside the reference.

  Attributes:
    seconds: of one forward and backward pass, median over rounds.
    ratio: to the reference, median over rounds.
    bytes_per_value: saved between the passes, per value of x.
  """

  seconds: float
  ratio: float
  bytes_per_value: float


@dataclasses.dataclass(frozen=True)
class Subject:
  """A layer ready to be measured.

  Attributes:
    function: (parameters, inputs, s) -> output, or outputs.
    parameters: tree of the layer's trained arrays.
    inputs: arrays; two for a gated activation and for a norm with a condition.
  """

  function: Callable[..., Any]
  parameters: Any
  inputs: tuple[jax.Array, ...]


def activation(spec: str, shape: Sequence[int]) -> Subject:
  """The activation layer of a spec on inputs N(0, 1) of a shape [B, ..., C]."""
  inputs = 2 if get_activation(spec).kind == 'gated' else 1
  return _subject(ActivationLayer(spec), [shape] * inputs)


def norm(spec: str, shape: Sequence[int]) -> Subject:
  """The norm of a spec on an input N(0, 1) of a shape [B, ..., C].

  A condition is a vector [B, C] per example, or an array of that shape where the norm reads maps.
  """
  entry = get_norm(spec)
  of_condition = shape if entry.name in _MAPS else (shape[0], shape[-1])
  return _subject(entry.layer(), [shape, of_condition] if entry.condition else [shape])


def saved_bytes(subject: Subject) -> int:
  """Bytes of the distinct arrays that the backward pass reads, parameters left out."""
  def kept(parameters, inputs):
    forward = functools.partial(subject.function, s=jnp.float32(1))
    return jax.tree.leaves(jax.vjp(forward, parameters, inputs)[1])

  traced = jax.make_jaxpr(kept)(subject.parameters, subject.inputs).jaxpr
  own = set(traced.invars[:len(jax.tree.leaves(subject.parameters))])
  depends = _dependent(traced, [True] * len(traced.invars))
  arrays = {v for v, d in zip(traced.outvars, depends, strict=True) if d and v not in own}
  return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in arrays)


def costs(subjects: Mapping[str, Subject], reference: str,
          rounds: int = timing.ROUNDS) -> dict[str, Cost]:
  """The cost of each subject beside the one called `reference`, on the default device.

  Raises:
    KeyError: there is no such subject.
  """
  measured = timing.relative_cost(
      {name: _runner(subject) for name, subject in subjects.items()}, reference, rounds)
  return {
      name: Cost(*measured[name], saved_bytes(subject) / subject.inputs[0].size)
      for name, subject in subjects.items()}


def _dependent(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
  """Which outputs depend on those inputs that are marked; a mask's zeros, for one, do not."""
  marked = {v for v, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

  def marks(atoms) -> list[bool]:
    return [not isinstance(atom, core.Literal) and atom in marked for atom in atoms]

  for equation in jaxpr.eqns:
    of_inputs = marks(equation.invars)
    if equation.primitive.name in ('jit', 'pjit'):
      of_outputs = _dependent(equation.params['jaxpr'].jaxpr, of_inputs)
    else:
      of_outputs = [any(of_inputs)] * len(equation.outvars)
    marked |= {v for v, mark in zip(equation.outvars, of_outputs, strict=True) if mark}
  return marks(jaxpr.outvars)


def _subject(layer, shapes: Sequence[Sequence[int]]) -> Subject:
  keys = jax.random.split(jax.random.key(0), len(shapes))
  arrays = tuple(jax.random.normal(key, tuple(shape))
                 for key, shape in zip(keys, shapes, strict=True))
  noise = {'noise': jax.random.key(1)}

  def call(module, *inputs):
    if isinstance(module, ActivationLayer):
      return module(*inputs, train=True)
    return module(inputs[0], True, *inputs[1:])

  variables = dict(jax.jit(functools.partial(layer.init, method=call))(
      {'params': jax.random.key(2), **noise}, *arrays))
  parameters = variables.pop('params', {})

  def function(parameters, inputs, s):
    return layer.apply({'params': parameters, **variables}, *(s * x for x in inputs), method=call,
                       mutable=[*variables], rngs=noise)[0]

  return Subject(function, parameters, arrays)


def _runner(subject: Subject) -> Callable[[], float]:
  """run() -> seconds of one forward and backward pass; compiled here."""
  def both(parameters, inputs, s, cotangent):
    output, backward = jax.vjp(
        lambda parameters, inputs: subject.function(parameters, inputs, s), parameters, inputs)
    return output, backward(cotangent)

  s = jnp.float32(1)
  outputs = jax.eval_shape(subject.function, subject.parameters, subject.inputs, s)
  cotangents = jax.tree.map(
      lambda y: jax.random.normal(jax.random.key(3), y.shape, y.dtype), outputs)
  arguments = (subject.parameters, subject.inputs, s, cotangents)
  compiled = jax.jit(both).lower(*arguments).compile()

  def run() -> float:
    seconds = []
    for _ in range(CALLS):
      start = time.perf_counter()
      jax.block_until_ready(compiled(*arguments))
      seconds.append(time.perf_counter() - start)
    return min(seconds)

  return run
