"""What the depth part of the depth-muP study finds in its rows: sweeps, verdicts, figures."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import numpy as np
import pandas as pd

from experiments.parts import depth_tables as tables
from experiments.parts import sweeps
from experiments.parts.depth_cohorts import PART, check, cohorts
from experiments.parts.depth_families import COMPUTED, PAIRS
from experiments.parts.depth_found import Found
from experiments.parts.verdicts import (MIN_SEEDS, REGRET, SEPARATION, checked, missing, shown,
                                        verdict)
from launch.study import Report, Run
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from model_lib.analysis import statistics
from model_lib.analysis.statistics import Interval

__all__ = ['check', 'cohorts', 'report']

GATE_SEEDS = 4
HELPS, TRANSFERS, BETTER = 0.5, 0.3, 0.2  # nats of log-loss
DIVERSE, REDUNDANT, APART, WALK, WALK_WITHIN, LEARNED = 0.60, 0.70, 0.2, 0.5, 0.03, 0.3
DIVERSITY_DEPTH, DIVERSITY_STEP = 256, 100
COSINE = 0.03
STEEP, FLAT = -1.5, -1.3  # slopes of a valley


def outcomes(rows: pd.DataFrame, config: Any) -> dict[str, Outcome]:
  """One outcome per claim that the rows can speak of."""
  own = Found(rows, config)
  return (transfer(own) | losses(own) | standard(own) | one_or_two(own) | controls(own)
          | feature_diversity(rows) | gradient_diversity(rows) | valleys(rows, own.guess))


def problems(own: Found, least: int, *names: str) -> str:
  """Why a claim on these families cannot be tested, or ''."""
  seeds = own.config.depth.seeds
  if seeds < least:
    return f'{seeds} seeds, {least} are needed'
  edges = own.at_edge(*names)
  return f'the best learning rate lies at an edge of the grid: {", ".join(edges)}' if edges else ''


def transfer(own: Found) -> dict[str, Outcome]:
  """P1a and P1b."""
  deepest, source, base = own.depths[-1], own.depths[-3], own.depths[0]
  problem = problems(own, GATE_SEEDS, 'depth_mup')
  if own.config.depth.train_io:
    problem = problem or '(1/2, 0) is read from depth-muP, which holds for the blocks alone'
  silent = [depth for depth in own.depths[-3:] if not own.learned('depth_mup', depth)]
  if silent:
    problem = problem or f'no run of depth-muP learned at L={silent[0]}'
  one, other = (own.regret(name, source, deepest) for name in ('depth_mup', COMPUTED))
  beside = ''
  if one is None or other is None:
    beside = 'a transferred learning rate lies beside the grid'
    regret = gap = missing()
  else:
    regret = own.bootstrapped_regret('depth_mup', source, deepest)
    gap = statistics.paired_difference(other, one)
  far = own.regret('depth_mup', base, deepest)
  note = (f'(1/2, 0) minus depth-muP {shown(gap)}; of the rate tuned at L={base} '
          f'{shown(sweeps.mean_of(far)) if far is not None else "beside the grid"}')
  gamma = own.exponent()
  return {
      'P1a': verdict(regret.mean <= REGRET and gap.mean >= SEPARATION, regret, note,
                     problem or beside),
      'P1b': verdict(gamma.low <= 0.5 <= gamma.high and gamma.low > 0 and gamma.high < 1, gamma,
                     f"depth-muP's own exponent {gamma.mean - 0.5:+.2f}", problem)}


def losses(own: Found) -> dict[str, Outcome]:
  """P2, P3 and P4."""
  base, deepest = own.depths[0], own.depths[-1]
  best = [own.best('depth_mup', depth) for depth in own.depths]
  steps = [statistics.paired_difference(b, a) for a, b in zip(best, best[1:])]
  rises = [f'L={depth} {shown(step)}' for depth, step in zip(own.depths[1:], steps) if step.low > 0]
  gain = statistics.paired_difference(best[-1], best[0])
  found = {'P2': verdict(
      gain.mean < -HELPS and not rises, gain,
      f'it rises at {", ".join(rises)}' if rises else 'no rise from a depth to the next',
      problems(own, MIN_SEEDS, 'depth_mup'))}

  octave = own.tuned['relu'][1]
  ode, depth_mup = (own.sweeps[name, deepest].at(octave) for name in ('ode', 'depth_mup'))
  problem = problems(own, MIN_SEEDS)
  if ode is None or depth_mup is None:
    found['P3'] = verdict(False, missing(), '',
                          'the rate tuned at the base depth lies beside the grid')
  else:
    gap = statistics.paired_difference(ode, depth_mup)
    found['P3'] = verdict(gap.mean > TRANSFERS and gap.low > 0, gap,
                          f'a = {own.tuned["relu"][0]:g}, log2 rate {octave:g}', problem)
  if 'abs_matched' in own.config.depth.families:
    gaps = {depth: statistics.paired_difference(own.best('abs_matched', depth),
                                                own.best('depth_mup', depth))
            for depth in own.depths}
    note = '; '.join(f'L={depth} {shown(gap)}' for depth, gap in gaps.items() if depth != deepest)
    if 'abs_same' in own.config.depth.families:
      same = statistics.paired_difference(own.best('abs_same', deepest), best[-1])
      note += f'; L={deepest} at the a of ReLU {shown(same)}'
    found['P4'] = verdict(gaps[deepest].mean < -BETTER, gaps[deepest], note,
                          problems(own, MIN_SEEDS, 'abs_matched', 'depth_mup'))
  return found


def one_or_two(own: Found) -> dict[str, Outcome]:
  """Blocks of one matrix against half as many of two, at the largest number of matrices."""
  plain, normed = (own.paired(*pair)[-1:] for pair in PAIRS)
  if not normed:
    return {}
  (matrices, one, two), = normed
  gap = statistics.paired_difference(one, two)
  note = f'{matrices} matrices'
  if plain:
    note += f'; with ReLU and no norm {shown(statistics.paired_difference(*plain[0][1:]))}'
  return {'one_matrix_better': verdict(gap.high < 0, gap, note,
                                       problems(own, MIN_SEEDS, *PAIRS[1]))}


def standard(own: Found) -> dict[str, Outcome]:
  """P5 and P6."""
  families = [name for name in own.config.depth.families if name != 'sp']
  swept = [key for key in own.sweeps if key[0] in families]
  none = own.at_edge(*families) + [f'{name} L={depth} (no run learned)' for name, depth in swept
                                   if not own.learned(name, depth)]
  found = {'P6': checked(not none, len(none), ', '.join(none) or f'{len(swept)} sweeps')}
  deep = [depth for depth in own.depths if depth >= 8 * own.depths[0]]
  silent = [depth for depth in deep if not own.learned('depth_mup', depth)]
  if 'sp' in own.config.depth.families and deep:
    rows = own.rows[(own.rows.phase == 'sweep') & (own.rows.family == 'sp')
                    & own.rows.depth.isin(deep)]
    learned = int((sweeps.log_losses(rows, math.inf) < math.log(own.guess)).sum())
    start = own.rows[(own.rows.phase == 'start') & (own.rows.measure == 'loss')
                     & (own.rows.a == own.tuned['relu'][0])]
    means = start.groupby(['depth', 'family']).value.mean()
    at_start = '; '.join(
        f'loss at step 0, L={depth}: ' + ', '.join(
            f'{name} {means.get((depth, name), math.nan):.3g}' for name in ('sp', 'depth_mup'))
        for depth in deep)
    name = NOT_TESTABLE if silent else REPRODUCED if not learned else NOT_REPRODUCED
    found['P5'] = Outcome(name, learned, None, len(rows),
                          f'depth-muP did not learn at L={silent[0]} either' if silent
                          else at_start)
  return found


def controls(own: Found) -> dict[str, Outcome]:
  """Runs that must have the bits of depth-muP's under another name."""
  deepest, found = own.depths[-1], {}
  problem = ('side by side (vmap) the bits of a run belong to its chunk'
             if own.config.engine.batching == 'vmap' else '')
  half = math.log2(deepest / own.depths[0]) / 2
  if half != round(half):
    problem = problem or f'(L / L_b)^1/2 = {2 ** half:.3g} is no power of two'
  if own.config.depth.train_io:
    problem = problem or 'the first and the last layer are trained too, at the rate of the name'
  runs = own.rows[(own.rows.phase == 'sweep') & (own.rows.family == 'depth_mup')
                  & (own.rows.depth == deepest)].set_index(['octave', 'seed']).last_loss
  for phase, claim in (('retuned', 'ode_retuned'), ('relabelled', 'relabelling_exact')):
    rows = own.rows[own.rows.phase == phase]
    same = runs.reindex(pd.MultiIndex.from_arrays([rows.octave + half, rows.seed])).to_numpy()
    other = rows.last_loss.to_numpy()
    apart = ~((same == other) | (np.isnan(same) & np.isnan(other)))
    found[claim] = checked(len(rows) > 0 and not apart.any(), int(apart.sum()),
                           f'{len(rows)} pairs of runs', problem)
  return found


