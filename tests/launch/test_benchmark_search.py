"""The search's benchmark: that its sides compute the same functions, and that it gives records."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launch.benchmark import candidates
from launch.benchmark import engine
from launch.benchmark import search
from model_lib.search import Evaluator, Expression, X, get_operator, get_space

pytestmark = pytest.mark.usefixtures('unoptimized')


@pytest.mark.parity
def test_pytorch_computes_the_operators_of_the_space():
  import torch
  x = np.linspace(-3.1, 3.3, 65)
  functions, evaluator = candidates._in_torch(torch), Evaluator(x)
  assert set(functions) == set(get_space('act_bench').operators)
  for name, function in functions.items():
    inputs = (X, Expression('cosh', (X,)))[:get_operator(name).arity]
    if name == 'pow':
      inputs = inputs[::-1]
    ours = evaluator.value(Expression(name, inputs))
    theirs = function(*(torch.tensor(evaluator.value(a)) for a in inputs)).numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parity
def test_all_sides_train_and_evaluate_the_same_candidates(tmp_path):
  """The plain sides have one start; the population's own draws give losses nearby."""
  chosen, data = [('relu(x)', 2**0.5), ('zero(x)', 1.0), ('tanh(x)', 1.6)], tmp_path / 'digits.npz'
  engine.write_plain_data(data)
  losses = {}
  for side, train in candidates.SIDES.items():
    # The engine for one expression has no gain for 0.
    some = chosen[::2] if side == 'compiled' else chosen
    seconds, losses[side] = train(some, data, 40)
    assert seconds > 0 and losses[side].shape == (len(some),)
  np.testing.assert_allclose(losses['apart'], losses['eager'], rtol=1e-3)
  np.testing.assert_allclose(losses['population'], losses['apart'], rtol=0.25)
  np.testing.assert_allclose(losses['population'][1], np.log(10), rtol=0.01)
  assert losses['population'][[0, 2]].max() < 1.5
  np.testing.assert_allclose(losses['compiled'], losses['population'][::2], rtol=1e-3)
  np.testing.assert_allclose(losses['plain'], losses['population'][0], rtol=1e-3)


def test_candidates_and_plain_runs_are_cohorts_of_one_size():
  own = candidates.cohort([('relu(x)', 1.4), ('tanh(x)', 1.6)], 7)
  plain = candidates.cohort(2, 7)
  assert [m.hp.get('candidate') for m in own.members] == ['relu(x)', 'tanh(x)']
  assert [m.hp for m in plain.members] == [{'learning_rate': candidates.RATE}] * 2
  assert (own.model.arguments['activation'], plain.model.arguments['activation']) == (
      'table', 'relu')
  assert len(own.members) == len(plain.members) and own.steps == plain.steps


def test_the_candidates_are_valid_and_each_other(tmp_path):
  search.write_candidates(tmp_path / 'some.json', 12)
  found = json.loads((tmp_path / 'some.json').read_text())
  assert len({text for text, _ in found}) == 12
  assert all(np.isfinite(gain) and gain > 0 for _, gain in found)


@pytest.mark.slow
def test_the_search_part_gives_records():
  records = search.search(1, full=True, count=4, steps=8, sample=2)
  names = [r['name'] for r in records]
  assert names[0] == 'one jit per candidate, engine expression / population'
  assert 'candidate-step, table / plain ReLU' in names
  assert all(np.isfinite(r['median']) and r['median'] > 0 for r in records)
