"""The activation search without any training: its cohorts and its report, from made-up rows."""
from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
import dataclasses
import json
import math
import zlib

import numpy as np
import pandas as pd
import pytest

from experiments import activation_search as study
from experiments.parts import comparison
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, evaluate
from launch.study.study import Run
from model_lib.activations import get_activation
from model_lib.errors import UserError
from model_lib.models.activation_layer import consumer_gains

FEW = ('relu', 'identity', 'gelu', 'crrelu')
OUTSIDE = 2.0  # nats added to the validation loss of a rate that must not be chosen


def resolved(preset: str = 'smoke', **changes: object) -> study.Config:
  """The config of a preset with changes, `__` for the dots."""
  config = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(
      config, {name.replace('__', '.'): value for name, value in changes.items()})


def small(**changes: object) -> study.Config:
  return resolved(**{'mlp__activations': FEW, 'mlp__selection_seeds': 2, 'mlp__fresh_seeds': 6,
                     **changes})


def noise(*key: object) -> float:
  """A number from N(0, 1) that belongs to the key."""
  return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal())


@dataclasses.dataclass
class World:
  """What the runs of a made-up study find.

  Attributes:
    best: (activation, copy) -> factor with the lowest validation loss; 1 where none is given.
    effect: activation, or (activation, copy) -> nats added to the test loss.
    guessed: test accuracy on shuffled labels.
    change: changes the finished rows of a stage in their place.
  """

  best: Mapping[tuple[str, int], float] = dataclasses.field(default_factory=dict)
  effect: Mapping[object, float] = dataclasses.field(default_factory=dict)
  level: float = 0.2
  guessed: float = 0.1
  change: Callable[[pd.DataFrame], None] = lambda rows: None

  def row(self, cohort, member) -> dict:
    tags = member.tags
    arm, copy, seed = tags['activation'], tags['copy'], tags['seed']
    away = math.log(tags['lr_factor'] / self.best.get((arm, copy), 1.0))
    added = self.effect.get(arm, 0.0) if copy == 0 else self.effect.get((arm, copy), 0.0)
    return {**tags, 'run': cohort.name, 'steps': cohort.steps, 'diverged_step': -1,
            'test_images': 270, 'val_loss': 0.1 + 0.1 * away**2,
            'test_loss': self.level + added + 0.05 * noise(seed) + 0.002 * noise(arm, copy, seed),
            'test_accuracy': self.guessed if member.labels else 0.95 + 0.01 * noise(arm, seed),
            'step_us': 10.0, 'cost_ratio': 1.0}


@dataclasses.dataclass
class Played:
  """The stages of cohorts that a study asked for, their members and rows."""

  config: study.Config
  stages: list
  rows: pd.DataFrame

  @property
  def members(self) -> list:
    return [m for stage in self.stages for cohort in stage for m in cohort.members]

  def factors(self, phase: str, activation: str, copy: int = 0) -> list[float]:
    """Factors that were run in a phase, ascending."""
    runs = [m.tags for m in self.members if m.tags['phase'] == phase]
    return sorted({tags['lr_factor'] for tags in runs
                   if (tags['activation'], tags['copy']) == (activation, copy)})

  def report(self, dataset: str = 'digits', shares: tuple[float, ...] = (0.1,) * 10):
    return study.report(Run(self.config, self.rows, lambda: None, dataset, class_shares=shares))

  def outcomes(self):
    """By claim; `evaluate` has found one for each claim and no other."""
    verdicts = evaluate(study.claims(self.config), self.report().outcomes)
    return {v.claim.id: v.outcome for v in verdicts}


def play(config: study.Config, world: World = World()) -> Played:
  """Drives the cohorts with the world's rows, as the runner does with real ones."""
  generator, answer, stages, rows = study.cohorts(config), None, [], []
  while True:
    try:
      stage = list(generator.send(answer))
    except StopIteration:
      return Played(config, stages, pd.concat(rows, ignore_index=True))
    stages.append(stage)
    answer = pd.DataFrame([world.row(c, m) for c in stage for m in c.members])
    world.change(answer)
    rows.append(answer)


