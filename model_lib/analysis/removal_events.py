"""What each step of a removal did to the training loss: spike, rise, recovery, gradient norm."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BEFORE = 5  # steps whose mean loss an event is compared with


def event_rows(loss: Sequence[float], events: Sequence[int], gap: int,
               gradient_norm: Sequence[float] | None = None) -> list[dict[str, Any]]:
  """One row per event, in the order of the steps.

  Args:
    loss: [S] training loss of every step.
    events: steps at whose beginning something is removed, so that loss[event] is the first one
      after it; several removals at one step are one event.
    gap: g, the steps that a spike is looked for in, from the event on.
    gradient_norm: [S] norm of the gradient of every step, before clipping.

  Returns:
    Rows of
      step: the event.
      before: mean of the 5 losses before it.
      spike: max(loss[event : event + g]) - before; inf where a loss in it is not finite.
      recovery: the smallest k with mean(loss[event + k : event + k + 5]) <= before, so 0 for an
        event without a lasting rise; nan where the run ends first.
      gradient_norm: the largest in the same g steps; inf as above; nan where none are given.
      not_finite: how many losses of the g steps are not finite.

  Raises:
    ValueError: an event with fewer than 5 steps before it, or behind the last step; a gap below 1.
  """
  loss = np.asarray(loss, np.float64)
  norms = np.full(loss.shape, np.nan) if gradient_norm is None else np.asarray(gradient_norm)
  if gap < 1 or norms.shape != loss.shape:
    raise ValueError(f'gap {gap} must be at least 1, and losses {loss.shape} and gradient norms '
                     f'{norms.shape} of the same steps')
  rows = []
  for step in sorted(set(int(event) for event in events)):
    if not BEFORE <= step < loss.size:
      raise ValueError(f'event at step {step}: it needs {BEFORE} steps before it and one behind, '
                       f'of {loss.size}')
    before, window = float(loss[step - BEFORE:step].mean()), loss[step:step + gap]
    behind = sliding_window_view(loss, BEFORE)[step:].mean(-1)
    recovered = np.flatnonzero(behind <= before)
    rows.append({
      'step': step, 'before': before, 'spike': _largest(window) - before,
      'recovery': int(recovered[0]) if recovered.size else math.nan,
      'gradient_norm': math.nan if gradient_norm is None else _largest(norms[step:step + gap]),
      'not_finite': int(np.sum(~np.isfinite(window)))})
  return rows


def rises(loss: Sequence[float], reference: Sequence[float], events: Sequence[int],
          gap: int) -> np.ndarray:
  """max((loss - reference)[event : event + g]) of each event, in the order of `event_rows`.

  Against a run of the same batches without the removals it is what these did; `spike` has in it
  how hard the batches are.

  Args:
    loss, reference: [S] training losses of every step.
    events, gap: as for `event_rows`.

  Returns:
    One number per event; inf where a loss is not finite, nan where one of the reference is not.
  """
  loss, reference = np.asarray(loss, np.float64), np.asarray(reference, np.float64)
  found = []
  for step in sorted(set(int(event) for event in events)):
    own, other = loss[step:step + gap], reference[step:step + gap]
    found.append(_largest(own - other) if np.isfinite(other).all() else math.nan)
  return np.array(found)


def _largest(values: np.ndarray) -> float:
  return float(values.max()) if np.isfinite(values).all() else math.inf
