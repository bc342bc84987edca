"""What the search part of the activation search reports: tables, verdicts, figures, the npz."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import pandas as pd

from experiments.parts.search_cohorts import (
    PART, REFERENCE, best_of, check, cohorts, network)
from launch.study import Report, Run
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from launch.study.comparison import comparison_table, ranking
from launch.study.tables import Column, Table, fixed, integer, interval, p_value
from model_lib.analysis import selection

__all__ = ['TESTABLE', 'check', 'cohorts', 'report']

MIN_SEEDS, MIN_SEARCHES, MIN_TRANSFER = 16, 30, 8
LEARNED = 0.3  # nats that the reference's loss must lie below the labels' entropy
MAX_EDGE_SHARE = 0.10
TESTABLE = (f'not testable below {MIN_SEARCHES} searches, {MIN_SEEDS} fresh seeds or '
            f'{MIN_TRANSFER} seeds elsewhere, when ReLU has not learned there, or when over '
            f'{MAX_EDGE_SHARE:.0%} of the finalists choose the edge of the learning rates; a claim '
            'on searches is not testable either where the algorithm is better than random search '
            'on the table with permuted losses, by the same rule')


def searches_table(rows: pd.DataFrame, dataset: str) -> Table:
  """Regret after each budget, trained and permuted, random search first."""
  from experiments.measurements import activation_search as measured
  found = []
  for (table, algorithm), group in rows[rows.phase == 'regret'].groupby(
      ['table', 'algorithm'], sort=False):
    for _, row in group.iterrows():
      found.append({
          'table': table, 'algorithm': algorithm, 'evaluations': int(row.evaluations),
          'regret': row.regret, 'interval': (row.regret_low, row.regret_high),
          'difference': _number(row.difference),
          'difference_interval': _pair(row.difference_low, row.difference_high),
          'p': _number(row.p), 'searches': int(row.searches), 'bound': row.bound})
  return Table(
      f'Searches on the table of {dataset}', (
          Column('table', 'losses', right=False), Column('algorithm', 'algorithm', right=False),
          Column('evaluations', 'trainings', format=integer()),
          Column('regret', 'regret', 'nats', fixed(4)),
          Column('interval', '95 %', format=interval(4)),
          Column('difference', f'difference to {measured.RANDOM}', 'nats', fixed(4, signed=True)),
          Column('difference_interval', '95 %', format=interval(4, signed=True)),
          Column('p', 'p', format=p_value()), Column('searches', 'n', format=integer()),
          Column('bound', 'exhaustive', 'nats', fixed(4))),
      found,
      ['Regret: mean test loss, over the seeds that the search does not see, of the function with '
       'the lowest validation loss on the seed that it sees, minus the lowest such mean of all.',
       'Intervals: over search seeds, for this table. Difference: paired with random search of the '
       'same seed; p: Holm-corrected over the algorithms. Exhaustive: what is left to one who sees '
       'the seen seed of every function. Permuted: the losses dealt out to other functions, those '
       'after fewer steps anew.',
       'Successive halving spends the same number of steps, on shorter runs as well.'])


def proxies_table(rows: pd.DataFrame, dataset: str) -> Table:
  """Every proxy's Kendall tau and cost, the best first, and the ceiling."""
  from experiments.measurements import activation_search as measured
  ceiling = rows[rows.phase == 'ceiling'].set_index('proxy')
  found = [{'proxy': row.proxy, 'expected': 'higher' if row.expected > 0 else 'lower',
            'tau': row.tau, 'interval': (row.tau_low, row.tau_high), 'top': row.tau_top,
            'functions': int(row.functions), 'seconds': _number(row.wall_s)}
           for _, row in rows[rows.phase == 'proxy'].sort_values('tau', ascending=False).iterrows()]
  return Table(
      f'Proxies of the mean test loss on {dataset}', (
          Column('proxy', 'proxy', right=False), Column('expected', 'better if', right=False),
          Column('tau', "Kendall's tau", format=fixed(3, signed=True)),
          Column('interval', '95 %', format=interval(3, signed=True)),
          Column('top', f'tau in the best {measured.TOP:.0%}', format=fixed(3, signed=True)),
          Column('functions', 'n', format=integer()),
          Column('seconds', 'time for all', 's', fixed(2))),
      found,
      [f'Split-half tau of the table itself: {ceiling.tau["all"]:.3f} over all functions, '
       f'{ceiling.tau["top"]:.3f} in the best {measured.TOP:.0%}: the ceiling of a proxy as noisy '
       'as half of the seeds.',
       'A tau above 0: the proxy predicts in the direction that was fixed before. Intervals: over '
       'resampled functions. loss_at_N: validation loss of one seed after N steps, against the test '
       'losses of the others; its time is that of the training. entropy: plug-in, of f / sd f; '
       'entropy_naive: H(U) + E log |f\'|.'])


