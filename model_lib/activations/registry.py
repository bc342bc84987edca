"""The registry: every activation by name, with what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import math
import sys
import types
import typing
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from model_lib import spec as spec_lib
from model_lib.activations.moments import Moments, gaussian_moments, hermite_coefficients
from model_lib.errors import UserError

Kind = Literal['pointwise', 'statistics', 'gated', 'stochastic', 'resizing', 'module']
KINDS = typing.get_args(Kind)
PER = ('layer', 'channel', 'unit')
Points = tuple[float, ...]
Interval = tuple[float, float]
Monotone = Literal['', 'increasing', 'decreasing']
Parity = Literal['', 'odd', 'even']
DOMAIN = (-1e4, 1e4)


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The allowed values of a setting; `str` says them as in "x must be above 0 and at most 1"."""

  low: float = -math.inf
  high: float = math.inf
  low_open: bool = False
  high_open: bool = False

  def __contains__(self, value: float) -> bool:
    return ((value > self.low if self.low_open else value >= self.low)
            and (value < self.high if self.high_open else value <= self.high))

  def __str__(self) -> str:
    sides = []
    if self.low > -math.inf:
      sides.append(f'{"above" if self.low_open else "at least"} {self.low:g}')
    if self.high < math.inf:
      sides.append(f'{"below" if self.high_open else "at most"} {self.high:g}')
    return ' and '.join(sides)


POSITIVE = Bounds(0, low_open=True)
_ANY = Bounds()


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
    return _moments(self, float(q))

  def spectrum(self, q: float = 1.0, degree: int = 64) -> np.ndarray:
    """Hermite coefficients [degree + 1] of `scalar` under x ~ N(0, q); see `moments.py`."""
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
def _moments(activation: Activation, q: float) -> Moments:
  if activation.population is not None:
    if q != 1:
      raise UserError(f'the moments of {activation.spec!r} are known for variance 1, not {q:g}')
    return activation.population()
  return gaussian_moments(activation.at_first_values(), activation.kinks, activation.jumps, q)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """What `register` was told; settings of a spec string turn it into an `Activation`."""

  key: str  # the name, or name@source
  name: str
  source: str
  formula: str
  paper: str
  kind: Kind
  function: Callable[..., jax.Array]
  scalar: Callable[..., jax.Array] | None
  population: Callable[..., Moments] | None
  learnable: Mapping[str, float]
  constants: Mapping[str, float | bool | str]
  kinks: Callable[..., Points]
  jumps: Callable[..., Points]
  monotone: Callable[..., Monotone]
  parity: Callable[..., Parity]
  domain: Callable[..., Interval]
  overflow: Callable[..., bool]
  causal: Callable[..., bool]
  width_factor: Callable[..., float]
  confirmed: bool
  duplicates: tuple[str, ...]
  bounds: Mapping[str, Bounds]
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
    monotone: Monotone | Callable[..., Monotone] = '',
    parity: Parity | Callable[..., Parity] = '',
    domain: Interval | Callable[..., Interval] = DOMAIN,
    overflow: bool | Callable[..., bool] = False,
    duplicates: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    bounds: Mapping[str, Bounds] = types.MappingProxyType({}),
    choices: Mapping[str, tuple[str, ...]] = types.MappingProxyType({}),
    scalar: Callable[..., jax.Array] | None = None,
    population: Callable[..., Moments] | None = None,
    causal: bool | Callable[..., bool] = True,
    width_factor: float | Callable[..., float] = 1.0,
    confirmed: bool = True,
    namesake_of: str | None = None,
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
    monotone: see `Activation`; it, and the next three, may be a function from all settings. A
      fixed value must hold for every allowed setting.
    parity: see `Activation`.
    domain: see `Activation`.
    overflow: see `Activation`.
    duplicates: names of the same function.
    aliases: other names for this entry; one may be NAME@SOURCE.
    positive: the settings that must be above 0.
    bounds: what the other settings are limited to.
    choices: allowed values of the settings that are words.
    scalar: the function to take moments of, where it is not the function itself; a stochastic
      one has its inference form, and the kinds whose entries are not functions of one number have
      none, unless it is given here.
    population: a function from all settings to the moments at q = 1, in place of `scalar`.
    causal: see `Activation`; it, and the next, may be a function from all settings.
    width_factor: see `Activation`.
    confirmed: see `Activation`.
    namesake_of: the name that the function has in its source, where another function owns that
      name here or nobody does: the entry is then called NAME@SOURCE and nothing else.

  Raises:
    ValueError: the name or an alias is taken.
  """
  def enter(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    key = f'{namesake_of}@{source}' if namesake_of else function.__name__.rstrip('_')
    settings = {key: parameter.default
                for key, parameter in inspect.signature(function).parameters.items()
                if parameter.default is not inspect.Parameter.empty}
    lines = (inspect.getdoc(function) or '').split('\n\n')
    for taken in (key, *aliases):
      if taken in _ENTRIES or taken in _ALIASES:
        raise ValueError(f'the activation {taken!r} is registered twice')
    _ENTRIES[key] = _Entry(
        key=key, name=namesake_of or key, source=source, kind=kind, function=function,
        scalar=scalar or _scalar(kind, function), population=population, confirmed=confirmed,
        causal=_of_settings(causal), width_factor=_of_settings(width_factor),
        formula=' '.join(lines[0].split()).rstrip('.'),
        paper=' '.join(lines[1].split()).rstrip('.') if len(lines) > 1 else '',
        learnable={key: settings[key] for key in learnable},
        constants={key: value for key, value in settings.items() if key not in learnable},
        kinks=_of_settings(kinks), jumps=_of_settings(jumps), monotone=_of_settings(monotone),
        parity=_of_settings(parity), domain=_of_settings(domain), overflow=_of_settings(overflow),
        duplicates=duplicates, bounds={**dict.fromkeys(positive, POSITIVE), **bounds},
        choices=choices)
    _ALIASES.update({alias: key for alias in aliases})
    return function
  return enter


def _scalar(kind: Kind, function: Callable[..., jax.Array]) -> Callable[..., jax.Array] | None:
  if kind == 'stochastic':
    return lambda x, **settings: function(x, None, **settings)
  return function if kind == 'pointwise' else None


def _of_settings(fact):
  return fact if callable(fact) else lambda **_: fact


def names() -> tuple[str, ...]:
  """All registered names in alphabetical order; each is a valid spec. Aliases are not listed."""
  return tuple(sorted(_ENTRIES))


def aliases() -> Mapping[str, str]:
  """Other accepted names and the registered name that each stands for."""
  return types.MappingProxyType(_ALIASES)


def get_activation(spec: str) -> Activation:
  """Looks an activation up.

  Where several functions have one name in the literature, the name alone means the one that is
  registered under it (telu is TanhExp, srelu the S-shaped one), and where no use is the settled
  one (msilu) the source is required. Each is reachable as name@source.

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
  if call.name == 'glu_of':
    return _glu_of(call)
  entry = _find(call.name)
  if call.args:
    raise UserError(f'activation {entry.key!r}: settings are given by name, as in '
                    f'\'{entry.key}(KEY=VALUE)\'; it has {_keys(entry)}')
  defaults = {**entry.learnable, **entry.constants, **({'per': 'layer'} if entry.learnable else {})}
  given = {key: _check(entry, defaults, key, value) for key, value in call.kwargs}
  settings = {**defaults, **given}
  per = settings.pop('per', None)
  changed = tuple((key, value) for key, value in sorted(given.items()) if value != defaults[key])
  return Activation(
      name=entry.name, source=entry.source, spec=str(spec_lib.Call(entry.key, (), changed)),
      formula=entry.formula, paper=entry.paper, kind=entry.kind,
      parameters=tuple(Parameter(key, settings[key], per) for key in entry.learnable),
      constants=types.MappingProxyType({key: settings[key] for key in entry.constants}),
      bounds=types.MappingProxyType(entry.bounds),
      kinks=entry.kinks(**settings), jumps=entry.jumps(**settings),
      monotone=entry.monotone(**settings), parity=entry.parity(**settings),
      domain=entry.domain(**settings), overflow=entry.overflow(**settings),
      # Another value of a setting is another function, which nobody has compared.
      duplicates=() if any(key != 'per' for key, _ in changed) else entry.duplicates,
      causal=entry.causal(**settings), width_factor=entry.width_factor(**settings),
      confirmed=entry.confirmed, function=entry.function, scalar=entry.scalar,
      population=entry.population and functools.partial(entry.population, **settings))


