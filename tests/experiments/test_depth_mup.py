"""depth_mup without training: its cohorts, its verdicts from made-up rows, its refusals."""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import depth_mup as study
from experiments.parts import depth, depth_cohorts, depth_families, sweeps, width_cohorts
from launch.study import Measurement
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from launch.study.preview import expected_cohorts
from model_lib.errors import UserError
from tests.experiments.played import played

GUESS = math.log(10)


def resolved(preset: str = 'cpu', **changes: object) -> study.Config:
  config = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(config, {k.replace('__', '.'): v for k, v in changes.items()})


def cohorts(config: study.Config) -> dict[str, Any]:
  return {item.name: item for asked in expected_cohorts(study.STUDY, config) for item in asked}


# Sweeps.


def made(losses: np.ndarray, octaves=None) -> sweeps.Sweep:
  losses = np.asarray(losses, float)
  octaves = np.arange(len(losses)) / 2 - 10 if octaves is None else np.asarray(octaves, float)
  return sweeps.Sweep(octaves, np.arange(losses.shape[1]), losses)


def test_the_minimum_of_a_parabola_is_found_between_the_points():
  octaves = np.arange(12) / 2 - 10.5
  for at in (-8.13, -7.5, -9.9):
    found = made((0.7 * (octaves - at) ** 2 - 3)[:, None] + [[0, 0.5, -0.5]], octaves)
    assert found.minimum() == pytest.approx(at, abs=1e-9)
    assert not found.at_edge
  falling = made(-octaves[:, None] + [[0.0, 0.0]], octaves)
  assert falling.at_edge and falling.minimum() == octaves[-1]
  assert sweeps.widened(falling, 2) == [-4.5, -4.0]
  assert sweeps.widened(made(octaves[:, None], octaves), 2) == [-11.5, -11.0]
  assert sweeps.widened(found, 2) == []


def test_regret_is_against_the_best_mean_and_seed_by_seed():
  found = made([[1.0, 3.0], [0.0, 0.0], [-1.0, 2.0]])
  assert found.best == 1
  assert found.regret(-10.0).tolist() == [1.0, 3.0]
  assert found.regret(-9.0).tolist() == [-1.0, 2.0]
  assert found.regret(-8.0) is None


def test_a_run_that_exploded_counts_as_guessing():
  rows = pd.DataFrame({'octave': [0, 0, 1, 1, 2, 2], 'seed': [0, 1] * 3,
                       'last_loss': [1.0, 50.0, np.nan, 0.0, 2.0, 0.5],
                       'diverged_step': [-1, -1, 7, -1, -1, 3]})
  found = sweeps.sweep(rows, GUESS)
  cap = math.log(GUESS)
  expected = [[0.0, cap], [cap, math.log(sweeps.LEAST)], [math.log(2), cap]]
  np.testing.assert_allclose(found.losses, expected)
  with pytest.raises(ValueError, match='same seeds'):
    sweeps.sweep(rows.iloc[1:], GUESS)


# The design.


def test_families_differ_in_the_factors_of_their_blocks_alone():
  config = resolved()
  asked = cohorts(config)
  deepest, a = 64, 1.0
  members = {}
  for name in config.depth.families:
    cohort = asked[f'depth-{name}-{deepest}']
    assert cohort.optimizer.trained == ('stack/',) and cohort.optimizer.eps == 1e-12
    assert cohort.last_steps == 63 and cohort.steps == 500
    assert cohort.model.base == {'width': 64, 'depth': 4}
    assert cohort.model.delta == {'width': 128, 'depth': 4}
    members[name] = {(m.tags['octave'], m.tags['seed']): m for m in cohort.members}
  at = (-9.0, 2)
  for name, scale, row in (('depth_mup', 1 / 4, 'depth_mup(base_depth=4)'),
                           ('ode', 1 / 16, 'ode(base_depth=4)'), ('sp', 1.0, 'sp')):
    m = members[name][at]
    assert m.hp['branch_scale'] == m.tags['a'] * scale and m.hp['learning_rate'] == 2 ** -9.0
    assert asked[f'depth-{name}-{deepest}'].model.arguments['parametrization'] == row
    assert (m.seed, m.data_seed, m.labels) == (
        members['depth_mup'][at].seed, members['depth_mup'][at].data_seed, 3)
    assert m.hp['readout_scale'] == 0.5 and m.hp['activation_scale'] == math.sqrt(2)
  del a
  seeds = {m.seed for c in asked.values() if not isinstance(c, Measurement) for m in c.members}
  assert len(seeds) == config.depth.seeds + config.depth.diversity_seeds + config.width.seeds
  other = cohorts(resolved(seed=1))
  assert not seeds & {m.seed for c in other.values() if not isinstance(c, Measurement)
                      for m in c.members}