def curse_table(rows: pd.DataFrame, arms: list[str]) -> Table:
  """What the finalists and the luckiest copies of ReLU gain on the table and with fresh seeds."""
  table = rows[(rows.phase == 'table') | (rows.phase == 'copies')]
  fresh = rows[rows.phase == 'fresh']
  relu = {'table': table[(table.activation == REFERENCE) & (table['copy'] == 0)].val_loss.mean(),
          'fresh': fresh[(fresh.activation == REFERENCE) & (fresh['copy'] == 0)].val_loss.mean()}
  found = []
  copies = [(REFERENCE, int(copy)) for copy in sorted(set(fresh['copy'])) if copy]
  for text, copy in [*((arm, 0) for arm in arms if arm != REFERENCE), *copies]:
    losses = {name: part[(part.activation == text) & (part['copy'] == copy)].val_loss.mean()
              for name, part in (('table', table), ('fresh', fresh))}
    if not math.isnan(losses['table']):
      found.append({'activation': text + (f', copy {copy}' if copy else ''),
                    'table': losses['table'] - relu['table'],
                    'fresh': losses['fresh'] - relu['fresh']})
  return Table("The winner's curse: validation loss minus ReLU's", (
      Column('activation', 'activation', right=False),
      Column('table', 'on the table, by which it was chosen', 'nats', fixed(4, signed=True)),
      Column('fresh', 'fresh seeds, own rate', 'nats', fixed(4, signed=True))), found,
      ['The copies of ReLU are those with the lowest loss of all that were run beside the table.'])


def live_table(rows: pd.DataFrame) -> Table:
  """What every live search found for the same number of training steps."""
  fresh = rows[(rows.phase == 'fresh') & (rows['copy'] == 0)]
  compared = selection.compare(fresh, list(dict.fromkeys(fresh.activation)), REFERENCE, 'test_loss')
  found = []
  for strategy, group in rows[rows.phase == 'live'].groupby('strategy', sort=False):
    best = best_of(group)
    mixtures = (rows.phase == 'relaxation').sum() if strategy == 'relaxation' else 0
    row = {'strategy': strategy, 'trainings': len(group) + int(mixtures), 'best': best,
           'diverged': int((group.diverged_step >= 0).sum())}
    if best is not None:
      paired = compared[best].paired
      row |= {'val_loss': float(group.val_loss[group.activation == best].iloc[0]),
              'fresh': paired.mean, 'interval': (paired.low, paired.high)}
    found.append(row)
  return Table('Live searches, of equal numbers of training steps', (
      Column('strategy', 'search', right=False), Column('trainings', 'trainings', format=integer()),
      Column('diverged', 'diverged', format=integer()),
      Column('best', 'lowest validation loss', right=False),
      Column('val_loss', 'that loss', 'nats', fixed(4)),
      Column('fresh', f'fresh seeds: difference to {REFERENCE}', 'nats', fixed(4, signed=True)),
      Column('interval', '95 %', format=interval(4, signed=True))), found,
      ['evolution: regularized, with all of PANGAEA\'s mutations and learnable parameters. random: '
       'of the same space. eafo: steps along the entropy\'s gradient, in both signs, from known '
       'functions. relaxation: what trained mixtures of all operators of the table\'s space harden '
       'to; the mixtures are counted in. One search of each: no claim rests on their difference.'])


