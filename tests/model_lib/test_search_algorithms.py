"""Search algorithms: what they ask is a function of the answers, and it is better than chance."""
from __future__ import annotations

import functools

import numpy as np
import pytest

from model_lib.analysis.statistics import paired_difference
from model_lib.search import Expression, candidates, distinct, get_space, parse
from model_lib.search.algorithms import (
  Answer, Controller, Evolution, Exhaustive, FunctionKeys, GaussianProcessSearch, Halving,
  Mutations, NearestNeighbours, Query, RandomSearch)
from model_lib.search.algorithms.controller import log_probability, objective
from model_lib.search.tabulated import regret_curves
from tests.model_lib import search_tables
from tests.model_lib.search_tables import FULL, SPACE

BUDGET, SEARCHES = 50 * FULL, 30
CHANGE = Mutations(SPACE, ('change',))


def key(expression):
  return search_tables.planted().row(expression)


MAKE = {
  'random': lambda seed: RandomSearch(SPACE, key, seed),
  'evolution': lambda seed: Evolution(CHANGE, key, seed),
  'reinforce': lambda seed: Controller(SPACE, key, seed),
  'ppo': lambda seed: Controller(SPACE, key, seed, clip=0.2, epochs=5),
  'neighbours': lambda seed: NearestNeighbours(
    search_tables.functions(), search_tables.effects(), seed),
  'gaussian process': lambda seed: GaussianProcessSearch(
    search_tables.functions(), search_tables.effects(), seed),
  'halving': lambda seed: Halving(RandomSearch(SPACE, key, seed)),
}
LEARNING = [name for name in MAKE if name != 'random']


@functools.cache
def final_regrets(name, **table):
  curves = regret_curves(search_tables.planted(**table), MAKE[name], SEARCHES, [BUDGET])
  return curves[:, -1]


@pytest.mark.parametrize('name', LEARNING)
def test_it_finds_a_planted_optimum_sooner_than_random_search(name):
  """At the same candidate-steps; the margin is a fifth of random search's regret."""
  random = final_regrets('random')
  gain = paired_difference(final_regrets(name), random)
  assert gain.mean < -0.2 * random.mean() and gain.high < 0


@pytest.mark.parametrize('name', LEARNING)
def test_where_nothing_can_be_learned_it_is_as_random(name):
  """Losses that have nothing to do with the functions; for halving, short runs without news."""
  table = {'early_tells': False} if name == 'halving' else {'permuted': True}
  gain = paired_difference(final_regrets(name, **table), final_regrets('random', **table), 0.99)
  assert gain.high > 0


def test_short_runs_help_also_where_the_functions_tell_nothing():
  """Halving needs no structure, only that short runs predict long ones."""
  gain = paired_difference(final_regrets('halving', permuted=True),
                           final_regrets('random', permuted=True))
  assert gain.high < 0


def losses(query):
  """Of the table, by hand; some diverge."""
  row = key(query.expression)
  if row % 7 == 3:
    return float('nan') if row % 2 else float('inf')
  table = search_tables.planted()
  return float(table.validation_loss[row, 0, table.steps.index(query.steps or FULL)])


def run(algorithm, n, batch=3):
  """The answers of at most n queries."""
  told = []
  while len(told) < n and (queries := algorithm.ask(min(batch, n - len(told)))):
    assert len(queries) <= batch
    answers = [Answer(query, losses(query)) for query in queries]
    algorithm.tell(answers)
    told += answers
  return told


@pytest.mark.parametrize('name', [*MAKE, 'exhaustive', 'halving of evolution'])
def test_answers_told_again_lead_to_the_same_questions(name):
  make = {**MAKE, 'exhaustive': lambda seed: Exhaustive(search_tables.functions()),
          'halving of evolution': lambda seed: Halving(Evolution(CHANGE, key, seed), bracket=9)}[
            name]
  search = make(5)
  told = run(search, 50)
  assert len(told) == 50
  at_once, one_by_one = make(5), make(5)
  at_once.tell(told)
  for answer in told:
    one_by_one.ask(2)
    assert one_by_one.ask(4) == one_by_one.ask(4)
    one_by_one.tell([answer])
  asked = search.ask(7)
  assert asked and asked == at_once.ask(7) == one_by_one.ask(7)
  if name != 'exhaustive':
    assert [answer.query for answer in run(make(6), 50)] != [answer.query for answer in told]


