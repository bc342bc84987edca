"""What the parametrizations promise of whole trainings, through the population engine, to the bit.

A row is numbers for one program, so runs under several rows are members of one cohort.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import dataclasses
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.models import parametrized
from model_lib.models.parametrized import BRANCH
from model_lib.parametrization import names
from model_lib.parametrization.residual_rows import MAKERS as RESIDUAL
from model_lib.parametrization.scaled_rows import FORMS
from model_lib.training.cohort import Member, ModelSpec, OptimizerSpec
from model_lib.training.optimizers import family
from model_lib.training.tasks import NextToken
from tests.model_lib.engine import Engine

# At the base shape biases decay under some rows and not under others: kernels alone do here.
ADAM = OptimizerSpec(decayed='kernels')


def engine(model: ModelSpec, optimizer: OptimizerSpec, members: int, steps: int, **more) -> Engine:
  return Engine(model, chunk=members, k=steps, steps=steps, optimizer=optimizer, evaluates=False,
                **more)


def run(hp: Mapping[str, float], rate: float, **more) -> Member:
  return Member({}, seed=1, data_seed=0, split=0, hp={'learning_rate': rate, **hp, **more})


def with_row(model: ModelSpec, row: str) -> ModelSpec:
  return dataclasses.replace(model, arguments={**model.arguments, 'parametrization': row})


def built(model: ModelSpec, row: str, optimizer: OptimizerSpec = ADAM):
  spec = with_row(model, row)
  return parametrized.build(spec.name, spec.arguments, spec.base, spec.delta, family(optimizer))


X = np.zeros((2, 8, 8, 1), np.float32)
TOKENS = np.zeros((2, 8), np.int32)


def numbers(model: ModelSpec, row: str, optimizer: OptimizerSpec, x=X) -> dict[str, float]:
  """The factors of a row as swept numbers of a member, by their paths."""
  tree = built(model, row, optimizer).numbers(x, train=False)
  return {f'{BRANCH}/{path}': float(value)
          for path, value in flax.traverse_util.flatten_dict(tree, sep='/').items()}


# The base shape.

BASES = {
  'mlp': (ModelSpec('mlp', {'widths': (16, 16)}, {'widths': (16, 16)}, {'widths': (32, 32)}), X),
  'deep_mlp': (ModelSpec('deep_mlp', {'width': 16, 'depth': 4}, {'width': 16}, {'width': 32}), X),
  'gpt': (ModelSpec('gpt', {'dim': 16, 'heads': 2, 'depth': 2, 'vocab': 31, 'length': 8,
                            'mlp_ratio': 2}, {'dim': 16}, {'dim': 32}), TOKENS),
}
# umup has no base shape; mean_field is for one hidden layer, and has its own test below.
WITHOUT_BASE, SHALLOW = ('umup',), ('mean_field',)


def rows_at_base(name: str) -> dict[str, str]:
  """Row -> with the settings that say what the base is."""
  depth = {'mlp': 1, 'deep_mlp': 4, 'gpt': 2}[name]
  settings = f'base_depth={depth}, base_head_dim=8'
  found = {'sp': 'sp', 'ntk': 'ntk',
           **{form: f'mup(form={form}, base_head_dim=8)' for form in FORMS},
           **{row: f'{row}({settings})' for row in ('tp6', 'depth_mup', 'ode', 'completep')}}
  rows = {text.partition('(')[0] for text in found.values()}
  assert rows == set(names()) - set(RESIDUAL) - set(WITHOUT_BASE) - set(SHALLOW)
  return found


def program(model, x) -> str:
  """What a training step computes with the model, without the numbers."""
  def loss(params, hp):
    return model.apply({'params': params, 'hp': hp}, x, train=True).sum()

  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  text = str(jax.make_jaxpr(jax.grad(loss))(variables['params'], variables['hp']))
  return re.sub(r'0x[0-9a-f]+', '', text)


@pytest.mark.parametrize('name', BASES)
def test_every_row_is_the_standard_one_at_the_base_shape(name, tmp_path) -> None:
  model, x = BASES[name]
  trained = {}
  programs = collections.defaultdict(set)
  for row, text in rows_at_base(name).items():
    module = built(model, text)
    hp = flax.traverse_util.flatten_dict(jax.device_get(
      module.init(jax.random.key(0), x, train=False)['hp']), sep='/')
    scales = [path for path in hp if path.endswith('branch_scale')]
    assert all(hp[path] == 1 for path in hp if path in scales or (
      path.startswith(f'{BRANCH}/') and not path.startswith(f'{BRANCH}/decay/'))), row
    programs[len(scales)].add(program(module, x))
  # One program, or two where some rows have a factor of each branch, here 1, and some none.
  assert all(len(texts) == 1 for texts in programs.values())
  assert len(programs) == (2 if name == 'gpt' else 1)
  arrays = task = None
  if name == 'gpt':
    arrays, task = {'inputs': np.random.default_rng(0).integers(0, 31, (400, 9))}, NextToken()
  for row in ('sp', 'completep'):
    spec = with_row(model, rows_at_base(name)[row])
    trained[row] = engine(spec, ADAM, 1, 6, arrays=arrays, task=task).train(
      [run({}, 1e-2, weight_decay=0.1)], tmp_path)
  assert trained['sp'].lines == trained['completep'].lines
  for ours, own in zip(*(jax.tree.leaves(t.state.params) for t in trained.values()), strict=True):
    np.testing.assert_array_equal(ours, own)
  assert np.ptp(trained['sp'].losses()) > 0.05  # it moved


# Equivalent rows and scales.

ONE_HIDDEN = ModelSpec('mlp', {'widths': (32,), 'parametrization': 'mup', 'activation': 'tanh'},
                       {'widths': (8,)}, {'widths': (16,)})
STEPS = 10


def test_mean_field_is_mup_with_one_hidden_layer_and_scales_move_between_factors(tmp_path) -> None:
  """SGD. (A, B, C) -> (A t, B / t, C / t^2) for any t (arXiv:2203.03466, lemma J.1)."""
  sgd = OptimizerSpec('sgd')
  rows = ('mean_field', 'mup', 'mup(form=table3)', 'mup(form=table9)', 'sp', 'ntk')
  of_mup = numbers(ONE_HIDDEN, 'mup', sgd)
  runs = [run(numbers(ONE_HIDDEN, row, sgd), 0.5) for row in rows]
  runs += [run(moved(of_mup, t, 2), 0.5) for t in (4.0, 3.0)] + [run(moved(of_mup, 4.0, 3), 0.5)]
  losses = engine(ONE_HIDDEN, sgd, len(runs), STEPS).train(runs, tmp_path).losses()
  field, table8, table3, table9, sp, ntk, four, three, wrong = losses
  assert field[0] - field[-1] > 0.3  # it learns
  # The ratio of the widths is a power of four, so no factor rounds.
  for equal in (table8, table3, table9, four):
    np.testing.assert_array_equal(equal, field)
  np.testing.assert_allclose(three, field, rtol=1e-5)
  assert (three != field).any()
  for other in (sp, ntk, wrong):
    assert np.abs(other / field - 1).max() > 1e-2


def moved(of: Mapping[str, float], t: float, power: int, eps: bool = False) -> dict[str, float]:
  """Kernels with multiplier t A, std B / t and rate C / t^power; `eps` has its factor times t."""
  by = {'multiplier': t, 'start': 1 / t, 'learning_rate': t ** -power,
        'gradient': 1 / t if eps else 1.0}
  return {path: value * (by.get(path.split('/')[1], 1.0) if path.endswith('kernel') else 1.0)
          for path, value in of.items()}


@pytest.mark.parametrize('eps', [1e-30, 1e-3])
def test_scales_move_between_factors_under_adam(eps, tmp_path) -> None:
  """(A, B, C) -> (A t, B / t, C / t), with eps t, or with an eps too small to count."""
  model = ModelSpec('mlp', {'widths': (16, 16), 'parametrization': 'mup', 'activation': 'tanh'},
                    {'widths': (4, 4)}, {'widths': (8, 8)})
  adam = OptimizerSpec(eps=eps)
  of_mup = numbers(model, 'mup', adam)
  counts = eps > 1e-20
  runs = [run({}, 1e-2), run(moved(of_mup, 4.0, 1, counts), 1e-2),
          run(moved(of_mup, 3.0, 1, counts), 1e-2), run(moved(of_mup, 4.0, 2, counts), 1e-2),
          run(moved(of_mup, 4.0, 1, not counts), 1e-2)]
  own, four, three, wrong, eps_of_another = engine(model, adam, len(runs), STEPS).train(
    runs, tmp_path).losses()
  assert own[0] - own[-1] > 0.1
  np.testing.assert_array_equal(four, own)
  np.testing.assert_allclose(three, own, rtol=1e-4 if counts else 3e-6)
  assert np.abs(wrong / own - 1).max() > 1e-2
  if counts:
    assert np.abs(eps_of_another / own - 1).max() > 1e-3
  else:  # whoever scales it
    np.testing.assert_array_equal(eps_of_another, own)


def test_another_gamma_is_another_learning_rate_to_the_bit(tmp_path) -> None:
  """16 blocks, 4 in the base: rate e with gamma = 1/2 is rate e / 2 with gamma = 0."""
  row = 'tp6(alpha=0.5, gamma={}, base_depth=4)'
  model = ModelSpec('deep_mlp', {'width': 16, 'depth': 16, 'activation': 'relu',
                                 'parametrization': row.format(0.5)},
                    {'width': 16, 'depth': 4}, {'width': 32, 'depth': 4})
  adam = OptimizerSpec(eps=1e-12, trained=('stack/',))
  none, odd = (numbers(model, row.format(gamma), adam) for gamma in ('0.0', '0.25'))
  rate = 2.0 ** -8
  runs = [run({}, rate), run(none, rate / 2), run(none, rate), run(odd, rate * 4 ** -0.25)]
  trained = engine(model, adam, len(runs), 30).train(runs, tmp_path)
  half, relabelled, without, quarter = trained.losses()
  np.testing.assert_array_equal(relabelled, half)
  np.testing.assert_allclose(quarter[:5], half[:5], rtol=1e-4)  # no power of two: rounding alone
  assert np.abs(without / half - 1).max() > 1e-2
  kernels = trained.state.params['stack']['kernel']
  np.testing.assert_array_equal(kernels[0], kernels[1])
  start = jnp.asarray(trained.state.params['stem']['kernel'])
  np.testing.assert_array_equal(start[0], start[2])  # frozen
