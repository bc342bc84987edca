"""The rules of a model as a table to read."""

from __future__ import annotations

from collections.abc import Mapping

from model_lib.parametrization.label import Extent, Label
from model_lib.parametrization.rules import Factors

COLUMNS = ('parameter', 'kind', 'fan_in', 'fan_out', 'blocks', 'init_std', 'multiplier',
           'learning_rate', 'eps', 'decay')


def table(labels: Mapping[str, Label], factors: Mapping[str, Factors]) -> list[tuple[str, ...]]:
  """One row of COLUMNS per parameter; a size that differs from the base's is base->size."""
  return [(path, label.kind + (' (looked up)' if label.lookup and label.kind == 'input' else ''),
           _extent(label.fan_in), _extent(label.fan_out),
           '-' if label.depth is None else _extent(label.depth),
           *(f'{getattr(factors[path], name):.6g}' for name in COLUMNS[5:]))
          for path, label in labels.items()]


def lines(labels: Mapping[str, Label], factors: Mapping[str, Factors]) -> list[str]:
  """The table as aligned lines, the names of the columns first."""
  rows = [COLUMNS, *table(labels, factors)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
  return ['  '.join(cell.ljust(width) if i < 2 else cell.rjust(width)
                    for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
          for row in rows]


def _extent(extent: Extent) -> str:
  if extent.base == extent.size:
    return str(extent.size)
  return f'{extent.base}->{extent.size}'
