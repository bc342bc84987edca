"""Every activation, norm, placement and residual rule of the registries on one page.

  python -m experiments.gallery --workdir=runs/gallery

writes runs/gallery/index.html, one file without any other: each activation with its curve,
derivative, Gaussian moments, gain, duplicates, formula and paper; each norm with its equation,
axes, conventions and invariances; and what each of them costs beside ReLU or no norm. It opens
from the file system and is searched by the box on top or by the address (index.html#q=gelu).

Nothing is trained. Cost is measured on the device at hand (results.csv, table.md); everything else
is read from the registries. The tables that are printed are those of the cost: time of forward
plus backward on an array [batch, side, side, channels] in float32, and bytes that are saved between
the two, relative to ReLU and to none; then the published gains of normalizer-free networks beside
the exact ones.

Cost of cpu: five minutes on two CPU cores, 1.7 GB, most of it compiling and timing. To expect: the
reference within a tenth of itself, and layer norm at about ten times no norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launch.study import (
    EngineConfig, Given, IoConfig, Measurement, Report, Run, Study, field, main)
from launch.study.tables import Column, Table, fixed, significant
from model_lib.errors import UserError

ACTIVATION, NORM = 'relu', 'none'  # what costs are relative to


@dataclasses.dataclass(frozen=True)
class Cost:
  """The array on which cost is measured: [batch, side, side, channels]."""

  batch: int = field(32, 'Examples.', low=2)
  side: int = field(16, 'Positions along each of two axes.', low=1)
  channels: int = field(64, 'Channels.', low=1)
  rounds: int = field(9, 'Interleaved rounds; the ratio is their median.', low=1)


@dataclasses.dataclass(frozen=True)
class Config:
  """The gallery's config."""

  activations: tuple[str, ...] = field((), 'Activations to show; none named: all.')
  norms: tuple[str, ...] = field((), 'Norms to show; none named: all.')
  cost: Cost = Cost()
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


PRESETS = {
    'smoke': {'activations': ('relu', 'gelu', 'prelu', 'softmax', 'swiglu'),
              'norms': ('layer', 'batch', 'none'), 'cost.batch': 4, 'cost.side': 4,
              'cost.channels': 16, 'cost.rounds': 1},
    'cpu': {},
    'gpu': {'cost.batch': 512, 'cost.rounds': 11},
}


def activations(config: Config) -> tuple[str, ...]:
  """The activations that are shown."""
  from model_lib.activations import names
  return config.activations or names()


def norms(config: Config) -> tuple[str, ...]:
  """The norms that are shown."""
  from model_lib.normalization import names
  return config.norms or names()


def measure_cost(given: Given, kind: str, names: Sequence[str], reference: str,
                 shape: Sequence[int], rounds: int) -> list[dict]:
  """The cost of activations or norms, the reference among them."""
  from model_lib.analysis import cost
  del given
  make = {'activation': cost.activation, 'norm': cost.norm}[kind]
  subjects = {name: make(name, shape) for name in dict.fromkeys((reference, *names))}
  found = cost.costs(subjects, reference, rounds)
  return [{'kind': kind, 'name': name, 'pass_us': 1e6 * one.seconds,
           'cost_ratio': one.ratio, 'saved_bytes': one.bytes_per_value}
          for name, one in found.items()]


def cohorts(config: Config):
  """One measurement for the activations and one for the norms."""
  size = config.cost
  shape = [size.batch, size.side, size.side, size.channels]
  shown = {'activation': (activations(config), ACTIVATION), 'norm': (norms(config), NORM)}
  yield [
      Measurement(f'{kind}_cost', measure_cost,
                  {'kind': kind, 'names': list(names), 'reference': reference, 'shape': shape,
                   'rounds': size.rounds}, seconds=1.0 * len(names))
      for kind, (names, reference) in shown.items()]


def cost_table(config: Config, kind: str, rows: Sequence[dict]) -> Table:
  """Activations or norms, the cheapest first."""
  size, reference = config.cost, ACTIVATION if kind == 'activation' else NORM
  base = next(row['saved_bytes'] for row in rows if row['name'] == reference)
  return Table(
      f'Cost of each {kind}, forward plus backward',
      (Column('name', kind, right=False), Column('pass_us', 'time', 'us', format=fixed(0)),
       Column('cost_ratio', f'time / {reference}', format=fixed(2)),
       Column('saved_bytes', 'saved', 'bytes per value', format=significant(3)),
       Column('more', f'saved - {reference}', 'bytes per value', format=fixed(2, signed=True)),
       Column('share', f'saved / {reference}', format=fixed(2))),
      [{**{key: row[key] for key in ('name', 'pass_us', 'cost_ratio', 'saved_bytes')},
        'more': row['saved_bytes'] - base,
        'share': row['saved_bytes'] / base if base else float('nan')}
       for row in sorted(rows, key=lambda row: row['cost_ratio'])],
      [f'float32 [{size.batch}, {size.side}, {size.side}, {size.channels}], medians of '
       f'{size.rounds} interleaved rounds; the ratio of {reference} to itself shows their noise. '
       'Saved: what JAX keeps for the backward pass, before compilation.'])


def gains_table() -> Table:
  """The constants of normalizer-free networks beside the exact gains."""
  from model_lib.parametrization.initializers import nfnet_distances
  return Table(
      'Gains of normalizer-free networks: published beside exact 1 / std f(z)',
      (Column('name', 'activation', right=False), Column('published', 'published', format=fixed(5)),
       Column('exact', 'exact', format=fixed(5)),
       Column('distance', 'distance', '%', format=fixed(3, signed=True))),
      [{'name': name, 'published': published, 'exact': exact, 'distance': 100 * distance}
       for name, (published, exact, distance) in nfnet_distances().items()],
      ['Published: Brock et al. 2021, arXiv 2101.08692, estimated from samples.'])


def report(run: Run) -> Report:
  """The tables of cost, the page, and all curves as one figure."""
  from experiments.figures import gallery as figures
  from experiments.figures import gallery_cards as cards
  config, rows = run.config, run.rows
  costs = {kind: rows[rows.kind == kind].to_dict('records') for kind in ('activation', 'norm')}
  by_name = {kind: {row['name']: row for row in found} for kind, found in costs.items()}
  tables = [cost_table(config, kind, found) for kind, found in costs.items()]
  tables.append(gains_table())
  sections = {
      'Activations': [cards.activation_card(name, by_name['activation'][name])
                      for name in activations(config)],
      'Norms': [cards.norm_card(name, by_name['norm'][name]) for name in norms(config)],
      'Weight norms': cards.weight_norm_cards(),
      'Placements': cards.placement_cards(),
      'Residual rules': cards.residual_cards()}
  return Report(tables, figures={'functions': lambda: figures.curves(activations(config))},
                pages={'index.html': figures.page(sections, [*tables[-1:]], run.notes)})


def check(config: Config) -> None:
  """Names every entry that does not exist."""
  from model_lib.activations import get_activation
  from model_lib.normalization import get_norm
  for path, look_up in (('activations', get_activation), ('norms', get_norm)):
    names = getattr(config, path)
    for name in names:
      look_up(name)
    if len(set(names)) < len(names):
      raise UserError(f'config.{path}: '
                      f'{next(name for name in names if names.count(name) > 1)} stands there twice')


STUDY = Study(
    name='gallery', config=Config, presets=PRESETS, data=lambda config: None, cohorts=cohorts,
    report=report, check=check)

if __name__ == '__main__':
  main(STUDY)
