"""What the rows and the metrics of the study of LayerNorm removal hold, by arm and base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.parts.removal_arms import ARMS, schedule_text
from launch.study import Run
from model_lib.analysis import statistics
from model_lib.analysis.removal_events import BEFORE, event_rows, rises

SPIKE_STEPS = 5


def runs(rows: pd.DataFrame, arm: str, column: str = 'val_loss', factor: float = 1.0) -> pd.Series:
  """A column of an arm's networks by the number of the base; the base itself is an arm."""
  own = rows[rows.phase.isin(('base', 'tuned')) & (rows.arm == arm) & (rows.lr_factor == factor)]
  return own.set_index('base')[column].where(own.set_index('base').diverged_step < 0)


def numbers(rows: pd.DataFrame, phase: str, arm: str, measure: str, **where: Any) -> pd.DataFrame:
  """The rows of a measure, by the number of the base."""
  own = rows[(rows.phase == phase) & (rows.arm == arm) & (rows.measure == measure)]
  for column, value in where.items():
    own = own[own[column] == value]
  return own.set_index('base').sort_index()


def difference(a: pd.Series, b: pd.Series) -> statistics.Paired:
  """a - b over the bases that both have."""
  both = pd.concat([a, b], axis=1, keys=['a', 'b']).dropna()
  return statistics.paired_difference(both.a.to_numpy(), both.b.to_numpy())


def losses_of(run: Run, part: str) -> pd.DataFrame:
  """The training losses of the fine-tuned runs: columns arm, base, lr_factor, step, loss."""
  tuned = run.rows[(run.rows.part == part) & (run.rows.phase == 'tuned')]
  lines = run.metrics()
  lines = lines[(lines.split == 'train') & lines.member.isin(tuned.member)]
  return lines.merge(tuned[['member', 'arm', 'base', 'lr_factor']], on='member')


def events_of(run: Run, part: str, size: Any) -> pd.DataFrame:
  """One row per event of the runs at the common rate: arm, base, those of `event_rows`, and the
  rise over vanilla of the same base, which has the same batches (`removal_events.rises`).

  In vanilla, where nothing happens, the steps are those of ln_free. An event with fewer than 5
  steps before it has no row. A run that had diverged before an event has inf as its spike.
  """
  from model_lib.transforms.removal_schedules import Schedule, schedule
  found = []
  losses = losses_of(run, part)
  losses = losses[losses.lr_factor == 1].sort_values('step', kind='stable')
  vanilla = {base: own.loss.to_numpy(float)
             for base, own in losses[losses.arm == 'vanilla'].groupby('base')}
  for (arm, base), own in losses.groupby(['arm', 'base'], sort=False):
    if not ARMS[arm].schedule:
      continue
    text = schedule_text('ln_free' if ARMS[arm].schedule == 'never' else arm, run.config.schedule)
    given = schedule(text, size.depth, size.tune_steps)
    if not isinstance(given, Schedule):
      continue  # events that only the trained network knows
    steps = [step for step, _ in given.timeline(size.depth) if step >= BEFORE]
    # Metrics count the steps that are done: the line of optimizer step s says s + 1.
    loss = own.loss.to_numpy(float)
    found += [{'arm': arm, 'base': base, **event, 'rise': rise} for event, rise in zip(
        event_rows(loss, steps, SPIKE_STEPS, own.grad_norm.to_numpy(float)),
        rises(loss, vanilla[base], steps, SPIKE_STEPS), strict=True)]
  columns = ['arm', 'base', 'step', 'before', 'spike', 'recovery', 'gradient_norm', 'not_finite',
             'rise']
  events = pd.DataFrame(found, columns=columns)
  return events.assign(spike=events.spike.astype(float).fillna(np.inf),
                       rise=events.rise.astype(float))


def differing(run: Run, rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
  """Where the arms `sham`, `ln_free` and `no_aux` differ from `vanilla`; {} without sham.

  Returns:
    arm -> (how many recorded numbers differ, the first optimizer step, from 0, whose loss does, or
    -1). Recorded are loss and gradient norm of every step, and the losses at the end.
  """
  losses, found = losses_of(run, 'arms'), {}
  columns = [c for c in ('val_loss', 'test_loss', 'train_loss') if c in rows]

  def of(arm):
    lines = losses[(losses.arm == arm) & (losses.lr_factor == 1)].sort_values(['base', 'step'])
    steps = lines[['loss', 'grad_norm']].to_numpy(float)
    return steps, lines.step.to_numpy(), np.concatenate(
        [runs(rows, arm, column).sort_index().to_numpy(float) for column in columns])

  def unequal(a, b):
    return (a != b) & ~(np.isnan(a) & np.isnan(b))

  if 'sham' in set(rows.arm):
    steps, numbers_of, ends = of('vanilla')
    for arm in ('sham', 'ln_free', 'no_aux'):
      if arm in set(rows.arm):
        own_steps, _, own_ends = of(arm)
        apart = unequal(own_steps, steps)
        where = numbers_of[apart[:, 0]]
        found[arm] = (int(apart.sum() + unequal(own_ends, ends).sum()),
                      int(where.min()) - 1 if len(where) else -1)
  return found
