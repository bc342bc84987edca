"""Gated feed-forward layers against plain ones in a language model of bytes, at equal parameters.

Shazeer 2020 (arXiv:2002.05202) puts f(x W) * (x V) in place of f(x W) into the feed-forward layers
of T5, with two thirds of the hidden units, and reaches a lower log-perplexity with every such pair.
Here each arm is a small causal transformer on bytes (`model_lib.models.gpt`); what can be compared
with the paper is the order of the arms and the signs of differences, not a loss.
`experiments.activation_search` describes the protocol; `config` is that study's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from experiments.parts.comparison import programs
from experiments.parts.search_cohorts import MOST_WIDENINGS, chosen_factors
from launch.study import Measurement, Report, Run, field
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from launch.study.comparison import comparison_table
from launch.study.tables import Column, Table, fixed, integer, interval, p_value
from model_lib.analysis import selection, statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PART, TEXT = 'glu', 'glu_text'
REFERENCE = 'relu'
PLAIN_OF = {'reglu': 'relu', 'geglu': 'gelu', 'swiglu': 'silu'}
GATED, PLAIN = ('glu', 'bilinear', 'geglu', 'swiglu', 'reglu'), ('relu', 'gelu', 'silu')
OPTIMIZER = OptimizerSpec(schedule='cosine', warmup=0.1)
PHASES = {'selection': 0, 'null_selection': 0, 'fresh': 1, 'null_fresh': 1}
MOST_SEEDS, MOST_COPIES = 5003, 101  # that `member` keeps apart
MIN_SEEDS, MIN_ARMS, LEARNED = 5, 6, 0.3
TESTABLE = (f'not testable below {MIN_SEEDS} seeds at which no run of the arms in question '
            'diverged, when one of these arms chooses the edge of the learning rates, '
            f'{MOST_WIDENINGS} steps beyond the first ones, or when ReLU does not come {LEARNED} '
            'nats per byte below the entropy of single bytes')


def testable(claim: str) -> str:
  """When a claim of this part is not testable: the same for all but the order's number of arms."""
  return TESTABLE + (f'; below {MIN_ARMS} arms of the paper' if claim == 'glu_order' else '')


@dataclasses.dataclass(frozen=True)
class Glu:
  """The language model and its arms."""

  activations: tuple[str, ...] = field(
      (*PLAIN, 'relu_squared', *GATED), 'Spec strings of the registry; ReLU must be among them. A '
      'gated one gets about two thirds of the hidden units.')
  text: str = field('pystdlib', 'A prepared text.')
  window: int = field(32, 'Tokens that the model reads at a time.', low=2)
  dim: int = field(64, 'Width of the model.', low=4)
  depth: int = field(2, 'Blocks.', low=1)
  heads: int = field(4, 'Attention heads.', low=1)
  base_rate: float = field(1e-2, "Adam's peak learning rate at factor 1.", low=1e-8)
  selection_seeds: int = field(1, 'Seeds per arm and rate for the choice.', low=1, high=MOST_SEEDS)
  fresh_seeds: int = field(6, 'Fresh seeds per arm.', low=2, high=MOST_SEEDS)
  copies: int = field(2, 'Copies of ReLU, each with seeds of its own, through the same selection.',
                      low=0, high=MOST_COPIES - 1)
  steps: int = field(600, 'Optimizer steps per run.', low=1)
  batch_size: int = field(16, 'Windows per step.', low=1)


# The cohorts.

def model(config: Any, activation: str) -> ModelSpec:
  g = config.glu
  return ModelSpec('gpt', {'dim': g.dim, 'depth': g.depth, 'heads': g.heads,
                           'activation': activation, 'init_gain': config.init_gain})


def member(config: Any, program, phase: str, activation: str, copy: int, factor: float,
           number: int) -> Member:
  """A run; those of equal phase, copy and number share their seeds."""
  from model_lib.models.activation_layer import consumer_gains
  factor = float(f'{factor:.6g}')
  rate = config.glu.base_rate * factor
  _, spec, activations = program
  hp = {'learning_rate': rate}
  if spec.startswith('switch'):
    code = activations.index(activation)
    hp |= {'activation_code': code, 'init_gain': consumer_gains(spec, config.init_gain)[code]}
  phase = f'null_{phase}' if copy else phase
  seed = ((config.seed * 2 + PHASES[phase]) * MOST_COPIES + copy) * MOST_SEEDS + number
  tags = {'part': PART, 'phase': phase, 'model': 'gpt', 'activation': activation, 'copy': copy,
          'lr_factor': factor, 'learning_rate': rate, 'seed': number, 'split': 0, 'labels': 0}
  return Member(tags, seed, seed, 0, hp)


