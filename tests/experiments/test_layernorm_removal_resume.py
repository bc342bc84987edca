"""A removal that is stopped at its events and goes on ends with the same bits, all events in it."""
from __future__ import annotations

import dataclasses
from pathlib import Path
import time

import jax
import numpy as np
import pytest

from data.device import DeviceFeed
from experiments import layernorm_removal as study
from launch.study import config as config_lib
from model_lib import models
from model_lib.models.removable import gates
from model_lib.training import loop, planning
from model_lib.training import population as population_lib
from model_lib.training.batch_order import BatchOrder
from model_lib.training.checkpoint import Checkpoints
from model_lib.training.metrics import MetricsFile
from model_lib.training.population import Population, Routes
from model_lib.training.tasks import NextToken
from tests.launch import study_runs
from tests.launch.study_runs import Reference, Start

SIZE = {'dim': 8, 'depth': 2, 'heads': 2, 'bases': 1, 'tune_steps': 50}
CONFIG = config_lib.apply_preset(study.Config(), {
    'window': 8, 'batch_size': 4, 'micro_batches': 2, 'dropout': 0.1,
    **{f'small.{name}': value for name, value in SIZE.items()}})
RUNS = ('vanilla', 'ln_free', 'no_aux', 'taper', 'sham')
# Two blocks in 50 steps: start 5, gaps 4, 4 and 6.
EVENTS = {'mlp': (5, 9), 'qk': (13, 17), 'v': (21, 27), 'final': 33}
STEPS = 36  # the last three with every norm linear
BOUNDARIES = sorted({event + by for event in (5, 9, 13, 17, 21, 27, 33) for by in (-1, 0, 1)})
FAST = [step for event in (5, 13, 33) for step in (event - 1, event, event + 1)]


class StopAt:
  """Asks to stop when so many steps are done."""

  def __init__(self, step: int):
    self.left = step

  @property
  def requested(self) -> bool:
    self.left -= 1
    return not self.left

  def acknowledge(self) -> None:
    pass


class Trainer:
  """The study's arms on random tokens, by the real loop; one compiled program."""

  def __init__(self):
    tokens = np.random.default_rng(0).integers(0, 17, (40, 9)).astype(np.int32)
    members = tuple(m for arm in RUNS for m in study.tuned(CONFIG, 'arms', CONFIG.small, arm, 1.0))
    spec = study.model(CONFIG, CONFIG.small, vocab=17, length=8, mlp_ratio=1, unroll=1, eot=16)
    cohort = dataclasses.replace(
        study.tuning(CONFIG, 'arms', CONFIG.small)[0], model=spec, members=members, steps=STEPS,
        evaluate_at=(), keep_at=(), start='')
    self.arrays = {'inputs': tokens}
    model = models.build(spec.name, **spec.arguments)
    self.population = Population(cohort, model, NextToken(), self.arrays, 'map')
    self.order = BatchOrder([(members[0].data_seed, np.arange(32))], cohort.batch_size)
    zeros = np.zeros(len(members), np.int32)
    self.routes = Routes(zeros, zeros, zeros)
    self.call = loop.compile_for(self.population, self.plan(10), self.arrays, 1, 1)

  def plan(self, k: int) -> planning.Plan:
    return planning.Plan('map', len(RUNS), k, 10, 0.0, 0.0, 0.0)

  def train(self, metrics: MetricsFile, chunks=None, step: int = 0, k: int = 1, **options):
    """The states of all runs at the end, leaves [runs, ...]."""
    if chunks is None:
      chunks = loop.initial_chunks(self.population, self.plan(k))
    chunks = loop.train(
        self.population, self.plan(k), self.call, DeviceFeed(self.arrays, self.order),
        self.routes, chunks, step, run='tuned', first_member=0, metrics=metrics, log_every=1,
        **options)
    return jax.tree.map(np.asarray, chunks[0])

  def member(self, state, arm: str) -> dict:
    """The variables of a run."""
    variables = {'params': state.params, 'hp': state.hp['model'], **state.collections}
    return jax.tree.map(lambda leaf: leaf[RUNS.index(arm)], variables)


@pytest.fixture(scope='module')
def trainer() -> Trainer:
  return Trainer()


@pytest.fixture(scope='module')
def whole(trainer, tmp_path_factory):
  """(final state, metrics, {steps done: state}) of a run in calls of up to ten steps."""
  path = tmp_path_factory.mktemp('whole') / 'metrics.jsonl'
  metrics, seen = MetricsFile(path), {}
  try:
    state = trainer.train(
        metrics, k=10, marks=BOUNDARIES,
        reached=lambda step, chunks: seen.update({step: jax.tree.map(np.array, chunks[0])}))
  finally:
    metrics.close()
  return state, path.read_bytes(), seen


def sigmas(variables) -> dict[str, float]:
  state = variables['norm_state']
  return {**{f'{group}_{i}': float(state['h'][f'sigma_{group}'][i])
             for group in ('mlp', 'qk', 'v') for i in range(2)},
          'final_0': float(state['sigma_final'])}


