"""The look-up benchmark: its file, look-up, regret by hand, the reliability of a ranking."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from model_lib.errors import UserError
from model_lib.search import distinct, parse
from model_lib.search.algorithms import (
  Answer, Exhaustive, GaussianProcessSearch, Halving, NearestNeighbours, Query,
  RandomSearch)
from model_lib.search.tabulated import (
  Table, exhaustive_regret, regret_curves, reliability, search_curve)
from tests.model_lib import search_tables
from tests.model_lib.search_tables import FULL, SPACE

MEASURES = ('validation_loss', 'test_loss', 'validation_accuracy', 'test_accuracy')


def small(**changes):
  """Four functions, three seeds, two numbers of steps."""
  rng = np.random.default_rng(0)
  values = {name: rng.normal(size=(4, 3, 2)) for name in MEASURES}
  values['validation_loss'][1, 2, 1] = np.nan
  fields = {'expressions': ('tanh(x)', 'relu(x)', 'mul(x, sigmoid(x))', 'add(x, sin(x))'),
            'seeds': (0, 1, 5), 'steps': (10, 20), 'meta': {'data': 'digits', 'rate': 0.01}}
  return Table(**{**values, **fields, **changes})


def same(a, b):
  names = ('expressions', 'seeds', 'steps', 'meta')
  return all(getattr(a, name) == getattr(b, name) for name in names) and (
    all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in MEASURES))


# --- The file ---


def test_a_table_is_read_as_it_was_written(tmp_path):
  path, table = tmp_path / 'table.npz', small()
  table.write(path)
  assert same(Table.read(path), table)
  assert [file.name for file in tmp_path.iterdir()] == ['table.npz']
  first = path.read_bytes()
  table.write(path)
  assert path.read_bytes() == first  # no time in it
  assert not same(Table.read(path), small(seeds=(0, 1, 6)))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path, table = tmp_path / 'table.npz', small()
  table.write(path)

  def full_disk(*_):
    raise OSError('no space left')
  monkeypatch.setattr('os.fsync', full_disk)
  with pytest.raises(OSError, match='no space left'):
    small(seeds=(7, 8, 9)).write(path)
  assert same(Table.read(path), table) and len(list(tmp_path.iterdir())) == 1


def test_a_new_table_takes_the_place_of_the_old_one_in_one_step(tmp_path):
  """The old file is not written to: another name of it still has the old table."""
  path, table = tmp_path / 'table.npz', small()
  table.write(path)
  (tmp_path / 'kept.npz').hardlink_to(path)
  small(seeds=(7, 8, 9)).write(path)
  assert same(Table.read(tmp_path / 'kept.npz'), table)
  assert Table.read(path).seeds == (7, 8, 9)


def refusal(path):
  with pytest.raises(UserError) as error:
    Table.read(path)
  assert '\n' not in str(error.value) and str(path) in str(error.value)
  return str(error.value)


def test_a_damaged_or_cut_file_is_refused_or_its_values_are_whole(tmp_path):
  path, table = tmp_path / 'table.npz', small()
  table.write(path)
  whole = path.read_bytes()
  for length in range(0, len(whole), 97):
    path.write_bytes(whole[:length])
    refusal(path)
  refused = 0
  for at in range(0, len(whole), 13):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5a]) + whole[at + 1:])
    try:  # some bytes, such as a time stamp, mean nothing
      assert same(Table.read(path), table)
    except UserError as error:
      assert '\n' not in str(error)
      refused += 1
  assert refused > 0.7 * len(range(0, len(whole), 13))


def test_other_files_are_refused(tmp_path):
  path = tmp_path / 'other'
  refusal(path)
  refusal(tmp_path)
  path.write_text('expressions,loss\nrelu(x),0.1\n')
  refusal(path)
  with open(path, 'wb') as file:
    np.save(file, np.arange(3))
  refusal(path)
  small().write(path)
  stored = dict(np.load(path))

  def with_entry(name, value):
    with open(path, 'wb') as file:
      np.savez(file, **{**stored, name: value})
    return refusal(path)

  assert 'format 2' in with_entry('format', np.array(2))
  assert 'allow_pickle' in with_entry('expressions', np.array([['x'], 'y'], object))
  assert 'cannot have test_loss' in with_entry('test_loss', np.zeros((4, 3, 1)))
  assert 'cannot have test_loss' in with_entry('test_loss', np.full((4, 3, 2), 'a'))
  assert 'no operator is called' in with_entry(
    'expressions', np.array(['tanh(x)', 'rlu(x)', 'x', 'sin(x)']))
  assert '3 functions' in with_entry(
    'expressions', np.array(['tanh(x)', 'relu(x)', 'max(x, 0)', 'sin(x)']))
  assert 'increasing steps' in with_entry('steps', np.array([20, 10]))
  assert 'every seed once' in with_entry('seeds', np.array([1, 1, 2]))
  assert 'Expecting' in with_entry('meta', np.array('{'))
  with open(path, 'wb') as file:
    np.savez(file, **{name: value for name, value in stored.items() if name != 'test_loss'})
  assert "no entry 'test_loss'" in refusal(path)
  with open(path, 'wb') as file:
    np.savez(file, **stored)
  assert same(Table.read(path), small())


def test_an_empty_table_is_refused():
  empty = {name: np.zeros((0, 3, 2)) for name in MEASURES}
  with pytest.raises(UserError, match='needs functions'):
    small(expressions=(), **empty)


def test_meta_must_be_json(tmp_path):
  with pytest.raises(TypeError):
    small(meta={'rate': object()}).write(tmp_path / 'table.npz')
  small(meta={'rate': [1, 2.5]}).write(tmp_path / 'table.npz')
  assert json.loads(str(np.load(tmp_path / 'table.npz')['meta'])) == {'rate': [1, 2.5]}


# --- Look-up ---


def test_every_text_of_a_function_finds_its_row():
  table = small()
  for text, row in (('tanh(x)', 0), ('max(x, zero(x))', 1), ('swish(x)', 2),
                    ('sub(sin(x), neg(x))', 3), ('elu(x)', None), ('div(x, zero(x))', None)):
    assert table.row(parse(text)) == row == table.row(parse(text))


def test_all_expressions_of_a_space_find_the_row_of_their_function():
  table = search_tables.planted()
  rows = {row: None for row in range(len(table.expressions))}
  groups = distinct(SPACE.expressions())
  for group in groups:
    found = {table.row(expression) for expression in group}
    assert len(found) == 1
    row = found.pop()
    if row is not None:
      assert rows[row] is None and group[0] == table.candidates[row]
      rows[row] = group
  assert None not in rows.values() and len(groups) > len(rows)


# --- Regret ---


def by_hand():
  """Three functions, two seeds."""
  validation = np.array([[0.3, 0.5], [0.2, np.nan], [0.1, 0.6]])
  test = np.array([[0.4, 0.30], [0.6, 0.35], [0.5, 0.50]])

  def both(last):
    return np.stack([np.zeros_like(last), last], -1)
  return Table(('tanh(x)', 'relu(x)', 'sin(x)'), (0, 1), (10, 40), both(validation), both(test),
               both(validation), both(test), {})


def test_regret_is_in_the_test_loss_of_the_other_seeds():
  table = by_hand()
  np.testing.assert_allclose(table.regrets(0), [0, 0.05, 0.2])
  np.testing.assert_allclose(table.regrets(1), [0, 0.2, 0.1])
  curve = search_curve(table, Exhaustive(table.candidates), 0, [39, 40, 79, 80, 119, 120, 500])
  np.testing.assert_allclose(curve, [np.nan, 0, 0, 0.05, 0.05, 0.2, 0.2])
  # Seed 1: the second function diverged, the third is worse.
  np.testing.assert_allclose(
    search_curve(table, Exhaustive(table.candidates), 1, [40, 80, 120]), 0)
  np.testing.assert_allclose(exhaustive_regret(table), [0.2, 0])
  curves = regret_curves(table, lambda seed: Exhaustive(table.candidates[seed:]), 2, [120])
  np.testing.assert_allclose(curves, [[0.2], [0.1]])


def test_a_function_that_diverged_on_another_seed_has_infinite_regret():
  table = by_hand()
  table.test_loss[2, 1, 1] = np.inf
  np.testing.assert_allclose(table.regrets(0), [0, 0.05, np.inf])


class Fixed:
  """Asks for given queries, one at a time."""

  def __init__(self, *queries):
    self.queries, self.told = list(queries), []

  def ask(self, n):
    return self.queries[len(self.told):][:n]

  def tell(self, answers):
    self.told += answers


def test_a_longer_run_goes_on_from_the_shorter_one_and_a_repeated_one_costs_again():
  table = by_hand()
  tanh, relu, _ = table.candidates
  search = Fixed(Query(tanh, 10), Query(relu, 10), Query(tanh, 40), Query(tanh), Query(relu))
  # Spent: 10, 20, 50, 90, 120.
  curve = search_curve(table, search, 0, [49, 50, 119, 120])
  np.testing.assert_allclose(curve, [np.nan, 0, 0, 0.05])
  assert search.told[0] == Answer(Query(tanh, 10), 0.0)
  assert search.told[3] == Answer(Query(tanh), 0.3)


def test_halving_pays_for_the_steps_that_it_adds():
  """9 functions for 30 steps, 3 for 70 more, one for 200 more: 680."""
  table = search_tables.planted()
  curve = search_curve(
    table, Halving(Exhaustive(table.candidates), bracket=9), 0, [679, 680])
  assert np.isnan(curve[0]) and np.isfinite(curve[1])
  first = table.validation_loss[:9, 0]
  third = np.argsort(first[:, 0])[:3]
  assert curve[1] == table.regrets(0)[third[first[third, 1].argmin()]]


def test_what_is_not_in_the_table_cannot_be_looked_up():
  table = by_hand()
  for query in (Query(parse('elu(x)')), Query(parse('tanh(x)'), 20)):
    with pytest.raises(ValueError, match='is not in the table'):
      search_curve(table, Fixed(query), 0, [40])
  with pytest.raises(UserError, match='at least two'):
    dataclasses.replace(table, seeds=(0,), **{
      name: getattr(table, name)[:, :1] for name in MEASURES}).regrets(0)


def test_searches_take_the_seen_seeds_in_turn_and_repeat():
  table = search_tables.planted()
  marks = [5 * FULL, 20 * FULL]
  curves = [regret_curves(table, lambda seed: RandomSearch(SPACE, table.row, seed), 6, marks)
            for _ in range(2)]
  np.testing.assert_array_equal(*curves)
  for seed in range(6):
    alone = search_curve(table, RandomSearch(SPACE, table.row, seed), seed % 3, marks)
    np.testing.assert_array_equal(curves[0][seed], alone)


def test_a_search_that_ends_early_keeps_its_regret():
  table = search_tables.planted()
  searches = (NearestNeighbours(table.candidates[:12], search_tables.effects()[:12], 0),
              GaussianProcessSearch(table.candidates[:12], search_tables.effects()[:12], 0))
  best = table.regrets(1)[table.validation_loss[:12, 1, -1].argmin()]
  for search in searches:
    curve = search_curve(table, search, 1, [12 * FULL, 100 * FULL])
    np.testing.assert_array_equal(curve, best)


# --- Reliability ---


def test_reliability_of_rankings_by_hand():
  values = np.random.default_rng(0).normal(size=(50, 3))
  taus = [stats.kendalltau(values[:, a], values[:, b]).statistic
          for a, b in ((0, 1), (0, 2), (1, 2))]
  np.testing.assert_allclose(reliability(values), np.mean(taus))
  top = []
  for chooser, a, b in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
    chosen = np.argsort(values[:, chooser])[:10]
    top.append(stats.kendalltau(values[chosen, a], values[chosen, b]).statistic)
  np.testing.assert_allclose(reliability(values, top=0.2), np.mean(top))
  assert reliability(np.arange(30.)[:, None] * [1, 2, 3], top=0.5) == 1
  assert np.isnan(reliability(values[:, :1])) and np.isnan(reliability(values[:, :2], top=0.5))


def test_the_top_is_chosen_without_looking_at_what_is_ranked():
  """Of noise, the top's tau is 0; with a ranked seed in the choice it would be far below."""
  rng = np.random.default_rng(1)
  draws = [rng.normal(size=(400, 3)) for _ in range(20)]
  taus = [reliability(values, top=0.1) for values in draws]
  assert abs(np.mean(taus)) < 4 * stats.sem(taus) and stats.sem(taus) < 0.03
  biased = [stats.kendalltau(*values[np.argsort(values[:, :2].mean(1))[:40], :2].T).statistic
            for values in draws]
  assert np.mean(biased) < -0.3


def test_what_diverged_ranks_last():
  values = np.array([[1.0, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]])
  for bad in (np.nan, np.inf):
    diverged = values.copy()
    diverged[3] = bad
    assert reliability(diverged) == 1
    diverged[3], diverged[0] = values[3], bad
    assert reliability(diverged) == 1
    diverged[0] = [1, 1, bad]  # tau of 1 among seeds 0 and 1; else 3 pairs of 6 turn round
    np.testing.assert_allclose(reliability(diverged), 1 / 3)
