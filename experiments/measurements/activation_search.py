"""What the search part of the activation search computes from its table: regrets and proxies.

Every function here is a measurement: rows without training. They read the rows of the cohorts that
trained every function of the space, as a `model_lib.search.tabulated.Table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import math
import time
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl

from launch.study import Given
from model_lib.analysis import statistics
from model_lib.analysis.entropy import entropies
from model_lib.errors import UserError
from model_lib.search import (
    Expression, Fingerprints, Space, algorithms, candidates, canonical, count_functions, engines,
    get_space, parse, proxies, tabulated)
from model_lib.search.algorithms import Algorithm
from model_lib.search.eafo import eafo_step
from model_lib.search.tabulated import Table

# algorithm -> the random search that it is held against: of texts, in which functions with many
# texts come first, or of functions; the surrogates choose among functions.
BASELINES = {'random': '', 'uniform': '', 'evolution': 'random', 'reinforce': 'random',
             'knn': 'uniform', 'gp': 'uniform', 'halving': 'random'}
TOP = 0.1
PERMUTED = 10  # tables of the control


def space_of(name: str, operators: Sequence[str]) -> Space:
  """A named space, with some of its operators alone where any are given."""
  space = get_space(name)
  return space.restricted(operators) if operators else space


def table_of(rows: pd.DataFrame, meta: Mapping[str, Any]) -> Table:
  """The table of the runs of phase 'table': columns activation, seed, and losses at all steps.

  A run that had diverged by a step has nan there.
  """
  rows = rows[rows.phase == 'table']
  lost = rows.diverged_step
  last = int(rows.steps.iloc[0])
  marks = sorted(int(column.rsplit('_', 1)[1]) for column in rows
                 if column.startswith('val_loss_at_') and rows[column].notna().any())
  suffixes = [*(f'_at_{mark}' for mark in marks), '']
  texts = tuple(dict.fromkeys(rows.activation))
  seeds = tuple(int(seed) for seed in dict.fromkeys(rows.seed))

  def measured(column: str) -> np.ndarray:
    wide = []
    for suffix, step in zip(suffixes, (*marks, last), strict=True):
      whole = rows.assign(value=rows[column + suffix].where((lost < 0) | (lost >= step)))
      if step == last:
        whole['value'] = whole['value'].where(lost < 0)
      wide.append(whole.pivot(index='activation', columns='seed', values='value')
                  .loc[list(texts), list(seeds)].to_numpy(np.float64))
    return np.stack(wide, -1)

  return Table(texts, seeds, (*marks, last), measured('val_loss'), measured('test_loss'),
               measured('val_accuracy'), measured('test_accuracy'), dict(meta))


def proxy_task(given: Given) -> proxies.Task:
  """The first split's training and validation images, standardized as the models see them."""
  data = given.data.dataset
  split = given.data.splits[0]
  inputs = (data.inputs.reshape(len(data.inputs), -1).astype(np.float64) - data.mean) / data.std
  labels = np.asarray(data.labels)
  order = np.random.default_rng(0).permutation(split.train)[:1000]
  return proxies.Task(inputs[order], labels[order], inputs[split.val], labels[split.val])


def surrogate_features(table: Table, task: proxies.Task) -> np.ndarray:
  """Outputs and Fisher eigenvalues of every function, both with the same weight."""
  outputs = algorithms.output_features(table.candidates, min(16, len(table.candidates)))
  fisher = proxies.fisher_features(table.candidates, task)
  known = np.isfinite(fisher).all(1)
  fisher[~known] = fisher[known].mean(0)  # what cannot be looked at lies in the middle
  return algorithms.side_by_side(outputs, fisher)


def makers(
    table: Table, space: Space, features: np.ndarray) -> dict[str, Callable[[int], Algorithm]]:
  """algorithm -> seed -> a search on the table."""
  change = algorithms.Mutations(space, ('change',))
  return {
      'random': lambda seed: algorithms.RandomSearch(space, table.row, seed),
      'uniform': lambda seed: algorithms.Exhaustive(
          [table.candidates[i] for i in np.random.default_rng(seed).permutation(
              len(table.candidates))]),
      'evolution': lambda seed: algorithms.Evolution(change, table.row, seed),
      'reinforce': lambda seed: algorithms.Controller(space, table.row, seed),
      'knn': lambda seed: algorithms.NearestNeighbours(table.candidates, features, seed),
      'gp': lambda seed: algorithms.GaussianProcessSearch(table.candidates, features, seed),
      'halving': lambda seed: algorithms.Halving(
          algorithms.RandomSearch(space, table.row, seed), (*table.steps[:-1], None)),
  }


def capped(table: Table, guess: float) -> Table:
  """Test losses of at most `guess`, for diverged runs too.

  What is worse than guessing is of no use, however much worse: a few functions reach 1e34 nats on
  other images, and would alone decide a mean.
  """
  loss = np.where(np.isfinite(table.test_loss), np.minimum(table.test_loss, guess), guess)
  return dataclasses.replace(table, test_loss=loss)