def transfer_table(config: Any, rows: pd.DataFrame, name: str, where: str) -> Table:
  """The same functions in another network."""
  rows = rows[rows.model == name]
  choices = {text: choice for (text,), choice in selection.choose(
      rows[rows.phase == 'transfer_selection'], ('activation',)).items()}
  return comparison_table(
      f'The same functions in a {where}, {network(config, name).steps} steps', 'activation',
      REFERENCE, rows[rows.phase == 'transfer'], choices,
      ['Too few seeds for a rank; the claim is about one function that was chosen before.'],
      named=False)


def transfer_outcome(rows: pd.DataFrame, name: str, best: str, entropy: float) -> Outcome:
  """Whether the function that is best in the MLP is better than ReLU in another network.

  `entropy`: what a network reaches that knows the shares of the classes alone.
  """
  own = rows[(rows.phase == 'transfer') & (rows.model == name)]
  if best not in set(own.activation):
    return Outcome(NOT_TESTABLE, None, None, 0, 'nothing was transferred')
  paired = selection.compare(own, [REFERENCE, best], REFERENCE, 'test_loss')[best].paired
  loss = own[(own.activation == REFERENCE) & (own.diverged_step < 0)].test_loss.mean()
  problem = ''
  if paired.n < MIN_TRANSFER:
    problem = f'{paired.n} seeds, at least {MIN_TRANSFER} are needed'
  elif not loss <= entropy - LEARNED:
    problem = f"ReLU's test log-loss {loss:.3f} is not {LEARNED} nats below {entropy:.3f}"
  verdict = NOT_TESTABLE if problem else REPRODUCED if paired.high < 0 else NOT_REPRODUCED
  return Outcome(verdict, paired.mean, (paired.low, paired.high), paired.n, problem or best)


def outcomes(rows: pd.DataFrame, shares: Sequence[float]) -> dict[str, Outcome]:
  """One outcome per claim; `shares` are those of the classes."""
  from experiments.measurements import activation_search as measured
  found = {}
  regrets = rows[rows.phase == 'regret']
  budget = regrets.evaluations.max()
  last = regrets[regrets.evaluations == budget].set_index(['table', 'algorithm'])
  for algorithm in measured.ALGORITHMS:
    if algorithm == measured.RANDOM:
      continue
    row, control = last.loc['trained', algorithm], last.loc['permuted', algorithm]
    passed = row.difference_high < 0 and row.p < 0.05
    problem = ''
    if row.pairs < MIN_SEARCHES:
      problem = f'{int(row.pairs)} pairs of searches, at least {MIN_SEARCHES} are needed'
    elif control.difference_high < 0 and control.p < 0.05:
      problem = (f'on permuted losses it is better than random search by '
                 f'{-control.difference:.4f}, p {control.p:.3g}')
    verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
    found[f'{algorithm}_beats_random'] = Outcome(
        verdict, row.difference, (row.difference_low, row.difference_high), int(row.pairs),
        problem or f'regret {row.regret:.4f} after {int(budget)} trainings, exhaustive '
        f'{row.bound:.4f}, Holm p {row.p:.3g}; permuted {control.difference:+.4f}')

  fresh = rows[rows.phase == 'fresh']
  own = fresh[fresh['copy'] == 0]
  compared = selection.compare(own, list(dict.fromkeys(own.activation)), REFERENCE, 'test_loss')
  line, copies = selection.null_line(fresh[fresh['copy'] > 0], own[own.activation == REFERENCE],
                                     'test_loss')
  whole = [arm for arm in ranking(compared) if not compared[arm].diverged and arm != REFERENCE]
  choices = selection.choose(rows[rows.phase == 'selection'], ('activation', 'copy'))
  share = selection.share_at_edge(choices)
  if not whole:
    lost = Outcome(NOT_TESTABLE, None, None, 0, 'every finalist diverged')
    return found | dict.fromkeys(
        ('finalist_passes_null', 'finalist_transfers', 'finalist_transfers_to_text'), lost)
  best = whole[0]
  paired, p = compared[best].paired, compared[best].p_adjusted
  problem = ''
  if not copies:
    problem = 'no copies of ReLU were run'
  elif paired.n < MIN_SEEDS:
    problem = f'{paired.n} fresh seeds, at least {MIN_SEEDS} are needed'
  elif share > MAX_EDGE_SHARE:
    problem = f'{share:.0%} of the finalists choose the edge of the learning rates'
  passed = -paired.mean > line and p < 0.05
  verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  found['finalist_passes_null'] = Outcome(
      verdict, paired.mean, (paired.low, paired.high), paired.n,
      problem or f'best: {best}; line {line:.4f} from {copies} copies of ReLU; Holm p {p:.3g}')
  unigram = rows[rows.phase == 'unigram'].get('entropy', pd.Series(dtype=float))
  found['finalist_transfers'] = transfer_outcome(
      rows, 'vit', best, -sum(p * math.log(p) for p in shares if p))
  found['finalist_transfers_to_text'] = transfer_outcome(
      rows, 'gpt', best, float(unigram.iloc[0]) if len(unigram) else math.nan)
  return found


