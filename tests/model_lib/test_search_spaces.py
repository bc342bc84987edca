"""Spaces, fingerprints and the filter: how many functions there are, and which are refused."""
from __future__ import annotations

import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.search import (
  OPERATORS, Fingerprints, ValidityFilter, canonical, candidates, count_functions, distinct,
  get_space, parse)


@pytest.fixture(scope='module')
def act_bench():
  return tuple(get_space('act_bench').expressions())


def test_the_benchmark_has_5103_expressions_and_2791_functions(act_bench):
  """AQuaSurF's rule counts the bytes of float32 outputs, which rounding splits: about 2,913."""
  counts = count_functions(act_bench)
  assert counts.raw == len(set(act_bench)) == get_space('act_bench').size() == 5103
  assert counts.functions == 2791
  assert 2895 <= counts.byte_strings <= 2915
  assert '5103' in str(counts) and '2791' in str(counts) and 'rounding' in str(counts)


@pytest.mark.slow
@pytest.mark.parametrize('digits', [4, 5, 7])
def test_the_number_of_functions_does_not_hang_on_the_digits(act_bench, digits):
  assert len(distinct(act_bench, digits=digits)) == 2791


@pytest.mark.slow
def test_the_valid_functions_of_the_benchmark(act_bench):
  found = candidates(act_bench)
  assert found.raw == 5103 and found.distinct == 2791
  assert len(found.valid) + sum(found.refused.values()) == 2791
  assert 1900 < len(found.valid) < 2050
  assert len(set(found.valid)) == len(distinct(found.valid)) == len(found.valid)


SAME = (('add(x, x)', 'mul(x, 2.0)'), ('mul(x, sigmoid(x))', 'swish(x)'),
        ('sub(x, min_zero(x))', 'relu(x)'), ('mul(x, x)', 'square(x)'))
OTHER = (('gelu(x)', 'swish(x)'), ('tanh(x)', 'softsign(x)'), ('add(x, x)', 'x'),
         ('relu(x)', 'min_zero(x)'))
AFFINE = (('sigmoid(x)', 'sub(1.0, sigmoid(x))'), ('relu(x)', 'min_zero(x)'), ('exp(x)', 'expm1(x)'))


@pytest.mark.parametrize('left, right', SAME)
def test_the_same_function_has_one_key(left, right):
  prints = Fingerprints()
  assert prints.functional(parse(left)) == prints.functional(parse(right))
  assert prints.affine(parse(left)) == prints.affine(parse(right))


@pytest.mark.parametrize('left, right', OTHER)
def test_another_function_has_another_key(left, right):
  prints = Fingerprints()
  assert prints.functional(parse(left)) != prints.functional(parse(right))


@pytest.mark.parametrize('left, right', AFFINE)
def test_affine_relations_have_one_affine_key_alone(left, right):
  prints = Fingerprints()
  assert prints.affine(parse(left)) == prints.affine(parse(right))
  assert prints.functional(parse(left)) != prints.functional(parse(right))


def test_near_functions_have_affine_keys_of_their_own():
  prints = Fingerprints()
  texts = ('gelu(x)', 'swish(x)', 'mish(x)', 'relu(x)', 'elu(x)', 'tanh(x)', 'softsign(x)', 'x')
  assert len({prints.affine(parse(text)) for text in texts}) == len(texts)


@pytest.mark.parametrize('text, reason', [
  ('swish(x)', ''), ('relu(x)', ''), ('sin(x)', ''), ('abs(x)', ''),
  ('x', 'linear'), ('add(x, 3.0)', 'linear'), ('zero(x)', 'constant'), ('one(x)', 'constant'),
  ('div(1.0, sub(x, x))', 'not finite'), ('mul(0.01, sin(x))', 'slope too small'),
  ('mul(1000.0, relu(x))', 'slope too large')])
def test_why_an_expression_is_refused(text, reason):
  verdict = ValidityFilter()(parse(text))
  assert verdict.reason == reason and verdict.valid == (not reason)
  assert bool(verdict.detail) == bool(reason)


def test_what_a_verdict_tells_of_a_valid_function():
  judge = ValidityFilter()
  assert judge(parse('relu(x)')).monotone == 'increasing' and not judge(parse('sin(x)')).monotone
  assert judge(parse('abs(x)')).parity == 'even' and judge(parse('tanh(x)')).parity == 'odd'
  np.testing.assert_allclose(judge(parse('relu(x)')).slope_moment, 0.5, atol=1e-3)


def test_operators_that_leave_no_candidate_are_refused():
  space = get_space('act_bench')
  with pytest.raises(UserError, match='no valid candidate is left .*constant'):
    candidates(space.restricted(['zero', 'one', 'add']).expressions())
  with pytest.raises(UserError, match='leave no candidate in the space'):
    space.restricted(['relu'])
  with pytest.raises(UserError, match="nearest: 'sigmoid'"):
    space.restricted(['sigmod', 'add'])
  with pytest.raises(UserError, match="nearest: 'act_bench'"):
    get_space('act_bnch')


@pytest.mark.parametrize('name', ['act_bench', 'swish', 'pangaea', 'aquasurf'])
def test_samples_are_of_the_space_and_repeat(name):
  space = get_space(name)
  drawn = [[space.sample(rng) for _ in range(20)]
           for rng in (np.random.default_rng(0), np.random.default_rng(0))]
  assert drawn[0] == drawn[1] and len(set(drawn[0])) > 5
  for expression in drawn[0]:
    assert parse(str(expression), space.operators) == expression
    assert set(_operators(expression)) <= set(space.operators) <= set(OPERATORS)
    assert canonical(canonical(expression)) == canonical(expression)


def _operators(expression):
  if expression.operator in OPERATORS:
    yield expression.operator
  for argument in expression.args:
    yield from _operators(argument)
