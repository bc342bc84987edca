"""Fills the tables of README.md and experiments/results/README.md from the records, never by hand.

  python -m launch.readme            rewrites the blocks of both pages
  python -m launch.readme --check    exits 1 with one line where a block is not up to date

A block stands between two comments, and everything between them is replaced:

  <!-- results: STUDY/RECORD [rows=N] [keep=A,B] -->  ...  <!-- end results -->
  <!-- claims: STUDY/RECORD -->                       ...  <!-- end claims -->
  <!-- timing: STUDY -->                              ...  <!-- end timing -->

The first shows a record's origin, links to its figures and the tables of its table.md; with rows=N
the tables of arms keep their N first rows and those of the arms after keep=. The second shows the
origin and the table of claims alone. Claims are always whole, their rules are left to table.md. The
third shows what each recorded run of a study cost, from timing.jsonl. Either page may have blocks
of any kind; their links start in the page's directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import posixpath
import re
import sys

from data.command_line import Parser
from launch.study import atomic
from launch.study import tables
from model_lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = 'experiments/results'
PAGES = ('README.md', f'{RESULTS}/README.md')
NOT_RECORDED = 'not recorded yet'
NO_CLAIMS = 'It makes no claims.'
_CLAIMS = '### Claims'
_BEGIN = re.compile(r'<!-- (results|claims|timing): (\S+)((?: \S+)*) -->')
_PRESETS = ('smoke', 'quick', 'cpu', 'gpu', 'paper')


def filled(text: str, root: Path, page: str) -> str:
  """The text of a page with its blocks written anew from the records.

  Args:
    text: of the page as it is.
    root: of the repository.
    page: its path below `root`; links start in its directory, errors name it.

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
    where, end = f'{page}:{place}', f'<!-- end {kind} -->'
    rest = lines[place:]
    if end not in rest or any(_BEGIN.fullmatch(line) for line in rest[:rest.index(end)]):
      raise UserError(f'{where}: {begin[0]} has no {end}')
    if options and kind != 'results':
      raise UserError(f'{where}: a block of {kind} has no options')
    given = _options(options.split(), where)
    found = (_BLOCKS[kind](root, page, name, **given) if (root / RESULTS / name).is_dir() else
             NOT_RECORDED)
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


def results_block(root: Path, page: str, name: str, rows: int = 0, keep: Sequence[str] = ()) -> str:
  """The tables of one record, shortened, with its origin.

  Args:
    root: of the repository.
    page: that the block stands on.
    name: STUDY/RECORD.
    rows: how many rows a table of arms keeps; 0 for all.
    keep: arms whose rows stay nevertheless.
  """
  parts, whole = [_origin(root, page, name), ''], _table_link(page, name)
  figures = sorted((root / RESULTS / name / 'figures').glob('*.png'))
  if figures:
    links = (_link(page, path.stem, f'{RESULTS}/{name}/figures/{path.name}') for path in figures)
    parts += [f'Figures: {", ".join(links)}.', '']
  for title, table, notes in sections(_read(root / RESULTS / name / 'table.md')):
    if title == _CLAIMS:
      parts += [f'{title} of {name}', '', *_claims(table, whole), '']
      continue
    parts += [title, '']
    kept = _shortened(table, rows, keep)
    parts += [*kept, '']
    if len(kept) < len(table):
      parts += [f'{len(kept) - 2} of {len(table) - 2} rows; all are in {whole}.', '']
    parts += [*notes, '']
  return '\n'.join(parts)


def claims_block(root: Path, page: str, name: str) -> str:
  """The table of claims of one record, with its origin; `page` and `name` as in results_block."""
  tables = {title: table
            for title, table, _ in sections(_read(root / RESULTS / name / 'table.md'))}
  claims = _claims(tables[_CLAIMS], _table_link(page, name)) if _CLAIMS in tables else [NO_CLAIMS]
  return '\n'.join([_origin(root, page, name), '', *claims])


def _claims(table: list[str], whole: str) -> list[str]:
  return [*table, '', f'Measures, rules and controls of each claim: {whole}.']


def _link(page: str, label: str, path: str) -> str:
  return f'[{label}]({posixpath.relpath(path, posixpath.dirname(page))})'


def _table_link(page: str, name: str) -> str:
  return _link(page, 'table.md', f'{RESULTS}/{name}/table.md')


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


def timing_block(root: Path, page: str, study: str) -> str:
  """One row per record of a study: runs, time, peak memory, machine. It has no links."""
  del page
  records = [d for d in (root / RESULTS / study).iterdir() if d.is_dir() and d.name[0] != '.']
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
      column('record', 'record', right=False),
      column('runs', 'runs', format=tables.integer()),
      column('total', 'time', 'min', number), column('prepare', 'compiling', 'min', number),
      column('train', 'training', 'min', number),
      column('evaluate', 'evaluation, timing', 'min', number),
      column('mib', 'peak memory', 'MiB', tables.integer()),
      column('machine', 'machine', right=False)), rows).to_markdown()


_BLOCKS = {'results': results_block, 'claims': claims_block, 'timing': timing_block}


def _machine(record: Path) -> str:
  entry = _environments(record)[-1]
  if entry.get('device_kind', 'cpu') != 'cpu':
    return str(entry['device_kind'])
  return f'{entry["threads"]} threads, {entry["cpu_model"]}'


def _origin(root: Path, page: str, name: str) -> str:
  """'Recorded in LINK: commit 0123456789ab, jax 0.10.2, 2 threads, CPU model, 2026-01-31.'"""
  record = root / RESULTS / name
  entries = _environments(record)
  commits = list(dict.fromkeys(str((e['git'] or {}).get('commit'))[:12] for e in entries))
  origin = ', '.join([f'commit {" and ".join(commits)}', f'jax {entries[-1]["versions"]["jax"]}',
                      _machine(record), entries[-1]['started'][:10]])
  path = f'{RESULTS}/{name}'
  return f'Recorded in {_link(page, f"`{path}`", path)}: {origin}.'


def _environments(record: Path) -> list[dict]:
  entries = atomic.read_json(record / 'environment.json')
  if not isinstance(entries, list) or not entries:
    raise UserError(f'{record / "environment.json"} tells of no start')
  return entries


def _read(path: Path) -> str:
  with atomic.as_user_error(path, 'read'):
    return path.read_text(encoding='utf-8')


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
  """The command; exit status 0; 1 for a page that is not up to date; 2 after one line.

  No page is written unless all blocks of both are sound.
  """
  parser = Parser(UserError, prog='python -m launch.readme',
                  formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
  parser.add_argument('--check', action='store_true', help='change nothing')
  try:
    options = parser.parse_args(argv)
    old = {page: _read(root / page) for page in PAGES}
    new = {page: filled(text, root, page) for page, text in old.items()}
    stale = [page for page in PAGES if new[page] != old[page]]
    if stale and options.check:
      print(f'launch.readme: not up to date with the records: {", ".join(stale)}; '
            'run: python -m launch.readme', file=sys.stderr)
      return 1
    for page in stale:
      atomic.write_text(root / page, new[page])
  except UserError as error:
    print(f'launch.readme: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
