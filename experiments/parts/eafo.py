"""Entropy and activations: does EAFO's criterion order them, and which way does CRReLU learn?

`experiments.activation_search` describes the method; here are the cohorts, tables and verdicts.
`config` is that study's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pandas as pd

from launch.study import Measurement, Report, Run, field
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from launch.study.tables import Column, Table, fixed, integer, interval
from model_lib.analysis import selection, statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec

PART = 'eafo'
STARTS = (0.01, 0.0, -0.01)
ARMS = ('crrelu', 'bump')
SEEDS = {'ranking': 0, 'sign': 1}
MOST_SEEDS = 5003
MIN_SEEDS, MIN_ACTIVATIONS, MIN_CEILING = 16, 30, 0.3
TESTABLE = (f'not testable below {MIN_ACTIVATIONS} activations, when the split-half tau of their '
            f'test losses is below {MIN_CEILING}, or below {MIN_SEEDS} seeds without divergence')


def testable(claim: str) -> str:
  """When a claim of this part is not testable: the same for all."""
  del claim
  return TESTABLE


@dataclasses.dataclass(frozen=True)
class Eafo:
  """The entropy experiments."""

  activations: tuple[str, ...] = field(
      (), 'Activations to rank; empty for every fixed pointwise function of the catalogue.')
  base_rate: float = field(3e-3, "Adam's learning rate at factor 1.", low=1e-8)
  ranking_seeds: int = field(6, 'Seeds per activation and rate, for the ranking.', low=2,
                             high=MOST_SEEDS)
  sign_seeds: int = field(32, 'Seeds per start of the learned coefficient.', low=2,
                          high=MOST_SEEDS)
  sign_rate: float = field(3e-3, "Adam's learning rate where the coefficient is learned.", low=1e-8)
  recorded_seeds: int = field(16, 'Seeds whose pre-activations are recorded.', low=2)
  steps: int = field(300, 'Optimizer steps per run.', low=1)
  batch_size: int = field(128, 'Examples per step.', low=1)


@functools.cache
def catalogue() -> tuple[str, ...]:
  """Fixed pointwise functions of the registry with a finite gain, each function once."""
  from model_lib.activations import get_activation, names
  found: list[str] = []
  for name in names():
    activation = get_activation(name)
    if activation.kind == 'pointwise' and not activation.parameters and (
        not set(activation.duplicates) & set(found)) and 0 < activation.moments().gain < math.inf:
      found.append(name)
  return tuple(found)


def ranked(config: Any) -> tuple[str, ...]:
  return config.eafo.activations or catalogue()


def angle(config: Any) -> float:
  """Of the control's bump, drawn at random."""
  return round(float(np.random.Generator(np.random.Philox(config.seed)).uniform(0, 2 * math.pi)), 4)


def spec_of(config: Any, arm: str, start: float) -> str:
  """The activation whose coefficient is learned from `start`."""
  return (f'crrelu(epsilon={start})' if arm == 'crrelu' else
          f'relu_bump(epsilon={start}, angle={angle(config)})')


def model(config: Any, activation: str) -> ModelSpec:
  return ModelSpec('mlp', {'widths': list(config.mlp_widths), 'activation': activation,
                           'init_gain': config.init_gain})


def member(config: Any, phase: str, activation: str, number: int, rate: float,
           hp: dict[str, float] | None = None, **tags: str | float) -> Member:
  """A run; those of equal phase and number share their seeds."""
  seed = (config.seed * 2 + SEEDS[phase]) * MOST_SEEDS + number
  split = number % config.splits
  tags = {'part': PART, 'phase': phase, 'model': 'mlp', 'activation': activation, **tags,
          'learning_rate': rate, 'seed': number, 'split': split}
  return Member(tags, seed, seed, split, {'learning_rate': rate, **(hp or {})})


def cohorts(config: Any):
  """The ranking's runs; the learned coefficients; what is measured on their networks."""
  from experiments.measurements import entropy as measured
  from model_lib.models.activation_layer import consumer_gains
  s, listed = config.eafo, ranked(config)
  spec = f'switch({", ".join(listed)})'
  gains = consumer_gains(spec, config.init_gain)
  ranking = []
  for code, activation in enumerate(listed):
    for factor in config.rate_factors:
      factor = float(f'{factor:.6g}')
      ranking += [member(config, 'ranking', activation, number, s.base_rate * factor,
                         {'activation_code': code, 'init_gain': gains[code]}, lr_factor=factor)
                  for number in range(s.ranking_seeds)]
  signs = [Cohort(f'eafo-{arm}-{i}', model(config, spec_of(config, arm, start)),
                  tuple(member(config, 'sign', spec_of(config, arm, start), number, s.sign_rate,
                               arm=arm, start=start) for number in range(s.sign_seeds)),
                  s.steps, s.batch_size)
           for arm in ARMS for i, start in enumerate(STARTS)]
  yield [Cohort('eafo-ranking', model(config, spec), tuple(ranking), s.steps, s.batch_size), *signs]
  yield [Measurement('eafo-criterion', measured.measure_criterion, {'activations': list(listed)},
                     seconds=0.2 * len(listed)),
         Measurement('eafo-learned', measured.measure_learned,
                     {'cohorts': [cohort.name for cohort in signs],
                      'recorded': s.recorded_seeds}, seconds=5.0 * len(signs))]


