"""What the search part of the activation search reports: tables, verdicts, figures, the npz."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import pandas as pd

from experiments.parts.search_cohorts import (
    BESIDE, MOST_WIDENINGS, PART, REFERENCE, best_of, check, cohorts, key, network)
from launch.study import Report, Run
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from launch.study.comparison import comparison_table, ranking
from launch.study.tables import Column, Table, fixed, integer, interval, p_value
from model_lib.analysis import selection

__all__ = ['check', 'cohorts', 'report', 'testable']

MIN_SEEDS, MIN_SEARCHES, MIN_TRANSFER = 16, 30, 8
LEARNED = 0.3  # nats that the reference's loss must lie below the labels' entropy
MAX_EDGE_SHARE = 0.10
ON_SEARCHES = (f'not testable below {MIN_SEARCHES} searches, or where the algorithm is better than its '
               'baseline on the permuted losses, by the same rule')
ON_FUNCTIONS = (f'not testable below {MIN_SEEDS} fresh seeds ({MIN_TRANSFER} in the other networks), '
                f"when ReLU's test log-loss is not {LEARNED} nats below the labels' entropy, or when "
                f'over {MAX_EDGE_SHARE:.0%} of the functions choose the edge of the learning rates, '
                f'{MOST_WIDENINGS} steps beyond the first ones')


def testable(claim: str) -> str:
  """When a claim of this part is not testable."""
  return ON_SEARCHES if claim.endswith('_beats_random') else ON_FUNCTIONS


def searches_table(rows: pd.DataFrame, dataset: str) -> Table:
  """Regret after each budget, the largest first, trained and permuted, random search first."""
  from experiments.measurements import activation_search as measured
  found = []
  for (table, algorithm), group in rows[rows.phase == 'regret'].groupby(
      ['table', 'algorithm'], sort=False):
    for _, row in group.iterrows():
      found.append({
          'table': table, 'algorithm': algorithm, 'evaluations': int(row.evaluations),
          'regret': row.regret, 'interval': (row.regret_low, row.regret_high),
          'baseline': row.baseline if isinstance(row.baseline, str) else '',
          'difference': _number(row.difference),
          'difference_interval': _pair(row.difference_low, row.difference_high),
          'p': _number(row.p), 'searches': int(row.searches), 'bound': row.bound})
  found.sort(key=lambda row: (row['table'] != 'trained', -row['evaluations']))
  return Table(
      f'Searches on the table of {dataset}', (
          Column('table', 'losses', right=False), Column('algorithm', 'algorithm', right=False),
          Column('evaluations', 'trainings', format=integer()),
          Column('regret', 'regret', 'nats', fixed(4)),
          Column('interval', '95 %', format=interval(4)),
          Column('baseline', 'baseline', right=False),
          Column('difference', 'difference to it', 'nats', fixed(4, signed=True)),
          Column('difference_interval', '95 %', format=interval(4, signed=True)),
          Column('p', 'p', format=p_value()), Column('searches', 'n', format=integer()),
          Column('bound', 'exhaustive', 'nats', fixed(4))),
      found,
      ['Regret: mean test loss, over the seeds that the search does not see, of the function with '
       'the lowest validation loss on the seed that it sees, minus the lowest such mean of all. Test '
       'losses count up to that of guessing.',
       'Intervals: over search seeds, for this table. Baselines: random draws texts, so that '
       'functions with many texts come first; uniform draws functions, as the surrogates do. '
       'Difference: paired with the baseline of the same seed; p: Holm-corrected over the algorithms. '
       'Exhaustive: what is left to one who sees the seen seed of every function. Permuted: the '
       'losses dealt out to other functions, those after fewer steps anew, in several ways.',
       'Every seed has a split of its own, and on digits the test images of one are partly training '
       'and validation images of another: luck with images is not wholly taken out.',
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
      ['The copies of ReLU are those with the lowest loss of all that were run beside the table. The '
       'fresh runs have a learning rate of their own as well, so that two effects meet: for the '
       'copies it is the loss of luck alone.'])


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
    arm = next((arm for arm in compared if best is not None and key(arm) == key(best)), None)
    if arm is not None:
      paired = compared[arm].paired
      row |= {'val_loss': float(group.val_loss[group.activation == best].iloc[0]),
              'fresh': paired.mean, 'interval': (paired.low, paired.high)}
    found.append(row)
  return Table('Live searches, of at most equal numbers of training steps', (
      Column('strategy', 'search', right=False), Column('trainings', 'trainings', format=integer()),
      Column('diverged', 'diverged', format=integer()),
      Column('best', 'lowest validation loss', right=False),
      Column('val_loss', 'that loss', 'nats', fixed(4)),
      Column('fresh', f'fresh seeds: difference to {REFERENCE}', 'nats', fixed(4, signed=True)),
      Column('interval', '95 %', format=interval(4, signed=True))), found,
      ['evolution: regularized, with all of PANGAEA\'s mutations and learnable parameters. random: '
       'of the same space. eafo: steps along the entropy\'s gradient, in both signs, from known '
       'functions. relaxation: what trained mixtures of all operators of the table\'s space harden '
       'to, whatever operators are kept; the mixtures are counted in. One search of each: no claim rests on their difference.'])


def transfer_table(config: Any, rows: pd.DataFrame, name: str, where: str) -> Table:
  """The same functions in another network."""
  rows = rows[rows.model == name]
  choices = {text: choice for (text, copy), choice in selection.choose(
      rows[rows.phase == 'transfer_selection'], ('activation', 'copy')).items() if copy == 0}
  return comparison_table(
      f'The same functions in a {where}, {network(config, name).steps} steps', 'activation',
      REFERENCE, rows[(rows.phase == 'transfer') & (rows['copy'] == 0)], choices,
      ['Too few seeds for a rank; the claim is about one function, that with the lowest validation '
       'loss in the MLP.'], named=False)


def transfer_outcome(rows: pd.DataFrame, name: str, text: str, entropy: float) -> Outcome:
  """Whether a function that was chosen in the MLP is better than ReLU in another network.

  `entropy`: what a network reaches that knows the shares of the classes alone.
  """
  every = rows[(rows.phase == 'transfer') & (rows.model == name)]
  own = every[every['copy'] == 0]
  if text not in set(own.activation):
    return Outcome(NOT_TESTABLE, None, None, 0, 'nothing was transferred')
  compared = selection.compare(own, [REFERENCE, text], REFERENCE, 'test_loss')
  paired = compared[text].paired
  line, copies = selection.null_line(every[every['copy'] > 0], own[own.activation == REFERENCE],
                                     'test_loss')
  problem = _problem(rows, 'transfer_selection', name, compared[REFERENCE].mean.mean, entropy)
  if not copies or paired.n < MIN_TRANSFER:
    problem = f'{paired.n} seeds and {copies} copies of ReLU; {MIN_TRANSFER} and 1 are needed'
  passed = paired.high < 0 and -paired.mean > line
  verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  return Outcome(verdict, paired.mean, (paired.low, paired.high), paired.n,
                 problem or f'{text}; a copy of ReLU with other seeds differs by {line:.4f}')


def outcomes(rows: pd.DataFrame, shares: Sequence[float]) -> dict[str, Outcome]:
  """One outcome per claim; `shares` are those of the classes."""
  from experiments.measurements import activation_search as measured
  found = {}
  regrets = rows[rows.phase == 'regret']
  budget = regrets.evaluations.max()
  last = regrets[regrets.evaluations == budget].set_index(['table', 'algorithm'])
  for algorithm, baseline in measured.BASELINES.items():
    if not baseline:
      continue
    row, control = last.loc['trained', algorithm], last.loc['permuted', algorithm]
    passed = row.difference_high < 0 and row.p < 0.05
    problem = ''
    if row.pairs < MIN_SEARCHES:
      problem = f'{int(row.pairs)} pairs of searches, at least {MIN_SEARCHES} are needed'
    elif control.difference_high < 0 and control.p < 0.05:
      problem = (f'on permuted losses it is better than {baseline} by '
                 f'{-control.difference:.4f}, p {control.p:.3g}')
    verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
    found[f'{algorithm}_beats_random'] = Outcome(
        verdict, row.difference, (row.difference_low, row.difference_high), int(row.pairs),
        problem or f'regret {row.regret:.4f} after {int(budget)} trainings, exhaustive '
        f'{row.bound:.4f}, Holm p {row.p:.3g} against {baseline}; permuted '
        f'{control.difference:+.4f}')

  return found | finalist_outcomes(rows, -sum(p * math.log(p) for p in shares if p))


def finalist_outcomes(rows: pd.DataFrame, entropy: float) -> dict[str, Outcome]:
  """The claims on what was found; `entropy` is that of the labels of the images."""
  fresh = rows[rows.phase == 'fresh']
  own = fresh[fresh['copy'] == 0]
  compared = selection.compare(own, list(dict.fromkeys(own.activation)), REFERENCE, 'test_loss')
  line, copies = selection.null_line(fresh[fresh['copy'] > 0], own[own.activation == REFERENCE],
                                     'test_loss')
  whole = [arm for arm in ranking(compared)
           if not compared[arm].diverged and arm not in (REFERENCE, *BESIDE)]
  ids = ('finalist_passes_null', 'finalist_transfers', 'finalist_transfers_to_text')
  if not whole:
    return dict.fromkeys(ids, Outcome(NOT_TESTABLE, None, None, 0, 'every finalist diverged'))
  best = whole[0]
  paired, p = compared[best].paired, compared[best].p_adjusted
  problem = _problem(rows, 'selection', 'mlp', compared[REFERENCE].mean.mean, entropy)
  if not copies:
    problem = 'no copies of ReLU were run'
  elif paired.n < MIN_SEEDS:
    problem = f'{paired.n} fresh seeds, at least {MIN_SEEDS} are needed'
  passed = -paired.mean > line and p < 0.05
  verdict = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  found = {ids[0]: Outcome(
      verdict, paired.mean, (paired.low, paired.high), paired.n,
      problem or f'best: {best}; line {line:.4f} from {copies} copies of ReLU; Holm p {p:.3g}')}
  # By validation: the networks below are tested on the same images.
  candidates = own[own.activation.isin(whole)]
  goes_on = str(candidates.groupby('activation').val_loss.mean().idxmin())
  unigram = rows[rows.phase == 'unigram'].get('entropy', pd.Series(dtype=float))
  found[ids[1]] = transfer_outcome(rows, 'vit', goes_on, entropy)
  found[ids[2]] = transfer_outcome(
      rows, 'gpt', goes_on, float(unigram.iloc[0]) if len(unigram) else math.nan)
  return found


def _problem(rows: pd.DataFrame, phase: str, name: str, loss: float, entropy: float) -> str:
  """Why nothing can be said about functions in a network, or ''."""
  own = rows[(rows.phase == phase) & (rows.model == name) & (rows['copy'] == 0)]
  choices = selection.choose(own, ('activation',))
  share = selection.share_at_edge(choices)
  if share > MAX_EDGE_SHARE:
    return f'{share:.0%} of the functions choose the edge of the learning rates'
  if not loss <= entropy - LEARNED:
    return f"ReLU's test log-loss {loss:.3f} is not {LEARNED} nats below {entropy:.3f}"
  return ''


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