def test_every_site_freezes_at_its_own_event(trainer, whole):
  """So many steps done as the event says: sigma is what it stays. One before: it still moves."""
  state, _, seen = whole
  hp = next(m.hp for m in trainer.population.cohort.members if m.tags['arm'] == 'ln_free')
  assert {group: hp[f'event_{group}'] for group in EVENTS} == EVENTS
  last, vanilla = (sigmas(trainer.member(state, arm)) for arm in ('ln_free', 'vanilla'))
  for site, final in last.items():
    group, layer = site.split('_')
    event = np.atleast_1d(EVENTS[group])[int(layer)]
    values = {by: sigmas(trainer.member(seen[event + by], 'ln_free'))[site] for by in (-1, 0, 1)}
    assert values[-1] != values[0] == values[1] == final != vanilla[site]
  # Evaluated when the step of the event is done, and not one before, the site is linear.
  places = {'mlp': 'h.1.ln_2', 'qk': 'h.1.ln_1.qk', 'v': 'h.1.ln_1.v', 'final': 'ln_f'}
  for group, place in places.items():
    event = np.atleast_1d(EVENTS[group])[-1]
    assert [gates(trainer.member(seen[event + by], 'ln_free'))[place] for by in (0, 1)] == [1, 0]
  assert set(gates(trainer.member(state, 'ln_free')).values()) == {0.0}
  assert set(gates(trainer.member(state, 'vanilla')).values()) == {1.0}


def test_an_arm_is_vanilla_until_its_first_event(trainer, whole):
  """The line that says s + 1 is of step s: no_aux differs from the one of its first event on."""
  lines = {arm: [line.replace(f'"member": {i}, ', '') for line in
                 whole[1].decode().splitlines()[i::len(RUNS)]] for i, arm in enumerate(RUNS)}
  assert len(lines['vanilla']) == STEPS and lines['sham'] == lines['vanilla']
  apart = [a != b for a, b in zip(lines['no_aux'], lines['vanilla'], strict=True)]
  assert apart == [False] * EVENTS['mlp'][0] + [True] * (STEPS - EVENTS['mlp'][0])
  sham, vanilla = (trainer.member(whole[0], arm) for arm in ('sham', 'vanilla'))
  for collection in ('params', 'norm_state'):
    assert bits(sham[collection]) == bits(vanilla[collection])


def resumed(trainer, folder: Path, at: int, change=lambda state: state):
  """(state, metrics) of a run that was stopped when `at` steps were done, and goes on."""
  metrics = MetricsFile(folder / 'metrics.jsonl')
  checkpoints = Checkpoints(folder / 'steps', log=print)
  try:
    with pytest.raises(loop.Preempted):
      trainer.train(metrics, stop=StopAt(at), checkpoints=checkpoints, checkpoint_interval_s=1e9)
    step, state, position = checkpoints.restore(
        trainer.population.abstract(len(RUNS)), lambda p: None)
    assert step == position['step'] == at
    metrics.truncate(position['metrics_bytes'])
    chunks = population_lib.split_chunks(change(state), len(RUNS), len(RUNS))
    state = trainer.train(metrics, chunks, step, k=10)
  finally:
    checkpoints.close()
    metrics.close()
  return state, metrics.path.read_bytes()


def bits(state) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize('at', [
    step if step in FAST else pytest.param(step, marks=pytest.mark.slow) for step in BOUNDARIES])
def test_stopped_at_the_boundary_of_an_event(at, trainer, whole, tmp_path):
  state, lines = resumed(trainer, tmp_path, at)
  assert bits(state) == bits(whole[0]) and lines == whole[1]


def test_a_resume_that_loses_an_event_or_the_counter_is_seen(trainer, whole, tmp_path):
  def without(state):  # the event's number is lost
    events = np.array(state.hp['model']['event_final'])
    return state.replace(hp={**state.hp, 'model': {
        **state.hp['model'], 'event_final': np.full_like(events, 2 ** 30)}})

  def late(state):  # the counter is one step behind, so that every event comes a step later
    calls = state.collections['norm_state']['calls']
    return state.replace(collections={'norm_state': {
        **state.collections['norm_state'], 'calls': np.array(calls) - CONFIG.micro_batches}})

  for name, change in (('without', without), ('late', late)):
    (tmp_path / name).mkdir()
    state, lines = resumed(trainer, tmp_path / name, 32, change)
    assert lines != whole[1]
    own, other = (trainer.member(s, 'vanilla')['params'] for s in (state, whole[0]))
    assert bits(own) == bits(other)  # whose norms are real anyway


SMALL = {'small__base_steps': 12, 'small__bases': 2, 'arms': 'vanilla,ln_free,no_aux,at_once,sham',
         'eval_windows': 8, 'card_windows': 8, 'rate_factors': '1', 'small__dim': 16,
         'engine__steps_per_call': 4, 'io__checkpoint_interval_s': 0, 'io__figures': 'false',
         'io__progress_interval_s': 0}
AFTER = ('arms-base', 'arms-tuned', 'arms-others', 'arms-bigram', 'arms-losses', 'arms-swaps',
         'arms-entropies', 'arms-card')


@pytest.mark.slow
def test_killed_in_every_phase(tmp_path, compile_cache):
  options = {'study': 'experiments.layernorm_removal', **SMALL}
  whole = tmp_path / 'whole'
  study_runs.run(whole, timeout=600, **options)
  reference = Reference.of(whole)
  killed = tmp_path / 'killed'
  for number, stage in enumerate(('', *AFTER[:-1])):
    with Start(killed, **options) as start:
      if stage:
        start.until(lambda stage=stage: stage in study_runs.finished(killed), timeout=300)
        time.sleep(0.3 * (number % 3))
      else:
        start.until(lambda: study_runs.steps(killed, 'arms-base'), timeout=300)
      start.kill()
    assert study_runs.status(killed)['state'] == 'running'
  study_runs.run(killed, timeout=600, **options)
  study_runs.assert_same(killed, reference)
  claims = (killed / 'claims.json').read_bytes()
  assert claims == (whole / 'claims.json').read_bytes()