def test_the_gain_gives_abs_the_variance_of_relu():
  z = np.random.default_rng(0).normal(size=2_000_000)
  relu, own = (depth_families.FUNCTIONS[name].scale for name in ('relu', 'abs_matched'))
  assert np.var(own * np.abs(z)) == pytest.approx(np.var(relu * np.maximum(z, 0)), rel=5e-3)
  assert depth_families.FUNCTIONS['abs'].scale == 1.0 != pytest.approx(own, rel=0.1)


def planted_cohorts(config: study.Config, bowl) -> list[list]:
  """The stages of the depth part where bowl(tags) is the log-loss of a run."""
  return played(depth_cohorts.cohorts(config), lambda tags: {
      'last_loss': math.exp(bowl(tags)), 'diverged_step': -1})


def test_the_smallest_a_that_is_as_good_is_kept_and_edges_are_widened():
  config = resolved(depth__families=('depth_mup', 'ode'))

  def bowl(tags, gap=0.1):
    loss = 0.5 * (tags['octave'] + 8) ** 2 - 3
    if tags['phase'] == 'tune':
      return loss - {0.5: -1.0, 1.0: 0.0, 2.0: 0.0, 4.0: gap}[tags['a']]
    if tags['family'] == 'ode' and tags['depth'] == 32:
      return -tags['octave'] - 12
    return loss

  stages = planted_cohorts(config, bowl)
  assert {m.tags['a'] for c in stages[1] for m in c.members} == {1.0}
  assert [c.name for c in stages[2]] == ['depth-ode-32-wider']
  assert sorted({m.tags['octave'] for m in stages[2][0].members}) == [-4.5, -4.0, -3.5, -3.0]
  large = planted_cohorts(config, lambda tags: bowl(tags, 0.2))
  assert {m.tags['a'] for c in large[1] for m in c.members} == {4.0}
  # The controls: the same numbers under another name.
  retuned, relabelled = stages[3][:2]
  assert {m.tags['octave'] for m in retuned.members} == {-10.5, -10.0, -9.5}
  assert {m.hp['branch_scale'] for m in retuned.members} == {1 / 4}
  assert retuned.optimizer.eps == 4e-12
  assert {m.tags['octave'] for m in relabelled.members} == {-10.5, -10.0, -9.5}
  assert relabelled.model.arguments['parametrization'] == 'tp6(gamma=0, base_depth=4)'


def test_presets_can_be_planned():
  for preset in study.PRESETS:
    config = resolved(preset)
    study.check(config)
    assert cohorts(config)


