"""Figures: the same bytes each time, nothing overlaps, and what is drawn is what was handed in."""
from __future__ import annotations

import math

import matplotlib
from matplotlib import image
import numpy as np
import pandas as pd
import pytest

from experiments.figures import activation_search as figures
from launch.study import plotting
from model_lib.analysis import statistics


def _texts(figure):
  """(text, box in pixels) of every text that a reader sees, of the whole figure."""
  with plotting.style():
    figure.canvas.draw()
  renderer = figure.canvas.get_renderer()
  artists = [figure._supxlabel, figure._supylabel]
  for legend in [*figure.legends, *(a.get_legend() for a in figure.axes)]:
    artists += legend.get_texts() if legend else []
  for axes in figure.axes:
    artists += [axes.title, axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
      low, high = sorted(axis.get_view_interval())
      artists += [tick.label1 for tick in axis.get_major_ticks()
                  if tick.label1.get_visible() and low <= tick.get_loc() <= high]
  return [(a.get_text(), a.get_window_extent(renderer))
          for a in artists if a is not None and a.get_visible() and a.get_text().strip()]


def _assert_readable(figure):
  texts = _texts(figure)
  assert texts
  width, height = figure.canvas.get_width_height()
  for number, (text, box) in enumerate(texts):
    assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    for other, second in texts[number + 1:]:
      # Boxes hold white above and below the letters: a pixel may be shared.
      overlap = min(box.x1, second.x1) - max(box.x0, second.x0), (
          min(box.y1, second.y1) - max(box.y0, second.y0))
      assert min(overlap) <= 1, f'{text!r} lies over {other!r}'


def _results(names, models=('mlp', 'vit'), seeds=4):
  rng = np.random.default_rng(0)
  rows = []

  def add(**row):
    rows.append(dict(member=len(rows), run='c', copy=0, lr_factor=1.0, learning_rate=0.01,
                     split=0, diverged_step=-1, val_loss=0.1 + 0.01 * rng.random(),
                     test_accuracy=0.9 + 0.01 * rng.normal()) | row)
  for model in models:
    for activation in names:
      for seed in range(seeds):
        add(phase='fresh', model=model, activation=activation, seed=seed)
        for factor in (1 / 3, 1.0, 3.0):
          add(phase='selection', model=model, activation=activation, seed=seed, lr_factor=factor)
    for copy in range(3):
      for seed in range(seeds):
        add(phase='null_fresh', model=model, activation='relu', copy=copy, seed=seed)
  return pd.DataFrame(rows)


def _metrics(results):
  fresh = results[results.phase == 'fresh']
  rows = [dict(run='c', member=member, split=split, step=step, accuracy=0.5,
               loss=2.3 * math.exp(-step / 100) + 0.001 * member)
          for member in fresh.member for split in ('train', 'val') for step in range(0, 301, 50)]
  return pd.DataFrame(rows)


NAMES = ('relu', 'gelu', 'crrelu(epsilon=0.02, per=channel)', 'identity', 'tanh', 'mish', 'elu')


@pytest.mark.parametrize('names', [NAMES[:1], NAMES])
def test_no_text_of_any_figure_overlaps_or_is_cut_off(names):
  results = _results(names)
  results.loc[results.phase.eq('fresh') & results.seed.eq(1), 'diverged_step'] = 3
  metrics = _metrics(results)
  for figure in (
      figures.accuracy_with_intervals(results), figures.learning_rate_sensitivity(results),
      figures.training_curves(metrics, results), figures.training_curves(metrics)):
    _assert_readable(figure)


def test_the_overlap_check_sees_an_overlap():
  with plotting.style():
    figure = plotting.new_figure(3, 2)
    axes = figure.subplots()
    axes.set_xticks([0.50, 0.51], ['a long label', 'another one'])
  with pytest.raises(AssertionError, match='lies over'):
    _assert_readable(figure)


def test_many_rows_grow_the_forest_instead_of_crowding_it():
  rows = [plotting.Estimate(f'activation_{i:02d}', i / 7, i / 7 - 1, i / 7 + 1) for i in range(94)]
  with plotting.style():
    figure = plotting.new_figure(5, plotting.forest_height(len(rows)))
    plotting.forest(figure.subplots(), rows, x_label='test accuracy (%)')
  _assert_readable(figure)


def test_the_forest_sorts_and_puts_rows_without_a_mean_last():
  rows = [plotting.Estimate('low', 1, 0, 2),
          plotting.Estimate('none', math.nan, math.nan, math.nan),
          plotting.Estimate('high', 3, 2.5, 3.5, note='1/8 diverged')]
  for descending, order in ((True, ['high (1/8 diverged)', 'low', 'none']),
                            (False, ['low', 'high (1/8 diverged)', 'none'])):
    axes = plotting.new_figure(4, 3).subplots()
    plotting.forest(axes, rows, x_label='x', descending=descending)
    assert [label.get_text() for label in axes.get_yticklabels()] == order
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top


def test_accuracy_shows_the_mean_and_interval_of_the_runs_that_lived():
  results = _results(('relu', 'gelu'), models=('mlp',))
  gelu = results.phase.eq('fresh') & results.activation.eq('gelu')
  results.loc[gelu & results.seed.eq(0), ['diverged_step', 'test_accuracy']] = [5, 0.1]
  figure = figures.accuracy_with_intervals(results)
  axes, = figure.axes
  labels = [label.get_text() for label in axes.get_yticklabels()]
  row = labels.index('gelu (1/4 diverged)')
  expected = statistics.mean_interval(100 * results[gelu & (results.seed > 0)].test_accuracy)
  drawn = {tuple(np.asarray(line.get_xdata(), float)) for line in axes.lines
           if len(line.get_ydata()) and line.get_ydata()[0] == row}
  assert drawn == {(expected.mean,), (expected.low, expected.high)}
  null = results[results.phase == 'null_fresh'].groupby('copy').test_accuracy.mean() * 100
  band = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
  np.testing.assert_allclose((band.x0, band.x1), (null.min(), null.max()))


def test_a_learning_rate_at_which_a_run_diverged_has_no_point():
  results = _results(('relu', 'gelu'), models=('mlp',))
  picked = (results.phase.eq('selection') & results.activation.eq('gelu')
            & results.lr_factor.eq(3) & results.seed.eq(2))
  results.loc[picked, ['diverged_step', 'val_loss']] = [9, 1e-9]
  lines = {axes.get_title(): axes.lines[0].get_ydata()
           for axes in figures.learning_rate_sensitivity(results).axes}
  assert np.isnan(lines['gelu']).tolist() == [False, False, True]
  assert np.isfinite(lines['relu']).all() and lines['relu'].min() == pytest.approx(1)


def test_training_curves_are_medians_and_leave_out_what_is_not_finite():
  results = _results(('relu', 'gelu', 'odd'), models=('mlp',))
  metrics = _metrics(results)
  member = results[results.phase.eq('fresh') & results.activation.eq('relu')].member.iloc[0]
  metrics.loc[metrics.member.eq(member) & metrics.step.ge(100), 'loss'] = math.nan
  figure = figures.training_curves(metrics, results)
  axes = figure.axes[0]
  relu = next(line for line in axes.lines if line.get_label() == 'relu')
  chosen = metrics.merge(results[results.phase == 'fresh'], on='member', suffixes=('', '_'))
  chosen = chosen[(chosen.activation == 'relu') & (chosen.split == 'train')]
  np.testing.assert_allclose(relu.get_ydata(), chosen.groupby('step').loss.median())
  assert {line.get_label() for line in axes.lines} >= {'relu', 'gelu'}
  assert sum(line.get_color() == plotting.GREY for line in axes.lines) == 1  # 'odd'


def test_a_split_that_was_recorded_once_has_no_panel():
  results = _results(('relu', 'gelu'), models=('mlp', 'vit'))
  metrics = _metrics(results)
  once = metrics[(metrics.split == 'train') & (metrics.step == 300)]
  final = pd.concat([metrics, once.assign(split='test'), once.assign(split='train_eval')])
  titles = ['mlp, train', 'mlp, val', 'vit, train', 'vit, val']
  for lines in (metrics, final):
    figure = figures.training_curves(lines, results)
    assert [axes.get_title() for axes in figure.axes] == titles
  twice = pd.concat([final, once.assign(split='test', step=200)])
  figure = figures.training_curves(twice, results)
  assert [axes.get_title() for axes in figure.axes] == [
      'mlp, train', 'mlp, val', 'mlp, test', 'vit, train', 'vit, val', 'vit, test']
  _assert_readable(figure)


def test_functions_and_derivatives_of_the_registry():
  figure = figures.functions_and_derivatives(('relu', 'tanh', 'swiglu', 'ash'), points=401)
  _assert_readable(figure)
  panels = {axes.get_title(): axes.lines for axes in figure.axes}
  assert list(panels) == ['relu', 'tanh', 'swiglu', 'ash']
  x = panels['tanh'][2].get_xdata()
  np.testing.assert_allclose(panels['tanh'][2].get_ydata(), np.tanh(x), atol=1e-6)
  np.testing.assert_allclose(panels['tanh'][3].get_ydata(), 1 - np.tanh(x) ** 2, atol=1e-6)
  np.testing.assert_allclose(panels['swiglu'][2].get_ydata(), x / (1 + np.exp(-x)), atol=1e-5)


def test_the_panels_of_a_grid_keep_clear_of_each_other():
  x = np.linspace(-4, 4, 9)
  curves = {f'a_name_of_some_length_{i:03d}': plotting.Curve(x, x / 3, x / 5) for i in range(7)}
  figure = plotting.function_grid(curves)
  _assert_readable(figure)
  for text, box in _texts(figure):
    for axes in figure.axes:
      assert not axes.bbox.shrunk(0.98, 0.98).overlaps(box), text


def test_a_view_is_neither_flattened_by_a_large_value_nor_stopped_by_nan():
  x = np.linspace(-4, 4, 9)
  huge = plotting.Curve(x, np.exp(9 * x), np.full(9, np.nan))
  axes, = plotting.function_grid({'exp(9x)': huge}).axes
  assert axes.get_ylim()[1] < 5


def test_the_same_figure_gives_the_same_bytes_without_a_time(tmp_path):
  results = _results(NAMES[:3])
  for name in ('a.png', 'b.png'):
    plotting.save_png(figures.accuracy_with_intervals(results), tmp_path / name)
  content = (tmp_path / 'a.png').read_bytes()
  assert content == (tmp_path / 'b.png').read_bytes()
  assert b'tEXt' not in content and b'tIME' not in content
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.png', 'b.png']
  assert image.imread(tmp_path / 'a.png').shape[2] == 4
  changed = results.assign(test_accuracy=results.test_accuracy ** 2)
  plotting.save_png(figures.accuracy_with_intervals(changed), tmp_path / 'b.png')
  assert content != (tmp_path / 'b.png').read_bytes()


def test_the_style_leaves_the_users_settings_alone():
  with matplotlib.rc_context({'font.size': 31.0, 'lines.linewidth': 9.0}):
    with plotting.style():
      assert matplotlib.rcParams['font.size'] == 9.0
    assert matplotlib.rcParams['font.size'] == 31.0


def _luminance(color):
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in matplotlib.colors.to_rgb(color)]
  return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_the_palette_stays_apart_for_a_reader_who_cannot_tell_red_from_green():
  # Without the red-green axis what is left of a colour is its luminance and its blue.
  seen = [(_luminance(c) ** (1 / 2.2), matplotlib.colors.to_rgb(c)[2]) for c in plotting.PALETTE]
  apart = [math.dist(a, b) for i, a in enumerate(seen) for b in seen[i + 1:]]
  assert min(apart) > 0.1
  red_green = [(_luminance(c) ** (1 / 2.2), matplotlib.colors.to_rgb(c)[2])
               for c in ('#d62728', '#2ca02c')]
  assert math.dist(*red_green) < 0.2


