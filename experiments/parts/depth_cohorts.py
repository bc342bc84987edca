"""What the depth part of the depth-muP study trains and measures, one stage after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import pandas as pd

from experiments.measurements import depth_mup as measured
from experiments.parts import sweeps
from experiments.parts.depth_families import (COMPUTED, DIVERSITY, FAMILIES, FUNCTIONS, HALF_ZERO,
                                              NEEDED, Family, Function, row_of)
from launch.study import Measurement, field
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PART = 'depth'
BLOCKS = ('stack/',)  # in the paths of the parameters that are trained
WIDENED = 4  # points beyond an edge at which the best rate lies, once
EPS = 1e-12
TOLERANCE = 0.15  # nats of log-loss, as of the regret that a transfer may have
SEEDS = 1009  # more than any part has, so that the phases never share one
TUNED, DIVERSE = 0, 1  # phases of the seeds


@dataclasses.dataclass(frozen=True)
class Depth:
  """The residual MLPs, and how long they are trained."""

  width: int = field(64, 'Features of the stream.', low=2)
  depths: tuple[int, ...] = field((4, 8, 16, 32, 64), 'Numbers of blocks, ascending by factors of '
                                  '2; the first is the base depth.', low=1)
  families: tuple[str, ...] = field(tuple(FAMILIES), 'Sweeps, depth_mup and ode among them.',
                                    choices=tuple(FAMILIES))
  multipliers: tuple[float, ...] = field((0.5, 1.0, 2.0, 4.0), 'Values of a that are tried at the '
                                         'base depth, ascending.', low=1e-6)
  lowest: float = field(-10.5, 'log2 of the smallest learning rate.')
  rates: int = field(12, 'Learning rates, half an octave apart.', low=5)
  sp_lowest: float = field(-14.0, 'The same of the standard parametrization.')
  sp_rates: int = field(12, 'The same of the standard parametrization.', low=5)
  seeds: int = field(4, 'Runs per point.', low=1, high=SEEDS - 1)
  steps: int = field(500, 'Optimizer steps of a run.', low=8)
  batch_size: int = field(64, 'Examples per step.', low=1)
  random_labels: bool = field(True, 'Train on permuted labels, to be memorized.')
  train_io: bool = field(False, 'Train the first and the last layer too.')
  remat: str = field('none', 'What the backward pass keeps.', choices=('none', 'block', 'nested'))
  diversity_arms: tuple[str, ...] = field(tuple(DIVERSITY), 'Networks of the feature diversity.',
                                          choices=tuple(DIVERSITY))
  diversity_depths: tuple[int, ...] = field((64, 256), 'Its depths, ascending.', low=64)
  diversity_marks: tuple[int, ...] = field((8, 100), 'Steps at which it is measured.', low=1)
  diversity_octave: float = field(-8.5, 'log2 of its learning rate.')
  diversity_seeds: int = field(3, 'Its runs.', low=1, high=SEEDS - 1)
  gradient_width: int = field(256, 'Width of the networks of the gradient diversity.', low=2)
  gradient_depth: int = field(64, 'Their depth.', low=4)
  gradient_functions: tuple[str, ...] = field(
      (), 'Activations of the gradient diversity; none for all that are pointwise.')
  map_depths: tuple[int, ...] = field((), 'Depths of the heat maps of a and the rate for blocks of '
                                      'two matrices.', low=1)
  map_family: str = field('two', 'Whose maps: blocks of two matrices, with ReLU or with abs and a '
                          'norm.', choices=('two', 'abs_normed_two'))
  map_points: int = field(7, 'Points of such a map, each way; a by octaves.', low=5)
  map_multiplier: float = field(0.0, 'log2 of a in its middle.')
  map_octave: float = field(-8.0, 'log2 of the rate in its middle.')
  map_step: float = field(1.0, 'Octaves between its rates.', low=0.01)
  map_width: int = field(32, 'Its width.', low=2)
  map_steps: int = field(300, 'Its steps.', low=8)
  map_seeds: int = field(2, 'Its runs per point.', low=1)


def model(config: Any, function: Function, family: Family, depth: int, width: int = 0
          ) -> ModelSpec:
  """The residual MLP of a family, relative to the width and the base depth of the part."""
  own = config.depth
  base, width = own.depths[0], width or own.width
  return ModelSpec(
      'deep_mlp', {'width': width, 'depth': depth, 'activation': function.activation,
                   'nonlinearity': function.nonlinearity, 'block_depth': function.block_depth,
                   'prenorm': function.prenorm, 'remat': own.remat,
                   'num_classes': config.classes, 'parametrization': row_of(family, own.depths[0])},
      {'width': width, 'depth': base}, {'width': 2 * width, 'depth': base})


def hp(own: Depth, family: Family, function: Function, depth: int, a: float, rate: float,
       width: int = 0) -> dict[str, float]:
  """Swept numbers of a run: the readout starts at std 4 / n, the branch at a m_L^-alpha."""
  from model_lib.parametrization import get_parametrization  # JAX, after its threads are set
  row = get_parametrization(row_of(family, own.depths[0]))
  return {'learning_rate': rate, 'activation_scale': function.scale,
          'branch_scale': a * row.branch_multiplier(depth),
          'readout_scale': 4 * (width or own.width) ** -0.5}


def optimizer(own: Depth, eps: float = EPS) -> OptimizerSpec:
  """Adam at a constant rate on the blocks alone, unless train_io."""
  return OptimizerSpec(eps=eps, trained=() if own.train_io else BLOCKS)


def seed_of(config: Any, phase: int, number: int) -> int:
  """Of an initialization and a batch order."""
  return (config.seed * 4 + phase) * SEEDS + number


def member(config: Any, phase: str, name: str, family: Family, function: Function, depth: int,
           a: float, octave: float, number: int, **more: Any) -> Member:
  """One run; every seed has a permutation of the labels of its own."""
  own = config.depth
  seed = seed_of(config, TUNED, number)
  rate = 2.0 ** octave
  return Member({'part': PART, 'phase': phase, 'family': name, 'depth': depth, 'a': a,
                 'octave': octave, 'learning_rate': rate, 'seed': number}, seed, seed, 0,
                hp(own, family, function, depth, a, rate, **more),
                (number + 1) * own.random_labels)


def cohort(config: Any, name: str, spec: ModelSpec, members: Sequence[Member], *,
           eps: float = EPS, steps: int = 0, **more: Any) -> Cohort:
  """Runs of one network; the loss is that of the last eighth of the steps."""
  own = config.depth
  steps = steps or own.steps
  return Cohort(f'{PART}-{name}', spec, tuple(members), steps, own.batch_size,
                optimizer(own, eps), last_steps=math.ceil(steps / 8), **more)


def grid(own: Depth, name: str) -> tuple[float, ...]:
  """The learning rates of a family as octaves."""
  if name == 'sp':
    return sweeps.octaves(own.sp_lowest, own.sp_rates)
  return sweeps.octaves(own.lowest, own.rates)


def chosen(rows: pd.DataFrame, guess: float) -> tuple[float, float]:
  """(a, octave) that are kept, from the tuning runs of a function.

  The smallest a whose lowest mean log-loss lies within TOLERANCE of the lowest of all, and its best
  rate. At the base depth a hardly matters over a wide range, while the stream of a deep network
  grows as exp(a^2 v L_b / 2): the largest a of a flat range would explode.
  """
  best = {}
  for a, own in rows.groupby('a'):
    found = sweeps.sweep(own, guess)
    best[float(a)] = (float(found.mean[found.best]), float(found.octaves[found.best]))
  lowest = min(loss for loss, _ in best.values())
  a = min(a for a, (loss, _) in best.items() if loss <= lowest + TOLERANCE)
  return a, best[a][1]


def cohorts(config: Any):
  """Tuning at the base depth; the sweeps, wider where the best rate lies at an edge; controls."""
  own = config.depth
  guess = sweeps.guessing(config.classes)
  functions = list(dict.fromkeys(FAMILIES[name].function for name in own.families))
  rows = yield [tuning(config, name) for name in functions]
  wider = []
  for name in functions:
    beyond = {float(a): sweeps.widened(sweeps.sweep(found, guess), WIDENED)
              for a, found in rows[rows.family == name].groupby('a')}
    if any(beyond.values()):
      wider.append(tuning(config, name, f'tune-{name}-wider', beyond))
  if wider:
    rows = pd.concat([rows, (yield wider)])
  a_of = {name: chosen(rows[rows.family == name], guess)[0] for name in functions}
  base, deepest = own.depths[0], own.depths[-1]

  def swept(name: str, depth: int, octaves: Sequence[float], run: str) -> Cohort:
    family = FAMILIES[name]
    function = FUNCTIONS[family.function]
    return cohort(config, run, model(config, function, family, depth), [
        member(config, 'sweep', name, family, function, depth, a_of[family.tuned_as], octave, s)
        for octave in octaves for s in range(own.seeds)])

  asked = [swept(name, depth, grid(own, name), f'{name}-{depth}')
           for name in own.families for depth in own.depths[1:]]
  rows = yield asked
  wider = []
  for (name, depth), found in rows.groupby(['family', 'depth'], sort=False):
    beyond = sweeps.widened(sweeps.sweep(found, guess), WIDENED)
    # Where the standard parametrization explodes at the start there is no best rate.
    if beyond and not (name == 'sp' and depth > base * 4):
      wider.append(swept(name, int(depth), beyond, f'{name}-{int(depth)}-wider'))
  if wider:
    yield wider

  relu, a = FUNCTIONS['relu'], a_of['relu']
  ratio = deepest / base
  depth_mup = rows[(rows.family == 'depth_mup') & (rows.depth == deepest)]
  best = sweeps.sweep(depth_mup, guess)
  octaves = best.octaves[max(0, best.best - 1):best.best + 2]
  # ODE with a' = a ratio^1/2, eps likewise: depth-muP, its rates divided by ratio^1/2.
  ode, half = FAMILIES['ode'], math.log2(ratio) / 2
  controls = [
      cohort(config, 'retuned', model(config, relu, ode, deepest), [
          member(config, 'retuned', 'ode', ode, relu, deepest, a * ratio ** 0.5,
                 float(octave - half), s) for octave in octaves for s in range(own.seeds)],
             eps=EPS * ratio ** 0.5),
      cohort(config, 'relabelled', model(config, relu, HALF_ZERO, deepest), [
          member(config, 'relabelled', COMPUTED, HALF_ZERO, relu, deepest, a,
                 float(octave - half), 0) for octave in octaves])]
  yield [*controls, *diversity(config), *maps(config)]
  yield measurements(config, a)


def tuning(config: Any, name: str, run: str = '',
           octaves: Mapping[float, Sequence[float]] | None = None) -> Cohort:
  """All a and rates of a function at the base depth, where all parametrizations are the same.

  `octaves` are the rates of each a; by default they are the grid.
  """
  own, function, family = config.depth, FUNCTIONS[name], Family(name)
  base = own.depths[0]
  octaves = octaves or dict.fromkeys(own.multipliers, grid(own, name))
  return cohort(config, run or f'tune-{name}', model(config, function, family, base), [
      member(config, 'tune', name, family, function, base, a, octave, s)
      for a, found in octaves.items() for octave in found for s in range(own.seeds)])


def diversity(config: Any) -> list[Cohort]:
  """Networks of the feature diversity, on the data's own labels."""
  own, found = config.depth, []
  for depth in own.diversity_depths:
    for name in own.diversity_arms:
      family_name, gain = DIVERSITY[name]
      family = FAMILIES[family_name]
      function = FUNCTIONS[family.function]
      members = []
      for s in range(own.diversity_seeds):
        seed = seed_of(config, DIVERSE, s)
        members.append(Member(
            {'part': PART, 'phase': 'diversity', 'family': name, 'depth': depth, 'a': 1.0,
             'octave': own.diversity_octave, 'learning_rate': 2.0 ** own.diversity_octave,
             'seed': s}, seed, seed, 0,
            hp(own, family, function, depth, 1.0, 2.0 ** own.diversity_octave)
            | {'activation_scale': gain}))
      *on_the_way, last = own.diversity_marks
      found.append(cohort(config, f'diversity-{name}-{depth}',
                          model(config, function, family, depth), members, steps=last,
                          evaluate_at=tuple(on_the_way), keep_at=tuple(on_the_way)))
  return found


