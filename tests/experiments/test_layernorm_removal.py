"""layernorm_removal without training: its cohorts, its verdicts from made-up rows, its refusals."""
from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import layernorm_removal as study
from experiments.measurements import layernorm_removal as measured
from experiments.parts import removal, removal_rows, removal_tables, removal_weights
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from launch.study.preview import expected_cohorts
from launch.study.study import Measurement, Run
from model_lib.errors import UserError
from model_lib.models.removable import NEVER
from model_lib.training.state import schedule
from model_lib.transforms.recipes import PAPER


def resolved(preset: str = 'cpu', **changes: object) -> study.Config:
  config = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(config, changes)


def cohorts(config: study.Config) -> dict[str, Any]:
  return {item.name: item for asked in expected_cohorts(study.STUDY, config) for item in asked}


# The design: what is paired with what.


def test_arms_of_a_base_differ_in_what_they_say_and_in_nothing_else():
  asked = cohorts(resolved(arms=tuple(study.ARMS)))
  members = {(m.tags['arm'], m.tags['base'], m.tags['lr_factor']): m for item in asked.values()
             if not isinstance(item, Measurement) and item.name.startswith('arms-')
             for m in item.members if m.tags['phase'] == 'tuned'}
  assert {arm for arm, _, _ in members} == set(study.ARMS)
  for (_, base, _), m in members.items():
    first = members['vanilla', base, 1.0]
    assert (m.seed, m.data_seed, m.start, m.split) == (first.seed, first.data_seed, base, 0)
    assert m.hp['weight_decay'] == first.hp['weight_decay']
  seeds = [members['vanilla', base, 1.0].data_seed for base in range(3)]
  assert len({*seeds, *(m.seed for m in asked['arms-base'].members)}) == 6
  # One program for all arms without parts of their own, and what must share bits in one cohort.
  assert {m.tags['arm'] for m in asked['arms-tuned'].members} == {
      'vanilla', 'ln_free', 'no_aux', 'sham'}
  assert asked['arms-tuned'].model == asked['arms-others'].model
  assert asked['arms-tuned'].optimizer == asked['arms-others'].optimizer
  hp = {arm: members[arm, 0, 1.0].hp for arm in study.ARMS}
  events = ('event_qk', 'event_v', 'event_mlp', 'event_final')
  assert all(np.min(hp['vanilla'][name]) == NEVER for name in events)
  assert all(hp['sham'][name] == hp['ln_free'][name] for name in events)
  assert (hp['sham']['enabled'], hp['ln_free']['enabled']) == (0, 1)
  changed = {name for name in hp['no_aux'] if hp['no_aux'][name] != hp['ln_free'][name]}
  assert changed == {'aux_weight'} and hp['no_aux']['aux_weight'] == 0 < hp['ln_free']['aux_weight']
  assert hp['sham']['aux_weight'] == hp['vanilla']['aux_weight'] == 0
  assert members['ln_free', 0, 2.0].hp == hp['ln_free'] | {
      'learning_rate': 2 * hp['ln_free']['learning_rate']}
  assert hp['keep_final'] == hp['ln_free'] | {'event_final': NEVER}
  first = {np.min(hp['at_once'][name]) for name in events} | {
      np.max(hp['at_once'][name]) for name in events}
  assert first == {min(hp['ln_free']['event_mlp'])}


def test_marks_are_before_the_first_event_and_behind_each_group():
  config = resolved()
  # The default schedule of 4 blocks in 100 steps, by hand: start 10, gaps 4, 4 and 6.
  asked = cohorts(config)['arms-tuned']
  hp = next(m.hp for m in asked.members if m.tags['arm'] == 'ln_free')
  assert hp['event_mlp'] == (10, 14, 18, 22) and hp['event_final'] == 66
  # So many steps are done before the first event, and with the last one of each group.
  assert asked.keep_at == asked.evaluate_at == (10, 23, 26 + 13, 42 + 19, 67)