@pytest.fixture(scope='module')
def full() -> Played:
  """The preset `cpu`: every activation, both models, some arms beyond the edge."""
  config = resolved('cpu', parts=('comparison',))
  return play(config, World(best={('relu', 0): 3.0, ('tanh', 0): 1 / 3, ('relu', 5): 9.0,
                                           ('swiglu', 0): 3.0}))


# The cohorts.


def test_the_tags_of_every_run_are_unique(full):
  tags = [json.dumps(m.tags, sort_keys=True) for m in full.members]
  assert len(set(tags)) == len(tags) > 5000
  names = [cohort.name for stage in full.stages for cohort in stage]
  assert len(set(names)) == len(names)


def test_runs_of_equal_seed_are_paired_and_copies_are_not(full):
  drawn = collections.defaultdict(set)
  for m in full.members:
    assert m.seed == m.data_seed
    fresh = m.tags['phase'] in ('fresh', 'null_fresh', 'control')
    drawn[fresh, m.tags['copy'], m.tags['seed']].add((m.seed, m.split))
  # One seed for all activations, rates, models and labels, and another for any other key.
  assert all(len(seeds) == 1 for seeds in drawn.values())
  numbers = [seed for ((seed, _),) in drawn.values()]
  assert len(set(numbers)) == len(numbers)
  copies = {copy for _, copy, _ in drawn}
  assert copies == set(range(len(full.config.mlp.activations) + 1))


def test_fresh_seeds_take_no_part_in_the_selection(full):
  seeds = collections.defaultdict(set)
  for m in full.members:
    seeds[m.tags['phase']].add(m.seed)
  selected = seeds['selection'] | seeds['null_selection']
  assert not selected & (seeds['fresh'] | seeds['null_fresh'] | seeds['control'])
  assert not (seeds['selection'] | seeds['fresh']) & (seeds['null_selection'] | seeds['null_fresh'])
  assert seeds['control'] < seeds['fresh']  # paired with ReLU on its true labels


def test_the_studys_seed_changes_every_seed_and_all_fit_in_32_bits():
  seeds = {seed: {m.seed for m in play(small(seed=seed)).members} for seed in (0, 1, 40)}
  assert not seeds[0] & seeds[1] and not seeds[0] & seeds[40] and not seeds[1] & seeds[40]
  last = comparison.seed_of(small(seed=40), 1, comparison.MOST_COPIES, comparison.MOST_SEEDS - 1)
  assert max(seeds[40]) <= last < 2**32
  assert comparison.seed_of(small(), 0, 0, comparison.MOST_SEEDS - 1) < comparison.seed_of(small(), 0, 1, 0)
  assert comparison.seed_of(small(), 0, comparison.MOST_COPIES, comparison.MOST_SEEDS - 1) < comparison.seed_of(
      small(), 1, 0, 0)
  for field, limit in (('fresh_seeds', comparison.MOST_SEEDS), ('null_copies', comparison.MOST_COPIES)):
    with pytest.raises(UserError, match=field):
      small(**{f'mlp__{field}': limit + 1})


def test_splits_vary_with_the_seed(full):
  by_arm = collections.defaultdict(set)
  for m in full.members:
    assert m.split == m.tags['split'] == m.tags['seed'] % 5
    by_arm[m.tags['phase'], m.tags['model'], m.tags['activation'], m.tags['copy']].add(m.split)
  for (phase, *_), splits in by_arm.items():
    assert splits == set(range(5)) or 'selection' in phase
  assert {m.split for m in play(small(splits=1)).members} == {0}


def test_an_arm_at_an_edge_goes_one_step_further_and_no_other_does():
  played = play(small(mlp__null_copies=2), World(best={
      ('relu', 0): 100.0, ('identity', 0): 3.0, ('gelu', 0): 1e-3, ('crrelu', 0): 1.2,
      ('relu', 1): 1e-3}))
  select, widen, fresh = played.stages
  third = float(f'{1 / 3:.6g}')
  grid = [third, 1.0, 3.0]
  assert played.factors('selection', 'relu') == [*grid, 9.0]
  assert played.factors('selection', 'identity') == [*grid, 9.0]
  lowest = pytest.approx(1 / 9, rel=1e-5)
  assert played.factors('selection', 'gelu') == [lowest, *grid]
  assert played.factors('selection', 'crrelu') == grid
  assert played.factors('null_selection', 'relu', 1) == [lowest, *grid]
  assert played.factors('null_selection', 'relu', 2) == grid
  assert [c.name for c in widen] == ['mlp-widen-fixed']
  # Each arm is widened with all of its seeds, and the better of all four is trained afresh.
  assert len(widen[0].members) == 4 * played.config.mlp.selection_seeds
  chosen = {a: played.factors('fresh', a) for a in FEW}
  assert chosen == {'relu': [9.0], 'identity': [3.0], 'gelu': [lowest], 'crrelu': [1.0]}
  assert played.factors('null_fresh', 'relu', 1) == [lowest]
  assert played.factors('null_fresh', 'relu', 2) == [1.0]
  assert played.factors('control', 'relu') == [9.0]


