"""An activation function with what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import typing
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations.moments import (
    ClosedForm,
    Moments,
    gaussian_moments,
    hermite_coefficients,
)
from model_lib.activations.settings import Bounds
from model_lib.errors import UserError

Kind = Literal['pointwise', 'statistics', 'gated', 'stochastic', 'resizing', 'module']
KINDS = typing.get_args(Kind)
Points = tuple[float, ...]
Interval = tuple[float, float]
Monotone = Literal['', 'increasing', 'decreasing']
Parity = Literal['', 'odd', 'even']


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A learnable number: its name, first value, and how many a layer has.

  `per` is 'layer' (one), 'channel' (one per entry of the last axis) or 'unit' (one per
  position in the shape without the batch axis).
  """

  name: str
  init: float
  per: Literal['layer', 'channel', 'unit']


@dataclasses.dataclass(frozen=True, eq=False)
class Activation:
  """An activation function and the facts about it; equal when the canonical specs are equal.

  Attributes:
    name: the registry's name.
    source: where the formula was taken from; `name@source` is the id.
    spec: canonical spec string, without the settings that have their default value. Where two
      functions have one name, those that do not own it are called name@source.
    formula: as text, in x (and in `gate`, `value` for kind 'gated').
    paper: who proposed it.
    kind: 'pointwise'; 'statistics' (an entry depends on others of the same array); 'gated'
      (two arrays in, one out); 'stochastic' (pointwise, with random numbers in training);
      'resizing' (the last axis changes its size); 'module' (weights of its own, which
      `models.ActivationLayer` makes: calling it here is an error).
    parameters: the learnable numbers.
    constants: the fixed numbers and options, settable in the spec string.
    bounds: what the settings are limited to; a missing one takes any finite number.
    kinks: where f' or f is discontinuous, at the parameters' first values.
    jumps: where f is discontinuous; also among the kinks.
    duplicates: registry names of the same function at the parameters' first values.
    monotone: 'increasing' or 'decreasing', not strictly; '' where it is neither.
    parity: 'odd' or 'even'; '' where it is neither.
    domain: the interval in which the value and the first derivative are never nan, and are finite
      in float32 wherever the true ones are below 3e38.
    overflow: whether the true value leaves float32 inside the domain.
    causal: whether an entry depends on entries of its own position (its last axis) alone.
    width_factor: size of the last axis of the output over that of the input.
    confirmed: whether the formula was found in a source; else it is from memory.
    function: the plain function; computes in the dtype it is given.
    scalar: the pointwise function that `moments` integrates: f itself; the gate function of a
      gated one; f under the population statistics (mean 0, variance 1) of a statistics one; the
      inference form of a stochastic one. None where there is none.
    population: the moments at q = 1 where they are not those of a pointwise function, or None.
    closed_form: the moments and the spectrum of a `scalar` for which quadrature does not converge,
      because its slope has a pole, or None.
  """

  name: str
  source: str
  spec: str
  formula: str
  paper: str
  kind: Kind
  parameters: tuple[Parameter, ...]
  constants: Mapping[str, float | bool | str]
  bounds: Mapping[str, Bounds]
  kinks: Points
  jumps: Points
  duplicates: tuple[str, ...]
  monotone: Monotone
  parity: Parity
  domain: Interval
  overflow: bool
  causal: bool
  width_factor: float
  confirmed: bool
  function: Callable[..., jax.Array]
  scalar: Callable[..., jax.Array] | None
  population: Callable[[], Moments] | None
  closed_form: ClosedForm | None

  @property
  def id(self) -> str:
    """name@source; the same name means different functions in different libraries."""
    return f'{self.name}@{self.source}'

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Activation) and self.spec == other.spec

  def __hash__(self) -> int:
    return hash(self.spec)

  def __str__(self) -> str:
    return self.spec

  def __call__(
      self, *inputs: jax.Array, key: jax.Array | None = None, train: bool = False,
      **params: jax.Array | float,
  ) -> jax.Array:
    """Applies the function; computes in at least float32 and returns the inputs' dtype.

    Args:
      *inputs: x of any shape; for kind 'gated' the gate, then the value, of one shape.
      key: the random key of a stochastic function in training; the others do not read it.
      train: whether a stochastic function draws; the others do not read it.
      **params: values of learnable parameters, shaped as `init_parameters` makes them; a
        missing one has its first value.

    Returns:
      An array of the inputs' dtype (float32 for integers) and shape, but for the last axis of a
      resizing function.

    Raises:
      TypeError: a wrong number of inputs, a parameter that does not exist, a draw without a key,
        or an activation with weights of its own.
      ValueError: a parameter with more axes than the input.
    """
    if self.kind == 'module':
      raise TypeError(f'{self.spec} has weights of its own: use models.ActivationLayer')
    wanted = 2 if self.kind == 'gated' else 1
    if len(inputs) != wanted:
      raise TypeError(f'{self.spec} takes {wanted} array(s), not {len(inputs)}')
    known = {parameter.name: parameter.init for parameter in self.parameters}
    unknown = sorted(set(params) - set(known))
    if unknown:
      raise TypeError(f'{self.spec} has no parameter {unknown[0]!r}; it has: {sorted(known)}')
    arrays = [jnp.asarray(array) for array in inputs]
    dtype = jnp.result_type(*arrays)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    wide = jnp.promote_types(dtype, jnp.float32)
    arrays = [array.astype(wide) for array in arrays]
    values = {name: self._broadcast(name, params[name], arrays[0].ndim, wide) if name in params
              else init for name, init in known.items()}
    if self.kind == 'stochastic':
      if train and key is None:
        raise TypeError(f'{self.spec} draws random numbers in training: give it key=')
      arrays.append(key if train else None)
    return self.function(*arrays, **values, **self.constants).astype(dtype)

  def init_parameters(self, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """First values of the parameters, float32.

    Args:
      shape: of the input, batch axis first.

    Returns:
      Per name an array of shape () for per='layer', (shape[-1],) for 'channel', shape[1:] for
      'unit'.
    """
    shapes = {'layer': (), 'channel': tuple(shape[-1:]), 'unit': tuple(shape[1:])}
    return {p.name: jnp.full(shapes[p.per], p.init, jnp.float32) for p in self.parameters}

  def moments(self, q: float = 1.0) -> Moments:
    """Moments under x ~ N(0, q) with the parameters at their first values; cached.

    Raises:
      UserError: the function has none, or only at q = 1.
    """
    return cached_moments(self, float(q))

  def spectrum(self, q: float = 1.0, degree: int = 64) -> np.ndarray:
    """Hermite coefficients [degree + 1] of `scalar` under x ~ N(0, q); see `moments.py`.

    Raises:
      ValueError: q is not above 0, or the degree is not from 0 to 1,000.
    """
    if self.closed_form is not None:
      return self.closed_form.spectrum(q, degree)
    return hermite_coefficients(self.at_first_values(), self.kinks, self.jumps, q, degree)

  def at_first_values(self) -> Callable[[jax.Array], jax.Array]:
    """`scalar` as a function of x alone, the parameters at their first values."""
    if self.scalar is None:
      raise UserError(f'activation {self.spec!r} has no moments under independent normal inputs, '
                      'because no entry is a function of one number; '
                      'in a model, init_gain=False does without them')
    params = {parameter.name: parameter.init for parameter in self.parameters}
    return lambda x: self.scalar(x, **params, **self.constants)

  def _broadcast(self, name: str, value: jax.Array | float, ndim: int, dtype) -> jax.Array:
    array = jnp.asarray(value).astype(dtype)
    if array.ndim > ndim:
      raise ValueError(
          f'{self.spec}: parameter {name!r} of shape {array.shape} against an input of {ndim} axes')
    # Written out because the tests forbid broadcasting across ranks; a scalar needs nothing.
    return array.reshape((1,) * (ndim - array.ndim) + array.shape) if array.ndim else array


@functools.lru_cache(maxsize=None)
def cached_moments(activation: Activation, q: float) -> Moments:
  if activation.population is not None:
    if q != 1:
      raise UserError(f'the moments of {activation.spec!r} are known for variance 1, not {q:g}')
    return activation.population()
  if activation.closed_form is not None:
    return activation.closed_form.moments(q)
  return gaussian_moments(activation.at_first_values(), activation.kinks, activation.jumps, q)
