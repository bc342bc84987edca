"""normalization_basics: cohorts and verdicts from made-up rows, measurements, the command."""
from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
import zlib

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import normalization_basics as study
from experiments.measurements import normalization_basics as checks
from launch.study import config as config_lib
from launch.study import flags
from launch.study import load_run
from launch.study import preview
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, evaluate
from launch.study.load import load_cohort
from launch.study.study import Measurement, Run
from launch.study.workdir import Workdir
from model_lib import models
from model_lib.analysis import invariances
from model_lib.errors import UserError
from model_lib.transforms.batch_stats import biased_running, recalibrated
from tests import helpers

POINT = 0.01


def resolved(preset: str = 'cpu', **changes: object) -> study.Config:
  config = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(config, changes)


def noise(*key: object) -> float:
  """A number from N(0, 1) that belongs to the key."""
  return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal())


@dataclasses.dataclass
class World:
  """What made-up runs find.

  Attributes:
    lost: (arm, budget) -> points lost at the smallest batch beyond the 2 that all lose.
    best: cell -> factor with the lowest validation loss; 1 where none is given.
    images, level: test images, accuracy at the largest batch.
  """

  lost: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
  best: Mapping[tuple[str, int, str], float] = dataclasses.field(default_factory=dict)
  images: int = 10000
  level: float = 0.97

  def accuracy(self, arm, batch, budget, seed, copy, last):
    lost = 2 + self.lost.get((arm, budget), 0.0) if batch == last else 0.0
    return self.level + POINT * (0.1 * noise(seed, copy) + 0.1 * noise(arm, batch, seed, copy)
                                 - lost)

  def rows(self, config, asked) -> pd.DataFrame:
    last, found = config.batches[-1], []
    for item in asked:
      if isinstance(item, Measurement):
        continue
      for m in item.members:
        t = m.tags
        cell = (t['arm'], t['batch'], t['budget'])
        away = math.log(t['lr_factor'] / self.best.get(cell, 1.0))
        found.append({**t, 'run': item.name, 'steps': item.steps, 'diverged_step': -1,
                      'test_images': self.images, 'val_loss': 0.1 + away**2,
                      'test_accuracy': self.accuracy(*cell, t['seed'], t['copy'], last)})
    return pd.DataFrame(found)

  def measured(self, config) -> pd.DataFrame:
    """Rows of the measurements of this part."""
    found = [{'part': 'batch_size', 'phase': 'independence', 'arm': a, 'mode': m, 'deviation':
              0.9 if (a, m) == ('batch', 'training') else 0.0}
             for a in study.checks.ARMS for m in ('training', 'inference')]
    for convention in study.CONVENTIONS:
      for batch, budget, _ in study.cells(config):
        found += [{'part': 'batch_size', 'phase': 'conventions', 'convention': convention,
                   'arm': 'batch', 'batch': batch, 'budget': budget, 'seed': s, 'test_accuracy':
                   self.accuracy('batch', batch, budget, s, 0, config.batches[-1])}
                  for s in range(config.fresh_seeds)]
    return pd.DataFrame(found)


def play(config: study.Config, world: World):
  """The stages that the study asks for, and all rows."""
  generator, answer, stages, rows = study.cohorts(config), None, [], [world.measured(config)]
  while True:
    try:
      asked = list(generator.send(answer))
    except StopIteration:
      return stages, pd.concat(rows, ignore_index=True)
    stages.append(asked)
    answer = world.rows(config, asked)
    if len(answer):
      rows.append(answer)


def verdicts(config: study.Config, rows: pd.DataFrame):
  report = study.report(Run(config, rows, lambda: None, 'made up'))
  return {v.claim.id: v.outcome for v in evaluate(study.claims(config), report.outcomes)}


@pytest.fixture(scope='module')
def networks() -> study.Config:
  return resolved(parts=('batch_size',))


# The cohorts.


