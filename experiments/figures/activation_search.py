"""Figures of the activation search: from its tables to matplotlib figures, nothing else.

Rows of `results` (results.csv) have the columns member, run, phase, model, activation, copy,
lr_factor, learning_rate, seed, split, diverged_step (-1: never), and the losses and accuracies.
Rows of `metrics` (metrics.jsonl) have run, member, split, step, loss, accuracy. Nothing here
trains, reads a file or chooses a winner.
"""
from __future__ import annotations

from typing import Sequence

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from launch.study import plotting
from model_lib.analysis import statistics

REFERENCE = 'relu'
HIGHEST = 10  # times the reference's best loss: the top of the axis of the learning rates
HIGHLIGHT = ('relu', 'gelu', 'silu', 'crrelu', 'ash', 'identity')


def functions_and_derivatives(specs: Sequence[str], half_width: float = 4.0,
                              points: int = 1601) -> Figure:
  """f and f' of each activation on [-half_width, half_width], parameters at their first values.

  A gated activation shows its gate function; one that depends on the statistics of its input
  shows them at mean 0 and variance 1. Lines break where f jumps.

  Args:
    specs: spec strings of the registry.
    half_width: of the range of x.
    points: of the grid.
  """
  return plotting.function_grid(
      {spec: _curve(spec, half_width, points) for spec in specs}, x_label='pre-activation x')


def accuracy_with_intervals(results: pd.DataFrame) -> Figure:
  """Mean test accuracy with its 95 % t interval over the fresh seeds, sorted, one panel per model.

  Diverged runs are left out of the mean and counted in the label. The grey band is the range
  of the means of the null row: what copies of one activation differ by.

  Args:
    results: uses the phases 'fresh' and 'null_fresh'.
  """
  fresh = results[results.phase == 'fresh']
  models = list(dict.fromkeys(fresh.model))
  estimates = {model: _accuracies(fresh[fresh.model == model]) for model in models}
  most = max((len(rows) for rows in estimates.values()), default=0)
  with plotting.style():
    figure = plotting.new_figure(0.6 + 4.6 * max(1, len(models)), plotting.forest_height(most))
    panels = figure.subplots(1, max(1, len(models)), squeeze=False)[0]
    for axes, model in zip(panels, models):
      null = results[(results.phase == 'null_fresh') & (results.model == model)]
      means = null[null.diverged_step < 0].groupby('copy').test_accuracy.mean()
      band = (100 * means.min(), 100 * means.max()) if len(means) else None
      plotting.forest(
          axes, estimates[model], x_label='test accuracy (%)', band=band,
          band_label=f'range of the means of {len(means)} copies of {REFERENCE}',
          highlight=(REFERENCE,))
      axes.set_title(model)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
      figure.legend(handles, labels, loc='outside upper center', ncols=len(labels))
  return figure


def learning_rate_sensitivity(results: pd.DataFrame) -> Figure:
  """Mean validation loss against the learning rate, one panel per activation, one line per model.

  A learning rate at which any run diverged has no point: its line stops there. A ring marks
  the best of each line. The loss is drawn over the model's best reference loss, so that models
  share an axis; a triangle at the top stands for more than HIGHEST, which would flatten all else.

  Args:
    results: uses the phase 'selection'.
  """
  rows = results[results.phase == 'selection']
  models = list(dict.fromkeys(rows.model))
  names = list(dict.fromkeys(rows.activation))
  table = _selection_means(rows)
  scale = {model: _best_loss(table, model) for model in models}
  factors = sorted(set(rows.lr_factor))
  with plotting.style():
    figure, panels = plotting.grid(len(names), share_y=True)
    for axes, name in zip(panels, names):
      for index, model in enumerate(models):
        line = (table.get((model, name), pd.Series(dtype=float)) / scale[model]).reindex(factors)
        color = plotting.PALETTE[index]
        axes.plot(factors, line.clip(upper=HIGHEST), marker='o', markersize=3, color=color,
                  linestyle=plotting.DASHES[index], label=model)
        above = line[line > HIGHEST]
        axes.plot(above.index, [HIGHEST] * len(above), '^', markersize=7, color=color)
        for factor in above.index:
          axes.annotate(f'> {HIGHEST}', (factor, HIGHEST), xytext=(-6, 0),
                        textcoords='offset points', ha='right', va='center', color=color)
        if line.notna().any():
          axes.plot([line.idxmin()], [line.min()], 'o', markersize=8, markerfacecolor='none',
                    markeredgecolor=color)
      axes.set_title(plotting.shorten(name))
      axes.set_xscale('log')
      axes.set_xticks(factors, [f'{factor:.2g}' for factor in factors])
      axes.minorticks_off()
      axes.margins(x=0.15)
    if panels:
      plotting.plain_log_axis(panels[0])  # the others share it
    base = f'multiple of {REFERENCE}\'s best'
    plotting.label_figure(figure, panels, x='learning rate (multiple of the base)',
                          y=f'validation loss ({base})')
  return figure


