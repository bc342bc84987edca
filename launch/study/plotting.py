"""The look of every figure, and the few shapes that studies share.

Figures are made without pyplot (matplotlib's Agg canvas alone): no display, no global state,
nothing to close. The palette is Okabe and Ito's (2008), which stays apart under all common
kinds of colour blindness; lines differ in dash as well, for print in grey.
"""
from __future__ import annotations

import contextlib
import io
import math
import os
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from launch.study import atomic

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#000000')
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DASHES = ('-', '--', '-.', ':')
GREY = '#8C8C8C'

STYLE = {
    'font.size': 9.0,
    'axes.titlesize': 9.0,
    'axes.labelsize': 9.0,
    'xtick.labelsize': 8.0,
    'ytick.labelsize': 8.0,
    'legend.fontsize': 8.0,
    'figure.titlesize': 11.0,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': '#E3E3E3',
    'grid.linewidth': 0.6,
    'axes.axisbelow': True,
    'lines.linewidth': 1.4,
    'legend.frameon': False,
    'axes.formatter.useoffset': False,
    'text.parse_math': False,  # names of activations may hold $ and _
    'figure.dpi': 100.0,
    'savefig.dpi': 150.0,
}


class Estimate(NamedTuple):
  """One row of a forest plot: its label, the mean, its limits (nan: none to draw), a remark."""
  label: str
  mean: float
  low: float
  high: float
  note: str = ''


class Curve(NamedTuple):
  """A function and its derivative on a grid; nan breaks the line (at a jump)."""
  x: np.ndarray
  y: np.ndarray
  slope: np.ndarray


@contextlib.contextmanager
def style() -> Iterator[None]:
  """The style, for the block only; the user's own settings are not mixed in."""
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)
    yield


def new_figure(width: float, height: float) -> Figure:
  """An empty figure, inches, whose parts are laid out without overlap."""
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def save_png(figure: Figure, path: str | os.PathLike) -> None:
  """Writes the figure in one step; the same figure gives the same bytes (no time, no version)."""
  buffer = io.BytesIO()
  with style():
    figure.savefig(buffer, format='png', metadata={'Software': None})
  atomic.write_bytes(Path(path), buffer.getvalue())


def forest(axes: Axes, rows: Sequence[Estimate], *, x_label: str, descending: bool = True,
           band: tuple[float, float] | None = None, band_label: str = '',
           color: str = BLUE, highlight: Sequence[str] = ()) -> None:
  """Means with their intervals, one row each, sorted; rows without a mean stand last.

  Args:
    axes: where to draw; `forest_height` gives the height that the rows need.
    rows: the estimates, in any order.
    x_label: what the mean is, with its unit.
    descending: the largest mean on top.
    band: a range drawn behind the rows, such as that of the null row.
    band_label: what the band is, for a legend, which is best put outside.
    color: of the points.
    highlight: labels drawn in another colour (the reference).
  """
  sign = -1 if descending else 1
  ordered = sorted(rows, key=lambda r: (math.isnan(r.mean), sign * r.mean if r.mean == r.mean
                                        else 0, r.label))
  if band is not None:
    axes.axvspan(*band, color=GREY, alpha=0.25, linewidth=0, label=band_label)
  axes.plot([], [], 'o-', color=color, markersize=4, linewidth=1.6, label='mean, 95 % interval')
  for place, row in enumerate(ordered):
    shade = RED if row.label in highlight else color
    if math.isfinite(row.low) and math.isfinite(row.high):
      axes.plot([row.low, row.high], [place, place], color=shade, linewidth=1.6,
                solid_capstyle='butt')
    if math.isfinite(row.mean):
      axes.plot([row.mean], [place], 'o', color=shade, markersize=4)
  axes.set_yticks(range(len(ordered)), [
      shorten(row.label) + (f' ({row.note})' if row.note else '') for row in ordered])
  axes.set_ylim(len(ordered) - 0.4, -0.6)
  axes.set_xlabel(x_label)
  axes.locator_params(axis='x', nbins=5)
  axes.grid(axis='y', visible=False)


def forest_height(rows: int) -> float:
  """Inches that a forest plot of so many rows needs."""
  return 1.1 + 0.19 * max(rows, 4)


def line_with_band(axes: Axes, x: Sequence[float], middle: Sequence[float], low: Sequence[float],
                   high: Sequence[float], *, label: str, index: int = 0) -> None:
  """A line, the band between low and high, and the index-th colour and dash."""
  color = PALETTE[index % len(PALETTE)]
  axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
  axes.plot(x, middle, color=color, linestyle=DASHES[index % len(DASHES)], label=label)