def test_runs_are_named_once_and_paired(networks):
  stages, _ = play(networks, World(best={('none', 4, 'steps'): 27.0}))
  members = [m for stage in stages for c in stage if not isinstance(c, Measurement)
             for m in c.members]
  tags = [json.dumps(m.tags, sort_keys=True) for m in members]
  assert len(set(tags)) == len(tags)
  drawn = {}
  for m in members:
    assert m.seed == m.data_seed
    key = m.tags['phase'] == 'selection', m.tags['copy'], m.tags['seed']
    drawn.setdefault(key, set()).add(m.seed)
  # One seed in all cells, and another for any other key: fresh seeds took no part in the choice.
  assert all(len(seeds) == 1 for seeds in drawn.values())
  assert len({s for seeds in drawn.values() for s in seeds}) == len(drawn)
  # The only cell at an edge goes on until its best rate lies inside.
  names = [c.name for stage in stages for c in stage]
  assert [n for n in names if 'widen' in n] == [f'none-b4-steps-widen{i}' for i in (1, 2, 3)]
  fresh = {c.name: c for c in stages[-2]}
  assert fresh['none-b4-steps-fresh'].members[0].tags['lr_factor'] == 27.0
  assert {c.steps * c.batch_size for n, c in fresh.items() if 'examples' in n} == {64000}
  assert fresh['layer-b4-steps-fresh'].steps == fresh['layer-b128-examples-fresh'].steps


def test_parts_without_networks_read_no_data():
  config = resolved(parts=('invariances',))
  assert study.data(config) is None and study.data(resolved()).dataset == 'digits'
  assert [m.name for stage in study.cohorts(config) for m in stage] == ['invariances']


@pytest.mark.parametrize('change, part', [
  (dict(batches=(4, 128)), 'batches'), (dict(batches=(8,)), 'batches'),
  (dict(examples=100), 'examples'), (dict(rate_factors=(3.0, 1.0)), 'rate_factors')])
def test_a_config_that_cannot_be_compared_is_one_line(change, part):
  with pytest.raises(UserError, match=part):
    study.check(resolved(**change))


# Verdicts about accuracy.


BATCH_LOSES = {('batch', budget): 1.5 for budget in ('examples', 'steps')}


def test_what_is_there_is_found_and_what_is_not_is_not(networks):
  found = verdicts(networks, play(networks, World(lost=BATCH_LOSES))[1])
  assert found['layer_ignores_the_batch'].verdict == REPRODUCED
  for budget in ('examples', 'steps'):
    layer, batch = found[f'layer_margin_equal_{budget}'], found[f'batch_biased_equal_{budget}']
    assert layer.verdict == batch.verdict == REPRODUCED
    assert abs(layer.ours) < 0.3 and abs(batch.ours - 1.5) < 0.3 and batch.n == 10
  wrong = {('layer', 'examples'): 1.0, ('layer', 'steps'): -1.5, ('batch', 'examples'): -0.5}
  found = verdicts(networks, play(networks, World(lost=wrong))[1])
  for budget in ('examples', 'steps'):
    assert found[f'layer_margin_equal_{budget}'].verdict == NOT_REPRODUCED
  assert found['batch_recalibrated_equal_examples'].verdict == NOT_REPRODUCED
  assert found['invariances_batch'].verdict == NOT_TESTABLE  # its part was not run


@pytest.mark.parametrize('world, changes, why', [
  (dict(images=270), {}, '270 test images'), (dict(level=0.7), {}, 'without a norm 7'),
  ({}, dict(fresh_seeds=7), '7 pairs'),
  (dict(best={('none', 128, 'examples'): 1e9}), {}, 'edge of the learning rates: none-b128')])
def test_a_base_that_does_not_hold_makes_claims_untestable(networks, world, changes, why):
  config = config_lib.apply_preset(networks, changes)
  found = verdicts(config, play(config, World(lost=BATCH_LOSES, **world))[1])
  for key, outcome in found.items():
    if '_equal_' in key:
      assert outcome.verdict == NOT_TESTABLE and why in outcome.note, key


def test_an_edge_elsewhere_concerns_its_own_claims_alone(networks):
  world = World(lost=BATCH_LOSES, best={('layer', 4, 'steps'): 1e9})
  found = verdicts(networks, play(networks, world)[1])
  assert found['layer_margin_equal_steps'].verdict == NOT_TESTABLE
  assert found['layer_margin_equal_examples'].verdict == REPRODUCED
  assert found['batch_biased_equal_steps'].verdict == REPRODUCED


