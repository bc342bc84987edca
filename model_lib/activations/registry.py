"""The registry: every activation by name, with what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import sys
import types
from typing import Literal

import jax
import jax.numpy as jnp

from model_lib import spec as spec_lib
from model_lib.activations.moments import Moments, gaussian_moments
from model_lib.errors import UserError

Kind = Literal['pointwise', 'statistics', 'gated']
PER = ('layer', 'channel', 'unit')
Points = tuple[float, ...]


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
    spec: canonical spec string, without the settings that have their default value.
    formula: as text, in x (and in `gate`, `value` for kind 'gated').
    paper: who proposed it.
    kind: 'pointwise'; 'statistics' (an entry depends on others of the same array); 'gated'
      (two arrays in, one out).
    parameters: the learnable numbers.
    constants: the fixed numbers and options, settable in the spec string.
    kinks: where f' or f is discontinuous, at the parameters' first values.
    jumps: where f is discontinuous; also among the kinks.
    duplicates: registry names of the same function at the parameters' first values.
    function: the plain function; computes in the dtype it is given.
    scalar: the pointwise function that `moments` integrates: f itself; the gate function of a
      gated one; f under the population statistics (mean 0, variance 1) of a statistics one.
  """

  name: str
  source: str
  spec: str
  formula: str
  paper: str
  kind: Kind
  parameters: tuple[Parameter, ...]
  constants: Mapping[str, float | bool | str]
  kinks: Points
  jumps: Points
  duplicates: tuple[str, ...]
  function: Callable[..., jax.Array]
  scalar: Callable[..., jax.Array]

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

  def __call__(self, *inputs: jax.Array, **params: jax.Array | float) -> jax.Array:
    """Applies the function; computes in at least float32 and returns the inputs' dtype.

    Args:
      *inputs: x of any shape; for kind 'gated' the gate, then the value, of one shape.
      **params: values of learnable parameters, shaped as `init_parameters` makes them; a
        missing one has its first value.

    Returns:
      An array of the inputs' shape and dtype (float32 for integers).

    Raises:
      TypeError: a wrong number of inputs, or a parameter that does not exist.
      ValueError: a parameter with more axes than the input.
    """
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

  def moments(self) -> Moments:
    """Moments under x ~ N(0, 1) with the parameters at their first values; cached."""
    return _moments(self)

  def _broadcast(self, name: str, value: jax.Array | float, ndim: int, dtype) -> jax.Array:
    array = jnp.asarray(value).astype(dtype)
    if array.ndim > ndim:
      raise ValueError(
          f'{self.spec}: parameter {name!r} of shape {array.shape} against an input of {ndim} axes')
    # Written out because the tests forbid broadcasting across ranks; a scalar needs nothing.
    return array.reshape((1,) * (ndim - array.ndim) + array.shape) if array.ndim else array


@functools.lru_cache(maxsize=None)
def _moments(activation: Activation) -> Moments:
  params = {parameter.name: parameter.init for parameter in activation.parameters}
  return gaussian_moments(
      lambda x: activation.scalar(x, **params, **activation.constants),
      activation.kinks, activation.jumps)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """What `register` was told; settings of a spec string turn it into an `Activation`."""

  name: str
  source: str
  formula: str
  paper: str
  kind: Kind
  function: Callable[..., jax.Array]
  scalar: Callable[..., jax.Array]
  learnable: Mapping[str, float]
  constants: Mapping[str, float | bool | str]
  kinks: Callable[..., Points]
  jumps: Callable[..., Points]
  duplicates: tuple[str, ...]
  positive: tuple[str, ...]
  choices: Mapping[str, tuple[str, ...]]


_ENTRIES: dict[str, _Entry] = {}
_ALIASES: dict[str, str] = {}