def test_the_preset_has_other_seeds_than_the_first_record():
  """The rule of at_once_rises was written after that of seed 0."""
  seeds = [{seed for item in cohorts(resolved(seed=shift)).values()
            if not isinstance(item, Measurement) for m in item.members
            for seed in (m.seed, m.data_seed)} for shift in (0, resolved().seed)]
  assert seeds[0] and not seeds[0] & seeds[1]


def test_presets_can_be_planned():
  for preset in ('smoke', 'cpu', 'gpu'):
    config = resolved(preset)
    study.check(config)
    assert cohorts(config)
  scratch = cohorts(resolved(parts=('scratch',)))
  assert {c.members[0].tags['arm'] for c in scratch.values()} == set(study.SCRATCHED)


@pytest.mark.parametrize('size', PAPER)
def test_the_presets_of_the_paper_are_its_recipes(size, monkeypatch):
  recipe = PAPER[size]
  sizes = {'dim': recipe.dim, 'depth': recipe.depth, 'heads': recipe.heads, 'vocab': 50257,
           'length': 1024, 'eot': 50256}
  monkeypatch.setattr(removal_weights, 'attributes', lambda folder: sizes)
  config = resolved('paper' if size == 'small' else f'paper_{size}')
  study.check(config)
  asked = cohorts(config)
  cohort = asked['arms-tuned']
  assert (cohort.steps, cohort.batch_size) == (recipe.steps, recipe.tokens_per_step // 1024)
  assert cohort.model.arguments | sizes | {'dropout': 0.1, 'remat': True} == cohort.model.arguments
  spec = cohort.optimizer
  assert (spec.micro_batches, spec.horizon, spec.clip) == (recipe.accumulation, recipe.horizon, 1.0)
  free = next(m.hp for m in cohort.members if m.tags['arm'] == 'ln_free')
  assert free['aux_weight'] == recipe.aux_weight and free['ema'] == recipe.ema
  assert free['calls_per_step'] == recipe.accumulation and free['weight_decay'] == 0.01
  assert free['event_mlp'] == tuple(
      recipe.start + i * recipe.gap_mlp for i in range(recipe.depth))
  factor = schedule(spec, cohort.steps)
  rates = [recipe.peak_rate * float(factor(step)) for step in (0, recipe.warmup, recipe.horizon)]
  expected = (recipe.peak_rate / recipe.warmup, recipe.peak_rate, recipe.minimum_rate)
  assert rates == pytest.approx(expected, rel=1e-5)
  assert 'arms-base' not in asked and cohort.start == f'weights:{config.weights}'


@pytest.mark.parametrize('changes, line', [
    ({'arms': ('ln_free', 'sham')}, 'config.arms: vanilla must be'),
    ({'arms': ('vanilla',)}, 'config.arms: ln_free must be'),
    ({'rate_factors': (0.5, 2.0)}, 'config.rate_factors: 1 must'),
    ({'engine.log_every': 2}, 'config.engine.log_every: 2 leaves steps out'),
    ({'micro_batches': 3}, 'config.micro_batches: a batch of 16'),
    ({'weights': 'x', 'parts': ('arms', 'wide')}, 'weights have one size'),
    ({'weights': 'nowhere', 'parts': ('arms',)}, 'config.weights: nowhere: there is no such'),
    ({'schedule': 'staged(start=80)'}, 'config.schedule: .* removes its last norm at step 136'),
    ({'schedule': 'stagd'}, "config.schedule: .*nearest: 'staged'"),
    ({'schedule': 'paper(size=small)'}, 'config.schedule: .* for 12 layers and the model has 4'),
    *(({'schedule': text}, 'does not take every one at a given step') for text in (
        'never', 'keep_final(staged)', 'sham(staged)', 'adaptive(staged)', 'final_only'))])
def test_what_cannot_be_compared_is_refused_in_one_line(changes, line):
  with pytest.raises(UserError, match=line) as error:
    study.check(resolved(**changes))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['reversed', 'at_once(step=20)', 'staged(start=5, gap_mlp=1)'])