def test_diverged_runs_are_no_pairs(networks):
  _, rows = play(networks, World(lost=BATCH_LOSES))
  lost = (rows.phase == 'fresh') & (rows.arm == 'none') & (rows.batch == 4) & (rows.seed < 2)
  rows.loc[lost, 'diverged_step'] = 3
  assert verdicts(networks, rows)['layer_margin_equal_examples'].n == 8


# Checks.


def start(workdir, *more, **env):
  return helpers.run_module('experiments.normalization_basics', f'--workdir={workdir}',
                            '--preset=smoke', *more, env=env)


ALONE = '--config.parts=invariances,fast_variance', '--config.io.figures=false'


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> Path:
  """A finished run of two parts, started without data."""
  workdir = tmp_path_factory.mktemp('normalization_basics') / 'run'
  done = start(workdir, *ALONE, ACTNORM_DATA_DIR='/nowhere')
  assert done.returncode == 0, done.stderr[-3000:]
  return workdir


@pytest.fixture(scope='module')
def measured(alone) -> dict[str, pd.DataFrame]:
  """Its rows by part."""
  return dict(list(pd.read_csv(alone / 'results.csv').groupby('part')))


def test_the_invariance_table_and_one_wrong_entry_each(measured):
  table = measured['invariances']
  assert len(table) == 30 and table.invariant.sum() == 13
  for name, outcome in checks.invariance_outcomes(table).items():
    assert outcome.verdict == REPRODUCED and outcome.n is None, name
  for name, change, value in (('layer', checks._CASE, 1e-11), ('batch', checks._CASE, 1e-3)):
    bent = table.copy()
    bent.loc[(bent.norm == name) & (bent.transformation == change), 'deviation'] = value
    found = checks.invariance_outcomes(bent)
    assert [k for k, o in found.items() if o.verdict == NOT_REPRODUCED] == [f'invariances_{name}']


def test_an_eps_breaks_the_rescalings():
  """The condition of the table: with eps 1e-3 no re-scaling is exact, the re-centring still is."""
  found = invariances.deviations('layer(eps=1e-3)')
  assert min(found[checks._MATRIX], found[checks._DATA], found[checks._CASE]) > 1e-5
  assert found[checks._CENTRE] < checks.SAME


def test_the_fast_variance_fails_and_ours_holds(measured):
  rows = measured['fast_variance']
  found = checks.variance_outcomes(rows)
  assert {o.verdict for o in found.values()} == {REPRODUCED}
  swapped = rows.assign(method=rows.method.map(
      {'flax, one pass': 'two passes', 'two passes': 'flax, one pass'}))
  assert {o.verdict for o in checks.variance_outcomes(swapped).values()} == {NOT_REPRODUCED}


def test_the_output_of_one_example_moves_with_its_batch_under_batch_norm_alone():
  rows = pd.DataFrame(checks.measure_independence(None, [8]))
  assert checks.independence_outcome(rows).verdict == REPRODUCED
  swapped = rows.assign(arm=rows.arm.map({'batch': 'layer', 'layer': 'batch', 'none': 'none'}))
  assert checks.independence_outcome(swapped).verdict == NOT_REPRODUCED


def test_a_small_stack_with_attention_is_near_its_prediction():
  found = pd.DataFrame(checks.measure_attention_blocks(None, 2, 64, 2, 16))
  assert len(found) == 2 * 2 * len(checks.PLACEMENTS)
  assert list(found.sublayer[:2]) == ['attention', 'mlp']
  np.testing.assert_allclose(found.measured, found.predicted, rtol=0.15)
  np.testing.assert_allclose(found.correlation, found.predicted_correlation, atol=0.1)


