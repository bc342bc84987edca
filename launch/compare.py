"""Puts finished runs of one study into one table.

  python -m launch.compare W1 W2 ... [--out=DIR] [--where=phase=fresh ...] [--metrics=test_loss,...]

W1, W2 ... are workdirs, or records under experiments/results. The rows of results.csv are grouped
by what a run *is* (phase, model, activation, learning rate ...) and averaged over what repeats it
(seed, split, copy): mean with 95 % interval, number of runs, number of diverged ones. Below it
stand the claims of each workdir, side by side, and where the configs differ. Prints Markdown;
--out also writes compare.md and compare.tex.
"""
from __future__ import annotations

import argparse
from pathlib import Path
import re
import sys
from typing import Any, Sequence

import pandas as pd

from data.command_line import Parser
from launch.study import atomic
from launch.study import records
from launch.study import tables
from launch.study.claims import read_claims
from launch.study.workdir import Workdir
from model_lib.analysis import statistics
from model_lib.errors import UserError

REPLICATES = ('member', 'run', 'seed', 'split', 'copy', 'labels')
_OUTCOME = re.compile(r'(^|_)(loss|accuracy|error|perplexity|auc|ratio|us|ms|s|mib)$')
_COST = re.compile(r'_(ratio|us|ms|s|mib)$')


class Run:
  """A finished workdir or its record: its label, config, results and claims.

  Raises:
    UserError: when it is no workdir, or has not finished.
  """

  def __init__(self, path: str):
    workdir = Workdir(path)
    if not workdir.config.is_file():
      raise UserError(f'{path} is no workdir: it has no config.json')
    state = workdir.read_status().get('state', 'done')
    needed = (records.results_path(workdir), workdir.claims)
    absent = [file.name for file in needed if not file.is_file()]
    if state != 'done' or absent:
      why = f'its status is {state}' if state != 'done' else f'it has no {absent[0]}'
      raise UserError(f'{path} has not finished: {why}; run its command again first')
    self.path = workdir.path
    self.label = workdir.path.name
    self.config = workdir.read_config()
    self.claims = read_claims(workdir.claims)
    self.results = records.read_results(workdir)

  @property
  def study(self) -> str:
    return str(self.config.get('study'))


def results_table(runs: Sequence[Run], where: Sequence[tuple[str, str]] = (),
                  metrics: Sequence[str] | None = None) -> tables.Table:
  """One row per workdir and kind of run; columns that are the same everywhere become a note.

  Args:
    runs: of one study.
    where: (column, value) pairs that a row of results.csv must have.
    metrics: outcome columns; by default those of the test split, if there are any, and the cost.

  Raises:
    UserError: for columns that do not exist, or when no row is left.
  """
  frame = pd.concat([run.results.assign(workdir=run.label) for run in runs], ignore_index=True)
  for column, value in where:
    if column not in frame:
      raise UserError(f'--where: results.csv has no column {column}; it has '
                      f'{", ".join(c for c in frame if c != "workdir")}')
    frame = frame[frame[column].astype(str) == value]
  if frame.empty:
    raise UserError('no row of results.csv is left; change --where')
  outcomes = [c for c in frame if _OUTCOME.search(c) and pd.api.types.is_numeric_dtype(frame[c])]
  chosen = _chosen_metrics(outcomes, metrics)
  skip = {*REPLICATES, *outcomes, 'diverged_step', 'workdir'}
  identity = ['workdir', *(c for c in frame if c not in skip)]
  constant = [c for c in identity[1:] if frame[c].nunique(dropna=False) == 1]
  identity = [c for c in identity if c not in constant]
  rows = []
  for key, group in frame.groupby(identity, sort=False, dropna=False):
    lost = group.get('diverged_step', pd.Series(-1, group.index)).ge(0)
    row: dict[str, Any] = dict(zip(identity, key), n=int((~lost).sum()), diverged=int(lost.sum()))
    for metric in chosen:
      found = statistics.mean_interval(group.loc[~lost, metric])
      row[metric] = found.mean
      if not _COST.search(metric):
        row[f'{metric} interval'] = (found.low, found.high)
    rows.append(row)
  columns = [tables.Column(c, c.replace('_', ' '), right=False, format=_plain) for c in identity]
  columns += [tables.Column('n', 'n', format=tables.integer()),
              tables.Column('diverged', 'diverged', format=tables.integer())]
  for metric in chosen:
    columns.append(tables.Column(metric, metric, format=tables.significant(4, 'diverged')))
    if not _COST.search(metric):
      columns.append(tables.Column(f'{metric} interval', '95 % interval',
                                   format=tables.interval(4)))
  notes = [f'The same in all rows: {c} = {frame[c].iloc[0]}.' for c in constant]
  return tables.Table(f'Results of {runs[0].study}', columns, rows, notes + config_notes(runs))