def check(config: Any) -> None:
  """Whether every activation to rank is fixed, pointwise and listed once."""
  from model_lib.models.activation_layer import consumer_gains
  listed = ranked(config)
  if len(set(listed)) < max(3, len(listed)):
    raise UserError('config.eafo.activations: a ranking needs at least 3, each once')
  consumer_gains(f'switch({", ".join(listed)})')


# The report.

def losses(rows: pd.DataFrame) -> pd.DataFrame:
  """Test losses of every activation at its best rate, [activation, seed]; diverged: nan."""
  own = rows[rows.phase == 'ranking']
  choices = selection.choose(own, ('activation',))
  kept = []
  for (activation,), choice in choices.items():
    factor = choice.factor if math.isfinite(choice.factor) else own.lr_factor.min()
    kept.append(own[(own.activation == activation) & (own.lr_factor == factor)])
  chosen = pd.concat(kept)
  chosen = chosen.assign(test_loss=chosen.test_loss.where(chosen.diverged_step < 0))
  return chosen.pivot(index='activation', columns='seed', values='test_loss')


def rank_agreement(config: Any, rows: pd.DataFrame):
  """(conventions -> (tau, low, high), permuted tau's interval, split-half tau, n).

  tau is Kendall's tau-b of the entropy with the mean test loss: above 0 where a lower entropy goes
  with a lower loss, as the paper claims. Intervals: over resampled activations.
  """
  from experiments.measurements.entropy import CONVENTIONS
  table = losses(rows).dropna()
  found = rows[rows.phase == 'criterion'].set_index('activation')
  names = [name for name in table.index if name in found.index]
  mean = table.loc[names].mean(axis=1).to_numpy()
  taus = {column: statistics.kendall_interval(found.loc[names, column], mean)
          for column in CONVENTIONS}
  order = np.random.default_rng(1).permutation(len(names))
  control = statistics.kendall_interval(found.loc[names, 'primary'], mean[order])
  ceiling = statistics.split_half_tau(table.loc[names].to_numpy().T)
  return taus, control, ceiling, len(names)


def learned(rows: pd.DataFrame, arm: str, start: float) -> pd.DataFrame:
  """Rows of the learned coefficients: columns seed, layer, epsilon."""
  own = rows[(rows.phase == 'learned') & (rows.arm == arm) & (rows.start == start)]
  return own.pivot(index='seed', columns='layer', values='epsilon').dropna()


def outcomes(config: Any, rows: pd.DataFrame) -> dict[str, Outcome]:
  """One outcome per claim."""
  taus, control, ceiling, n = rank_agreement(config, rows)
  tau, low, high = taus['primary']
  problem = ''
  if n < MIN_ACTIVATIONS:
    problem = f'{n} activations, at least {MIN_ACTIVATIONS} are needed'
  elif ceiling < MIN_CEILING:
    problem = f'the split-half tau of the test losses is {ceiling:.2f}, below {MIN_CEILING}'
  elif not control[1] <= 0 <= control[2]:
    problem = f'on permuted losses tau is {control[0]:.2f} [{control[1]:.2f}, {control[2]:.2f}]'
  verdict = NOT_TESTABLE if problem else REPRODUCED if low > 0 else NOT_REPRODUCED
  found = {'entropy_criterion': Outcome(
      verdict, tau, (low, high), n,
      problem or f'permuted losses {control[0]:.3f} [{control[1]:.3f}, {control[2]:.3f}]; '
      f'split-half tau of the losses {ceiling:.3f}')}

  by_start = {start: statistics.mean_interval(learned(rows, 'crrelu', start).mean(axis=1))
              for start in STARTS}
  mean = by_start[0.0]
  beside = statistics.mean_interval(learned(rows, 'bump', 0.0).mean(axis=1))
  problem = f'{mean.n} seeds, at least {MIN_SEEDS} are needed' if mean.n < MIN_SEEDS else ''
  shares = [f'{start:+g}: {(learned(rows, "crrelu", start) > 0).to_numpy().mean():.0%}'
            for start in STARTS]
  passed = all(interval.low > 0 for interval in by_start.values())
  verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  found['crrelu_epsilon_positive'] = Outcome(
      verdict, mean.mean, (mean.low, mean.high), mean.n,
      problem or f'share of positive layers by start {", ".join(shares)}; the control bump ends at '
      f'{beside.mean:.4f} [{beside.low:.4f}, {beside.high:.4f}]')

  changes = {arm: entropy_changes(rows, arm) for arm in ARMS}
  mean, beside = (statistics.mean_interval(changes[arm]) for arm in ARMS)
  apart = statistics.mean_interval((changes['crrelu'] - changes['bump']).dropna())
  problem = (f'{mean.n} seeds with recorded pre-activations, at least {MIN_SEEDS} are needed'
             if mean.n < MIN_SEEDS else '')
  passed = mean.high < 0 and apart.high < 0
  verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  found['crrelu_lowers_entropy'] = Outcome(
      verdict, mean.mean, (mean.low, mean.high), mean.n,
      problem or f'the control bump {beside.mean:+.4f} [{beside.low:+.4f}, {beside.high:+.4f}]')
  return found


