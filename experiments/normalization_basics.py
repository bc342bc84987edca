"""What layer, batch and RMS normalization promise, checked: invariances, numerics, batch size.

  python -m experiments.normalization_basics --preset=cpu --config.dataset=mnist --workdir=runs/nb

Four parts (--config.parts=a,b runs some of them). The first three train nothing and come out the
same every time; their claims are checks, decided by a rule alone.

invariances: the table of Ba, Kiros, Hinton 2016 (arXiv:1607.06450) with RMSNorm
(Zhang, Sennrich 2019, arXiv:1910.07467) beside it, in float64: which changes of weights and data
leave the output of a normalized layer as it was, and which do not.

fast_variance: rows of 3000 + N(0, 1) in float32 through flax's LayerNorm, whose default is
E x^2 - (E x)^2, and through the two-pass variance used here.

residual_variance: the variance of the residual stream after 48 blocks of two matrices, predicted
from the activation's Gaussian moments and measured, by placement; wrong predictions as controls.
Blocks with attention, whose tokens become alike, stand beside their prediction without a bound.

batch_size: does LayerNorm keep its accuracy where the batch shrinks, and does BatchNorm lose (Ba,
Kiros, Hinton 2016)? Hidden layers of 1000 are too slow for two cores: the widths are 128-128.
Without a norm, with LayerNorm and with BatchNorm a network is trained at batches of 128 and 4, on
equally many examples, and at 4 also for equally many steps; in each of these cells the learning
rate is chosen by validation loss among three (base rate times sqrt(batch / 128) times 1/3, 1, 3;
further out where the best one is at an edge), and trained again with fresh seeds under a cosine
schedule. The measure is a difference of differences, in points of test accuracy and paired over
seeds: what the arm loses from 128 to 4, minus what the network without a norm loses; what a smaller
batch changes for every network is so taken out. BatchNorm is evaluated with the running variance of
either convention and with moments of the training data in their place. Copies of the network
without a norm, with other seeds, are the null row. On digits the claims are not testable by rule.

Cost of cpu: 206 runs in 24 minutes beside other work on two CPU cores, 1.1 GB. To expect on MNIST,
in points: LayerNorm -0.07 [-0.22, 0.08] at equal examples and -0.39 [-0.69, -0.09] at equal steps;
BatchNorm 2.7 [2.4, 3.0] and 3.9 [3.2, 4.6], recalibrated 2.5 and 3.1; copies -0.04 and 0.12.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.measurements import normalization_basics as checks
from launch.study import (
    DataRequest, EngineConfig, Given, IoConfig, Measurement, Report, Run, Study, field, main)
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Claim, Outcome
from model_lib.analysis import selection, statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PARTS = ('invariances', 'fast_variance', 'residual_variance', 'batch_size')
REFERENCE = 'none'
CELL = ('arm', 'batch', 'budget')
CONVENTIONS = ('unbiased', 'biased', 'recalibrated')
MARGIN = 1.0  # points
MIN_SEEDS, MIN_TEST_IMAGES, LEARNED = 8, 5000, 0.8
MOST_SEEDS, MOST_WIDENINGS = 10007, 3
TESTABLE = (f'not testable below {MIN_SEEDS} pairs of seeds without a diverged run, below '
            f'{MIN_TEST_IMAGES} test images (a point is then under {MIN_TEST_IMAGES // 100}), '
            'when the network without a norm is right on less than '
            f'{LEARNED:.0%} at the largest batch, or when a cell that is compared chooses the '
            f'edge of its learning rates after {MOST_WIDENINGS} steps beyond it')


@dataclasses.dataclass(frozen=True)
class Config:
  """The study's config."""

  seed: int = field(0, 'Shifts every seed of the study.', low=0, high=1000)
  dataset: str = field('digits', 'A prepared data set of images, for batch_size.')
  parts: tuple[str, ...] = field(PARTS, 'Parts to run.', choices=PARTS)
  widths: tuple[int, ...] = field((128, 128), 'Hidden widths of the networks.', low=1)
  batches: tuple[int, ...] = field(
      (128, 4), 'Batch sizes, falling; the first and the last are compared.', low=2)
  examples: int = field(64000, 'Training examples that a run sees (with repetition).', low=1)
  equal_steps: bool = field(True, 'The smallest batch for equally many steps as well.')
  base_rate: float = field(2e-3, "Adam's learning rate at the largest batch and factor 1.",
                           low=1e-8)
  rate_factors: tuple[float, ...] = field(
      (1 / 3, 1.0, 3.0), 'Factors of the base rate, ascending.', low=1e-6)
  selection_seeds: int = field(2, 'Seeds per cell and rate for the choice.', low=1,
                               high=MOST_SEEDS)
  fresh_seeds: int = field(10, 'Fresh seeds per cell for the comparison.', low=1, high=MOST_SEEDS)
  engine: EngineConfig = EngineConfig(log_every=100)
  io: IoConfig = IoConfig()


