"""The figure of a coordinate check: moves against size, the row under test beside its controls."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib import ticker
import numpy as np

from launch.study import plotting
from model_lib.analysis.coordinate_check import LOGITS
from model_lib.analysis.coordinate_rules import END, PLAIN

COLORS = {'input': plotting.BLUE, 'hidden': plotting.ORANGE, 'feature': plotting.GREEN,
          'attention': plotting.SKY, LOGITS: plotting.RED}


def moves(result) -> Figure:
  """One panel per step, logarithmic axes: rms(z_t - z_0), mean over seeds.

  Over width a line per tensor, coloured by its role; the control is dashed. Over depth a line per
  row, of the stream's end, with the range over seeds; the one without a rule of depth leaves the
  panel where the others would be one line beside it.
  """
  steps, check = result.steps, result.check
  with plotting.style():
    figure, panels = plotting.grid(len(steps), columns=4, width=2.3, height=2.6, share_y=True)
    for axes, step in zip(panels, steps, strict=True):
      draw = _by_role if check.axis == 'width' else _by_row
      draw(axes, result, step)
      axes.set(xscale='log', title=f't = {step}')
      if check.axis == 'depth':
        axes.set(yscale='log', ylim=_limits(result))
      plotting.plain_log_axis(axes)
      axes.set_xticks(check.sizes, [str(size) for size in check.sizes])
      axes.xaxis.set_minor_locator(ticker.NullLocator())
    what = 'width' if check.axis == 'width' else 'blocks'
    plotting.label_figure(figure, [], x=f'{what} ({check.model}, {check.optimizer}, mean of '
                                        f'{check.seeds} seeds)', y='rms(z_t - z_0)')
    entries = _legend(result)
    height = figure.get_size_inches()[1]
    figure.legend(handles=entries, loc='upper center', ncols=min(len(entries), 7),
                  bbox_to_anchor=(0.5, 1 - 0.05 / height), borderaxespad=0)
  return figure


def _by_role(axes, result, step: int) -> None:
  for number, (row, found) in enumerate(result.slopes.items()):
    for slope in found:
      if slope.step == step and slope.moves[-1]:
        axes.plot(slope.sizes, slope.moves, color=COLORS[slope.role], alpha=0.8, linewidth=1.1,
                  linestyle=plotting.DASHES[number])


def _by_row(axes, result, step: int) -> None:
  for number, (row, traces) in enumerate(result.traces.items()):
    each = np.stack([trace.move_rms[END][:, step] for trace in traces])
    each = np.where(np.isfinite(each), each, np.nan)
    plotting.line_with_band(axes, [trace.size for trace in traces], each.mean(1), each.min(1),
                            each.max(1), label=row, index=number)


def _limits(result) -> tuple[float, float]:
  """Of the moves of all rows but PLAIN at the steps that are shown, with room above."""
  drawn = np.concatenate([trace.move_rms[END][:, list(result.steps)].ravel()
                          for row, traces in result.traces.items() if row != PLAIN
                          for trace in traces])
  drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
  return (drawn.min() / 2, drawn.max() * 10) if drawn.size else (0.1, 10.0)


def _legend(result) -> list[Line2D]:
  if result.check.axis == 'depth':
    return [Line2D([], [], color=plotting.PALETTE[i], linestyle=plotting.DASHES[i], label=row)
            for i, row in enumerate(result.slopes)]
  found = {slope.role for slopes in result.slopes.values() for slope in slopes}
  return [*(Line2D([], [], color=color, label=role) for role, color in COLORS.items()
            if role in found),
          *(Line2D([], [], color=plotting.GREY, linestyle=plotting.DASHES[i], label=row)
            for i, row in enumerate(result.slopes))]
