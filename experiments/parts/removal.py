"""What the study of LayerNorm removal reports: tables, verdicts, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.study import Report, Run
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Claim, Outcome
from launch.study.tables import Column, Table, fixed, integer, interval, significant
from model_lib.analysis import statistics
from model_lib.analysis.removal_events import event_rows

MARGIN = 0.3  # nats that a base must lie below a bigram model
MIN_BASES = 3
LITTLE = BREAKS = 0.1  # nats
SPIKE_STEPS = 5
EXACT_NMAE, REAL_NMAE = 0.01, 5.0  # percent
MIN_RATIO, MIN_SINK, MIN_NEURON = 2.0, 0.05, 3.0
MODELS = ('base', 'vanilla', 'ln_free')


def report(run: Run, claims: Sequence[Claim]) -> Report:
  """Tables, verdicts and figures of the parts that were run."""
  from experiments.figures import layernorm_removal as figures
  tables, drawn, found = [], {}, {}
  for part in ('arms', 'wide'):
    if part in run.config.parts:
      rows = run.rows[run.rows.part == part]
      size = run.config.small if part == 'arms' else run.config.wide
      where = f'GPT {size.depth} x {size.dim} on {run.dataset}'
      events = events_of(run, part, size)
      tables += [arms_table(rows, where, run.config, size), swaps_table(rows, where),
                 events_table(events, where), losses_table(rows, where), card_table(rows, where),
                 places_table(rows, where)]
      drawn |= {f'{part}_{name}': draw for name, draw in
                figures.of_part(rows, events, losses_of(run, part), where).items()}
      if part == 'arms':
        found = outcomes(rows, events, identical(run, rows))
  if 'scratch' in run.config.parts:
    tables.append(scratch_table(run.rows[run.rows.part == 'scratch'], run.dataset, run.config))
  tables.append(published_table())
  for claim in claims:
    found.setdefault(claim.id, Outcome(
        NOT_TESTABLE, None, None, None if claim.kind == 'check' else 0, 'it was not run'))
  return Report(tables, found, drawn)


# What the rows hold.

def runs(rows: pd.DataFrame, arm: str, column: str = 'val_loss', factor: float = 1.0) -> pd.Series:
  """A column of an arm's networks by the number of the base; the base itself is an arm."""
  own = rows[rows.phase.isin(('base', 'tuned')) & (rows.arm == arm) & (rows.lr_factor == factor)]
  return own.set_index('base')[column].where(own.set_index('base').diverged_step < 0)


def numbers(rows: pd.DataFrame, phase: str, arm: str, measure: str, **where: Any) -> pd.DataFrame:
  """The rows of a measure, by the number of the base."""
  own = rows[(rows.phase == phase) & (rows.arm == arm) & (rows.measure == measure)]
  for column, value in where.items():
    own = own[own[column] == value]
  return own.set_index('base').sort_index()


def difference(a: pd.Series, b: pd.Series) -> statistics.Paired:
  """a - b over the bases that both have."""
  both = pd.concat([a, b], axis=1, keys=['a', 'b']).dropna()
  return statistics.paired_difference(both.a.to_numpy(), both.b.to_numpy())


def weak_base(rows: pd.DataFrame) -> str:
  """Why nothing can be said of the bases, or ''."""
  bigram = numbers(rows, 'bigram', 'bigram', 'val_loss').value.iloc[0]
  own = numbers(rows, 'losses', 'base', 'val_mean').value
  if len(own) < MIN_BASES:
    return f'{len(own)} bases, {MIN_BASES} are needed'
  if not own.max() <= bigram - MARGIN:
    return f'base too weak: {own.max():.3f}, a bigram model has {bigram:.3f}'
  return ''


def losses_of(run: Run, part: str) -> pd.DataFrame:
  """The training losses of the fine-tuned runs: columns arm, base, lr_factor, step, loss."""
  tuned = run.rows[(run.rows.part == part) & (run.rows.phase == 'tuned')]
  lines = run.metrics()
  lines = lines[(lines.split == 'train') & lines.member.isin(tuned.member)]
  return lines.merge(tuned[['member', 'arm', 'base', 'lr_factor']], on='member')


