"""Figures of the depth-muP study, from its rows, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from experiments.parts import sweeps
from experiments.parts.depth_families import FAMILIES, FUNCTIONS
from experiments.parts.depth_tables import NAMES
from experiments.parts.sweeps import Sweep
from launch.study import plotting
from launch.study.plotting import Estimate
from model_lib.analysis.feature_diversity import SHARES

SHADES = 'viridis'
MARK = 'o'


def shades(count: int) -> list[Any]:
  """Colours from dark to light, for an ordered quantity."""
  import matplotlib
  return [matplotlib.colormaps[SHADES](i / max(1, count - 1) * 0.88) for i in range(count)]


def bowls(axes: Axes, found: Mapping[str, tuple[Sweep, float]], guess: float) -> None:
  """Mean log-loss of sweeps against the rate, each with its marked minimum.

  Args:
    axes: where to draw.
    found: label -> (sweep, octaves by which its grid is moved to the left), in order.
    guess: loss of guessing, the line on top.
  """
  for color, (label, (own, moved)) in zip(shades(len(found)), found.items(), strict=True):
    x = own.octaves - moved
    axes.fill_between(x, own.losses.min(1), own.losses.max(1), color=color, alpha=0.12, linewidth=0)
    axes.plot(x, own.mean, color=color, label=label)
    axes.plot(x[own.best], own.mean[own.best], MARK, color=color, markersize=6,
              markeredgecolor='black', markeredgewidth=0.7)
  axes.axhline(math.log(guess), color=plotting.GREY, linewidth=0.8, linestyle=':')


def learning_rates(own: Any, dataset: str) -> Figure:
  """Log-loss against the learning rate by depth, one panel per family; minima are marked."""
  with plotting.style():
    figure, panels = plotting.grid(len(own.shown), columns=3, width=2.7, height=2.2, share_x=False,
                                   share_y=True)
    for axes, name in zip(panels, own.shown, strict=True):
      bowls(axes, {f'L={depth}': (own.sweep(name, depth), own.shift(name, own.depths[0], depth))
                   for depth in own.depths}, own.guess)
      axes.set_title(NAMES[name])
    plotting.label_figure(
        figure, panels, x=f'log2 learning rate ({dataset}, n = {own.config.depth.seeds} seeds, '
        'range shaded; circle: lowest mean; dotted: guessing)', y='ln training loss (nats)')
  return figure


def lowest_losses(own: Any, dataset: str) -> Figure:
  """Lowest log-loss of every family against the number of matrices that its blocks hold.

  As in Figs. 2 to 5 of Yang et al. 2023: blocks of two matrices are compared with twice as many of
  one.
  """
  families = own.config.depth.families
  with plotting.style():
    figure = plotting.new_figure(6.6, 3.6)
    axes, counts = figure.add_subplot(), set()
    for i, name in enumerate(families):
      per_block = FUNCTIONS[FAMILIES[name].function].block_depth
      losses = np.array([own.best(name, depth) for depth in own.depths])
      matrices = [per_block * depth for depth in own.depths]
      counts.update(matrices)
      plotting.line_with_band(axes, matrices, losses.mean(1),
                              losses.min(1), losses.max(1), label=NAMES[name], index=i)
    axes.axhline(math.log(own.guess), color=plotting.GREY, linewidth=0.8, linestyle=':')
    axes.set_xscale('log', base=2)
    axes.set(xlabel='matrices in the stack', ylabel='lowest ln training loss (nats)',
             title=f'{dataset}, mean and range of n = {own.config.depth.seeds} seeds; dotted: '
             'guessing')
    axes.set_xticks(sorted(counts), [f'{count:g}' for count in sorted(counts)])
    axes.legend(loc='center left', bbox_to_anchor=(1.02, 0.5))
  return figure


def regrets(own: Any, dataset: str) -> Figure:
  """Regret at the largest depth of rates tuned at two others, with intervals over seeds."""
  found, deepest = [], own.depths[-1]
  for name in own.shown:
    for source in dict.fromkeys((own.depths[-3], own.depths[0])):
      regret = sweeps.mean_of(own.regret(name, source, deepest))
      learned = own.learned(name, source) and own.learned(name, deepest)
      found.append(Estimate(f'{NAMES[name]}, from L={source}', regret.mean, regret.low,
                            regret.high, '' if not math.isnan(regret.mean) else
                            'beside the grid' if learned else 'nothing learned'))
  return forest(found, f'regret at L={deepest} (ln nats)', dataset, own.config.depth.seeds)


def forest(found: Sequence[Estimate], x: str, dataset: str, seeds: int) -> Figure:
  """Estimates with intervals, the largest on top; the line is the gate's 0.15."""
  with plotting.style():
    figure = plotting.new_figure(6.5, plotting.forest_height(len(found)))
    axes = figure.add_subplot()
    plotting.forest(axes, found, x_label=x)
    axes.axvline(0.15, color=plotting.GREY, linewidth=0.8, linestyle=':')
    axes.set_title(f'{dataset}, n = {seeds} seeds, mean and 95 %; dotted: 0.15')
  return figure