def test_nothing_is_widened_without_an_edge():
  played = play(small())
  assert [[c.name for c in stage] for stage in played.stages] == [
      ['mlp-select-fixed', 'mlp-select-crrelu'], ['mlp-fresh-fixed', 'mlp-fresh-crrelu']]


@pytest.mark.parametrize('column, value', [('diverged_step', 7), ('val_loss', math.nan)])
def test_a_rate_at_which_a_run_diverged_is_never_chosen(column, value):
  def diverge(rows):
    picked = (rows.phase == 'selection') & (rows.activation == 'gelu') & (rows.lr_factor >= 3)
    rows.loc[picked & (rows.seed == 1), column] = value
  best = {('gelu', 0): 3.0, ('identity', 0): 3.0}
  played = play(small(), World(best=best, change=diverge))
  assert played.factors('selection', 'gelu') == pytest.approx([1 / 3, 1, 3], rel=1e-5)
  assert played.factors('fresh', 'gelu') == [1.0]
  assert played.factors('fresh', 'identity') == [3.0]  # the same without a diverged run


def test_an_arm_that_always_diverges_is_run_afresh_at_the_smallest_rate():
  def diverge(rows):
    rows.loc[rows.activation == 'gelu', 'diverged_step'] = 3
  played = play(small(), World(change=diverge))
  assert played.factors('selection', 'gelu') == pytest.approx([1 / 3, 1, 3], rel=1e-5)
  assert played.factors('fresh', 'gelu') == pytest.approx([1 / 3], rel=1e-5)
  own = played.report().tables[0]
  row = next(r for r in own.rows if r['activation'] == 'gelu')
  assert row['diverged'] == played.config.mlp.fresh_seeds and math.isnan(row['loss'])


def test_fixed_activations_share_one_program_and_others_have_their_own(full):
  for part in full.config.models:
    listed = getattr(full.config, part).activations
    fixed = [a for a in listed
             if get_activation(a).kind == 'pointwise' and not get_activation(a).parameters]
    own = [a for a in listed if a not in fixed]
    for phase in ('select', 'fresh'):
      cohorts = {c.name: c for stage in full.stages for c in stage
                 if c.name.startswith(f'{part}-{phase}-')}
      assert len(cohorts) == 1 + len(own)
      shared = cohorts.pop(f'{part}-{phase}-fixed')
      assert shared.model.arguments['activation'] == f'switch({", ".join(fixed)})'
      assert {m.tags['activation'] for m in shared.members} == set(fixed)
      alone = {c.model.arguments['activation']: c for c in cohorts.values()}
      assert sorted(alone) == sorted(own)
      for name, cohort in alone.items():
        assert {m.tags['activation'] for m in cohort.members} == {name}
  assert {'prelu', 'swiglu', 'ash(axes=last)'} <= set(alone) | set(own) or part == 'vit'
  assert {get_activation(a).kind for a in full.config.mlp.activations} == {
      'pointwise', 'statistics', 'gated'}


def test_programs_of_different_settings_have_different_names():
  config = small(mlp__activations=('relu', 'crrelu(epsilon=0.5)', 'crrelu(epsilon=-0.5)', 'crrelu',
                                   'crrelu(epsilon=1e-5)', 'crrelu(epsilon=1e5)'))
  names = [name for name, _, _ in comparison.programs(config.mlp.activations)]
  assert len(set(names)) == len(names) == 6


