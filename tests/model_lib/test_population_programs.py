"""vmap against map, divergence, seeds, memory and compilations of a population's program."""
from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest

from model_lib.analysis import selection
from model_lib.training.cohort import Member, ModelSpec, OptimizerSpec
from model_lib.training.tasks import Classification
from tests import helpers
from tests.model_lib.engine import MODELS, STEPS, Engine, images, map_against_vmap, members

pytestmark = pytest.mark.usefixtures('unoptimized')

# vmap against map.

DOUBLE = """
import json, pathlib
import jax
import numpy as np
jax.config.update('jax_enable_x64', True)
from tests.model_lib.engine import MODELS, map_against_vmap
print(json.dumps(map_against_vmap(MODELS[{model!r}], np.float64, pathlib.Path({folder!r}))))
"""


@pytest.mark.parametrize('model', ['mlp', pytest.param('vit', marks=pytest.mark.slow)])
def test_vmap_agrees_in_float64(model, tmp_path):
  """Losses and per-tensor L2 norms of the difference to 1e-9; another learning rate does not."""
  done = helpers.run_python(DOUBLE.format(model=model, folder=str(tmp_path)),
                            env={'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'})
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert max(found['same']) < 1e-9, found
  assert min(found['swapped']) > 1e-4, found


def test_vmap_agrees_in_float32(tmp_path):
  """The MLP's losses to 1e-5 after 50 steps."""
  found = map_against_vmap(MODELS['mlp'], np.float32, tmp_path)
  assert found['same'][0] < 1e-5, found
  assert found['swapped'][0] > 1e-4, found


# Divergence.


@pytest.mark.parametrize('batching', ['map', 'vmap'])
def test_diverging_members(batching, tmp_path):
  """Members 1 and 3 diverge; the others keep their bits, and the diverged ones stop moving."""
  sgd = OptimizerSpec('sgd')
  engine = Engine(MODELS['mlp'], chunk=5, streams=5, batching=batching, optimizer=sgd,
                  evaluates=False)
  sound = tuple(dataclasses.replace(m, labels=0, hp={'learning_rate': 0.05}) for m in members(5))
  mixed = list(sound)
  mixed[1] = dataclasses.replace(sound[1], hp={'learning_rate': 1e6})
  mixed[3] = dataclasses.replace(sound[3], hp={'learning_rate': float('nan')})
  base, found = engine.train(sound, tmp_path), engine.train(mixed, tmp_path)
  for i in (0, 2, 4):
    assert found.leaves(i) == base.leaves(i)
    assert found.records(i) == base.records(i)
  assert found.leaves(1) != base.leaves(1)

  losses, diverged = found.losses(), found.state.diverged_step
  assert (base.state.diverged_step == -1).all() and np.isfinite(base.losses()).all()
  assert diverged[[0, 2, 4]].tolist() == [-1, -1, -1]
  for i in (1, 3):
    first = int(np.flatnonzero(np.isnan(losses[i]))[0])
    assert diverged[i] == first < STEPS // 2
  assert diverged[3] == 1  # step 0 itself was finite; its update was not

  # One step before divergence shows, and long after it: the same parameters.
  steps = int(diverged[1]) + 1
  engine.population.cohort = dataclasses.replace(engine.population.cohort, steps=steps)
  early = engine.train(mixed, tmp_path)
  assert early.state.step.tolist() == [steps] * 5
  for i, stands in ((0, False), (1, True), (2, False)):
    same = [early.leaves(i)[k] == found.leaves(i)[k] for k in found.leaves(i)
            if k.startswith('.params')]
    assert all(same) == stands, i


def test_a_member_that_starts_with_nan(tmp_path):
  """It diverges at step 0, and its neighbours under vmap do not notice."""
  engine = Engine(MODELS['mlp'], chunk=3, streams=3, batching='vmap', evaluates=False)
  sound = members(3)
  poisoned = list(sound)
  poisoned[1] = dataclasses.replace(sound[1], hp={**sound[1].hp, 'init_gain': float('nan')})
  base, found = engine.train(sound, tmp_path), engine.train(poisoned, tmp_path)
  assert found.state.diverged_step.tolist() == [-1, 0, -1]
  for i in (0, 2):
    assert found.leaves(i) == base.leaves(i) and found.records(i) == base.records(i)


# Seeds.


def test_copies_differ_by_nothing_but_their_seed(tmp_path):
  """Runs that differ in their tags alone make a null row of exactly 0."""
  engine = Engine(MODELS['mlp'], chunk=7, streams=1)

  def null_line(seed_of_copy):
    runs = [Member({'copy': copy}, seed=seed_of_copy(copy, s), data_seed=0, split=0,
                   hp={'learning_rate': 1e-3}) for copy in range(3) for s in range(2)]
    done = engine.train(runs, tmp_path)
    rows = pd.DataFrame({
      'copy': [m.tags['copy'] for m in runs], 'seed': [0, 1] * 3,
      'diverged_step': done.state.diverged_step, 'loss': done.evaluated[1]['loss']})
    return selection.null_line(rows[rows['copy'] > 0], rows[rows['copy'] == 0], 'loss')

  assert null_line(lambda copy, s: s) == (0.0, 2)
  largest, copies = null_line(lambda copy, s: 10 * copy + s)
  assert largest > 1e-4 and copies == 2


# Memory and compilations.


@pytest.mark.parametrize('batching', ['map', 'vmap'])
def test_memory_of_a_call(batching):
  """State twice and a little more, and what one chunk's step needs for its activations."""
  n, batch = 256, 32
  population = Engine(MODELS['mlp'], chunk=2, batching=batching, evaluates=False).population
  state = population.abstract(n)
  compiled = population.compile_call(state, images(), 1, 10, 2)
  bytes_of_state = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(state))
  memory = compiled.memory_analysis()
  data = sum(a.nbytes for a in images().values())
  # Inputs, pre-activations, activations and their gradients, of the members in flight.
  units = 64 + 4 * (64 + 64 + 10)
  activations = (n if batching == 'vmap' else 1) * batch * units * 4
  used = memory.argument_size_in_bytes + memory.temp_size_in_bytes - data
  assert 1.5 * bytes_of_state < used < 2.3 * bytes_of_state + activations, (
      used / bytes_of_state, activations / bytes_of_state)


class Counting(Classification):
  """Counts how often it is traced."""

  traced = 0

  def losses(self, logits, targets):
    Counting.traced += 1
    return super().losses(logits, targets)


def test_new_values_do_not_recompile(tmp_path):
  """Learning rate, decay, gain, code of the activation, seeds: numbers of one program."""
  model = ModelSpec('mlp', {'widths': (16,), 'activation': 'switch(relu, gelu, tanh)'})
  engine = Engine(model, chunk=2, streams=2, task=Counting(127.0, 70.0), evaluates=False, steps=10)
  engine.train(members(2, init_gain=1.4), tmp_path)
  before = Counting.traced, len(engine.population._init)
  assert before[0] > 0
  outcomes = set()
  for code in range(3):
    runs = members(2, init_gain=1.0 + code, activation_code=code, weight_decay=0.1 * code)
    outcomes.add(engine.train(runs, tmp_path).leaves(0)[".params['head']['kernel']"])
  assert len(outcomes) == 3
  assert (Counting.traced, len(engine.population._init)) == before
  Engine(model, chunk=1, task=Counting(127.0, 70.0), evaluates=False, steps=10)
  assert Counting.traced > before[0]  # another shape is another program
