"""Figure of the gated and plain feed-forward layers: our losses against the paper's."""
from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
import pandas as pd

from launch.study import plotting
from model_lib.analysis import statistics


def against_paper(losses: pd.DataFrame, in_paper: Mapping[str, float]) -> Figure:
  """Mean test loss of every arm of the paper against its loss there, with 95 % intervals.

  Args:
    losses: [seed, arm]; nan where a run diverged.
    in_paper: arm -> the paper's loss; other arms are left out.
  """
  with plotting.style():
    figure = plotting.new_figure(4.6, 3.8)
    axes = figure.subplots()
    for arm, paper in in_paper.items():
      if arm not in losses:
        continue
      mean = statistics.mean_interval(losses[arm].dropna().to_numpy())
      axes.plot([paper, paper], [mean.low, mean.high], color=plotting.BLUE, linewidth=1.6)
      axes.plot([paper], [mean.mean], 'o', color=plotting.BLUE, markersize=4)
      # The name stands on the side that is free.
      left = any(0 < other - paper < 0.005 for name, other in in_paper.items() if name in losses)
      axes.annotate(arm, (paper, mean.mean), xytext=(-5 if left else 5, 3), fontsize=8,
                    textcoords='offset points', ha='right' if left else 'left')
    axes.margins(x=0.2)
    axes.set_xlabel('T5-base on C4, Shazeer 2020 (nats per subword)')
    axes.set_ylabel('test log-loss here (nats per byte)')
  return figure