def register(
    *,
    source: str,
    kind: Kind = 'pointwise',
    learnable: tuple[str, ...] = (),
    kinks: Points | Callable[..., Points] = (),
    jumps: Points | Callable[..., Points] = (),
    duplicates: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    choices: Mapping[str, tuple[str, ...]] = types.MappingProxyType({}),
    scalar: Callable[..., jax.Array] | None = None,
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
  """Decorator that enters a function under its own name and returns it unchanged.

  The first paragraph of the function's docstring is the formula, the second is the paper. Its
  arguments with a default are the settings.

  Args:
    source: where the formula was confirmed.
    kind: see `Activation`.
    learnable: the settings that are learnable parameters; the others are constants.
    kinks: points, or a function from all settings (by name) to points.
    jumps: the same; every jump must also be a kink.
    duplicates: names of the same function.
    aliases: other names for this entry.
    positive: the settings that must be above 0.
    choices: allowed values of the settings that are words.
    scalar: the function to take moments of, where it is not the function itself.

  Raises:
    ValueError: the name or an alias is taken.
  """
  def enter(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    name = function.__name__.rstrip('_')
    settings = {key: parameter.default
                for key, parameter in inspect.signature(function).parameters.items()
                if parameter.default is not inspect.Parameter.empty}
    lines = (inspect.getdoc(function) or '').split('\n\n')
    for taken in (name, *aliases):
      if taken in _ENTRIES or taken in _ALIASES:
        raise ValueError(f'the activation {taken!r} is registered twice')
    _ENTRIES[name] = _Entry(
        name=name, source=source, kind=kind, function=function, scalar=scalar or function,
        formula=' '.join(lines[0].split()).rstrip('.'),
        paper=' '.join(lines[1].split()).rstrip('.') if len(lines) > 1 else '',
        learnable={key: settings[key] for key in learnable},
        constants={key: value for key, value in settings.items() if key not in learnable},
        kinks=_points(kinks), jumps=_points(jumps),
        duplicates=duplicates, positive=positive, choices=choices)
    _ALIASES.update({alias: name for alias in aliases})
    return function
  return enter


def _points(points: Points | Callable[..., Points]) -> Callable[..., Points]:
  return points if callable(points) else lambda **_: points


def names() -> tuple[str, ...]:
  """All registered names in alphabetical order; each is a valid spec. Aliases are not listed."""
  return tuple(sorted(_ENTRIES))


def aliases() -> Mapping[str, str]:
  """Other accepted names and the registered name that each stands for."""
  return types.MappingProxyType(_ALIASES)


def get_activation(spec: str) -> Activation:
  """Looks an activation up.

  Args:
    spec: a name, an alias or name@source, with optional settings: 'gelu', 'celu(alpha=2)',
      'crrelu(epsilon=0.02, per=channel)'; or 'glu_of(NAME)', the gated linear unit of any
      pointwise activation.

  Returns:
    The activation.

  Raises:
    UserError: the spec cannot be read, the name is unknown, or a setting is not allowed; the
      line names the nearest entries.
  """
  # The cache key is text: a Call with 1 would be taken for the same Call with True.
  return _build(str(spec_lib.parse(spec)))


@functools.lru_cache(maxsize=None)
def _build(text: str) -> Activation:
  call = spec_lib.parse(text)
  name, _, source = call.name.partition('@')
  if name == 'glu_of':
    return _glu_of(call)
  entry = _ENTRIES.get(_ALIASES.get(name, name))
  if entry is None:
    known = [*_ENTRIES, *_ALIASES, 'glu_of']
    raise UserError(f'unknown activation {name!r}{spec_lib.nearest(name, known)}')
  if source and source != entry.source:
    raise UserError(f'unknown activation {call.name!r}; the one here is '
                    f'\'{entry.name}@{entry.source}\'')
  if call.args:
    raise UserError(f'activation {entry.name!r}: settings are given by name, as in '
                    f'\'{entry.name}(KEY=VALUE)\'; it has {_keys(entry)}')
  defaults = {**entry.learnable, **entry.constants, **({'per': 'layer'} if entry.learnable else {})}
  given = {key: _check(entry, defaults, key, value) for key, value in call.kwargs}
  settings = {**defaults, **given}
  per = settings.pop('per', None)
  changed = tuple((key, value) for key, value in sorted(given.items()) if value != defaults[key])
  return Activation(
      name=entry.name, source=entry.source, spec=str(spec_lib.Call(entry.name, (), changed)),
      formula=entry.formula, paper=entry.paper, kind=entry.kind,
      parameters=tuple(Parameter(key, settings[key], per) for key in entry.learnable),
      constants=types.MappingProxyType({key: settings[key] for key in entry.constants}),
      kinks=entry.kinks(**settings), jumps=entry.jumps(**settings),
      # Another value of a setting is another function, which nobody has compared.
      duplicates=() if any(key != 'per' for key, _ in changed) else entry.duplicates,
      function=entry.function, scalar=entry.scalar)


def _glu_of(call: spec_lib.Call) -> Activation:
  if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], (str, spec_lib.Call)):
    raise UserError('glu_of takes one pointwise activation, as in \'glu_of(mish)\'')
  inner = call.args[0]
  gate = _build(str(inner))
  if gate.kind != 'pointwise':
    raise UserError(f'glu_of takes one pointwise activation, and {gate.spec!r} is {gate.kind}')
  return Activation(
      name='glu_of', source='shazeer2020', spec=f'glu_of({gate.spec})',
      formula=f'g(gate) * value, g(x) = {gate.formula}',
      paper='Shazeer 2020, arXiv 2002.05202', kind='gated', parameters=gate.parameters,
      constants=gate.constants, kinks=gate.kinks, jumps=gate.jumps,
      duplicates=tuple(other for other, entry in sorted(_ENTRIES.items())
                       if entry.kind == 'gated' and entry.scalar is gate.function
                       and gate.spec == gate.name),
      function=lambda gate_x, value, **settings: gate.function(gate_x, **settings) * value,
      scalar=gate.function)


def _keys(entry: _Entry) -> str:
  keys = [*entry.learnable, *entry.constants, *(['per'] if entry.learnable else [])]
  return ', '.join(repr(key) for key in keys) or 'no settings'


def _check(entry: _Entry, defaults: Mapping[str, object], key: str, value: object) -> object:
  """The value of one setting in its own type, or one line that says what is allowed."""
  where = f'activation {entry.name!r}: '
  if key not in defaults:
    raise UserError(f'{where}no setting {key!r}; it has {_keys(entry)}'
                    f'{spec_lib.nearest(key, defaults)}')
  choices = PER if key == 'per' else entry.choices.get(key)
  if choices:
    if value not in choices:
      raise UserError(f'{where}{key} must be one of {", ".join(choices)}, not {value}')
    return value
  if isinstance(defaults[key], bool):
    if not isinstance(value, bool):
      raise UserError(f'{where}{key} must be True or False, not {value}')
    return value
  if (isinstance(value, bool) or not isinstance(value, (int, float))
      or not abs(value) <= sys.float_info.max):
    raise UserError(f'{where}{key} must be a finite number, not {value}')
  if key in entry.positive and value <= 0:
    raise UserError(f'{where}{key} must be above 0, not {value}')
  return float(value)