def grid(panels: int, *, columns: int = 5, width: float = 2.1, height: float = 1.75,
         share_x: bool = True, share_y: bool = False) -> tuple[Figure, list[Axes]]:
  """A figure of small multiples, row by row; the axes that are not needed do not exist.

  The margins are fixed lengths with room for titles, tick labels, a legend on top and labels
  of the whole figure: a layout solver needs seconds for a hundred panels. Use `label_figure`.

  Args:
    panels: how many.
    columns: at most so many beside each other.
    width, height: of one panel, inches.
    share_x, share_y: whether the panels share their limits. Where the lowest row is not full,
      the panels above the gap keep their tick labels.
  """
  columns = max(1, min(columns, panels))
  rows = max(1, math.ceil(panels / columns))
  left, right, bottom, top = 0.8, 0.15, 0.65, 0.65
  between_x, between_y = (0.15 if share_y else 0.45), 0.45
  total_x = max(left + right + columns * width + (columns - 1) * between_x, 4.0)
  total_y = bottom + top + rows * height + (rows - 1) * between_y
  figure = Figure(figsize=(total_x, total_y))
  FigureCanvasAgg(figure)
  axes = figure.subplots(
      rows, columns, sharex=share_x, sharey=share_y, squeeze=False,
      gridspec_kw={'left': left / total_x, 'right': 1 - right / total_x,
                   'bottom': bottom / total_y, 'top': 1 - top / total_y,
                   'wspace': between_x / width, 'hspace': between_y / height}).ravel()
  for number in range(panels, len(axes)):
    axes[number].remove()
    if share_x:
      axes[number - columns].tick_params(labelbottom=True)
  return figure, list(axes[:panels])


def label_figure(figure: Figure, panels: Sequence[Axes], *, x: str, y: str = '') -> None:
  """The axis labels that all panels share, and one legend on top with the first one's entries."""
  width, height = figure.get_size_inches()
  size = STYLE['axes.labelsize']
  figure.supxlabel(x, fontsize=size, y=0.12 / height, va='bottom')
  if y:
    figure.supylabel(y, fontsize=size, x=0.1 / width, ha='left')
  if panels:
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
      figure.legend(handles, labels, loc='upper center', bbox_to_anchor=(0.5, 1 - 0.05 / height),
                    borderaxespad=0, ncols=max(1, min(len(labels), int(width / 1.3))))


def plain_log_axis(axes: Axes) -> None:
  """A logarithmic y axis with plain numbers, for what is drawn already.

  Ticks stand at 1, 2 and 5 times powers of ten, at powers alone over more than four decades, or at
  even steps where the range holds too few.
  Where nothing drawn is positive (losses that are 0 in float32) the axis stays linear.
  """
  drawn = [line.get_ydata() for panel in axes.figure.axes for line in panel.lines]
  if not any((np.asarray(y, float) > 0).any() for y in drawn):
    return
  axes.set_yscale('log')
  low, high = axes.get_ylim()
  wide, subs = high > 5 * low, (1, 2, 5) if high < 1e4 * low else (1,)
  axes.yaxis.set_major_locator(
      ticker.LogLocator(subs=subs, numticks=7) if wide else ticker.MaxNLocator(5))
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def function_grid(curves: Mapping[str, Curve], *, x_label: str = 'x',
                  columns: int = 5) -> Figure:
  """Small multiples: each function with its derivative.

  Args:
    curves: name -> Curve; values far outside of the view are cut off by it.
    x_label: below the figure.
    columns: panels beside each other.
  """
  with style():
    figure, panels = grid(len(curves), columns=columns)
    for axes, (name, curve) in zip(panels, curves.items()):
      axes.axhline(0, color=GREY, linewidth=0.7)
      axes.axvline(0, color=GREY, linewidth=0.7)
      axes.plot(curve.x, curve.y, color=BLUE, label='f(x)')
      axes.plot(curve.x, curve.slope, color=RED, linestyle='--', label="f'(x)")
      axes.set_title(shorten(name))
      axes.set_xlim(float(curve.x[0]), float(curve.x[-1]))
      axes.set_ylim(*view(curve))
      axes.locator_params(nbins=5)
    label_figure(figure, panels, x=x_label)
  return figure


def shorten(name: str, length: int = 26) -> str:
  """The name, cut in the middle when it is longer than a panel's title may be."""
  if len(name) <= length:
    return name
  tail = (length - 1) // 2
  return f'{name[:length - 1 - tail]}…{name[-tail:]}'


def view(curve: Curve) -> tuple[float, float]:
  """Limits that show at least [-1, 1.2] and at most [-4, 4]: exp must not flatten the rest."""
  values: Any = np.concatenate([curve.y, curve.slope])
  values = values[np.isfinite(values)]
  low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
  return float(np.clip(low, -4, -1)) - 0.15, float(np.clip(high, 1.2, 4)) + 0.15