@pytest.mark.parametrize('changes, line', [
    ({'depth__families': ('ode',)}, 'config.depth.families: depth_mup must be'),
    ({'depth__depths': (4, 8)}, 'config.depth.depths: at least three'),
    ({'depth__depths': (4, 8, 24)}, 'config.depth.depths: at least three'),
    ({'depth__multipliers': (1.0, 0.5)}, 'config.depth.multipliers: must ascend'),
    ({'depth__diversity_depths': (64, 100)}, 'config.depth.diversity_depths: must be multiples'),
    ({'depth__gradient_functions': ('gleu',)}, 'gleu'),
    ({'depth__gradient_functions': ('softmax',)}, 'softmax is not a pointwise function'),
    ({'depth__gradient_functions': ('binary_step',)}, 'binary_step is not a pointwise function'),
    ({'depth__gradient_functions': ('relu', 'relu')}, 'config.depth.gradient_functions: must not'),
    ({'parts': ('depth', 'depth')}, 'config.parts: must not repeat'),
    ({'width__optimizers': ('adam', 'adam')}, 'config.width.optimizers: must not repeat'),
    ({'width__activation': 'softmax'}, 'softmax'),
    ({'width__multiplier_depths': (4, 6)}, 'config.width.multiplier_depths: the last must be four'),
    ({'width__widths': (64,)}, 'config.width.widths: at least two'),
    ({'width__decay_widths': (128, 256)}, 'config.width.decay_widths: must begin at'),
    ({'width__activation': 'reluu'}, 'reluu')])
def test_what_cannot_be_compared_is_refused_in_one_line(changes, line):
  with pytest.raises(UserError, match=line) as error:
    study.check(resolved(**changes))
  assert '\n' not in str(error.value)


def test_every_multiplier_is_widened_before_one_is_chosen():
  config = resolved(depth__families=('depth_mup', 'ode'))

  def bowl(tags):
    edge = tags['phase'] == 'tune' and tags['a'] == 4.0
    return 0.5 * (tags['octave'] + (11.5 if edge else 8)) ** 2 - (4 if edge else 3)

  stages = planted_cohorts(config, bowl)
  assert [c.name for c in stages[1]] == ['depth-tune-relu-wider']
  assert sorted({(m.tags['a'], m.tags['octave']) for m in stages[1][0].members}) == [
      (4.0, -12.5), (4.0, -12.0), (4.0, -11.5), (4.0, -11.0)]
  assert {m.tags['a'] for c in stages[2] for m in c.members} == {4.0}


def test_the_multiplier_of_the_width_part_is_widened():
  config = resolved(width__optimizers=('sgd',), width__decay=0.0)

  def loss(tags):
    at = {'transfer': -2.0, 'multiplier': 3.5 if tags.get('depth') == 16 else 0.0}[tags['phase']]
    return {'last_loss': math.exp(0.5 * (tags['octave'] - at) ** 2 - 3), 'diverged_step': -1}

  stages = played(width_cohorts.cohorts(config), loss)
  assert [c.name for c in stages[2]] == ['width-multiplier-16-wider']
  assert sorted({m.tags['octave'] for m in stages[2][0].members}) == [3.0, 3.5, 4.0, 4.5]
  assert {m.hp['branch_scale'] for m in stages[2][0].members} == {
      2.0 ** octave / 2 for octave in (3.0, 3.5, 4.0, 4.5)}


def test_the_largest_width_runs_at_the_rate_of_the_smallest():
  config = resolved(width__optimizers=('adam',), width__decay=0.0, width__multiplied=False)
  top = config.width.adam_lowest + (config.width.rates - 1) / 2

  def loss(tags):
    at = top + 1 if tags['width'] == 64 else -10.0
    return {'last_loss': math.exp(0.3 * (tags['octave'] - at) ** 2 - 3), 'diverged_step': -1}

  stages = played(width_cohorts.cohorts(config), loss)
  assert [c.name for c in stages[2]] == [f'width-adam-{row}-512-transferred' for row in ('sp', 'mup')]
  assert {m.tags['octave'] for c in stages[2] for m in c.members} == {top + 1}


def test_the_map_of_the_paper_has_the_window_of_its_figure():
  """log2 a from .5 to 13.5, log2(rate / 1e-3) from -7 to -.5 (Fig. 7)."""
  members = cohorts(resolved('paper'))['depth-map-2'].members
  a, octaves = ({m.tags[key] for m in members} for key in ('a', 'octave'))
  assert [math.log2(f(a)) for f in (min, max)] == pytest.approx([0.5, 13.5])
  assert [f(octaves) - math.log2(1e-3) for f in (min, max)] == pytest.approx([-7, -0.5], abs=0.05)


