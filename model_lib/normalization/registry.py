"""The normalizations by name: what each computes and which conventions it follows.

`get_norm('rms(eps=1e-6)')` gives a frozen `Norm`; `norm.layer(name='norm')` gives the
Linen layer, called as `layer(x, train)`. `batch(preset=keras)` takes the conventions of a
framework, where they are known; an option beside it overrides. The rows are in `rows`; reading
this table does not import jax.
"""

from __future__ import annotations

import dataclasses
import math
import re

from model_lib import spec as spec_lib
from model_lib.errors import UserError
from model_lib.normalization.entry import Norm, NormParameter
from model_lib.normalization.rows import ROWS

__all__ = ['ALIASES', 'Norm', 'NormParameter', 'get_norm', 'names']

ALIASES = {'ln': 'layer', 'bn': 'batch', 'gn': 'group'}

_NORMS = {norm.name: norm for norm in ROWS}

_POSITIVE = (lambda v: v > 0, 'a number > 0')
_COUNT = (lambda v: v >= 1, 'an integer >= 1')
_NUMBER = (lambda v: True, 'a number')


def _one_of(*choices: str):
  return lambda v: v in choices, f'{", ".join(choices[:-1])} or {choices[-1]}'


# By option; `norm.option` stands before `option`.
_RANGES = {
  'eps': (lambda v: v >= 0, 'a number >= 0'),
  'momentum': (lambda v: 0 < v <= 1, 'a number in (0, 1]'),
  'running': _one_of('biased', 'unbiased'),
  'stat_mode': (lambda v: v in ('batch', 'frozen') or re.fullmatch(r'ghost\([1-9]\d*\)', v),
                'batch, frozen or ghost(k) with k >= 1'),
  'groups': _COUNT, 'iterations': _COUNT, 'components': _COUNT, 'batch_max': _COUNT, 'n': _COUNT,
  'alpha': _NUMBER, 'shift': _NUMBER,
  'lrn.alpha': (lambda v: v >= 0, 'a number >= 0'),
  'alpha_batch.alpha': (lambda v: 0 <= v <= 1, 'a number in [0, 1]'),
  'k': _POSITIVE, 'beta': _NUMBER, 'convention': _one_of('paper', 'torch'),
  'p': (lambda v: 0 < v <= 1, 'a number in (0, 1]'),
  'gain': _one_of('direct', 'one_plus'),
  'affine': _NUMBER, 'learned_eps': _NUMBER,
  'sigma': _POSITIVE, 'divisive.sigma': (lambda v: v >= 0, 'a number >= 0'),
  'rmax': (lambda v: v >= 1, 'a number >= 1'), 'dmax': (lambda v: v >= 0, 'a number >= 0'),
  'ramp': (lambda v: v >= 0, 'an integer >= 0'),
  'cap': _POSITIVE,
  'f': _one_of('isru', 'arctan', 'expsign', 'satursin', 'smoothsign', 'linear_clip'),
}


def names() -> tuple[str, ...]:
  """The names that `get_norm` knows, aliases left out."""
  return tuple(_NORMS)


def get_norm(spec: str) -> Norm:
  """The norm of a spec string such as `layer`, `ln`, `rms(eps=1e-6)` or `batch(preset=keras)`.

  Options may be given by position, in the order in which the norm declares them. A preset is
  resolved: the result has its options, and the canonical spec names these alone.

  Raises:
    UserError: unknown name, option or preset (the message names the nearest), or a value of
      the wrong type or out of range.
  """
  call = spec_lib.parse(spec)
  name = ALIASES.get(call.name, call.name)
  if name not in _NORMS:
    known = (*names(), *ALIASES)
    raise UserError(f'unknown normalization {call.name!r}{spec_lib.nearest(call.name, known)}; '
                    f'known: {", ".join(known)}')
  norm = _NORMS[name]
  options = dict(norm.options)
  if len(call.args) > len(options):
    raise UserError(f'{spec!r}: {name} takes at most {len(options)} options, '
                    f'{len(call.args)} given')
  given = [*zip(options, call.args, strict=False), *call.kwargs]
  for key, value in given:
    if key == 'preset':
      continue
    if key not in options:
      takes = f'it takes {", ".join(options)}' if options else 'it takes none'
      raise UserError(f'{spec!r}: {name} has no option {key!r}'
                      f'{spec_lib.nearest(key, options)}; {takes}')
    if [k for k, _ in given].count(key) > 1:
      raise UserError(f'{spec!r}: option {key!r} is given twice')
  options |= _preset(spec, norm, dict(given).get('preset'))
  for key, value in given:
    if key != 'preset':
      options[key] = _checked(spec, name, key, value, type(options[key]))
  return dataclasses.replace(norm, options=tuple(options.items()),
                             parameters=_parameters(norm, options))


def _preset(spec: str, norm: Norm, name) -> dict:
  presets = {key: dict(options) for key, options in norm.presets}
  if name is None:
    return {}
  if name not in presets:
    has = f'it has {", ".join(presets)}' if presets else 'it has none'
    raise UserError(f'{spec!r}: {norm.name} has no preset {name!r}'
                    f'{spec_lib.nearest(str(name), presets)}; {has}')
  return presets[name]


def _parameters(norm: Norm, options: dict) -> tuple[NormParameter, ...]:
  """Those that exist with the options, with the starts that these give."""
  found = []
  for parameter in norm.parameters:
    if parameter.when and not options[parameter.when]:
      continue
    start = options.get(parameter.name) if parameter.name != 'eps' else None
    if parameter.name == 'scale' and options.get('gain') == 'one_plus':
      start = 0.0
    found.append(parameter if start is None else dataclasses.replace(parameter, init=start))
  return tuple(found)


def _checked(spec: str, name: str, key: str, value, kind: type):
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if kind is str and isinstance(value, spec_lib.Call):
    value = str(value)
  ranges = _RANGES.get(f'{name}.{key}') or _RANGES[key]
  in_range, allowed = ranges if kind is not bool else (lambda v: True, 'true or false')
  finite = not isinstance(value, float) or math.isfinite(value)
  if type(value) is not kind or not finite or not in_range(value):
    raise UserError(f'{spec!r}: {key} must be {allowed}, not {value!r}')
  return value
