"""Models by name, with activation, normalization and parametrization injected as strings.

`build('mlp', widths=(64, 64), activation='gelu')` gives a Linen module, to be called as
`module.apply(variables, x, train=..., mutable=[...])`. Collections: `params`; `hp`, the swept
numbers (`models.hyper`); `batch_stats`, where a norm has state.

A model whose parameters must stay on a set (nGPT's spheres) has a method `projection()`: it gives
the function params -> params onto the set, or None. Training applies it at the start and after
every step; `module.init` alone does not.

`overrides=('blocks.0-3.mlp: relu^2', 'blocks.*.norm: rms')` puts something else at some places
(`models.overrides` has the grammar); `sites(model)` lists the places and what stands there.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

from model_lib.errors import UserError
from model_lib.spec import nearest

NAMES = ('mlp', 'resmlp', 'deep_mlp', 'cnn', 'vit', 'gpt', 'gpt2')


def build(name: str, **kwargs):
  """The model `name` with the given attributes; lists stand for tuples.

  Args:
    name: one of `NAMES`.
    **kwargs: attributes of the model class, all JSON-able.

  Returns:
    A Linen module.

  Raises:
    UserError: an unknown name, attribute, activation, norm, parametrization or path (the
      message names the nearest), an impossible value, or a combination that makes no sense.
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
  values = {key: tuple(value) if isinstance(value, list) else
            float(value) if type(value) is int and type(defaults[key]) is float else value
            for key, value in {**defaults, **kwargs}.items()}
  # A model of fixed form checks itself: it has no sites for what others are given by strings.
  minimum = getattr(cls, 'minimum', lambda key: 1)
  _check_values(name, values, defaults, minimum)
  model = cls(**values)
  if hasattr(cls, 'check'):
    model.check()
  else:
    _check_sites(name, model)
  return model


def sites(model):
  """The places of a model where an activation or a norm stands (`models.site.Site`).

  Each has a `path`, a `kind` and the `spec` of what stands there, overrides included.
  """
  from model_lib.models import overrides
  return overrides.resolved(model)


def _classes():
  # Imported on demand, so that the names can be listed without loading jax.
  from model_lib.models import cnn, deep_mlp, gpt, gpt2, mlp, resmlp, vit
  return {'mlp': mlp.MLP, 'resmlp': resmlp.ResMLP, 'deep_mlp': deep_mlp.DeepMLP, 'cnn': cnn.CNN,
          'vit': vit.ViT, 'gpt': gpt.GPT, 'gpt2': gpt2.GPT2}


def _check_values(name: str, values: dict, defaults: dict, minimum: Callable[[str], int]) -> None:
  """Types and ranges of the attributes, each on its own."""
  for key, value in values.items():
    kind = _STRINGS if key == 'overrides' else type(defaults[key])
    items = value if isinstance(value, tuple) else (value,)
    of = {tuple: int, _STRINGS: str}.get(kind, kind)
    if (isinstance(value, tuple) != (kind in (tuple, _STRINGS))
        or any(type(item) is not of or (of is int and item < minimum(key)) for item in items)):
      raise UserError(f'{name}: {key} must be {_KINDS[kind].format(minimum(key))}, not {value!r}')
  if values.get('dim', 0) % values.get('heads', 1):
    raise UserError(f'{name}: dim={values["dim"]} is not divisible by heads={values["heads"]}')


def _check_sites(name: str, model) -> None:
  """What the strings name, and whether it fits where it stands."""
  from model_lib.models.activation_layer import consumer_gains
  from model_lib.models.site import ACTIVATION, check
  from model_lib.normalization.placement import stem_norms
  from model_lib.normalization.weight import get_weight_norm
  from model_lib.parametrization import get_parametrization

  get_parametrization(model.parametrization)
  get_weight_norm(getattr(model, 'weight', 'none'))
  stem_norms(getattr(model, 'stem_norm', 'none'))
  resolved = sites(model)
  check(name, resolved, model.norm, model.parametrization)
  for spec in dict.fromkeys(site.spec for site in resolved if site.kind == ACTIVATION):
    consumer_gains(spec, model.init_gain)


_STRINGS = 'strings'
_KINDS = {int: 'an integer >= {}', tuple: 'a list of integers >= {}', str: 'a string',
          bool: 'True or False', float: 'a number',
          _STRINGS: 'a list of strings such as \'blocks.*.norm: rms\''}
