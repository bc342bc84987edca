"""Models by name, with activation, normalization and parametrization injected as strings.

`build('mlp', widths=(64, 64), activation='gelu')` gives a Linen module, to be called as
`module.apply(variables, x, train=..., mutable=[...])`. Collections: `params`; `hp`, the swept
numbers (`models.hyper`); `batch_stats`, where a norm has state.
"""

from __future__ import annotations

import dataclasses

from model_lib.errors import UserError
from model_lib.spec import nearest

NAMES = ('mlp', 'vit', 'gpt')


def build(name: str, **kwargs):
  """The model `name` with the given attributes; lists stand for tuples.

  Args:
    name: one of `NAMES`.
    **kwargs: attributes of the model class, all JSON-able.

  Returns:
    A Linen module.

  Raises:
    UserError: an unknown name, attribute, activation, norm or parametrization (the message
      names the nearest), or an impossible value.
  """
  if name not in NAMES:
    raise UserError(f'unknown model {name!r}{nearest(str(name), NAMES)}; '
                    f'known: {", ".join(NAMES)}')
  cls = _classes()[name]
  defaults = {f.name: f.default for f in dataclasses.fields(cls)
              if f.name not in ('parent', 'name')}
  for key in kwargs:
    if key not in defaults:
      raise UserError(f'{name} has no attribute {key!r}{nearest(key, defaults)}; '
                      f'it has: {", ".join(defaults)}')
  values = {key: tuple(value) if isinstance(value, list) else value
            for key, value in {**defaults, **kwargs}.items()}
  _check(name, values, defaults)
  return cls(**values)


def _classes():
  # Imported on demand, so that the names can be listed without loading jax.
  from model_lib.models import gpt, mlp, vit
  return {'mlp': mlp.MLP, 'vit': vit.ViT, 'gpt': gpt.GPT}


def _check(name: str, values: dict, defaults: dict) -> None:
  from model_lib.models.activation_layer import consumer_gains
  from model_lib.normalization import block

  for key, value in values.items():
    kind = type(defaults[key])
    if type(value) is not kind:
      raise UserError(f'{name}: {key} must be {_KINDS[kind]}, not {value!r}')
    numbers = value if kind is tuple else (value,) if kind is int else ()
    if any(type(number) is not int or number < 1 for number in numbers):
      raise UserError(f'{name}: {key} must be {_KINDS[kind]}, not {value!r}')
  if values.get('dim', 0) % values.get('heads', 1):
    raise UserError(f'{name}: dim={values["dim"]} is not divisible by heads={values["heads"]}')
  placed = block(values['norm'], values['parametrization'])
  if name == 'gpt' and not placed.norm.causal:
    raise UserError(f'gpt: the norm {placed.norm.name} lets a position see later ones '
                    f'(statistics over {placed.norm.statistics})')
  consumer_gains(values['activation'], values['init_gain'])


_KINDS = {int: 'an integer >= 1', tuple: 'a list of integers >= 1', str: 'a string',
          bool: 'True or False'}