def events_of(run: Run, part: str, size: Any) -> pd.DataFrame:
  """One row per event of the runs at the common rate: arm, base, and those of `event_rows`.

  In vanilla, where nothing happens, the steps are those of ln_free.
  """
  from experiments.layernorm_removal import ARMS, schedule_of
  from model_lib.transforms.removal import schedule
  rows = []
  losses = losses_of(run, part)
  for (arm, base), own in losses[losses.lr_factor == 1].groupby(['arm', 'base'], sort=False):
    if not ARMS[arm].schedule:
      continue
    text = schedule_of(run.config, 'ln_free' if ARMS[arm].schedule == 'never' else arm)
    steps = [step for step, _ in schedule(text, size.depth, size.tune_steps).timeline(size.depth)]
    own = own.sort_values('step')
    rows += [{'arm': arm, 'base': base, **found} for found in event_rows(
        own.loss.to_numpy(float), [s for s in steps if s >= 5], SPIKE_STEPS,
        own.grad_norm.to_numpy(float))]
  return pd.DataFrame(rows, columns=['arm', 'base', 'step', 'before', 'spike', 'recovery',
                                     'gradient_norm', 'not_finite'])


def identical(run: Run, rows: pd.DataFrame) -> dict[str, int]:
  """In how many recorded numbers `sham`, and `ln_free`, differ from `vanilla`; {} without sham."""
  losses, found = losses_of(run, 'arms'), {}
  columns = [c for c in ('val_loss', 'test_loss', 'train_loss') if c in rows]

  def of(arm):
    lines = losses[(losses.arm == arm) & (losses.lr_factor == 1)].sort_values(['base', 'step'])
    return np.concatenate([lines.loss.to_numpy(float), lines.grad_norm.to_numpy(float), *(
        runs(rows, arm, column).sort_index().to_numpy(float) for column in columns)])

  if 'sham' in set(rows.arm):
    for arm in ('sham', 'ln_free'):
      found[arm] = int((of(arm) != of('vanilla')).sum())
  return found


# Verdicts.

def outcomes(rows: pd.DataFrame, events: pd.DataFrame,
             same: Mapping[str, int]) -> dict[str, Outcome]:
  """One outcome per claim that the part `arms` can speak of."""
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
  apart = ((twice.low > 0) | (twice.high < 0)).all()
  found['doubled_sigma_differs'] = decided(over(twice.value), bool(apart))

  if 'at_once' in arms:
    spikes = {arm: events[events.arm == arm].groupby('base').spike.max()
              for arm in ('at_once', 'ln_free', 'vanilla')}
    spike = difference(spikes['at_once'], spikes['ln_free'])
    found['at_once_spikes'] = decided(
        spike, spike.low > 0, f'at_once {spikes["at_once"].mean():+.3f}, ln_free '
        f'{spikes["ln_free"].mean():+.3f}, vanilla at the same steps '
        f'{spikes["vanilla"].mean():+.3f}')
    ends = difference(runs(rows, 'at_once'), runs(rows, 'ln_free'))
    note = ''
    if 'reversed' in arms:
      other = difference(runs(rows, 'reversed'), runs(rows, 'ln_free'))
      note = f'reverse order {other.mean:+.4f} [{other.low:+.4f}, {other.high:+.4f}]'
    found['at_once_ends_worse'] = decided(ends, ends.low > 0, note)
  if same:
    found['sham_is_vanilla'] = Outcome(
        REPRODUCED if not same['sham'] and same['ln_free'] else NOT_REPRODUCED, same['sham'],
        None, None, f'ln_free differs in {same["ln_free"]}')
  return found | card_outcomes(rows, decided, over)