def cohorts(config: Any):
  """Every arm at its rates, further out where its best lies at the edge; then fresh seeds."""
  from experiments.measurements import activation_search as measured
  g = config.glu
  listed = programs(g.activations)
  yield [Measurement('glu-unigram', measured.measure_unigram, {'data': TEXT, 'part': PART},
                     seconds=1)]

  def cohorts_of(stage: str, phase: str, factors, seeds: int) -> list[Cohort]:
    found = []
    for program in listed:
      arms = [(a, 0) for a in program[2]]
      if REFERENCE in program[2]:
        arms += [(REFERENCE, copy) for copy in range(1, g.copies + 1)]
      members = tuple(member(config, program, phase, a, copy, factor, number)
                      for a, copy in arms for factor in factors(a, copy)
                      for number in range(seeds))
      if members:
        found.append(Cohort(f'glu-{stage}-{program[0]}', model(config, program[1]), members,
                            g.steps, g.batch_size, OPTIMIZER, data=TEXT))
    return found

  factor = yield from chosen_factors(config, lambda stage, factors: cohorts_of(
      stage, 'selection', factors, g.selection_seeds))
  yield cohorts_of('fresh', 'fresh', lambda a, copy: (factor[a, copy],), g.fresh_seeds)


def check(config: Any) -> None:
  """Whether every activation exists and is listed once, with ReLU; UserError if not."""
  from model_lib.activations import get_activation
  listed = config.glu.activations
  same: dict[str, str] = {}
  for name in listed:
    spec = get_activation(name).spec
    if spec in same:
      raise UserError(f'config.glu.activations: {same[spec]} and {name} are the same')
    same[spec] = name
  if REFERENCE not in listed:
    raise UserError(f'config.glu.activations: {REFERENCE} is missing; everything is compared with '
                    'it')


# The report.

@functools.cache
def paper() -> dict[str, float]:
  """The paper's loss of its arms, `GATED` and `PLAIN`."""
  path = Path(__file__).parents[1] / 'paper_values' / 'activation_search.json'
  return json.loads(path.read_text(encoding='utf-8'))['shazeer2020_table_1']['losses']


def losses(rows: pd.DataFrame) -> pd.DataFrame:
  """Test losses of the fresh runs, [seed, activation]; diverged: nan."""
  fresh = rows[rows.phase == 'fresh']
  fresh = fresh.assign(test_loss=fresh.test_loss.where(fresh.diverged_step < 0))
  return fresh.pivot(index='seed', columns='activation', values='test_loss')


def choices_of(rows: pd.DataFrame) -> dict[str, selection.Choice]:
  chosen = selection.choose(rows[rows.phase == 'selection'], ('activation',))
  return {activation: choice for (activation,), choice in chosen.items()}


def differences(table: pd.DataFrame) -> dict[str, tuple[statistics.Paired, float]]:
  """name -> (gated minus plain over the seeds, Holm-corrected p), of what was run.

  The three pairs of one function with and without a gate, and 'family': the mean of the paper's
  gated arms minus that of its plain ones. Holm's correction is over the pairs.
  """
  found = {}
  for gated, plain in PLAIN_OF.items():
    if {gated, plain} <= set(table):
      both = table[[gated, plain]].dropna()
      found[gated] = statistics.paired_difference(both[gated], both[plain])
  adjusted = dict(zip(found, statistics.holm([pair.p for pair in found.values()]), strict=True))
  sides = [[name for name in side if name in table] for side in (GATED, PLAIN)]
  if all(sides):
    both = table[sides[0] + sides[1]].dropna()
    family = statistics.paired_difference(both[sides[0]].mean(axis=1), both[sides[1]].mean(axis=1))
    found['family'], adjusted['family'] = family, family.p
  return {name: (pair, float(adjusted[name])) for name, pair in found.items()}


def in_paper(name: str) -> float:
  """The paper's difference for a name of `differences`, with all of its arms."""
  if name == 'family':
    return float(np.mean([paper()[a] for a in GATED]) - np.mean([paper()[a] for a in PLAIN]))
  return paper()[name] - paper()[PLAIN_OF[name]]


def order(table: pd.DataFrame) -> tuple[list[str], statistics.Interval, float, float]:
  """(arms, per-seed tau with the paper's order, tau of the mean losses, its one-sided p).

  Kendall's tau; p over all orders of the arms: the chance of at least such a tau by accident.
  """
  arms = [a for a in paper() if a in table]
  own, theirs = table[arms].dropna(), [paper()[a] for a in arms]
  if len(arms) < 2 or not len(own):
    return arms, statistics.mean_interval([]), math.nan, math.nan
  taus = [scipy.stats.kendalltau(row, theirs).statistic for row in own.to_numpy()]
  found = scipy.stats.kendalltau(own.mean(), theirs, alternative='greater')
  return arms, statistics.mean_interval(taus), float(found.statistic), float(found.pvalue)


