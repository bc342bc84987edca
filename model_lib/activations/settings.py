"""What the settings of an activation's spec string may be, and the line that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import sys

from model_lib import spec as spec_lib
from model_lib.errors import UserError

PER = ('layer', 'channel', 'unit')


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


def listed(keys: Mapping[str, object]) -> str:
  """The names of the settings, as in "it has 'z', 'alpha'"."""
  return ', '.join(repr(key) for key in keys) or 'no settings'


def checked(
    where: str, defaults: Mapping[str, object], bounds: Mapping[str, Bounds],
    choices: Mapping[str, Sequence[str]], key: str, value: object,
) -> object:
  """The value of one setting in its default's type.

  Args:
    where: how an error line begins.
    defaults: the settings that there are.
    bounds: what the numbers are limited to; a missing one takes any finite number.
    choices: the allowed values of the settings that are words.
    key: name of the setting.
    value: as the spec string gives it.

  Raises:
    UserError: there is no such setting, or the value is not allowed; one line says what is.
  """
  if key not in defaults:
    raise UserError(f'{where}no setting {key!r}; it has {listed(defaults)}'
                    f'{spec_lib.nearest(key, defaults)}')
  if key in choices:
    if value not in choices[key]:
      raise UserError(f'{where}{key} must be one of {", ".join(choices[key])}, not {value}')
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
  if value not in bounds.get(key, _ANY):
    raise UserError(f'{where}{key} must be {bounds[key]}, not {value}')
  return type(defaults[key])(value)