def test_schedules_that_fit(text):
  study.check(resolved(schedule=text))


# Measurements on small arrays.


def test_what_the_adaptive_rule_came_to_is_counted_and_said():
  state = {'event': np.array([[4, NEVER, NEVER, 9], [4, 6, 8, 9]]),
           'rollbacks': np.array([[0, 2, 1, 0], [0, 0, 0, 0]])}
  trained = dataclasses.make_dataclass('T', ['variables', 'rows'])(
      {'norm_state': {'rule': state}}, [{'arm': 'adaptive', 'base': b} for b in (0, 1)])
  given = dataclasses.make_dataclass('Given', ['trained'])({'arms-adaptive': trained}.__getitem__)
  rows = pd.DataFrame(measured.measure_rule(given, 'arms', 'arms-adaptive'))
  assert rows.value.tolist() == [2, 3, 0, 0]
  line, = removal_tables.rule_notes(rows)
  assert 'of 4 norms 2, 0 are left, and one was put back 3, 0 times' in line
  assert removal_tables.rule_notes(rows[rows.phase == 'card']) == []
  asked = cohorts(resolved())
  assert asked['arms-adaptive-rule'].arguments['tuned'] == 'arms-adaptive'
  assert not [name for name in cohorts(resolved('smoke')) if name.endswith('-rule')]


def test_bigram_against_a_plain_table():
  rng = np.random.default_rng(0)
  inputs = rng.integers(0, 5, (40, 9)) ** 2 % 7
  split = dataclasses.make_dataclass('S', ['train', 'val'])(np.arange(30), np.arange(30, 40))
  dataset = dataclasses.make_dataclass('D', ['inputs', 'vocab'])(inputs, 7)
  data = dataclasses.make_dataclass('G', ['splits', 'dataset'])([split], dataset)
  given = dataclasses.make_dataclass('Given', ['data'])(data)
  counts = np.ones((7, 7))
  for window in inputs[:30]:
    for a, b in zip(window[:-1], window[1:]):
      counts[a, b] += 1
  logp = np.log(counts / counts.sum(1, keepdims=True))
  windows = inputs[[30, 33, 36, 39], :-1]  # 4 of 10, evenly spaced, without the last target
  expected = -logp[windows[:, :-1], windows[:, 1:]].mean()
  found, = measured.measure_bigram(given, 'arms', 4)
  assert found['value'] == pytest.approx(expected, rel=1e-12)
  assert found['value'] != pytest.approx(
      -np.log(1 / 7), rel=0.05), 'a table that was not counted'


def metrics(losses: dict[tuple[int, int], float], steps: int) -> pd.DataFrame:
  """Lines of members with loss 2, but where (member, line's step) says otherwise."""
  return pd.DataFrame([
      {'run': 'x', 'member': m, 'split': 'train', 'step': s, 'grad_norm': 1.0,
       'loss': losses.get((m, s), 2.0)} for s in range(1, steps + 1) for m in range(4)])


def run_of(losses: dict[tuple[int, int], float]) -> Run:
  """A run of vanilla, sham, no_aux and at_once of one base, 4 blocks, 100 steps."""
  arms = ('vanilla', 'sham', 'no_aux', 'at_once')
  rows = pd.DataFrame([
      {'part': 'arms', 'phase': 'tuned', 'arm': arm, 'base': 0, 'lr_factor': 1.0, 'member': i,
       'val_loss': 2.0, 'test_loss': 2.0, 'train_loss': 2.0, 'diverged_step': -1}
      for i, arm in enumerate(arms)])
  return Run(resolved(), rows, lambda: metrics(losses, 100), 'text')