def stack_rows(factor: float = 1.0, gelu_lns: float = 2.490) -> pd.DataFrame:
  """The last block of each stack, `factor` away from the prediction."""
  ends = {'relu': (49, 49, 5.459, 2), 'gelu': (21.41, 49, 2.490, 1.4252)}
  return pd.DataFrame([
      {'part': 'residual_variance', 'activation': a, 'placement': p, 'block': 48, 'predicted': v,
       'measured': gelu_lns if (a, p) == ('gelu', 'layernorm scaling') else factor * v}
      for a, values in ends.items() for p, v in zip(checks.PLACEMENTS, values, strict=True)])


def test_residual_variances_against_the_bound_and_the_wrong_predictions():
  def words(rows):
    return {k[-4:]: o.verdict for k, o in checks.residual_outcomes(rows).items()}
  assert words(stack_rows(1.05)) == {'relu': REPRODUCED, 'gelu': REPRODUCED}
  assert words(stack_rows(1.11)) == {'relu': NOT_REPRODUCED, 'gelu': NOT_REPRODUCED}
  # Within 10 % of the prediction, and of the homogeneous one as well: the control does not hold.
  assert words(stack_rows(1.0, 2.490 * 1.09))['gelu'] == NOT_REPRODUCED


@pytest.mark.parametrize('outcomes, part, column', [
    (checks.invariance_outcomes, 'invariances', 'deviation'),
    (checks.variance_outcomes, 'fast_variance', 'largest_std'),
    (checks.residual_outcomes, 'stacks', 'measured')])
def test_what_is_not_a_number_passes_no_bound(measured, outcomes, part, column):
  """pandas leaves nan out of a maximum, and Python keeps whichever stands first."""
  rows = (stack_rows() if part == 'stacks' else measured[part]).reset_index(drop=True)
  for place in range(len(rows)):
    if part == 'invariances' and rows.norm[place] == 'none':
      continue
    bent = rows.copy()
    bent.loc[place, column] = math.nan
    if part == 'fast_variance' and not math.isnan(rows.percent[place]):
      continue  # a row of the histogram, which is not judged
    if part == 'fast_variance' and (rows.method[place], rows.offset[place]) == (
        'flax, one pass', checks.OFFSET):
      continue  # judged by the share alone
    assert NOT_REPRODUCED in {o.verdict for o in outcomes(bent).values()}, rows.loc[place]


def test_blocks_with_attention_are_shown_and_not_judged():
  """Beside their predictions, in a table of their own; a record without them has no such table."""
  blocks = pd.DataFrame([
      {'part': 'residual_variance', 'activation': 'relu', 'placement': p, 'block': b,
       'sublayer': s, 'predicted': 2.0, 'measured': 3.0, 'tokenless': 4.0,
       'predicted_correlation': 0.5, 'correlation': 0.6}
      for p in checks.PLACEMENTS for b in range(1, 25) for s in ('attention', 'mlp')])
  config = resolved(parts=('residual_variance',))

  def shown(rows):
    return study.report(Run(config, rows, lambda: None, 'made up'))

  alone, both = shown(stack_rows()), shown(pd.concat([stack_rows(), blocks], ignore_index=True))
  assert both.outcomes == alone.outcomes and len(alone.tables) == 1
  assert both.tables[0].rows == alone.tables[0].rows
  rows = both.tables[1].rows
  assert [r['block'] for r in rows[:6]] == [1, 1, 12, 12, 24, 24] and len(rows) == 24
  assert {r['off'] for r in rows} == {50.0}


# Running moments.


