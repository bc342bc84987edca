"""The tables and figures of normalization_basics, from rows of results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import colors, ticker
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from launch.study import plotting
from launch.study.tables import Column, Table, fixed, integer, interval, significant
from model_lib.analysis import statistics

_FLOOR = 1e-17  # what a change of 0 is drawn as


def invariances(rows: pd.DataFrame, same: float, other: float) -> Figure:
  """The table of changes, coloured on a logarithmic scale; a box is a yes of the paper's table."""
  table = rows.pivot(index='norm', columns='transformation', values='deviation').reindex(
      index=rows.norm.unique(), columns=rows.transformation.unique())
  yes = rows.pivot(index='norm', columns='transformation', values='invariant').reindex_like(table)
  with plotting.style():
    figure = plotting.new_figure(8.4, 3.4)
    axes = figure.subplots()
    image = axes.imshow(np.maximum(table.to_numpy(), _FLOOR), aspect='auto', cmap='cividis',
                        norm=colors.LogNorm(_FLOOR, 10))
    for i, name in enumerate(table.index):
      for j, value in enumerate(table.loc[name]):
        dark = value < other
        word = 'yes' if yes.iloc[i, j] else 'no'
        axes.text(j, i, f'{word}\n{value:.1e}', ha='center', va='center', fontsize=8,
                  color='white' if dark else 'black')
    axes.set_xticks(range(table.shape[1]), [t.replace(' re-', '\nre-') for t in table.columns])
    axes.set_yticks(range(table.shape[0]), table.index)
    axes.grid(visible=False)
    figure.colorbar(image, label='largest change of the output (r.m.s. units)',
                    format=ticker.FuncFormatter(lambda value, _: f'{value:.0e}'))
    axes.set_title(f'Invariant by the papers, and measured (yes < {same:g}, no > {other:g})')
  return figure


def fast_variance(rows: pd.DataFrame, offset: float) -> Figure:
  """Standard deviations of normalized rows by rank, of one draw, both variances."""
  shown = rows[rows.percent.notna()]
  with plotting.style():
    figure = plotting.new_figure(5.0, 3.2)
    axes = figure.subplots()
    axes.axhline(1, color=plotting.GREY, linewidth=0.8)
    for index, (method, own) in enumerate(shown.groupby('method', sort=False)):
      axes.plot(own.percent, own['std'], label=method, color=plotting.PALETTE[index],
                linestyle=plotting.DASHES[index])
    plotting.plain_log_axis(axes)
    axes.set_xlabel('rows at or below (%)')
    axes.set_ylabel('std of the normalized row')
    axes.set_title(f'LayerNorm of {offset:g} + N(0, 1) in float32')
    axes.legend()
  return figure


def residual_variance(rows: pd.DataFrame, tolerance: float) -> Figure:
  """Variance of the stream by block: predicted lines with the tolerance, measured points."""
  activations = list(rows.activation.unique())
  with plotting.style():
    figure, panels = plotting.grid(len(activations), columns=2, width=3.4, height=2.6,
                                   share_y=True)
    for axes, activation in zip(panels, activations, strict=True):
      own = rows[rows.activation == activation]
      for index, (placement, curve) in enumerate(own.groupby('placement', sort=False)):
        curve, color = curve.sort_values('block'), plotting.PALETTE[index]
        axes.fill_between(curve.block, curve.predicted * (1 - tolerance),
                          curve.predicted * (1 + tolerance), color=color, alpha=0.2, linewidth=0)
        axes.plot(curve.block, curve.predicted, color=color, linewidth=1, label=placement)
        thin = curve.iloc[2::5]
        axes.plot(thin.block, thin.measured, 'o', color=color, markersize=3)
      axes.set_title(activation)
    plotting.plain_log_axis(panels[0])
    plotting.label_figure(figure, panels, x='block (line: predicted, band: 10 %, points: measured)',
                          y='variance of the stream')
  return figure


