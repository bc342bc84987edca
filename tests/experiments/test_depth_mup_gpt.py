"""depth_mup, part gpt, without training: verdicts from made-up rows."""
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from experiments import depth_mup as study
from experiments.parts import gpt_width, sweeps
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from tests.experiments.played import played


@dataclasses.dataclass
class Models:
  """Bowls of language models, and powers of depth by which their streams move."""

  seeds: int = 3
  mup: float = 0.0  # octaves per doubling of width by which the best rate falls
  sp: float = 1.0
  edge: bool = False
  moves: tuple[float, float, float] = (1.0, 0.1, 0.1)  # sp, alpha 1/2, alpha 1
  exploded: float = 0.0  # loss of sp's largest rates, where it is not 0

  def config(self) -> study.Config:
    return config_lib.apply_preset(study.Config(), {'parts': ('gpt',), 'gpt.seeds': self.seeds})

  def rows(self) -> pd.DataFrame:
    own, rows = self.config().gpt, []
    grid = sweeps.octaves(own.lowest, own.rates)
    for seed in range(self.seeds):
      for width in own.dims:
        k = math.log2(width / own.dims[0])
        for row, falls in (('sp', self.sp), ('mup', self.mup)):
          at = grid[0] if self.edge and row == 'mup' else grid[7] - falls * k
          for octave in grid:
            loss = 1.0 + 0.1 * (octave - at) ** 2 + 0.01 * math.sin(7 * seed + 3 * octave)
            if row == 'sp' and self.exploded and octave > grid[9]:
              loss = self.exploded
            rows.append({'part': 'gpt', 'phase': 'transfer', 'family': row, 'width': width,
                         'octave': octave, 'seed': seed, 'last_loss': loss,
                         'diverged_step': -1})
      for name, power in zip(gpt_width.DEPTH_ROWS, self.moves, strict=True):
        for depth in own.check_depths:
          for step in (4, 8):  # what the step before did must not count
            rows.append({'part': 'gpt', 'phase': 'moves', 'family': name, 'depth': depth,
                         'place': 'stream end', 'step': step, 'seed': seed,
                         'value': (1 + 0.01 * seed) * depth ** (power if step == 8 else -3.0)})
            rows.append({**rows[-1], 'place': 'logits', 'value': 1.0})
    return pd.DataFrame(rows)

  def verdicts(self) -> dict[str, str]:
    return {k: v.verdict for k, v in gpt_width.outcomes(self.rows(), self.config()).items()}


def test_every_claim_has_an_outcome_and_passes_on_planted_rows():
  ids = {claim.id for claim in study.claims(Models().config())}
  assert Models().verdicts() == {claim: REPRODUCED for claim in ids}


@pytest.mark.parametrize('changes, failed', [
    ({'mup': 0.6, 'sp': 1.0}, {'G1'}),
    ({'sp': 0.0}, {'G2'}),
    ({'moves': (1.0, 0.1, 0.5)}, {'G3'}),
    ({'moves': (0.3, 0.1, 0.1)}, {'G3'})])
def test_a_claim_fails_where_its_number_does(changes, failed):
  verdicts = Models(**changes).verdicts()
  assert {k for k, v in verdicts.items() if v == NOT_REPRODUCED} == failed
  assert NOT_TESTABLE not in verdicts.values()


@pytest.mark.parametrize('changes, untestable', [
    ({'seeds': 2}, {'G1', 'G2', 'G3'}),
    ({'edge': True}, {'G1', 'G2'})])
def test_a_claim_is_not_testable_where_the_rows_cannot_carry_it(changes, untestable):
  verdicts = Models(**changes).verdicts()
  assert {k for k, v in verdicts.items() if v == NOT_TESTABLE} == untestable


def test_the_transferred_rate_is_run_where_the_large_one_lacks_it():
  """Widening moves the small one's grid alone; then only that one point is added."""
  config = Models().config()
  own, top = config.gpt, config.gpt.lowest + (config.gpt.rates - 1) / 2

  def loss(tags):
    small = tags['width'] == own.dims[0]
    at = top + 0.5 if small else -9.0 if tags['family'] == 'sp' else top
    return {'last_loss': 1.0 + 0.1 * (tags['octave'] - at) ** 2, 'diverged_step': -1}

  stages = played(gpt_width.cohorts(config), loss)
  assert {c.name for c in stages[1]} == {
      'gpt-sp-64-wider', *(f'gpt-mup-{dim}-wider' for dim in own.dims)}
  added, = stages[2]
  assert added.name == 'gpt-sp-512-transferred'
  assert [(m.tags['octave'], m.tags['seed']) for m in added.members] == [
      (top + 0.5, seed) for seed in range(own.seeds)]


@pytest.mark.parametrize('exploded', [1e9, math.inf])
def test_what_exploded_counts_as_guessing(exploded):
  """How far beyond guessing a run ended decides nothing."""
  world = Models(exploded=exploded)
  guess = sweeps.guessing(world.config().gpt.vocabulary)
  found = gpt_width.sweeps_of(world.rows(), guess)['sp', 64]
  np.testing.assert_allclose(found.losses[-2:], math.log(guess))
  assert found.minimum() == pytest.approx(-13 + 7 / 2, abs=0.1)