def card_outcomes(rows: pd.DataFrame, decided, over) -> dict[str, Outcome]:
  """The claims on what the report card measures."""
  def of(arm: str, measure: str, **where) -> pd.DataFrame:
    return numbers(rows, 'card', arm, measure, **where)

  found = {}
  ece = {arm: of(arm, 'ece_10').value for arm in MODELS}
  own, other = (difference(ece[a], ece['vanilla']) for a in ('ln_free', 'base'))
  found['over_confident'] = decided(own, own.low > 0, f'base minus vanilla {other.mean:+.4f}')

  nmae = {arm: of(arm, 'nmae_pooled').value for arm in (*MODELS, 'folded')}
  real = min(nmae['base'].min(), nmae['vanilla'].min())
  found['attribution_is_exact'] = Outcome(
      REPRODUCED if max(nmae['ln_free'].max(), nmae['folded'].max()) <= EXACT_NMAE
      and real > REAL_NMAE else NOT_REPRODUCED, nmae['ln_free'].max(), None, None,
      f'base {nmae["base"].mean():.1f} %, vanilla {nmae["vanilla"].mean():.1f} %, '
      f'exported {nmae["folded"].max():.2g} %')

  gain = of('ln_free', 'patching_gain', place='resid_pre')
  found['patching_is_no_better'] = decided(
      over(gain.value), bool(((gain.low <= 0) & (gain.high >= 0)).all()),
      'sign tests over prompts: p ' + ', '.join(f'{p:.2g}' for p in gain.p))

  ratio = {arm: of(arm, 'position_0_ratio').groupby('base').value.max() for arm in MODELS}
  lowest = ratio['base'].min()
  shrunk = ratio['ln_free'] / ratio['base']
  found['position_0_shrinks'] = decided(
      over(shrunk), (shrunk <= 0.5).all(),
      f'vanilla over base {(ratio["vanilla"] / ratio["base"]).mean():.2f}',
      '' if lowest >= MIN_RATIO else f'the norm at position 0 is {lowest:.2f} times that elsewhere, '
      f'at least {MIN_RATIO:g} are needed')

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
      REPRODUCED if read.min() >= 0.95 else NOT_REPRODUCED, read.min(), None, None,
      f'random functionals {random.min():.4f}')

  exported = [of('folded', 'logit_difference', place=dtype).value.max()
              for dtype in ('float32', 'float64')]
  left = of('folded', 'normalizations_left')
  found['export_is_exact'] = Outcome(
      REPRODUCED if exported[0] <= 1e-4 and exported[1] <= 1e-11 and not left.value.any()
      and left.control.min() > 0 else NOT_REPRODUCED, exported[0], None, None,
      f'float64 {exported[1]:.1e}; {left.value.max():.0f} operations that normalize are left, '
      f'with real norms {left.control.min():.0f}')
  return found


# Tables.

def arms_table(rows: pd.DataFrame, where: str, config: Any, size: Any) -> Table:
  """Every arm and rate against vanilla at the common rate, paired within a base."""
  reference, found = runs(rows, 'vanilla'), []
  tuned = rows[rows.phase == 'tuned']
  keys = [('base', 1.0), *dict.fromkeys(zip(tuned.arm, tuned.lr_factor, strict=True))]
  for arm, factor in keys:
    own = runs(rows, arm, factor=factor)
    mean, paired = statistics.mean_interval(own.to_numpy()), difference(own, reference)
    found.append({'arm': arm, 'factor': factor if arm != 'base' else None, 'loss': mean.mean,
                  'interval': (mean.low, mean.high), 'test': runs(rows, arm, 'test_loss',
                                                                  factor).mean(),
                  'gap': paired.mean, 'gap_interval': (paired.low, paired.high),
                  'n': int(own.notna().sum())})
  bigram = numbers(rows, 'bigram', 'bigram', 'val_loss').value.iloc[0]
  tokens = config.batch_size * config.window
  return Table(
      f'LayerNorm removal, {where}', (
          Column('arm', 'arm', right=False), Column('factor', 'rate factor', format=significant(3)),
          Column('loss', 'validation loss', 'nats', fixed(4)),
          Column('interval', '95 %', format=interval(4)),
          Column('test', 'test loss', 'nats', fixed(4)),
          Column('gap', 'minus vanilla', 'nats', fixed(4, signed=True)),
          Column('gap_interval', '95 %', format=interval(4, signed=True)),
          Column('n', 'bases', format=integer())),
      found,
      [f'Bases: {size.base_steps} steps, {size.base_steps * tokens:,} tokens (0 with given '
       f'weights); fine-tuning: {size.tune_steps} steps, {size.tune_steps * tokens:,} tokens, the '
       'same batches in every arm of a base. A bigram model of the training text: '
       f'{bigram:.4f}.',
       'Intervals over bases (with 3 of them the half width is 2.5 standard deviations); '
       'differences paired within a base.'])