def claims_comparison(runs: Sequence[Run]) -> tables.Table:
  """One row per claim, with the paper's value and each workdir's number and verdict."""
  by_run = [{record['id']: record for record in run.claims} for run in runs]
  columns = [tables.Column('id', 'claim', right=False),
             tables.Column('paper', 'paper', format=tables.significant(4))]
  rows: dict[str, dict[str, Any]] = {}
  for run, records in zip(runs, by_run):
    columns += [tables.Column(f'{run.label} ours', run.label, format=tables.significant(4)),
                tables.Column(f'{run.label} interval', '95 % interval', format=tables.interval(4)),
                tables.Column(f'{run.label} n', 'n', format=tables.integer()),
                tables.Column(f'{run.label} verdict', 'verdict', right=False)]
    for name, record in records.items():
      row = rows.setdefault(name, {'id': name, 'paper': record['paper_value']})
      for key in ('ours', 'interval', 'n', 'verdict'):
        row[f'{run.label} {key}'] = record[key]
  return tables.Table(f'Claims of {runs[0].study}', columns, list(rows.values()))


def config_notes(runs: Sequence[Run]) -> list[str]:
  """A sentence per config field, or data set, that is not the same in all runs."""
  flat = [_flatten({k: run.config[k] for k in ('preset', 'config', 'data') if k in run.config})
          for run in runs]
  fields = list(dict.fromkeys(field for config in flat for field in config))
  notes = []
  for field in fields:
    values = [config.get(field, 'absent') for config in flat]
    if any(value != values[0] for value in values):
      shown = ', '.join(f'{value} ({run.label})' for run, value in zip(runs, values))
      notes.append(f'Configs differ in {field}: {shown}.')
  return notes


def compare(paths: Sequence[str], where: Sequence[tuple[str, str]] = (),
            metrics: Sequence[str] | None = None) -> tuple[tables.Table, tables.Table]:
  """The results and the claims of several workdirs of one study.

  Raises:
    UserError: an unfinished or unreadable workdir, one given twice, or different studies.
  """
  runs = [Run(path) for path in paths]
  seen: dict[Path, str] = {}
  for run, path in zip(runs, paths):
    if run.path in seen:
      raise UserError(f'{path} is given twice')
    seen[run.path] = path
    if run.study != runs[0].study:
      raise UserError(
          f'{paths[0]} is a run of {runs[0].study} and {path} is one of {run.study}; '
          'a table compares runs of one study')
  _make_labels_unique(runs)
  return results_table(runs, where, metrics), claims_comparison(runs)


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status: 0, or 2 after one line on stderr."""
  try:
    options = _parser().parse_args(argv)
    where = []
    for condition in options.where:
      column, separator, value = condition.partition('=')
      if not separator:
        raise UserError(f'--where={condition}: write it as --where=column=value')
      where.append((column, value))
    metrics = options.metrics.split(',') if options.metrics else None
    parts = compare(options.workdirs, where, metrics)
    markdown = '\n'.join(part.to_markdown() for part in parts)
    if options.out:
      out = Path(options.out)
      latex = '\n'.join(part.to_latex() for part in parts)
      with atomic.as_user_error(out, 'create'):
        out.mkdir(parents=True, exist_ok=True)
      atomic.write_text(out / 'compare.md', markdown)
      atomic.write_text(out / 'compare.tex', latex)
    print(markdown, end='')
    return 0
  except UserError as error:
    print(f'launch.compare: {error}', file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
  parser = Parser(UserError, prog='python -m launch.compare',
                  description='Puts finished runs of one study into one table.')
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR', help='finished runs of one study')
  parser.add_argument('--out', metavar='DIR', help='write compare.md and compare.tex there')
  parser.add_argument('--where', action='append', default=[], metavar='COLUMN=VALUE',
                      help='only rows of results.csv with this value; may be repeated')
  parser.add_argument('--metrics', metavar='A,B', help='outcome columns of results.csv to show')
  return parser


def _chosen_metrics(outcomes: Sequence[str], metrics: Sequence[str] | None) -> list[str]:
  if metrics is not None:
    for metric in metrics:
      if metric not in outcomes:
        raise UserError(f'--metrics: results.csv has no outcome {metric}; it has '
                        f'{", ".join(outcomes)}')
    return list(metrics)
  costs = [c for c in outcomes if _COST.search(c)]
  scores = [c for c in outcomes if c not in costs]
  return ([c for c in scores if c.startswith('test_')] or scores) + costs


def _plain(value: Any) -> str:
  if isinstance(value, float):
    return tables.significant(4)(value)
  return tables.text()(value)


def _flatten(value: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix: value}
  flat: dict[str, Any] = {}
  for key, item in value.items():
    flat.update(_flatten(item, f'{prefix}.{key}' if prefix else key))
  return flat


def _make_labels_unique(runs: Sequence[Run]) -> None:
  """Directories of one name are told apart by their whole path."""
  names = [run.label for run in runs]
  for run in runs:
    if names.count(run.label) > 1:
      run.label = str(run.path)


if __name__ == '__main__':
  sys.exit(main())