def _find(text: str) -> _Entry:
  """The entry of a name, an alias or name@source.

  A name alone means the function that owns it; where nobody does, the source is required.
  """
  name, _, source = text.partition('@')
  for key in (text, name):
    entry = _ENTRIES.get(_ALIASES.get(key, key))
    if entry and (key == text or source == entry.source):
      return entry
  ids = [key for key in (*_ENTRIES, *_ALIASES) if key.startswith(f'{name}@')]
  if entry:
    ids.append(f'{entry.key}@{entry.source}')
  if ids and not source:
    raise UserError(f'activation {name!r} has a different formula in each source: '
                    f'write {" or ".join(sorted(ids))}')
  if ids:
    known = ', '.join(repr(key) for key in sorted(ids))
    raise UserError(f'unknown activation {text!r}; those of that name here: {known}')
  known = [*_ENTRIES, *_ALIASES, 'glu_of']
  raise UserError(f'unknown activation {name!r}{spec_lib.nearest(name, known)}')


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
      constants=gate.constants, bounds=gate.bounds, kinks=gate.kinks, jumps=gate.jumps,
      monotone='', parity='',
      domain=gate.domain, overflow=gate.overflow,
      duplicates=tuple(other for other, entry in sorted(_ENTRIES.items())
                       if entry.kind == 'gated' and entry.scalar is gate.function
                       and gate.spec == gate.name),
      causal=True, width_factor=1.0, confirmed=gate.confirmed,
      function=lambda gate_x, value, **settings: gate.function(gate_x, **settings) * value,
      scalar=gate.function, population=None)


def _keys(entry: _Entry) -> str:
  keys = [*entry.learnable, *entry.constants, *(['per'] if entry.learnable else [])]
  return ', '.join(repr(key) for key in keys) or 'no settings'


def _check(entry: _Entry, defaults: Mapping[str, object], key: str, value: object) -> object:
  """The value of one setting in its own type, or one line that says what is allowed."""
  where = f'activation {entry.key!r}: '
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
  if isinstance(defaults[key], int) and value != int(value):
    raise UserError(f'{where}{key} must be a whole number, not {value}')
  if value not in entry.bounds.get(key, _ANY):
    raise UserError(f'{where}{key} must be {entry.bounds[key]}, not {value}')
  return type(defaults[key])(value)
