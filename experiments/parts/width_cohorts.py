"""What the width part of the depth-muP study trains and measures."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import pandas as pd

from experiments.measurements import depth_mup as measured
from experiments.parts import sweeps
from experiments.parts.depth_cohorts import SEEDS, hp, model, optimizer
from experiments.parts.depth_families import FAMILIES, FUNCTIONS
from experiments.parts.transfers import beside, by_size
from launch.study import Measurement, field
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PART = 'width'
ROWS = ('sp', 'mup')
DECAYS = ('coupled', 'compensated', 'independent')
NONE = 'none'  # the runs without a decay that theirs is told from
PHASE = 2  # of the seeds; 0 and 1 are the depth part's


@dataclasses.dataclass(frozen=True)
class Width:
  """MLPs of several widths, and two questions beside them."""

  widths: tuple[int, ...] = field((64, 128, 256, 512), 'Hidden widths, ascending; the first is the '
                                  'base width.', low=2)
  layers: int = field(3, 'Hidden layers.', low=2)
  activation: str = field('relu', 'Spec of the registry.')
  optimizers: tuple[str, ...] = field(('adam', 'sgd'), 'Optimizers.', choices=('adam', 'sgd'))
  adam_lowest: float = field(-12.0, "log2 of Adam's smallest learning rate.")
  sgd_lowest: float = field(-5.0, "log2 of SGD's smallest learning rate.")
  rates: int = field(12, 'Learning rates, half an octave apart.', low=5)
  seeds: int = field(3, 'Runs per point.', low=1, high=SEEDS - 1)
  steps: int = field(500, 'Optimizer steps of a run.', low=8)
  batch_size: int = field(64, 'Examples per step.', low=1)
  random_labels: bool = field(True, 'Train on permuted labels, to be memorized.')
  decay: float = field(0.5, 'Weight decay of the comparison of its forms, which should take about '
                       'half a nat in all steps at the middle rate; 0 leaves it out.', low=0)
  decay_widths: tuple[int, ...] = field((64, 512), 'Its widths, ascending.', low=2)
  multiplied: bool = field(True, 'Sweep the multiplier a of depth-muP.')
  multiplier_depths: tuple[int, ...] = field((4, 16, 64), 'Depths of this sweep; the first is the '
                                             'base depth.', low=1)
  multiplier_lowest: float = field(-3.0, 'log2 of its smallest a.')
  multipliers: int = field(12, 'Values of a, half an octave apart.', low=5)
  multiplier_octave: float = field(-8.5, 'log2 of its learning rate at the base depth.')
  second_depths: tuple[int, ...] = field((2, 4, 8, 16, 32, 64, 128, 256), 'Depths of the '
                                         'second-order share, ascending.', low=2)
  second_seeds: int = field(10, 'Its initializations.', low=1)
  published_seeds: int = field(3, 'Initializations of the published measure, which takes longer.',
                               low=0)


def mlp(config: Any, row: str, width: int) -> ModelSpec:
  """An MLP under a row, relative to the first width."""
  own = config.width

  def widths(n: int) -> list[int]:
    return [n] * own.layers

  base = own.widths[0]
  return ModelSpec('mlp', {'widths': widths(width), 'activation': own.activation,
                           'num_classes': config.classes, 'parametrization': row},
                   {'widths': widths(base)}, {'widths': widths(2 * base)})


def seed_of(config: Any, number: int) -> int:
  """Of an initialization and a batch order."""
  return (config.seed * 4 + PHASE) * SEEDS + number


def member(config: Any, phase: str, family: str, width: int, octave: float, number: int,
           **more: float) -> Member:
  """One run of an MLP."""
  own, seed = config.width, seed_of(config, number)
  rate = 2.0 ** octave
  return Member({'part': PART, 'phase': phase, 'family': family, 'width': width, 'octave': octave,
                 'learning_rate': rate, 'seed': number}, seed, seed, 0,
                {'learning_rate': rate, **more}, (number + 1) * own.random_labels)


def cohort(config: Any, name: str, spec: ModelSpec, members: Sequence[Member],
           settings: OptimizerSpec, **more: Any) -> Cohort:
  """Runs of one network; the loss is that of the last eighth of the steps."""
  own = config.width
  return Cohort(f'{PART}-{name}', spec, tuple(members), own.steps, own.batch_size, settings,
                last_steps=math.ceil(own.steps / 8), **more)


def grid(own: Width, name: str) -> tuple[float, ...]:
  """The learning rates of an optimizer as octaves."""
  return sweeps.octaves(own.adam_lowest if name == 'adam' else own.sgd_lowest, own.rates)


def decay_octave(own: Width) -> float:
  """log2 of the rate at which all forms of the decay are the same at the base width."""
  octaves = grid(own, 'adam')
  return octaves[len(octaves) // 2]


def cohorts(config: Any):
  """Width transfer, wider where the best rate lies at an edge; decay; multiplier; measurements.

  The largest width also runs at the rate tuned at the smallest one.
  """
  own, guess = config.width, sweeps.guessing(config.classes)

  def transfer(name: str, row: str, width: int, octaves: Sequence[float], run: str) -> Cohort:
    return cohort(config, run, mlp(config, row, width), [
        member(config, 'transfer', f'{name} {row}', width, octave, s)
        for octave in octaves for s in range(own.seeds)], OptimizerSpec(name, eps=1e-12))

  rows = yield [transfer(name, row, width, grid(own, name), f'{name}-{row}-{width}')
                for name in own.optimizers for row in ROWS for width in own.widths]
  wider = []
  for (family, width), found in by_size(rows, guess).items():
    beyond = sweeps.widened(found, 4)
    if beyond:
      name, row = family.split()
      wider.append(transfer(name, row, width, beyond, f'{name}-{row}-{width}-wider'))
  if wider:
    rows = pd.concat([rows, (yield wider)])
  largest = own.widths[-1]
  more = {tuple(family.split()): octave
          for family, octave in beside(by_size(rows, guess), own.widths[0], largest).items()}
  if more:
    yield [transfer(*family, largest, [octave], f'{"-".join(family)}-{largest}-transferred')
           for family, octave in more.items()]

  decayed = [decaying(config, form, width) for form in (*DECAYS, NONE)
             for width in own.decay_widths] if own.decay else []
  asked = [*decayed, *(multiplied(config, depth) for depth in own.multiplier_depths
                       if own.multiplied)]
  if asked:
    rows = yield asked
    rows = rows[rows.phase == 'multiplier']
    wider = [multiplied(config, int(depth), beyond) for depth, found in rows.groupby('depth')
             if (beyond := sweeps.widened(sweeps.sweep(found, guess), 4))]
    if wider:
      yield wider
  yield [
      *([Measurement(f'{PART}-kept', measured.measure_kept, {
          'runs': [c.name for c in decayed], 'without': NONE, 'layer': 'hidden_1',
          'decays': own.steps - 1},
                     seconds=5)] if decayed else []),
      Measurement(f'{PART}-second', measured.measure_second_order, {
          'depths': list(own.second_depths), 'seeds': own.second_seeds, 'alphas': [0.5, 0.75, 1.0],
          'published': [0.5, 1.0], 'published_seeds': own.published_seeds,
          'seed': seed_of(config, 0)}, seconds=60)]


def decaying(config: Any, form: str, width: int) -> Cohort:
  """muP under AdamW, the decay in one of its forms.

  At the base width all forms are the same at the middle rate of the grid, which an independent
  decay is multiplied by. NONE is no decay.
  """
  own = config.width
  octaves = grid(own, 'adam')
  decay = own.decay * {'independent': 2.0 ** decay_octave(own), NONE: 0.0}.get(form, 1.0)
  return cohort(config, f'decay-{form}-{width}', mlp(config, 'mup', width), [
      member(config, 'decay', form, width, octave, s, weight_decay=decay)
      for octave in octaves for s in range(own.seeds)],
                OptimizerSpec('adam', eps=1e-12, decayed='kernels',
                              decay=DECAYS[1] if form == NONE else form),
                evaluate_at=(1,), keep_at=(1,))


def multiplied(config: Any, depth: int, wider: Sequence[float] = ()) -> Cohort:
  """The multiplier a of depth-muP swept at one learning rate; `wider` replaces the grid."""
  own = config.width
  deep = dataclasses.replace(config.depth, depths=own.multiplier_depths)
  family, function = FAMILIES['depth_mup'], FUNCTIONS['relu']
  rate = 2.0 ** own.multiplier_octave
  members = []
  for octave in wider or sweeps.octaves(own.multiplier_lowest, own.multipliers):
    for s in range(own.seeds):
      seed = seed_of(config, s)
      members.append(Member(
          {'part': PART, 'phase': 'multiplier', 'family': 'depth_mup', 'depth': depth,
           'a': 2.0 ** octave, 'octave': octave, 'learning_rate': rate, 'seed': s}, seed, seed, 0,
          hp(deep, family, function, depth, 2.0 ** octave, rate), (s + 1) * own.random_labels))
  network = model(dataclasses.replace(config, depth=deep), function, family, depth)
  return cohort(config, f'multiplier-{depth}' + '-wider' * bool(wider), network, members,
                optimizer(deep))


def check(config: Any) -> None:
  """Refuses sizes that the claims cannot be computed from."""
  from model_lib import models
  own = config.width
  models.build('mlp', **mlp(config, 'sp', own.widths[0]).arguments)
  if len(own.optimizers) != len(set(own.optimizers)):
    raise UserError('config.width.optimizers: must not repeat a name')
  for name in ('widths', 'decay_widths', 'multiplier_depths', 'second_depths'):
    values = getattr(own, name)
    if len(values) < 2 or list(values) != sorted(set(values)):
      raise UserError(f'config.width.{name}: at least two, ascending without repetition')
  first, last = own.multiplier_depths[-2:]
  if last != 4 * first:
    raise UserError('config.width.multiplier_depths: the last must be four times the one before, '
                    f'not {last} and {first}')
  if own.decay and own.decay_widths[0] != own.widths[0]:
    raise UserError('config.width.decay_widths: must begin at the base width, '
                    f'{own.widths[0]}, where all forms of the decay are the same')