def report(run: Run) -> Report:
  """The tables, the claims' outcomes, the figures, and the table of all functions as a file."""
  from experiments.measurements import activation_search as measured
  from experiments.figures import activation_search as figures
  config, rows = run.config, run.rows[run.rows.part == PART]
  fresh = rows[(rows.phase == 'fresh') & (rows['copy'] == 0)]
  arms = list(dict.fromkeys(fresh.activation))
  choices = {text: choice for (text, copy), choice in selection.choose(
      rows[rows.phase == 'selection'], ('activation', 'copy')).items() if copy == 0}
  line, copies = selection.null_line(
      rows[(rows.phase == 'fresh') & (rows['copy'] > 0)], fresh[fresh.activation == REFERENCE],
      'test_loss')
  s = config.search
  counts = rows[rows.phase == 'counts'].iloc[0]
  size = f'MLP {"-".join(map(str, config.mlp_widths))}'
  final = comparison_table(
      f'Finalists of {s.space} on {run.dataset}, {size}, {s.steps} steps', 'activation', REFERENCE,
      fresh, choices,
      [f'{counts.summary}.',
       f'Of the {int(counts.raw)} expressions {int(counts.functions)} are different functions '
       f'(float64, rounded to 6 digits); by the bytes of float32 outputs it would be '
       f'{int(counts.byte_strings)}, as rounding splits some functions in two.',
       f'Null row: {copies} copies of ReLU, the luckiest of {s.copies}; their largest difference is '
       f'{line:.4f} nats. A gain must pass this line.',
       f'The seeds share {config.splits} splits: the intervals hold for these test images.'])
  searched = rows[rows.phase == 'regret']
  meta = {'dataset': run.dataset, 'space': s.space, 'learning_rate': s.rate,
          'batch_size': s.batch_size, 'widths': list(config.mlp_widths)}
  tables = [searches_table(rows, run.dataset), proxies_table(rows, run.dataset), final,
            curse_table(rows, arms), live_table(rows)]
  if s.transfer_seeds:
    where = f'ViT {config.vit_depth} x {config.vit_dim} on {run.dataset}'
    tables += [transfer_table(config, rows, 'vit', where),
               transfer_table(config, rows, 'gpt', f'byte GPT 2 x 32 on {s.text}')]
  return Report(
      tables, outcomes(rows, run.class_shares),
      {'regret': lambda: figures.regret_curves(searched),
       'proxies': lambda: figures.proxy_taus(rows),
       'finalists': lambda: figures.expressions(arms)},
      files={'table.npz': lambda path: measured.table_of(rows, meta).write(path)})


def _number(value: float) -> float | None:
  return None if value is None or math.isnan(value) else float(value)


def _pair(low: float, high: float) -> tuple[float, float] | None:
  return None if math.isnan(low) else (float(low), float(high))
