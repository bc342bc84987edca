"""Successive halving of vision transformers: its cohorts, and verdicts on made-up rows."""
from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from experiments import activation_search as study
from experiments.parts import children, children_cohorts
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from launch.study.tables import Table
from model_lib.errors import UserError
from tests.experiments.played import played as stages_of

FOUND = ('abs(x)', 'sin(x)')
KNOWN = ('relu', 'gelu')


def config(preset='smoke', **changes):
  found = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(found, {
      'parts': ('children',), **{f'children.{name}': value for name, value in changes.items()}})


def played(settings, losses):
  """The stages that the part asks for; losses(tags) -> validation loss, or None if diverged."""
  def row(tags):
    loss = losses(tags)
    return {'val_loss': np.nan if loss is None else loss,
            'diverged_step': 3 if loss is None else -1}

  return stages_of(children_cohorts.cohorts(settings), row)


def test_the_rungs_keep_the_best_that_did_not_diverge():
  settings = config(candidates=8, keep=0.5, finalists=2)
  order = children_cohorts.drawn(settings)

  def losses(tags):
    place = order.index(tags['activation']) if tags['activation'] in order else 0
    if tags['phase'] != 'rung':
      return abs(tags['lr_factor'] - 1)
    # The last ones are the best, but the very last diverges; the copies are better than all.
    return None if place == 7 else -1.0 if tags['copy'] else 1 - 0.1 * place

  first, second, proxies, *rest = played(settings, losses)
  texts = [[m.tags['activation'] for m in stage[0].members if not m.tags['copy']]
           for stage in (first, second)]
  assert sorted(texts[0]) == sorted(order) and len(order) == 8
  assert texts[1] == [order[place] for place in (6, 5, 4, 3)]
  for stage, steps in ((first, 5), (second, 10)):
    cohort, = stage
    assert cohort.steps == steps and cohort.model.name == 'vit'
    assert sorted(m.tags['copy'] for m in cohort.members if m.tags['copy']) == [1, 2]
    own = {(m.seed, m.split) for m in cohort.members if not m.tags['copy']}
    copies = {m.seed for m in cohort.members if m.tags['copy']}
    assert len(own) == 1 and len(copies) == 2 and own.isdisjoint(copies)
    for m in cohort.members:
      assert m.hp['candidate'] == m.tags['activation']
      assert m.hp['init_gain'] == pytest.approx(children_cohorts.gain(m.hp['candidate']))
  assert proxies[0].name == 'children-proxies'
  members = [m for stage in rest for cohort in stage for m in cohort.members]
  final = dict.fromkeys(m.tags['activation'] for m in members)
  chosen = [text for text in final if text not in KNOWN]
  assert chosen == children_cohorts.finalists(settings, texts[1]) and 1 <= len(chosen) <= 2
  assert [{c.model.name for c in stage} for stage in rest] == [{'cnn'}, {'cnn'}, {'vit'}, {'vit'}]
  tags = [json.dumps(m.tags) for m in members]
  assert len(set(tags)) == len(tags)
  for name in ('cnn', 'vit'):
    fresh = {}
    for m in members:
      if m.tags['phase'] == 'fresh' and m.tags['model'] == name:
        fresh.setdefault(m.tags['activation'], []).append((m.seed, m.split))
    assert set(fresh) == {*chosen, *KNOWN} and len({tuple(runs) for runs in fresh.values()}) == 1
  fresh = {m.seed for m in members if 'fresh' in m.tags['phase']}
  assert not fresh & {m.seed for m in members if 'selection' in m.tags['phase']}


def test_finalists_are_different_and_not_known():
  texts = ['neg(relu(x))', 'sin(x)', 'neg(sin(x))', 'gelu(x)', 'abs(x)', 'square(x)']
  assert children_cohorts.finalists(config(finalists=2), texts) == ['sin(x)', 'abs(x)']
  assert children_cohorts.finalists(config(finalists=9), texts) == ['sin(x)', 'abs(x)', 'square(x)']


def test_the_protocol_for_one_gpu_has_the_sizes_of_the_plan():
  settings = config_lib.apply_preset(study.Config(), study.PRESETS['gpu'])
  assert settings.parts == ('children', 'glu') and settings.dataset == 'cifar10'
  stages = played(config('gpu'), lambda tags: abs(tags['lr_factor'] - 1))
  rungs = [stage[0] for stage in stages[:3]]
  assert [len(c.members) for c in rungs] == [256 + 8, 64 + 8, 16 + 8]
  assert [c.steps for c in rungs] == [400, 1200, 3600]
  finals = [c for stage in stages[4:] for c in stage if '-fresh-' in c.name]
  assert {c.model.name: c.model.arguments.get('depth') for c in finals} == {'cnn': None, 'vit': 12}
  runs = {}
  for c in finals:
    runs.setdefault(c.model.name, []).extend(m for m in c.members if not m.tags['copy'])
  assert {name: len(found) for name, found in runs.items()} == {
      'cnn': (8 + 7) * 5, 'vit': (8 + 7) * 5}


