"""What the part with vision transformers as children reports: tables, verdicts, figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from experiments.parts.children_cohorts import NETWORKS, PART, REFERENCE, check, cohorts
from experiments.parts.search_cohorts import MOST_WIDENINGS
from launch.study import Report, Run
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from launch.study.comparison import comparison_table
from launch.study.tables import Column, Table, fixed, integer, interval
from model_lib.analysis import selection, statistics

__all__ = ['check', 'cohorts', 'report', 'testable']

MIN_SEEDS, MAX_EDGE_SHARE, LEARNED = 5, 0.10, 0.3
TESTABLE = (f'not testable below {MIN_SEEDS} fresh seeds without divergence, when over '
            f'{MAX_EDGE_SHARE:.0%} of the functions choose the edge of the learning rates, '
            f"{MOST_WIDENINGS} steps beyond the first ones, or when ReLU's test log-loss is not "
            f"{LEARNED} nats below the labels' entropy")


def testable(claim: str) -> str:
  """When a claim of this part is not testable: the same for all."""
  del claim
  return TESTABLE


def halving_table(config: Any, rows: pd.DataFrame, dataset: str) -> Table:
  """Every rung: how many ran, the best function, and what the copies of ReLU reached."""
  listed = []
  for number, steps in enumerate(config.children.rungs):
    own = rows[(rows.phase == 'rung') & (rows['rung'] == number)]
    alive = own[own.diverged_step < 0]
    functions, copies = alive[alive['copy'] == 0], alive[alive['copy'] > 0]
    row = {'rung': number + 1, 'steps': steps, 'functions': int((own['copy'] == 0).sum()),
           'diverged': len(own) - len(alive)}
    if len(functions):
      best = functions.loc[functions.val_loss.idxmin()]
      row |= {'best': best.activation, 'loss': best.val_loss, 'median': functions.val_loss.median()}
    if len(copies):
      row |= {'copies': (copies.val_loss.min(), copies.val_loss.max())}
      row['below'] = int((functions.val_loss < copies.val_loss.min()).sum())
    listed.append(row)
  v = config.children.child
  return Table(
      f'Successive halving of {config.children.space} on {dataset}, ViT {v.depth} x {v.dim}', (
          Column('rung', 'rung', format=integer()), Column('steps', 'steps', format=integer()),
          Column('functions', 'functions', format=integer()),
          Column('diverged', 'diverged', format=integer()),
          Column('best', 'lowest validation loss', right=False),
          Column('loss', 'that loss', 'nats', fixed(4)),
          Column('median', 'median', 'nats', fixed(4)),
          Column('copies', 'copies of ReLU', format=interval(4)),
          Column('below', 'below all copies', format=integer())), listed,
      [f'Every rung starts anew, at one learning rate; {config.children.keep:.0%} go on. All '
       'functions share initial values and batches; the copies of ReLU '
       f'({config.children.copies}) have seeds of their own: their range is what luck makes.'])


def proxies_table(rows: pd.DataFrame, steps: int) -> Table:
  """Every proxy's Kendall tau with the first rung's test loss, the best first."""
  listed = [{'proxy': row.proxy, 'expected': 'higher' if row.expected > 0 else 'lower',
             'tau': row.tau, 'interval': (row.tau_low, row.tau_high),
             'functions': int(row.functions), 'seconds': row.wall_s}
            for row in rows[rows.phase == 'proxy'].sort_values('tau', ascending=False).itertuples()]
  return Table(f'Proxies of the children\'s test loss after {steps} steps', (
      Column('proxy', 'proxy', right=False), Column('expected', 'better if', right=False),
      Column('tau', "Kendall's tau", format=fixed(3, signed=True)),
      Column('interval', '95 %', format=interval(3, signed=True)),
      Column('functions', 'n', format=integer()),
      Column('seconds', 'time for all', 's', fixed(2))), listed,
      ['Above 0: the proxy predicts in the direction that was fixed before. Intervals: over '
       'resampled functions. One seed: no ceiling is known.'])


def choices_of(rows: pd.DataFrame, name: str) -> dict[str, selection.Choice]:
  own = rows[(rows.phase == 'selection') & (rows.model == name)]
  return {a: choice for (a,), choice in selection.choose(own, ('activation',)).items()}


def best_found(config: Any, rows: pd.DataFrame) -> str | None:
  """The finalist with the lowest sum of its mean validation losses in both networks.

  By validation, since the networks are then compared on test images. None where every finalist
  diverged somewhere.
  """
  fresh = rows[(rows.phase == 'fresh') & ~rows.activation.isin(config.children.known)]
  loss = fresh.val_loss.where(fresh.diverged_step < 0, math.inf)
  total = loss.groupby([fresh.activation, fresh.model], sort=False).mean().unstack().sum(
      axis=1, skipna=False)
  return str(total.idxmin()) if np.isfinite(total.min()) else None


def outcomes(config: Any, rows: pd.DataFrame, shares) -> dict[str, Outcome]:
  """One outcome per claim; `shares` are those of the classes.

  The decision was fixed before: a winner must pass in both networks, with Holm's correction over
  all functions of a network.
  """
  best, entropy = best_found(config, rows), -sum(p * math.log(p) for p in shares if p)
  ids = [f'found_better_in_{label}' for label in NETWORKS.values()]
  if best is None:
    return dict.fromkeys((*ids, 'found_better_in_both'),
                         Outcome(NOT_TESTABLE, None, None, 0, 'every finalist diverged'))
  found: dict[str, Outcome] = {}
  for key_, name in zip(ids, NETWORKS, strict=True):
    fresh = rows[(rows.phase == 'fresh') & (rows.model == name)]
    arms = list(dict.fromkeys(fresh.activation))
    compared = selection.compare(fresh, arms, REFERENCE, 'test_loss')
    line, copies = selection.null_line(
        rows[(rows.phase == 'null_fresh') & (rows.model == name)],
        fresh[fresh.activation == REFERENCE], 'test_loss')
    paired, p = compared[best].paired, compared[best].p_adjusted
    share = selection.share_at_edge(choices_of(rows, name))
    reached = compared[REFERENCE].mean.mean
    problem = ''
    if paired.n < MIN_SEEDS or not copies:
      problem = (f'{paired.n} seeds without divergence and {copies} copies of ReLU, at least '
                 f'{MIN_SEEDS} and 1 are needed')
    elif share > MAX_EDGE_SHARE:
      problem = f'{share:.0%} of the functions choose the edge of the learning rates'
    elif not reached <= entropy - LEARNED:
      problem = f"ReLU's test log-loss {reached:.3f} is not {LEARNED} nats below {entropy:.3f}"
    passed = -paired.mean > line and p < 0.05
    words = statistics.difference_verdict(paired, p, comparisons=len(arms) - 1)
    verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
    found[key_] = Outcome(
        verdict, paired.mean, (paired.low, paired.high), paired.n,
        problem or f'{best}: {words}; Holm p {p:.3g}, copies of ReLU differ by up to {line:.4f}')
  verdicts = [found[key_].verdict for key_ in ids]
  verdict = next((v for v in (NOT_TESTABLE, NOT_REPRODUCED) if v in verdicts), REPRODUCED)
  worse = max((found[key_] for key_ in ids), key=lambda outcome: outcome.ours)
  found['found_better_in_both'] = Outcome(
      verdict, worse.ours, worse.interval, worse.n,
      '; '.join(f'{label}: {v}' for label, v in zip(NETWORKS.values(), verdicts, strict=True)))
  return found


def report(run: Run) -> Report:
  """The tables, the claims' outcomes, the figures."""
  from experiments.figures import activation_search, children as figures
  config, rows = run.config, run.rows[run.rows.part == PART]
  c = config.children
  layers = 2 * len(c.cnn_widths) * c.cnn_blocks + 2
  words = {'cnn': f'ResNet-{layers}', 'vit': f'ViT {c.vit.depth} x {c.vit.dim}'}
  tables = [halving_table(config, rows, run.dataset), proxies_table(rows, c.rungs[0])]
  for name in NETWORKS:
    fresh = rows[(rows.phase == 'fresh') & (rows.model == name)]
    line, copies = selection.null_line(
        rows[(rows.phase == 'null_fresh') & (rows.model == name)],
        fresh[fresh.activation == REFERENCE], 'test_loss')
    tables.append(comparison_table(
        f'Finalists on {run.dataset}, {words[name]}, {c.steps} steps', 'activation', REFERENCE,
        fresh, choices_of(rows, name),
        [f'{copies} copies of ReLU, with seeds of their own, differ from it by up to {line:.4f} '
         'nats. A star: chosen at the edge of the learning rates.',
         f'Without augmentation. The seeds share {config.splits} splits: the intervals hold for '
         'these test images.']))
  compared = rows[rows.model.isin(NETWORKS)]
  shown = compared.assign(model=compared.model.map(words) + f' on {run.dataset}')
  return Report(tables, outcomes(config, rows, run.class_shares), {
      'halving': lambda: figures.halving(rows[rows.phase == 'rung']),
      'children_accuracy': lambda: activation_search.accuracy_with_intervals(shown),
      'children_learning_rates': lambda: activation_search.learning_rate_sensitivity(shown)})
