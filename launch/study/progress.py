"""Progress of a study: a bar on a terminal, a line every so often in a log, and status.json."""

from __future__ import annotations

import sys
import time

import numpy as np
import tqdm

from launch.study.workdir import Workdir


def say(line: str) -> None:
  """One line for the user, on stderr, where a bar does not tear it."""
  tqdm.tqdm.write(line, file=sys.stderr)
  sys.stderr.flush()


class Progress:
  """Progress of one cohort.

  ETA rests on the steps of this start alone, so that a resumed run tells the truth.
  """

  def __init__(self, workdir: Workdir, cohort: str, number: str, members: int, first: int,
               total: int, interval_s: float):
    """Args:
      number: place of the cohort among those known, such as '2/5'.
      members: runs in the cohort; first, total: its steps done and to do.
      interval_s: seconds between two lines in a log.
    """
    self._workdir, self._cohort, self._interval = workdir, cohort, interval_s
    self._label = f'{number} {cohort} ({members} runs)'
    self._first, self._total = first, total
    self._start = self._last = time.monotonic()
    self._status = 0.0
    self._loss = float('nan')
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total, initial=first, desc=self._label, unit='step',
                            file=sys.stderr, dynamic_ncols=True)

  def __call__(self, step: int, losses: np.ndarray | None) -> None:
    """Tells that `step` is done; `losses` of some members, or None where none was recorded."""
    if losses is not None:
      finite = losses[np.isfinite(losses)]
      self._loss = float(np.median(finite)) if len(finite) else float('nan')
    now = time.monotonic()
    rate = (now - self._start) / max(1, step - self._first)
    eta = (self._total - step) * rate
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix(loss=f'{self._loss:.4g}')
    elif now - self._last >= self._interval or step == self._total:
      loss = f'median loss {self._loss:.4g}, ' if np.isfinite(self._loss) else ''
      say(f'{self._label}: step {step}/{self._total}, {loss}{eta:.0f} s left in this cohort')
      self._last = now
    if now - self._status >= min(2.0, self._interval):
      self._workdir.write_status('running', step=step, cohort=self._cohort, eta_s=round(eta, 1))
      self._status = now

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()
