"""Measures the engine against plain jax, against the floor and against its memory estimates.

  python -m launch.benchmark [--parts=population,steps,single,overhead,memory,search,gpt2,depth]
      [--pairs=10] [--full] [--quickstart=WORKDIR] [--out=FILE.json]

Every speed ratio is the median of at least ten interleaved pairs, shown with its
quartiles; those of search and depth are of half as many, since a pair of theirs trains many runs
one by one. On two idle CPU cores the first five parts take about 6, 2, 1, 3 and 8 minutes (memory
without --quickstart, which reads a finished quickstart instead of running one).
The exit code is 0 also where a target is missed: the table says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.command_line import Parser
from launch import environment
from launch.benchmark import measure
from launch.study import atomic
from launch.study import tables
from model_lib.errors import UserError

PARTS = ('population', 'steps', 'single', 'overhead', 'memory', 'search', 'gpt2', 'depth')
MIN_PAIRS = 10
_CALLS_PER_PAIR = 20  # a pair of single calls lasts 10 ms, and 200 cost no time


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line. Raises UserError for what it does not allow."""
  parser = Parser(UserError, prog='python -m launch.benchmark', description=__doc__,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--parts', default=','.join(PARTS), metavar='A,B')
  parser.add_argument('--pairs', type=int, default=MIN_PAIRS, metavar='N',
                      help=f'interleaved pairs per ratio, at least {MIN_PAIRS}')
  parser.add_argument('--full', action='store_true',
                      help='also run all plain processes and jits once, not some of them scaled')
  parser.add_argument('--quickstart', type=Path, metavar='WORKDIR',
                      help='a finished quickstart, to read its peak memory from')
  parser.add_argument('--out', type=Path, metavar='FILE.json')
  arguments = parser.parse_args(argv)
  arguments.parts = tuple(part.strip() for part in arguments.parts.split(',') if part.strip())
  unknown = [part for part in arguments.parts if part not in PARTS]
  if unknown or not arguments.parts:
    raise UserError(f"--parts: {unknown[0] if unknown else 'none'} is no part; "
                    f"there are: {', '.join(PARTS)}")
  if arguments.pairs < MIN_PAIRS:
    raise UserError(f'--pairs={arguments.pairs}: a ratio needs at least {MIN_PAIRS} pairs')
  return arguments


def measured(arguments: argparse.Namespace, say=lambda line: None) -> dict[str, list]:
  """{part: records} of the chosen parts."""
  from launch.benchmark import depth
  from launch.benchmark import gpt2
  from launch.benchmark import memory
  from launch.benchmark import search
  from launch.benchmark import speed
  pairs = arguments.pairs
  # A pair of search or depth trains many runs one by one: half as many pairs.
  programs = {
      'population': lambda: speed.population(pairs, arguments.full),
      'steps': lambda: speed.steps(pairs),
      'single': lambda: speed.single(pairs * _CALLS_PER_PAIR),
      'overhead': lambda: speed.overhead(pairs),
      'memory': lambda: memory.memory(arguments.quickstart),
      'search': lambda: search.search(pairs // 2, arguments.full),
      'gpt2': lambda: gpt2.gpt2(pairs),
      'depth': lambda: depth.depth(pairs // 2, arguments.full)}
  found = {}
  for part in arguments.parts:
    say(f'measuring {part} ...')
    found[part] = programs[part]()
  return found


def table(found: dict[str, list[dict[str, Any]]]) -> tables.Table:
  """The records as a table."""
  rows = []
  for part, records in found.items():
    for r in records:
      target = '' if r['at_least'] is None else f">= {r['at_least']:g}"
      target = target if r['at_most'] is None else f"<= {r['at_most']:g}"
      target = f"1 +- {r['within']:g}" if 'within' in r else target
      rows.append({**{k: r[k] for k in ('name', 'unit', 'n', 'q25', 'median', 'q75')},
                   'part': part, 'target': target,
                   'met': {True: 'yes', False: 'NO', None: ''}[r['met']]})
  column, number = tables.Column, tables.significant(4)
  return tables.Table('Benchmark', (
      column('part', 'part', right=False), column('name', 'measure', right=False),
      column('unit', 'unit', right=False), column('n', 'n', format=tables.integer()),
      column('q25', 'lower quartile', format=number), column('median', 'median', format=number),
      column('q75', 'upper quartile', format=number), column('target', 'target'),
      column('met', 'met', right=False)), rows)


def _main(argv: Sequence[str]) -> None:
  arguments = parse(argv)
  # Neither side of a pair may find the other day's compilation; jax reads this when imported.
  for name in measure.CACHE_VARIABLES:
    os.environ.pop(name, None)
  environment.fix_threads(None)
  entry = environment.snapshot(['python', '-m', 'launch.benchmark', *argv])
  import jax
  entry['device_kind'] = jax.devices()[0].device_kind
  found = measured(arguments, lambda line: print(line, file=sys.stderr, flush=True))
  entry['load_average'] = list(os.getloadavg())
  if arguments.out:
    atomic.write_json(arguments.out, {'environment': entry, 'parts': found})
  print(table(found).to_text())


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, or 2 for a mistake on the command line."""
  try:
    _main(sys.argv[1:] if argv is None else argv)
  except UserError as e:
    print(f'launch.benchmark: {e}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