def test_decay_is_half_a_nat_in_every_preset():
  """At the rate where all its forms are the same, over all steps."""
  for preset in ('cpu', 'gpu', 'paper'):
    own = resolved(preset).width
    total = own.decay * 2.0 ** width_cohorts.decay_octave(own) * own.steps
    assert total == pytest.approx(0.49, abs=0.01), preset


# Verdicts of the depth part.


@dataclasses.dataclass
class Deep:
  """Bowls whose minima lie where the fields say; log2 of depth counts from the base depth."""

  seeds: int = 4
  drift: float = 0.0  # octaves per doubling of depth, of depth-muP
  falls: float = 0.5  # of the lowest log-loss per doubling, of depth-muP
  ode: float = 0.4  # ODE above depth-muP at the same rate, at the largest depth
  abs: float = -0.5  # abs beside ReLU
  two: float = 0.4  # blocks of two matrices above blocks of one
  learns: float = 3.0  # loss of SP's best deep run
  edge: bool = False
  apart: float = 0.0  # of the controls
  jitter: float = 0.01
  depths: tuple[int, ...] = (4, 8, 16, 32, 64)
  features: dict[str, float] = dataclasses.field(default_factory=lambda: {
      'depth_mup': 0.52, 'abs': 0.54, 'ode': 0.85})
  walk: float = 0.5
  moved: float = 0.5
  cosine: float = 0.01
  plain: float = 0.1
  turns: tuple[float, float] = (-2.0, -1.0)
  wiggle: float = 0.02
  train_io: bool = False
  silent: float | None = None  # log-loss of depth-muP at the largest depth
  centre: float = -8.0  # octave of the lowest log-losses

  def config(self) -> study.Config:
    return resolved(depth__seeds=self.seeds, depth__depths=self.depths,
                    depth__train_io=self.train_io,
                    depth__families=('depth_mup', 'ode', 'sp', 'abs_matched', *depth.PAIRS[1]))

  def rows(self) -> pd.DataFrame:
    config, rows = self.config(), []

    def run(phase, family, L, a, octave, seed, loss):
      loss += self.jitter * math.sin(7 * seed + 3 * octave)
      rows.append({'part': 'depth', 'phase': phase, 'family': family, 'depth': L, 'a': a,
                   'octave': octave, 'seed': seed, 'last_loss': math.exp(loss),
                   'diverged_step': -1})

    def bowl(octave, L):
      k = math.log2(L / self.depths[0])
      at = -10.5 if self.edge and L == self.depths[-1] else self.centre + self.drift * k
      return 0.6 * (octave - at) ** 2 - 1 - self.falls * k

    for seed in range(self.seeds):
      for octave in depth_cohorts.grid(config.depth, 'depth_mup'):
        for a in config.depth.multipliers:
          for name in ('relu', 'abs_matched', *depth.PAIRS[1]):
            worse = 0.0 if a == 1.0 else 1.0
            run('tune', name, self.depths[0], a, octave, seed, bowl(octave, self.depths[0]) + worse)
        for L in self.depths[1:]:
          loss = bowl(octave, L)
          if self.silent is not None and L == self.depths[-1]:
            loss = self.silent
          run('sweep', 'depth_mup', L, 1.0, octave, seed, loss)
          run('sweep', 'ode', L, 1.0, octave, seed, loss + self.ode + self.wiggle * seed)
          run('sweep', 'abs_matched', L, 1.0, octave, seed, loss + self.abs)
          run('sweep', 'abs_normed', L, 1.0, octave, seed, loss)
          run('sweep', 'abs_normed_two', L, 1.0, octave, seed,
              loss - self.falls + self.two)
          if L == self.depths[-1]:
            half = math.log2(L / self.depths[0]) / 2
            for phase in ('retuned', 'relabelled'):
              run(phase, 'x', L, 1.0, octave, seed, loss)
              rows[-1] |= {'octave': octave - half,
                           'last_loss': rows[-1]['last_loss'] * (1 + self.apart)}
      for L in self.depths[1:]:
        for octave in depth_cohorts.grid(config.depth, 'sp'):
          run('sweep', 'sp', L, 1.0, octave, seed, math.log(self.learns if L >= 32 else 0.1))
    return pd.DataFrame([*rows, *self.others()])

  def others(self) -> list[dict[str, Any]]:
    rows = []

    def add(phase, measure, value, **more):
      rows.append({'part': 'depth', 'phase': phase, 'measure': measure, 'value': value,
                   'diverged_step': np.nan, **more})

    for name in ('sp', 'depth_mup'):
      add('start', 'loss', 5.0, family=name, depth=64, a=1.0, seed=0)
    for seed in range(3):
      for name, slope in self.features.items():
        for step in (0, 8, 100):
          more = {'family': name, 'depth': 256, 'step': step, 'seed': seed}
          if not step:
            add('features', 'slope_stream', self.walk, **more)
            continue
          for what in ('stream', 'change'):
            add('features', f'slope_{what}', slope + 1e-3 * seed, **more)
          add('features', 'moved', self.moved, **more)
    for name, predicted in (('relu', 0.5), ('abs', 0.0), ('tanh', 0.79)):
      for prenorm, off in ((1, self.cosine), (0, self.plain)):
        add('gradients', None, predicted + off, activation=name, prenorm=prenorm,
            predicted=predicted)
    for L, slope in zip((2, 64), self.turns):
      vertical = math.isinf(slope)
      for i in range(-3, 4):
        for j in range(-3, 4):
          # A valley along log2 a = slope * octave through the middle.
          off = abs(j) if vertical else abs(i - slope * j) / math.hypot(1, slope)
          rows.append({'part': 'depth', 'phase': 'map', 'family': 'two', 'depth': L,
                       'a': 2.0 ** i, 'octave': -8.0 + j, 'seed': 0, 'diverged_step': -1,
                       'last_loss': math.exp(off - 2)})
    return rows

  def outcomes(self) -> dict[str, Any]:
    return depth.outcomes(self.rows(), self.config())

  def verdicts(self) -> dict[str, str]:
    return {k: v.verdict for k, v in self.outcomes().items()}