PRESETS = {
    'smoke': {'widths': (16,), 'batches': (32, 8), 'examples': 640, 'rate_factors': (1.0,),
              'selection_seeds': 1, 'fresh_seeds': 2, 'equal_steps': False, 'engine.log_every': 10},
    'cpu': {},
    'gpu': {'widths': (1000, 1000), 'batches': (128, 32, 8, 4), 'fresh_seeds': 32},
}


def data(config: Config) -> DataRequest | None:
  """One split for all seeds; the parts without training read no data."""
  return DataRequest(config.dataset, 1, config.seed) if 'batch_size' in config.parts else None


# The networks.

def model(config: Config, arm: str) -> ModelSpec:
  """The MLP of an arm."""
  return ModelSpec('mlp', {'widths': list(config.widths), 'norm': checks.ARMS[arm]})


def cells(config: Config) -> list[tuple[int, str, int]]:
  """(batch, budget, steps): all batches on equally many examples, the last for equal steps too."""
  found = [(b, 'examples', config.examples // b) for b in config.batches]
  steps = [(config.batches[-1], 'steps', config.examples // config.batches[0])]
  return found + steps if config.equal_steps else found


def cell_name(arm: str, batch: int, budget: str) -> str:
  return f'{arm}-b{batch}-{budget}'


def member(config: Config, phase: str, arm: str, batch: int, budget: str, factor: float,
           number: int, copy: int = 0) -> Member:
  """One run; runs of equal phase, copy and number share their seeds in all cells."""
  factor = float(f'{factor:.6g}')
  rate = config.base_rate * math.sqrt(batch / config.batches[0]) * factor
  seed = ((config.seed * 2 + (phase != 'selection')) * 2 + copy) * MOST_SEEDS + number
  tags = {'part': 'batch_size', 'phase': phase, 'arm': arm, 'batch': batch, 'budget': budget,
          'lr_factor': factor, 'learning_rate': rate, 'seed': number, 'copy': copy}
  return Member(tags, seed, seed, 0, {'learning_rate': rate})


def cohorts(config: Config):
  """The checks; then for the networks selection, steps beyond its edges, and fresh seeds."""
  untrained = {
      'invariances': [Measurement('invariances', checks.measure_invariances, seconds=3)],
      'fast_variance': [Measurement('fast_variance', checks.measure_fast_variance,
                                    {'width': 64, 'draws': checks.DRAWS}, seconds=3)],
      'residual_variance': [
          Measurement('residual_variance', checks.measure_residual_variance,
                      {'blocks': checks.BLOCKS, 'width': checks.WIDTH, 'seeds': 8}, seconds=10),
          Measurement('attention_blocks', checks.measure_attention_blocks, checks.MIXED, 6)]}
  asked = [one for part, several in untrained.items() if part in config.parts for one in several]
  if asked:
    yield asked
  if 'batch_size' not in config.parts:
    return
  yield [Measurement('batch_independence', checks.measure_independence,
                     {'widths': list(config.widths)}, seconds=3)]

  def cohort(phase, arm, batch, budget, steps, members):
    return Cohort(f'{cell_name(arm, batch, budget)}-{phase}', model(config, arm), tuple(members),
                  steps, batch, OptimizerSpec(schedule='cosine'))

  def stage(phase, factors):
    """Selection runs at factors(cell), where there are any."""
    listed = []
    for arm in checks.ARMS:
      for batch, budget, steps in cells(config):
        runs = [member(config, 'selection', arm, batch, budget, f, s)
                for f in factors((arm, batch, budget)) for s in range(config.selection_seeds)]
        if runs:
          listed.append(cohort(phase, arm, batch, budget, steps, runs))
    return listed

  factors = config.rate_factors
  chosen = {}
  if len(factors) > 1:
    rows = yield stage('select', lambda cell: factors)
    chosen = selection.choose(rows, CELL)
    for number in range(MOST_WIDENINGS):
      wider = stage(f'widen{number + 1}', lambda cell, chosen=chosen: selection.beyond(
          chosen[cell], factors))
      if not wider:
        break
      rows = pd.concat([rows, (yield wider)])
      chosen = selection.choose(rows, CELL)

  fresh = []
  for arm in checks.ARMS:
    for batch, budget, steps in cells(config):
      factor = chosen[arm, batch, budget].factor if chosen else factors[0]
      # Where every rate diverged the smallest one is run, so that the table shows it.
      factor = factors[0] if math.isnan(factor) else factor
      runs = [member(config, 'fresh', arm, batch, budget, factor, s)
              for s in range(config.fresh_seeds)]
      if arm == REFERENCE and batch in (config.batches[0], config.batches[-1]):
        runs += [member(config, 'null_fresh', arm, batch, budget, factor, s, copy=1)
                 for s in range(config.fresh_seeds)]
      fresh.append(cohort('fresh', arm, batch, budget, steps, runs))
  yield fresh
  yield [Measurement('conventions', measure_conventions, {
      'cohorts': [c.name for c in fresh if c.name.startswith('batch-')]}, seconds=30)]


def measure_conventions(given: Given, cohorts: Sequence[str]) -> list[dict]:
  """Test accuracy of the networks with batch norm under each convention of the running moments.

  Recalibrated: moments of as many training examples as there are validation examples.
  """
  import jax
  import jax.numpy as jnp
  from launch.study.datasets import part_of_train
  from model_lib.normalization import get_norm
  from model_lib.transforms.batch_stats import biased_running, recalibrated
  options = dict(get_norm('batch').options)
  images, split = given.data.dataset, given.data.splits[0]
  labels = np.asarray(images.labels)[split.test]

  def standardized(numbers, task):
    return jnp.asarray((images.inputs[numbers].astype(np.float32) - task['mean']) / task['std'])

  # Batch sizes and steps are numbers here: one program evaluates all cohorts.
  first = given.trained(cohorts[0])
  network = first.model
  test, train = (standardized(n, first.task) for n in (split.test, part_of_train(split)))

  @jax.jit
  def evaluate(variables, test, train, steps, count):
    biased = biased_running(variables['batch_stats'], count, options['momentum'], steps)
    population = recalibrated(network, variables, train)
    return [network.apply({**variables, 'batch_stats': stats}, test, train=False).argmax(-1)
            for stats in (variables['batch_stats'], biased, population)]

  found = []
  for name in cohorts:
    trained = given.trained(name)
    for place, row in enumerate(trained.rows):
      if row['diverged_step'] >= 0:
        continue
      own = jax.tree.map(lambda leaf, place=place: leaf[place], trained.variables)
      guesses = evaluate(own, test, train, row['steps'], row['batch'])
      found += [{**{k: row[k] for k in ('part', 'arm', 'batch', 'budget', 'seed')},
                 'phase': 'conventions', 'convention': convention,
                 'test_accuracy': float((np.asarray(guess) == labels).mean())}
                for convention, guess in zip(CONVENTIONS, guesses, strict=True)]
  return found


# The report.

def claims(config: Config) -> tuple[Claim, ...]:
  """Fixed before any run. The paper prints the figure and no number: none is copied."""
  listed = json.loads((Path(__file__).parent / 'paper_values' / 'normalization_basics.json')
                      .read_text(encoding='utf-8'))
  return tuple(Claim(**entry | ({} if entry.get('kind') == 'check' else
                                {'rule': f'{entry["rule"]}; {TESTABLE}'})) for entry in listed)


def losses(rows: pd.DataFrame, config: Config, budget: str) -> pd.Series:
  """Points of test accuracy that each seed loses from the largest batch to the smallest one."""
  first, last = config.batches[0], config.batches[-1]
  alive = rows[rows.test_accuracy.notna() & ~(rows.diverged_step >= 0)]
  large = alive[(alive.batch == first) & (alive.budget == 'examples')]
  small = alive[(alive.batch == last) & (alive.budget == budget)]
  return (100 * (large.set_index('seed').test_accuracy
                 - small.set_index('seed').test_accuracy)).dropna()


def compared(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
  """(arm, evaluation) -> its runs, for all that is compared with the network without a norm."""
  fresh, null = rows[rows.phase == 'fresh'], rows[rows.phase == 'null_fresh']
  conventions = rows[rows.phase == 'conventions']
  return {('layer', ''): fresh[fresh.arm == 'layer'],
          **{('batch', c): conventions[conventions.convention == c] for c in CONVENTIONS},
          ('copies', ''): null}


def differences(rows: pd.DataFrame, config: Config) -> dict[tuple[str, str, str],
                                                            statistics.Paired]:
  """(arm, evaluation, budget) -> what it loses minus what the network without a norm loses."""
  fresh, found = rows[rows.phase == 'fresh'], {}
  for budget in dict.fromkeys(budget for _, budget, _ in cells(config)):
    base = losses(fresh[fresh.arm == REFERENCE], config, budget)
    for (arm, evaluation), own in compared(rows).items():
      both = pd.concat([losses(own, config, budget), base], axis=1, keys=['own', 'base']).dropna()
      found[arm, evaluation, budget] = statistics.paired_difference(
          both.own.to_numpy(), both.base.to_numpy())
  return found


def choices_of(rows: pd.DataFrame) -> dict:
  """(arm, batch, budget) -> Choice; {} where there was one rate alone."""
  selected = rows[rows.phase == 'selection']
  return selection.choose(selected, CELL) if len(selected) else {}


def base_problem(rows: pd.DataFrame, config: Config) -> str:
  """Why no claim about accuracy can be tested, or ''."""
  base = rows[(rows.phase == 'fresh') & (rows.arm == REFERENCE)
              & (rows.batch == config.batches[0])]
  images, accuracy = base.test_images.min(), base.test_accuracy.mean()
  if not images >= MIN_TEST_IMAGES:
    return f'{images:.0f} test images, at least {MIN_TEST_IMAGES} are needed'
  if not accuracy >= LEARNED:
    return f'without a norm {accuracy:.1%} are right, at least {LEARNED:.0%} are needed'
  return ''


def accuracy_outcomes(rows: pd.DataFrame, config: Config) -> dict[str, Outcome]:
  """LayerNorm's losses inside the margin, BatchNorm's above 0 and above the null row."""
  found, problem = {}, base_problem(rows, config)
  choices, ours = choices_of(rows), differences(rows, config)
  for (arm, evaluation, budget), own in ours.items():
    if arm == 'copies':
      continue
    cells_read = [(a, b, 'examples' if b == config.batches[0] else budget)
                  for a in (arm, REFERENCE) for b in (config.batches[0], config.batches[-1])]
    edges = [cell_name(*cell) for cell in cells_read if cell in choices and choices[cell].edge]
    why = problem or (f'{own.n} pairs, at least {MIN_SEEDS} are needed' if own.n < MIN_SEEDS else
                      f'at the edge of the learning rates: {", ".join(edges)}' if edges else '')
    null = ours['copies', '', budget]
    passed = (-MARGIN < own.low and own.high < MARGIN if arm == 'layer' else
              own.low > 0 and own.mean > abs(null.mean))
    key = f'{arm}_{evaluation or "margin"}_equal_{budget}'
    verdict = NOT_TESTABLE if why else REPRODUCED if passed else NOT_REPRODUCED
    found[key] = Outcome(verdict, own.mean, (own.low, own.high), own.n,
                         why or f'copies without a norm {null.mean:+.2f} [{null.low:+.2f}, '
                                f'{null.high:+.2f}]')
  return found


def accuracy_rows(rows: pd.DataFrame, config: Config) -> list[dict]:
  """One per arm, evaluation and cell: mean accuracy in %, its interval, the learning rate."""
  choices, fresh, found = choices_of(rows), rows[rows.phase == 'fresh'], []
  for arm, evaluation in ((REFERENCE, ''), ('layer', ''), *(('batch', c) for c in CONVENTIONS)):
    own = compared(rows)[arm, evaluation] if evaluation else fresh[fresh.arm == arm]
    for batch, budget, steps in cells(config):
      runs = fresh[(fresh.arm == arm) & (fresh.batch == batch) & (fresh.budget == budget)]
      part = own[(own.batch == batch) & (own.budget == budget) & ~(own.diverged_step >= 0)]
      mean = statistics.mean_interval(100 * part.test_accuracy.to_numpy())
      edge = (arm, batch, budget) in choices and choices[arm, batch, budget].edge
      found.append({
          'arm': arm, 'evaluation': evaluation or None, 'batch': batch, 'steps': steps,
          'rate': f'{runs.learning_rate.iloc[0]:.3g}' + '*' * bool(edge), 'accuracy': mean.mean,
          'interval': (mean.low, mean.high), 'n': mean.n,
          'diverged': int((runs.diverged_step >= 0).sum())})
  return found


def report(run: Run) -> Report:
  """Tables, outcomes and figures of the parts that were run."""
  from experiments.figures import normalization_basics as shown
  config = run.config
  rows = {part: run.rows[run.rows.part == part] for part in PARTS if part in config.parts}
  found = {}
  for part, outcomes in (('invariances', checks.invariance_outcomes),
                         ('fast_variance', checks.variance_outcomes),
                         ('residual_variance', checks.residual_outcomes)):
    if part in rows:
      found |= outcomes(rows[part])
  if 'batch_size' in rows:
    found['layer_ignores_the_batch'] = checks.independence_outcome(rows['batch_size'])
    found |= accuracy_outcomes(rows['batch_size'], config)
  for claim in claims(config):
    found.setdefault(claim.id, Outcome(NOT_TESTABLE, None, None,
                                       None if claim.kind == 'check' else 0,
                                       'it was not run'))
  tables, drawn = [], {}
  if 'invariances' in rows:
    own = rows['invariances']
    tables.append(shown.invariance_table(own, checks.SAME, checks.OTHER))
    drawn['invariances'] = lambda: shown.invariances(own, checks.SAME, checks.OTHER)
  if 'fast_variance' in rows:
    tables.append(shown.variance_table(rows['fast_variance'], checks.FAR))
    drawn['fast_variance'] = lambda: shown.fast_variance(rows['fast_variance'], checks.OFFSET)
  if 'residual_variance' in rows:
    stacks, blocks = checks.stacks_and_blocks(rows['residual_variance'])
    tables += [shown.residual_table(checks.residual_summary(stacks), checks.BLOCKS, checks.WIDTH),
               *shown.attention_tables(checks.attention_summary(blocks), checks.MIXED)]
    drawn['residual_variance'] = lambda: shown.residual_variance(stacks, checks.TOLERANCE)
  if 'batch_size' in rows:
    networks, lost = rows['batch_size'], differences(rows['batch_size'], config)
    name = f'MLP {"-".join(map(str, config.widths))} on {run.dataset}'
    tables += [shown.accuracy_table(accuracy_rows(networks, config), name),
               shown.difference_table(lost, config.batches, name)]
    arms = {REFERENCE: networks[(networks.phase == 'fresh') & (networks.arm == REFERENCE)],
            **{' '.join(k).strip(): v for k, v in compared(networks).items() if k[0] != 'copies'}}
    drawn['batch_size'] = lambda: shown.batch_size(arms, run.dataset)
    drawn['differences'] = lambda: shown.differences(lost, MARGIN, config.batches, run.dataset)
  return Report(tables, found, drawn)


def check(config: Config) -> None:
  """Refuses batches and rates that cannot be compared."""
  if list(config.batches) != sorted(set(config.batches), reverse=True) or len(config.batches) < 2:
    raise UserError('config.batches: at least two sizes, falling, without repetition')
  if config.examples < config.batches[0]:
    raise UserError(f'config.examples: at least one batch of {config.batches[0]} is needed')
  if list(config.rate_factors) != sorted(set(config.rate_factors)):
    raise UserError('config.rate_factors: must ascend without repetition')


STUDY = Study(name='normalization_basics', config=Config, presets=PRESETS, data=data,
              cohorts=cohorts, report=report, claims=claims, check=check)

if __name__ == '__main__':
  main(STUDY)
