"""The deterministic parts of normalization_basics: what is measured without training, and decided.

Each part is a function that computes rows and one that says of the rows whether its claims hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from launch.study import Given
from launch.study.claims import NOT_REPRODUCED, REPRODUCED, Outcome

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
# Blocks of attention and two matrices, measured beside the prediction without a bound; ReLU.
MIXED = {'blocks': 24, 'width': 128, 'heads': 4, 'tokens': 32}

ARMS = {'none': 'none', 'layer': 'pre:layer', 'batch': 'pre:batch'}
INDEPENDENT, DEPENDENT = 1e-6, 1e-2


def check_outcome(passed: bool, ours: float, note: str) -> Outcome:
  return Outcome(REPRODUCED if passed else NOT_REPRODUCED, ours, None, None, note)


def measure_invariances(given: Given) -> list[dict]:
  """Deviations of a normalized layer under each transformation, float64, eps = 0."""
  from model_lib.analysis.invariances import deviations
  del given
  specs = {name: f'{name}(eps=0)' if name in ('batch', 'layer', 'rms') else name
           for name in INVARIANT}
  return [{'part': 'invariances', 'norm': name, 'transformation': transformation,
           'deviation': value, 'invariant': int(transformation in INVARIANT[name])}
          for name, spec in specs.items() for transformation, value in deviations(spec).items()]


def _largest(values) -> float:
  """The maximum; nan if one is nan, so that no comparison with a limit holds."""
  return float(np.max(np.asarray(values, np.float64)))


def _smallest(values) -> float:
  """The minimum; nan if one is nan."""
  return float(np.min(np.asarray(values, np.float64)))


def invariance_outcomes(rows: pd.DataFrame) -> dict[str, Outcome]:
  """One per norm: the largest change under a yes."""
  plain = _smallest(rows[rows.norm == 'none'].deviation)
  found = {}
  for name, invariant in INVARIANT.items():
    if invariant:
      own = rows[rows.norm == name]
      yes = _largest(own[own.invariant == 1].deviation)
      no = _smallest(own[own.invariant == 0].deviation)
      found[f'invariances_{name}'] = check_outcome(
          yes < SAME and no > OTHER and plain > OTHER, yes,
          f'smallest change under a no {no:.2g}, without a norm {plain:.2g}')
  return found


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


def variance_outcomes(rows: pd.DataFrame) -> dict[str, Outcome]:
  """The one-pass variance fails on every draw, the two-pass one on none."""
  whole = rows[rows.percent.isna()]
  fast, exact = (whole[whole.method == m] for m in ('flax, one pass', 'two passes'))

  def away(own):
    return _largest(np.maximum(own.largest_std - 1, 1 - own.smallest_std))

  least = _smallest(fast[fast.offset == OFFSET].far_share)
  control, ours = away(fast[fast.offset == 0]), away(exact)
  return {'fast_variance_fails': check_outcome(
              least >= FAR_SHARE and control < NEAR, least,
              f'largest std {_largest(fast.largest_std):.3g}; at offset 0 no row is further than '
              f'{control:.2g} from 1'),
          'two_pass_variance_holds': check_outcome(
              ours < NEAR and least >= FAR_SHARE, ours, f'{len(exact)} draws of {ROWS} rows')}


def measure_residual_variance(given: Given, blocks: int, width: int, seeds: int) -> list[dict]:
  """Predicted and measured variances of the stream, by activation, placement and block.

  After post-norm the stream has variance 1 by construction: there, what enters the norm is taken.
  """
  from model_lib.analysis.residual_growth import residual_variance
  from model_lib.analysis.residual_measurement import measure_variance
  del given
  found = []
  stacks = [(f'{place}:layer(eps=0.0)', residual) for place, residual in PLACEMENTS.values()]
  for activation, gained in STACKS.items():
    every = measure_variance(stacks, activation, gained, blocks, width, seeds=seeds)
    for placement, stack, measured in zip(PLACEMENTS, stacks, every, strict=True):
      predicted = residual_variance(*stack, activation, blocks, (1, 2 if gained else 1))
      own = measured.normed if placement == 'post' else measured.stream
      found += [{'part': 'residual_variance', 'activation': activation, 'placement': placement,
                 'block': i + 1, 'predicted': float(predicted.sums[i]), 'measured': float(own[i])}
                for i in range(blocks)]
  return found


def measure_attention_blocks(given: Given, blocks: int, width: int, heads: int,
                             tokens: int) -> list[dict]:
  """Variances and token correlations in blocks with attention, by placement and sublayer.

  Beside the prediction stands that of a stack whose attention is taken for two more matrices, as
  if tokens were uncorrelated and attended to themselves alone.
  """
  from model_lib.analysis.residual_growth import attention_variance, residual_variance
  from model_lib.analysis.residual_measurement import measure_attention
  del given
  found, activation, gains = [], 'relu', (1, 2)
  stacks = [(f'{place}:layer(eps=0.0)', residual) for place, residual in PLACEMENTS.values()]
  for placement, stack, measured in zip(
      PLACEMENTS, stacks,
      measure_attention(stacks, activation, True, blocks, width, heads, tokens), strict=True):
    predicted = attention_variance(*stack, activation, blocks, tokens, width // heads, gains)
    tokenless = residual_variance(*stack, activation, blocks, gains, per_block=2)
    own = measured.normed if placement == 'post' else measured.stream
    found += [{'part': 'residual_variance', 'activation': activation, 'placement': placement,
               'block': i // 2 + 1, 'sublayer': ('attention', 'mlp')[i % 2],
               'predicted': float(predicted.sums[i]), 'measured': float(own[i]),
               'tokenless': float(tokenless.sums[i]),
               'predicted_correlation': float(predicted.correlation[i]),
               'correlation': float(measured.correlation[i])}
              for i in range(2 * blocks)]
  return found


def stacks_and_blocks(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
  """The rows of stacks of two matrices, and of blocks with attention (none in older records)."""
  if 'sublayer' not in rows:
    return rows, rows.iloc[:0]
  return rows[rows.sublayer.isna()], rows[rows.sublayer.notna()]


def attention_summary(rows: pd.DataFrame) -> list[dict]:
  """The two sublayers of the first, the middle and the last block of each placement."""
  if not len(rows):
    return []
  shown = rows[rows.block.isin([1, rows.block.max() // 2, rows.block.max()])]
  keys = ['placement', 'block', 'sublayer', 'predicted', 'measured', 'tokenless',
          'predicted_correlation', 'correlation']
  return [{**row, 'off': 100 * (row['measured'] / row['predicted'] - 1)}
          for row in shown[keys].to_dict('records')]


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


def residual_summary(rows: pd.DataFrame) -> list[dict]:
  """The last block of each stack, with the nearest wrong prediction."""
  found, (rows, _) = [], stacks_and_blocks(rows)
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
    worst = _largest([abs(r['off']) for r in own]) / 100
    missed = _smallest([abs(r['wrong_off']) for r in own if r['wrong']]) / 100
    found[f'residual_variance_{activation}'] = check_outcome(
        worst < TOLERANCE < missed, worst, f'a wrong prediction is off by at least {missed:.2g}')
  return found


def measure_independence(given: Given, widths: Sequence[int]) -> list[dict]:
  """How far the output of one example moves when the others of its batch change, at the start."""
  import jax
  import jax.numpy as jnp
  from model_lib import models
  from model_lib.training.population import compile_options
  del given
  # Keys of their own: with one key the example would stand among the others as well.
  one, others = (jax.random.normal(jax.random.key(i), shape)
                 for i, shape in ((0, (1, 784)), (2, (2, 31, 784))))
  found = []
  for arm, norm in ARMS.items():
    network = models.build('mlp', widths=list(widths), norm=norm)

    @functools.partial(jax.jit, compiler_options=compile_options())
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


def independence_outcome(rows: pd.DataFrame) -> Outcome:
  """LayerNorm's output for one example does not depend on its batch; BatchNorm's does."""
  own = rows[rows.phase == 'independence'].set_index(['arm', 'mode']).deviation
  still = own.drop(('batch', 'training'))
  return check_outcome(
      _largest(still) < INDEPENDENT and own['batch', 'training'] > DEPENDENT,
      _largest(own['layer']),
      f'batch norm in training {own["batch", "training"]:.2g}, at inference '
      f'{own["batch", "inference"]:.2g}')