def swaps_table(rows: pd.DataFrame, where: str) -> Table:
  """Norms replaced without fine-tuning."""
  found = []
  for arm, what in (('zero_tuning', 'base'), ('doubled_sigma', 'zero_tuning')):
    mean = numbers(rows, 'swaps', arm, 'val_mean').value
    for base, gap in numbers(rows, 'swaps', arm, 'val_gap').iterrows():
      found.append({'arm': arm, 'base': base, 'loss': mean[base], 'minus': what, 'gap': gap.value,
                    'interval': (gap.low, gap.high)})
  return Table(f'All norms replaced without fine-tuning, {where}', (
      Column('arm', 'arm', right=False), Column('base', 'base', format=integer()),
      Column('loss', 'validation loss', 'nats', fixed(4)), Column('minus', 'minus', right=False),
      Column('gap', 'difference', 'nats', fixed(4, signed=True)),
      Column('interval', '95 %', format=interval(4, signed=True))), found,
      ['Sigma: the average over training windows; doubled_sigma: twice of it. Intervals: paired '
       'bootstrap over sequences.'])


def events_table(events: pd.DataFrame, where: str) -> Table:
  """The largest spike of each arm."""
  found = []
  for arm, own in events.groupby('arm', sort=False):
    largest = own.loc[own.groupby('base').spike.idxmax()]
    recovery = own.groupby('base').recovery.max()
    found.append({'arm': arm, 'spike': largest.spike.mean(), 'most': largest.spike.max(),
                  'step': largest.step.median(), 'recovery': recovery.mean(),
                  'gradient': own.gradient_norm.max(), 'bad': int(own.not_finite.sum())})
  return Table(f'Spikes of the training loss, {where}', (
      Column('arm', 'arm', right=False), Column('spike', 'largest spike', 'nats', fixed(3, True)),
      Column('most', 'of any base', 'nats', fixed(3, True)),
      Column('step', 'at step', format=integer()),
      Column('recovery', 'longest recovery', 'steps', fixed(1)),
      Column('gradient', 'gradient norm', format=significant(3)),
      Column('bad', 'not finite', format=integer())), found,
      [f'Spike: largest loss of the {SPIKE_STEPS} steps from an event on minus the mean of the 5 '
       'before; mean over bases of the largest of a run. Recovery: steps until the mean of 5 is '
       'back; a dash where the run ends first. vanilla: at the steps of ln_free.'])


def losses_table(rows: pd.DataFrame, where: str) -> Table:
  """Tails of the losses of tokens on each text, mean over bases."""
  own, found = rows[rows.phase == 'losses'], []
  texts = [m.removesuffix('_mean') for m in dict.fromkeys(own.measure) if m.endswith('_mean')]
  names = ('mean', 'median', 'p2.5', 'p97.5', 'p0.1', 'p99.9', 'max', 'above_50')
  for text in texts:
    for arm in MODELS:
      values = {name: numbers(rows, 'losses', arm, f'{text}_{name}').value for name in names}
      if len(values['mean']):
        found.append({'text': text, 'arm': arm, **{
            name: value.max() if name in ('max', 'above_50') else value.mean()
            for name, value in values.items()}})
  return Table(f'Losses of single tokens, {where}', (
      Column('text', 'text', right=False), Column('arm', 'arm', right=False),
      *(Column(name, name, 'nats', fixed(3)) for name in names[:-1]),
      Column('above_50', 'above 50', 'tokens', integer())), found,
      ['Means over bases, of max and above 50 the largest. shifted: text of another kind; unseen: '
       'random tokens that the training text does not have.'])


CARD = (('output_entropy', 'output entropy (nats)', 4), ('ece_10', 'ECE, 10 bins', 4),
        ('ece_15', 'ECE, 15 bins', 4), ('best_temperature', 'best temperature', 3),
        ('nmae_pooled', 'NMAE of attribution, pooled (%)', 2),
        ('nmae_per_head', 'NMAE of attribution, per head (%)', 2),
        ('sink_rate_query', 'sink rate, by query', 4), ('sink_rate_head', 'sink rate, by head', 4),
        ('heads_collapse', 'heads of low entropy', 3),
        ('heads_overload', 'heads of high entropy', 3),
        ('null_directions', 'null directions of the unembedding', 0),
        ('neurons_in_null_space', 'share of confidence neurons in them', 3))


