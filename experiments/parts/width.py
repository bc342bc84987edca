"""What the width part of the depth-muP study finds in its rows: tables, verdicts, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import numpy as np
import pandas as pd

from experiments.parts import sweeps
from experiments.parts.sweeps import Sweep
from experiments.parts.transfers import (by_size, problem_of, regret, swept_columns, swept_row,
                                         transfers)
from experiments.parts.verdicts import (BESIDE, MIN_SEEDS, REGRET, SEPARATION, checked, missing,
                                        shown, verdict)
from experiments.parts.width_cohorts import DECAYS, PART, ROWS, check, cohorts, decay_octave
from launch.study import Report, Run
from launch.study.claims import Outcome
from launch.study.tables import Column, Table, fixed, integer, interval, significant
from model_lib.analysis import statistics
from model_lib.analysis.statistics import Interval

__all__ = ['check', 'cohorts', 'report']

NAMES = {'share': 'share', 'notebook': 'published, as in the notebook',
         'correct': 'published, right sum'}
KEPT, LOST = 0.2, 0.5  # of the decay that the base width has
SLOPE = 0.1  # of the second-order share against depth
ROUNDING = 1e-12  # below which a number in float64 that should be of order 1e-5 is none


class Found(sweeps.Found):
  """The sweeps of a run."""

  def of(self, phase: str, size: str) -> dict[tuple[str, int], Sweep]:
    """(family, width or depth) -> its sweep."""
    return by_size(self.rows[self.rows.phase == phase], self.guess, size)

  @functools.cached_property
  def transfer(self) -> dict[tuple[str, int], Sweep]:
    return self.of('transfer', 'width')

  @functools.cached_property
  def decay(self) -> dict[tuple[str, int], Sweep]:
    return self.of('decay', 'width')

  @functools.cached_property
  def multiplier(self) -> dict[int, Sweep]:
    return {depth: found for (_, depth), found in self.of('multiplier', 'depth').items()}


def outcomes(rows: pd.DataFrame, config: Any) -> dict[str, Outcome]:
  """One outcome per claim that the rows can speak of."""
  own = Found(rows, config)
  found: dict[str, Outcome] = {}
  for name, (one, other) in {'adam': ('W1', 'W2'), 'sgd': ('W3', 'W4')}.items():
    if name in config.width.optimizers:
      found |= transfers(own.transfer, *(f'{name} {row}' for row in ROWS),
                         config.width.widths[0], config.width.widths[-1], (one, other))
  return (found | base_width(own) | decays(own) | multiplier(own) | second_order(rows))


def apart(a: pd.DataFrame, b: pd.DataFrame) -> tuple[int, int]:
  """(runs whose last_loss differs, runs that both have), by octave and seed."""
  both = a.merge(b, on=['octave', 'seed'])
  same = (both.last_loss_x == both.last_loss_y) | (both.last_loss_x.isna()
                                                   & both.last_loss_y.isna())
  return int((~same).sum()), len(both)


def base_width(own: Found) -> dict[str, Outcome]:
  """The standard parametrization and muP at the base width, and at the largest."""
  rows = own.rows[own.rows.phase == 'transfer']
  counts = {}
  for width in (own.config.width.widths[0], own.config.width.widths[-1]):
    each = rows[rows.width == width]
    found = [apart(*(each[each.family == f'{name} {row}'] for row in ROWS))
             for name in own.config.width.optimizers]
    counts[width] = tuple(map(sum, zip(*found)))
  (base, runs), (wide, _) = counts.values()
  problem = ('side by side (vmap) the bits of a run belong to its chunk'
             if own.config.engine.batching == 'vmap' else '')
  return {'W5': checked(not base and wide > 0, base,
                        f'{runs} pairs of runs; at the largest width {wide} differ', problem)}


def decays(own: Found) -> dict[str, Outcome]:
  """How much of the decay of the base width a wide network has."""
  rows = own.rows[own.rows.phase == 'kept']
  if not len(rows):
    return {}
  octave = decay_octave(own.config.width)
  first, *_, last = own.config.width.decay_widths
  at = rows[np.isclose(rows.octave, octave)].set_index(
      ['family', 'width', 'seed']).value.sort_index()
  share = {form: at[form, last] / at[form, first] for form in DECAYS}
  found = {form: sweeps.mean_of(values.to_numpy()) for form, values in share.items()}
  note = ', '.join(f'{form} {each.mean:.3f}' for form, each in found.items())
  lost = found['coupled']
  passed = lost.mean <= LOST and all(abs(found[form].mean - 1) <= KEPT for form in DECAYS[1:])
  few = lost.n < MIN_SEEDS
  return {'decay_coupled_vanishes': verdict(
      passed, lost, note, f'{lost.n} seeds, {MIN_SEEDS} are needed' if few else '')}


def multiplier(own: Found) -> dict[str, Outcome]:
  """Regret at the largest depth of the multiplier tuned at a quarter of it."""
  depths = sorted(own.multiplier)
  if len(depths) < 2:
    return {}
  source, deepest = depths[-2], depths[-1]
  tuned = own.multiplier[source]
  octave = tuned.octaves[tuned.best]
  # With a branch factor a that depth does not change, it is a (L / L_b)^1/2 of depth-muP.
  shifted = own.multiplier[deepest].regret(octave + 0.5 * math.log2(deepest / source))
  one = own.multiplier[deepest].regret(octave)
  problem = problem_of({('', depth): own.multiplier[depth] for depth in (source, deepest)}, '')
  if one is None or shifted is None:
    return {'multiplier_transfers': verdict(False, missing(), '', problem or BESIDE)}
  mean = sweeps.mean_regret(tuned, own.multiplier[deepest])
  gap = statistics.paired_difference(shifted, one)
  note = ', '.join(f'L={depth} {own.multiplier[depth].minimum():+.2f}' for depth in depths)
  return {'multiplier_transfers': verdict(
      mean.mean <= REGRET and gap.mean >= SEPARATION, mean,
      f'without the factor L^-1/2 minus it {shown(gap)}; fitted log2 a: {note}', problem)}


def second_order(rows: pd.DataFrame) -> dict[str, Outcome]:
  """Slopes of the second-order share against depth, and the published linearization."""
  own = rows[rows.phase == 'second']
  share = own[own.measure == 'share']
  if not len(share):
    return {}
  found = slopes_of(share)
  worst = max(abs(each.mean - (alpha - 1)) for alpha, each in found.items())
  seeds = min(each.n for each in found.values())
  outcome = {'second_order_share': checked(
      worst <= SLOPE, worst,
      ', '.join(f'alpha {alpha:g}: {shown(each)}' for alpha, each in found.items()),
      f'{seeds} seeds, {MIN_SEEDS} are needed' if seeds < MIN_SEEDS else '')}
  half = own[own.alpha == 0.5]
  medians = {form: half[half.measure == form].groupby('depth').value.median()
             for form in ('correct', 'notebook')}
  if len(medians['correct']):
    largest = float(medians['correct'].max())
    notebook = medians['notebook']
    outcome['linearization_published'] = checked(
        largest > ROUNDING, largest, f'the notebook\'s own sum: {notebook.iloc[0]:.2g} at '
        f'L={notebook.index[0]:g}, {notebook.iloc[-1]:.2g} at L={notebook.index[-1]:g}')
  return outcome


def slopes_of(share: pd.DataFrame) -> dict[float, Interval]:
  """alpha -> slope of log2 of the share on log2 of depth, over seeds."""
  return {float(alpha): sweeps.mean_of([
      sweeps.slope(np.log2(run.depth.to_numpy(float)), np.log2(run.value.to_numpy(float)))
      for _, run in each.groupby('seed')]) for alpha, each in share.groupby('alpha')}


def report(run: Run) -> Report:
  """Tables, verdicts and figures."""
  def figures():
    from experiments.figures import depth_mup  # matplotlib, which no table needs
    return depth_mup

  own = Found(run.rows[run.rows.part == PART], run.config)
  drawn: dict[str, Callable[[], Any]] = {
      'width_learning_rates': lambda: figures().widths(own.transfer, own.guess, run.dataset),
      'width_regret': lambda: figures().forest(
          regret_estimates(own), 'regret at the largest width (ln nats)', run.dataset,
          run.config.width.seeds)}
  if own.multiplier:
    drawn['multiplier'] = lambda: figures().multipliers(own.multiplier, own.guess, run.dataset)
  if (own.rows.phase == 'second').any():
    drawn['second_order'] = lambda: figures().second_order(own.rows)
  return Report(all_tables(own, run.dataset), outcomes(own.rows, run.config), drawn)


# Tables.


def regret_estimates(own: Found) -> list[Any]:
  """For the figure: regret at the largest width of every family."""
  from launch.study.plotting import Estimate
  first, *_, last = own.config.width.widths
  found = []
  for family in dict.fromkeys(name for name, _ in own.transfer):
    each = sweeps.mean_of(regret(own.transfer, family, first, last))
    found.append(Estimate(family, each.mean, each.low, each.high,
                          'beside the grid' if math.isnan(each.mean) else ''))
  return found


def all_tables(own: Found, dataset: str) -> list[Table]:
  """All tables of the part."""
  found = [transfer_table(own, dataset)]
  if own.decay:
    found.append(decay_table(own, dataset))
  if own.multiplier:
    found.append(multiplier_table(own, dataset))
  if (own.rows.phase == 'second').any():
    found += [second_table(own.rows)]
  return [table for table in found if table.rows]


def transfer_table(own: Found, dataset: str) -> Table:
  """Best learning rate by width."""
  first = own.config.width.widths[0]
  listed = [{'family': family, 'width': width,
             **swept_row(each, regret(own.transfer, family, first, width))}
            for (family, width), each in own.transfer.items()]
  return Table(
      f'Best learning rate by width: MLP with {own.config.width.layers} hidden layers on {dataset}',
      (Column('family', 'optimizer, parametrization', right=False),
       Column('width', 'width', format=integer()), *swept_columns('rate')), listed,
      [f'Regret: of the rate that is best at width {first}, where both parametrizations are the '
       'same. Means over seeds of ln of the mean training loss of the last eighth of the steps.'])


def decay_table(own: Found, dataset: str) -> Table:
  """The forms of AdamW's decay under muP."""
  first = own.config.width.decay_widths[0]
  kept = own.rows[own.rows.phase == 'kept']
  octave = decay_octave(own.config.width)
  kept = kept[np.isclose(kept.octave, octave)]
  listed = []
  for (form, width), each in own.decay.items():
    decay = kept[(kept.family == form) & (kept.width == width)].value
    listed.append({'family': form, 'width': width,
                   'decay': float(decay.mean()) if len(decay) else None,
                   **swept_row(each, regret(own.decay, form, first, width))})
  return Table(
      f"Weight decay of hidden kernels under muP on {dataset}",
      (Column('family', 'decay', right=False), Column('width', 'width', format=integer()),
       Column('decay', 'decay per step', format=significant(3)), *swept_columns('rate')), listed,
      [f'Decay per step: minus ln of the share of a hidden kernel\'s first values that is left at '
       f'the end, over that without a decay, over the steps, at log2 rate {octave:g}, where all '
       f'forms ask for {own.config.width.decay * 2.0 ** octave:.2g} at the base width. A '
       'coupled decay is multiplied by the rate\'s factor base / width.'])


