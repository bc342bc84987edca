"""Where layer norms belong in a vision transformer: in its blocks, or around its patch embedding?

Kumar, Dehghani, Houlsby 2023, Dual PatchNorm (arXiv:2302.01327): no placement of the norms in the
blocks improves on pre-norm, but a norm before and one after the patch embedding do.

  python -m experiments.norm_placement --config.dataset=cifar10-jpeg75 --workdir=runs/placement

An arm is a placement for attention and for the MLP of each block (pre: x + f(N x), post:
N(x + f x), pre+post: N(x + f(N x))) with a stem (W x, W N(x), N(W x) or N(W N(x)), then the
positions). `cpu` changes one factor at a time from pre/pre with the plain stem, and adds blocks
whose two branches run in parallel; `gpu` and `paper` cross all nine placements with all four
stems. Every arm is trained at the same learning rates with one seed, for fewer steps; the rate
with the lowest loss on held-out training images is trained with fresh seeds, and only those runs
are compared, paired with pre/pre of the same seed. Adam, linear warm-up over a tenth of the steps,
cosine decay, no augmentation.

Beside them stand: a linear classifier on the same pixels, which pre/pre must beat by 3 points in
every seed; pre/pre with the branches of the last block zeroed (x + 0 f(x): the network of one
block less) and a network without any norm, which the comparison must tell from pre/pre; and
pre/pre with other seeds, which it must not. The gradient of the stem is measured over that of
the median block, before the first step and after the last.

Cost of cpu: 66 runs in 25 minutes on two CPU cores, 1.5 GB. To expect on CIFAR-10 (JPEG): the base
rule holds by 7 points, and no claim about accuracy can be tested, since three seeds do not tell the
network of one block less from pre/pre (-0.3 points [-1.9, 1.4]) and tell other seeds from it (0.8
[0.3, 1.2]); the plain stem's gradient is twice the median block's, the dual stem's 84 times before
training, where patches of equal pixels meet a variance of 0, and 1.5 times after it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pandas as pd

from experiments.measurements import norm_placement as measured
from launch.study import (
    DataRequest, EngineConfig, IoConfig, Measurement, Report, Run, Study, field, main)
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Claim, Outcome
from model_lib.analysis import selection, statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

SPOTS = ('pre', 'post', 'pre+post')
PLACEMENTS = tuple(f'{attention}/{mlp}' for attention in SPOTS for mlp in SPOTS)
PARALLEL = 'parallel'
STEMS = ('plain', 'pre', 'post', 'dual')
REFERENCE = 'pre/pre'
ZEROED, NO_NORM, OTHER_SEEDS, LINEAR = (
    'last block zeroed', 'no norm', 'other seeds', 'linear classifier')
CONTROLS = {'zeroed': ZEROED, 'no_norm': NO_NORM, 'seeds': OTHER_SEEDS}
MOST_SEEDS = 10007

MIN_SEEDS = 3
MARGIN = 1.0  # points of test accuracy that a placement must stay below
ABOVE_LINEAR = 3.0  # points
LEVEL = 0.025  # one side of a 95 % interval
TESTABLE = (f'nothing is testable on other data than CIFAR-10, below {MIN_SEEDS} pairs of seeds '
            f'without a diverged run, or unless pre/pre is at least {ABOVE_LINEAR:g} points above '
            'a linear classifier on the same pixels in every seed')


@dataclasses.dataclass(frozen=True)
class Config:
  """The study's config."""

  seed: int = field(0, 'Shifts every seed of the study.', low=0, high=1000)
  dataset: str = field('cifar10', 'A prepared data set of images.')
  blocks: tuple[str, ...] = field(
      ('pre/pre', 'post/post', 'pre+post/pre+post', PARALLEL),
      'Norms in the blocks, attention/MLP.', choices=(*PLACEMENTS, PARALLEL))
  stems: tuple[str, ...] = field(STEMS, 'Norms around the patch embedding.', choices=STEMS)
  crossed: bool = field(False, 'Every placement with every stem; else one of them is changed.')
  controls: tuple[str, ...] = field(tuple(CONTROLS), 'Control arms.', choices=tuple(CONTROLS))
  patch: int = field(8, 'Patch size in pixels.', low=1)
  dim: int = field(32, 'Width; 4 heads.', low=4)
  depth: int = field(4, 'Blocks.', low=1)
  steps: int = field(5000, 'Optimizer steps per run.', low=1)
  selection_steps: int = field(2000, 'The same, of the runs that choose the rate.', low=1)
  batch_size: int = field(16, 'Examples per step.', low=1)
  base_rate: float = field(3e-3, "Adam's learning rate at factor 1.", low=1e-8)
  linear_rate: float = field(1e-3, 'The same, of the linear classifier.', low=1e-8)
  rate_factors: tuple[float, ...] = field(
      (1 / 3, 1.0, 3.0), 'Factors of the base rate, ascending.', low=1e-6)
  selection_seeds: int = field(1, 'Seeds per arm and rate for the choice.', low=1,
                               high=MOST_SEEDS)
  seeds: int = field(3, 'Fresh seeds per arm for the comparison.', low=1, high=MOST_SEEDS)
  gradient_batches: int = field(16, 'Batches behind a gradient norm.', low=1)
  # Of three runs a chunk of two would leave one alone, padded with a fourth.
  engine: EngineConfig = EngineConfig(log_every=100, chunk=1)
  io: IoConfig = IoConfig()


