"""Tables and figures of the placement of layer norms, from its rows, nothing else.

Rows of `results` (results.csv) have the columns member, phase (selection, fresh, gradients), arm,
role, stem, learning_rate, lr_factor, seed, diverged_step (-1: never), the losses and accuracies;
those of the phase gradients have `at` (start, end) and gradient_ratio.
"""
from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from launch.study import plotting
from launch.study.tables import Column, Table, fixed, integer, interval, p_value
from model_lib.analysis import statistics
from model_lib.analysis.selection import Choice

ROLES = ('tested', 'control', 'baseline')
REFERENCE = 'pre/pre'
LINEAR = 'linear classifier'


def accuracy_table(title: str, results: pd.DataFrame, difference: Mapping[str, statistics.Paired],
                   choices: Mapping[str, Choice]) -> Table:
  """The tested arms, then the controls and the linear classifier.

  Args:
    title: of the table.
    results: uses the phase 'fresh'.
    difference: arm -> paired difference to the reference in points.
    choices: arm -> choice of the learning rate, where it was chosen.
  """
  fresh = results[results.phase == 'fresh']
  tested = [a for a in dict.fromkeys(fresh[fresh.role == 'tested'].arm) if a != REFERENCE]
  corrected = dict(zip(tested, statistics.holm([difference[a].p for a in tested]), strict=True))
  listed = []
  fresh = fresh.assign(order=fresh.role.map(ROLES.index)).sort_values(['order', 'member'])
  for arm, own in fresh.groupby('arm', sort=False):
    alive = own[own.diverged_step < 0]
    mean = statistics.mean_interval(100 * alive.test_accuracy.to_numpy(float))
    edge = arm in choices and choices[arm].edge
    paired = None if arm == REFERENCE else difference[arm]
    listed.append({
        'arm': arm, 'role': own.role.iloc[0],
        'rate': f'{own.learning_rate.iloc[0]:.3g}' + '*' * bool(edge),
        'accuracy': mean.mean, 'accuracy_interval': (mean.low, mean.high),
        'difference': paired and paired.mean,
        'difference_interval': paired and (paired.low, paired.high),
        'p': corrected.get(arm), 'loss': float(alive.test_loss.mean()), 'n': mean.n,
        'diverged': len(own) - len(alive), 'parameters': own.parameters.iloc[0]})
  columns = (
      Column('arm', 'blocks and stem', right=False), Column('role', 'role', right=False),
      Column('rate', 'learning rate'), Column('accuracy', 'test accuracy', '%', fixed(2)),
      Column('accuracy_interval', '95 %', format=interval(2)),
      Column('difference', f'minus {REFERENCE}', 'points', fixed(2, signed=True)),
      Column('difference_interval', '95 %', format=interval(2, signed=True)),
      Column('p', 'p', format=p_value()), Column('loss', 'test log-loss', 'nats', fixed(3)),
      Column('n', 'n', format=integer()), Column('diverged', 'diverged', format=integer()),
      Column('parameters', 'parameters', format=integer()))
  return Table(
      title, columns, listed,
      ['Differences are paired over seeds; 95 % t intervals. p: two-sided, Holm-corrected over the '
       'tested arms. *: the chosen learning rate is the smallest or the largest that was run.'])


def gradient_table(results: pd.DataFrame, dataset: str) -> Table:
  """The gradient of the stem over the median block's, by stem; geometric means over the seeds."""
  own = results[results.phase == 'gradients']
  listed = []
  for stem in dict.fromkeys(own.stem):
    row = {'stem': stem, 'n': int(own[own.stem == stem].seed.nunique())}
    for at in ('start', 'end'):
      ratio = statistics.geometric_interval(own[(own.stem == stem) & (own['at'] == at)]
                                            .gradient_ratio.to_numpy(float))
      row |= {at: ratio.mean, f'{at}_interval': (ratio.low, ratio.high)}
    listed.append(row)
  return Table(
      f'Gradient norm of the patch embedding over that of the median block, on {dataset}',
      (Column('stem', 'stem', right=False), Column('start', 'before training', format=fixed(2)),
       Column('start_interval', '95 %', format=interval(2)),
       Column('end', 'after training', format=fixed(2)),
       Column('end_interval', '95 %', format=interval(2)), Column('n', 'n', format=integer())),
      listed, ['Blocks pre/pre. Geometric means over seeds, 95 % t intervals of the logarithm.'])