@pytest.mark.parametrize('init_gain', [True, False])
def test_members_carry_the_branch_and_the_gain_of_their_activation(init_gain):
  config = small(init_gain=init_gain)
  gains = set()
  for stage in play(config).stages:
    for cohort in stage:
      assert cohort.model.arguments['init_gain'] is init_gain
      for m in cohort.members:
        name = m.tags['activation']
        assert m.hp['learning_rate'] == config.mlp.base_rate * m.tags['lr_factor']
        assert m.hp['learning_rate'] == m.tags['learning_rate']
        if name == 'crrelu':  # its model knows its own gain
          assert set(m.hp) == {'learning_rate'}
          continue
        branches = cohort.model.arguments['activation'].removeprefix('switch(')[:-1].split(', ')
        assert branches[m.hp['activation_code']] == name
        expected, = consumer_gains(name, init_gain)
        assert m.hp['init_gain'] == expected
        gains.add(expected)
  # E[x^2] = 1, E[relu(x)^2] = 1/2.
  if init_gain:  # of E[x^2] = 1, E[relu(x)^2] = 1/2, and GELU
    assert sorted(gains)[:2] == pytest.approx([1.0, math.sqrt(2)]) and len(gains) == 3
  else:
    assert gains == {math.sqrt(2)}


def test_only_relu_is_trained_on_shuffled_labels(full):
  control = [m for m in full.members if m.labels]
  assert control and {m.tags['activation'] for m in control} == {'relu'}
  assert {m.tags['phase'] for m in control} == {'control'}
  numbers = [m.labels for m in control]
  assert sorted(numbers) == list(range(1, full.config.mlp.shuffled_seeds + 1))
  assert all(m.tags['labels'] == m.labels for m in full.members)


def test_only_fresh_runs_are_timed(full):
  timed = [c for stage in full.stages for c in stage if c.time_by]
  assert {c.name.split('-')[1] for c in timed} == {'fresh'}
  for c in timed:
    assert c.time_by == 'activation'
    name, model = c.time_reference
    assert name == model.arguments['activation'] == 'relu' and model.name == c.model.name


# Presets.


@pytest.mark.parametrize('name', study.PRESETS)
def test_presets_are_valid(name):
  study.check(resolved(name))


def test_the_quick_preset_is_a_comparison_of_the_promised_size():
  config = resolved('quick')
  assert config.models == ('mlp',)
  assert len(config.mlp.activations) >= 40
  assert config.mlp.fresh_seeds >= 16 and config.mlp.null_copies >= 16
  assert len(comparison.programs(config.mlp.activations)) - 1 <= 6
  runs = collections.Counter(
      (m.tags['phase'], m.tags['activation'], m.tags['copy']) for m in play(config).members)
  assert {runs['fresh', a, 0] for a in config.mlp.activations} == {config.mlp.fresh_seeds}
  assert {runs['null_fresh', 'relu', c] for c in range(1, 17)} == {config.mlp.fresh_seeds}


def test_the_cpu_preset_can_pass_or_fail_its_claims(full):
  config = full.config
  assert config.mlp.fresh_seeds >= 32
  assert len(config.vit.activations) >= 8 and set(config.vit.activations) <= set(
      config.mlp.activations)
  copies = {m.tags['copy'] for m in full.members if m.tags['phase'] == 'null_fresh'}
  assert len(copies) == len(config.mlp.activations) > 80
  assert set(comparison.TESTED.values()) | {'identity', 'relu'} <= set(config.mlp.activations)


def test_the_smoke_preset_is_small():
  members = play(resolved('smoke')).members
  assert len(members) <= 60 and resolved('smoke').mlp.steps <= 100
  assert {m.tags['phase'] for m in members} == {
      'selection', 'null_selection', 'fresh', 'null_fresh', 'control'}


# Outcomes.

ENOUGH = dict(mlp__fresh_seeds=comparison.MIN_SEEDS, mlp__null_copies=4, mlp__shuffled_seeds=4)


def outcomes(world: World = World(), **changes):
  return play(small(**{**ENOUGH, **changes}), world).outcomes()


def test_a_worse_identity():
  found = outcomes(World(effect={'identity': 0.5}))['identity_worse']
  assert found.verdict == REPRODUCED and found.n == comparison.MIN_SEEDS
  assert found.ours == pytest.approx(0.5, abs=0.01)
  assert found.interval[0] < found.ours < found.interval[1] and 'rank 4 of 4' in found.note


