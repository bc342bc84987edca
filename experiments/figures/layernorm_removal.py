"""Figures of the study of LayerNorm removal, from its rows, nothing else."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from experiments.parts.removal_rows import difference, runs
from launch.study import plotting
from launch.study.plotting import Estimate

SHOWN = ('vanilla', 'ln_free', 'no_aux', 'at_once')  # of the training losses
MODELS = ('base', 'vanilla', 'ln_free')
FAR = 0.5  # nats


def of_part(rows: pd.DataFrame, events: pd.DataFrame, losses: pd.DataFrame,
            where: str) -> dict[str, Callable[[], Figure]]:
  """File stem -> drawing, for one part of the study."""
  drawn = {'losses': lambda: training_losses(losses, events, where),
           'entropies': lambda: entropies(
               rows[rows.phase == 'entropies'], rows[rows.phase == 'tuned'].steps.max(), where),
           'spectrum': lambda: spectrum(rows, where)}
  if rows[rows.phase == 'tuned'].arm.nunique() > 2:
    drawn['gaps'] = lambda: gaps(rows, where)
  return drawn


def training_losses(losses: pd.DataFrame, events: pd.DataFrame, where: str) -> Figure:
  """Training loss of every step minus that of vanilla on the same batch, mean over bases."""
  with plotting.style():
    figure = plotting.new_figure(6.5, 3.6)
    axes = figure.add_subplot()
    common = losses[losses.lr_factor == 1]
    vanilla = common[common.arm == 'vanilla'].set_index(['base', 'step']).loss
    for i, arm in enumerate(arm for arm in SHOWN if arm in set(common.arm) and arm != 'vanilla'):
      own = common[common.arm == arm].set_index(['base', 'step']).loss - vanilla
      by_step = own.groupby('step')
      plotting.line_with_band(axes, by_step.mean().index, by_step.mean(), by_step.min(),
                              by_step.max(), label=arm, index=i)
    axes.axhline(0, color=plotting.GREY, linewidth=0.8)
    for step in sorted(set(events[events.arm == 'ln_free'].step)):
      axes.axvline(step + 1, color=plotting.GREY, linewidth=0.5, linestyle=':', zorder=0)
    axes.set(xlabel='step of the fine-tuning', ylabel='training loss minus vanilla (nats)',
             title=f'{where}: mean and range over bases; dotted: events of ln_free')
    axes.legend()
  return figure


def gaps(rows: pd.DataFrame, where: str) -> Figure:
  """Validation loss of every arm minus vanilla, with the interval over bases.

  Arms FAR from vanilla are named and not drawn: all others would be one point beside them.
  """
  tuned = rows[rows.phase == 'tuned']
  reference, found, far = runs(rows, 'vanilla'), [], []
  for arm, factor in dict.fromkeys(zip(tuned.arm, tuned.lr_factor, strict=True)):
    paired = difference(runs(rows, arm, factor=factor), reference)
    if (arm, factor) != ('vanilla', 1.0) and paired.n:
      name = arm if factor == 1 else f'{arm}, rate x {factor:g}'
      if abs(paired.mean) < FAR:
        found.append(Estimate(name, paired.mean, paired.low, paired.high))
      else:
        far.append(f'{name} {paired.mean:+.2f}')
  with plotting.style():
    figure = plotting.new_figure(6.5, plotting.forest_height(len(found)))
    axes = figure.add_subplot()
    plotting.forest(axes, found, x_label='validation loss minus vanilla (nats)')
    beside = f'; not drawn: {", ".join(far)}' if far else ''
    axes.set_title(f'{where}, n = {len(reference)} bases, mean and 95 %{beside}')
  return figure


def entropies(rows: pd.DataFrame, steps: float, where: str) -> Figure:
  """Entropy of every head through the removal, mean over bases; one panel per layer.

  `steps`: of the fine-tuning, whose end the rows call -1.
  """
  rows = rows.assign(at=rows.step.where(rows.step >= 0, steps))
  layers = sorted(int(layer) for layer in rows.layer.unique())
  base = rows[rows.arm == 'base']
  with plotting.style():
    figure, panels = plotting.grid(len(layers), columns=4, width=2.4, height=2.0, share_y=True)
    for axes, layer in zip(panels, layers, strict=True):
      for i, arm in enumerate(('vanilla', 'ln_free')):
        own = pd.concat([base, rows[rows.arm == arm]])
        own = own[own.layer == layer]
        for head, line in own.groupby('head'):
          mean = line.groupby('at').relative.mean()
          axes.plot(mean.index, mean, color=plotting.PALETTE[i], alpha=0.9,
                    linestyle=plotting.DASHES[i], label=arm if head == 0 else None)
      axes.set_title(f'layer {layer}')
    about = f'{where}, mean of n = {rows.base.nunique()} bases'
    plotting.label_figure(figure, panels, x=f'step of the fine-tuning ({about})',
                          y='entropy of a head over its largest')
  return figure


def spectrum(rows: pd.DataFrame, where: str) -> Figure:
  """Singular values of the unembedding that the residual stream meets, first base."""
  own = rows[(rows.phase == 'card') & (rows.measure == 'singular_value')]
  own = own[own.base == own.base.min()]
  with plotting.style():
    figure = plotting.new_figure(5.5, 3.4)
    axes = figure.add_subplot()
    for i, arm in enumerate(arm for arm in MODELS if arm in set(own.arm)):
      values = np.sort(own[own.arm == arm].value.to_numpy(float))[::-1]
      axes.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-9), label=arm,
                    color=plotting.PALETTE[i], linestyle=plotting.DASHES[i])
    axes.set(xlabel='direction', ylabel='singular value over the largest',
             title=f'Unembedding of the first base, {where}')
    plotting.plain_log_axis(axes)
    axes.legend()
  return figure
