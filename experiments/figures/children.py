"""Figure of successive halving."""
from __future__ import annotations

from matplotlib.figure import Figure
import pandas as pd

from launch.study import plotting


def halving(rows: pd.DataFrame) -> Figure:
  """Validation loss of every function against the steps of its rungs; copies of ReLU in colour.

  Args:
    rows: the rungs' runs: columns activation, copy, steps, val_loss, diverged_step.
  """
  alive = rows[rows.diverged_step < 0]
  with plotting.style():
    figure = plotting.new_figure(5.0, 3.6)
    axes = figure.subplots()
    for copies, color, width in ((False, plotting.GREY, 0.6), (True, plotting.RED, 1.2)):
      own = alive[(alive['copy'] > 0) == copies]
      for number, (_, line) in enumerate(own.groupby(['activation', 'copy'], sort=False)):
        line = line.sort_values('steps')
        axes.plot(line.steps, line.val_loss, 'o-', color=color, linewidth=width, markersize=2.5,
                  label=('' if number else 'copies of ReLU' if copies else 'functions') or None)
    axes.set_xscale('log')
    steps = sorted({int(count) for count in rows.steps})
    axes.set_xticks(steps, labels=[str(count) for count in steps])
    axes.minorticks_off()
    plotting.plain_log_axis(axes)
    axes.set_xlabel('training steps of the rung')
    axes.set_ylabel('validation log-loss (nats)')
    figure.legend(loc='outside upper center', ncols=2)
  return figure