@pytest.mark.parametrize('effect', [-0.5, 0.0])
def test_an_identity_that_is_not_worse(effect):
  assert outcomes(World(effect={'identity': effect}))['identity_worse'].verdict == NOT_REPRODUCED


@pytest.mark.parametrize('world, changes, why', [
    (World(), dict(mlp__fresh_seeds=comparison.MIN_SEEDS - 1), '15 fresh seeds of ReLU, at least 16'),
    (World(best={('gelu', 0): 100.0}), {}, '25% of the activations choose the edge'),
    (World(level=2.1), {}, "ReLU's test log-loss 2.1"),
])
def test_nothing_is_testable_when_the_base_is_not(world, changes, why):
  """Each of them alone, where everything else would have been reproduced."""
  world = dataclasses.replace(world, effect={'identity': 0.5, 'gelu': -0.1, 'crrelu': -0.2})
  for key, found in outcomes(world, **changes).items():
    if key in ('silu_better', 'ash_better'):
      continue  # not run here
    assert found.verdict == NOT_TESTABLE and why in found.note, key
    assert found.ours is not None
  found = outcomes(dataclasses.replace(world, best={}, level=0.2))
  assert found['identity_worse'].verdict == REPRODUCED


def test_a_relu_that_diverged_has_not_learned():
  def diverge(rows):
    rows.loc[(rows.phase == 'fresh') & (rows.activation == 'relu'), 'test_loss'] = math.nan
  found = outcomes(World(effect={'identity': 0.5}, change=diverge))
  assert {o.verdict for o in found.values()} == {NOT_TESTABLE}


def test_an_activation_that_mostly_diverged_is_neither_better_nor_the_winner():
  """Its survivors look best: the worst way to win."""
  def diverge(rows):
    lost = (rows.phase == 'fresh') & (rows.activation == 'gelu') & (rows.seed >= 4)
    rows.loc[lost, 'diverged_step'] = 3
    rows.loc[lost, 'test_loss'] = math.nan
  found = outcomes(World(effect={'gelu': -0.1, 'identity': 0.5, 'crrelu': 0.1}, change=diverge))
  assert found['gelu_better'].verdict == NOT_TESTABLE
  assert found['gelu_better'].note.startswith('4 pairs')
  assert not found['winner_passes_null'].note.startswith('best: gelu')
  whole = outcomes(World(effect={'gelu': -0.1, 'identity': 0.5, 'crrelu': 0.1}))
  assert whole['gelu_better'].verdict == REPRODUCED


def test_one_diverged_run_bars_better():
  def diverge(rows):
    lost = (rows.phase == 'fresh') & (rows.activation == 'gelu') & (rows.seed == 0)
    rows.loc[lost, 'diverged_step'] = 3
  found = outcomes(World(effect={'gelu': -0.1}, change=diverge), mlp__fresh_seeds=20)['gelu_better']
  assert found.verdict == NOT_REPRODUCED and found.note == 'better, but 1 runs diverged'


def test_a_tenth_of_the_activations_may_stay_at_an_edge():
  ten = (*FEW, 'tanh', 'silu', 'elu', 'mish', 'selu', 'celu')
  worse = {'identity': 0.5}
  one = World(best={('tanh', 0): 100.0, ('elu', 0): 3.0}, effect=worse)  # elu's lies inside at last
  two = World(best={('tanh', 0): 100.0, ('elu', 0): 100.0}, effect=worse)
  assert outcomes(one, mlp__activations=ten)['identity_worse'].verdict == REPRODUCED
  found = outcomes(two, mlp__activations=ten)['identity_worse']
  assert found.verdict == NOT_TESTABLE and found.note.startswith('20% of the activations')


@pytest.mark.parametrize('share, verdict', [
    (0.1, REPRODUCED), (0.12, REPRODUCED), (0.08, REPRODUCED), (0.13, NOT_REPRODUCED),
    (0.07, NOT_REPRODUCED), (0.9, NOT_REPRODUCED)])