def accuracy_differences(results: pd.DataFrame, dataset: str) -> Figure:
  """Test accuracy minus that of pre/pre, paired over seeds, 95 % t intervals; tested and controls.

  The linear classifier, far to the left, is left out: its distance stands in the table.
  """
  fresh = results[(results.phase == 'fresh') & (results.arm != LINEAR)]
  table = 100 * fresh[fresh.diverged_step < 0].pivot(index='seed', columns='arm',
                                                    values='test_accuracy')
  groups = [(role, [arm for arm in dict.fromkeys(fresh[fresh.role == role].arm)
                    if arm != REFERENCE])
            for role in dict.fromkeys(fresh.role)]
  groups = [(role, arms) for role, arms in groups if arms]
  with plotting.style():
    figure = plotting.new_figure(6.4, 0.5 + sum(plotting.forest_height(len(a)) for _, a in groups))
    panels = figure.subplots(max(1, len(groups)), 1, squeeze=False, sharex=True, gridspec_kw={
        'height_ratios': [plotting.forest_height(len(a)) for _, a in groups] or [1]})[:, 0]
    for axes, (role, arms) in zip(panels, groups):
      rows = []
      for arm in arms:
        own = (table[arm] - table[REFERENCE]).dropna() if arm in table else pd.Series(dtype=float)
        mean, low, high, _, _ = statistics.mean_interval(own.to_numpy(float))
        lost = int((fresh[fresh.arm == arm].diverged_step >= 0).sum())
        rows.append(plotting.Estimate(arm, mean, low, high, f'{lost} diverged' if lost else ''))
      plotting.forest(axes, rows, x_label='')
      axes.axvline(0, color=plotting.GREY, linewidth=0.9)
      axes.set_title({'tested': f'placements on {dataset}', 'control': 'controls'}[role])
    panels[-1].set_xlabel(f'test accuracy minus that of {REFERENCE} (points)')
  return figure


def learning_rates(results: pd.DataFrame, dataset: str) -> Figure:
  """Validation loss of the selection runs against the learning rate, a panel per arm.

  A rate at which a run diverged has no point; a ring marks the chosen one.
  """
  rows = results[results.phase == 'selection']
  loss = rows.assign(val_loss=rows.val_loss.where(rows.diverged_step < 0))
  arms = list(dict.fromkeys(rows.arm))
  with plotting.style():
    figure, panels = plotting.grid(len(arms), columns=4, share_x=False)
    for axes, arm in zip(panels, arms):
      line = loss[loss.arm == arm].groupby('learning_rate').val_loss.agg(
          lambda values: values.mean(skipna=False))
      axes.plot(line.index, line, marker='o', markersize=3, color=plotting.BLUE)
      if line.notna().any():
        axes.plot([line.idxmin()], [line.min()], 'o', markersize=8, markerfacecolor='none',
                  markeredgecolor=plotting.RED)
      axes.set_xscale('log')
      axes.set_xticks(line.index, [f'{rate:.1g}' for rate in line.index])
      axes.minorticks_off()
      axes.margins(x=0.15)
      axes.set_title(plotting.shorten(arm))
    plotting.label_figure(figure, panels, x=f'learning rate ({dataset})',
                          y='validation loss (nats)')
  return figure


def training_curves(metrics: pd.DataFrame, results: pd.DataFrame, dataset: str) -> Figure:
  """Median training loss over the fresh seeds against the step; a panel per role, without linear.

  A point is the mean over neighbouring records, ten to a curve at most, since one record is the
  loss of one batch.
  """
  fresh = results[(results.phase == 'fresh') & (results.arm != LINEAR)]
  # The lines of measurements' rows have no metrics; those of the final evaluation are no training.
  lines = metrics.merge(fresh[['member', 'arm', 'role']], on='member')
  last = lines.step.max()
  lines = lines[(lines.split == 'train') & (lines.step < last)]
  width = max(1.0, last / 10)
  lines = lines.assign(step=(lines.step // width + 0.5) * width)
  means = lines.groupby(['role', 'arm', 'member', 'step'], sort=False).loss.mean().reset_index()
  roles = list(dict.fromkeys(fresh.role))
  with plotting.style():
    figure = plotting.new_figure(4.4 * len(roles), 3.6)
    panels = figure.subplots(1, len(roles), squeeze=False, sharey=True)[0]
    for axes, role in zip(panels, roles):
      arms = [REFERENCE, *(a for a in dict.fromkeys(fresh[fresh.role == role].arm)
                           if a != REFERENCE)]
      for number, arm in enumerate(arms):
        middle = means[means.arm == arm].groupby('step').loss.median()
        axes.plot(middle.index, middle, label=arm,
                  color=plotting.PALETTE[number % len(plotting.PALETTE)],
                  linestyle=plotting.DASHES[number // len(plotting.PALETTE) % 4])
      axes.set_title(f'{role} on {dataset}')
      axes.set_xlabel('training step')
      axes.legend()
    panels[0].set_ylabel('training loss (nats)')
  return figure


def stem_gradients(results: pd.DataFrame, dataset: str) -> Figure:
  """The stem's gradient norm over the median block's: a point per seed, by stem and time."""
  rows = results[results.phase == 'gradients']
  stems = list(dict.fromkeys(rows.stem))
  with plotting.style():
    figure = plotting.new_figure(4.6, 3.2)
    axes = figure.subplots()
    for shift, (at, label) in enumerate((('start', 'before training'), ('end', 'after training'))):
      own = rows[rows['at'] == at]
      place = np.array([stems.index(stem) for stem in own.stem], float) + 0.24 * shift - 0.12
      axes.plot(place, own.gradient_ratio, 'os'[shift], color=plotting.PALETTE[shift],
                markersize=5, alpha=0.8, label=label)
    axes.axhline(1, color=plotting.GREY, linewidth=0.9)
    axes.set_xticks(range(len(stems)), [f'{stem} stem' for stem in stems])
    axes.set_xlim(-0.5, len(stems) - 0.5)
    axes.grid(axis='x', visible=False)
    axes.set_ylabel("stem's gradient norm / median block's")
    axes.set_title(f'blocks pre/pre on {dataset}')
    plotting.plain_log_axis(axes)
    axes.legend()
  return figure
