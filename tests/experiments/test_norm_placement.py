"""The placement of layer norms: its arms, its verdicts on made-up rows, its gradients, one run."""
from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
import dataclasses
import json
import math
from pathlib import Path
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import norm_placement as study
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, evaluate, read_claims
from launch.study.study import Measurement, Run
from model_lib import models
from model_lib.errors import UserError
from model_lib.normalization import block
from tests import helpers

CIFAR = 'cifar10-jpeg75'
DUAL = 'pre/pre, dual stem'


def resolved(preset: str = 'cpu', **changes: object) -> study.Config:
  """The config of a preset with changes."""
  config = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(config, changes)


def noise(*key: object) -> float:
  """A number from N(0, 1) that belongs to the key."""
  return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal())


def filled(model, x) -> dict:
  """The model's variables with every number from N(0, 0.3^2): initialization is slow to compile."""
  shapes = jax.eval_shape(lambda key: model.init(key, x, train=False), jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


def compiled(function):
  """jit without optimization, which takes longer than the few calls of a test."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


# What a study finds in which all claims hold: points of test accuracy beside pre/pre.
HOLDS = {'post/post': -2.0, 'pre+post/pre+post': -0.5, 'parallel': -0.3, DUAL: 1.0,
         study.ZEROED: -1.5, study.NO_NORM: -3.0, study.LINEAR: -10.0}


@dataclasses.dataclass
class World:
  """What the runs of a made-up study find.

  Attributes:
    effect: arm -> points of test accuracy beside pre/pre; 0 where none is given.
    spread: of an arm's differences over the seeds, points.
    best: arm -> factor with the lowest validation loss; 1 where none is given.
    ratio: stem -> gradient ratio at (start, end).
    change: changes the finished rows of a stage in their place.
  """

  effect: Mapping[str, float] = dataclasses.field(default_factory=lambda: HOLDS)
  spread: float = 0.1
  best: Mapping[str, float] = dataclasses.field(default_factory=dict)
  ratio: Mapping[str, tuple[float, float]] = dataclasses.field(
      default_factory=lambda: {'plain': (5.0, 3.0), 'dual': (0.5, 0.4)})
  change: Callable[[pd.DataFrame], None] = lambda rows: None

  def run(self, cohort, member) -> dict:
    tags = member.tags
    away = math.log(tags['lr_factor'] / self.best.get(tags['arm'], 1.0))
    own = self.effect.get(tags['arm'], 0.0) + self.spread * noise(tags['arm'], tags['seed'])
    return {**tags, 'run': cohort.name, 'steps': cohort.steps, 'diverged_step': -1,
            'parameters': 1000, 'val_loss': 1 + 0.1 * away**2, 'test_loss': 1.5,
            'test_accuracy': 0.5 + (own + noise(tags['seed'])) / 100}

  def measured(self, item: Measurement, fresh: pd.DataFrame) -> list[dict]:
    seeds = sorted(set(fresh.seed))
    arms = fresh[fresh.run.isin(item.arguments['cohorts']) & (fresh.role == 'tested')]
    return [{'run': item.name, 'phase': 'gradients', 'stem': stem, 'seed': seed, 'at': at,
             'gradient_ratio': self.ratio.get(stem, (1.0, 1.0))[place]
             * (1 + 0.02 * noise(stem, seed, at))}
            for stem in dict.fromkeys(arms.stem) for seed in seeds
            for place, at in enumerate(('start', 'end'))]


@dataclasses.dataclass
class Played:
  """The stages of cohorts that a study asked for, and their rows."""

  config: study.Config
  stages: list
  rows: pd.DataFrame

  @property
  def members(self) -> list:
    return [m for stage in self.stages for c in stage if not isinstance(c, Measurement)
            for m in c.members]

  def factors(self, phase: str, arm: str) -> list[float]:
    return sorted({m.tags['lr_factor'] for m in self.members
                   if (m.tags['phase'], m.tags['arm']) == (phase, arm)})

  def report(self, dataset: str = CIFAR):
    return study.report(Run(self.config, self.rows, lambda: None, dataset))

  def outcomes(self, dataset: str = CIFAR):
    """By claim; `evaluate` has found one for each claim and no other."""
    verdicts = evaluate(study.claims(self.config), self.report(dataset).outcomes)
    return {v.claim.id: v.outcome for v in verdicts}


def play(config: study.Config, world: World | None = None) -> Played:
  """Drives the cohorts with the world's rows, as the runner does with real ones."""
  world = world or World()
  generator, answer, stages, rows = study.cohorts(config), None, [], []
  while True:
    try:
      stage = list(generator.send(answer))
    except StopIteration:
      found = pd.concat(rows, ignore_index=True)
      return Played(config, stages, found.assign(member=range(len(found))))
    stages.append(stage)
    made = []
    for item in stage:
      made += (world.measured(item, rows[-1]) if isinstance(item, Measurement) else
               [world.run(item, m) for m in item.members])
    answer = pd.DataFrame(made)
    world.change(answer)
    rows.append(answer)


def verdicts(world: World, dataset: str = CIFAR, **changes) -> dict[str, str]:
  return {key: o.verdict for key, o in play(resolved(**changes), world).outcomes(dataset).items()}


# The arms.


def test_cpu_changes_one_factor_at_a_time():
  tested = [(a.blocks, a.stem) for a in study.arms(resolved()) if a.role == 'tested']
  assert tested[0] == ('pre/pre', 'plain')
  assert set(tested) == {
      ('pre/pre', 'plain'), ('post/post', 'plain'), ('pre+post/pre+post', 'plain'),
      ('parallel', 'plain'), ('pre/pre', 'pre'), ('pre/pre', 'post'), ('pre/pre', 'dual')}
  assert len(tested) == 7
  assert [a.name for a in study.arms(resolved())][7:] == [
      study.ZEROED, study.NO_NORM, study.OTHER_SEEDS, study.LINEAR]


@pytest.mark.parametrize('preset', ['gpu', 'paper'])
def test_the_large_presets_cross_nine_placements_with_four_stems(preset):
  tested = [(a.blocks, a.stem) for a in study.arms(resolved(preset)) if a.role == 'tested']
  assert len(tested) == len(set(tested)) == 37
  assert {(b, s) for b in study.PLACEMENTS for s in study.STEMS} == set(tested) - {
      ('parallel', 'plain')}


@pytest.mark.parametrize('preset', study.PRESETS)
def test_presets_are_valid_and_their_models_can_be_built(preset):
  config = resolved(preset)
  study.check(config)
  for arm in study.arms(config):
    model = models.build(arm.model.name, **arm.model.arguments)
    if arm.blocks in study.PLACEMENTS:
      spec = block(model.norm)
      assert f'{spec.attention.placement}/{spec.mlp.placement}' == arm.blocks
  assert block(study.vit(config, 'parallel', 'plain').arguments['norm']).placement == 'parallel'
  assert not block(study.vit(config, 'none', 'plain').arguments['norm']).norms()


def test_a_zeroed_last_block_is_the_network_of_one_block_less():
  config = resolved('smoke', depth=2)
  whole, fewer = (models.build('vit', **study.vit(config, 'pre/pre', 'plain', n).arguments)
                  for n in (0, 1))
  x = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
  variables = filled(whole, x)
  blocks = variables['params']['blocks']
  last = f'_{config.depth - 1}'

  def zeroed(tree):  # the kernels and biases that end the last block's branches
    return {name: {**part, 'out': jax.tree.map(jnp.zeros_like, part['out'])}
            if name.endswith(last) and 'out' in part else part for name, part in tree.items()}

  def logits(model):
    return compiled(lambda blocks: model.apply(
        {**variables, 'params': {**variables['params'], 'blocks': blocks}}, x, train=False))

  of_whole = logits(whole)
  less = logits(fewer)({name: part for name, part in blocks.items() if not name.endswith(last)})
  np.testing.assert_allclose(of_whole(zeroed(blocks)), less, atol=1e-6)
  assert np.abs(of_whole(blocks) - less).max() > 1e-2


# The cohorts.


def test_runs_are_paired_over_arms_and_fresh_seeds_take_no_part_in_the_choice():
  played = play(resolved())
  seeds = collections.defaultdict(set)
  for m in played.members:
    assert m.seed == m.data_seed
    other = m.tags['arm'] == study.OTHER_SEEDS
    seeds[m.tags['phase'], other, m.tags['seed']].add(m.seed)
  assert all(len(own) == 1 for own in seeds.values())
  numbers = [seed for own in seeds.values() for seed in own]
  assert len(set(numbers)) == len(numbers) == 2 * (1 + 3)
  tags = [json.dumps(m.tags, sort_keys=True) for m in played.members]
  assert len(set(tags)) == len(tags) == 11 * (3 + 3)
  assert study.seed_of(resolved(seed=1), 'selection', 0, 0) > study.seed_of(
      resolved(), 'fresh', 1, study.MOST_SEEDS - 1)
  assert study.seed_of(resolved(seed=1000), 'fresh', 1, study.MOST_SEEDS - 1) < 2**32


def test_each_arm_takes_its_own_best_rate():
  def diverge(rows):
    if 'selection' in set(rows.phase):
      rows.loc[(rows.arm == DUAL) & (rows.lr_factor > 2), 'diverged_step'] = 3
      rows.loc[rows.arm == study.NO_NORM, 'val_loss'] = math.nan
  played = play(resolved(), World(best={'post/post': 1 / 3, DUAL: 3.0}, change=diverge))
  third = float(f'{1 / 3:.6g}')
  assert played.factors('selection', 'post/post') == [third, 1.0, 3.0]
  assert played.factors('fresh', 'post/post') == [third]
  assert played.factors('fresh', 'pre/pre') == [1.0]
  assert played.factors('fresh', DUAL) == [1.0]
  assert played.factors('fresh', study.NO_NORM) == [third]
  table = played.report().tables[0]
  starred = [row['arm'] for row in table.rows if row['rate'].endswith('*')]
  assert starred == ['post/post']


def test_networks_that_differ_in_seeds_alone_share_a_program():
  for stage in play(resolved()).stages[:2]:
    assert len(stage) == 10
    assert {m.tags['arm'] for m in stage[0].members} == {'pre/pre', study.OTHER_SEEDS}
    assert len({json.dumps(dict(c.model.arguments), sort_keys=True) for c in stage}) == 10


# The verdicts.


def test_all_claims_hold_where_they_should():
  found = play(resolved()).outcomes()
  assert {key: o.verdict for key, o in found.items()} == dict.fromkeys(found, REPRODUCED)
  assert found['no_block_placement_beats_pre'].ours == pytest.approx(-0.5, abs=0.3)
  assert found['no_block_placement_beats_pre'].note.startswith('pre+post/pre+post decides')
  assert found['dual_stem_better'].ours == pytest.approx(1.0, abs=0.3)
  assert found['stem_gradient_start'].ours == pytest.approx(0.5, rel=0.05)
  assert found['stem_gradient_end'].ours == pytest.approx(0.4, rel=0.05)
  assert {o.n for o in found.values()} == {3}


COMPARISONS = {'no_block_placement_beats_pre', 'dual_stem_better'}


@pytest.mark.parametrize('changed, expected', [
    # A better placement that the intervals show; one inside of the margin; one too wide to say.
    ({'post/post': 3.0}, {'no_block_placement_beats_pre': NOT_REPRODUCED}),
    ({'post/post': 0.4}, {}),
    ({'parallel': 3.0}, {}),  # no placement among the nine
    ({DUAL: -2.3}, {'dual_stem_better': NOT_REPRODUCED}),
    ({DUAL: 0.0}, {'dual_stem_better': NOT_TESTABLE}),
    ({study.ZEROED: 0.0}, {'no_block_placement_beats_pre': NOT_TESTABLE,
                           'control_zeroed': NOT_REPRODUCED}),
    ({study.NO_NORM: 0.0}, {'no_block_placement_beats_pre': NOT_TESTABLE,
                            'control_no_norm': NOT_REPRODUCED}),
    ({study.OTHER_SEEDS: 2.0}, {**dict.fromkeys(COMPARISONS, NOT_TESTABLE),
                                'control_seeds': NOT_REPRODUCED}),
])
def test_one_finding_changes_the_verdicts_that_it_should(changed, expected):
  found = verdicts(World(effect={**HOLDS, **changed}))
  assert found == {**dict.fromkeys(found, REPRODUCED), **expected}


def test_wide_intervals_decide_nothing():
  found = play(resolved(), World(spread=3.0)).outcomes()
  assert {found[key].verdict for key in COMPARISONS} == {NOT_TESTABLE}
  # With the controls told, the width itself is the reason.
  def noisy(rows):
    own = (rows.phase == 'fresh') & (rows.get('arm') == 'post/post')
    rows.loc[own, 'test_accuracy'] = 0.5 + np.array([-.03, 0, .03])[:own.sum()]
  outcome = play(resolved(), World(change=noisy)).outcomes()['no_block_placement_beats_pre']
  assert outcome.verdict == NOT_TESTABLE and 'post/post is too wide' in outcome.note


def test_placements_are_corrected_for_their_number():
  """A gain that one placement alone keeps below the margin is not enough among eight."""
  def shifted(rows):
    # The differences of each placement are exactly -t, 0, t about 0: its p is that of one t test.
    for arm in study.PLACEMENTS[1:]:
      for seed, off in enumerate((-0.35, 0.0, 0.35)):
        base = rows[(rows.get('arm') == 'pre/pre') & (rows.get('seed') == seed)
                    & (rows.phase == 'fresh')]
        own = (rows.get('arm') == arm) & (rows.get('seed') == seed) & (rows.phase == 'fresh')
        if len(base):
          rows.loc[own, 'test_accuracy'] = float(base.test_accuracy.iloc[0]) + off / 100
  one = play(resolved(blocks=('pre/pre', 'post/post')), World(change=shifted)).outcomes()
  all_nine = play(resolved(blocks=study.PLACEMENTS), World(change=shifted)).outcomes()
  key = 'no_block_placement_beats_pre'
  assert (one[key].verdict, all_nine[key].verdict) == (REPRODUCED, NOT_TESTABLE)
  assert one[key].interval == pytest.approx(all_nine[key].interval)


@pytest.mark.parametrize('ratio, expected', [
    ({'plain': (5.0, 3.0), 'dual': (2.0, 0.5)}, (NOT_REPRODUCED, REPRODUCED)),
    ({'plain': (0.8, 3.0), 'dual': (0.5, 1.0)}, (NOT_TESTABLE, NOT_TESTABLE)),
])
def test_a_gradient_must_be_oversized_before_it_is_removed(ratio, expected):
  found = verdicts(World(ratio=ratio))
  assert (found['stem_gradient_start'], found['stem_gradient_end']) == expected


@pytest.mark.parametrize('world, dataset, changes, words', [
    (World(), 'digits', {}, 'the claims are about CIFAR-10, the data are digits'),
    (World(), 'cifar100', {}, 'the data are cifar100'),
    (World(effect={**HOLDS, study.LINEAR: -2.0}), CIFAR, {}, 'above a linear classifier'),
    (World(), CIFAR, {'seeds': 2}, '2 seeds of pre/pre and the linear classifier'),
])
def test_without_its_base_nothing_is_testable(world, dataset, changes, words):
  found = play(resolved(**changes), world).outcomes(dataset)
  assert {o.verdict for o in found.values()} == {NOT_TESTABLE}
  assert all(words in o.note for o in found.values())


def test_one_seed_below_the_base_is_enough():
  def one(rows):
    base = rows[(rows.get('arm') == 'pre/pre') & (rows.phase == 'fresh')]
    own = (rows.get('arm') == study.LINEAR) & (rows.phase == 'fresh') & (rows.get('seed') == 1)
    if own.any():
      rows.loc[own, 'test_accuracy'] = float(base[base.seed == 1].test_accuracy.iloc[0]) - 0.02
  assert set(verdicts(World(change=one)).values()) == {NOT_TESTABLE}


def test_what_was_not_run_is_not_testable():
  found = play(resolved(blocks=('pre/pre',), stems=('plain',), controls=('seeds',))).outcomes()
  assert found.pop('control_seeds').verdict == REPRODUCED
  assert {o.verdict for o in found.values()} == {NOT_TESTABLE}
  assert {key: o.note for key, o in found.items()} == {
      'no_block_placement_beats_pre': 'another placement in the blocks was not run',
      'dual_stem_better': 'the dual stem was not run',
      **dict.fromkeys(('stem_gradient_start', 'stem_gradient_end'),
                      'the plain or the dual stem was not run'),
      'control_zeroed': 'last block zeroed was not run', 'control_no_norm': 'no norm was not run'}
  # Without its control, a dual stem that is better, or a placement that is not, shows nothing.
  assert verdicts(World(), controls=('zeroed', 'no_norm'))['dual_stem_better'] == NOT_TESTABLE
  assert verdicts(World(), controls=('seeds',))['no_block_placement_beats_pre'] == NOT_TESTABLE


def test_a_diverged_run_leaves_its_pair_out():
  def diverge(rows):
    rows.loc[(rows.get('arm') == DUAL) & (rows.phase == 'fresh') & (rows.get('seed') == 2),
             'diverged_step'] = 7
  played = play(resolved(), World(change=diverge))
  found = played.outcomes()['dual_stem_better']
  assert found.verdict == NOT_TESTABLE and found.n == 2
  row = next(r for r in played.report().tables[0].rows if r['arm'] == DUAL)
  assert (row['n'], row['diverged']) == (2, 1)


# Tables and figures.


def test_tables_and_figures_show_the_data_set():
  played = play(resolved())
  for made in played.report('cifar10-jpeg75').tables:
    assert 'cifar10-jpeg75' in made.to_text() and 'nan' not in made.to_text()
    assert made.to_latex() and made.to_markdown()
  figures = played.report('cifar10-jpeg75').figures
  for name in ('accuracy', 'learning_rates', 'stem_gradients'):
    figure = figures[name]()
    texts = [axes.get_title() for axes in figure.axes] + [t.get_text() for t in figure.texts]
    texts += [figure.get_supxlabel()]
    assert any('cifar10-jpeg75' in text for text in texts), name
  table = played.report().tables[0]
  assert [r['role'] for r in table.rows] == ['tested'] * 7 + ['control'] * 3 + ['baseline']


# A run.


@pytest.fixture(scope='module')
def smoke(tmp_path_factory, compile_cache) -> Path:
  """A finished run of the preset without its second stem, whose programs compile as long again.

  They are not optimized: compiling takes nearly all of the time.
  """
  workdir = tmp_path_factory.mktemp('norm_placement') / 'run'
  done = helpers.run_module('experiments.norm_placement', '--preset=smoke', f'--workdir={workdir}',
                            '--config.stems=plain',
                            env={'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'})
  assert done.returncode == 0, done.stderr
  return workdir


def test_smoke_ends_with_tables_claims_and_figures(smoke):
  claims = read_claims(smoke / 'claims.json')
  assert {c['verdict'] for c in claims} == {NOT_TESTABLE}
  assert len(claims) == len(study.claims(resolved()))
  assert {path.stem for path in (smoke / 'figures').iterdir()} == {
      'accuracy', 'training_curves', 'stem_gradients'}
  rows = pd.read_csv(smoke / 'results.csv')
  accuracy = rows[rows.phase == 'fresh'].groupby('arm').test_accuracy.mean()
  assert accuracy['pre/pre'] > 0.15  # guessing reaches .1; the run reached .22
  own = rows[rows.phase == 'gradients']
  assert len(own) == 2 * 2 and (own.gradient_ratio > 0).all()
  np.testing.assert_allclose(own.gradient_ratio, own.stem_gradient / own.block_gradient, rtol=1e-6)


def test_a_gradient_at_the_start_is_that_of_the_run_s_own_seed():
  """The measurement adds the number of a row to the first seed."""
  config = resolved('smoke')
  stages = play(config).stages
  measurement, = stages[-1]
  for cohort in (c for c in stages[0] if c.name in measurement.arguments['cohorts']):
    own = [m for m in cohort.members if m.tags['role'] == 'tested']
    assert [m.seed for m in own] == [
        measurement.arguments['first_seed'] + m.tags['seed'] for m in own]


# What is refused.


@pytest.mark.parametrize('changes, words', [
    (dict(blocks=('post/post',)), 'pre/pre and plain are missing'),
    (dict(stems=('dual',)), 'pre/pre and plain are missing'),
    (dict(stems=('plain', 'dual', 'dual')), 'config.stems: something stands there twice'),
    (dict(depth=1), 'config.depth: where the last block is zeroed'),
    (dict(rate_factors=(3.0, 1.0)), 'rate_factors: must ascend'),
    (dict(blocks=('pre/pre', 'pre/psot')), 'blocks'),
])
def test_a_config_that_cannot_be_compared_is_refused_in_one_line(changes, words):
  study.check(resolved())
  with pytest.raises(UserError, match=words) as caught:
    study.check(resolved(**changes))
  assert '\n' not in str(caught.value)
