"""What the search part of the activation search trains and measures, in its order.

Every function of a space once, searches on that table and what predicts it, a live search, and the
best ones against ReLU with fresh seeds. `experiments.activation_search` describes the method;
`config` is that study's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.parts import comparison
from launch.study import Measurement, field
from model_lib.analysis import selection
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec

if TYPE_CHECKING:
  from model_lib.search import Expression
  from model_lib.search.algorithms import Algorithm

PART, TEXT = 'search', 'text'
REFERENCE = 'relu(x)'
BESIDE = ('gelu(x)', 'swish(x)', 'tanh(x)')  # known ones among the finalists
PER_COHORT = 500  # functions; a cohort's state and its checkpoints must stay small
PHASES = {  # those of another number have other seeds
    'table': 0, 'copies': 0, 'live': 0, 'relaxation': 0, 'selection': 1, 'transfer_selection': 1,
    'fresh': 2, 'transfer': 2}
MOST_SEEDS, MOST_COPIES = 5003, 1009  # that `member` keeps apart
TEMPERATURES = (0.03, 0.1)  # of the relaxation's softmax
MOST_SCALARS = 3
MOST_WIDENINGS = 3  # steps beyond the edge of the learning rates
PROGRAM = f'bytecode(length=24, parameters={MOST_SCALARS})'


@dataclasses.dataclass(frozen=True)
class Search:
  """The search."""

  space: str = field('act_bench', 'Search space: act_bench, swish, pangaea or aquasurf.')
  operators: tuple[str, ...] = field((), 'The operators of the space to keep; empty for all.')
  rate: float = field(1e-2, "Adam's learning rate of the table.", low=1e-8)
  seeds: int = field(3, 'Seeds of the table, each with a split of its own.', low=2, high=5)
  steps: int = field(300, 'Optimizer steps per run.', low=3)
  marks: tuple[int, ...] = field((30, 100), 'Steps before the last that the table has too.', low=1)
  batch_size: int = field(128, 'Examples per step.', low=1)
  searches: int = field(200, 'Searches of every algorithm on the table.', low=2)
  evaluations: tuple[int, ...] = field(
      (10, 20, 30, 50, 100), 'Budgets of a search in full trainings, ascending.', low=1)
  copies: int = field(96, 'Copies of ReLU, each with seeds of its own, beside the table.', low=0,
                      high=1000)
  live_space: str = field('pangaea', 'Space of the searches that train what they ask for.')
  live_evaluations: int = field(256, 'Trainings of every such search.', low=1)
  live_batch: int = field(32, 'Trainings at a time: a generation.', low=1)
  eafo_starts: tuple[str, ...] = field(
      ('identity(x)', 'tanh(x)', 'sigmoid(x)', 'softplus(x)', 'swish(x)', 'gelu(x)', 'relu(x)',
       'elu(x)', 'atan(x)', 'asinh(x)'), "Expressions from which EAFO's steps begin.")
  eafo_epsilons: tuple[float, ...] = field((0.03, 0.1, 0.3, 1.0), "Sizes of EAFO's steps.",
                                           low=1e-6)
  eafo_steps: int = field(4, 'Most steps from one start.', low=1)
  transfer_seeds: int = field(8, 'Seeds in the vision transformer and in the language model; 0 for '
                              'no transfer.', low=0, high=5000)
  text: str = field('pystdlib', 'A prepared text for the language model.')
  gpt_rate: float = field(3e-3, "Adam's learning rate of the language model at factor 1.", low=1e-8)
  gpt_steps: int = field(300, 'Optimizer steps of the language model.', low=1)
  gpt_batch_size: int = field(16, 'Windows of 32 bytes per step.', low=1)
  finalists: int = field(8, 'Functions of the table that are run with fresh seeds.', low=1)
  selection_seeds: int = field(3, "Seeds for the choice of a finalist's learning rate.", low=1,
                               high=5000)
  fresh_seeds: int = field(32, 'Fresh seeds per finalist.', low=2, high=5000)


@functools.lru_cache(maxsize=4)
def valid(space: str, operators: tuple[str, ...]):
  """The candidates of a space (`model_lib.search.Candidates`)."""
  from experiments.measurements import activation_search as measured
  from model_lib.search import candidates
  return candidates(measured.space_of(space, operators).expressions())


@functools.lru_cache(maxsize=None)
def gain(text: str) -> float:
  """E[f(z)^2]^-1/2 of an expression."""
  from model_lib.search import engines, parse
  return engines.gain(parse(text))


def model(config: Any, activation: str, name: str = 'mlp') -> ModelSpec:
  """A network with an expression, or with a table or program that the members fill.

  'mlp' and 'vit' are the comparison's; 'gpt' has 2 blocks of width 32 with 4 heads.
  """
  if name == 'gpt':
    return ModelSpec('gpt', {'dim': 32, 'depth': 2, 'heads': 4, 'activation': activation})
  return comparison.model(config, name, activation)


def member(config: Any, phase: str, text: str, number: int, factor: float = 1.0, copy: int = 0,
           named: bool = True, within: str = 'mlp', **tags: str | float) -> Member:
  """A run of a candidate; those of equal phase, copy and number share their seeds.

  `named`: whether the model takes any candidate and is told which; `within`: name of the model.
  """
  factor = float(f'{factor:.6g}')
  rate = (config.search.rate if within == 'mlp' else network(config, within).rate) * factor
  seed = ((config.seed * 3 + PHASES[phase]) * MOST_COPIES + copy) * MOST_SEEDS + number
  split = 0 if within == 'gpt' else number % config.splits
  tags = {'part': PART, **tags, 'phase': phase, 'model': within, 'activation': text, 'copy': copy,
          'lr_factor': factor, 'learning_rate': rate, 'seed': number, 'split': split, 'labels': 0}
  hp = {'learning_rate': rate}
  if named:
    hp |= {'candidate': text, 'init_gain': gain(text) if config.init_gain else math.sqrt(2.0)}
  if 'temperature' in tags:
    hp['temperature'] = tags['temperature']
  return Member(tags, seed, seed, split, hp)


def table_cohorts(config: Any, texts: tuple[str, ...]) -> list[Cohort]:
  """Every function with every seed of the table, and copies of ReLU with seeds of their own."""
  s = config.search
  runs = [('table', text, 0) for text in texts]
  runs += [('copies', REFERENCE, copy) for copy in range(1, s.copies + 1)]
  parts = [runs[i:i + PER_COHORT] for i in range(0, len(runs), PER_COHORT)]
  return [Cohort(f'search-table-{i}', model(config, 'table'),
                 tuple(member(config, phase, text, seed, copy=copy)
                       for phase, text, copy in part for seed in range(s.seeds)),
                 s.steps, s.batch_size, evaluate_at=s.marks)
          for i, part in enumerate(parts)]


def live(config: Any, strategy: str, searcher: Algorithm):
  """Trains what a searcher asks for, a generation at a time; returns the best expression's text.

  Every candidate has one run, of the first seed of the table.
  """
  from model_lib.search.algorithms import Answer
  s, best, lowest = config.search, None, math.inf
  for generation, first in enumerate(range(0, s.live_evaluations, s.live_batch)):
    queries = searcher.ask(min(s.live_batch, s.live_evaluations - first))
    if not queries:
      break
    members = [member(config, 'live', str(query.expression), 0, strategy=strategy,
                      generation=generation) for query in queries]
    rows = yield [Cohort(f'search-{strategy}-{generation}', model(config, PROGRAM),
                         tuple(members), s.steps, s.batch_size)]
    losses = rows.val_loss.where(rows.diverged_step < 0).tolist()
    searcher.tell([Answer(query, loss) for query, loss in zip(queries, losses, strict=True)])
    for query, loss in zip(queries, losses, strict=True):
      if loss < lowest:
        best, lowest = str(query.expression), loss
  return best


def relaxed(config: Any):
  """Trains softmax mixtures of all operators of the table's space, then what they harden to.

  The mixtures' runs count as trainings, so that the sum is that of the other live searches. At
  temperature 1 the softmax stays nearly even; the two here were chosen on made-up data.
  """
  from experiments.measurements import activation_search as measured
  s, spec = config.search, f'relaxation({config.search.space})'
  mixtures = max(len(TEMPERATURES), s.live_evaluations // 16 // len(TEMPERATURES)
                 * len(TEMPERATURES))
  name = 'search-relaxation'
  yield [Cohort(name, model(config, spec), tuple(
      member(config, 'relaxation', spec, i // len(TEMPERATURES), named=False,
             temperature=TEMPERATURES[i % len(TEMPERATURES)]) for i in range(mixtures)),
      s.steps, s.batch_size)]
  hardened = yield [Measurement(
      'search-hardened', measured.measure_hardened,
      {'cohort': name, 'space': s.space, 'most': max(1, s.live_evaluations - mixtures)}, seconds=10)]
  if not len(hardened):
    return None
  return best_of((yield [Cohort('search-hard', model(config, 'table'), tuple(
      member(config, 'live', text, 0, strategy='relaxation', generation=0)
      for text in hardened.activation), s.steps, s.batch_size)]))


def program(text: str) -> str:
  """The engine of a candidate: a table, unless it has learnable scalars."""
  from model_lib.search import parse
  return PROGRAM if parse(text).n_parameters else 'table'


def by_program(config: Any, name: str, members: list[Member], steps: int, batch_size: int,
               name_of_model: str = 'mlp', data: str = '') -> list[Cohort]:
  """A cohort for each engine that the members need."""
  found = []
  for kind, engine in (('fixed', 'table'), ('learnable', PROGRAM)):
    own = tuple(m for m in members if program(m.tags['activation']) == engine)
    if own:
      found.append(Cohort(f'search-{name}-{kind}', model(config, engine, name_of_model), own,
                          steps, batch_size, data=data))
  return found


def best_of(rows: pd.DataFrame) -> str | None:
  """The activation with the lowest validation loss; None where every run diverged."""
  losses = rows.val_loss.where(rows.diverged_step < 0)
  return None if losses.isna().all() else str(rows.activation[losses.idxmin()])


def finalists(config: Any, rows: pd.DataFrame) -> list[str]:
  """The functions with the lowest mean validation loss over the table's seeds.

  Of equal `key`s only the best; none that is the reference or known beside it.
  """
  found: dict[bytes, str] = {}
  worst = _mean_losses(rows[rows.phase == 'table'], 'activation')
  known = {key(text) for text in (REFERENCE, *BESIDE)}
  for text in worst.sort_values(kind='stable').index:
    if len(found) < config.search.finalists and key(text) not in known:
      found.setdefault(key(text), text)
  return list(found.values())


@functools.lru_cache(maxsize=None)
def key(text: str) -> bytes:
  """Equal for functions that are one up to a f(+-x) + b, which the layers around absorb."""
  from model_lib.search import Fingerprints, parse
  return Fingerprints().affine(parse(text))


def _mean_losses(rows: pd.DataFrame, column: str) -> pd.Series:
  """Mean validation loss by a column, over all seeds; infinity where one diverged."""
  losses = rows.val_loss.where(rows.diverged_step < 0, math.inf)
  return losses.groupby(rows[column], sort=False).mean()


def cohorts(config: Any):
  """The table; what is computed from it; the finalists' rates, then their fresh seeds."""
  from experiments.measurements import activation_search as measured
  from model_lib.search import canonical, get_space
  from model_lib.search.algorithms import Evolution, FunctionKeys, Mutations, RandomSearch
  s = config.search
  texts = tuple(str(canonical(f)) for f in valid(s.space, s.operators).valid)
  asked = table_cohorts(config, texts)
  rows = yield asked
  names = [cohort.name for cohort in asked]
  yield [
      Measurement('search-counts', measured.measure_counts,
                  {'space': s.space, 'operators': list(s.operators)}, seconds=8),
      Measurement('search-proxies', measured.measure_proxies, {'cohorts': names},
                  seconds=0.05 * len(texts)),
      Measurement('search-regrets', measured.measure_regrets,
                  {'cohorts': names, 'space': s.space, 'operators': list(s.operators),
                   'searches': s.searches, 'evaluations': list(s.evaluations),
                   'seed': config.seed, 'baselines': measured.BASELINES,
                   'tables': measured.PERMUTED},
                  seconds=0.5 * s.searches)]

  space, keys = get_space(s.live_space), FunctionKeys()

  def everywhere(expression: Expression):
    # Other spaces than PANGAEA's sample more scalars than a program holds.
    return keys(expression) if expression.n_parameters <= MOST_SCALARS else None

  winners = [
      (yield from live(config, 'evolution', Evolution(
          Mutations(space), everywhere, config.seed, population=s.live_batch))),
      (yield from live(config, 'random', RandomSearch(space, everywhere, config.seed)))]
  reached = yield [Measurement(
      'search-eafo-steps', measured.measure_eafo_candidates,
      {'starts': list(s.eafo_starts), 'epsilons': list(s.eafo_epsilons), 'steps': s.eafo_steps,
       'most': s.live_evaluations}, seconds=0.3 * s.live_evaluations)]
  if len(reached):
    stepped = yield [Cohort('search-eafo', model(config, 'table'), tuple(
        member(config, 'live', text, 0, strategy='eafo', generation=0)
        for text in reached.activation), s.steps, s.batch_size)]
    winners.append(best_of(stepped))
  winners.append((yield from relaxed(config)))
  chosen = finalists(config, rows)
  by_key: dict[bytes, str] = {}
  for text in (REFERENCE, *BESIDE, *chosen, *(winner for winner in winners if winner)):
    by_key.setdefault(key(text), text)
  arms = list(by_key.values())
  # The copies of ReLU that look best, as many as there are other functions, are run again as well:
  # what they lose from the table to fresh seeds is the winner's curse.
  lucky = _mean_losses(rows[rows.phase == 'copies'], 'copy').sort_values(kind='stable').index[
      :len(arms) - 1]
  runs = [(text, 0) for text in arms] + [(REFERENCE, int(copy)) for copy in lucky]

  def rate_cohorts(stage: str, factors) -> list[Cohort]:
    return by_program(config, stage, [
        member(config, 'selection', text, seed, factor, copy) for text, copy in runs
        for factor in factors(text, copy) for seed in range(s.selection_seeds)],
        s.steps, s.batch_size)

  factor = yield from chosen_factors(config, rate_cohorts)
  # With the real expression, whose time counts, in place of its table.
  reference = (REFERENCE, model(config, f'expression({REFERENCE})'))
  yield [Cohort(f'search-fresh-{i}', model(config, f'expression({text})'),
                tuple(member(config, 'fresh', text, number, factor[text, copy], copy, named=False)
                      for own, copy in runs if own == text for number in range(s.fresh_seeds)),
                s.steps, s.batch_size, time_by='activation', time_reference=reference)
         for i, text in enumerate(arms)]

  if s.transfer_seeds:
    yield [Measurement('search-unigram', measured.measure_unigram, {'data': TEXT}, seconds=1)]
    yield from transfer(config, 'vit', arms)
    yield from transfer(config, 'gpt', arms)


