"""What the study of LayerNorm removal reports: tables, verdicts, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.parts import removal_tables as tables_of
from experiments.parts.removal_rows import (
    difference, differing, events_of, losses_of, numbers, runs)
from launch.study import Report, Run
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Claim, Outcome
from launch.study.tables import Table
from model_lib.analysis import statistics

MARGIN = 0.3  # nats that a base must lie below a bigram model
MIN_BASES = 3
LITTLE = BREAKS = 0.1  # nats
BROKEN = 0.5
SAME, MIN_COPIED = 0.1, 0.5  # of the whole effect; logits
EXACT_NMAE, REAL_NMAE = 0.01, 5.0  # percent
LIKE = 0.95  # cosine
FOLD_FLOAT32, FOLD_FLOAT64 = 1e-4, 1e-11  # of the largest logit
MIN_RATIO, MIN_SINK, MIN_NEURON = 2.0, 0.05, 3.0
MODELS = ('base', 'vanilla', 'ln_free')


def report(run: Run, claims: Sequence[Claim], sizes: Mapping[str, Any]) -> Report:
  """Tables, verdicts and figures of the parts that were run; `sizes` of those with models."""
  from experiments.figures import layernorm_removal as figures
  tables: list[Table] = []
  drawn, found = {}, {}
  for part, size in sizes.items():
    rows = run.rows[run.rows.part == part]
    where = f'GPT {size.depth} x {size.dim} on {run.dataset}'
    events = events_of(run, part, size)
    tables += tables_of.of_part(rows, events, where, run.config, size)
    drawn |= {f'{part}_{name}': draw for name, draw in
              figures.of_part(rows, events, losses_of(run, part), where).items()}
    if part == 'arms':
      found = outcomes(rows, events, differing(run, rows))
  if 'scratch' in run.config.parts:
    tables.append(tables_of.scratch_table(
        run.rows[run.rows.part == 'scratch'], run.dataset, run.config))
  tables.append(tables_of.published_table())
  for claim in claims:
    found.setdefault(claim.id, Outcome(
        NOT_TESTABLE, None, None, None if claim.kind == 'check' else 0, 'it was not run'))
  return Report(tables, found, drawn)


def weak_base(rows: pd.DataFrame) -> str:
  """Why nothing can be said of the bases, or ''."""
  bigram = numbers(rows, 'bigram', 'bigram', 'val_loss').value.iloc[0]
  own = numbers(rows, 'losses', 'base', 'val_mean').value
  if len(own) < MIN_BASES:
    return f'{len(own)} bases, {MIN_BASES} are needed'
  if not own.max() <= bigram - MARGIN:
    return f'base too weak: {own.max():.3f}, a bigram model has {bigram:.3f}'
  return ''


def outcomes(rows: pd.DataFrame, events: pd.DataFrame,
             apart: Mapping[str, tuple[int, int]]) -> dict[str, Outcome]:
  """One outcome per claim that the part `arms` can speak of; `apart` as `differing` gives it."""
  weak, arms = weak_base(rows), set(rows.arm)

  def decided(own, passed: bool, note: str = '', problem: str = '') -> Outcome:
    why = problem or weak
    verdict = NOT_TESTABLE if why else REPRODUCED if passed else NOT_REPRODUCED
    return Outcome(verdict, own.mean, (own.low, own.high), own.n, why or note)

  def over(values) -> statistics.Interval:
    return statistics.mean_interval(np.asarray(values, float))

  gap = numbers(rows, 'gaps', 'ln_free', 'val_gap')
  best = over(numbers(rows, 'gaps', 'ln_free', 'best_gap').value)
  ours = over(gap.value)
  within = ', '.join(f'[{low:+.4f}, {high:+.4f}]' for low, high in zip(gap.low, gap.high))
  note = (f'over sequences within a base {within}; each at its best rate {best.mean:+.4f} '
          f'[{best.low:+.4f}, {best.high:+.4f}]')
  found = {
      'removal_costs_little': decided(ours, ours.high <= LITTLE, note),
      'removal_costs_something': decided(ours, ours.low > 0 and (gap.low > 0).all(), note)}

  swap = numbers(rows, 'swaps', 'zero_tuning', 'val_gap')
  twice = numbers(rows, 'swaps', 'doubled_sigma', 'val_gap')
  found['zero_tuning_breaks'] = decided(over(swap.value), over(swap.value).low >= BREAKS)
  found['doubled_sigma_differs'] = decided(
      over(twice.value), bool(((twice.low > 0) | (twice.high < 0)).all()))

  if 'at_once' in arms:
    def largest(measure: str, *arms: str):
      """By arm the largest of all its events by base; and at_once minus ln_free."""
      found = {arm: events[events.arm == arm].groupby('base')[measure].max() for arm in arms}
      return found, difference(found['at_once'], found['ln_free'])

    spikes, spike = largest('spike', 'at_once', 'ln_free', 'vanilla')
    found['at_once_spikes'] = decided(
        spike, spike.low > 0, f'at_once {spikes["at_once"].mean():+.3f}, ln_free '
        f'{spikes["ln_free"].mean():+.3f}, vanilla at the same steps '
        f'{spikes["vanilla"].mean():+.3f}')
    rises, rise = largest('rise', 'at_once', 'ln_free', 'sham')
    found['at_once_rises'] = decided(
        rise, rise.low > 0, f'at_once {rises["at_once"].mean():+.3f}, ln_free '
        f'{rises["ln_free"].mean():+.3f}'
        + (f', sham {rises["sham"].mean():+.3f}' if len(rises['sham']) else ''))
    ends = difference(runs(rows, 'at_once'), runs(rows, 'ln_free'))
    note = ''
    if 'reversed' in arms:
      other = difference(runs(rows, 'reversed'), runs(rows, 'ln_free'))
      note = f'reverse order {other.mean:+.4f} [{other.low:+.4f}, {other.high:+.4f}]'
    found['at_once_ends_worse'] = decided(ends, ends.low > 0, note)
    broken = difference(runs(rows, 'at_once'), runs(rows, 'vanilla'))
    found['at_once_breaks'] = decided(broken, broken.low >= BROKEN, problem=even(rows))
  if apart:
    count, _ = apart['sham']
    others = {arm: value for arm, value in apart.items() if arm != 'sham'}
    found['sham_is_vanilla'] = Outcome(
        REPRODUCED if not count and all(n for n, _ in others.values()) else NOT_REPRODUCED, count,
        None, None, '; '.join(f'{arm} differs in {n}, first at step {step}'
                              for arm, (n, step) in others.items()))
  return found | card_outcomes(rows, decided, over)


def even(rows: pd.DataFrame) -> str:
  """Why nothing can be said of models with a large norm at position 0, or ''."""
  lowest = numbers(rows, 'card', 'base', 'position_0_ratio').groupby('base').value.max().min()
  return '' if lowest >= MIN_RATIO else (
      f'the norm at position 0 is at most {lowest:.2f} times that elsewhere in a base, at least '
      f'{MIN_RATIO:g} are needed')


def worst(values: pd.Series, of: Callable = np.max) -> float:
  """The largest number, or by `of` the least; nan where one is none, which pandas leaves out."""
  return float(of(values.to_numpy(float)))


def card_outcomes(rows: pd.DataFrame, decided, over) -> dict[str, Outcome]:
  """The claims on what the report card measures."""
  def of(arm: str, measure: str, **where) -> pd.DataFrame:
    return numbers(rows, 'card', arm, measure, **where)

  found = {}
  ece = {arm: of(arm, 'ece_10').value for arm in MODELS}
  own, other = (difference(ece[a], ece['vanilla']) for a in ('ln_free', 'base'))
  found['worse_calibrated'] = decided(own, own.low > 0, f'base minus vanilla {other.mean:+.4f}')

  nmae = {arm: of(arm, 'nmae_pooled').value for arm in (*MODELS, 'folded')}
  found['attribution_is_exact'] = Outcome(
      REPRODUCED if worst(nmae['ln_free']) <= EXACT_NMAE and worst(nmae['folded']) <= EXACT_NMAE
      and all(worst(nmae[arm], np.min) > REAL_NMAE for arm in ('base', 'vanilla'))
      else NOT_REPRODUCED, worst(nmae['ln_free']), None, None,
      f'base {nmae["base"].mean():.1f} %, vanilla {nmae["vanilla"].mean():.1f} %, '
      f'exported {nmae["folded"].max():.2g} %')

  gain = of('ln_free', 'patching_gain', place='resid_pre')
  if len(gain):  # of bytes
    copied = of('base', 'patching_total').value.min()
    found['patching_is_no_better'] = decided(
        over(gain.value), bool((gain.high <= SAME).all()),
        'sign tests over prompts: p ' + ', '.join(f'{p:.2g}' for p in gain.p),
        '' if copied >= MIN_COPIED else f'in a base the logit difference changes by {copied:.2f} '
        f'between the prompts, at least {MIN_COPIED:g} are needed')

  ratio = {arm: of(arm, 'position_0_ratio').groupby('base').value.max() for arm in MODELS}
  shrunk = ratio['ln_free'] / ratio['base']
  found['position_0_shrinks'] = decided(
      over(shrunk), (shrunk <= 0.5).all(),
      f'vanilla over base {(ratio["vanilla"] / ratio["base"]).mean():.2f}',
      even(rows))

  sink = {arm: of(arm, 'sink_rate_query').value for arm in MODELS}
  own, other = (difference(sink[a], sink['vanilla']) for a in ('ln_free', 'base'))
  found['sinks_weaken'] = decided(
      own, own.high < 0, f'base minus vanilla {other.mean:+.4f}',
      '' if sink['base'].min() >= MIN_SINK else
      f'sink rate of a base {sink["base"].min():.1%}, at least {MIN_SINK:.0%} are needed')

  size = {arm: of(arm, 'neuron_entropy', together=3.0) for arm in MODELS}
  share = size['ln_free']['size'] / size['vanilla']['size']
  clear = (size['vanilla']['size'] / size['vanilla'].control).min()
  found['confidence_neurons_stop'] = decided(
      over(share), (share <= 0.5).all(), '',
      '' if clear > MIN_NEURON else f'in a vanilla model the top 3 change the entropy {clear:.2f} '
      f'times as much as other neurons, over {MIN_NEURON:g} are needed')

  read, random = (of('base', f'norm_direction_{kind}').groupby('base').value.min()
                  for kind in ('read', 'random'))
  found['norm_keeps_direction'] = Outcome(
      REPRODUCED if worst(read, np.min) >= LIKE else NOT_REPRODUCED, worst(read, np.min), None,
      None, f'random functionals {random.min():.4f}')

  exported = [worst(of('folded', 'logit_difference', place=dtype).value)
              for dtype in ('float32', 'float64')]
  left = of('folded', 'normalizations_left')
  found['export_is_exact'] = Outcome(
      REPRODUCED if exported[0] <= FOLD_FLOAT32 and exported[1] <= FOLD_FLOAT64
      and worst(left.value) == 0 and worst(left.control, np.min) > 0 else NOT_REPRODUCED,
      exported[0], None, None,
      f'float64 {exported[1]:.1e}; {left.value.max():.0f} operations that normalize are left, '
      f'with real norms {left.control.min():.0f}')
  return found
