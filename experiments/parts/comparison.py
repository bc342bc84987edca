"""The comparison of activations: every one against ReLU, each at its own learning rate.

`experiments.activation_search` describes the method; here are the cohorts, tables and verdicts.
`config` is that study's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from launch.study import Report, Run, field
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from launch.study.comparison import comparison_table, ranking
from launch.study.tables import Table
from model_lib.analysis import selection, statistics
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec

PART = 'comparison'
REFERENCE = 'relu'
COMMON = (  # what any comparison should hold: the quickstart's list
    'identity', 'relu', 'leaky_relu', 'very_leaky', 'relu6', 'relu_squared', 'shifted_relu', 'abs',
    'elu', 'selu', 'celu', 'isrlu', 'softplus', 'squareplus', 'sparse_plus', 'silu', 'e_swish',
    'hard_silu', 'gelu', 'gelu_tanh', 'quick_gelu', 'mish', 'tanhexp', 'serf', 'golu', 'smish',
    'logish', 'lisht', 'tanh', 'hard_tanh', 'lecun_tanh', 'sigmoid', 'hard_sigmoid', 'soft_sign',
    'arctan', 'erf', 'sin', 'gcu', 'prelu', 'swish_beta', 'crrelu', 'ash(axes=last)', 'geglu',
    'swiglu')
FURTHER = (
    'asinh', 'asu', 'bent_identity', 'calu', 'cloglog', 'colu', 'double_silu', 'dsilu', 'eanaf',
    'elish', 'elliott', 'gaussian', 'gish', 'hard_shrink', 'isru', 'lalu', 'laplace_mega',
    'log_sigmoid', 'loglog', 'loglogish', 'nlrelu', 'penalized_tanh', 'pflu', 'phish', 'serlu',
    'sgelu', 'shifted_softplus', 'sinc', 'sinsig', 'soft_shrink', 'sparse_sigmoid', 'sqnl',
    'star_relu', 'suish', 'symlog', 'tanh_shrink', 'tsrelu', 'prelu(per=channel)', 'snake',
    'xielu', 'glu', 'bilinear', 'reglu')
IN_VIT = ('identity', 'relu', 'leaky_relu', 'gelu', 'silu', 'mish', 'elu', 'tanh', 'golu',
          'relu_squared')
TESTED = {'gelu': 'gelu', 'silu': 'silu', 'crrelu': 'crrelu', 'ash': 'ash(axes=last)'}
MOST_SEEDS, MOST_COPIES = 10007, 1008  # that `seed_of` keeps apart
TINY = (  # of the networks of Sun et al. 2024
    'This is ViT-Tiny, mean-pooled. DeiT-Tiny is that network with a distilling teacher; it is '
    'trained without distillation here, and is this very run.', 'TNT-Small: not implemented.')
MIN_SEEDS = 16
MAX_EDGE_SHARE = 0.10
LEARNED = 0.3  # nats that the reference's test loss must lie below the labels' entropy
TESTABLE = (f'not testable below {MIN_SEEDS} fresh seeds, when over {MAX_EDGE_SHARE:.0%} of the '
            "activations choose the edge of the learning rates, or when ReLU's test log-loss is "
            f"not {LEARNED} nats below the labels' entropy; pairs in which a run diverged do not "
            'count, and an activation that diverged at a fresh seed is not called better')


def testable(claim: str) -> str:
  """When a claim of this part is not testable: the same for all."""
  del claim
  return TESTABLE


@dataclasses.dataclass(frozen=True)
class Arms:
  """The comparison in one model."""

  activations: tuple[str, ...] = field(
      COMMON + FURTHER, 'Spec strings of the registry; ReLU must be among them.')
  base_rate: float = field(3e-3, "Adam's learning rate at factor 1.", low=1e-8)
  selection_seeds: int = field(3, 'Seeds per activation and rate for the choice.', low=1,
                               high=MOST_SEEDS)
  fresh_seeds: int = field(32, 'Fresh seeds per activation for the comparison.', low=1,
                           high=MOST_SEEDS)
  null_copies: int = field(-1, 'Copies of ReLU in the null row; -1 for as many as activations, '
                           '0 for none.', low=-1, high=MOST_COPIES)
  shuffled_seeds: int = field(16, 'Runs on shuffled labels; 0 for none.', low=0)
  steps: int = field(300, 'Optimizer steps per run.', low=1)
  batch_size: int = field(128, 'Examples per step.', low=1)


# The cohorts.

def model(config: Any, part: str, activation: str) -> ModelSpec:
  """The network of a part with one activation, or a switch over several."""
  common = {'activation': activation, 'init_gain': config.init_gain}
  if part == 'mlp':
    return ModelSpec('mlp', {'widths': list(config.mlp_widths), **common})
  return ModelSpec('vit', {'patch': config.vit_patch, 'dim': config.vit_dim,
                           'heads': config.vit_heads, 'depth': config.vit_depth, **common})


def seed_of(config: Any, phase: int, copy: int, number: int) -> int:
  """Seeds of different phases and copies never meet; an activation does not change them."""
  return ((config.seed * 8 + phase) * (MOST_COPIES + 1) + copy) * MOST_SEEDS + number


def programs(activations: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
  """(name, spec, activations) of each compiled program.

  Fixed pointwise activations share one program that switches between them; one
  with parameters, statistics or a gate has its own.
  """
  from model_lib.activations import get_activation
  shared = tuple(a for a in activations
                 if get_activation(a).kind == 'pointwise' and not get_activation(a).parameters)
  own = [a for a in activations if a not in shared]
  return [('fixed', f'switch({", ".join(shared)})', shared),
          *((re.sub(r'[^a-z0-9-]+', '_', a).strip('_'), a, (a,)) for a in own)]


def member(config: Any, part: str, program, phase: str, activation: str, factor: float,
           number: int, copy: int = 0, labels: int = 0) -> Member:
  """One run."""
  from model_lib.models.activation_layer import consumer_gains
  factor = float(f'{factor:.6g}')  # the number that results.csv shows is the one that is used
  rate = getattr(config, part).base_rate * factor
  hp = {'learning_rate': rate}
  _, spec, activations = program
  if spec.startswith('switch'):
    code = activations.index(activation)
    hp |= {'activation_code': code, 'init_gain': consumer_gains(spec, config.init_gain)[code]}
  seed = seed_of(config, 0 if 'selection' in phase else 1, copy, number)
  split = number % config.splits
  tags = {'part': PART, 'phase': phase, 'model': part, 'activation': activation, 'copy': copy,
          'lr_factor': factor, 'learning_rate': rate, 'seed': number, 'split': split,
          'labels': labels}
  return Member(tags, seed, seed, split, hp, labels)


def cohorts(config: Any):
  """Selection, one step beyond its edges, then fresh seeds: for each part."""
  for part in config.models:
    arms = getattr(config, part)
    listed = programs(arms.activations)
    copies = len(arms.activations) if arms.null_copies < 0 else arms.null_copies

    def cohort(phase: str, program, members, timed: bool = False, part=part, arms=arms):
      extra = dict(time_by='activation',
                   time_reference=(REFERENCE, model(config, part, REFERENCE))) if timed else {}
      return Cohort(f'{part}-{phase}-{program[0]}', model(config, part, program[1]),
                    tuple(members), arms.steps, arms.batch_size, **extra)

    def selection_runs(program, chosen, part=part, arms=arms, copies=copies):
      """chosen(activation, copy) -> factors to run."""
      runs = [(a, 0) for a in program[2]]
      if program[0] == 'fixed':
        runs += [(REFERENCE, c) for c in range(1, copies + 1)]
      return [member(config, part, program, 'null_selection' if c else 'selection', a, f, s, c)
              for a, c in runs for f in chosen(a, c) for s in range(arms.selection_seeds)]

    rows = yield [cohort('select', p, selection_runs(p, lambda a, c: config.rate_factors))
                  for p in listed]
    choices = selection.choose(rows, ('activation', 'copy'))

    def beyond(activation, copy, choices=choices):
      return selection.beyond(choices[activation, copy], config.rate_factors)

    wider = [(p, selection_runs(p, beyond)) for p in listed]
    wider = [cohort('widen', p, members) for p, members in wider if members]
    if wider:
      rows = pd.concat([rows, (yield wider)])
      choices = selection.choose(rows, ('activation', 'copy'))

    def chosen_factor(activation, copy=0, choices=choices):
      # Where every rate diverged the smallest one is run, so that the table shows it.
      factor = choices[activation, copy].factor
      return config.rate_factors[0] if math.isnan(factor) else factor

    fresh = []
    for program in listed:
      runs = [('fresh', a, 0) for a in program[2]]
      if program[0] == 'fixed':
        runs += [('null_fresh', REFERENCE, c) for c in range(1, copies + 1)]
      members = []
      for phase, activation, copy in runs:
        members += [member(config, part, program, phase, activation,
                           chosen_factor(activation, copy), s, copy)
                    for s in range(arms.fresh_seeds)]
      if program[0] == 'fixed':
        members += [member(config, part, program, 'control', REFERENCE, chosen_factor(REFERENCE),
                           s, labels=s + 1) for s in range(arms.shuffled_seeds)]
      fresh.append(cohort('fresh', program, members, timed=True))
    yield fresh


# The report.

def base_problem(rows: pd.DataFrame, choices, shares: Sequence[float]) -> str:
  """Why no claim can be tested, or ''."""
  reference = rows[(rows.phase == 'fresh') & (rows.activation == REFERENCE)
                   & (rows.diverged_step < 0)]
  share = selection.share_at_edge(choices)
  if len(reference) < MIN_SEEDS:
    return f'{len(reference)} fresh seeds of ReLU, at least {MIN_SEEDS} are needed'
  if share > MAX_EDGE_SHARE:
    return (f'{share:.0%} of the activations choose the edge of the learning rates, '
            f'more than {MAX_EDGE_SHARE:.0%}')
  entropy = -sum(p * math.log(p) for p in shares if p)
  if not reference.test_loss.mean() <= entropy - LEARNED:
    return (f"ReLU's test log-loss {reference.test_loss.mean():.3f} is not {LEARNED} nats below "
            f"the labels' entropy {entropy:.3f}")
  return ''


def outcomes(rows: pd.DataFrame, compared, choices, shares: Sequence[float]) -> dict[str, Outcome]:
  """One outcome per claim, from the MLP's rows; `shares` are those of the classes."""
  problem = base_problem(rows, choices, shares)
  fresh = rows[(rows.phase == 'fresh') & (rows.activation == REFERENCE)]
  found = {}

  def outcome(key, passed, ours, bounds, n, note='', why=problem):
    verdict = NOT_TESTABLE if why else REPRODUCED if passed else NOT_REPRODUCED
    found[key] = Outcome(verdict, ours, bounds, n, why or note)

  def against_reference(key, activation, passed, note):
    own = compared[activation].paired
    few = f'{own.n} pairs without a diverged run, at least {MIN_SEEDS} are needed'
    outcome(key, passed, own.mean, (own.low, own.high), own.n, note,
            problem or (few if own.n < MIN_SEEDS else ''))

  others = len(compared) - 1
  if 'identity' in compared:
    rank = ranking(compared).index('identity') + 1
    against_reference('identity_worse', 'identity', compared['identity'].paired.low > 0,
                      f'rank {rank} of {len(compared)}')
  else:
    found['identity_worse'] = Outcome(NOT_TESTABLE, None, None, 0, 'the identity was not run')

  control = rows[(rows.phase == 'control') & (rows.diverged_step < 0)]
  if len(control):
    images = int(control.test_images.sum())
    low = statistics.binomial_interval(images, min(shares), 0.99)[0]
    high = statistics.binomial_interval(images, max(shares), 0.99)[1]
    share = float((control.test_accuracy * control.test_images).sum() / images)
    outcome('shuffled_labels', low <= share <= high, share,
            statistics.binomial_interval(images, share), len(control),
            f'{images} test images; guessing reaches {low:.4f} to {high:.4f}')
  else:
    found['shuffled_labels'] = Outcome(NOT_TESTABLE, None, None, 0, 'no run on shuffled labels')

  line, copies = selection.null_line(rows[rows.phase == 'null_fresh'], fresh, 'test_loss')
  whole = [a for a in ranking(compared) if not compared[a].diverged and a != REFERENCE]
  if copies and whole:
    best = whole[0]
    paired, p = compared[best].paired, compared[best].p_adjusted
    against_reference('winner_passes_null', best, -paired.mean > line and p < 0.05,
                      f'best: {best}; line {line:.4f} from {copies} copies of ReLU; '
                      f'Holm p {p:.3g}')
  else:
    found['winner_passes_null'] = Outcome(
        NOT_TESTABLE, None, None, 0,
        'every activation diverged' if copies else 'no null row was run')

  for key, activation in TESTED.items():
    if activation not in compared:
      found[f'{key}_better'] = Outcome(NOT_TESTABLE, None, None, 0, f'{activation} was not run')
      continue
    paired, p = compared[activation].paired, compared[activation].p_adjusted
    words = statistics.difference_verdict(paired, p, comparisons=others)
    lost = compared[activation].diverged
    against_reference(f'{key}_better', activation, words == 'better' and not lost,
                      words + (f', but {lost} runs diverged' if lost else ''))
  return found