def test_the_order_of_random_search_does_not_hang_on_the_batches():
  orders = [[answer.query for answer in run(MAKE['random'](2), 60, batch)] for batch in (1, 7, 60)]
  assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize('name', MAKE)
def test_it_asks_for_valid_functions_and_none_twice(name):
  told = run(MAKE[name](1), 80)
  rows = [(key(answer.query.expression), answer.query.steps) for answer in told]
  assert len(rows) == 80 and len(set(rows)) == 80
  assert all(row is not None for row, _ in rows)
  assert any(answer.diverged for answer in told)


def test_a_space_that_is_searched_through_ends_the_search():
  space = SPACE.restricted(['tanh', 'relu', 'add', 'mul'])
  valid = candidates(space.expressions()).valid
  searches = [RandomSearch(space, FunctionKeys(), 0), Controller(space, FunctionKeys(), 0),
              Evolution(Mutations(space, ('change',)), FunctionKeys(), 0, population=3),
              Exhaustive(valid)]
  for search in searches:
    asked = []
    while queries := search.ask(4):
      asked += [query.expression for query in queries]
      search.tell([Answer(query, float(len(str(query.expression)))) for query in queries])
    # A policy may have settled on what it knows before it has seen all.
    assert len(distinct(asked)) == len(asked) <= len(valid)
    assert len(asked) == len(valid) or isinstance(search, Controller)


def test_evolution_lets_the_oldest_die_and_throws_away_what_diverged():
  search = Evolution(CHANGE, key, 0, population=4, tournament=400)
  first = search.ask(10)
  assert len(first) == 4  # no child before the population is whole
  search.tell([Answer(query, loss) for query, loss in zip(first, [0.0, 1.0, 2.0, float('nan')])])
  assert len(search.ask(10)) == 1
  search.tell([Answer(search.ask(1)[0], 3.0)])

  def is_child(query, parent):
    pairs = zip(query.expression.walk(), parent.expression.walk(), strict=True)
    return sum(a.operator != b.operator for (_, a), (_, b) in pairs) == 1

  # In so large a tournament the best of the living wins, however good the dead were.
  assert all(is_child(query, first[0]) for query in search.ask(5))
  search.tell([Answer(Query(parse('add(tanh(x), elu(x))')), 9.0)])
  assert all(is_child(query, first[1]) for query in search.ask(5))


def test_evolution_on_trees_with_parameters_and_no_table():
  space, keys = get_space('pangaea'), FunctionKeys()
  search = Evolution(Mutations(space), keys, 0, population=8, tournament=3)
  asked = []
  for _ in range(12):
    queries = search.ask(4)
    asked += [query.expression for query in queries]
    search.tell([Answer(query, -query.expression.size - query.expression.n_parameters)
                 for query in queries])
  assert len(set(map(keys, asked))) == len(asked) == 48 and None not in map(keys, asked)
  assert max(expression.size for expression in asked) > 3
  assert any(expression.n_parameters for expression in asked)


# --- The controller ---


@pytest.mark.parametrize('clip', [None, 0.2])
def test_the_gradient_of_the_policy_is_that_of_finite_differences(clip):
  rng = np.random.default_rng(0)
  tables = [rng.normal(size=(rows, columns)) for rows, columns in ((1, 2), (3, 4), (5, 3))]
  samples = np.stack([rng.integers(k, size=40) for k in (2, 4, 3)], 1)
  advantages = rng.normal(size=40)
  old = log_probability(tables, samples) + 0.3 * rng.normal(size=40)

  def value(tables):
    return objective(tables, samples, advantages, old, clip, entropy=0.3)[0]

  _, gradient = objective(tables, samples, advantages, old, clip, entropy=0.3)
  for i, table in enumerate(tables):
    for place in np.ndindex(table.shape):
      ends = []
      for step in (1e-6, -1e-6):
        moved = [each.copy() for each in tables]
        moved[i][place] += step
        ends.append(value(moved))
      np.testing.assert_allclose(gradient[i][place], (ends[0] - ends[1]) / 2e-6, atol=1e-8)
  for other in ({'entropy': 0.0}, {'entropy': 0.3, 'clip': 0.1}):  # what the check would see
    _, wrong = objective(tables, samples, advantages, old, **{'clip': clip, **other})
    assert max(np.abs(a - b).max() for a, b in zip(gradient, wrong, strict=True)) > 1e-4