def feature_diversity(rows: pd.DataFrame, dataset: str) -> Figure:
  """d(eps) over d(1/64), log-log, at the largest depth; slopes 1/2 and 1 beside it."""
  own = rows[rows.phase == 'features']
  own = own[own.depth == own.depth.max()]
  steps = sorted(own.step.unique())
  panels = [('stream', 0, 'x_0')] + [(kind, step, f'{name} at t={step:g}') for step in steps if step
                                     for kind, name in (('stream', 'x_t'), ('change', 'x_t - x_0'))]
  eps = np.array(SHARES)
  with plotting.style():
    figure, axes_of = plotting.grid(len(panels), columns=3, width=2.5, height=2.2, share_y=True)
    for axes, (kind, step, title) in zip(axes_of, panels, strict=True):
      for slope in (0.5, 1.0):
        axes.plot(eps, (eps / eps[0]) ** slope, color=plotting.GREY, linewidth=0.9,
                  linestyle='-' if slope == 0.5 else ':', label=f'slope {slope:g}')
      for i, (name, each) in enumerate(own[(own.step == step)
                                           & (own.measure == f'distance_{kind}')
                                           ].groupby('family', sort=False)):
        table = each.pivot(index='share', columns='seed', values='value')
        table = table / table.iloc[0]
        plotting.line_with_band(axes, table.index, table.mean(axis=1), table.min(axis=1),
                                table.max(axis=1), label=NAMES[name], index=i)
      axes.set(title=title, xscale='log', yscale='log', xticks=eps,
               xticklabels=[f'1/{round(1 / e)}' for e in eps])
      axes.minorticks_off()
      axes.set_yticks([1, 2, 4, 8], ['1', '2', '4', '8'])
    plotting.label_figure(figure, axes_of, x=f'eps, share of the depth L={own.depth.max():g} '
                          f'({dataset}, mean and range over {own.seed.nunique()} seeds)',
                          y='d(eps) / d(1/64)')
  return figure


def gradient_diversity(rows: pd.DataFrame, dataset: str) -> Figure:
  """Measured cosines against the predicted ones."""
  del dataset
  own = rows[rows.phase == 'gradients']
  with plotting.style():
    figure = plotting.new_figure(4.6, 4.4)
    axes = figure.add_subplot()
    axes.plot([-0.05, 1.05], [-0.05, 1.05], color=plotting.GREY, linewidth=0.9)
    axes.fill_between([-0.05, 1.05], [-0.08, 1.02], [-0.02, 1.08], color=plotting.GREY, alpha=0.2,
                      linewidth=0, label='within 0.03')
    for prenorm, label, marker, color in ((0, 'without norm', 'x', plotting.ORANGE),
                                          (1, 'prenorm', 'o', plotting.BLUE)):
      each = own[own.prenorm == prenorm]
      axes.plot(each.predicted, each.value, marker, color=color, markersize=4, linestyle='',
                label=label)
    plain = own[own.prenorm == 0].assign(apart=lambda f: (f.value - f.predicted).abs())
    for _, row in plain.nlargest(4, 'apart').iterrows():
      axes.annotate(row.activation, (row.predicted, row.value), textcoords='offset points',
                    xytext=(4, -8), fontsize=7)
    axes.set(xlabel="predicted: (E f')^2 / E f'^2", ylabel='cosine of neighbouring layers',
             title=f'{own.activation.nunique()} functions, n={own.width.max():g}, '
             f'L={own.depth.max():g}, at the start')
    axes.legend()
  return figure