def table(config: Any, part: str, rows: pd.DataFrame, dataset: str, choices) -> Table:
  """The comparison of one part. The ViT has too few seeds for a rank or a p value."""
  fresh = rows[rows.phase == 'fresh']
  share = selection.share_at_edge(choices)
  notes = [f'{share:.0%} of the activations choose a learning rate at the edge (*) after one '
           'step beyond it.',
           f'The seeds share {config.splits} splits: the intervals hold for these test images.']
  if part == 'mlp':
    line, copies = selection.null_line(rows[rows.phase == 'null_fresh'],
                                       fresh[fresh.activation == REFERENCE], 'test_loss')
    notes.append(f'Null row: {copies} copies of ReLU went through the same selection; their '
                 f'largest difference is {line:.4f} nats. A gain must pass this line.'
                 if copies else 'No null row was run.')
    size = f'MLP {"-".join(map(str, config.mlp_widths))}'
  else:
    notes.append('No null row, and too few seeds for one: intervals only, no winner.')
    size = f'ViT {config.vit_depth} x {config.vit_dim}, patch {config.vit_patch}'
    if (config.vit_depth, config.vit_dim, config.vit_heads) == (12, 192, 3):
      notes += TINY
  return comparison_table(
      f'Activations on {dataset}, {size}, {getattr(config, part).steps} steps', 'activation',
      REFERENCE, fresh, choices, notes, named=part == 'mlp')


