"""The search part of the activation search: its table, its cohorts, verdicts on made-up rows."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from experiments import activation_search as study
from experiments.measurements import activation_search as measured
from experiments.parts import search, search_cohorts
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from model_lib.errors import UserError
from model_lib.search import parse
from model_lib.search.tabulated import Table
from tests.experiments.played import played as stages_of

SMALL = ('zero', 'identity', 'relu', 'tanh', 'abs', 'add', 'mul')


def config(**changes):
  found = config_lib.apply_preset(study.Config(), study.PRESETS['smoke'])
  return config_lib.apply_preset(found, {
      'parts': ('search',), 'search.operators': SMALL,
      **{f'search.{name}': value for name, value in changes.items()}})


def table_rows(functions: int = 12, seeds: int = 3) -> pd.DataFrame:
  rng = np.random.default_rng(0)
  texts = [f'add(x, {i})' for i in range(functions)]
  return pd.DataFrame([
      {'phase': 'table', 'activation': text, 'seed': seed, 'steps': 60,
       'diverged_step': -1, **{f'{split}_{measure}{at}': rng.uniform()
          for split in ('val', 'test') for measure in ('loss', 'accuracy')
          for at in ('', '_at_10', '_at_30')}}
      for seed in range(seeds) for text in texts])


def test_the_table_holds_every_number_in_its_place(tmp_path):
  rows = table_rows()
  table = measured.table_of(rows.sample(frac=1, random_state=0), {'a': 1})
  assert table.steps == (10, 30, 60) and sorted(table.seeds) == [0, 1, 2]
  for row in rows.itertuples():
    place = table.expressions.index(row.activation), table.seeds.index(row.seed)
    assert table.validation_loss[place].tolist() == [
        row.val_loss_at_10, row.val_loss_at_30, row.val_loss]
    assert table.test_accuracy[place][-1] == row.test_accuracy
  table.write(tmp_path / 'table.npz')
  assert Table.read(tmp_path / 'table.npz').meta == {'a': 1}


def test_what_is_worse_than_guessing_counts_as_guessing():
  rows = table_rows()
  rows.loc[0, 'test_loss'], rows.loc[1, 'diverged_step'] = 1e34, 5
  rows.loc[2, 'test_loss'] = 0.9
  table = measured.capped(measured.table_of(rows, {}), 0.8)
  lost = [table.test_loss[table.expressions.index(rows.activation[i]), 0, -1] for i in range(3)]
  assert lost == [0.8, 0.8, 0.8] and table.test_loss.min() < 0.1
  assert np.isfinite(table.regrets(1)).all() and table.regrets(1).max() <= 0.8


def test_permuted_losses_are_the_same_numbers_at_other_functions():
  table = measured.table_of(table_rows(), {})
  other = measured.permuted(table, 0)
  for step in range(3):
    own, dealt = table.test_loss[:, :, step], other.test_loss[:, :, step]
    assert sorted(map(tuple, own)) == sorted(map(tuple, dealt)) and (own != dealt).any()
  # The order of one step says nothing of another's.
  orders = [[own.tolist().index(row) for row in dealt.tolist()] for own, dealt in (
      (table.test_loss[:, :, s], other.test_loss[:, :, s]) for s in range(3))]
  assert orders[0] != orders[1] != orders[2]


def played(settings):
  """The stages that the part asks for, answered with losses that prefer tanh."""
  def row(tags):
    loss = (0.1 if tags['activation'] == 'tanh(x)' else 0.2) + 1e-3 * tags['copy']
    return {'diverged_step': -1, 'val_loss': loss + abs(tags['lr_factor'] - 1)}

  return stages_of(search_cohorts.cohorts(settings), row)


def test_the_order_of_the_part():
  stages = played(config(copies=5, finalists=2, transfer_seeds=3))
  (table, measurements, *generations, steps, mixtures, hardened, rates, fresh, _, vit_rates, vit,
   texts, text) = stages
  functions = {m.tags['activation'] for m in table[0].members if m.tags['phase'] == 'table'}
  assert {'relu(x)', 'tanh(x)', 'abs(x)'} <= functions  # by their shortest texts
  assert len(table[0].members) == 3 * (len(functions) + 5)
  assert table[0].evaluate_at == (10, 30)
  assert [item.name for item in measurements] == [
      'search-counts', 'search-proxies', 'search-regrets']
  assert [item.name for item in steps] == ['search-eafo-steps']
  assert {m.hp['temperature'] for m in mixtures[0].members} == {0.03, 0.1}
  assert [item.name for item in hardened] == ['search-hardened']
  assert len(generations) == 4 and all(len(g[0].members) <= 4 for g in generations)
  arms = [cohort.members[0].tags['activation'] for cohort in fresh]
  assert arms[:4] == ['relu(x)', 'gelu(x)', 'swish(x)', 'tanh(x)'] and len(set(arms)) == len(arms)
  # The copies with the lowest losses are run again, as many as there are other functions.
  assert {m.tags['copy'] for m in fresh[0].members} == set(range(min(5, len(arms) - 1) + 1))
  assert {m.tags['activation'] for c in vit for m in c.members} == set(arms)
  assert all(c.model.name == 'vit' and not c.data for c in (*vit_rates, *vit))
  assert all(c.model.name == 'gpt' and c.data == 'text' for c in (*texts, *text))
  assert not {m.seed for m in fresh[0].members} & {m.seed for c in rates for m in c.members}
  members = [m for stage in stages for item in stage for m in getattr(item, 'members', ())]
  tags = [json.dumps(m.tags) for m in members]
  assert len(set(tags)) == len(tags)
  for m in members:
    if 'candidate' in m.hp:
      assert m.hp['candidate'] == m.tags['activation']
      assert m.hp['init_gain'] == search_cohorts.gain(m.hp['candidate'])


def test_finalists_are_different_functions():
  # tanh and ReLU stand beside the finalists anyway, whatever the sign and the scale.
  texts = ['add(tanh(x), tanh(x))', 'relu(neg(x))', 'sin(x)', 'add(sin(x), sin(x))',
           'neg(sin(x))', 'add(1, sin(x))', 'abs(x)', 'square(x)']
  rows = pd.DataFrame([{'phase': 'table', 'activation': text, 'val_loss': 0.1 + 0.01 * i,
                        'diverged_step': -1} for i, text in enumerate(texts)])
  assert search_cohorts.finalists(config(finalists=2), rows) == ['sin(x)', 'abs(x)']
  assert search_cohorts.finalists(config(finalists=9), rows) == ['sin(x)', 'abs(x)', 'square(x)']
  lost = rows.assign(diverged_step=np.where(rows.activation == 'sin(x)', 7, -1))
  assert search_cohorts.finalists(config(finalists=1), lost) == ['add(sin(x), sin(x))']


def test_learnable_finalists_run_as_programs():
  stages = played(dataclasses.replace(config(), search=dataclasses.replace(
      config().search, operators=SMALL, live_space='swish')))
  programs = {c.name: c.model.arguments['activation'] for stage in stages for c in stage
              if hasattr(c, 'members')}
  for stage in stages:
    for cohort in stage:
      for m in getattr(cohort, 'members', ()):
        if m.tags['phase'] != 'relaxation' and parse(m.tags['activation']).n_parameters:
          assert not programs[cohort.name].startswith('table')


def made_up(gain: float = 0.02, best: float = -0.05, control: float = 0.0, edge: str = '',
            searches: int = 100, seeds: int = 20, transferred: float = -0.1,
            level: float = 0.4, mlp_level: float = 0.2) -> pd.DataFrame:
  """Rows of every phase: algorithms better by `gain`, a finalist by -`best`."""
  rng = np.random.default_rng(0)
  rows = []
  for table, better in (('trained', gain), ('permuted', control)):
    for algorithm, baseline in measured.BASELINES.items():
      for count in (10, 100):
        rows.append({'phase': 'regret', 'table': table, 'algorithm': algorithm, 'baseline': baseline,
                     'evaluations': count, 'regret': 0.1 - better, 'bound': 0.01, 'pairs': searches,
                     'difference': -better, 'difference_low': -better - 0.005,
                     'difference_high': -better + 0.005, 'p': 1e-4 if abs(better) > 0.005 else 0.9})
  arms = [('relu(x)', 0), ('gelu(x)', 0), ('abs(x)', 0), ('sin(x)', 0), ('relu(x)', 1),
          ('relu(x)', 2)]
  for text, copy in arms:
    for factor in (1 / 3, 1.0, 3.0):
      rows += [{'phase': phase, 'model': model, 'activation': text, 'copy': copy,
                'lr_factor': factor,
                'val_loss': -factor if edge == 'all' or edge and copy else abs(factor - 1),
                'diverged_step': -1}
               for phase, model in (('selection', 'mlp'), ('transfer_selection', 'vit'),
                                    ('transfer_selection', 'gpt'))]
    for seed in range(seeds):
      # GELU, known before, is better than what was found; by validation sin looks best.
      shift = {'abs(x)': best, 'gelu(x)': best - 0.02}.get(text, 0.003 * copy)
      run = {'activation': text, 'copy': copy, 'seed': seed, 'diverged_step': -1}
      rows.append({'phase': 'fresh', 'model': 'mlp', 'val_loss': 0.1 + 0.1 * (text != 'sin(x)'),
                   'test_loss': mlp_level + shift + 0.002 * rng.normal(), **run})
      if copy < 2 and seed < 8:
        rows += [{'phase': 'transfer', 'model': model, **run, 'test_loss': level
                  + transferred * (text == 'sin(x)') + 0.02 * copy + 0.01 * rng.normal()}
                 for model in ('vit', 'gpt')]
  rows.append({'phase': 'unigram', 'entropy': 2.3})
  return pd.DataFrame(rows)


@pytest.mark.parametrize('world, of_searches, of_finalist', [
    ({}, REPRODUCED, REPRODUCED),
    ({'gain': -0.02, 'best': 0.05}, NOT_REPRODUCED, NOT_REPRODUCED),
    ({'gain': 0.0, 'best': -0.004}, NOT_REPRODUCED, NOT_REPRODUCED),  # within what copies differ by
    ({'control': 0.02}, NOT_TESTABLE, REPRODUCED),
    ({'control': -0.02}, REPRODUCED, REPRODUCED),
    ({'searches': 29, 'seeds': 15}, NOT_TESTABLE, NOT_TESTABLE),
    ({'edge': 'all'}, REPRODUCED, NOT_TESTABLE),
    ({'edge': 'copies'}, REPRODUCED, REPRODUCED),  # copies of ReLU are no functions of their own
    ({'mlp_level': 2.2}, REPRODUCED, NOT_TESTABLE),
])
def test_verdicts(world, of_searches, of_finalist):
  found = search.outcomes(made_up(**world), (0.1,) * 10)
  assert {found[f'{a}_beats_random'].verdict for a, baseline in measured.BASELINES.items()
          if baseline} == {of_searches}
  assert found['finalist_passes_null'].verdict == of_finalist
  named = {claim.id for claim in study.claims(config())}
  assert set(found) == named


@pytest.mark.parametrize('world, verdict', [
    ({}, REPRODUCED), ({'transferred': 0.1}, NOT_REPRODUCED), ({'transferred': 0.0}, NOT_REPRODUCED),
    ({'transferred': -0.015}, NOT_REPRODUCED),  # less than a copy of ReLU differs by
    ({'level': 2.1}, NOT_TESTABLE), ({'seeds': 7}, NOT_TESTABLE), ({'edge': 'all'}, NOT_TESTABLE)])
def test_transfer(world, verdict):
  found = search.outcomes(made_up(**world), (0.1,) * 10)
  assert found['finalist_transfers'].verdict == verdict
  assert found['finalist_transfers_to_text'].verdict == verdict


@pytest.mark.parametrize('changes, line', [
    ({'operators': ('reluu', 'add')}, 'relu'), ({'operators': ('add',)}, 'leave no candidate'),
    ({'operators': ('identity', 'add')}, 'no valid candidate is left'),
    ({'space': 'swich'}, 'swish'), ({'marks': (30, 10)}, 'search.marks'),
    ({'evaluations': (5, 5)}, 'search.evaluations'), ({'seeds': 5}, None)])
def test_bad_input_is_one_line(changes, line):
  if line is None:
    search_cohorts.check(config(**changes))
    return
  with pytest.raises(UserError, match=line) as error:
    search_cohorts.check(config(**changes))
  assert '\n' not in str(error.value)
