"""Keeps the record of a finished run in the repository.

  python -m launch.record WORKDIR [--name=NAME] [--allow_dirty]

Copies config.json, environment.json, status.json, timing.jsonl, results.csv (packed as
results.csv.gz above 1 MB), claims.json, table.md, table.tex and figures/*.png to
experiments/results/<study>/<preset>[-<dataset>]/, where a record of that name is replaced. The
data set is named when it is not the study's default one. Checkpoints, metrics.jsonl and
tensorboard/ stay in the workdir. Absolute paths and the host's name are taken out.

A run that is not finished, that mixes environments, or whose code is of no commit is refused;
--allow_dirty records the latter two nevertheless, and environment.json tells.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import gzip
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
from typing import Any

from data.command_line import Parser
from launch import environment
from launch.study import atomic
from launch.study.records import Record
from launch.study.workdir import Workdir
from model_lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'experiments' / 'results'
PACK_FROM_BYTES = 1_000_000
# Of a path that begins in the text: not of '1/3', 'arxiv.org/abs', 'https://'.
_ABSOLUTE = re.compile(r'(?<![\w.:/)\]-])~?(?:/[\w.@+~-]+)+/?')
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
_PLACE = 'DIR'
_DEFAULT_DATASET = '''
import importlib, sys
study = importlib.import_module(sys.argv[1]).STUDY
request = study.data(study.config())
print(request.dataset if request else '')
'''


def record(workdir: str | os.PathLike[str], name: str = '', allow_dirty: bool = False,
           results: Path = RESULTS) -> Path:
  """Copies the record of a finished run and returns the directory it lies in.

  Args:
    workdir: of the run.
    name: of the record's directory; by default the preset, and the data set where it is not
      the study's default.
    allow_dirty: also of a mixed environment, or of code that no commit holds.
    results: directory of all records.

  Raises:
    UserError: the run is not finished, or not of one clean environment; a file is missing; a
      name that is none.
  """
  source = Workdir(workdir)
  if not source.config.is_file():
    raise UserError(f'{source.path} is no workdir: it has no config.json')
  state = source.read_status().get('state', 'unknown')
  if state != 'done':
    raise UserError(f'{source.path} has not finished: its status is {state}; '
                    'run its command again first')
  if not allow_dirty and (problem := environment_problem(source.read_environments())):
    raise UserError(f'{source.path}: {problem}; run it again from a clean commit, '
                    'or add --allow_dirty')
  found = Record.read(source)
  if not name:
    name = found.preset
    if found.data and found.data['name'] != default_dataset(found.study):
      name += f'-{found.data["name"]}'
  if not _NAME.fullmatch(name):
    raise UserError(f'--name={name}: use letters, digits, and . _ -')
  target = results / found.study / name
  partial = target.with_name(f'.{name}.{os.getpid()}.partial')
  with atomic.as_user_error(target):
    partial.mkdir(parents=True)
    try:
      for path, content in contents(source).items():
        (partial / path).parent.mkdir(exist_ok=True)
        atomic.write_bytes(partial / path, content)
      _replace(target, partial)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  return target


def environment_problem(entries: Sequence[Mapping[str, Any]]) -> str:
  """Why the starts of a run are not of one clean environment, or ''."""
  for entry in entries:
    if not entry.get('git'):
      return 'its code is of no known commit'
    if entry['git']['dirty']:
      return f'its code differs from commit {entry["git"]["commit"][:12]}'
    mixed = environment.compare(entries[0], entry).mixed
    if mixed:
      return f'it mixes environments ({"; ".join(mixed)})'
  return '' if entries else 'environment.json tells of no start'


def default_dataset(study: str) -> str:
  """The data set of a study's default config; asked in a child, as a study is a program."""
  done = subprocess.run(
      [sys.executable, '-c', _DEFAULT_DATASET, f'experiments.{study}'],
      cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no output'])[-1]
    raise UserError(f'experiments.{study} cannot be loaded ({last}); name the record with --name')
  return done.stdout.strip()


def contents(source: Workdir) -> dict[str, bytes]:
  """Relative path -> bytes of every file of the record, without traces of the machine.

  Raises:
    UserError: one of the files is missing.
  """
  rows = _read(source.results)
  files = {path.name: _read(path) for path in (source.claims, source.status, source.timing)}
  for path in (source.table_md, source.table_tex):
    files[path.name] = _neutral_notes(_read(path).decode()).encode()
  files |= {f'figures/{path.name}': _read(path) for path in sorted(source.figures.glob('*.png'))}
  for path in (source.config, source.environment):
    value = neutral(atomic.read_json(path))
    files[path.name] = (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()
  if len(rows) > PACK_FROM_BYTES:
    files[source.packed_results.name] = gzip.compress(rows, mtime=0)
  else:
    files[source.results.name] = rows
  return files


def neutral(value: Any) -> Any:
  """JSON without absolute paths and host names.

  A path inside of the checkout becomes relative to it, every other one 'DIR'; the value of a key
  'host' becomes '-'.
  """
  if isinstance(value, str):
    return _ABSOLUTE.sub(_PLACE, value.replace(f'{ROOT}/', ''))
  if isinstance(value, Mapping):
    return {key: '-' if key == 'host' else neutral(item) for key, item in value.items()}
  if isinstance(value, list):
    return [neutral(item) for item in value]
  return value


def _read(path: Path) -> bytes:
  if not path.is_file():
    raise UserError(f'{path} is missing; a finished run has it')
  with atomic.as_user_error(path, 'read'):
    return path.read_bytes()


def _neutral_notes(table: str) -> str:
  """The notes on mixed environments are the only lines of a table that may name a path."""
  return ''.join(neutral(line) if 'mixed environment:' in line else line
                 for line in table.splitlines(keepends=True))


def _replace(target: Path, new: Path) -> None:
  """Renames `new` to `target`; an old record is moved aside first and removed last."""
  old = new.with_suffix('.old')
  if target.exists():
    target.rename(old)
  new.rename(target)
  atomic.fsync_directory(target.parent)
  shutil.rmtree(old, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status: 0, or 2 after one line on stderr."""
  parser = Parser(UserError, prog='python -m launch.record',
                  formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
  parser.add_argument('workdir', metavar='WORKDIR', help='a finished run')
  parser.add_argument('--name', default='', metavar='NAME', help='name of the record')
  parser.add_argument('--allow_dirty', action='store_true',
                      help='record a mixed environment or uncommitted code too')
  try:
    options = parser.parse_args(argv)
    print(f'recorded {record(options.workdir, options.name, options.allow_dirty)}')
  except UserError as error:
    print(f'launch.record: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