def permuted(table: Table, seed: int) -> Table:
  """The same losses dealt out to other functions, those of every step anew.

  No search can be better on it than random search; one that spends steps on short runs is worse,
  since they tell nothing of the long ones.
  """
  rng = np.random.default_rng(seed)
  orders = np.stack([rng.permutation(len(table.expressions)) for _ in table.steps], 1)[:, None]
  dealt = [np.take_along_axis(losses, orders, 0) for losses in (
      table.validation_loss, table.test_loss, table.validation_accuracy, table.test_accuracy)]
  return Table(table.expressions, table.seeds, table.steps, *dealt, dict(table.meta))


def measure_regrets(
    given: Given, cohorts: Sequence[str], space: str, operators: Sequence[str], searches: int,
    evaluations: Sequence[int], seed: int, baselines: Mapping[str, str], tables: int,
) -> list[dict[str, Any]]:
  """Regret of every algorithm after some budgets, on the table and on permuted ones.

  Args:
    cohorts: that trained the table.
    space, operators: of which the table is.
    searches: search seeds per algorithm.
    evaluations: budgets in full trainings, ascending.
    seed: shifts those of the searches.
    baselines: algorithm -> that with which it is paired, '' for none.
    tables: of the permuted control, among which the searches are shared out.

  Returns:
    A row per table, algorithm and budget, with the mean regret in nats over the searches that have
    finished a training by then, and the paired difference to the baseline. Test losses count up
    to that of guessing, ln(classes).
  """
  whole = capped(table_of(given.rows(cohorts), {}), math.log(given.data.dataset.num_classes))
  searched = space_of(space, operators)
  with threadpoolctl.threadpool_limits(1, 'blas'):  # see measure_proxies
    features = surrogate_features(whole, proxy_task(given))
  marks = [whole.steps[-1] * n for n in evaluations]
  first, shares = seed * searches, min(tables, searches)
  worlds = {'trained': [(whole, first, searches)],
            'permuted': [(permuted(whole, k), first + k * searches, searches // shares)
                         for k in range(shares)]}
  rows = []
  for name, parts in worlds.items():
    found: dict[str, list[np.ndarray]] = {algorithm: [] for algorithm in baselines}
    bounds = []
    for table, start, count in parts:
      made = makers(table, searched, features)
      with threadpoolctl.threadpool_limits(1, 'blas'):
        for algorithm in baselines:
          found[algorithm].append(tabulated.regret_curves(
              table, lambda i, make=made[algorithm], start=start: make(start + i), count, marks))
      bounds.append(float(tabulated.exhaustive_regret(table).mean()))
    regrets = {algorithm: np.concatenate(curves) for algorithm, curves in found.items()}
    for place, trainings in enumerate(evaluations):
      paired = {}
      for algorithm, baseline in baselines.items():
        if baseline:
          own, random = regrets[algorithm][:, place], regrets[baseline][:, place]
          both = ~np.isnan(own) & ~np.isnan(random)
          paired[algorithm] = statistics.paired_difference(own[both], random[both])
      p = dict(zip(paired, statistics.holm([one.p for one in paired.values()]), strict=True))
      for algorithm, baseline in baselines.items():
        regret = regrets[algorithm][:, place]
        mean = statistics.mean_interval(regret[~np.isnan(regret)])
        row = {'part': 'search', 'phase': 'regret', 'table': name, 'algorithm': algorithm,
               'evaluations': trainings, 'regret': mean.mean, 'regret_low': mean.low,
               'regret_high': mean.high, 'searches': mean.n, 'bound': float(np.mean(bounds)),
               'baseline': baseline}
        if baseline:
          one = paired[algorithm]
          row |= {'difference': one.mean, 'difference_low': one.low, 'difference_high': one.high,
                  'p': float(p[algorithm]), 'pairs': one.n}
        rows.append(row)
  return rows


def measure_proxies(given: Given, cohorts: Sequence[str]) -> list[dict[str, Any]]:
  """Kendall's tau of every proxy with the mean last test loss, and what a proxy costs.

  A tau is counted in the proxy's expected direction: positive where it predicts as expected. The
  top tau is over the share TOP of the functions with the lowest loss; it ranks what was chosen by
  the losses that are ranked, so it is too low rather than too high. Losses on the way are of the
  first seed and are held against the other seeds' test losses.

  Returns:
    A row per proxy, and two of the table's own split-half tau, which is the ceiling.
  """
  table = table_of(given.rows(cohorts), {})
  # Many small products: with more threads BLAS takes up to ten times as long.
  with threadpoolctl.threadpool_limits(1, 'blas'):
    values, seconds = proxies.all_proxies(table.candidates, proxy_task(given))
  signs = {name: proxy.sign for name, proxy in proxies.names().items()}
  start = time.perf_counter()
  entropy = [_entropies(expression) for expression in table.candidates]
  for place, name in enumerate(('entropy', 'entropy_naive')):
    values[name], signs[name] = np.array([pair[place] for pair in entropy]), -1
    seconds[name] = time.perf_counter() - start
  found = [(name, signs[name], values[name], seconds[name], table.test_loss[..., -1])
           for name in values]
  for place, step in enumerate(table.steps[:-1]):
    found.append((f'loss_at_{step}', -1, table.validation_loss[:, 0, place], np.nan,
                  table.test_loss[:, 1:, -1]))
  rows = []
  for name, sign, value, wall_s, losses in found:
    loss = losses.mean(1)
    known = np.isfinite(value) & np.isfinite(loss)
    best = known & (loss <= np.quantile(loss[known], TOP))
    tau, low, high = statistics.kendall_interval(-sign * value[known], loss[known])
    rows.append({'part': 'search', 'phase': 'proxy', 'proxy': name, 'expected': sign, 'tau': tau,
                 'tau_low': low, 'tau_high': high,
                 'tau_top': statistics.kendall_interval(-sign * value[best], loss[best], 1)[0],
                 'functions': int(known.sum()), 'wall_s': wall_s})
  for top, name in ((1.0, 'all'), (TOP, 'top')):
    rows.append({'part': 'search', 'phase': 'ceiling', 'proxy': name,
                 'tau': tabulated.reliability(table.test_loss[..., -1], top),
                 'functions': round(top * len(table.expressions))})
  return rows


def measure_unigram(given: Given, data: str, part: str = 'search') -> list[dict[str, Any]]:
  """Entropy of the training bytes in nats: what a model reaches that knows their shares alone."""
  text = given.data.beside[data]
  counts = np.bincount(text.dataset.inputs[text.splits[0].train].ravel())
  shares = counts[counts > 0] / counts.sum()
  return [{'part': part, 'phase': 'unigram', 'entropy': float(-(shares * np.log(shares)).sum())}]


def measure_counts(given: Given, space: str, operators: Sequence[str]) -> list[dict[str, Any]]:
  """How many functions the space's expressions are, by two rules, and how many are valid."""
  del given
  expressions = list(space_of(space, operators).expressions())
  counts, found = count_functions(expressions), candidates(expressions)
  return [{'part': 'search', 'phase': 'counts', 'raw': counts.raw, 'functions': counts.functions,
           'byte_strings': counts.byte_strings, 'valid': len(found.valid), 'summary': str(found)}]


def measure_eafo_candidates(given: Given, starts: Sequence[str], epsilons: Sequence[float],
                            steps: int, most: int) -> list[dict[str, Any]]:
  """Functions that EAFO's steps reach from some starts, in both signs; nothing is trained for them.

  Args:
    starts: expressions.
    epsilons: step sizes.
    steps: of a path, at most.
    most: valid functions that are kept, those after fewer steps first.

  Returns:
    A row per function: its text, start, sign, epsilon and number of steps, and its entropy.
  """
  del given
  paths = [(start, sign, epsilon, parse(start)) for start in starts for sign in ('descent', 'paper')
           for epsilon in epsilons]
  key, known, rows = algorithms.FunctionKeys(), set(), []
  for number in range(1, steps + 1):
    further = []
    for start, sign, epsilon, expression in paths:
      if len(rows) == most:
        return rows
      try:
        step = eafo_step(expression, epsilon, False, sign=sign)
      except UserError:  # the path ends: a stationary point, or a correction that no bump fits
        continue
      found = key(step.expression)
      if found is None:
        continue
      further.append((start, sign, epsilon, step.expression))
      if found not in known:
        known.add(found)
        rows.append({'part': 'search', 'phase': 'eafo_candidate',
                     'activation': str(step.expression), 'start_from': start, 'sign': sign,
                     'epsilon': epsilon, 'eafo_steps': number, 'entropy': step.after.primary})
    paths = further
  return rows


def measure_hardened(given: Given, cohort: str, space: str, most: int) -> list[dict[str, Any]]:
  """The most probable valid expressions of trained relaxations, the networks taken in turn.

  Args:
    cohort: of the relaxations.
    space: in which they were trained.
    most: expressions that are kept, each function once.
  """
  import jax
  trained = given.trained(cohort)
  ranked = [candidates(engines.harden(
      jax.tree.map(lambda leaf, place=place: leaf[place], trained.variables['params']),
      get_space(space), most)).valid
      for place, row in enumerate(trained.rows) if row['diverged_step'] < 0]
  prints, found = Fingerprints(), {}
  for expression in itertools.chain.from_iterable(itertools.zip_longest(*ranked)):
    if expression is not None and len(found) < most:
      found.setdefault(prints.functional(expression), str(canonical(expression)))
  return [{'part': 'search', 'phase': 'hardened', 'activation': text} for text in found.values()]


def _entropies(expression: Expression) -> tuple[float, float]:
  """EAFO's criterion under N(0, 1): the primary entropy, and the paper's H(U) + E log |f'|."""
  try:
    with np.errstate(all='ignore'):  # wild functions
      found = entropies(expression, breaks=engines.kinks(expression))
  except UserError:  # a range of too many bins: no number for this one
    return np.nan, np.nan
  return found.primary, found.monotone.raw
