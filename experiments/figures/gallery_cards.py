"""What the gallery says about each entry: cards, filled from the registries.

A card is text and a curve; how it looks is decided in `gallery.py`.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import inspect
import math
import re
from typing import Any

import numpy as np

from launch.study import plotting

HALF_WIDTH, POINTS = 4.0, 160


@dataclasses.dataclass(frozen=True)
class Card:
  """One entry of the page.

  Attributes:
    name: the spec by which models ask for it.
    tags: short words, shown as badges.
    equation: the formula, as text.
    facts: (label, value) pairs, as text.
    paper: the source.
    aliases: other names for it.
    links: label -> names of other cards.
    curve: f and f' on a grid, or None.
    kinks: where f or f' jumps, marked on the axis.
  """

  name: str
  tags: tuple[str, ...]
  equation: str
  facts: tuple[tuple[str, str], ...]
  paper: str
  aliases: tuple[str, ...] = ()
  links: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  curve: plotting.Curve | None = None
  kinks: tuple[float, ...] = ()


def number(value: float) -> str:
  """Four significant digits; a dash for what does not exist, 0 for what rounding left of 0."""
  if math.isnan(value):
    return '–'
  return '∞' if math.isinf(value) else f'{value if abs(value) > 1e-12 else 0:.4g}'


@functools.lru_cache(maxsize=None)
def curve(spec: str) -> plotting.Curve | None:
  """f and f' in float64 between -4 and 4, the parameters at their first values; nan at jumps.

  A gated activation shows its gate function, one that depends on the statistics of its input shows
  them at mean 0 and variance 1, a stochastic one its inference form. None for one whose entries are
  no functions of one number.
  """
  import jax
  import jax.numpy as jnp

  from model_lib.activations import get_activation
  from model_lib.activations.host import evaluate
  activation = get_activation(spec)
  if activation.scalar is None:
    return None
  function = activation.at_first_values()
  # Midpoints of cells: no grid point falls on a kink at 0 or another round number.
  x = HALF_WIDTH * ((np.arange(POINTS) + 0.5) / POINTS * 2 - 1)
  both = evaluate(lambda x: jnp.concatenate(jax.jvp(function, (x,), (jnp.ones_like(x),))), x)
  y, slope = np.array(both[:POINTS], np.float64), np.array(both[POINTS:], np.float64)
  for jump in activation.jumps:
    near = np.abs(x - jump) < 1.5 * HALF_WIDTH / POINTS
    y[near], slope[near] = np.nan, np.nan
  return plotting.Curve(x, y, slope)


def activation_card(spec: str, cost: Mapping[str, Any]) -> Card:
  """The card of an activation; `cost` is its row of the cost measurement."""
  from model_lib.activations import aliases, get_activation, names
  from model_lib.activations.fingerprint import affine_duplicates
  entry = get_activation(spec)
  affine = affine_duplicates(spec) if entry.kind == 'pointwise' and spec in names() else ()
  learnable = ', '.join(f'{p.name} = {p.init:g} per {p.per}' for p in entry.parameters)
  settings = ', '.join(f'{key} = {value}' for key, value in entry.constants.items())
  limits = ', '.join(f'{key} {bounds}' for key, bounds in entry.bounds.items())
  facts = [
      *_moment_facts(entry),
      ('learned', learnable), ('settings', settings),
      ('allowed', limits),
      ('kinks', _points(entry.kinks)), ('jumps', _points(entry.jumps) if entry.jumps else ''),
      ('domain', f'{entry.domain[0]:g} to {entry.domain[1]:g}'
                 + (', overflows float32 in it' if entry.overflow else '')),
      ('width of the output', '' if entry.width_factor == 1 else f'× {entry.width_factor:g}'),
      ('reads other positions', '' if entry.causal else 'yes'),
      ('time / relu', number(cost['cost_ratio'])),
      ('saved bytes', number(cost['saved_bytes'])),
      ('source', entry.source)]
  tags = (entry.kind, entry.monotone, entry.parity, 'learnable' if entry.parameters else '',
          'jumps' if entry.jumps else 'kinks' if entry.kinks else 'smooth' if entry.scalar else '',
          '' if entry.confirmed else 'from memory')
  return Card(
      name=spec, tags=tuple(tag for tag in tags if tag), equation=entry.formula,
      facts=_present(facts), paper=entry.paper,
      aliases=tuple(alias for alias, name in aliases().items() if name == spec),
      links={'same as': entry.duplicates,
             'same up to a f(b x + c) + d': tuple(n for n in affine if n not in entry.duplicates)},
      curve=curve(spec), kinks=entry.kinks)


def _moment_facts(entry) -> list[tuple[str, str]]:
  if entry.scalar is None and entry.population is None:
    return [('moments', 'none: no entry is a function of one number')]
  moments = entry.moments()
  return [('E f', number(moments.mean)), ('E f²', number(moments.second)),
          ('gain', number(moments.gain)), ('E f′²', number(moments.slope_second)),
          ('χ raw', number(moments.chi_raw)), ('χ centred', number(moments.chi_centred))]


def norm_card(spec: str, cost: Mapping[str, Any]) -> Card:
  """The card of a norm; `cost` is its row of the cost measurement."""
  from model_lib.normalization import get_norm
  from model_lib.normalization.entry import INVARIANCES
  from model_lib.normalization.registry import ALIASES
  entry = get_norm(spec)
  facts = [
      ('statistics over', entry.statistics), ('training, inference', entry.train_inference),
      ('invariant to', '; '.join(INVARIANCES[key] for key in entry.invariances) or 'nothing'),
      ('parameters', _words(entry.parameters)), ('state', _words(entry.state)),
      ('options', _pairs(entry.options)),
      ('presets', '; '.join(f'{name}: {_pairs(options)}' for name, options in entry.presets)),
      ('start', entry.init_rule), ('conventions', entry.conventions),
      ('reads other positions', 'no' if entry.causal else 'yes'),
      ('reads other examples', 'yes' if entry.batch else 'no'),
      ('needs positions', 'yes' if entry.spatial else ''),
      ('takes a condition', 'yes' if entry.condition else ''),
      ('gradient', 'of a surrogate: quantities that depend on x are held' if entry.backward
       else 'of the equation'),
      ('time / none', number(cost['cost_ratio'])),
      ('saved bytes', number(cost['saved_bytes']))]
  tags = (entry.family.replace('_', ' '), 'state' if entry.state else '',
          'surrogate backward' if entry.backward else '',
          '' if entry.confirmed else 'from memory')
  return Card(
      name=spec, tags=tuple(tag for tag in tags if tag), equation=entry.equation,
      facts=_present(facts), paper=entry.paper,
      aliases=tuple(alias for alias, name in ALIASES.items() if name == spec))


def weight_norm_cards() -> list[Card]:
  """All norms of weights."""
  from model_lib.normalization.weight import get_weight_norm, weight_norms
  entries = {name: get_weight_norm(name) for name in weight_norms()}
  return [_described(name, entry, entry.equation, entry.paper) for name, entry in entries.items()]


def placement_cards() -> list[Card]:
  """All placements; their equations are those of the module's docstring."""
  from model_lib.normalization import placement
  equations = dict(re.findall(r'^  (\S+) {2,}(\S.*)$', placement.__doc__, re.MULTILINE))
  return [_described(name, entry, equations[name], entry.paper)
          for name, entry in placement.PLACEMENTS.items()]