@dataclasses.dataclass(frozen=True)
class Network:
  """Where the finalists go on: a model, how it is trained, and what it reads."""

  rate: float
  steps: int
  batch_size: int
  data: str = ''


def network(config: Any, name: str) -> Network:
  """The comparison's vision transformer, or a small language model of bytes."""
  s = config.search
  return {'vit': Network(config.vit.base_rate, config.vit.steps, config.vit.batch_size),
          'gpt': Network(s.gpt_rate, s.gpt_steps, s.gpt_batch_size, TEXT)}[name]


def transfer(config: Any, name: str, arms: list[str]):
  """The arms in another network: rates on two seeds, then fresh ones."""
  where = network(config, name)

  def cohorts_of(stage: str, runs) -> list[Cohort]:
    """runs: (text, copy, factor, number) of each run."""
    phase = 'transfer' if stage == 'fresh' else 'transfer_selection'
    return by_program(config, f'{name}-{stage}', [
        member(config, phase, text, number, factor, copy, within=name)
        for text, copy, factor, number in runs],
        where.steps, where.batch_size, name, where.data)

  seeds = range(config.vit.selection_seeds)
  pairs = [(text, 0) for text in arms] + [(REFERENCE, 1)]  # one copy of ReLU as the null
  factor = yield from chosen_factors(config, lambda stage, factors: cohorts_of(stage, [
      (*pair, factor, number) for pair in pairs for factor in factors(*pair) for number in seeds]))
  yield cohorts_of('fresh', [(*pair, factor[pair], number) for pair in pairs
                             for number in range(config.search.transfer_seeds)])


