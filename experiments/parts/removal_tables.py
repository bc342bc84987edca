"""The tables of the study of LayerNorm removal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.parts.removal_rows import SPIKE_STEPS, difference, numbers, runs
from launch.study.tables import Column, Table, fixed, integer, interval, significant
from model_lib.analysis import statistics
from model_lib.analysis.removal_events import BEFORE

MODELS = ('base', 'vanilla', 'ln_free')


def of_part(rows: pd.DataFrame, events: pd.DataFrame, where: str, config: Any,
            size: Any) -> list[Table]:
  """The tables of one part."""
  return [arms_table(rows, where, config, size), course_table(rows, where, size),
          swaps_table(rows, where), events_table(events, rows, where), losses_table(rows, where),
          card_table(rows, where), places_table(rows, where)]


def arms_table(rows: pd.DataFrame, where: str, config: Any, size: Any) -> Table:
  """Every arm and rate against vanilla at the common rate, paired within a base."""
  reference, found = runs(rows, 'vanilla'), []
  trained = rows[rows.phase.isin(('base', 'tuned'))]
  for arm, factor in dict.fromkeys(zip(trained.arm, trained.lr_factor, strict=True)):
    own = runs(rows, arm, factor=factor)
    alive = own.dropna()
    mean, paired = statistics.mean_interval(alive.to_numpy()), difference(own, reference)
    found.append({'arm': arm, 'factor': factor if arm != 'base' else None, 'loss': mean.mean,
                  'interval': (mean.low, mean.high),
                  'test': runs(rows, arm, 'test_loss', factor).mean(), 'gap': paired.mean,
                  'gap_interval': (paired.low, paired.high), 'n': len(alive),
                  'diverged': len(own) - len(alive)})
  bigram = numbers(rows, 'bigram', 'bigram', 'val_loss').value.iloc[0]
  tokens = config.batch_size * config.window
  bases = (f'Base: {config.weights}' if config.weights else
           f'Bases: {size.base_steps} steps, {size.base_steps * tokens:,} tokens')
  return Table(
      f'LayerNorm removal, {where}', (
          Column('arm', 'arm', right=False), Column('factor', 'rate factor', format=significant(3)),
          Column('loss', 'validation loss', 'nats', fixed(4)),
          Column('interval', '95 %', format=interval(4)),
          Column('test', 'test loss', 'nats', fixed(4)),
          Column('gap', 'minus vanilla', 'nats', fixed(4, signed=True)),
          Column('gap_interval', '95 %', format=interval(4, signed=True)),
          Column('n', 'runs', format=integer()), Column('diverged', 'diverged', format=integer())),
      found,
      [f'{bases}; fine-tuning: {size.tune_steps} steps, {size.tune_steps * tokens:,} tokens, the '
       'same batches in every arm of a base. A bigram model of the training text: '
       f'{bigram:.4f}.',
       'Intervals over bases (with 3 of them the half width is 2.5 standard deviations); '
       'differences paired within a base. Runs that diverged are left out and counted.',
       f'Losses here are those of the evaluation in training, {config.eval_windows} windows; the '
       f'claims on vanilla and ln_free read {config.card_windows} windows, in float32; the best '
       'rate of each is chosen on the windows that it is compared on.'])


def course_table(rows: pd.DataFrame, where: str, size: Any) -> Table:
  """ln_free against vanilla before the first event, after each group, and at the end."""
  marks = {int(name.removeprefix('val_loss_at_')): name for name in rows
           if name.startswith('val_loss_at_') and rows[name].notna().any()}
  found = []
  for step, column in [*sorted(marks.items()), (size.tune_steps, 'val_loss')]:
    vanilla, free = (runs(rows, arm, column) for arm in ('vanilla', 'ln_free'))
    paired = difference(free, vanilla)
    found.append({'step': step, 'vanilla': vanilla.mean(), 'ln_free': free.mean(),
                  'gap': paired.mean, 'interval': (paired.low, paired.high), 'n': paired.n})
  return Table(f'Does the gap close? {where}', (
      Column('step', 'steps done', format=integer()),
      *(Column(arm, arm, 'nats', fixed(4)) for arm in ('vanilla', 'ln_free')),
      Column('gap', 'difference', 'nats', fixed(4, signed=True)),
      Column('interval', '95 %', format=interval(4, signed=True)),
      Column('n', 'runs', format=integer())), found,
      ['Validation loss before the first event, after the last one of each group, and at the end.'])


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


def events_table(events: pd.DataFrame, rows: pd.DataFrame, where: str) -> Table:
  """The largest spike of each arm; below it what an adaptive removal came to."""
  found = []
  for arm, own in events.groupby('arm', sort=False):
    largest = own.loc[own.groupby('base').spike.idxmax()]
    # A run that never recovers must not look like one that does.
    recovery = own.groupby('base').recovery.max().where(
        own.groupby('base').recovery.count() == own.groupby('base').size())
    found.append({'arm': arm, 'spike': largest.spike.mean(), 'most': largest.spike.max(),
                  'step': largest.step.median(), 'recovery': recovery.mean(skipna=False),
                  'rise': own.groupby('base').rise.max().mean(),
                  'gradient': own.gradient_norm.max(), 'bad': int(own.not_finite.sum())})
  return Table(f'Spikes of the training loss, {where}', (
      Column('arm', 'arm', right=False), Column('spike', 'largest spike', 'nats', fixed(3, True)),
      Column('most', 'of any base', 'nats', fixed(3, True)),
      Column('step', 'at step', format=integer()),
      Column('rise', 'largest rise over vanilla', 'nats', fixed(3, True)),
      Column('recovery', 'longest recovery', 'steps', fixed(1)),
      Column('gradient', 'gradient norm', format=significant(3)),
      Column('bad', 'not finite', format=integer())), found,
      [f'Spike: largest loss of the {SPIKE_STEPS} steps from an event on minus the mean of the '
       f'{BEFORE} before; mean over bases of the largest of a run. Recovery: steps until the mean '
       f'of {BEFORE} is back; a dash where a run ends before that. vanilla: at the steps of '
       'ln_free. Rise: largest difference to vanilla on the same batches in these steps, mean over '
       'bases of the largest of a run; the spike has in it how hard the batches are.',
       *rule_notes(rows)])


def rule_notes(rows: pd.DataFrame) -> list[str]:
  """One line for each arm that sets its own events."""
  notes = []
  for arm in dict.fromkeys(rows[rows.phase == 'rule'].arm):
    left, back = (', '.join(f'{n:.0f}' for n in numbers(rows, 'rule', arm, name).value)
                  for name in ('left', 'rollbacks'))
    norms = numbers(rows, 'rule', arm, 'left')['of'].iloc[0]
    notes.append(f'{arm} sets its own events: of {norms:.0f} norms {left} are left, and one was '
                 f'put back {back} times, by base.')
  return notes


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
        ('neurons_in_null_space', "share of the confidence neurons' weights in them", 3))


def card_table(rows: pd.DataFrame, where: str) -> Table:
  """The report card, mean over bases with its interval."""
  found = []
  for measure, name, digits in CARD:
    line: dict[str, Any] = {'measure': name}
    for arm in (*MODELS, 'folded'):
      own = numbers(rows, 'card', arm, measure).value
      if len(own):
        mean = statistics.mean_interval(own.to_numpy())
        line[arm] = fixed(digits)(mean.mean)
        if not math.isnan(mean.low):
          line[arm] += f' {interval(digits)((mean.low, mean.high))}'
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
  first = rows[(rows.arm == 'SM+LN+G') & (rows.diverged_step < 0)]
  reference, found = first.set_index('base').val_loss, []
  for arm, own in rows.groupby('arm', sort=False):
    alive = own[own.diverged_step < 0].set_index('base').val_loss
    mean, paired = statistics.mean_interval(alive.to_numpy()), difference(alive, reference)
    found.append({'arm': arm, 'loss': mean.mean, 'interval': (mean.low, mean.high),
                  'gap': paired.mean, 'gap_interval': (paired.low, paired.high),
                  'diverged': len(own) - len(alive), 'n': len(alive)})
  return Table(f'From scratch on {dataset}, {config.scratch_steps} steps', (
      Column('arm', 'network', right=False), Column('loss', 'validation loss', 'nats', fixed(4)),
      Column('interval', '95 %', format=interval(4)),
      Column('gap', 'minus SM+LN+G', 'nats', fixed(4, signed=True)),
      Column('gap_interval', '95 %', format=interval(4, signed=True)),
      Column('diverged', 'diverged', format=integer()), Column('n', 'seeds', format=integer())),
      found, ['One learning rate for all. SM: attention and linear feed-forward layers; LN: '
              'LayerNorm; G, R: GELU, ReLU; ScFuFFN: scaled branches; EReg: the entropy '
              'regularizer.'])


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
