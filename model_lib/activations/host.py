"""Evaluates a function with NumPy instead of XLA: no compiler, no device.

JAX compiles every operation before the first value exists. Moments, spectra and fingerprints need
one evaluation of many functions, so they trace the function, which costs milliseconds, and carry
its primitives out in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
from scipy import special

# What a primitive does to arrays; its static parameters are given by name.
_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    'abs': np.abs, 'acos': np.arccos, 'acosh': np.arccosh, 'add': np.add, 'add_any': np.add,
    'and': np.bitwise_and, 'asin': np.arcsin, 'asinh': np.arcsinh, 'atan': np.arctan,
    'atan2': np.arctan2, 'atanh': np.arctanh, 'bessel_i0e': special.i0e,
    'bessel_i1e': special.i1e, 'cbrt': np.cbrt, 'ceil': np.ceil,
    'copy': np.asarray, 'cos': np.cos, 'cosh': np.cosh, 'div': np.divide, 'eq': np.equal,
    'erf': special.erf, 'erf_inv': special.erfinv, 'erfc': special.erfc, 'exp': np.exp,
    'exp2': np.exp2, 'expm1': np.expm1, 'floor': np.floor, 'ge': np.greater_equal,
    'gt': np.greater, 'is_finite': np.isfinite, 'le': np.less_equal, 'lgamma': special.gammaln,
    'log': np.log, 'log1p': np.log1p, 'logistic': special.expit, 'lt': np.less,
    'max': np.maximum, 'min': np.minimum, 'mul': np.multiply, 'ne': np.not_equal,
    'neg': np.negative, 'not': np.invert, 'one_minus_square': lambda x: (1 + x) * (1 - x),
    'or': np.bitwise_or, 'pow': np.power,
    'rem': np.fmod, 'rsqrt': lambda x: 1 / np.sqrt(x), 'sign': np.sign, 'sin': np.sin,
    'sinh': np.sinh, 'sqrt': np.sqrt, 'square': np.square, 'stop_gradient': np.asarray,
    'sub': np.subtract, 'tan': np.tan, 'tanh': np.tanh, 'xor': np.bitwise_xor,
    'clamp': lambda low, x, high: np.minimum(np.maximum(x, low), high),
    'select_n': lambda which, *cases: np.where(which, *cases[::-1]),
}
_STRUCTURAL: dict[str, Callable[..., np.ndarray]] = {
    'argmax': lambda x, axes, index_dtype: np.argmax(x, axes[0]).astype(index_dtype),
    'broadcast_in_dim': lambda x, shape, broadcast_dimensions, **_: np.broadcast_to(
        np.reshape(x, [np.shape(x)[broadcast_dimensions.index(axis)]
                       if axis in broadcast_dimensions else 1 for axis in range(len(shape))]),
        shape),
    'concatenate': lambda *xs, dimension: np.concatenate(xs, dimension),
    'convert_element_type': lambda x, new_dtype, **_: np.asarray(x).astype(new_dtype),
    'integer_pow': lambda x, y: x**float(y) if y < 0 else x**y,
    'iota': lambda dtype, shape, dimension, **_: np.broadcast_to(
        np.arange(shape[dimension], dtype=dtype).reshape(
            [-1 if axis == dimension else 1 for axis in range(len(shape))]), shape),
    'reduce_max': lambda x, axes, **_: np.max(x, tuple(axes)),
    'reduce_min': lambda x, axes, **_: np.min(x, tuple(axes)),
    'reduce_sum': lambda x, axes, **_: np.sum(x, tuple(axes)),
    'reshape': lambda x, new_sizes, **_: np.reshape(x, new_sizes),
    'slice': lambda x, start_indices, limit_indices, strides: np.asarray(x)[tuple(
        slice(*bounds) for bounds in zip(
            start_indices, limit_indices, strides or (1,) * len(start_indices), strict=True))],
    'stack': lambda *xs, axis: np.stack(xs, axis),
    'squeeze': lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    'transpose': lambda x, permutation: np.transpose(x, permutation),
}
_KNOWN = _ELEMENTWISE.keys() | _STRUCTURAL.keys()


def evaluate(
    function: Callable[..., jax.Array], *inputs: np.ndarray, x64: bool = True,
) -> np.ndarray:
  """function(*inputs), in the inputs' precision; see `trace`."""
  return trace(function, *inputs, x64=x64)(*inputs)


def trace(
    function: Callable[..., jax.Array], *inputs: np.ndarray, x64: bool = True,
) -> Callable[..., np.ndarray]:
  """The function in NumPy, for inputs of these shapes and dtypes.

  The process's configuration stays as it is, and calling this under a trace is allowed.

  Args:
    function: maps arrays of the inputs' shapes to one array.
    *inputs: arrays; their values are not used.
    x64: whether float64 exists inside the function.

  Returns:
    A function of arrays. If `function` has a primitive that is not in this file's tables, XLA
    evaluates it on the CPU, which takes longer and agrees up to rounding.
  """
  with jax.enable_x64(x64):
    closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs))

  def in_numpy(*arrays: np.ndarray) -> np.ndarray:
    with np.errstate(all='ignore'):
      return np.asarray(_run(closed.jaxpr, closed.consts, arrays)[0])

  def in_xla(*arrays: np.ndarray) -> np.ndarray:
    with (jax.enable_x64(x64), jax.ensure_compile_time_eval(), jax.default_device(_cpu())):
      return np.asarray(jax.jit(function)(*map(jnp.asarray, arrays)))

  return in_xla if unknown_primitives(closed.jaxpr) else in_numpy


def unknown_primitives(jaxpr: core.Jaxpr) -> set[str]:
  """Names of the primitives of a traced function that NumPy cannot carry out here."""
  found = set()
  for equation in jaxpr.eqns:
    inner = _inner(equation)
    if inner is not None:
      found |= unknown_primitives(inner.jaxpr)
    elif equation.primitive.name not in _KNOWN:
      found.add(equation.primitive.name)
  return found


def _inner(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The function that a call primitive calls."""
  key = {'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr', 'remat2': 'jaxpr',
         'checkpoint': 'jaxpr', 'custom_jvp_call': 'call_jaxpr',
         'custom_vjp_call': 'call_jaxpr',
         'custom_vjp_call_jaxpr': 'fun_jaxpr'}.get(equation.primitive.name)
  inner = equation.params.get(key)
  return core.ClosedJaxpr(inner, ()) if isinstance(inner, core.Jaxpr) else inner


def _run(
    jaxpr: core.Jaxpr, consts: Sequence[jax.Array], inputs: Sequence[np.ndarray],
) -> list[np.ndarray]:
  """The values of a traced function."""
  known = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
  known.update(zip(jaxpr.invars, inputs, strict=True))

  def read(atoms) -> Iterator[np.ndarray]:
    for atom in atoms:
      yield np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, core.Literal) else known[atom]

  for equation in jaxpr.eqns:
    name = equation.primitive.name
    arguments = read(equation.invars)
    inner = _inner(equation)
    if inner is not None:
      results = _run(inner.jaxpr, inner.consts, tuple(arguments))
    elif name in _ELEMENTWISE:
      results = [_ELEMENTWISE[name](*arguments)]
    else:
      results = [_STRUCTURAL[name](*arguments, **equation.params)]
    known.update(zip(equation.outvars, results, strict=True))
  return list(read(jaxpr.outvars))


def _cpu() -> jax.Device | None:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves the CPU out: the default device computes
    return None
