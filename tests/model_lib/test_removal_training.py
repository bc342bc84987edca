"""Removal in the training engine: events that are given, and events that follow the loss."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from model_lib import models
from model_lib.models import removable
from model_lib.training.cohort import Member, ModelSpec
from model_lib.training.tasks import NextToken
from model_lib.transforms import gpt2_export
from model_lib.transforms.removal_schedules import schedule
from tests.model_lib.engine import Engine

pytestmark = pytest.mark.usefixtures('unoptimized')

STEPS, DEPTH = 40, 2
ATTRIBUTES = {'vocab': 9, 'length': 8, 'dim': 8, 'depth': DEPTH, 'heads': 2, 'mlp_ratio': 1,
              'unroll': 1, 'removable': True, 'adaptive': 4}
TEXTS = ('adaptive(staged, start=5, gap=3, tolerance=1.0, spike=5.0)',
         'adaptive(keep_final(reversed), start=8, gap=2, tolerance=1.0, spike=5.0)',
         'adaptive(staged, start=5, gap=3, tolerance=1.0, spike=0.0)')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The cohort of TEXTS: model, variables [members, ...], losses [members, steps]."""
  rng = np.random.default_rng(0)
  arrays = {'inputs': rng.integers(0, 9, (400, 9)).astype(np.int32)}
  engine = Engine(ModelSpec('gpt2', ATTRIBUTES), chunk=len(TEXTS), steps=STEPS, arrays=arrays,
                  task=NextToken(), evaluates=False)
  found = engine.train(
    [Member({'number': i}, seed=0, data_seed=0, split=0,
            hp={'learning_rate': 1e-3, **schedule(text, DEPTH, STEPS).hp(DEPTH)})
     for i, text in enumerate(TEXTS)], tmp_path_factory.mktemp('removal'))
  state = found.state
  variables = {'params': state.params, 'hp': state.hp['model'], **state.collections}
  return models.build('gpt2', **ATTRIBUTES), variables, found.losses()


def of(variables, member):
  return jax.tree.map(lambda leaf: leaf[member], variables)


def events(variables):
  hp = variables['hp']
  return {**{group: hp['h'][f'event_{group}'].tolist() for group in ('mlp', 'qk', 'v')},
          'final': int(hp['event_final'])}


def test_sites_go_one_by_one_while_the_loss_stays(trained) -> None:
  _, variables, losses = trained
  assert np.isfinite(losses).all() and np.abs(np.diff(losses)).max() < 1
  assert events(of(variables, 0)) == {'mlp': [5, 8], 'qk': [11, 14], 'v': [17, 20], 'final': 23}
  assert events(of(variables, 1)) == {
    'v': [10, 8], 'qk': [14, 12], 'mlp': [18, 16], 'final': removable.NEVER}


def test_spikes_put_sites_back(trained) -> None:
  """With spike=0 every rise above the reference is one."""
  _, variables, losses = trained
  rule = of(variables, 2)['norm_state']['rule']
  assert rule['rollbacks'].sum() > 0 and rule['step'] == STEPS
  back = rule['retry'] > 0
  assert (back == (rule['rollbacks'] > 0)).all()


def test_the_export_sees_the_events_of_training(trained) -> None:
  model, variables, _ = trained
  assert gpt2_export.real_sites(model, of(variables, 0)) == ()
  assert gpt2_export.real_sites(model, of(variables, 1)) == ('ln_f',)


@pytest.mark.slow
def test_what_was_trained_is_exported(trained) -> None:
  model, variables, _ = trained
  tokens = np.random.default_rng(1).integers(0, 9, (2, 8)).astype(np.int32)
  report = gpt2_export.fold(model, of(variables, 0), tokens).report
  assert report.precisions.equal and not report.findings, str(report)