def test_every_depth_claim_has_an_outcome_and_passes_on_planted_rows():
  config = Deep().config()
  ids = {c.id for c in study.claims(dataclasses.replace(config, parts=('depth',)))}
  verdicts = Deep().verdicts()
  assert set(verdicts) == ids
  assert {k for k, v in verdicts.items() if v != REPRODUCED} == set()


@pytest.mark.parametrize('changes, failed', [
    ({'drift': -0.5}, {'P1a', 'P1b'}),  # then (1/2, 0) would transfer worse, and depth-muP fails
    ({'drift': 0.5}, {'P1a', 'P1b'}),
    ({'falls': 0.1}, {'P2'}),
    ({'falls': -0.1}, {'P2'}),
    ({'ode': 0.2}, {'P3'}),
    ({'ode': 0.4, 'wiggle': 0.8}, {'P3'}),
    ({'abs': -0.1}, {'P4'}),
    ({'two': -0.4}, {'one_matrix_better'}),
    ({'two': 0.0}, {'one_matrix_better'}),
    ({'learns': 2.0}, {'P5'}),
    ({'apart': 1e-7}, {'ode_retuned', 'relabelling_exact'}),
    ({'features': {'depth_mup': 0.65, 'abs': 0.54, 'ode': 0.9}},
     {'features_diverse', 'changes_diverse'}),
    ({'features': {'depth_mup': 0.5, 'abs': 0.65, 'ode': 0.9}},
     {'features_diverse', 'changes_diverse'}),
    ({'features': {'depth_mup': 0.52, 'abs': 0.52, 'ode': 0.65}},
     {'features_diverse', 'changes_diverse'}),
    ({'features': {'depth_mup': 0.59, 'abs': 0.59, 'ode': 0.75}},
     {'features_diverse', 'changes_diverse'}),
    ({'walk': 0.56}, {'features_diverse', 'changes_diverse'}),
    ({'cosine': 0.04}, {'gradients_predicted'}),
    ({'plain': 0.01}, {'gradients_predicted'}),  # a control that does not miss
    ({'turns': (-1.2, -1.0)}, {'valley_turns'}),
    ({'turns': (-2.0, -2.0)}, {'valley_turns'}),
    ({'turns': (-2.0, 3.0)}, {'valley_turns'})])