def test_running_moments_of_both_conventions_and_of_the_population():
  count, steps = 4, 7
  xs = jax.random.normal(jax.random.key(1), (steps, count, 6)) * 2 + 1
  of = {r: models.build('mlp', widths=[5, 3], norm=f'pre:batch(running={r})')
        for r in ('unbiased', 'biased')}

  def run():  # one program, not optimized: compiling takes the time
    first = of['unbiased'].init(jax.random.key(0), xs[0], train=False)
    rest, start = {'params': first['params'], 'hp': first['hp']}, dict(first['batch_stats'])

    def ends(network):
      def step(stats, x):
        changed = network.apply({**rest, 'batch_stats': stats}, x, train=True,
                                mutable=['batch_stats'])[1]
        return dict(changed['batch_stats']), None
      return jax.lax.scan(step, start, xs)[0]

    stats = {r: ends(network) for r, network in of.items()}
    network, data = of['unbiased'], xs.reshape(-1, 6)
    variables = {**rest, 'batch_stats': stats['unbiased']}
    population = recalibrated(network, variables, data)
    outputs = {'batch': network.apply(variables, data, train=True, mutable=['batch_stats'])[0],
               'population': network.apply({**rest, 'batch_stats': population}, data, train=False),
               'running': network.apply(variables, data, train=False)}
    return stats, population, outputs

  run = jax.jit(run, compiler_options={'xla_backend_optimization_level': 0})
  stats, population, outputs = jax.device_get(run())
  converted = biased_running(stats['unbiased'], count, 0.1, steps)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), converted,
               dict(stats['biased']))
  # The control: left as it is, the variance is another one.
  left, right = (stats[r]['norm_hidden_0']['var'] for r in of)
  assert np.abs(left / right - 1).max() > 0.1
  assert jax.tree.structure(population) == jax.tree.structure(dict(stats['unbiased']))
  np.testing.assert_allclose(outputs['population'], outputs['batch'], atol=1e-5)
  assert np.abs(outputs['running'] - outputs['batch']).max() > 1e-2


# The command.


def test_the_list_shows_measurements_and_needs_no_data_without_networks():
  def listed(*more):
    return preview.runs(study.STUDY, flags.parse(
        ['study', '--preset=smoke', '--list', *more], study.STUDY.name, study.STUDY.config,
        study.STUDY.presets))
  alone = listed('--config.parts=residual_variance', '--config.io.data_dir=/nowhere')
  assert alone.startswith('normalization_basics\n') and 'no training' in alone
  assert 'About 0.' in alone and ' runs' not in alone.splitlines()[-1]
  whole = listed()
  assert whole.startswith('normalization_basics on digits\n')
  assert sum('no training' in line for line in whole.splitlines()) == 6
  assert '\n16 runs, about ' in whole  # 2 seeds in 2 cells of 3 arms, and in 2 of the copies


def test_checks_alone_run_without_data_and_are_shown(alone):
  again = start(alone, *ALONE)
  assert again.returncode == 0 and 'measuring' not in again.stderr + again.stdout
  claims = json.loads((alone / 'claims.json').read_text())
  assert {c['verdict'] for c in claims if c['id'].startswith('invariances')} == {REPRODUCED}
  with pytest.raises(UserError, match='member 0 is a row of the measurement invariances'):
    load_run(alone, 0)
  with pytest.raises(UserError, match='invariances is a measurement'):
    load_cohort(Workdir(alone), 'invariances')
  checks = [c for c in claims if c.get('kind') == 'check']
  assert len(checks) == 9 and all(c['n'] is c['interval'] is None for c in checks)


@pytest.mark.slow
def test_smoke(tmp_path):
  """All parts. Killed before a measurement is written, the next start computes it again alone."""
  assert start(tmp_path / 'run', ACTNORM_FAULT='measured:2').returncode == -9
  assert not (tmp_path / 'run' / 'table.md').exists()
  done = start(tmp_path / 'run')
  assert done.returncode == 0, done.stderr[-3000:]
  said = done.stderr + done.stdout
  assert 'measuring fast_variance' in said and 'measuring invariances' not in said
  # The running moments of the conventions start from those of the training.
  rows = pd.read_csv(tmp_path / 'run' / 'results.csv')
  keys = ['batch', 'budget', 'seed']
  fresh = rows[(rows.phase == 'fresh') & (rows.arm == 'batch')].set_index(keys).test_accuracy
  own = rows[rows.convention == 'unbiased'].set_index(keys).test_accuracy
  assert len(own) == 4 and np.abs(own - fresh.reindex(own.index)).max() < 1e-6
  assert len(list((tmp_path / 'run' / 'figures').glob('*.png'))) == 5
  claims = json.loads((tmp_path / 'run' / 'claims.json').read_text())
  assert {c['verdict'] for c in claims if c.get('kind') == 'check'} == {REPRODUCED}
  assert {c['verdict'] for c in claims if c.get('kind') != 'check'} == {NOT_TESTABLE}
