"""The stages that a part of a study asks for, answered without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd


def played(cohorts, row: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[list]:
  """All stages of a generator of cohorts; row(tags) -> the other columns of a run's row."""
  answer, stages = None, []
  while True:
    try:
      stage = list(cohorts.send(answer))
    except StopIteration:
      return stages
    stages.append(stage)
    answer = pd.DataFrame([{**m.tags, **row(m.tags)} for item in stage
                           for m in getattr(item, 'members', ())])