def batch_size(arms: Mapping[str, pd.DataFrame], dataset: str) -> Figure:
  """Test accuracy over the batch, on equally many examples and for equally many steps."""
  first = next(iter(arms.values()))
  largest = first.batch.max()
  budgets = sorted(first.budget.unique())  # examples before steps, where there are both
  with plotting.style():
    figure, panels = plotting.grid(len(budgets), columns=2, width=3.4, height=2.6)
    for axes, budget in zip(panels, budgets, strict=True):
      for index, (name, rows) in enumerate(arms.items()):
        # The largest batch is the start of both comparisons.
        own = rows[(rows.budget == budget) | (rows.batch == largest)]
        own = own[~(own.diverged_step >= 0)]
        found = [(batch, statistics.mean_interval(100 * runs.test_accuracy.to_numpy()))
                 for batch, runs in own.groupby('batch')]
        sizes = [batch for batch, _ in found]
        mean, low, high = (np.array([getattr(i, k) for _, i in found])
                           for k in ('mean', 'low', 'high'))
        plotting.line_with_band(axes, sizes, mean, low, high, label=name, index=index)
        axes.plot(sizes, mean, 'o', color=plotting.PALETTE[index], markersize=3)
      sizes = sorted(first.batch.unique())
      axes.set_xscale('log', base=2)
      axes.set_xticks(sizes, [f'{size:.0f}' for size in sizes])
      axes.set_title(f'{dataset}, equally many {budget}')
    plotting.label_figure(figure, panels, x='batch size', y='test accuracy (%)')
  return figure


def differences(found: Mapping[tuple[str, str, str], statistics.Paired], margin: float,
                batches: Sequence[int], dataset: str) -> Figure:
  """What each arm loses beyond the network without a norm, with the margin."""
  budgets = list(dict.fromkeys(budget for *_, budget in found))
  with plotting.style():
    figure = plotting.new_figure(7.0, 2.6)
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
      rows = [('none, other seeds' if arm == 'copies' else f'{arm} {evaluation}'.strip(), own)
              for (arm, evaluation, b), own in found.items() if b == budget]
      axes.axvspan(-margin, margin, color=plotting.GREY, alpha=0.2, linewidth=0)
      axes.axvline(0, color=plotting.GREY, linewidth=0.8)
      for place, (_, own) in enumerate(rows):
        axes.plot([own.low, own.high], [place, place], color=plotting.BLUE, linewidth=1.6)
        axes.plot([own.mean], [place], 'o', color=plotting.BLUE, markersize=4)
      axes.set_yticks(range(len(rows)), [name for name, _ in rows])
      axes.set_ylim(len(rows) - 0.5, -0.5)
      axes.set_title(f'equally many {budget}')
      axes.set_xlabel('points lost beyond those without a norm')
    figure.suptitle(f'Batch {batches[0]} to {batches[-1]} on {dataset}: mean, 95 % interval, '
                    f'margin of {margin:g} point')
  return figure


# The tables.

def invariance_table(rows: pd.DataFrame, same: float, other: float) -> Table:
  """A row per norm, a column per transformation."""
  return Table(
      'Invariances: largest change of the output, in units of its root mean square',
      [Column('norm', 'norm', right=False),
       *(Column(t, t, format=significant(2)) for t in rows.transformation.unique())],
      [{'norm': name, **dict(zip(group.transformation, group.deviation, strict=True))}
       for name, group in rows.groupby('norm', sort=False)],
      ['float64, eps = 0, no bias before the norm, batch in training mode, weight norm with g '
       f'held. A yes is below {same:g}, a no above {other:g}.'])


def variance_table(rows: pd.DataFrame, far: float) -> Table:
  """A row per variance and offset, over all draws."""
  whole = rows[rows.percent.isna()]
  return Table(
      'Standard deviation of normalized rows of offset + N(0, 1), float32',
      [Column('method', 'variance', right=False), Column('offset', 'offset', format=fixed(0)),
       Column('share', f'rows above {far:g}', '%, least draw', fixed(1)),
       Column('smallest', 'smallest std', format=significant(4)),
       Column('largest', 'largest std', format=significant(4))],
      [{'method': method, 'offset': offset, 'share': 100 * group.far_share.min(),
        'smallest': group.smallest_std.min(), 'largest': group.largest_std.max()}
       for (method, offset), group in whole.groupby(['method', 'offset'], sort=False)],
      [f'{whole.draw.nunique()} draws of 1,024 rows of 64; eps 1e-6. The standard deviation '
       'should be 1.'])


