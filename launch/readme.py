"""Fills README.md's tables from the records under experiments/results, which nobody types.

  python -m launch.readme            rewrites the blocks
  python -m launch.readme --check    exits 1 with one line where a block is not up to date

A block stands between two comments, and everything between them is replaced:

  <!-- results: STUDY/RECORD [rows=N] [keep=A,B] -->  ...  <!-- end results -->
  <!-- timing: STUDY -->                              ...  <!-- end timing -->

The first shows the tables of a record's table.md, one heading lower than there; with rows=N the
tables of arms keep their N first rows and those of the arms after keep=. The table of claims is
always whole, its rules are left to table.md. The second shows what each recorded run of a study
cost, from timing.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import re
import sys

from data.command_line import Parser
from launch.study import atomic
from launch.study import tables
from model_lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = 'experiments/results'
NOT_RECORDED = 'not recorded yet'
_BEGIN = re.compile(r'<!-- (results|timing): (\S+)((?: \S+)*) -->')
_PRESETS = ('smoke', 'quick', 'cpu', 'gpu', 'paper')


def filled(text: str, root: Path) -> str:
  """README.md with the blocks written anew from the records under `root`.

  Raises:
    UserError: a block without an end, an option that does not exist, or a damaged record.
  """
  lines, out = text.splitlines(), []
  place = 0
  while place < len(lines):
    out.append(lines[place])
    begin = _BEGIN.fullmatch(lines[place])
    place += 1
    if not begin:
      continue
    kind, name, options = begin.groups()
    end = f'<!-- end {kind} -->'
    rest = lines[place:]
    if end not in rest or any(_BEGIN.fullmatch(line) for line in rest[:rest.index(end)]):
      raise UserError(f'README.md:{place}: {begin[0]} has no {end}')
    if options and kind == 'timing':
      raise UserError(f'README.md:{place}: a block of timing has no options')
    given = _options(options.split(), f'README.md:{place}')
    found = (results_block(root, name, **given) if kind == 'results' else
             timing_block(root, name))
    out += ['', found.strip('\n'), '', end]
    place += rest.index(end) + 1
  return '\n'.join(out) + '\n'


def _options(words: Sequence[str], where: str) -> dict[str, object]:
  found: dict[str, object] = {}
  for word in words:
    key, _, value = word.partition('=')
    if key == 'rows' and value.isdecimal() and int(value):
      found['rows'] = int(value)
    elif key == 'keep' and value:
      found['keep'] = tuple(value.split(','))
    else:
      raise UserError(f'{where}: {word} is no option of a block; it has rows=N and keep=A,B')
  return found


def results_block(root: Path, name: str, rows: int = 0, keep: Sequence[str] = ()) -> str:
  """The tables of one record, shortened, with its origin.

  Args:
    root: of the repository.
    name: STUDY/RECORD.
    rows: how many rows a table of arms keeps; 0 for all.
    keep: arms whose rows stay nevertheless.
  """
  directory = root / RESULTS / name
  if not directory.is_dir():
    return NOT_RECORDED
  whole = f'{RESULTS}/{name}/table.md'
  parts = [f'Recorded in [`{RESULTS}/{name}`]({RESULTS}/{name}): {_origin(directory)}.', '']
  for title, table, notes in sections(_read(directory / 'table.md')):
    if title == '### Claims':
      parts += [f'#### Claims of {name}', '', *table, '',
                f'Measures, rules and controls of each claim: [table.md]({whole}).', '']
      continue
    parts += [f'#{title}', '']
    kept = _shortened(table, rows, keep)
    parts += [*kept, '']
    if len(kept) < len(table):
      parts += [f'{len(kept) - 2} of {len(table) - 2} rows; all are in [table.md]({whole}).', '']
    parts += [*notes, '']
  return '\n'.join(parts)


def sections(markdown: str) -> list[tuple[str, list[str], list[str]]]:
  """(title line, table lines, lines of the notes) of each table in a table.md."""
  found: list[tuple[str, list[str], list[str]]] = []
  for line in markdown.splitlines():
    if line.startswith('### '):
      found.append((line, [], []))
    elif found and line.startswith('|'):
      found[-1][1].append(line)
    elif found:
      found[-1][2].append(line)
  return [(title, table, '\n'.join(notes).strip('\n').splitlines())
          for title, table, notes in found]


def _shortened(table: list[str], rows: int, keep: Sequence[str]) -> list[str]:
  """Head, rule, the first rows and those with a cell of `keep`."""
  if not rows:
    return table
  def named(line: str) -> bool:
    return any(cell.strip() in keep for cell in line.split('|'))
  return [line for i, line in enumerate(table) if i < 2 + rows or named(line)]


def timing_block(root: Path, study: str) -> str:
  """One row per record of a study: runs, time, peak memory, machine."""
  directory = root / RESULTS / study
  records = [d for d in directory.iterdir() if d.is_dir() and d.name[0] != '.'] if (
      directory.is_dir()) else []
  if not records:
    return NOT_RECORDED
  def order(path: Path):
    preset = path.name.partition('-')[0]
    return (_PRESETS.index(preset) if preset in _PRESETS else len(_PRESETS), path.name)
  rows = []
  for record in sorted(records, key=order):
    try:
      lines = [json.loads(line) for line in _read(record / 'timing.jsonl').splitlines()]
      cohorts = [line for line in lines if 'cohort' in line]
      minutes = {key: sum(line[f'{key}_s'] for line in cohorts) / 60
                 for key in ('prepare', 'train', 'evaluate')}
      rows.append({
          'record': f'`{record.name}`', 'runs': sum(line['members'] for line in cohorts),
          **minutes, 'total': sum(minutes.values()),
          'mib': max((line['peak_mib'] for line in cohorts), default=None),
          'machine': _machine(record)})
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f'{record / "timing.jsonl"} is damaged ({error}); '
                      'record the run again') from error
  column, number = tables.Column, tables.fixed(1)
  return tables.Table('', (
      column('record', 'preset', right=False),
      column('runs', 'runs', format=tables.integer()),
      column('total', 'time', 'min', number), column('prepare', 'compiling', 'min', number),
      column('train', 'training', 'min', number),
      column('evaluate', 'evaluation, timing', 'min', number),
      column('mib', 'peak memory', 'MiB', tables.integer()),
      column('machine', 'machine', right=False)), rows).to_markdown()


def _machine(record: Path) -> str:
  entry = _environments(record)[-1]
  if entry.get('device_kind', 'cpu') != 'cpu':
    return str(entry['device_kind'])
  return f'{entry["threads"]} threads, {entry["cpu_model"]}'


def _origin(record: Path) -> str:
  """'commit 0123456789ab, jax 0.10.2, 2 threads, CPU model, 2026-01-31'."""
  entries = _environments(record)
  commits = list(dict.fromkeys(str((e['git'] or {}).get('commit'))[:12] for e in entries))
  return ', '.join([f'commit {" and ".join(commits)}', f'jax {entries[-1]["versions"]["jax"]}',
                    _machine(record), entries[-1]['started'][:10]])


def _environments(record: Path) -> list[dict]:
  entries = atomic.read_json(record / 'environment.json')
  if not isinstance(entries, list) or not entries:
    raise UserError(f'{record / "environment.json"} tells of no start')
  return entries


def _read(path: Path) -> str:
  with atomic.as_user_error(path, 'read'):
    return path.read_text(encoding='utf-8')


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
  """The command; exit status 0; 1 for a README that is not up to date; 2 after one line."""
  parser = Parser(UserError, prog='python -m launch.readme',
                  formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
  parser.add_argument('--check', action='store_true', help='change nothing')
  try:
    options = parser.parse_args(argv)
    path = root / 'README.md'
    old = _read(path)
    new = filled(old, root)
    if new == old:
      return 0
    if options.check:
      print('launch.readme: README.md is not up to date with experiments/results; '
            'run: python -m launch.readme', file=sys.stderr)
      return 1
    atomic.write_text(path, new)
  except UserError as error:
    print(f'launch.readme: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