def maps(rows: pd.DataFrame, guess: float, dataset: str) -> Figure:
  """Log-loss over log2 rate and log2 a for blocks of two matrices; the valley's points marked."""
  own = rows[rows.phase == 'map']
  depths = sorted(own.depth.unique())
  with plotting.style():
    figure = plotting.new_figure(3.4 * len(depths), 3.2)
    for i, depth in enumerate(depths):
      axes = figure.add_subplot(1, len(depths), i + 1)
      each = own[own.depth == depth]
      table = each.assign(loss=sweeps.log_losses(each, guess)).pivot_table(
          index='a', columns='octave', values='loss')
      a = np.log2(table.index.to_numpy(float))
      drawn = axes.pcolormesh(table.columns, a, table, cmap='viridis_r')
      low = table.to_numpy() <= table.to_numpy().min() + 0.3
      for row, column in zip(*np.nonzero(low), strict=True):
        axes.plot(table.columns[column], a[row], 'o', color='white', markeredgecolor='black',
                  markersize=4)
      axes.set(title=f'L={depth:g}', xlabel='log2 learning rate', ylabel='log2 a' if not i else '')
      axes.grid(visible=False)
      figure.colorbar(drawn, ax=axes)
    figure.suptitle(f'Blocks of two matrices on {dataset}: ln loss, mean of n = '
                    f'{own.seed.nunique()}; dots within 0.3 of the best', fontsize=9)
  return figure


def widths(found: Mapping[tuple[str, int], Sweep], guess: float, dataset: str) -> Figure:
  """Log-loss against the learning rate by width, one panel per optimizer and parametrization."""
  families = list(dict.fromkeys(name for name, _ in found))
  sizes = sorted({width for _, width in found})
  with plotting.style():
    figure, panels = plotting.grid(len(families), columns=2, width=3.0, height=2.2, share_x=False,
                                   share_y=True)
    for axes, family in zip(panels, families, strict=True):
      bowls(axes, {f'width {width}': (found[family, width], 0.0) for width in sizes
                   if (family, width) in found}, guess)
      axes.set_title(family)
    plotting.label_figure(figure, panels, x=f'log2 learning rate ({dataset}, n = '
                          f'{len(next(iter(found.values())).seeds)} seeds, range shaded; circle: '
                          'lowest mean)', y='ln training loss (nats)')
  return figure


def multipliers(found: Mapping[int, Sweep], guess: float, dataset: str) -> Figure:
  """Log-loss against the multiplier a by depth."""
  with plotting.style():
    figure = plotting.new_figure(4.6, 3.2)
    axes = figure.add_subplot()
    bowls(axes, {f'L={depth}': (own, 0.0) for depth, own in found.items()}, guess)
    axes.set(xlabel='log2 a', ylabel='ln training loss (nats)',
             title=f'depth-muP at one learning rate, {dataset}; circle: lowest mean')
    axes.legend()
  return figure


def second_order(rows: pd.DataFrame) -> Figure:
  """Second-order share of an update of a branch of two matrices against depth."""
  own = rows[(rows.phase == 'second') & (rows.measure == 'share')]
  with plotting.style():
    figure = plotting.new_figure(4.6, 3.2)
    axes = figure.add_subplot()
    for i, (alpha, each) in enumerate(own.groupby('alpha')):
      table = each.groupby('depth').value
      plotting.line_with_band(axes, table.mean().index, table.mean(), table.quantile(0.25),
                              table.quantile(0.75), label=f'alpha = {alpha:g}', index=i)
    axes.set(xlabel='L', ylabel='second-order share of the update',
             title='Branches of two matrices, tanh, after one Adam step')
    axes.set_xscale('log', base=2)
    depths = sorted(own.depth.unique())
    axes.set_xticks(depths, [f'{depth:g}' for depth in depths])
    axes.minorticks_off()
    plotting.plain_log_axis(axes)
    axes.legend()
  return figure
