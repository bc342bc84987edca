"""Widths of gated layers, so that they cost as many parameters as the layers they replace."""

from __future__ import annotations

from collections.abc import Sequence


def count_parameters(n_in: int, widths: Sequence[float], n_out: int,
                     gated: bool | Sequence[bool]) -> float:
  """Kernels and biases of n_in -> widths -> n_out; a gated layer has two kernels, two biases.

  `gated` says it of every layer, or of each.
  """
  each = (gated,) * len(widths) if isinstance(gated, bool) else gated
  count, fan_in = 0.0, n_in
  for width, is_gated in zip(widths, each, strict=True):
    count += (2 if is_gated else 1) * (fan_in + 1) * width
    fan_in = width
  return count + (fan_in + 1) * n_out


def matched_widths(n_in: int, widths: Sequence[int], n_out: int,
                   gated: Sequence[bool] | None = None) -> tuple[int, ...]:
  """Widths of gated layers with the parameter count of plain layers of `widths`.

  The widths of the layers that `gated` names (None: of all) shrink by one factor; the others
  stay. For one hidden layer with n_in = n_out that is the usual 2/3 (three kernels instead of
  two; Shazeer 2020, arXiv:2002.05202); between two gated layers it is nearer to 1/sqrt(2),
  because both sides of a kernel shrink. The factor is found by bisection over real widths; the
  widths are then rounded down and raised by one, first to last, while that brings the count
  nearer. Each is at least 1.
  """
  each = (True,) * len(widths) if gated is None else tuple(gated)
  target = count_parameters(n_in, widths, n_out, gated=False)

  def shrunk(factor):
    return [factor * width if is_gated else width
            for width, is_gated in zip(widths, each, strict=True)]

  low, high = 0.0, 1.0
  for _ in range(60):
    factor = (low + high) / 2
    count = count_parameters(n_in, shrunk(factor), n_out, each)
    low, high = (low, factor) if count > target else (factor, high)
  matched = [max(1, int(width)) for width in shrunk(low)]

  def miss(candidate):
    return abs(count_parameters(n_in, candidate, n_out, each) - target)

  for i in range(len(matched)):
    raised = [*matched[:i], matched[i] + 1, *matched[i + 1:]]
    if each[i] and miss(raised) < miss(matched):
      matched = raised
  return tuple(matched)