def multiplier_table(own: Found, dataset: str) -> Table:
  """Best multiplier by depth."""
  depths = sorted(own.multiplier)
  found = {('', depth): own.multiplier[depth] for depth in depths}
  listed = [{'depth': depth, **swept_row(own.multiplier[depth], regret(
      found, '', depths[max(0, i - 1)], depth))} for i, depth in enumerate(depths)]
  return Table(
      f'Best multiplier a of depth-muP by depth on {dataset}, log2 rate '
      f'{own.config.width.multiplier_octave:g} at L={depths[0]}',
      (Column('depth', 'L', format=integer()), *swept_columns('a')), listed,
      ['Regret: of the a that is best at the depth before.'])


def second_table(rows: pd.DataFrame) -> Table:
  """Slopes of the second-order share, and the published linearization in both forms."""
  own = rows[rows.phase == 'second']
  listed = []
  for measure in dict.fromkeys(own.measure):
    each = own[own.measure == measure]
    slopes = slopes_of(each) if measure != 'correct' else {}  # rounding has no slope
    for alpha, values in each.groupby('alpha'):
      ends = values.groupby('depth').value.median()
      row = {'measure': NAMES[measure], 'alpha': alpha, 'first': ends.iloc[0],
             'last': ends.iloc[-1], 'n': values.seed.nunique()}
      if alpha in slopes:
        found = slopes[alpha]
        row |= {'slope': found.mean, 'interval': (found.low, found.high), 'predicted': alpha - 1}
      listed.append(row)
  return Table(
      'Second-order share of an update of a branch of two matrices', (
          Column('measure', 'measure', right=False), Column('alpha', 'alpha', format=fixed(2)),
          Column('first', f'L={own.depth.min():g}', format=significant(3)),
          Column('last', f'L={own.depth.max():g}', format=significant(3)),
          Column('slope', 'slope', format=fixed(3)),
          Column('interval', '95 %', format=interval(3)),
          Column('predicted', 'alpha - 1', format=fixed(2)),
          Column('n', 'n', format=integer())), listed,
      ['Medians at the smallest and the largest depth; slopes of log2 of the measure on log2 L, '
       'with t intervals. Share: |df - df_lin| / |df_lin| after an Adam step of both matrices '
       '(tanh). Published: one neuron (ReLU), after a step of the first matrix, against its '
       'linearization; '
       'the notebook takes the first row of the step for all rows, and with the right sum rounding '
       'is left.'])
