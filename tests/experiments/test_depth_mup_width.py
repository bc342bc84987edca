"""depth_mup, part width, without training: verdicts from made-up rows, its measurements."""
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from experiments import depth_mup as study
from experiments.measurements import depth_mup as measured
from experiments.parts import sweeps, width
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from launch.study.preview import expected_cohorts


def resolved(**changes: object) -> study.Config:
  config = config_lib.apply_preset(study.Config(), study.PRESETS['cpu'])
  return config_lib.apply_preset(config, {k.replace('__', '.'): v for k, v in changes.items()})


# Verdicts.



@dataclasses.dataclass
class Wide:
  """Bowls of MLPs; log2 of width counts from the base width."""

  seeds: int = 3
  mup: float = 0.0  # octaves per doubling of width by which the best rate falls
  sp: float = 1.0
  edge: bool = False
  same: bool = True  # whether both are the same at the base width
  coupled: float = 0.125  # decay of the wide network over that of the base
  compensated: float = 1.0
  multiplier: float = 0.0  # octaves per factor 4 of depth by which the best a moves
  slopes: tuple[float, ...] = (-0.5, -0.25, 0.0)
  correct: float = 1e-16
  jitter: float = 0.01

  def config(self) -> study.Config:
    return resolved(width__seeds=self.seeds)

  def rows(self) -> pd.DataFrame:
    config, rows = self.config(), []
    own = config.width

    def run(phase, family, octave, seed, loss, **more):
      loss += self.jitter * math.sin(7 * seed + 3 * octave)
      rows.append({'part': 'width', 'phase': phase, 'family': family, 'octave': octave,
                   'seed': seed, 'last_loss': math.exp(loss), 'diverged_step': -1, **more})

    for seed in range(self.seeds):
      for name in own.optimizers:
        grid = sweeps.octaves(own.adam_lowest if name == 'adam' else own.sgd_lowest,
                                    own.rates)
        for octave in grid:
          for n in own.widths:
            k = math.log2(n / own.widths[0])
            for row, falls in (('sp', self.sp), ('mup', self.mup)):
              at = grid[0] if self.edge and row == 'mup' else grid[7] - falls * k
              loss = 0.3 * (octave - at) ** 2 - 2 - 0.1 * k
              if not self.same and row == 'sp':
                loss += 1e-6
              run('transfer', f'{name} {row}', octave, seed, loss, width=n)
      for n in own.decay_widths:
        for form in ('coupled', 'compensated', 'independent'):
          for octave in sweeps.octaves(own.adam_lowest, own.rates):
            run('decay', form, octave, seed, 0.3 * (octave + 9) ** 2 - 2, width=n)
            kept = {'coupled': self.coupled, 'compensated': self.compensated,
                    'independent': 1.0}[form]
            rows.append({'part': 'width', 'phase': 'kept', 'family': form, 'width': n,
                         'octave': octave, 'seed': seed, 'measure': 'decay',
                         'value': 1e-3 * (kept if n > own.widths[0] else 1.0)})
      for L in own.multiplier_depths:
        for octave in sweeps.octaves(own.multiplier_lowest, own.multipliers):
          at = self.multiplier * math.log2(L / 16) / 2
          run('multiplier', 'depth_mup', octave, seed, 0.6 * (octave - at) ** 2 - 2, depth=L)
      for L in (2, 8, 32):
        for alpha, slope in zip((0.5, 0.75, 1.0), self.slopes):
          rows.append({'part': 'width', 'phase': 'second', 'measure': 'share', 'alpha': alpha,
                       'depth': L, 'seed': seed, 'value': 0.1 * L ** slope * (1 + 0.01 * seed)})
        for form, value in (('correct', self.correct), ('notebook', 1e-5)):
          rows.append({'part': 'width', 'phase': 'second', 'measure': form, 'alpha': 0.5,
                       'depth': L, 'seed': seed, 'value': value})
    return pd.DataFrame(rows)

  def verdicts(self) -> dict[str, str]:
    return {k: v.verdict for k, v in width.outcomes(self.rows(), self.config()).items()}