def test_an_event_at_step_s_is_the_line_that_says_s_plus_1():
  # at_once removes at optimizer step 10, from 0: the 11th loss is the first with it.
  for line, spike in ((10, 0.0), (11, 1.0), (15, 1.0), (16, 0.0)):
    events = removal_rows.events_of(run_of({(3, line): 3.0}), 'arms', resolved().small)
    own = events[events.arm == 'at_once']
    assert own.step.tolist() == [10]
    assert own.spike.tolist() == pytest.approx([spike if line != 10 else -0.2])
  steps = events[events.arm == 'vanilla'].step.tolist()
  assert steps == events[events.arm == 'no_aux'].step.tolist() == sorted(set(steps))
  assert len(steps) == 13 and steps[0] == 10
  # Against vanilla on the same batches: what both have is no rise.
  both = {(m, 12): 3.0 for m in range(4)}
  for losses, rise in ((both, 0.0), (both | {(3, 13): 2.5}, 0.5), (both | {(0, 13): np.nan}, None)):
    events = removal_rows.events_of(run_of(losses), 'arms', resolved().small)
    own, = events[(events.arm == 'at_once')].rise
    assert np.isnan(own) if rise is None else own == rise
    assert events[(events.arm == 'at_once')].spike.tolist() == [1.0]
  lost = removal_rows.events_of(run_of({(2, s): np.nan for s in range(30, 101)}), 'arms',
                                resolved().small)
  assert np.isinf(lost[(lost.arm == 'no_aux') & (lost.step > 40)].spike).all()


def test_runs_that_differ_are_counted_from_their_first_step():
  run = run_of({(2, 11): 3.0, (2, 12): 3.0})
  assert removal_rows.differing(run, run.rows) == {'sham': (0, -1), 'no_aux': (2, 10)}
  run.rows.loc[1, 'val_loss'] = 2.5
  assert removal_rows.differing(run, run.rows)['sham'] == (1, -1)
  both = run_of({(m, 50): np.nan for m in (0, 1)})
  assert removal_rows.differing(both, both.rows)['sham'] == (0, -1)
  assert removal_rows.differing(both, both.rows[both.rows.arm != 'sham']) == {}


def test_a_run_that_never_recovers_has_a_dash():
  losses = {(3, s): 3.0 for s in range(11, 101)}
  events = removal_rows.events_of(run_of(losses), 'arms', resolved().small)
  table = removal_tables.events_table(events, run_of(losses).rows, '')
  rows = {row['arm']: row for row in table.rows}
  assert np.isnan(rows['at_once']['recovery']) and rows['no_aux']['recovery'] == 0


# Verdicts.