def made_up(best: float = -0.05, in_cnn: float = -0.05, copy: float = 0.01, seeds: int = 6,
            edge: bool = False, level: float = 1.0, lost: int = 0) -> pd.DataFrame:
  """Rows in which sin is better than ReLU by -best in the ViT and by -in_cnn in the ResNet."""
  rng = np.random.default_rng(0)
  rows = []
  for number, steps in enumerate((5, 10)):
    for place, text in enumerate((*FOUND, 'tanh(x)')):
      rows.append({'phase': 'rung', 'rung': number, 'steps': steps, 'model': 'child', 'copy': 0,
                   'activation': text, 'val_loss': 1 + 0.1 * place, 'diverged_step': -1})
    rows += [{'phase': 'rung', 'rung': number, 'steps': steps, 'model': 'child', 'copy': k,
              'activation': 'relu(x)', 'val_loss': 1.05 + 0.1 * k, 'diverged_step': -1}
             for k in (1, 2)]
  rows.append({'phase': 'proxy', 'proxy': 'p', 'expected': 1, 'tau': 0.3, 'tau_low': 0.1,
               'tau_high': 0.5, 'functions': 3, 'wall_s': 1.0})
  for model in ('cnn', 'vit'):
    for text in (*KNOWN, *FOUND):
      run = {'model': model, 'activation': text, 'copy': 0, 'diverged_step': -1}
      rows += [{**run, 'phase': 'selection', 'lr_factor': f, 'seed': 0,
                'val_loss': f if edge else abs(f - 1)} for f in (1 / 3, 1.0, 3.0)]
      shift = (in_cnn if model == 'cnn' else best) * (text == 'sin(x)')
      for seed in range(seeds):
        rows.append({**run, 'phase': 'fresh', 'seed': seed,
                     'test_loss': level + shift + 0.002 * rng.normal(),
                     'val_loss': 1 - 0.2 * (text == 'sin(x)'), 'test_accuracy': 0.5,
                     'learning_rate': 0.1,
                     'diverged_step': 3 if text in FOUND and seed < lost else -1})
    rows += [{'model': model, 'activation': 'relu', 'copy': 1, 'diverged_step': -1, 'seed': seed,
              'phase': 'null_fresh', 'test_loss': level + copy} for seed in range(seeds)]
  return pd.DataFrame(rows)


@pytest.mark.parametrize('world, resnet, vit, both', [
    ({}, REPRODUCED, REPRODUCED, REPRODUCED),
    ({'in_cnn': 0.05}, NOT_REPRODUCED, REPRODUCED, NOT_REPRODUCED),
    ({'best': 0.0}, REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED),
    ({'copy': -0.06}, NOT_REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED),
    ({'seeds': 4}, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE),
    ({'edge': True}, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE),
    ({'level': 2.2}, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE),
    ({'lost': 6}, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE)])
def test_verdicts(world, resnet, vit, both):
  found = children.outcomes(config(), made_up(**world), (0.1,) * 10)
  assert {key: outcome.verdict for key, outcome in found.items()} == {
      'found_better_in_resnet': resnet, 'found_better_in_vit': vit, 'found_better_in_both': both}
  assert {claim.id for claim in study.claims(config())} == set(found)


def test_the_worse_network_is_shown_for_both():
  found = children.outcomes(config(), made_up(best=-0.2), (0.1,) * 10)
  assert found['found_better_in_both'].ours == found['found_better_in_resnet'].ours > -0.1


def test_the_table_of_the_rungs_counts_what_is_below_all_copies():
  table = children.halving_table(config(), made_up(), 'digits')
  assert isinstance(table, Table)
  assert [row['below'] for row in table.rows] == [2, 2] and table.rows[0]['best'] == 'abs(x)'


@pytest.mark.parametrize('changes, line', [
    ({'rungs': (10, 5)}, 'children.rungs'), ({'known': ('gelu',)}, 'relu is missing'),
    ({'known': ('relu', 'gelu', 'gelu')}, 'twice'), ({'candidates': 5000}, 'not 5000'),
    ({'space': 'swich'}, 'swish'), ({'known': ('relu', 'gelo')}, 'gelu')])
def test_bad_input_is_one_line(changes, line):
  with pytest.raises(UserError, match=line) as error:
    children_cohorts.check(config(**changes))
  assert '\n' not in str(error.value)