def training_curves(metrics: pd.DataFrame, results: pd.DataFrame | None = None,
                    highlight: Sequence[str] = HIGHLIGHT) -> Figure:
  """Median loss over the runs against the step; a panel per model and split
  that was recorded more than once.

  The highlighted activations have a colour and the band of their quartiles; all others are thin
  grey lines behind them. Values that are not finite (diverged runs) are left out of the medians.

  Args:
    metrics: the lines of metrics.jsonl.
    results: gives model and activation of each member; only the phase 'fresh' is drawn. Without
      it a line is a cohort ('run'), all in one row.
    highlight: activations in colour (a name alone takes it with any settings), at most as many
      as the palette has; without `results` the first cohorts are.
  """
  if results is None:
    lines = metrics.assign(model='', activation=metrics.run)
    highlight = list(dict.fromkeys(metrics.run))
  else:
    fresh = results[results.phase == 'fresh'][['member', 'model', 'activation']]
    lines = metrics.merge(fresh, on='member')
  names = list(dict.fromkeys(lines.activation))
  highlight = [name for wanted in highlight for name in names
               if wanted in (name, name.split('(')[0])][:len(plotting.PALETTE)]
  # A split that was evaluated at the end alone has a point per run and no curve.
  points = lines.groupby(['model', 'split']).step.nunique()
  splits = [s for s in ('train', 'val', 'test')
            if any(split == s and n > 1 for (_, split), n in points.items())]
  models = list(dict.fromkeys(lines.model))
  columns = len(models) if len(splits) == 1 else max(1, len(splits))
  with plotting.style():
    figure, panels = plotting.grid(len(models) * len(splits), columns=columns,
                                   width=3.6, height=2.6, share_y=True)
    keys = [(model, split) for model in models for split in splits]
    for axes, (model, split) in zip(panels, keys):
      chosen = lines[(lines.model == model) & (lines.split == split)]
      for name, group in chosen.groupby('activation', sort=False):
        if name not in highlight:
          x, (_, middle, _) = _loss_quartiles(group)
          axes.plot(x, middle, color=plotting.GREY, linewidth=0.5, alpha=0.6)
      for index, name in enumerate(highlight):
        x, (low, middle, high) = _loss_quartiles(chosen[chosen.activation == name])
        plotting.line_with_band(axes, x, middle, low, high, label=plotting.shorten(name),
                                index=index)
      axes.set_title(', '.join(part for part in (model, split) if part))
    if panels:
      plotting.plain_log_axis(panels[0])
    plotting.label_figure(figure, panels, x='training step', y='loss (nats per example)')
  return figure