def test_a_depth_claim_fails_where_its_number_does(changes, failed):
  verdicts = Deep(**changes).verdicts()
  assert {k for k, v in verdicts.items() if v == NOT_REPRODUCED} == failed
  assert NOT_TESTABLE not in verdicts.values()


@pytest.mark.parametrize('changes, untestable', [
    ({'seeds': 3}, {'P1a', 'P1b'}),
    ({'seeds': 2}, {'P1a', 'P1b', 'P2', 'P3', 'P4', 'one_matrix_better'}),
    ({'edge': True}, {'P1a', 'P1b', 'P2', 'P4', 'one_matrix_better'}),
    ({'moved': 0.2}, {'features_diverse', 'changes_diverse'}),
    ({'turns': (-2.0, math.inf)}, {'valley_turns'}),
    ({'train_io': True}, {'P1a', 'P1b', 'ode_retuned', 'relabelling_exact'}),
    ({'depths': (4, 8, 16, 32)}, {'ode_retuned', 'relabelling_exact'}),
    ({'centre': -5.5}, {'P1a'})])
def test_a_depth_claim_is_not_testable_where_the_rows_cannot_carry_it(changes, untestable):
  verdicts = Deep(**changes).verdicts()
  assert {k for k, v in verdicts.items() if v == NOT_TESTABLE} == untestable
  assert verdicts['P6'] == (NOT_REPRODUCED if 'edge' in changes else REPRODUCED)


def test_the_failure_of_sp_is_not_testable_where_nothing_learned():
  """Without a family that learns at these depths the control is idle."""
  outcome = Deep(silent=math.log(GUESS)).outcomes()['P5']
  assert outcome.verdict == NOT_TESTABLE and 'did not learn at L=64' in outcome.note


def test_under_train_io_nothing_is_computed_from_depth_mup():
  found = {trained: depth.Found(Deep(train_io=trained).rows(), Deep(train_io=trained).config())
           for trained in (False, True)}
  assert 'half_zero' in found[False].shown and 'half_zero' not in found[True].shown


def test_the_interval_of_a_regret_chooses_both_rates_anew():
  """Over fixed ones it would be a single 0 here, where the means agree on a place."""
  first = made([[0.0, 0.9], [0.4, 0.4], [1.0, 0.0]])  # by the mean the second, by seeds the others
  last = made([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
  found = sweeps.mean_regret(first, last)
  assert (first.best, last.best) == (1, 1)
  assert found.mean == 0 and (found.low, found.high) == (0.0, 1.0) and found.n == 2
  assert sweeps.mean_regret(first, last, 0.5).mean == 1.0
  assert math.isnan(sweeps.mean_regret(first, last, 1.0).mean)


def test_half_zero_is_depth_mup_relabelled():
  """Its tuned rate falls by half an octave per doubling; its regret is that of a shifted rate."""
  world = Deep(jitter=0.0)
  own = depth.Found(world.rows(), world.config())
  assert own.exponent().mean == pytest.approx(0.5, abs=1e-6)
  assert own.regret('depth_mup', 16, 64).tolist() == [0.0] * 4
  assert own.regret('half_zero', 16, 64) == pytest.approx(0.6, abs=1e-9)  # one octave beside -8
  assert own.regret('half_zero', 4, 64) == pytest.approx(2.4, abs=1e-9)
