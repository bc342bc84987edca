"""The language-model part of the depth-muP study: width transfer, and how far streams move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from experiments.measurements import depth_mup as measured
from experiments.parts import sweeps
from experiments.parts.depth_cohorts import SEEDS
from experiments.parts.sweeps import Sweep
from experiments.parts.transfers import beside, by_size, regret, swept_columns, swept_row, transfers
from experiments.parts.verdicts import MIN_SEEDS, shown, verdict
from launch.study import Measurement, Report, Run, field
from launch.study.claims import Outcome
from launch.study.tables import Column, Table, integer, interval, significant
from model_lib.analysis import statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PART, TEXT = 'gpt', 'text'
PHASE = 3  # of the seeds
BASE_DEPTH = 2
DEPTH_ROWS = {'sp': 'sp', 'alpha 1/2': 'completep(alpha=0.5, {})', 'alpha 1': 'completep({})'}
FLAT, SEPARATION = 0.35, 0.25  # slopes of the stream's move on depth


@dataclasses.dataclass(frozen=True)
class Gpt:
  """Small language models."""

  text: str = field('pystdlib', 'A prepared text.')
  vocabulary: int = field(256, 'Its different tokens: what guessing costs bounds every loss that '
                          'is compared.', low=2)
  window: int = field(128, 'Tokens per window.', low=8)
  dims: tuple[int, ...] = field((64, 128, 256, 512), 'Widths, ascending; the first is the base '
                                'width.', low=2)
  head_dim: int = field(32, 'Size of a head; of it the widths are multiples.', low=1)
  depth: int = field(2, 'Blocks.', low=1)
  lowest: float = field(-13.0, 'log2 of the smallest learning rate.')
  rates: int = field(12, 'Learning rates, half an octave apart.', low=5)
  seeds: int = field(3, 'Runs per point.', low=1, high=SEEDS - 1)
  steps: int = field(500, 'Optimizer steps of a run.', low=8)
  batch_size: int = field(16, 'Windows per step.', low=1)
  check_depths: tuple[int, ...] = field((2, 4, 8, 16, 32), 'Depths of the check of how far the '
                                        'stream moves; the first is 2, the base depth.', low=2)
  check_steps: int = field(8, 'Its steps.', low=1)
  check_octave: float = field(-12.0, 'log2 of its learning rate.')


def gpt(own: Gpt, row: str, dim: int) -> ModelSpec:
  """A language model under a row, relative to the first width."""
  def sizes(dim: int) -> dict[str, int]:
    return {'dim': dim, 'heads': dim // own.head_dim}

  base = own.dims[0]
  name = 'sp' if row == 'sp' else f'mup(base_head_dim={own.head_dim})'
  return ModelSpec('gpt', {**sizes(dim), 'depth': own.depth, 'vocab': own.vocabulary,
                           'parametrization': name}, sizes(base), sizes(2 * base))


def cohorts(config: Any):
  """Width transfer under Adam, wider where the best rate lies at an edge; the depth check.

  The largest width also runs at the rate tuned at the smallest one.
  """
  own: Gpt = config.gpt

  def transfer(row: str, dim: int, octaves, run: str) -> Cohort:
    members = []
    for octave in octaves:
      for s in range(own.seeds):
        seed = (config.seed * 4 + PHASE) * SEEDS + s
        members.append(Member(
            {'part': PART, 'phase': 'transfer', 'family': row, 'width': dim, 'octave': octave,
             'learning_rate': 2.0 ** octave, 'seed': s}, seed, seed, 0,
            {'learning_rate': 2.0 ** octave}))
    return Cohort(f'{PART}-{run}', gpt(own, row, dim), tuple(members), own.steps, own.batch_size,
                  OptimizerSpec(eps=1e-12), last_steps=math.ceil(own.steps / 8), data=TEXT)

  grid = sweeps.octaves(own.lowest, own.rates)
  rows = yield [transfer(row, dim, grid, f'{row}-{dim}') for row in ('sp', 'mup')
                for dim in own.dims]
  guess, wider = sweeps.guessing(own.vocabulary), []
  for (row, dim), found in sweeps_of(rows, guess).items():
    beyond = sweeps.widened(found, 4)
    if beyond:
      wider.append(transfer(row, dim, beyond, f'{row}-{dim}-wider'))
  if wider:
    rows = pd.concat([rows, (yield wider)])
  largest = own.dims[-1]
  more = beside(sweeps_of(rows, guess), own.dims[0], largest)
  if more:
    yield [transfer(row, largest, [octave], f'{row}-{largest}-transferred')
           for row, octave in more.items()]
  settings = f'base_depth={BASE_DEPTH}, base_head_dim={own.head_dim}'
  yield [Measurement(f'{PART}-moves', measured.measure_moves, {
      'rows': {name: row.format(settings) for name, row in DEPTH_ROWS.items()},
      'dim': own.dims[0], 'head_dim': own.head_dim, 'depths': list(own.check_depths),
      'steps': own.check_steps, 'rate': 2.0 ** own.check_octave, 'examples': own.batch_size,
      'seeds': own.seeds, 'data': TEXT}, seconds=120)]


def check(config: Any) -> None:
  """Refuses sizes that the claims cannot be computed from."""
  own = config.gpt
  for name in ('dims', 'check_depths'):
    values = getattr(own, name)
    if len(values) < 2 or list(values) != sorted(set(values)):
      raise UserError(f'config.gpt.{name}: at least two, ascending without repetition')
  if any(dim % own.head_dim for dim in own.dims):
    raise UserError(f'config.gpt.dims: must be multiples of the size of a head, {own.head_dim}')
  if own.check_depths[0] != BASE_DEPTH:
    raise UserError(f'config.gpt.check_depths: must begin with {BASE_DEPTH}, the base depth')


def sweeps_of(rows: pd.DataFrame, guess: float) -> dict[tuple[str, int], Sweep]:
  """(row, width) -> its sweep."""
  return by_size(rows[rows.phase == 'transfer'], guess)


def move_slopes(rows: pd.DataFrame) -> dict[str, statistics.Interval]:
  """Parametrization -> slope of log2 of the last stream's move on log2 depth, at the last step."""
  own = rows[(rows.phase == 'moves') & (rows.place == 'stream end')]
  own = own[own.step == own.step.max()]
  return {name: sweeps.mean_of([
      sweeps.slope(np.log2(run.depth.to_numpy(float)), np.log2(run.value.to_numpy(float)))
      for _, run in each.groupby('seed')]) for name, each in own.groupby('family', sort=False)}