def regret_curves(regrets: pd.DataFrame) -> Figure:
  """Mean regret of every algorithm against the budget, with 95 % intervals, one panel per table.

  Args:
    regrets: rows with table ('trained', 'permuted'), algorithm, evaluations, regret, regret_low,
      regret_high and bound, the regret of looking at everything.
  """
  tables = list(dict.fromkeys(regrets.table))
  with plotting.style():
    figure = plotting.new_figure(0.4 + 3.6 * len(tables), 3.4)
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axes, table in zip(panels, tables):
      own = regrets[regrets.table == table]
      for index, (name, group) in enumerate(own.groupby('algorithm', sort=False)):
        plotting.line_with_band(axes, group.evaluations, group.regret, group.regret_low,
                                group.regret_high, label=name, index=index)
      axes.axhline(own.bound.iloc[0], color=plotting.GREY, linewidth=1.0, label='exhaustive')
      axes.set_xscale('log')
      budgets = sorted({int(count) for count in own.evaluations})
      axes.set_xticks(budgets, labels=[str(count) for count in budgets])
      axes.minorticks_off()
      axes.set_ylim(bottom=0)
      axes.set_xlabel('budget (full trainings)')
      axes.set_title(f'{table} losses')
    panels[0].set_ylabel('regret in test log-loss (nats)')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=len(labels))
  return figure


def proxy_taus(rows: pd.DataFrame) -> Figure:
  """Kendall's tau of every proxy with its 95 % interval; the table's own reliability as a line.

  Args:
    rows: phases 'proxy' (proxy, tau, tau_low, tau_high) and 'ceiling' (proxy 'all', tau).
  """
  found = rows[rows.phase == 'proxy']
  ceiling = rows[(rows.phase == 'ceiling') & (rows.proxy == 'all')].tau
  estimates = [plotting.Estimate(row.proxy, row.tau, row.tau_low, row.tau_high)
               for row in found.itertuples()]
  with plotting.style():
    figure = plotting.new_figure(6.2, plotting.forest_height(len(estimates)))
    axes = figure.subplots()
    plotting.forest(axes, estimates, x_label="Kendall's tau with the mean test loss, in the "
                    'expected direction')
    axes.axvline(0, color=plotting.GREY, linewidth=0.8)
    if len(ceiling):
      axes.axvline(float(ceiling.iloc[0]), color=plotting.RED, linewidth=1.0, linestyle='--',
                   label='split-half tau of the table')
      figure.legend(loc='outside upper center')
  return figure


def expressions(texts: Sequence[str], half_width: float = 4.0, points: int = 1600) -> Figure:
  """f and f' of expressions of the search language on [-half_width, half_width].

  Args:
    texts: expressions; learnable scalars have their first values.
    half_width: of the range of x.
    points: of the grid, an even number, so that 0 lies between two.
  """
  from model_lib.search import Evaluator, parse  # pylint: disable=g-import-not-at-top
  x = np.linspace(-half_width, half_width, points)
  at = Evaluator(x)
  return plotting.function_grid(
      {text: plotting.Curve(x, at.value(parse(text)), at.slope(parse(text))) for text in texts},
      x_label='pre-activation x', columns=4)


def entropy_against_loss(entropy: pd.Series, loss: pd.Series) -> Figure:
  """Mean test loss of every activation against its entropy under N(0, 1).

  Args:
    entropy: primary, by activation.
    loss: by activation; nan is left out, and what is over HIGHEST times the lowest stands at the
      top as a triangle.
  """
  both = pd.concat([entropy, loss], axis=1, keys=['entropy', 'loss']).dropna()
  top = HIGHEST * both.loss.min()
  inside = both[both.loss <= top]
  with plotting.style():
    figure = plotting.new_figure(5.6, 4.0)
    axes = figure.subplots()
    axes.plot(inside.entropy, inside.loss, 'o', markersize=3.5, color=plotting.BLUE)
    above = both[both.loss > top]
    axes.plot(above.entropy, [top] * len(above), '^', markersize=4, color=plotting.GREY,
              label=f'{len(above)} above', clip_on=False)
    for name in HIGHLIGHT:
      if name in inside.index:
        axes.annotate(name, inside.loc[name], xytext=(4, 3), textcoords='offset points', fontsize=8)
    plotting.plain_log_axis(axes)
    axes.set_xlabel('entropy of f / sd f under N(0, 1), bins of 0.1 (nats)')
    axes.set_ylabel('test log-loss (nats)')
    if len(above):
      figure.legend(loc='outside upper center')
  return figure


