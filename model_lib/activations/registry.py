"""The registry: every activation by name, and the spec strings that make one of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import types

import jax

from model_lib import spec as spec_lib
from model_lib.activations.activation import (
    Activation,
    Interval,
    Kind,
    Monotone,
    Parameter,
    Parity,
    Points,
)
from model_lib.activations.moments import ClosedForm, Moments
from model_lib.activations.settings import PER, POSITIVE, Bounds, checked, listed
from model_lib.errors import UserError

DOMAIN = (-1e4, 1e4)


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
  closed_form: Callable[..., ClosedForm] | None
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
    closed_form: Callable[..., ClosedForm] | None = None,
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
    closed_form: a function from all settings to the moments and spectrum of a function whose slope
      has a pole, at which quadrature does not converge.
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
        scalar=scalar or _scalar(kind, function), population=population,
        closed_form=closed_form, confirmed=confirmed,
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
  per = {'per': 'layer'} if entry.learnable else {}
  defaults = {**entry.learnable, **entry.constants, **per}
  if call.args:
    raise UserError(f'activation {entry.key!r}: settings are given by name, as in '
                    f'\'{entry.key}(KEY=VALUE)\'; it has {listed(defaults)}')
  choices = {**entry.choices, 'per': PER}
  given = {key: checked(f'activation {entry.key!r}: ', defaults, entry.bounds, choices, key, value)
           for key, value in call.kwargs}
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
      population=entry.population and functools.partial(entry.population, **settings),
      closed_form=entry.closed_form and entry.closed_form(**settings))


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
      scalar=gate.function, population=None, closed_form=gate.closed_form)
