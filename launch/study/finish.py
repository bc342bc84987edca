"""The end of a study: claims, tables, figures, and the state 'done' as the last word."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd

from launch.study import atomic
from launch.study import claims as claims_lib
from launch.study import shown
from launch.study import tables as tables_lib
from launch.study.study import Run, Study
from launch.study.workdir import Workdir
from model_lib import faults


def read_metrics(path: Path) -> pd.DataFrame:
  """metrics.jsonl as a DataFrame; null is nan."""
  with open(path, encoding='utf-8') as f:
    return pd.DataFrame([json.loads(line) for line in f])


def finish(study: Study, run: Run, workdir: Workdir, figures: bool) -> None:
  """Writes claims.json, the tables, the pages and the figures, then the state 'done'.

  Every file is computed from the rows and the metrics alone, so a start that is
  killed in here does all of it again.
  """
  report = study.report(run)
  verdicts = claims_lib.evaluate(study.claims(run.config), report.outcomes)
  faults.reach('final_table')
  claims_lib.write_claims(workdir.claims, verdicts)
  tables, brief = [*report.tables], [*report.tables]
  if verdicts:
    claims = tables_lib.claims_table([v.record() for v in verdicts])
    tables.append(claims)
    # A terminal shows what was found; the rules stand in table.md and claims.json.
    brief.append(dataclasses.replace(claims, notes=[
        f'{v.claim.id}: {v.outcome.note}' for v in verdicts if v.outcome.note]))
  notes = [f'Note: {note}.' for note in run.notes]
  workdir.write_text(workdir.table_md,
                     '\n'.join([*(t.to_markdown() for t in tables), *notes]) + '\n')
  workdir.write_text(workdir.table_tex,
                     '\n'.join([*(t.to_latex() for t in tables),
                                *(f'% {n}' for n in notes)]) + '\n')
  workdir.write_text(shown.text_path(workdir),
                     '\n'.join([*(t.to_text() for t in brief), *notes]) + '\n')
  for name, text in report.pages.items():
    workdir.write_text(workdir.path / name, text)
  for name, write in report.files.items():
    path = workdir.path / name
    with atomic.as_user_error(path, 'write'):
      write(path)
  if figures:
    from launch.study import plotting  # matplotlib, which no other part of a start needs
    with atomic.as_user_error(workdir.figures, 'create'):
      workdir.figures.mkdir(exist_ok=True)
    for name, draw in report.figures.items():
      plotting.save_png(draw(), workdir.figures / f'{name}.png')
  workdir.write_status('done', eta_s=0.0)