def feature_diversity(rows: pd.DataFrame) -> dict[str, Outcome]:
  """The slopes of log d against log eps, of the stream and of its change since the start."""
  own = rows[rows.phase == 'features']
  found = {}
  for what, claim in (('stream', 'features_diverse'), ('change', 'changes_diverse')):
    deep = own[(own.depth == DIVERSITY_DEPTH) & (own.step == DIVERSITY_STEP)]
    slopes = {name: each.sort_values('seed').value.to_numpy(float)
              for name, each in deep[deep.measure == f'slope_{what}'].groupby('family')}
    if not {'depth_mup', 'abs', 'ode'} <= set(slopes):
      continue
    moved = deep[(deep.measure == 'moved') & deep.family.isin(('depth_mup', 'abs', 'ode'))
                 ].groupby('family').value.mean()
    start = own[(own.depth == DIVERSITY_DEPTH) & (own.step == 0)
                & (own.measure == 'slope_stream')].groupby('family').value.mean()
    gap = statistics.paired_difference(slopes['ode'], slopes['depth_mup'])
    mean = {name: float(value.mean()) for name, value in slopes.items()}
    walks = (abs(start[['depth_mup', 'ode']] - WALK) <= WALK_WITHIN).all()
    passed = (mean['depth_mup'] <= DIVERSE and mean['abs'] <= DIVERSE and mean['ode'] >= REDUNDANT
              and gap.mean >= APART and walks)
    few = moved.min() < LEARNED
    found[claim] = verdict(
        passed, gap, ', '.join(f'{name} {value:.3f}' for name, value in mean.items())
        + f'; at the start depth_mup {start["depth_mup"]:.3f}, ode {start["ode"]:.3f}; '
        f'rms(x_t - x_0) / rms(x_t) at least {moved.min():.2f}',
        f'rms(x_t - x_0) is {moved.min():.2f} rms(x_t), {LEARNED} are needed' if few else '')
  return found