_GRID = {'blocks': (*PLACEMENTS, PARALLEL), 'crossed': True, 'patch': 4, 'engine.chunk': 0}
PRESETS = {
    'smoke': {'dataset': 'digits', 'blocks': ('pre/pre',), 'stems': ('plain', 'dual'),
              'controls': ('seeds',), 'patch': 2, 'dim': 16, 'depth': 1, 'steps': 40,
              'batch_size': 32, 'rate_factors': (1.0,), 'seeds': 2, 'gradient_batches': 4,
              'engine.log_every': 10},
    'cpu': {},
    # 10 and 100 epochs of 45,000 images in 64 tokens; `paper` is the paper's Ti at patch 4, since
    # ImageNet is no data set here.
    'gpu': {**_GRID, 'dim': 64, 'depth': 6, 'steps': 3500, 'selection_steps': 1400,
            'batch_size': 128, 'engine.log_every': 100},
    'paper': {**_GRID, 'dim': 192, 'depth': 12, 'steps': 35000, 'selection_steps': 14000,
              'batch_size': 128, 'base_rate': 1e-3, 'engine.log_every': 500},
}


def data(config: Config) -> DataRequest:
  """One split for all seeds."""
  return DataRequest(config.dataset, 1, config.seed)


# The arms.

@dataclasses.dataclass(frozen=True)
class Arm:
  """An arm: role is tested, control or baseline; copy tells apart what differs in seeds alone."""

  name: str
  role: str
  model: ModelSpec
  base_rate: float
  blocks: str = ''
  stem: str = ''
  copy: int = 0


def arm_name(blocks: str, stem: str) -> str:
  """'pre/pre', or with another stem 'pre/pre, dual stem'."""
  return blocks if stem == 'plain' else f'{blocks}, {stem} stem'


def vit(config: Config, blocks: str, stem: str, fewer: int = 0) -> ModelSpec:
  """The vision transformer with these norms; 'none' leaves all of them out."""
  attention, both, mlp = blocks.partition('/')
  norm = (f'attention={attention}:layer, mlp={mlp}:layer' if both else
          'none' if blocks == 'none' else f'{blocks}:layer')
  return ModelSpec('vit', {
      'patch': config.patch, 'dim': config.dim, 'depth': config.depth - fewer, 'heads': 4,
      # The form that jax.nn takes, a sixth cheaper per step than the exact one.
      'activation': 'gelu_tanh',
      'norm': norm, 'stem_norm': 'none' if stem == 'plain' else f'{stem}:layer'})