def test_every_width_claim_has_an_outcome_and_passes_on_planted_rows():
  ids = {c.id for c in study.claims(dataclasses.replace(study.Config(), parts=('width',)))}
  verdicts = Wide(correct=1e-6).verdicts()
  assert set(verdicts) == ids
  assert {k for k, v in verdicts.items() if v != REPRODUCED} == set()


@pytest.mark.parametrize('changes, failed', [
    ({'mup': 0.5, 'sp': 1.0}, {'W1', 'W3'}),
    ({'sp': 0.0}, {'W2', 'W4', 'W5'}),  # the control of W5: nothing differs at any width
    ({'same': False}, {'W5'}),
    ({'coupled': 0.9}, {'decay_coupled_vanishes'}),
    ({'compensated': 0.5}, {'decay_coupled_vanishes'}),
    ({'multiplier': 1.0}, {'multiplier_transfers'}),
    ({'slopes': (-0.5, -0.4, 0.0)}, {'second_order_share'}),
    ({'correct': 1e-16}, {'linearization_published'})])
def test_a_width_claim_fails_where_its_number_does(changes, failed):
  verdicts = Wide(**{'correct': 1e-6, **changes}).verdicts()
  assert {k for k, v in verdicts.items() if v == NOT_REPRODUCED} == failed
  assert NOT_TESTABLE not in verdicts.values()


@pytest.mark.parametrize('changes, untestable', [
    ({'seeds': 2}, {'W1', 'W2', 'W3', 'W4', 'decay_coupled_vanishes', 'multiplier_transfers',
                    'second_order_share'}),
    ({'edge': True}, {'W1', 'W2', 'W3', 'W4'})])
def test_a_width_claim_is_not_testable_where_the_rows_cannot_carry_it(changes, untestable):
  verdicts = Wide(**changes).verdicts()
  assert {k for k, v in verdicts.items() if v == NOT_TESTABLE} == untestable


def test_forms_of_the_decay_agree_at_the_rate_in_the_middle():
  asked = {item.name: item for stage in expected_cohorts(study.STUDY, resolved())
           for item in stage}
  octave = -12.0 + 6 / 2
  wanted = 2 ** octave * 0.5
  for form in ('coupled', 'compensated', 'independent'):
    m = next(m for m in asked[f'width-decay-{form}-64'].members if m.tags['octave'] == octave)
    rate = 1.0 if form == 'independent' else m.hp['learning_rate']
    assert rate * m.hp['weight_decay'] == wanted
    assert asked[f'width-decay-{form}-64'].optimizer.decay == form


# Measurements.


def test_what_is_kept_of_a_kernel_is_its_decay():
  rng = np.random.default_rng(0)
  first = rng.normal(size=(3, 30, 30))
  orthogonal = rng.normal(size=(3, 30, 30))
  orthogonal -= first * ((first * orthogonal).sum((1, 2), keepdims=True)
                         / (first ** 2).sum((1, 2), keepdims=True))
  learned = 1.2  # what training does to the share
  factors = learned * np.array([(1 - 0.01) ** 50, 1.0, 1.0])
  last = first * factors[:, None, None] + orthogonal

  @dataclasses.dataclass
  class Trained:
    kernel: np.ndarray
    rows = [{'family': family, 'width': 30, 'octave': -8.0, 'seed': 0}
            for family in ('coupled', 'independent', 'none')]

    @property
    def variables(self):
      return {'params': {'hidden_1': {'kernel': self.kernel}}}

  given = dataclasses.make_dataclass('Given', ['trained'])(
      lambda name, step: Trained(first if step == 1 else last))
  found = {row['family']: row['value']
           for row in measured.measure_kept(given, ['x'], 'none', 'hidden_1', 50)}
  assert found == pytest.approx({'coupled': 0.01005, 'independent': 0.0}, abs=1e-4)
