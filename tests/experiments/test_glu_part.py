"""The gated layers' part of the activation search: its cohorts, and verdicts on made-up rows."""
from __future__ import annotations

import json

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import activation_search as study
from experiments.parts import glu_order as glu
from launch.study import config as config_lib
from launch.study import datasets
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from model_lib.errors import UserError

ARMS = (*glu.PLAIN, 'relu_squared', *glu.GATED)


def config(preset='cpu', **changes):
  found = config_lib.apply_preset(study.Config(), study.PRESETS[preset])
  return config_lib.apply_preset(found, {
      'parts': ('glu',), **{f'glu.{name}': value for name, value in changes.items()}})


def made_up(loss, seeds: int = 6, copy: float = 0.004, edge: str = '', entropy: float = 3.3,
            noise: float = 0.002, arms=ARMS) -> pd.DataFrame:
  """Rows in which an arm's test loss is loss(arm), and a copy of ReLU differs by `copy`."""
  rng = np.random.default_rng(0)
  rows = [{'phase': 'unigram', 'entropy': entropy}]
  for arm in arms:
    run = {'activation': arm, 'copy': 0, 'diverged_step': -1, 'parameters': 1000}
    rows += [{**run, 'phase': 'selection', 'lr_factor': f, 'seed': 0,
              'val_loss': -f if arm == edge else abs(f - 1)} for f in (1 / 3, 1.0, 3.0)]
    rows += [{**run, 'phase': 'fresh', 'seed': seed,
              'test_loss': loss(arm) + noise * rng.normal()} for seed in range(seeds)]
  rows += [{'activation': 'relu', 'copy': 1, 'diverged_step': -1, 'phase': 'null_fresh', 'seed': s,
            'test_loss': loss('relu') + copy} for s in range(seeds)]
  return pd.DataFrame(rows)


def as_in_paper(arm: str) -> float:
  return glu.paper().get(arm, 1.99)


def verdicts(rows: pd.DataFrame) -> dict[str, str]:
  return {key: outcome.verdict for key, outcome in glu.outcomes(rows).items()}


def test_the_paper_s_world_is_found_and_its_reverse_is_not():
  assert set(verdicts(made_up(as_in_paper)).values()) == {REPRODUCED}
  assert set(verdicts(made_up(lambda arm: 4 - as_in_paper(arm), entropy=9)).values()) == {
      NOT_REPRODUCED}
  found = glu.outcomes(made_up(as_in_paper, noise=1e-6))
  assert found['gated_better'].ours == pytest.approx(-0.0351, abs=1e-4)
  assert found['geglu_better_than_gelu'].ours == pytest.approx(-0.041, abs=1e-4)
  assert found['glu_order'].ours == pytest.approx(1)
  assert '15 of the 15' in found['gated_better'].note
  # The numbers that stand in the claims are those of the table.
  for claim in study.claims(config()):
    if claim.paper_value is not None:
      assert claim.paper_value == pytest.approx(found[claim.id].ours, abs=1e-4)
  assert {claim.id for claim in study.claims(config())} == set(found)


@pytest.mark.parametrize('world, changed', [
    ({'seeds': 4}, dict.fromkeys(('gated_better', 'glu_order', 'reglu_better_than_relu'),
                                 NOT_TESTABLE)),
    ({'copy': 0.046}, {'reglu_better_than_relu': NOT_REPRODUCED, 'gated_better': NOT_REPRODUCED,
                       'swiglu_better_than_silu': REPRODUCED, 'glu_order': REPRODUCED}),
    ({'edge': 'geglu'}, {'geglu_better_than_gelu': NOT_TESTABLE, 'gated_better': NOT_TESTABLE,
                         'reglu_better_than_relu': REPRODUCED}),
    ({'edge': 'relu_squared'}, {'gated_better': REPRODUCED}),  # no arm of a claim
    ({'entropy': 2.2}, {'gated_better': NOT_TESTABLE, 'glu_order': NOT_TESTABLE}),
    ({'arms': ('relu', 'reglu')}, {'reglu_better_than_relu': REPRODUCED,
                                   'geglu_better_than_gelu': NOT_TESTABLE,
                                   'gated_better': NOT_TESTABLE, 'glu_order': NOT_TESTABLE})])
def test_verdicts(world, changed):
  found = verdicts(made_up(as_in_paper, **world))
  assert {key: found[key] for key in changed} == changed


def test_a_diverged_run_takes_its_seed_from_the_pairs_of_its_arm():
  rows = made_up(as_in_paper)
  rows.loc[(rows.phase == 'fresh') & (rows.activation == 'geglu') & (rows.seed == 2),
           'diverged_step'] = 7
  found = glu.outcomes(rows)
  assert found['geglu_better_than_gelu'].n == 5 and found['reglu_better_than_relu'].n == 6


def test_the_cohorts():
  settings = config()
  generator, answer, members, widened = glu.cohorts(settings), None, [], []
  while True:
    try:
      stage = list(generator.send(answer))
    except StopIteration:
      break
    rows = []
    for item in stage:
      for m in getattr(item, 'members', ()):
        assert item.data == glu.TEXT and item.model.name == 'gpt'
        members.append(m)
        rows.append({**m.tags, 'diverged_step': -1, 'val_loss': abs(
            m.tags['lr_factor'] - (30 if m.tags['activation'] == 'glu' else 1))})
        if 'widen' in item.name:
          widened.append((m.tags['activation'], round(m.tags['lr_factor'])))
    answer = pd.DataFrame(rows)
  assert widened == [('glu', 9), ('glu', 27), ('glu', 81)]
  tags = [json.dumps(m.tags) for m in members]
  assert len(set(tags)) == len(tags)
  fresh = {m.seed for m in members if 'fresh' in m.tags['phase']}
  assert not fresh & {m.seed for m in members if 'selection' in m.tags['phase']}
  by_arm = {}
  for m in members:
    if m.tags['phase'] == 'fresh':
      by_arm.setdefault(m.tags['activation'], []).append((m.seed, m.tags['lr_factor']))
  assert {tuple(seed for seed, _ in runs) for runs in by_arm.values()} == {tuple(
      seed for seed, _ in by_arm['relu'])}  # paired
  assert {f for _, f in by_arm['glu']} == {27} and {f for _, f in by_arm['relu']} == {1}
  copies = [m for m in members if m.tags['copy']]
  assert {m.tags['copy'] for m in copies} == {1, 2}
  assert not {m.seed for m in copies} & {m.seed for m in members if not m.tags['copy']}


def test_gated_arms_have_as_many_parameters():
  settings = config()
  data = datasets.load(study.data(settings), '').beside[glu.TEXT]
  counts = {}
  for arm in settings.glu.activations:
    built = data.build(glu.model(settings, arm), glu.OPTIMIZER)
    shapes = jax.eval_shape(lambda built=built: built.init(
        jax.random.key(0), np.zeros((1, 8), np.int32), train=False)['params'])
    counts[arm] = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert max(counts.values()) < 1.005 * min(counts.values()), counts


@pytest.mark.parametrize('arms, line', [
    (('gelu', 'reglu'), 'relu is missing'), (('relu', 'glu', 'glu'), 'are the same'),
    (('relu', 'geglue'), 'geglu')])
def test_bad_input_is_one_line(arms, line):
  with pytest.raises(UserError, match=line) as error:
    glu.check(config(activations=arms))
  assert '\n' not in str(error.value)
