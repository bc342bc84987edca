"""Tables of the depth part of the depth-muP study."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd

from experiments.parts import sweeps
from experiments.parts.depth_cohorts import TOLERANCE
from experiments.parts.depth_families import COMPUTED, FAMILIES, FUNCTIONS, PAIRS, row_of
from experiments.parts.depth_found import Found
from launch.study.tables import Column, Table, fixed, integer, interval, significant
from model_lib.analysis import statistics

NAMES = {
    'depth_mup': 'depth-muP', COMPUTED: '(1/2, 0)', 'ode': 'ODE', 'sp': 'standard',
    'abs': 'abs', 'abs_matched': 'abs, matched', 'abs_same': 'abs, matched, same a',
    'pre': 'W f(x)', 'two': 'two matrices',
    'abs_normed': 'abs, norm', 'abs_normed_two': 'abs, norm, two matrices',
    'unscaled_relu': 'ReLU, gain 1'}
# What they are, for the notes.
LEGEND = ('depth-muP unless said otherwise; ReLU has gain sqrt(2); abs, matched: its gain gives '
          'the variance of that ReLU; same a: that of ReLU; W f(x): nonlinearity before it; '
          'norm: a branch reads the stream through a LayerNorm without parameters.')


def all_of(own: Found, dataset: str) -> list[Table]:
  """All tables of the part."""
  rows = own.rows
  found = [tuning_table(own, dataset), depth_table(own, dataset), regret_table(own, dataset),
           matrices_table(own, dataset), start_table(own, dataset), feature_table(rows, dataset)]
  if (rows.phase == 'gradients').any():
    found.append(gradient_table(rows))
  found.append(initialization_table())
  return [table for table in found if table.rows]


def tuning_table(own: Found, dataset: str) -> Table:
  """The choice of a and of the learning rate at the base depth."""
  listed = []
  tuned = own.rows[own.rows.phase == 'tune']
  for name, (a, _) in own.tuned.items():
    each = tuned[tuned.family == name]
    for value, group in each.groupby('a'):
      found = sweeps.sweep(group, own.guess)
      listed.append({'function': name, 'gain': FUNCTIONS[name].scale, 'a': value,
                     'argmin': found.minimum(), 'octave': found.octaves[found.best],
                     'loss': found.mean[found.best], 'n': len(found.seeds),
                     'chosen': 'yes' if value == a else ''})
  columns = (Column('function', 'nonlinearity', right=False),
             Column('gain', 'gain', format=fixed(3)), Column('a', 'a', format=significant(3)),
             Column('octave', 'best log2 rate', format=fixed(1)),
             Column('argmin', 'fitted', format=fixed(2)),
             Column('loss', 'log-loss', 'ln nats', fixed(2)),
             Column('n', 'n', format=integer()), Column('chosen', 'kept', right=False))
  at_edge = [name for name, (a, _) in own.tuned.items()
             if a in (own.config.depth.multipliers[0], own.config.depth.multipliers[-1])]
  notes = ['Means over seeds of ln of the mean training loss of the last eighth of the steps. '
           'Kept, for every depth and family of the nonlinearity, is the smallest a whose lowest '
           f'one is within {TOLERANCE:g} of the lowest of all: at this depth, where all '
           'parametrizations are the same, a may hardly matter, while the stream of a deep network '
           'grows with a^2 (see the table before the first step).']
  if at_edge:
    notes.append(f'The kept a is the smallest or the largest that was tried for '
                 f'{", ".join(at_edge)}.')
  return Table(f'Multiplier and learning rate at L={own.depths[0]} on {dataset}', columns, listed,
               notes)


def depth_table(own: Found, dataset: str) -> Table:
  """Best learning rate and lowest log-loss of every family by depth."""
  listed, base = [], own.depths[0]
  for name in own.shown:
    for depth in own.depths:
      found = own.sweep(name, depth)
      moved = own.shift(name, base, depth)
      best = statistics.mean_interval(found.losses[found.best])
      low, high = sweeps.over_seeds(lambda s, f=found: f.drawn(s).minimum(),
                                    len(found.seeds))[1:3]
      listed.append({
          'family': NAMES[name], 'depth': depth, 'octave': found.octaves[found.best] - moved,
          'argmin': found.minimum() - moved, 'argmin_interval': (low - moved, high - moved),
          'loss': best.mean, 'loss_interval': (best.low, best.high), 'n': best.n,
          'edge': ('no run learned' if not own.learned(name, depth) else
                   'edge' if found.at_edge else '')})
  columns = (Column('family', 'family', right=False), Column('depth', 'L', format=integer()),
             Column('octave', 'best log2 rate', format=fixed(1)),
             Column('argmin', 'fitted', format=fixed(2)),
             Column('argmin_interval', '95 %', format=interval(2)),
             Column('loss', 'log-loss', 'ln nats', fixed(2)),
             Column('loss_interval', '95 %', format=interval(2)),
             Column('n', 'n', format=integer()), Column('edge', 'note', right=False))
  return Table(
      f'Best learning rate by depth on {dataset}', columns, listed,
      [f'Families: {LEGEND}', '(1/2, 0) is computed from the runs of depth-muP: a rate eta of the '
       'one is eta (L / L_b)^1/2 of the other, exactly. At the base depth the rows are the tuning '
       'runs, which all families of a nonlinearity share. Fitted: minimum of a parabola through '
       'five points about the best one, with its bootstrap interval over seeds; log-losses with t '
       'intervals. A run that '
       'diverged, or ended above guessing, counts as guessing '
       f'({fixed(2)(math.log(own.guess))}).'])


def regret_table(own: Found, dataset: str) -> Table:
  """What the deepest network loses by the rate of shallower ones."""
  deepest, listed = own.depths[-1], []
  for name in own.shown:
    for source in dict.fromkeys((own.depths[-3], own.depths[0])):
      regret = own.regret(name, source, deepest)
      found = sweeps.mean_of(regret)
      drift = None if regret is None else (
          own.sweep(name, deepest).minimum() - own.sweep(name, source).minimum()
          - own.shift(name, source, deepest))
      listed.append({'family': NAMES[name], 'source': source, 'regret': found.mean,
                     'interval': (found.low, found.high), 'drift': drift, 'n': found.n,
                     'bootstrap': None if regret is None else tuple(
                         own.bootstrapped_regret(name, source, deepest)[1:3])})
  columns = (Column('family', 'family', right=False),
             Column('source', 'rate tuned at L', format=integer()),
             Column('regret', f'regret at L={deepest}', 'ln nats', fixed(2)),
             Column('interval', '95 %', format=interval(2)),
             Column('bootstrap', 'bootstrap', format=interval(2)),
             Column('drift', 'drift of the fitted rate', 'octaves', fixed(2, signed=True)),
             Column('n', 'n', format=integer()))
  return Table(f'Regret of a transferred learning rate on {dataset}', columns, listed,
               ['Log-loss at the transferred rate minus that at the best one, over seeds; both '
                'rates are those with the lowest mean. Bootstrap: over seeds, both rates chosen '
                'anew in every draw. A dash: a rate lies beside the grid, or no run learned.'])


def matrices_table(own: Found, dataset: str) -> Table:
  """Blocks of one matrix against half as many of two."""
  listed = []
  for one, two in PAIRS:
    for matrices, losses, others in own.paired(one, two):
      low = [statistics.mean_interval(each) for each in (losses, others)]
      gap = statistics.paired_difference(losses, others)
      listed.append({'family': NAMES[one], 'matrices': matrices, 'one': low[0].mean,
                     'one_interval': (low[0].low, low[0].high), 'two': low[1].mean,
                     'two_interval': (low[1].low, low[1].high), 'gap': gap.mean,
                     'gap_interval': (gap.low, gap.high), 'n': gap.n})
  return Table(
      f'Blocks of one matrix and of two, at equal numbers of matrices, on {dataset}', (
          Column('family', 'family', right=False),
          Column('matrices', 'matrices', format=integer()),
          Column('one', 'one', 'ln nats', fixed(2)), Column('one_interval', '95 %',
                                                            format=interval(2)),
          Column('two', 'two', 'ln nats', fixed(2)), Column('two_interval', '95 %',
                                                            format=interval(2)),
          Column('gap', 'one - two', 'ln nats', fixed(2, signed=True)),
          Column('gap_interval', '95 %', format=interval(2)), Column('n', 'n', format=integer())),
      listed, ['Lowest log-losses; the difference is paired over seeds.'])


def start_table(own: Found, dataset: str) -> Table:
  """Loss and growth of the stream before any step, and the growth that theory predicts."""
  from model_lib.analysis.stream_growth import stream_variances  # JAX, after its threads are set
  from model_lib.parametrization import get_parametrization
  rows, listed, relu = own.rows[own.rows.phase == 'start'], [], FUNCTIONS['relu']
  for (name, a, depth), each in rows.groupby(['family', 'a', 'depth'], sort=False):
    mean = each.groupby('measure').value.mean()
    row = get_parametrization(row_of(FAMILIES[name], own.depths[0]))
    variances = stream_variances(relu.activation, int(depth), a * row.branch_multiplier(int(depth)),
                                 relu.scale)
    listed.append({'family': NAMES[name], 'a': a, 'depth': depth, 'loss': mean['loss'],
                   'growth': mean['growth'], 'predicted': variances[-1] ** 0.5,
                   'n': each.seed.nunique()})
  return Table(f'Before the first step, on {dataset}', (
      Column('family', 'family', right=False), Column('a', 'a', format=significant(3)),
      Column('depth', 'L', format=integer()), Column('loss', 'loss', 'nats', significant(3)),
      Column('growth', 'rms(x_L) / rms(x_0)', format=significant(3)),
      Column('predicted', 'predicted', format=significant(3)),
      Column('n', 'n', format=integer())), listed,
      ['Predicted: for infinite width, from the variance of the activation.'])


def initialization_table() -> Table:
  """What theory says of the start of networks with an activation; nothing is run."""
  from model_lib.analysis import initialization_table as theory  # JAX, as above
  listed = [dataclasses.asdict(row) for row in theory.table()]
  moments = (('mean', 'E f'), ('second', 'E f^2'), ('variance', 'Var f'),
             ('gain', '1 / (E f^2)^1/2'), ('centred_gain', '1 / std f'), ('slope_second', "E f'^2"), ('chi', 'chi'),
             ('slope_share', "(E f')^2 / E f'^2"), ('he', 'He: N Var w'),
             ('kumar', 'Kumar: N Var w'))
  return Table(
      'Initialization: moments of f(z), z ~ N(0, 1), and the rules of He and Kumar',
      (Column('activation', 'activation', right=False),
       *(Column(key, title, format=fixed(4)) for key, title in moments),
       Column('kumar_case', 'case', right=False)), listed,
      ['With N summands and N Var w = gain^2 = 1 / E f^2 a layer keeps the second moment, and chi '
       "= gain^2 E f'^2 is what it then multiplies a gradient's by. He et al. 2015 "
       '(arXiv:1502.01852) for a function of two straight pieces; Kumar 2017 (arXiv:1704.08863) '
       'linearizes f at 0, and says nothing where its slope there is 0 or does not exist (second '
       'moment: gain^2 stands there).'])


def feature_table(rows: pd.DataFrame, dataset: str) -> Table:
  """Slopes of log d(eps) on log eps along depth."""
  own = rows[rows.phase == 'features']
  listed = []
  for (name, depth, step), each in own.groupby(['family', 'depth', 'step'], sort=False):
    row: dict[str, Any] = {'family': NAMES[name], 'depth': depth, 'step': step,
                           'n': each.seed.nunique()}
    for what in ('stream', 'change'):
      slopes = each[each.measure == f'slope_{what}'].value.to_numpy(float)
      if len(slopes):
        found = statistics.mean_interval(slopes)
        row |= {what: found.mean, f'{what}_interval': (found.low, found.high)}
    moved = each[each.measure == 'moved'].value
    row['moved'] = float(moved.mean()) if len(moved) else None
    listed.append(row)
  return Table(f'Feature diversity along depth on {dataset}', (
      Column('family', 'family', right=False), Column('depth', 'L', format=integer()),
      Column('step', 'step', format=integer()),
      Column('stream', 'slope of x_t', format=fixed(3)),
      Column('stream_interval', '95 %', format=interval(3)),
      Column('change', 'slope of x_t - x_0', format=fixed(3)),
      Column('change_interval', '95 %', format=interval(3)),
      Column('moved', 'rms(x_t - x_0) / rms(x_t)', format=fixed(2)),
      Column('n', 'n', format=integer())), listed,
      ['Slope of log d(eps) on log eps, eps = 1/64 to 1/8 of the depth: 1/2 for a random walk, 1 '
       'for a smooth function of depth; kappa is 1 minus it. At step 0 every family is a random '
       'walk.'])


def gradient_table(rows: pd.DataFrame) -> Table:
  """Cosines of gradients of neighbouring layers, the largest deviation first."""
  own = rows[rows.phase == 'gradients']
  wide = own.pivot(index='activation', columns='prenorm', values=['value', 'predicted'])
  listed = []
  for name, row in wide.iterrows():
    predicted = row['predicted', 1]
    listed.append({'activation': name, 'predicted': predicted, 'normed': row['value', 1],
                   'apart': row['value', 1] - predicted, 'plain': row['value', 0]})
  listed.sort(key=lambda row: -abs(row['apart']))
  return Table('Gradient diversity: cosine of neighbouring layers at the start', (
      Column('activation', 'activation', right=False),
      Column('predicted', "(E f')^2 / E f'^2", format=fixed(3)),
      Column('normed', 'measured, prenorm', format=fixed(3)),
      Column('apart', 'difference', format=fixed(3, signed=True)),
      Column('plain', 'without norm', format=fixed(3))), listed,
      [f'{len(listed)} pointwise functions, largest difference first.'])