def outcomes(rows: pd.DataFrame) -> dict[str, Outcome]:
  """One outcome per claim."""
  table, choices = losses(rows), choices_of(rows)
  fresh = rows[rows.phase == 'fresh']
  line, copies = selection.null_line(rows[rows.phase == 'null_fresh'],
                                     fresh[fresh.activation == REFERENCE], 'test_loss')
  entropy = float(rows[rows.phase == 'unigram'].entropy.iloc[0])
  reached = float(table[REFERENCE].mean())

  def problem(arms, n: int) -> str:
    edge = [a for a in arms if choices[a].edge]
    if n < MIN_SEEDS:
      return f'{n} seeds without divergence, at least {MIN_SEEDS} are needed'
    if edge:
      return f'{", ".join(edge)} chose the edge of the learning rates'
    if not reached <= entropy - LEARNED:
      return f'ReLU reaches {reached:.3f}, not {LEARNED} nats below {entropy:.3f} of single bytes'
    return ''

  found, compared = {}, differences(table)
  for name in (*PLAIN_OF, 'family'):
    key = 'gated_better' if name == 'family' else f'{name}_better_than_{PLAIN_OF[name]}'
    if name not in compared:
      found[key] = Outcome(NOT_TESTABLE, None, None, 0, 'not all of its arms were run')
      continue
    pair, p = compared[name]
    arms = ([a for a in (*GATED, *PLAIN) if a in table] if name == 'family'
            else [name, PLAIN_OF[name]])
    why = problem(arms, pair.n)
    if name == 'family' and len(arms) < len(GATED + PLAIN):
      why = why or f'{len(arms)} of the {len(GATED + PLAIN)} arms were run'
    passed = p < 0.05 and pair.mean < 0 and -pair.mean > line
    means = table.mean()
    note = f'p {p:.3g}; {copies} copies of ReLU differ by up to {line:.4f}'
    if name == 'family':
      pairs = [(a, b) for a in GATED for b in PLAIN if a in table and b in table]
      note += (f'; {sum(means[a] < means[b] for a, b in pairs)} of the {len(pairs)} pairs of a '
               'gated and a plain arm in the order of the paper')
    verdict = NOT_TESTABLE if why else REPRODUCED if passed else NOT_REPRODUCED
    found[key] = Outcome(verdict, pair.mean, (pair.low, pair.high), pair.n, why or note)

  arms, tau, of_means, p = order(table)
  why = problem(arms, tau.n)
  if len(arms) < MIN_ARMS:
    why = f'{len(arms)} arms of the paper, at least {MIN_ARMS} are needed'
  passed = tau.low > 0 and p < 0.05
  verdict = NOT_TESTABLE if why else REPRODUCED if passed else NOT_REPRODUCED
  found['glu_order'] = Outcome(
      verdict, tau.mean, (tau.low, tau.high), tau.n,
      why or f'tau of the mean losses {of_means:.3f}, by chance as high with p {p:.3g}')
  return found


def pairs_table(rows: pd.DataFrame, where: str) -> Table:
  """A gate against none, beside the paper's differences."""
  listed = [{'pair': f'{name} - {PLAIN_OF[name]}' if name in PLAIN_OF else
             'mean of the gated - mean of the plain', 'difference': pair.mean,
             'interval': (pair.low, pair.high), 'p': p, 'n': pair.n, 'paper': in_paper(name)}
            for name, (pair, p) in differences(losses(rows)).items()]
  counts = rows[rows.phase == 'fresh'].groupby('activation', sort=False).parameters.first()
  sizes = sorted({int(count) for count in counts})
  return Table(f'A gate against none, {where}', (
      Column('pair', 'arms', right=False),
      Column('difference', 'difference', 'nats per byte', fixed(4, signed=True)),
      Column('interval', '95 %', format=interval(4, signed=True)),
      Column('p', 'p', format=p_value()), Column('n', 'n', format=integer()),
      Column('paper', 'Shazeer 2020', 'nats per subword', fixed(3, signed=True))), listed,
      [f'Trained numbers of the arms: {sizes[0]:,} to {sizes[-1]:,}.',
       'Paper: table 1, T5-base after 65,536 steps on C4. Its text, tokens and size are others: '
       'signs and order are compared, not values. p: Holm-corrected over the pairs.'])


def report(run: Run) -> Report:
  """The tables, the claims' outcomes, the figures."""
  def figures():
    from experiments.figures import activation_search
    return activation_search

  def own_figure():
    from experiments.figures import glu_order
    return glu_order.against_paper(losses(rows), paper())

  config, rows = run.config, run.rows[run.rows.part == PART]
  g = config.glu
  where = f'byte GPT {g.depth} x {g.dim} on {g.text}, {g.steps} steps'
  line, copies = selection.null_line(
      rows[rows.phase == 'null_fresh'],
      rows[(rows.phase == 'fresh') & (rows.activation == REFERENCE)], 'test_loss')
  notes = [f'{copies} copies of ReLU, with seeds of their own, differ from it by up to {line:.4f}.',
           'Test loss and accuracy: per byte. A star: chosen at the edge of the learning rates.']
  tables = [comparison_table(f'Feed-forward layers in a {where}', 'activation', REFERENCE,
                             rows[rows.phase == 'fresh'], choices_of(rows), notes),
            pairs_table(rows, where)]
  shown = rows.assign(model=rows.model + f' on {g.text}')
  return Report(tables, outcomes(rows), {
      'glu_order': own_figure,
      'glu_learning_rates': lambda: figures().learning_rate_sensitivity(shown)})