def residual_table(summary: Sequence[Mapping[str, object]], blocks: int, width: int) -> Table:
  """Predicted, measured, and the nearest wrong prediction of each stack."""
  signed = fixed(1, signed=True)
  return Table(
      f'Variance of the residual stream after {blocks} blocks, at the start',
      [Column('activation', 'activation', right=False),
       Column('placement', 'placement', right=False),
       Column('predicted', 'predicted', format=fixed(3)),
       Column('measured', 'measured', format=fixed(3)), Column('off', 'off by', '%', signed),
       Column('wrong', 'wrong prediction', right=False),
       Column('wrong_value', 'it says', format=fixed(3)),
       Column('wrong_off', 'off by', '%', signed)],
      summary,
      [f'Width {width}, 64 inputs, mean of 8 seeds. ReLU: second matrix with variance 2/fan-in; '
       'GELU: both 1/fan-in. Post: the sum before the last norm.'])


def attention_tables(summary: Sequence[Mapping[str, object]],
                     sizes: Mapping[str, int]) -> list[Table]:
  """Predicted and measured variance and token correlation behind some sublayers; none: none."""
  columns = [
      Column('placement', 'placement', right=False), Column('block', 'block', format=integer()),
      Column('sublayer', 'after', right=False), Column('predicted', 'predicted', format=fixed(3)),
      Column('measured', 'measured', format=fixed(3)),
      Column('off', 'off by', '%', fixed(1, signed=True)),
      Column('tokenless', 'tokens left out', format=fixed(3)),
      Column('predicted_correlation', 'correlation, predicted', format=fixed(3)),
      Column('correlation', 'correlation, measured', format=fixed(3))]
  note = (f'{sizes["blocks"]} blocks of attention ({sizes["heads"]} heads, no mask) and two '
          f'matrices with ReLU (the second with variance 2/fan-in), width {sizes["width"]}, '
          f'{sizes["tokens"]} tokens that start as N(0, I), mean of 4 seeds of 4 inputs; without a '
          'bound. Tokens left out: the attention taken for two more matrices. Post: the variance '
          'of the sum before the norm.')
  title = 'Residual stream with attention, at the start: variance and correlation of tokens'
  return [Table(title, columns, summary, [note])] if summary else []


def accuracy_table(rows: Sequence[Mapping[str, object]], name: str) -> Table:
  """Accuracy by arm, evaluation and cell."""
  whole = integer()
  return Table(
      f'Test accuracy by batch size, {name}',
      [Column('arm', 'norm', right=False), Column('evaluation', 'running moments', right=False),
       Column('batch', 'batch', format=whole), Column('steps', 'steps', format=whole),
       Column('rate', 'learning rate'), Column('accuracy', 'test accuracy', '%', fixed(2)),
       Column('interval', '95 %', format=interval(2)), Column('n', 'n', format=whole),
       Column('diverged', 'diverged', format=whole)],
      rows,
      ['The learning rate of each cell was chosen on held-out training images with other seeds; '
       '* it lies at the edge of those tried. Intervals: 95 % t intervals over seeds. All rows of '
       'a norm saw equally many examples, but those of the smallest batch with the steps of the '
       'largest one.'])


def difference_table(found: Mapping[tuple[str, str, str], statistics.Paired],
                     batches: Sequence[int], name: str) -> Table:
  """What each arm loses beyond the network without a norm."""
  return Table(
      f'Loss of accuracy from batch {batches[0]} to {batches[-1]}, minus that without a norm, '
      f'{name}',
      [Column('arm', 'norm', right=False), Column('evaluation', 'running moments', right=False),
       Column('budget', 'equal', right=False),
       Column('mean', 'difference', 'points', fixed(2, signed=True)),
       Column('interval', '95 %', format=interval(2, signed=True)),
       Column('n', 'n', format=integer())],
      [{'arm': 'none, other seeds' if arm == 'copies' else arm, 'evaluation': evaluation or None,
        'budget': budget, 'mean': own.mean, 'interval': (own.low, own.high), 'n': own.n}
       for (arm, evaluation, budget), own in found.items()],
      ['Above 0: the arm loses more than the network without a norm. Paired over seeds, 95 % t '
       'intervals; the seeds share the test images.'])