def arms(config: Config) -> list[Arm]:
  """The tested arms, pre/pre first, the controls, and the linear classifier."""
  pairs = [(b, s) for b in config.blocks for s in config.stems
           if config.crossed and b != PARALLEL or b == 'pre/pre' or s == 'plain']
  found = [Arm(arm_name(b, s), 'tested', vit(config, b, s), config.base_rate, b, s)
           for b, s in sorted(pairs, key=lambda pair: pair != ('pre/pre', 'plain'))]
  controls = {'zeroed': vit(config, 'pre/pre', 'plain', fewer=1),
              'no_norm': vit(config, 'none', 'plain'), 'seeds': vit(config, 'pre/pre', 'plain')}
  found += [Arm(CONTROLS[key], 'control', model, config.base_rate, copy=int(key == 'seeds'))
            for key, model in controls.items() if key in config.controls]
  return [*found, Arm(LINEAR, 'baseline', ModelSpec('mlp', {'widths': []}), config.linear_rate)]


# The cohorts.

def seed_of(config: Config, phase: str, copy: int, number: int) -> int:
  """Seeds of different phases and copies never meet; an arm does not change them."""
  return ((config.seed * 2 + (phase == 'fresh')) * 2 + copy) * MOST_SEEDS + number


def member(config: Config, phase: str, arm: Arm, factor: float, number: int) -> Member:
  """One run."""
  factor = float(f'{factor:.6g}')  # the number that results.csv shows is the one that is used
  rate = arm.base_rate * factor
  seed = seed_of(config, phase, arm.copy, number)
  tags = {'phase': phase, 'arm': arm.name, 'role': arm.role, 'blocks': arm.blocks,
          'stem': arm.stem, 'lr_factor': factor, 'learning_rate': rate, 'seed': number}
  return Member(tags, seed, seed, 0, {'learning_rate': rate})


def cohort_name(arm: Arm, phase: str) -> str:
  """The copies of a network share a cohort, which has the name of the first."""
  return f'{arm.name}-{phase}'.replace('/', '.').replace(', ', '-').replace(' ', '_')


def cohorts(config: Config):
  """Selection of the learning rates, fresh seeds, then the gradients of the trained networks."""
  listed = arms(config)
  programs: dict[str, list[Arm]] = {}
  for arm in listed:
    programs.setdefault(json.dumps(dataclasses.asdict(arm.model), sort_keys=True), []).append(arm)

  def stage(phase, factors, seeds, steps):
    return [Cohort(cohort_name(own[0], phase), own[0].model,
                   tuple(member(config, phase, arm, f, s)
                         for arm in own for f in factors(arm) for s in range(seeds)),
                   steps, config.batch_size,
                   OptimizerSpec(schedule='cosine', warmup=0.1)) for own in programs.values()]

  chosen = {arm.name: config.rate_factors[0] for arm in listed}
  if len(config.rate_factors) > 1:
    rows = yield stage('selection', lambda arm: config.rate_factors, config.selection_seeds,
                       config.selection_steps)
    # Where every rate diverged the smallest one is run, so that the table shows it.
    chosen |= {name: choice.factor for (name,), choice in selection.choose(rows, ('arm',)).items()
               if not math.isnan(choice.factor)}
  yield stage('fresh', lambda arm: (chosen[arm.name],), config.seeds, config.steps)
  names = [cohort_name(arm, 'fresh') for arm in listed
           if arm.role == 'tested' and arm.blocks == 'pre/pre']
  yield [Measurement('stem-gradients', measured.measure_gradients, {
      'cohorts': names, 'first_seed': seed_of(config, 'fresh', 0, 0),
      'batch_size': config.batch_size, 'batches': config.gradient_batches},
      seconds=8.0 * len(names))]


# The report.