def residual_cards() -> list[Card]:
  """All rows of the parametrization table; the equation is the first line of their docstring."""
  from model_lib.parametrization import get_parametrization
  from model_lib.parametrization.residual_rows import MAKERS
  cards = []
  for name, maker in MAKERS.items():
    row = get_parametrization(name)
    settings = ', '.join(str(p) for p in inspect.signature(maker).parameters.values())
    learned = (f'{row.learned.name}, one per {row.learned.per}, on the {row.learned.on}'
               if row.learned else 'none')
    facts = _present((
        ('settings', settings.replace("'", '')), ('trained factor', learned),
        ('placements', ', '.join(row.placements or ('all',))),
        ('norms', ', '.join(row.norms or ('all',))), ('why', row.reason)))
    equation = inspect.getdoc(maker).split('\n\n')[0].rstrip('.')
    cards.append(Card(name, () if row.confirmed else ('from memory',), equation, facts, row.source))
  return cards


def _described(name: str, entry, equation: str, paper: str) -> Card:
  """A card with a fact for every field of a registry's dataclass."""
  fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
  tags = []
  if not fields.get('confirmed', True):
    tags.append('from memory')
  if fields.get('backward') == 'surrogate':
    tags.append('surrogate backward')
  apart = ('name', 'equation', 'paper', 'confirmed')
  facts = [(key.replace('_', ' '), _pairs(value) if key == 'options' else _words(value))
           for key, value in fields.items() if key not in apart]
  return Card(name, tuple(tags), equation, _present(facts), paper)


def _words(value: Any) -> str:
  """A field of a registry's dataclass as text."""
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if dataclasses.is_dataclass(value):
    return (f'{value.name} = {value.init} per {value.per}'
            + (f' (with {value.when})' if value.when else ''))
  if isinstance(value, tuple):
    return ', '.join(map(_words, value)) or 'none'
  return str(value)


def _pairs(options: Sequence[tuple[str, Any]]) -> str:
  return ', '.join(f'{key} = {value}' for key, value in options) or 'none'


def _points(points: Sequence[float]) -> str:
  return ', '.join(f'{point:.4g}' for point in points) or 'none'


def _present(facts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
  return tuple((label, value) for label, value in facts if value != '')