def outcomes(rows: pd.DataFrame, config: Any) -> dict[str, Outcome]:
  """One outcome per claim."""
  own = config.gpt
  found = transfers(sweeps_of(rows, sweeps.guessing(own.vocabulary)), 'sp', 'mup', own.dims[0],
                    own.dims[-1], ('G1', 'G2'))
  slopes = move_slopes(rows)
  deep, standard = slopes['alpha 1'], slopes['sp']
  note = ', '.join(f'{name} {shown(each)}' for name, each in slopes.items())
  passed = abs(deep.mean) <= FLAT and standard.mean - deep.mean >= SEPARATION
  few = deep.n < MIN_SEEDS
  return found | {'G3': verdict(passed, deep, note,
                                f'{deep.n} seeds, {MIN_SEEDS} are needed' if few else '')}


def report(run: Run) -> Report:
  """Tables, verdicts and figures."""
  def figures():
    from experiments.figures import depth_mup  # matplotlib, which no table needs
    return depth_mup

  rows = run.rows[run.rows.part == PART]
  guess, text = sweeps.guessing(run.config.gpt.vocabulary), run.config.gpt.text
  found = sweeps_of(rows, guess)
  drawn: dict[str, Callable[[], Any]] = {
      'gpt_learning_rates': lambda: figures().widths(found, guess, text)}
  return Report([transfer_table(found, run.config), move_table(rows, text)],
                outcomes(rows, run.config), drawn)


def transfer_table(found: Mapping[tuple[str, int], Sweep], config: Any) -> Table:
  """Best learning rate by width."""
  first = config.gpt.dims[0]
  listed = [{'family': family, 'width': width,
             **swept_row(each, regret(found, family, first, width))}
            for (family, width), each in found.items()]
  return Table(
      f'Best learning rate by width: GPT of {config.gpt.depth} blocks on {config.gpt.text}',
      (Column('family', 'parametrization', right=False),
       Column('width', 'width', format=integer()), *swept_columns('rate')), listed,
      [f'Regret: of the rate that is best at width {first}, where both parametrizations are the '
       'same. Means over seeds of ln of the mean training loss of the last eighth of the steps.'])


def move_table(rows: pd.DataFrame, text: str) -> Table:
  """How far the last stream of networks of several depths moves."""
  own = rows[(rows.phase == 'moves') & (rows.place == 'stream end')]
  own = own[own.step == own.step.max()]
  slopes, listed = move_slopes(rows), []
  for (name, depth), each in own.groupby(['family', 'depth'], sort=False):
    listed.append({'family': name, 'depth': depth, 'move': each.value.mean(),
                   'n': each.seed.nunique()})
  for name, slope in slopes.items():
    listed.append({'family': f'{name}, slope on log2 L', 'move': slope.mean,
                   'interval': (slope.low, slope.high), 'n': slope.n})
  return Table(
      f'Move of the last stream of a GPT after {own.step.max():g} steps on one batch of {text}',
      (Column('family', 'parametrization', right=False), Column('depth', 'L', format=integer()),
       Column('move', 'rms(x_t - x_0)', format=significant(3)),
       Column('interval', '95 %', format=interval(2)), Column('n', 'n', format=integer())), listed)