def gradient_diversity(rows: pd.DataFrame) -> dict[str, Outcome]:
  """Cosines of neighbouring layers' gradients against (E f')^2 / E f'^2."""
  own = rows[rows.phase == 'gradients']
  if not len(own):
    return {}
  normed = own[own.prenorm == 1]
  apart = (normed.value - normed.predicted).abs()
  missed = normed[~(apart <= COSINE)]
  tanh = own[(own.prenorm == 0) & (own.activation == 'tanh')]
  control = float((tanh.value - tanh.predicted).abs().min()) if len(tanh) else math.nan
  return {'gradients_predicted': checked(
      not len(missed) and control > COSINE, float(apart.max()),
      f'{len(normed)} functions; missed: {", ".join(missed.activation) or "none"}; tanh without '
      f'prenorm is {control:.3f} off')}


def valley(rows: pd.DataFrame, guess: float, within: float = 0.3) -> float:
  """Slope d log2 a / d log2 rate of the points of a map that are near its best one.

  Orthogonal fit: the first principal axis of the points; nan below three of them, inf where they
  stand in one column.
  """
  table = (rows.assign(loss=sweeps.log_losses(rows, guess)).groupby(['a', 'octave']).loss.mean())
  near = table[table <= table.min() + within].index.to_frame()
  if len(near) < 3:
    return math.nan
  points = np.stack([near.octave.to_numpy(float), np.log2(near.a.to_numpy(float))])
  (x, y) = np.linalg.svd(points - points.mean(1, keepdims=True))[0][:, 0]
  return float(y / x) if x else math.inf


def valleys(rows: pd.DataFrame, guess: float) -> dict[str, Outcome]:
  """The heat maps of blocks of two matrices."""
  own = rows[rows.phase == 'map']
  depths = sorted(own.depth.unique()) if len(own) else []
  if len(depths) < 2:
    return {}
  slopes = [valley(own[own.depth == depth], guess) for depth in (depths[0], depths[-1])]
  note = f'L={depths[0]:g}: {slopes[0]:.2f}, L={depths[-1]:g}: {slopes[1]:.2f}'
  none = not np.isfinite(slopes).all()
  return {'valley_turns': checked(
      slopes[0] <= STEEP and FLAT <= slopes[1] < 0, math.nan if none else slopes[0] - slopes[1],
      note, f'no slope: {note}' if none else '')}


def report(run: Run) -> Report:
  """Tables, verdicts and figures."""
  def figures():
    from experiments.figures import depth_mup  # matplotlib, which no table needs
    return depth_mup

  rows = run.rows[run.rows.part == PART]
  own = Found(rows, run.config)
  drawn: dict[str, Callable[[], Any]] = {
      'depth_learning_rates': lambda: figures().learning_rates(own, run.dataset),
      'depth_lowest': lambda: figures().lowest_losses(own, run.dataset),
      'depth_regret': lambda: figures().regrets(own, run.dataset),
      'feature_diversity': lambda: figures().feature_diversity(rows, run.dataset)}
  if (rows.phase == 'gradients').any():
    drawn['gradient_diversity'] = lambda: figures().gradient_diversity(rows, run.dataset)
  if (rows.phase == 'map').any():
    drawn['multiplier_and_rate'] = lambda: figures().maps(rows, own.guess, run.dataset)
  return Report(tables.all_of(own, run.dataset), outcomes(rows, run.config), drawn)
