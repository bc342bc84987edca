"""The one table of parametrizations: init and forward multipliers.

A kernel acts as `multiplier * w` with `w ~ N(0, std^2)` at the start. Every number of that
kind is read from here: no layer has one of its own, so a factor cannot be applied twice.

Roles: `input` (data -> features), `hidden` (features -> features), `readout`
(features -> outputs), `embedding` (a table looked up by token), `position` (a
learned table added to the tokens).

Standard parametrization (`sp`), fan_in being the rows of the kernel:

  input, hidden, readout   std = gain / sqrt(fan_in)
  embedding                std = 1     (a token enters with variance 1)
  position                 std = 0.02  (small beside the embedding, as in GPT-2)
  biases 0, norm gains 1, all multipliers 1, attention logits q.k / sqrt(head_dim)

The gain is `E[f(z)^2]^-1/2`, z ~ N(0, 1), where the kernel consumes the output of
the activation f, so that its own output has variance 1; it is 1 everywhere else.
Draws are normal, not truncated. The rows of `residual_rows.py` change what happens in the residual
branches; those of `scaled_rows.py` also say how every tensor changes with width and depth, for a
model with a base model (`models.parametrized`). A row may have settings, as in
`layerscale(init=0.1)` or `tp6(alpha=0.5, gamma=0.0, base_depth=4)`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math

from model_lib import spec as spec_lib
from model_lib.errors import UserError
from model_lib.parametrization import residual_rows, scaled_rows
from model_lib.parametrization.row import STANDARD, Parametrization
from model_lib.spec import nearest

MAKERS = {**residual_rows.MAKERS, **scaled_rows.MAKERS}
CHOICES = {**residual_rows.CHOICES, **scaled_rows.CHOICES}
_TABLE = {
  'sp': Parametrization('sp', 'Framework defaults; He et al. 2015, arXiv:1502.01852, for the gain',
                        STANDARD),
  **{name: maker() for name, maker in MAKERS.items()},
}


def names() -> tuple[str, ...]:
  """The rows of the table."""
  return tuple(_TABLE)


def get_parametrization(name: str) -> Parametrization:
  """The row `name`, with settings where it has some: 'sp', 'layerscale(init=0.1)'.

  Raises:
    UserError: there is no such row (the message names the nearest) or setting, a value is
      out of range, or two rows are asked for.
  """
  if isinstance(name, str) and name in _TABLE:
    return _TABLE[name]
  if isinstance(name, str) and '+' in name.partition('(')[0]:
    raise UserError(f'{name!r}: one row owns every factor of a branch, so that none is applied '
                    'twice' + _cancelling(name) + '; name one of them')
  if not isinstance(name, str) or '(' not in name:
    raise UserError(f'unknown parametrization {name!r}{nearest(str(name), names())}; '
                    f'known: {", ".join(names())}')
  return _with_settings(name)


def _cancelling(name: str) -> str:
  asked = {part.strip() for part in name.split('+')}
  if 'lns' in asked and asked & {'gpt2', 'ds_init'}:
    return ', and an init that shrinks with depth cancels what lns does'
  return ''


@functools.lru_cache(maxsize=None)
def _with_settings(text: str) -> Parametrization:
  call = spec_lib.parse(text)
  if call.name not in MAKERS:
    if call.name in _TABLE:
      raise UserError(f'{text!r}: {call.name} takes no settings')
    return get_parametrization(call.name)  # raises
  maker = MAKERS[call.name]
  settings = {key: p.default for key, p in inspect.signature(maker).parameters.items()}
  takes = f'it takes {", ".join(settings)}' if settings else 'it takes none'
  if len(call.args) > len(settings):
    raise UserError(f'{text!r}: {call.name} has too many settings; {takes}')
  given = dict(zip(settings, call.args, strict=False))
  for key, value in call.kwargs:
    if key not in settings:
      raise UserError(f'{text!r}: {call.name} has no setting {key!r}{nearest(key, settings)}; '
                      f'{takes}')
    if key in given:
      raise UserError(f'{text!r}: {key!r} is given twice')
    given[key] = value
  values = {key: _checked(text, call.name, key, value) for key, value in given.items()}
  changed = tuple(sorted((key, value) for key, value in values.items() if value != settings[key]))
  return dataclasses.replace(maker(**values), name=str(spec_lib.Call(call.name, (), changed)))


def _checked(text: str, name: str, key: str, value):
  choices = CHOICES.get((name, key))
  if choices:
    if value not in choices:
      raise UserError(f'{text!r}: {key} must be {" or ".join(choices)}, not {value!r}')
    return value
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
      0 <= value < math.inf):
    raise UserError(f'{text!r}: {key} must be a finite number >= 0, not {value!r}')
  return float(value)