def report(run: Run) -> Report:
  """Tables of both models, the claims' outcomes (from the MLP; none without it), the figures."""
  def figures():
    from experiments.figures import activation_search  # matplotlib, which no table needs
    return activation_search

  config, tables, found = run.config, [], {}
  compared_rows = run.rows[run.rows.part == PART]
  for part in config.models:
    rows = compared_rows[compared_rows.model == part]
    choices = selection.choose(rows[rows.phase == 'selection'], ('activation',))
    choices = {arm: choice for (arm,), choice in choices.items()}
    tables.append(table(config, part, rows, run.dataset, choices))
    if part == 'mlp':
      compared = selection.compare(rows[rows.phase == 'fresh'], list(config.mlp.activations),
                                   REFERENCE, 'test_loss')
      found = outcomes(rows, compared, choices, run.class_shares)
  specs = list(dict.fromkeys(a for p in config.models for a in getattr(config, p).activations))
  shown = compared_rows.assign(model=compared_rows.model + f' on {run.dataset}')
  return Report(tables, found, {
      'functions': lambda: figures().functions_and_derivatives(specs),
      'accuracy': lambda: figures().accuracy_with_intervals(shown),
      'learning_rates': lambda: figures().learning_rate_sensitivity(shown),
      'training_curves': lambda: figures().training_curves(run.metrics(), shown)})


def check(config: Any) -> None:
  """Names every activation that does not exist, and a config that cannot be compared."""
  from model_lib.activations import get_activation
  for part in config.models:
    names = getattr(config, part).activations
    for name in names:
      get_activation(name)
    if REFERENCE not in names:
      raise UserError(f'config.{part}.activations: {REFERENCE} is missing; everything is '
                      'compared with it')
    if len(set(names)) < len(names):
      twice = sorted({n for n in names if names.count(n) > 1})
      raise UserError(f'config.{part}.activations: {", ".join(twice)} stands there twice')
    same = {}
    for name in names:
      same.setdefault(get_activation(name).spec, []).append(name)
    for spellings in same.values():
      if len(spellings) > 1:
        raise UserError(f'config.{part}.activations: {" and ".join(spellings)} are the same')
  factors = config.rate_factors
  if list(factors) != sorted(set(factors)):
    raise UserError('config.rate_factors: must ascend without repetition')