def test_probabilities_are_those_of_the_texts():
  tables = [np.log([[0.25, 0.75]]), np.array([[0.0, 0.0], [0.0, 0.0], [0.0, np.log(3)]])]
  samples = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
  np.testing.assert_allclose(np.exp(log_probability(tables, samples)),
                             [0.125, 0.125, 0.1875, 0.5625])


def test_the_controller_comes_to_prefer_what_is_good():
  search = Controller(SPACE, key, 0)
  assert all(np.ptp(p, axis=1).max() < 1e-12 for p in search.probabilities())
  for _ in range(15):
    search.tell([Answer(query, float(query.expression.operator != 'mul'))
                 for query in search.ask(10)])
  assert SPACE.of_kind('binary')[search.probabilities()[0][0].argmax()] == 'mul'


def test_losses_that_are_all_the_same_teach_the_controller_nothing():
  search = Controller(SPACE, key, 0, entropy=0.0)
  told = []
  while len(told) < 100:  # the batches differ, though the policy does not
    queries = search.ask(10)
    assert queries
    told += queries
    search.tell([Answer(query, 1.0) for query in queries])
  assert all(np.ptp(p, axis=1).max() < 1e-12 for p in search.probabilities())


def test_entropy_keeps_the_controller_open():
  spread = {}
  for weight in (0.0, 0.3):
    search = Controller(SPACE, key, 0, entropy=weight)
    for _ in range(12):
      search.tell([Answer(query, losses(query)) for query in search.ask(10)])
    first = search.probabilities()[0][0]
    spread[weight] = -(first * np.log(first)).sum()
  assert spread[0.3] > spread[0.0] + 0.1


# --- Successive halving ---


class Recorder:
  """Proposes functions in their order, and keeps what it is told."""

  def __init__(self):
    self.told = []

  def ask(self, n):
    return list(map(Query, search_tables.functions()[len(self.told):][:n]))

  def tell(self, answers):
    self.told += answers


def test_halving_keeps_the_best_third_and_tells_the_first_losses():
  proposer = Recorder()
  search = Halving(proposer, bracket=9)
  names = search_tables.functions()
  values = dict(zip(names, [5.0, 4, 3, 2, 1, float('nan'), 0, 8, 9]))
  for steps, expected in ((30, names[:9]), (100, (names[6], names[4], names[3])),
                          (None, (names[6],))):
    asked = search.ask(20)
    assert [(query.expression, query.steps) for query in asked] == [
      (expression, steps) for expression in expected]
    assert not proposer.told
    search.tell([Answer(query, values[query.expression]) for query in asked])
  assert [answer.query for answer in proposer.told] == list(map(Query, names[:9]))
  np.testing.assert_array_equal([answer.loss for answer in proposer.told], list(values.values()))
  assert [query.expression for query in search.ask(2)] == list(names[9:11])
  with pytest.raises(ValueError, match='at 100 steps was not asked for'):
    search.tell([Answer(Query(names[9], 100), 0.0)])


def test_a_bracket_that_diverged_goes_on_nowhere():
  proposer = Recorder()
  search = Halving(proposer, bracket=3)
  search.tell([Answer(query, float('nan')) for query in search.ask(3)])
  assert len(proposer.told) == 3 and all(answer.diverged for answer in proposer.told)
  assert [query.steps for query in search.ask(9)] == [30, 30, 30]


@pytest.mark.parametrize('rungs', [(), (100, 30), (30, 30), (None, 30), (30, None, None)])
def test_rungs_that_do_not_increase(rungs):
  with pytest.raises(ValueError, match='rungs increase'):
    Halving(Recorder(), rungs)


def test_a_bracket_of_nothing():
  with pytest.raises(ValueError, match='bracket is at least 1'):
    Halving(Recorder(), bracket=0)
  with pytest.raises(ValueError, match='keep between 0 and 1'):
    Halving(Recorder(), keep=1.0)
  assert isinstance(Halving(Recorder(), (None,)).ask(1)[0].expression, Expression)
