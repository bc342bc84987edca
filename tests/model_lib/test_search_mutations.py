"""Mutations of expressions: what each does, its bounds, and what can be reached."""
from __future__ import annotations

import collections

import numpy as np
import pytest
from scipy import stats

from model_lib.errors import UserError
from model_lib.search import get_space, parse
from model_lib.search.algorithms import MUTATIONS, Mutations
from tests.model_lib.search_tables import SPACE


def operators(expression):
  return [node.operator for _, node in expression.walk() if node.args]


def bare(expression):
  """Without the factors on the edges."""
  for path in sorted(expression.edges_with_parameter(), key=len, reverse=True):
    expression = expression.without_parameter(path)
  return expression


def shape(expression):
  return [(path, len(node.args), node.operator == 'scale') for path, node in expression.walk()]


MUTATE = Mutations(get_space('pangaea'), max_operators=5, max_parameters=2)


def trees(n, seed=0):
  """Trees of many sizes, with and without parameters: random walks of all the mutations."""
  rng = np.random.default_rng(seed)
  tree = MUTATE.space.sample(rng)
  for _ in range(n):
    yield tree, rng
    tree = MUTATE(tree, rng)


@pytest.mark.parametrize('kind', MUTATIONS)
def test_what_a_mutation_does(kind):
  mutate = Mutations(MUTATE.space, (kind,), MUTATE.max_operators, MUTATE.max_parameters)
  done = 0
  for tree, rng in trees(300):
    mutant = mutate(tree, rng)
    assert parse(str(mutant), [*MUTATE.space.operators, 'scale']) == mutant
    assert 1 <= mutant.size <= 5 and mutant.n_parameters <= 2
    if mutant == tree:
      continue
    done += 1
    if kind in ('change', 'regenerate'):
      changed = sum(a != b for a, b in zip(operators(mutant), operators(tree), strict=True))
      assert shape(mutant) == shape(tree) and changed >= 1 and (changed == 1 or kind != 'change')
    if kind == 'insert':
      assert mutant.size - tree.size in (1, 2) and mutant.n_parameters == tree.n_parameters
      extra = collections.Counter(operators(mutant)) - collections.Counter(operators(tree))
      assert sum(extra.values()) == mutant.size - tree.size
    if kind == 'remove':
      assert mutant.size < tree.size and mutant.n_parameters <= tree.n_parameters
      assert not collections.Counter(operators(mutant)) - collections.Counter(operators(tree))
    if kind == 'parameter':
      assert bare(mutant) == bare(tree)
      more = len(mutant.edges_with_parameter()) - len(tree.edges_with_parameter())
      assert more in (-1, 0, 1)
  assert done > 100


def test_every_way_to_mutate_a_parameter_and_to_insert_occurs():
  differences, sizes = collections.Counter(), collections.Counter()
  start = parse('add(tanh(x), scale(x))')
  rng = np.random.default_rng(0)
  for _ in range(600):
    mutant = Mutations(MUTATE.space, ('parameter',))(start, rng)
    differences[mutant.n_parameters - 1] += 1
    sizes[Mutations(MUTATE.space, ('insert',))(start, rng).size - start.size] += 1
  assert set(differences) == {-1, 0, 1} and min(differences.values()) > 150
  # 23 unary and 6 binary operators, all equally likely.
  assert stats.binomtest(sizes[1], 600, 23 / 29).pvalue > 1e-3 and set(sizes) == {1, 2}


def test_an_insertion_takes_the_room_there_is_and_both_sides():
  rng = np.random.default_rng(0)
  tight = Mutations(MUTATE.space, ('insert',), max_operators=2)
  assert all(tight(parse('tanh(x)'), rng).size == 2 for _ in range(100))
  assert tight(parse('tanh(erf(x))'), rng) == parse('tanh(erf(x))')
  wide = Mutations(MUTATE.space, ('insert',))
  mutants = [wide(parse('tanh(erf(x))'), rng) for _ in range(200)]
  sides = {[len(operators(argument)) for argument in mutant.args].index(1)
           for mutant in mutants if len(mutant.args) == 2}
  assert sides == {0, 1}


def test_a_removal_leaves_one_factor_on_an_edge():
  mutate = Mutations(MUTATE.space, ('remove',))
  rng = np.random.default_rng(0)
  found = {str(mutate(parse('tanh(scale(erf(scale(x))))'), rng)) for _ in range(50)}
  assert found == {'scale(erf(scale(x)))', 'tanh(scale(x))'}
  assert mutate(parse('tanh(scale(x))'), rng) == parse('tanh(scale(x))')  # one operator stays


@pytest.mark.parametrize('name, kept', [
  ('act_bench', ['relu', 'tanh', 'exp', 'add', 'max']),
  ('pangaea', ['sin', 'tanh', 'exp', 'add', 'sub']),
  ('swish', ['scale', 'sin', 'gate', 'mix']),
  ('aquasurf', ['gelu', 'mish', 'add', 'div', 'sum_n', 'max_n'])])
def test_changes_of_one_operator_reach_all_of_a_schema_and_nothing_else(name, kept):
  space = get_space(name).restricted(kept)
  mutate, rng = Mutations(space, ('change',), 9, 9), np.random.default_rng(0)
  for schema in space.schemas:
    expression, reached = space.sample(rng, schema), set()
    for _ in range(30 * space.size(schema)):
      reached.add(expression)
      expression = mutate(expression, rng)
    assert reached == set(space.expressions(schema))


def test_a_mutation_that_is_not_there():
  with pytest.raises(UserError, match="no mutation is called 'chnge'; nearest: 'change'"):
    Mutations(SPACE, ('chnge',))
  with pytest.raises(UserError, match='at least one mutation'):
    Mutations(SPACE, ())
  lonely = Mutations(SPACE.restricted(['relu', 'add']), ('change',))
  only = parse('add(relu(x), relu(x))')
  assert lonely(only, np.random.default_rng(0)) == only
