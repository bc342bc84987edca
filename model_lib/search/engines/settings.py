"""The settings of an engine in its spec."""

from __future__ import annotations

from collections.abc import Mapping
import math

from model_lib.errors import UserError
from model_lib.spec import Call, nearest

Number = int | float


def read(call: Call, defaults: Mapping[str, Number]) -> dict[str, Number]:
  """The named settings, positive numbers of their defaults' kind, over the defaults.

  Raises:
    UserError: a setting without a name, an unknown one, or a value of another kind.
  """
  if call.args:
    raise UserError(f'{call}: write the settings with their names: {_all(defaults)}')
  values = dict(defaults)
  for key, value in call.kwargs:
    if key not in defaults:
      raise UserError(f'{call}: {call.name} has no setting {key!r}{nearest(key, defaults)}; '
                      f'it has: {_all(defaults)}')
    whole = isinstance(defaults[key], int)
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 < value < math.inf:
      raise UserError(f'{call}: {key} is a positive {"integer" if whole else "number"}, '
                      f'not {value!r}')
    values[key] = value
  return values


def _all(defaults: Mapping[str, Number]) -> str:
  return ', '.join(f'{key}={value:g}' for key, value in defaults.items())