def entropy_changes(rows: pd.DataFrame, arm: str) -> pd.Series:
  """Per seed, from the start 0: primary entropy with the learned coefficient minus without it."""
  own = rows[(rows.phase == 'learned') & (rows.arm == arm) & (rows.start == 0.0)]
  return own.groupby('seed').entropy_change.mean().dropna()


def criterion_table(config: Any, rows: pd.DataFrame, dataset: str) -> Table:
  """Kendall's tau of every convention of the entropy with the mean test loss."""
  taus, control, ceiling, n = rank_agreement(config, rows)
  listed = [{'convention': name, 'tau': tau, 'interval': (low, high)}
            for name, (tau, low, high) in [*taus.items(), ('primary, permuted losses', control)]]
  whole = len(losses(rows))
  left = rows[rows.phase == 'left_out']
  without = [f'Without an entropy: {", ".join(left.activation)} ({left.reason.iloc[0]}).'] if len(
      left) else []
  return Table(
      f'Entropy of the activated distribution against the test loss on {dataset}', (
          Column('convention', 'entropy', right=False),
          Column('tau', "Kendall's tau", format=fixed(3, signed=True)),
          Column('interval', '95 %', format=interval(3, signed=True))), listed,
      [f'{n} of {whole} fixed pointwise activations, those without a diverged run; N(0, 1) '
       'pre-activations; each at the best of its learning rates. Above 0: a lower entropy goes with '
       'a lower loss, as the paper claims. Intervals: over resampled activations.',
       'primary: plug-in entropy of f / sd f on bins of 0.1. fine: on bins of 0.01. monotone: '
       'H(U) + E log |f\'|, which is that of f only where f is strictly monotone. raw, var, rms: of '
       'f, f / sd f, f over its root mean square.',
       f'Split-half tau of the losses: {ceiling:.3f}.', *without])


def sign_table(config: Any, rows: pd.DataFrame, dataset: str) -> Table:
  """The learned coefficient by arm and start."""
  listed = []
  for arm in ARMS:
    for start in STARTS:
      table = learned(rows, arm, start)
      mean = statistics.mean_interval(table.mean(axis=1).to_numpy())
      row = {'arm': arm, 'start': start, 'epsilon': mean.mean, 'interval': (mean.low, mean.high),
             'positive': 100 * float((table > 0).to_numpy().mean()), 'n': mean.n}
      for layer in table.columns:
        row[layer] = float(table[layer].mean())
      changes = rows[(rows.phase == 'learned') & (rows.arm == arm) & (rows.start == start)]
      row |= {column: float(changes[column].mean()) for column in ('entropy', 'entropy_change')}
      own = rows[(rows.phase == 'sign') & (rows.arm == arm) & (rows.start == start)]
      row['loss'] = float(own.test_loss.mean())
      listed.append(row)
  layers = list(learned(rows, ARMS[0], 0.0).columns)
  return Table(
      f'The learned coefficient of ReLU + epsilon b on {dataset}', (
          Column('arm', 'b', right=False), Column('start', 'start', format=fixed(2, signed=True)),
          Column('epsilon', 'learned', format=fixed(4, signed=True)),
          Column('interval', '95 %', format=interval(4, signed=True)),
          *(Column(layer, layer, format=fixed(4, signed=True)) for layer in layers),
          Column('positive', 'positive', '%', fixed(0)), Column('n', 'n', format=integer()),
          Column('entropy', 'entropy', 'nats', fixed(4)),
          Column('entropy_change', 'its change by epsilon', 'nats', fixed(4, signed=True)),
          Column('loss', 'test log-loss', 'nats', fixed(4))), listed,
      ['crrelu: b = x e^(-x^2/2). bump: an odd function of equal norm under N(0, 1), orthogonal to '
       f'ReLU and to that b, drawn at random (angle {angle(config)}). Gains are those of the start.',
       'learned: mean over layers, then over seeds; positive: share of layers. Entropy: primary, on '
       'the recorded pre-activations of the trained networks, with the learned coefficient; its '
       'change: against coefficient 0 on the same pre-activations.'])


def report(run: Run) -> Report:
  """The tables, the claims' outcomes and the figure."""
  from experiments.figures import activation_search as figures
  config, rows = run.config, run.rows[run.rows.part == PART]
  return Report(
      [criterion_table(config, rows, run.dataset), sign_table(config, rows, run.dataset)],
      outcomes(config, rows),
      {'entropy': lambda: figures.entropy_against_loss(
          rows[rows.phase == 'criterion'].set_index('activation').primary,
          losses(rows).mean(axis=1)),
       'epsilon': lambda: figures.learned_coefficients(rows[rows.phase == 'learned'])})