def test_shuffled_labels(share, verdict):
  # 4 x 270 images of chance 0.1: sd 0.0091, so 99 % are about 0.1 -+ 0.0235.
  found = outcomes(World(guessed=share))['shuffled_labels']
  assert found.verdict == verdict and found.ours == pytest.approx(share)
  low, high = found.interval  # of ours, 95 %
  assert low < share < high and high - low == pytest.approx(
      2 * 1.96 * math.sqrt(share * (1 - share) / 1080), abs=0.003)
  limits = [float(x) for x in found.note.removeprefix('1080 test images; guessing reaches ')
            .split(' to ')]
  assert limits == pytest.approx([0.0765, 0.1235], abs=0.002) and found.n == 4


@pytest.mark.parametrize('commonest, verdict', [(0.14, REPRODUCED), (0.1, NOT_REPRODUCED)])
def test_guessing_the_commonest_class_is_guessing(commonest, verdict):
  """Where classes are unbalanced, a network that knows nothing may still pass 1 / classes."""
  played = play(small(**ENOUGH), World(guessed=0.14))
  shares = (commonest, *((1 - commonest) / 9,) * 9)
  assert played.report(shares=shares).outcomes['shuffled_labels'].verdict == verdict


def test_the_winner_must_pass_the_null_line():
  passes = outcomes(World(effect={'gelu': -0.1, 'identity': 0.5, ('relu', 2): 0.05}))
  found = passes['winner_passes_null']
  assert found.verdict == REPRODUCED and found.ours == pytest.approx(-0.1, abs=0.01)
  assert found.note.startswith('best: gelu; line 0.05') and 'from 4 copies' in found.note
  for other in (-0.11, 0.11):  # a copy of ReLU differs from ReLU by more, to either side
    fails = outcomes(World(effect={'gelu': -0.1, 'identity': 0.5, ('relu', 2): other}))
    found = fails['winner_passes_null']
    assert found.verdict == NOT_REPRODUCED
    assert float(found.note.split('line ')[1].split()[0]) == pytest.approx(0.11, abs=0.003)
    # The corrected p alone would have passed.
    assert fails['gelu_better'].verdict == REPRODUCED


def test_a_winner_without_a_small_p_does_not_pass():
  def loud(rows):
    picked = (rows.phase == 'fresh') & (rows.activation == 'gelu')
    rows.loc[picked, 'test_loss'] += np.where(rows[picked].seed % 2, 1.0, -1.0)
  found = outcomes(World(effect={'gelu': -0.1, 'crrelu': 0.1}, change=loud))['winner_passes_null']
  assert found.verdict == NOT_REPRODUCED and found.note.startswith('best: gelu')
  assert abs(found.ours) > float(found.note.split('line ')[1].split()[0])


def test_no_line_is_passed_where_relu_is_the_best():
  worse = {'identity': 0.5, 'gelu': 0.1, 'crrelu': 0.1}
  found = outcomes(World(effect=worse))['winner_passes_null']
  assert found.verdict == NOT_REPRODUCED and found.note.startswith('best: gelu') and found.ours > 0


def test_better_worse_and_no_difference():
  found = outcomes(World(effect={'gelu': -0.1, 'crrelu': 0.1}))
  assert (found['gelu_better'].verdict, found['gelu_better'].note) == (REPRODUCED, 'better')
  assert (found['crrelu_better'].verdict, found['crrelu_better'].note) == (NOT_REPRODUCED, 'worse')
  assert found['gelu_better'].ours == pytest.approx(-0.1, abs=0.01)
  found = outcomes()['gelu_better']
  assert found.verdict == NOT_REPRODUCED
  words, effect = found.note.rsplit(' ', 1)
  assert words == 'no difference at 16 seeds, minimum detectable effect'
  # Differences have sd 0.002 sqrt(2): for 16 pairs and p < 0.05 / 3 about 1.1 sd.
  assert 0.001 < float(effect) < 0.006


def test_what_was_not_run_is_not_testable():
  found = outcomes(mlp__activations=('relu', 'tanh'), mlp__null_copies=0, mlp__shuffled_seeds=0)
  assert {o.verdict for o in found.values()} == {NOT_TESTABLE}
  notes = {key: o.note for key, o in found.items()}
  assert notes == {
      'identity_worse': 'the identity was not run',
      'shuffled_labels': 'no run on shuffled labels', 'winner_passes_null': 'no null row was run',
      'gelu_better': 'gelu was not run', 'silu_better': 'silu was not run',
      'crrelu_better': 'crrelu was not run', 'ash_better': 'ash(axes=last) was not run'}