@pytest.mark.parametrize('low, high', [(0.11, 0.13), (0.01, 3)])
def test_a_log_axis_always_has_plain_ticks(low, high):
  with plotting.style():
    figure = plotting.new_figure(3, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [low, high])
    plotting.plain_log_axis(axes)
    figure.canvas.draw()
  ticks = [t for t in axes.get_yticks() if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
  assert len(ticks) >= 2
  labels = [label.get_text() for label in axes.get_yticklabels()]
  assert all('$' not in label and float(label) >= 0 for label in labels if label)


def test_models_of_different_length_have_no_empty_panels():
  """Each is evaluated once, at its own last step."""
  metrics = pd.DataFrame([
      {'run': model, 'member': i, 'split': split, 'step': step, 'loss': 0.5}
      for i, (model, last) in enumerate((('mlp', 3), ('vit', 2)))
      for split, steps in (('train', range(1, last + 1)), ('val', [last]))
      for step in steps])
  results = pd.DataFrame([
      {'member': i, 'phase': 'fresh', 'model': model, 'activation': 'relu'}
      for i, model in enumerate(('mlp', 'vit'))])
  figure = figures.training_curves(metrics, results)
  assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
      'mlp, train', 'vit, train']


def test_losses_of_zero_are_drawn(tmp_path):
  """A data set that is learned perfectly has a training loss of 0 in float32."""
  metrics = pd.DataFrame([
      {'run': 'a', 'member': 0, 'split': 'train', 'step': step, 'loss': 0.0} for step in (1, 2)])
  results = pd.DataFrame([{'member': 0, 'phase': 'fresh', 'model': 'mlp', 'activation': 'relu'}])
  plotting.save_png(figures.training_curves(metrics, results), tmp_path / 'zero.png')
  assert (tmp_path / 'zero.png').stat().st_size > 1000


def test_a_log_axis_over_many_decades_has_ticks():
  with plotting.style():
    figure = plotting.new_figure(4, 3)
    axes = figure.add_subplot()
    axes.plot([1, 2, 3], [1.0, 1e-4, 1e-9])
    plotting.plain_log_axis(axes)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = [t for t in axes.get_yticks() if low <= t <= high]
    labels = [label.get_text() for label in axes.get_yticklabels()]
  assert len(shown) >= 3 and not any('$' in text for text in labels)