@dataclasses.dataclass
class World:
  """What made-up runs find; every number is exact but for `jitter` between bases."""

  bases: int = 3
  level: float = 2.0  # of the bases; a bigram model has 3
  gap: float = 0.03
  gap_jitter: float = 1e-3
  sure: bool = True  # whether the bootstrap within a base excludes 0
  swap: float = 0.5
  double: float = 0.2
  spike: float = 1.0  # of at_once beyond ln_free
  rise: float = 0.3  # the same against vanilla
  ends: float = 0.6
  ece: float = 0.01
  nmae: float = 1e-4
  real_nmae: float = 40.0
  folded_nmae: float = 1e-4
  patching: float = 0.0
  copied: float = 1.0
  ratio: float = 4.0
  shrunk: float = 0.3
  sink: float = 0.2
  sinks: float = -0.05
  neurons: float = 0.1
  clear: float = 6.0
  cosine: float = 0.99
  fold32: float = 1e-6
  fold64: float = 1e-14
  left: int = 0
  scanned: int = 9
  sham: int = 0
  acts: int = 100
  jitter: float = 1e-3

  def outcomes(self):
    rows, events = [], []

    def add(phase, arm, base, measure, value, **more):
      rows.append({'phase': phase, 'arm': arm, 'base': base, 'measure': measure, 'value': value,
                   'lr_factor': np.nan, 'diverged_step': np.nan, **more})

    def around(value, width=1e-4):
      return {'low': value - width, 'high': value + width}

    add('bigram', 'bigram', 0, 'val_loss', 3.0)
    for b in range(self.bases):
      own = self.jitter * (b - 1)
      width = 1e-4 if self.sure else 1.0
      add('losses', 'base', b, 'val_mean', self.level + own)
      for name in ('val_gap', 'best_gap'):
        gap = self.gap + self.gap_jitter * (b - 1)
        add('gaps', 'ln_free', b, name, gap, **around(gap, width))
      add('swaps', 'zero_tuning', b, 'val_gap', self.swap + own, **around(self.swap + own))
      add('swaps', 'doubled_sigma', b, 'val_gap', self.double + own,
          **around(self.double + own, width))
      for arm, loss in (('base', 2.0), ('vanilla', 1.9), ('ln_free', 1.93),
                        ('at_once', 1.93 + self.ends + own), ('reversed', 1.94)):
        rows.append({'phase': 'base' if arm == 'base' else 'tuned', 'arm': arm, 'base': b,
                     'lr_factor': 1.0, 'val_loss': loss, 'diverged_step': -1})
      events += [{'arm': arm, 'base': b, 'spike': spike, 'rise': rise} for arm, spike, rise in (
          ('vanilla', 0.1, 0.0), ('sham', 0.1, 0.0), ('ln_free', 0.2, 0.05), ('ln_free', 0.1, 0.1),
          ('at_once', 0.2 + self.spike + own, 0.1 + self.rise + own))]
      for arm, nmae, ece, ratio, sink in (
          ('base', self.real_nmae, 0.02, self.ratio, self.sink),
          ('vanilla', self.real_nmae, 0.02, self.ratio, self.sink),
          ('ln_free', self.nmae, 0.02 + self.ece + own, self.ratio * self.shrunk,
           self.sink + self.sinks + own)):
        add('card', arm, b, 'nmae_pooled', nmae)
        add('card', arm, b, 'ece_10', ece)
        add('card', arm, b, 'position_0_ratio', 1.0, place='h.0.ln_1')
        add('card', arm, b, 'position_0_ratio', ratio, place='ln_f')
        add('card', arm, b, 'sink_rate_query', sink)
        change = 0.06 * (self.neurons if arm == 'ln_free' else 1)
        add('card', arm, b, 'neuron_entropy', 0, place='1+2+3', together=3, size=change,
            control=0.06 / self.clear)
        add('card', arm, b, 'neuron_entropy', 0, place='1', together=1, size=9.0, control=9.0)
      add('card', 'folded', b, 'nmae_pooled', self.folded_nmae)
      add('card', 'ln_free', b, 'patching_gain', self.patching, place='resid_pre', p=0.5,
          **around(self.patching))
      add('card', 'base', b, 'patching_total', self.copied)
      add('card', 'ln_free', b, 'patching_gain', 7.0, place='mlp_out', p=0.5, **around(7.0))
      add('card', 'base', b, 'norm_direction_read', 0.999, place='h.0.ln_1')
      add('card', 'base', b, 'norm_direction_read', self.cosine, place='ln_f')
      add('card', 'base', b, 'norm_direction_random', 0.999, place='ln_f')
      add('card', 'folded', b, 'logit_difference', self.fold32, place='float32')
      add('card', 'folded', b, 'logit_difference', self.fold64, place='float64')
      add('card', 'folded', b, 'normalizations_left', self.left, control=self.scanned)
    apart = {'sham': (self.sham, -1), 'ln_free': (self.acts, 0), 'no_aux': (self.acts, 10)}
    return removal.outcomes(pd.DataFrame(rows), pd.DataFrame(events), apart)


CHECKS = {'sham_is_vanilla', 'attribution_is_exact', 'norm_keeps_direction', 'export_is_exact'}


def test_there_is_an_outcome_for_every_claim_and_for_no_other():
  named = {claim.id: claim.kind for claim in study.claims(resolved())}
  found = World().outcomes()
  assert set(found) == set(named)
  assert {name for name, kind in named.items() if kind == 'check'} == CHECKS
  assert {name: o.verdict for name, o in found.items()} == dict.fromkeys(named, REPRODUCED)