def test_claims_are_of_the_mlp():
  found = play(small(models=('vit',), vit__activations=FEW, vit__fresh_seeds=16)).outcomes()
  assert {(o.verdict, o.note) for o in found.values()} == {
      (NOT_TESTABLE, 'what it is about was not run')}
  assert all('not testable below 16 fresh seeds' in c.rule for c in study.claims(small()))


# Tables and figures.


def test_every_form_of_every_table_shows_the_data_set():
  played = play(small(models=('mlp', 'vit'), vit__activations=FEW))
  first, second = played.report('fashion_mnist-jpeg75').tables
  assert first.title.startswith('Activations on fashion_mnist-jpeg75, MLP 64-64, 60 steps')
  assert 'ViT 2 x 32, patch 2' in second.title
  for table in (first, second):
    assert 'fashion_mnist-jpeg75' in table.to_text()
    assert 'fashion_mnist-jpeg75' in table.to_markdown().replace('\\', '')
    assert r'fashion\_mnist-jpeg75' in table.to_latex()
  assert 'digits' not in first.to_text()


def test_the_paper_s_table_says_what_its_networks_are():
  played = play(resolved('paper', vit__activations=FEW, vit__fresh_seeds=2))
  table, = played.report('cifar10').tables
  assert 'ViT 12 x 192, patch 4, 35100 steps' in table.title
  said = ' '.join(table.notes)
  assert 'trained without distillation' in said and 'TNT-Small: not implemented.' in said
  other = play(small(models=('vit',), vit__activations=FEW)).report().tables[0]
  assert 'TNT' not in ' '.join(other.notes)


def test_the_vit_names_no_winner():
  played = play(small(models=('mlp', 'vit'), vit__activations=FEW))
  first, second = played.report().tables
  assert {'rank', 'p'} <= {c.key for c in first.columns}
  assert not {'rank', 'p'} & {c.key for c in second.columns}
  assert any('no winner' in note for note in second.notes)
  assert not any('no winner' in note for note in first.notes)


def test_the_table_tells_the_null_line_and_the_edges():
  world = World(best={('gelu', 0): 100.0}, effect={('relu', 1): 0.25})
  table, = play(small(), world).report().tables
  assert any(note.startswith('25% of the activations') for note in table.notes)
  line, = (note for note in table.notes if 'Null row' in note)
  assert line.startswith('Null row: 2 copies')
  assert float(line.split('difference is ')[1].split()[0]) == pytest.approx(0.25, abs=0.003)
  rates = {row['activation']: row['rate'] for row in table.rows}
  assert [name for name, rate in rates.items() if rate.endswith('*')] == ['gelu']
  table, = play(small(mlp__null_copies=0)).report().tables
  assert 'No null row was run.' in table.notes


def test_figures_show_the_data_set():
  figure = play(small()).report('cifar10-jpeg75').figures['accuracy']()
  assert [axes.get_title() for axes in figure.axes] == ['mlp on cifar10-jpeg75']


# What is refused.


@pytest.mark.parametrize('changes, words', [
    (dict(mlp__activations=('gelu', 'identity')), 'config.mlp.activations: relu is missing'),
    (dict(vit__activations=('gelu',)), 'config.vit.activations: relu is missing'),
    (dict(mlp__activations=('relu', 'geluu')), "geluu.*nearest: .*gelu"),
    (dict(mlp__activations=('relu', 'gelu', 'relu')), 'relu stands there twice'),
    (dict(mlp__activations=('relu', 'silu', 'swish')), 'silu and swish are the same'),
    (dict(rate_factors=(1.0, 0.3)), 'rate_factors: must ascend'),
    (dict(rate_factors=(1.0, 1.0)), 'rate_factors: must ascend'),
])
def test_a_config_that_cannot_be_compared_is_refused_in_one_line(changes, words):
  config = small(models=('mlp', 'vit'), vit__activations=FEW)
  study.check(config)
  with pytest.raises(UserError, match=words) as caught:
    study.check(config_lib.apply_preset(
        config, {name.replace('__', '.'): value for name, value in changes.items()}))
  assert '\n' not in str(caught.value)