def chosen_factors(config: Any, cohorts_of):
  """Trains at the config's factors, then step by step beyond the edge; returns the factors.

  Args:
    cohorts_of: cohorts_of(stage, factors) -> the stage's cohorts; it is to call
      factors(text, copy) for the factors of each arm.

  Returns:
    {(text, copy): the factor with the lowest validation loss}; where all diverged the smallest.
  """
  rates = yield cohorts_of('select', lambda text, copy: config.rate_factors)
  choices = selection.choose(rates, ('activation', 'copy'))
  for number in range(MOST_WIDENINGS):
    wider = cohorts_of(f'widen{number + 1}', lambda text, copy, choices=choices: selection.beyond(
        choices[text, copy], config.rate_factors))
    if not wider:
      break
    rates = pd.concat([rates, (yield wider)])
    choices = selection.choose(rates, ('activation', 'copy'))
  return {arm: config.rate_factors[0] if math.isnan(choice.factor) else choice.factor
          for arm, choice in choices.items()}


def check(config: Any) -> None:
  """Whether there are such spaces and expressions, and a valid candidate is left."""
  from model_lib.search import get_space, parse
  s = config.search
  valid(s.space, s.operators)
  get_space(s.live_space)
  for text in s.eafo_starts:
    parse(text)
  if s.seeds > config.splits:
    raise UserError(f'config.search.seeds: {s.seeds} seeds need as many splits; config.splits is '
                    f'{config.splits}')
  if list(s.evaluations) != sorted(set(s.evaluations)):
    raise UserError('config.search.evaluations: must ascend without repetition')
  if list(s.marks) != sorted(set(s.marks)) or not all(mark < s.steps for mark in s.marks):
    raise UserError(f'config.search.marks: must ascend and lie below config.search.steps, {s.steps}')
