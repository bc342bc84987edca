"""What layer, batch and RMS normalization promise, checked: invariances, numerics, batch size.

  python -m experiments.normalization_basics --preset=cpu --config.dataset=mnist --workdir=runs/nb

Four parts (--config.parts=a,b runs some of them). The first three train nothing and come out the
same every time; their claims are checks, decided by a rule alone.

invariances: the table of Ba, Kiros, Hinton 2016 (arXiv:1607.06450, section 5.1) with RMSNorm
(Zhang, Sennrich 2019, arXiv:1910.07467) beside it, in float64: which changes of weights and data
leave the output of a normalized layer as it was, and which do not.

fast_variance: rows of 3000 + N(0, 1) in float32 through flax's LayerNorm, whose default is
E x^2 - (E x)^2, and through the two-pass variance used here.

residual_variance: the variance of the residual stream after 48 blocks of two matrices, predicted
from the activation's Gaussian moments and measured, by placement of the norm; with predictions
that are wrong as controls.

batch_size: does LayerNorm keep its accuracy where the batch shrinks, and does BatchNorm lose
(Ba, Kiros, Hinton 2016, figure 6)? Their network (784-1000-1000-10) is too slow for two cores:
the hidden widths are 128-128. Without a norm, with LayerNorm and with BatchNorm a network is
trained at batches of 128 and 4, on equally many examples, and at 4 also for equally many
steps; in each of these cells the learning rate is chosen by validation loss among three (base
rate times sqrt(batch / 128) times 1/3, 1, 3; further out where the best one is at an edge), and
trained again with fresh seeds under a cosine schedule. The measure is a difference of differences,
in points of test accuracy and paired over seeds: what the arm loses from 128 to 4, minus what the
network without a norm loses. A smaller batch changes more than the norm; what it changes for
every network is so taken out. BatchNorm is evaluated with the running variance of either
convention and with moments of the training data in their place. Copies of the network without a
norm, with seeds of their own, are the null row. On digits the claims are not testable by rule.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from launch.study import (
    DataRequest, EngineConfig, Given, IoConfig, Measurement, Report, Run, Study, field, main)
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Claim, Outcome
from model_lib.analysis import selection, statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PARTS = ('invariances', 'fast_variance', 'residual_variance', 'batch_size')

# The invariance table: what each norm must not notice; it must notice all the rest.
_MATRIX, _CENTRE, _VECTOR, _DATA, _OFFSET, _CASE = (
    'weight matrix re-scaling', 'weight matrix re-centring', 'weight vector re-scaling',
    'data set re-scaling', 'data set re-centring', 'single case re-scaling')
INVARIANT = {
    'batch': (_MATRIX, _VECTOR, _DATA, _OFFSET), 'layer': (_MATRIX, _CENTRE, _DATA, _CASE),
    'rms': (_MATRIX, _DATA, _CASE), 'weight_norm': (_MATRIX, _VECTOR), 'none': ()}
SAME, OTHER = 1e-12, 1e-2  # of the output's root mean square: a yes is below, a no above

ROWS, OFFSET, DRAWS = 1024, 3000.0, 8
FAR, FAR_SHARE, NEAR = 100.0, 0.05, 1e-2

BLOCKS, WIDTH = 48, 256
PLACEMENTS = {'pre': ('pre', 'sp'), 'peri': ('peri', 'sp'), 'layernorm scaling': ('pre', 'lns'),
              'post': ('post', 'sp')}
STACKS = {'relu': True, 'gelu': False}  # activation -> whether the second matrix has He's gain
TOLERANCE = 0.10

ARMS = {'none': 'none', 'layer': 'pre:layer', 'batch': 'pre:batch'}
REFERENCE = 'none'
CELL = ('arm', 'batch', 'budget')
CONVENTIONS = ('unbiased', 'biased', 'recalibrated')
INDEPENDENT, DEPENDENT = 1e-6, 1e-2
MARGIN = 1.0  # points
MIN_SEEDS, MIN_TEST_IMAGES, LEARNED = 8, 5000, 0.8
MOST_SEEDS = 10007
MOST_WIDENINGS = 3
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
              'selection_seeds': 1, 'fresh_seeds': 2, 'engine.log_every': 10},
    'cpu': {},
    'gpu': {'widths': (1000, 1000), 'batches': (128, 32, 8, 4), 'fresh_seeds': 32},
}


def data(config: Config) -> DataRequest | None:
  """One split for all seeds; the parts without training read no data."""
  return DataRequest(config.dataset, 1, config.seed) if 'batch_size' in config.parts else None


# The parts that train nothing.

def measure_invariances(given: Given) -> list[dict]:
  """Deviations of a normalized layer under each transformation, float64, eps = 0."""
  from model_lib.analysis.invariances import deviations
  del given
  specs = {name: f'{name}(eps=0)' if name in ('batch', 'layer', 'rms') else name
           for name in INVARIANT}
  return [{'part': 'invariances', 'norm': name, 'transformation': transformation,
           'deviation': value, 'invariant': int(transformation in INVARIANT[name])}
          for name, spec in specs.items() for transformation, value in deviations(spec).items()]


def measure_fast_variance(given: Given, width: int, draws: int) -> list[dict]:
  """Standard deviations of normalized rows of offset + N(0, 1), float32."""
  import flax.linen as nn
  import jax
  from model_lib.normalization import get_norm
  del given
  layers = {'flax, one pass': nn.LayerNorm(use_scale=False, use_bias=False, epsilon=1e-6),
            'two passes': get_norm('layer(eps=1e-6)').layer()}
  found = []
  for offset in (OFFSET, 0.0):
    for draw in range(draws):
      x = offset + jax.random.normal(jax.random.key(draw), (ROWS, width))
      for method, layer in layers.items():
        extra = {} if isinstance(layer, nn.LayerNorm) else {'train': False}
        y = np.asarray(layer.init_with_output(jax.random.key(0), x, **extra)[0], np.float64)
        deviation = y.std(-1)
        row = {'part': 'fast_variance', 'method': method, 'offset': offset, 'draw': draw}
        found.append({**row, 'far_share': float((deviation > FAR).mean()),
                      'smallest_std': float(deviation.min()),
                      'largest_std': float(deviation.max()), 'percent': math.nan})
        if draw == 0 and offset:
          found += [{**row, 'percent': float(p), 'std': float(np.percentile(deviation, p))}
                    for p in np.linspace(0, 100, 101)]
  return found


def measure_residual_variance(given: Given, blocks: int, width: int, seeds: int) -> list[dict]:
  """Predicted and measured variances of the stream, by activation, placement and block.

  After post-norm the stream has variance 1 by construction: there, what enters the norm is taken.
  """
  from model_lib.analysis.residual_growth import residual_variance
  from model_lib.analysis.residual_measurement import measure_variance
  del given
  found = []
  for activation, gained in STACKS.items():
    for placement, (place, residual) in PLACEMENTS.items():
      norm = f'{place}:layer(eps=0.0)'
      predicted = residual_variance(norm, residual, activation, blocks, (1, 2 if gained else 1))
      measured = measure_variance(norm, residual, activation, gained, blocks, width, seeds=seeds)
      own = measured.normed if place == 'post' else measured.stream
      found += [{'part': 'residual_variance', 'activation': activation, 'placement': placement,
                 'block': i + 1, 'predicted': float(predicted.sums[i]), 'measured': float(own[i])}
                for i in range(blocks)]
  return found


def wrong_predictions(activation: str, blocks: int) -> dict[str, dict[str, float]]:
  """placement -> {what is wrongly assumed: the variance that follows}."""
  from model_lib.activations import get_activation
  harmonic = sum(1 / i for i in range(1, blocks + 1))
  unit, power = 'unit-variance branches', 'a homogeneous activation'
  second = get_activation(activation).moments().second
  if STACKS[activation]:  # the unit-variance prediction is right; the other placement's is not
    return {'pre': {"layernorm scaling's growth": 1 + harmonic},
            'layernorm scaling': {"pre's growth": 1.0 + blocks}}
  return {'pre': {unit: 1.0 + blocks},
          'layernorm scaling': {unit: 1 + harmonic, power: 1 + second * harmonic}}


# The networks.

def model(config: Config, arm: str) -> ModelSpec:
  """The MLP of an arm."""
  return ModelSpec('mlp', {'widths': list(config.widths), 'norm': ARMS[arm]})


def cells(config: Config) -> list[tuple[int, str, int]]:
  """(batch, budget, steps): all batches on equally many examples, the last for equal steps too."""
  steps = config.examples // config.batches[0]
  found = [(b, 'examples', config.examples // b) for b in config.batches]
  return [*found, (config.batches[-1], 'steps', steps)]


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
  checks = {
      'invariances': Measurement('invariances', measure_invariances, seconds=3),
      'fast_variance': Measurement('fast_variance', measure_fast_variance,
                                   {'width': 64, 'draws': DRAWS}, seconds=3),
      'residual_variance': Measurement(
          'residual_variance', measure_residual_variance,
          {'blocks': BLOCKS, 'width': WIDTH, 'seeds': 8}, seconds=25)}
  asked = [check for part, check in checks.items() if part in config.parts]
  if asked:
    yield asked
  if 'batch_size' not in config.parts:
    return
  yield [Measurement('batch_independence', measure_independence,
                     {'widths': list(config.widths)}, seconds=3)]

  def cohort(phase, arm, batch, budget, steps, members):
    return Cohort(f'{cell_name(arm, batch, budget)}-{phase}', model(config, arm), tuple(members),
                  steps, batch, OptimizerSpec(schedule='cosine'))

  def stage(phase, factors):
    """Selection runs at factors(cell), where there are any."""
    listed = []
    for arm in ARMS:
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
    step = factors[-1] / factors[-2]
    for number in range(MOST_WIDENINGS):
      wider = stage(f'widen{number + 1}', lambda cell, chosen=chosen: (
          (chosen[cell].factor * step**chosen[cell].edge,) if chosen[cell].edge else ()))
      if not wider:
        break
      rows = pd.concat([rows, (yield wider)])
      chosen = selection.choose(rows, CELL)

  fresh = []
  for arm in ARMS:
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


def measure_independence(given: Given, widths: Sequence[int]) -> list[dict]:
  """How far the output of one example moves when the others of its batch change, at the start."""
  import jax
  import jax.numpy as jnp
  from model_lib import models
  del given
  key = jax.random.key(0)
  one, others = jax.random.normal(key, (1, 784)), jax.random.normal(key, (2, 31, 784))
  found = []
  for arm, norm in ARMS.items():
    network = models.build('mlp', widths=list(widths), norm=norm)

    @jax.jit
    def outputs():
      variables = network.init(jax.random.key(1), one, train=False)
      return {mode: [network.apply(variables, jnp.concatenate([one, rest]), train=train,
                                   mutable=['batch_stats'])[0][0] for rest in others]
              for mode, train in (('training', True), ('inference', False))}

    for mode, pair in outputs().items():
      first, second = (np.asarray(y) for y in pair)
      found.append({'part': 'batch_size', 'phase': 'independence', 'arm': arm, 'mode': mode,
                    'deviation': float(np.abs(first - second).max() / np.sqrt(
                        np.mean(np.square(first))))})
  return found


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


def check_outcome(passed: bool, ours: float, note: str) -> Outcome:
  return Outcome(REPRODUCED if passed else NOT_REPRODUCED, ours, None, None, note)


def invariance_outcomes(rows: pd.DataFrame) -> dict[str, Outcome]:
  """One per norm: the largest change under a yes."""
  plain = rows[rows.norm == 'none'].deviation.min()
  found = {}
  for name, invariant in INVARIANT.items():
    own = rows[rows.norm == name]
    yes, no = own[own.invariant == 1].deviation.max(), own[own.invariant == 0].deviation.min()
    if invariant:
      found[f'invariances_{name}'] = check_outcome(
          yes < SAME and no > OTHER and plain > OTHER, yes,
          f'smallest change under a no {no:.2g}, without a norm {plain:.2g}')
  return found


def variance_outcomes(rows: pd.DataFrame) -> dict[str, Outcome]:
  """The one-pass variance fails on every draw, the two-pass one on none."""
  whole = rows[rows.percent.isna()]
  fast, exact = (whole[whole.method == m] for m in ('flax, one pass', 'two passes'))

  def away(own):
    return float(np.maximum(own.largest_std - 1, 1 - own.smallest_std).max())

  least = float(fast[fast.offset == OFFSET].far_share.min())
  control, ours = away(fast[fast.offset == 0]), away(exact)
  return {'fast_variance_fails': check_outcome(
              least >= FAR_SHARE and control < NEAR, least,
              f'largest std {fast.largest_std.max():.3g}; at offset 0 no row is further than '
              f'{control:.2g} from 1'),
          'two_pass_variance_holds': check_outcome(
              ours < NEAR and least >= FAR_SHARE, ours, f'{len(exact)} draws of {ROWS} rows')}


def residual_summary(rows: pd.DataFrame) -> list[dict]:
  """The last block of each stack, with the nearest wrong prediction."""
  found = []
  for (activation, placement), own in rows.groupby(['activation', 'placement'], sort=False):
    last = own.sort_values('block').iloc[-1]
    wrong = wrong_predictions(activation, int(last.block)).get(placement, {})
    nearest = min(wrong, key=lambda k, last=last: abs(last.measured / wrong[k] - 1), default='')
    found.append({
        'activation': activation, 'placement': placement, 'predicted': last.predicted,
        'measured': last.measured, 'off': 100 * (last.measured / last.predicted - 1),
        'wrong': nearest or None, 'wrong_value': wrong.get(nearest),
        'wrong_off': 100 * (last.measured / wrong[nearest] - 1) if nearest else None})
  return found


def residual_outcomes(rows: pd.DataFrame) -> dict[str, Outcome]:
  """One per activation: the largest relative distance from the prediction."""
  found = {}
  for activation in STACKS:
    own = [r for r in residual_summary(rows) if r['activation'] == activation]
    worst = max(abs(r['off']) for r in own) / 100
    missed = min(abs(r['wrong_off']) for r in own if r['wrong']) / 100
    found[f'residual_variance_{activation}'] = check_outcome(
        worst < TOLERANCE < missed, worst, f'a wrong prediction is off by at least {missed:.2g}')
  return found


def independence_outcome(rows: pd.DataFrame) -> Outcome:
  """LayerNorm's output for one example does not depend on its batch; BatchNorm's does."""
  own = rows[rows.phase == 'independence'].set_index(['arm', 'mode']).deviation
  still = own.drop(('batch', 'training'))
  return check_outcome(
      float(still.max()) < INDEPENDENT and own['batch', 'training'] > DEPENDENT,
      float(own['layer'].max()),
      f'batch norm in training {own["batch", "training"]:.2g}, at inference '
      f'{own["batch", "inference"]:.2g}')


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
  for budget in ('examples', 'steps'):
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
  for part, outcomes in (('invariances', invariance_outcomes),
                         ('fast_variance', variance_outcomes),
                         ('residual_variance', residual_outcomes)):
    if part in rows:
      found |= outcomes(rows[part])
  if 'batch_size' in rows:
    found['layer_ignores_the_batch'] = independence_outcome(rows['batch_size'])
    found |= accuracy_outcomes(rows['batch_size'], config)
  for claim in claims(config):
    found.setdefault(claim.id, Outcome(NOT_TESTABLE, None, None,
                                       None if claim.kind == 'check' else 0,
                                       'its part was not run'))
  tables, drawn = [], {}
  if 'invariances' in rows:
    own = rows['invariances']
    tables.append(shown.invariance_table(own, SAME, OTHER))
    drawn['invariances'] = lambda: shown.invariances(own, SAME, OTHER)
  if 'fast_variance' in rows:
    tables.append(shown.variance_table(rows['fast_variance'], FAR))
    drawn['fast_variance'] = lambda: shown.fast_variance(rows['fast_variance'], OFFSET)
  if 'residual_variance' in rows:
    stacks = rows['residual_variance']
    tables.append(shown.residual_table(residual_summary(stacks), BLOCKS, WIDTH))
    drawn['residual_variance'] = lambda: shown.residual_variance(stacks, TOLERANCE)
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
