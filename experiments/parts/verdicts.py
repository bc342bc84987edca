"""Outcomes of the depth-muP study's claims from estimates, and the bounds that its parts share."""

from __future__ import annotations

import math

from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Outcome
from model_lib.analysis import statistics
from model_lib.analysis.statistics import Interval

MIN_SEEDS = 3
REGRET, SEPARATION = 0.15, 0.5  # nats of log-loss
BESIDE = 'the transferred point lies beside the grid'


def verdict(passed: bool, ours: Interval | statistics.Paired, note: str = '', problem: str = ''
            ) -> Outcome:
  """The outcome of an estimate; a problem makes it not testable."""
  name = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  return Outcome(name, ours.mean, (ours.low, ours.high), ours.n, problem or note)


def checked(passed: bool, ours: float, note: str = '', problem: str = '') -> Outcome:
  """The outcome of a check."""
  name = NOT_TESTABLE if problem else REPRODUCED if passed else NOT_REPRODUCED
  return Outcome(name, ours, None, None, problem or note)


def shown(found: Interval | statistics.Paired) -> str:
  """Mean and interval as text."""
  return f'{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]'


def missing() -> Interval:
  """No value."""
  return Interval(math.nan, math.nan, math.nan, 0, math.nan)