def maps(config: Any) -> list[Cohort]:
  """Log-loss over a and the rate for blocks of two matrices, shallow and deep."""
  own, found = config.depth, []
  name, family = own.map_family, FAMILIES[own.map_family]
  function = FUNCTIONS[family.function]
  for depth in own.map_depths:
    centre = own.map_points // 2
    members = [
        member(config, 'map', name, family, function, depth,
               2.0 ** (own.map_multiplier + i - centre),
               own.map_octave + own.map_step * (j - centre), s, width=own.map_width)
        for i in range(own.map_points) for j in range(own.map_points)
        for s in range(own.map_seeds)]
    found.append(cohort(config, f'map-{depth}', model(config, function, family, depth,
                                                      own.map_width),
                        members, steps=own.map_steps))
  return found


def measurements(config: Any, a: float) -> list[Measurement]:
  """What is measured without further training."""
  own, deepest = config.depth, config.depth.depths[-1]
  relu = [name for name in own.families if FAMILIES[name].function == 'relu']
  networks = [(name, depth, a) for name in relu for depth in own.depths]
  networks += [('depth_mup', deepest, other) for other in own.multipliers if other != a]

  def described(name: str, depth: int, a: float) -> dict[str, Any]:
    function, family = FUNCTIONS['relu'], FAMILIES[name]
    numbers = hp(own, family, function, depth, a, 0.0)
    del numbers['learning_rate']
    return {'family': name, 'depth': depth, 'a': a, 'hp': numbers,
            'model': dataclasses.asdict(model(config, function, family, depth))}

  return [
      Measurement(f'{PART}-start', measured.measure_start, {
          'networks': [described(*network) for network in networks],
          'seeds': [seed_of(config, TUNED, s) for s in range(own.seeds)], 'examples': 256},
                  seconds=3 * len(networks)),
      Measurement(f'{PART}-features', measured.measure_features, {
          'runs': {c.name: [m.seed for m in c.members] for c in diversity(config)},
          'marks': list(own.diversity_marks), 'examples': 256}, seconds=30),
      Measurement(f'{PART}-gradients', measured.measure_gradients, {
          'functions': list(own.gradient_functions), 'width': own.gradient_width,
          'depth': own.gradient_depth, 'base_depth': 4, 'examples': 128, 'seed': config.seed},
                  seconds=60)]


