"""The catalogue by EAFO's criterion, and how well that order agrees with measured accuracy.

  rows = criteria(['relu', 'gelu', 'silu'])          # None: all pointwise entries
  found = agreement(rows, {'relu': 0.93, 'gelu': 0.94, 'silu': 0.94})

The sign is fixed before any run: the criterion claims that a lower entropy is better (Sun et al.
2024, arXiv 2405.12954). The verdict is on the primary convention of `entropy`; the others show how
much of the order is the convention's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from model_lib.activations import get_activation, names
from model_lib.analysis.densities import Density
from model_lib.analysis.entropy import Entropies, entropies
from model_lib.errors import UserError


class Agreement(NamedTuple):
  """Kendall's tau-b of minus the entropy with the score: above 0 as the paper claims.

  `p` is two-sided, of no association; `n` is the number of activations.
  """

  tau: float
  p: float
  n: int


def criterion(spec: str, density: Density | None = None) -> Entropies:
  """Entropies of a pointwise activation at the first values of its parameters.

  Args:
    spec: of the activation.
    density: of the pre-activation; None is N(0, 1).

  Raises:
    UserError: the activation is not pointwise, or `entropies` refuses it.
  """
  activation = get_activation(spec)
  if activation.kind != 'pointwise':
    raise UserError(f'the entropy is that of a pointwise activation, and {spec!r} is '
                    f'{activation.kind}')
  return entropies(activation.at_first_values(), density, activation.kinks)


def criteria(
    specs: Iterable[str] | None = None, density: Density | None = None,
) -> list[dict[str, Any]]:
  """One row an activation, lowest primary entropy first: its spec and `Entropies.row`.

  Args:
    specs: None: every pointwise entry of the registry, duplicates of a function included.
    density: see `criterion`.
  """
  if specs is None:
    specs = [name for name in names() if get_activation(name).kind == 'pointwise']
  rows = [{'activation': spec, **criterion(spec, density).row()} for spec in specs]
  return sorted(rows, key=lambda row: row['primary'])


def agreement(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, float], column: str = 'primary',
) -> Agreement:
  """Whether a lower entropy goes with a higher score.

  Args:
    rows: of `criteria`.
    scores: activation -> accuracy, or another number of which more is better.
    column: the convention.

  Raises:
    UserError: an activation without a score or the reverse, a score or an entropy that is nan, or
      fewer than 3 activations.
  """
  found = {row['activation'] for row in rows}
  lacking = sorted(found ^ set(scores))
  if lacking:
    raise UserError(f'agreement: {lacking[0]!r} has a score or an entropy, not both')
  if len(rows) < 3:
    raise UserError(f'agreement: an order of {len(rows)} activations says nothing; give 3 or more')
  if column not in rows[0]:
    raise UserError(f'agreement: no column {column!r}; there are {", ".join(rows[0])}')
  entropy = np.array([row[column] for row in rows], np.float64)
  score = np.array([scores[row['activation']] for row in rows], np.float64)
  if np.isnan(entropy).any() or not np.isfinite(score).all():
    raise UserError('agreement: an entropy or a score is not a number; take diverged runs out')
  result = scipy.stats.kendalltau(-entropy, score)
  return Agreement(float(result.statistic), float(result.pvalue), len(rows))