def claims(config: Config) -> tuple[Claim, ...]:
  """Fixed before any run. The paper's accuracies are of other data: none is copied."""
  listed = json.loads((Path(__file__).parent / 'paper_values' / 'norm_placement.json')
                      .read_text(encoding='utf-8'))
  return tuple(Claim(**entry | {'rule': f'{entry["rule"]}; {TESTABLE}'}) for entry in listed)


def points(rows: pd.DataFrame) -> dict[str, statistics.Paired]:
  """arm -> test accuracy minus that of pre/pre at the same seed, in points."""
  fresh = rows[rows.phase == 'fresh']
  fresh = fresh.assign(points=100 * fresh.test_accuracy)
  compared = selection.compare(fresh, list(dict.fromkeys(fresh.arm)), REFERENCE, 'points', 'arm')
  return {arm: own.paired for arm, own in compared.items()}


def base_problem(rows: pd.DataFrame, dataset: str) -> str:
  """Why no claim can be tested, or ''."""
  if dataset.partition('-')[0] != 'cifar10':
    return f'the claims are about CIFAR-10, the data are {dataset}'
  fresh = rows[(rows.phase == 'fresh') & (rows.diverged_step < 0)]
  table = 100 * fresh.pivot(index='seed', columns='arm', values='test_accuracy')
  above = (table[REFERENCE] - table[LINEAR]).dropna() if {REFERENCE, LINEAR} <= {*table} else []
  if len(above) < MIN_SEEDS:
    return (f'{len(above)} seeds of pre/pre and the linear classifier, at least {MIN_SEEDS} are '
            'needed')
  if not above.min() >= ABOVE_LINEAR:
    return (f'pre/pre is {above.min():.2f} points above a linear classifier in one seed, at least '
            f'{ABOVE_LINEAR:g} are needed')
  return ''


def told(paired: statistics.Paired) -> bool:
  """Whether the 95 % interval of the difference leaves out 0."""
  return paired.low > 0 or paired.high < 0


def outcomes(rows: pd.DataFrame, dataset: str) -> dict[str, Outcome]:
  """One per claim."""
  found, difference = {}, points(rows)
  problem = base_problem(rows, dataset)

  def outcome(key, verdict, own, note='', why=''):
    why = problem or (f'{own.n} pairs of seeds, at least {MIN_SEEDS} are needed'
                      if own.n < MIN_SEEDS else '') or why
    found[key] = Outcome(NOT_TESTABLE if why else verdict, own.mean, (own.low, own.high), own.n,
                         why or note)

  def missing(key, what):
    found[key] = Outcome(NOT_TESTABLE, None, None, 0, f'{what} was not run')

  # The controls first: a comparison that cannot see, or sees what is not there, decides nothing.
  blind, haunted = [], []
  for key, name in CONTROLS.items():
    if name not in difference:
      missing(f'control_{key}', name)
      (haunted if key == 'seeds' else blind).append(f'the control {name!r} was not run')
      continue
    own = difference[name]
    passed = told(own) != (key == 'seeds')
    outcome(f'control_{key}', REPRODUCED if passed else NOT_REPRODUCED, own)
    if not passed and key == 'seeds':
      haunted.append('pre/pre is told from itself with other seeds')
    elif not passed:
      blind.append(f'the control {name!r} is not told from pre/pre')

  others = [p for p in PLACEMENTS if p != 'pre/pre' and p in difference]
  if others:
    below = dict(zip(others, statistics.holm(
        [statistics.p_below(difference[p], MARGIN) for p in others]), strict=True))
    above = dict(zip(others, statistics.holm([
        statistics.p_below(difference[p]._replace(mean=-difference[p].mean), 0.0)
        for p in others]), strict=True))
    # The placement that is least clearly below the margin decides.
    worst = max(others, key=lambda p: (math.isnan(below[p]), below[p], difference[p].mean))
    beaten = [p for p in others if above[p] < LEVEL]
    verdict = (REPRODUCED if all(below[p] < LEVEL for p in others) else
               NOT_REPRODUCED if beaten else NOT_TESTABLE)
    wide = '' if verdict != NOT_TESTABLE else (
        f'the interval of {worst} is too wide for the margin of {MARGIN:g} point')
    outcome('no_block_placement_beats_pre', verdict, difference[worst],
            f'{worst} decides; Holm-corrected p of a gain of {MARGIN:g} point {below[worst]:.3g}'
            + (f'; better than pre/pre: {", ".join(beaten)}' if beaten else ''),
            '; '.join(blind + haunted) or wide)
  else:
    missing('no_block_placement_beats_pre', 'another placement in the blocks')

  dual = arm_name('pre/pre', 'dual')
  if dual in difference:
    own = difference[dual]
    outcome('dual_stem_better',
            REPRODUCED if own.low > 0 else NOT_REPRODUCED if own.high < 0 else NOT_TESTABLE, own,
            '', '; '.join(haunted) or ('' if told(own) else 'the interval holds 0'))
  else:
    missing('dual_stem_better', 'the dual stem')

  for at in ('start', 'end'):
    key = f'stem_gradient_{at}'
    plain, own = (ratio_interval(rows, stem, at) for stem in ('plain', 'dual'))
    if not own.n or not plain.n:
      missing(key, 'the plain or the dual stem')
      continue
    verdict = REPRODUCED if own.high < 1 else NOT_REPRODUCED if own.low > 1 else NOT_TESTABLE
    control = f'plain stem {plain.mean:.3g} [{plain.low:.3g}, {plain.high:.3g}]'
    outcome(key, verdict, own, control,
            f'there is no oversized gradient to remove, {control}' if not plain.low > 1 else
            '' if verdict != NOT_TESTABLE else f'the interval holds 1, {control}')
  return found