def check_gradient(name: str) -> None:
  """Refuses what has no cosine that could be predicted."""
  from model_lib.activations import get_activation
  found = get_activation(name)
  if found.kind != 'pointwise' or not 0 < found.moments().slope_second < math.inf:
    raise UserError(f'config.depth.gradient_functions: {name} is not a pointwise function with a '
                    "finite E f'^2 > 0")


def check(config: Any) -> None:
  """Refuses depths, families and grids that the claims cannot be computed from."""
  own = config.depth
  for name in NEEDED:
    if name not in own.families:
      raise UserError(f'config.depth.families: {name} must be among them: the claims compare with '
                      'it')
  if len(own.depths) < 3 or any(b != 2 * a for a, b in zip(own.depths, own.depths[1:])):
    raise UserError('config.depth.depths: at least three, each twice the one before')
  for name in ('families', 'diversity_arms', 'gradient_functions'):
    values = getattr(own, name)
    if len(values) != len(set(values)):
      raise UserError(f'config.depth.{name}: must not repeat a name')
  for name in ('multipliers', 'diversity_depths', 'diversity_marks', 'map_depths'):
    values = getattr(own, name)
    if list(values) != sorted(set(values)):
      raise UserError(f'config.depth.{name}: must ascend without repetition')
  if any(depth % 64 for depth in own.diversity_depths):
    raise UserError('config.depth.diversity_depths: must be multiples of 64, the smallest distance '
                    'being 1/64')
  for name in own.gradient_functions:
    check_gradient(name)