def learned_coefficients(rows: pd.DataFrame) -> Figure:
  """The learned coefficient of every seed, by start and layer, one panel per function.

  Args:
    rows: columns arm, start, layer, seed, epsilon.
  """
  arms, starts = list(dict.fromkeys(rows.arm)), sorted(set(rows.start), reverse=True)
  layers = sorted(set(rows.layer))
  with plotting.style():
    figure = plotting.new_figure(0.4 + 3.4 * len(arms), 3.2)
    panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    for axes, arm in zip(panels, arms):
      axes.axhline(0, color=plotting.GREY, linewidth=0.8)
      for index, layer in enumerate(layers):
        for place, start in enumerate(starts):
          own = rows[(rows.arm == arm) & (rows.layer == layer) & (rows.start == start)].epsilon
          x = place + 0.3 * (index - (len(layers) - 1) / 2) + np.linspace(-0.1, 0.1, len(own))
          axes.scatter(x, np.sort(own), s=8, color=plotting.PALETTE[index],
                       label=layer if place == 0 else None)
      axes.set_xticks(range(len(starts)), labels=[f'{start:+g}' for start in starts])
      axes.set_xlabel('start of epsilon')
      axes.set_title(arm)
    panels[0].set_ylabel('learned epsilon')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=len(labels))
  return figure


def _curve(spec: str, half_width: float, points: int) -> plotting.Curve:
  import jax  # pylint: disable=g-import-not-at-top
  import jax.numpy as jnp  # pylint: disable=g-import-not-at-top
  from model_lib.activations import get_activation  # pylint: disable=g-import-not-at-top
  activation = get_activation(spec)
  first = {parameter.name: parameter.init for parameter in activation.parameters}

  def function(x):
    return activation.scalar(x, **first, **activation.constants)

  # Each output depends on its own input alone, so the gradient of the sum is the derivative.
  x = np.linspace(-half_width, half_width, points, dtype=np.float32)
  y, pull = jax.vjp(function, jnp.asarray(x))
  slope = np.array(pull(jnp.ones_like(y))[0], np.float64)
  y = np.array(y, np.float64)
  for jump in activation.jumps:
    near = np.abs(x - jump) < half_width / points * 1.01
    y[near], slope[near] = np.nan, np.nan
  return plotting.Curve(x, y, slope)


def _accuracies(rows: pd.DataFrame) -> list[plotting.Estimate]:
  estimates = []
  for name, group in rows.groupby('activation', sort=False):
    alive = group[group.diverged_step < 0]
    lost = len(group) - len(alive)
    note = f'{lost}/{len(group)} diverged' if lost else ''
    mean, low, high, _, _ = statistics.mean_interval(100 * alive.test_accuracy.to_numpy())
    estimates.append(plotting.Estimate(str(name), mean, low, high, note))
  return estimates


def _selection_means(rows: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
  """(model, activation) -> mean validation loss by factor; nan where a run diverged."""
  loss = rows.val_loss.where(rows.diverged_step < 0)
  means = rows.assign(val_loss=loss).groupby(['model', 'activation', 'lr_factor']).val_loss.agg(
      lambda values: values.mean(skipna=False))
  return {key: series.droplevel([0, 1]) for key, series in means.groupby(level=[0, 1])}


def _best_loss(table: dict[tuple[str, str], pd.Series], model: str) -> float:
  """The reference's best loss; 1 when it was not run, so that the losses stand as they are."""
  series = table.get((model, REFERENCE))
  return float(series.min()) if series is not None and series.notna().any() else 1.0


def _loss_quartiles(lines: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
  """steps [n] and quartiles [3, n] of the finite losses; steps without any are left out."""
  table = lines.pivot(index='step', columns='member', values='loss').astype(float)
  table = table.where(np.isfinite(table)).dropna(how='all')
  if table.empty:
    return np.zeros(0), np.zeros((3, 0))
  values = table.to_numpy()
  # nanquantile walks row by row in Python, so only where it must.
  quantile = np.nanquantile if np.isnan(values).any() else np.quantile
  return table.index.to_numpy(), quantile(values, [0.25, 0.5, 0.75], axis=1)