@pytest.mark.parametrize('world, claims', [
    ({'gap': 0.2}, ['removal_costs_little']),
    ({'gap': 0.0999, 'jitter': 1e-3}, ['removal_costs_little']),  # the limit counts, not the mean
    ({'gap': -0.03}, ['removal_costs_something']),
    ({'gap_jitter': 0.05}, ['removal_costs_little', 'removal_costs_something']),
    ({'sure': False}, ['removal_costs_something', 'doubled_sigma_differs']),
    ({'swap': 0.05}, ['zero_tuning_breaks']), ({'double': 0.0}, ['doubled_sigma_differs']),
    ({'spike': -0.05}, ['at_once_spikes']), ({'ends': 0.4}, ['at_once_breaks']),
    ({'rise': -0.05}, ['at_once_rises']), ({'rise': 0.001}, ['at_once_rises']),
    ({'ends': -0.05}, ['at_once_ends_worse', 'at_once_breaks']),
    ({'ece': -0.01}, ['worse_calibrated']), ({'nmae': 0.02}, ['attribution_is_exact']),
    ({'folded_nmae': 0.02}, ['attribution_is_exact']),
    ({'folded_nmae': np.nan}, ['attribution_is_exact']),
    ({'real_nmae': 4.0}, ['attribution_is_exact']),
    ({'patching': 0.1}, ['patching_is_no_better']), ({'shrunk': 0.6}, ['position_0_shrinks']),
    ({'sinks': 0.05}, ['sinks_weaken']), ({'neurons': 0.6}, ['confidence_neurons_stop']),
    ({'cosine': 0.9}, ['norm_keeps_direction']), ({'fold32': 1e-3}, ['export_is_exact']),
    ({'fold64': 1e-9}, ['export_is_exact']), ({'left': 1}, ['export_is_exact']),
    ({'scanned': 0}, ['export_is_exact']), ({'fold32': np.nan}, ['export_is_exact']),
    ({'sham': 1}, ['sham_is_vanilla']), ({'acts': 0}, ['sham_is_vanilla'])])
def test_each_claim_can_fail_alone(world, claims):
  found = World(**world).outcomes()
  assert {name for name, o in found.items() if o.verdict == NOT_REPRODUCED} == set(claims)
  assert not [name for name, o in found.items() if o.verdict == NOT_TESTABLE]


def test_what_is_not_testable():
  for world, why in (({'level': 2.75}, 'base too weak: 2.751'), ({'bases': 2}, '2 bases, 3 are')):
    found = World(**world).outcomes()
    assert {name for name, o in found.items() if o.verdict != NOT_TESTABLE} == CHECKS
    assert all(why in o.note for name, o in found.items() if name not in CHECKS)
  for world, claims, why in (
      ({'ratio': 1.9}, ['at_once_breaks', 'position_0_shrinks'], '1.90 times'),
      ({'copied': 0.4}, ['patching_is_no_better'], '0.40'),
      ({'sink': 0.04, 'sinks': -0.03}, ['sinks_weaken'], '4.0%'),
      ({'clear': 3.0}, ['confidence_neurons_stop'], '3.00')):
    found = World(**world).outcomes()
    assert [name for name, o in found.items() if o.verdict == NOT_TESTABLE] == claims
    assert all(why in found[claim].note for claim in claims)


def test_paper_values_are_differences_of_the_printed_numbers():
  listed = {claim.id: claim for claim in study.claims(resolved())}
  table = {(row['size'], row['arm']): row['owt'] for row in json.loads(
      (study.Path(study.__file__).parent / 'paper_values/layernorm_removal.json')
      .read_text())['table_1']}
  for name in ('removal_costs_little', 'removal_costs_something'):
    assert listed[name].paper_value == pytest.approx(
        table['Small', 'ln_free'] - table['Small', 'vanilla'], abs=1e-9)
  assert listed['worse_calibrated'].paper_value == pytest.approx(0.0354 - 0.0263)