def card_table(rows: pd.DataFrame, where: str) -> Table:
  """The report card, mean over bases with its interval."""
  found = []
  for measure, name, digits in CARD:
    line: dict[str, Any] = {'measure': name}
    for arm in (*MODELS, 'folded'):
      own = numbers(rows, 'card', arm, measure).value
      if len(own):
        mean = statistics.mean_interval(own.to_numpy())
        text = fixed(digits)(mean.mean)
        line[arm] = text if math.isnan(mean.low) else f'{text} {interval(digits)((mean.low, mean.high))}'
    found.append(line)
  return Table(f'Report card, {where}', (
      Column('measure', 'measure', right=False),
      *(Column(arm, arm) for arm in (*MODELS, 'folded'))), found,
      ['Mean over bases with its 95 % interval, where there is more than one base. folded: ln_free '
       'written without any norm. Attribution: of the logit of the token that follows, by heads.'])


def places_table(rows: pd.DataFrame, where: str) -> Table:
  """What is measured per place, mean over bases."""
  found = []
  for measure, column, name in (
      ('sigma_drift', 'value', 'true sigma over the frozen one'),
      ('sigma_drift', 'variation', 'variation of sigma over tokens'),
      ('position_0_ratio', 'value', 'norm at position 0 over others'),
      ('norm_direction_read', 'value', 'cosine of the gradient of what is read'),
      ('patching_error', 'value', 'error of attribution patching'),
      ('patching_gain', 'value', 'vanilla minus ln_free of it'),
      ('neuron_entropy', 'size', 'change of entropy without the neuron'),
      ('neuron_entropy', 'control', 'without another neuron of its norm')):
    own = rows[(rows.phase == 'card') & (rows.measure == measure)]
    if measure == 'neuron_entropy':
      own = own[own.together == 3]
      own = own.assign(place='top 3 together')
    for place, group in own.groupby('place', sort=False):
      line: dict[str, Any] = {'what': name, 'place': place}
      found.append(line | {arm: group[group.arm == arm][column].mean() for arm in MODELS
                           if (group.arm == arm).any()})
  return Table(f'By place, {where}', (
      Column('what', 'what', right=False), Column('place', 'place', right=False),
      *(Column(arm, arm, format=significant(3)) for arm in MODELS)), found,
      ['Means over bases.'])


def scratch_table(rows: pd.DataFrame, dataset: str, config: Any) -> Table:
  """Networks trained from the start, against the one with LayerNorm and GELU."""
  reference, found = rows[rows.arm == 'SM+LN+G'].set_index('base').val_loss, []
  for arm, own in rows.groupby('arm', sort=False):
    alive = own.set_index('base').val_loss.where(own.set_index('base').diverged_step < 0)
    mean, paired = statistics.mean_interval(alive.to_numpy()), difference(alive, reference)
    found.append({'arm': arm, 'loss': mean.mean, 'interval': (mean.low, mean.high),
                  'gap': paired.mean, 'gap_interval': (paired.low, paired.high),
                  'diverged': int((own.diverged_step >= 0).sum()), 'n': len(own)})
  return Table(f'From scratch on {dataset}, {config.scratch_steps} steps', (
      Column('arm', 'network', right=False), Column('loss', 'validation loss', 'nats', fixed(4)),
      Column('interval', '95 %', format=interval(4)),
      Column('gap', 'minus SM+LN+G', 'nats', fixed(4, signed=True)),
      Column('gap_interval', '95 %', format=interval(4, signed=True)),
      Column('diverged', 'diverged', format=integer()), Column('n', 'seeds', format=integer())),
      found, ['One learning rate for all. SM: attention and linear feed-forward layers; LN: '
              'LayerNorm; G, R: GELU, ReLU; ScFuFFN: scaled branches.'])


def published_table() -> Table:
  """Table 1 of the paper, for comparison of signs and sizes."""
  listed = json.loads((Path(__file__).parent.parent / 'paper_values' / 'layernorm_removal.json')
                      .read_text(encoding='utf-8'))['table_1']
  return Table('GPT-2 in the paper (arXiv:2507.02559, Table 1)', (
      Column('size', 'GPT-2', right=False), Column('arm', 'arm', right=False),
      Column('steps', 'steps', format=integer()), Column('owt', 'OpenWebText', 'nats', fixed(4)),
      Column('pile', 'Pile', 'nats', fixed(4)),
      Column('pile_filtered', 'Pile, filtered', 'nats', fixed(4))), listed,
      ['One seed each. Of the 130 of XL three sequences of 10,000 are the cause; its median is '
       '1.09. The models are not those of this study: compare signs and sizes.'])