def ratio_interval(rows: pd.DataFrame, stem: str, at: str) -> statistics.Interval:
  """Geometric mean over seeds of the stem's gradient over the median block's."""
  own = rows[(rows.phase == 'gradients') & (rows.stem == stem) & (rows['at'] == at)]
  return statistics.geometric_interval(own.gradient_ratio.to_numpy(float))


def report(run: Run) -> Report:
  """Tables, outcomes, figures."""
  from experiments.figures import norm_placement as figures
  rows = run.rows
  chosen = rows[rows.phase == 'selection']
  choices = {arm: choice for (arm,), choice in selection.choose(chosen, ('arm',)).items()}
  drawn = {
      'accuracy': lambda: figures.accuracy_differences(rows, run.dataset),
      'training_curves': lambda: figures.training_curves(run.metrics(), rows, run.dataset),
      'stem_gradients': lambda: figures.stem_gradients(rows, run.dataset)}
  if choices:
    drawn['learning_rates'] = lambda: figures.learning_rates(rows, run.dataset)
  config = run.config
  title = (f'Placement of layer norms on {run.dataset}, ViT {config.depth} x {config.dim}, patch '
           f'{config.patch}, {config.steps} steps of {config.batch_size}')
  return Report((figures.accuracy_table(title, rows, points(rows), choices),
                 figures.gradient_table(rows, run.dataset)), outcomes(rows, run.dataset), drawn)


def check(config: Config) -> None:
  """What cannot be compared."""
  if 'pre/pre' not in config.blocks or 'plain' not in config.stems:
    raise UserError('config.blocks, config.stems: pre/pre and plain are missing; everything is '
                    'compared with them')
  for name in ('blocks', 'stems', 'controls'):
    values = getattr(config, name)
    if len(set(values)) < len(values):
      raise UserError(f'config.{name}: something stands there twice')
  if 'zeroed' in config.controls and config.depth < 2:
    raise UserError('config.depth: where the last block is zeroed there must be at least 2')
  if list(config.rate_factors) != sorted(set(config.rate_factors)):
    raise UserError('config.rate_factors: must ascend without repetition')


STUDY = Study(
    name='norm_placement', config=Config, presets=PRESETS, data=data, cohorts=cohorts,
    report=report, claims=claims, check=check, extendable=('seeds',))

if __name__ == '__main__':
  main(STUDY)
