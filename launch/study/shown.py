"""What a finished run prints. Reads files only: no jax, no pandas, so that it takes no time."""

from __future__ import annotations

from pathlib import Path

from launch.study import atomic
from launch.study.workdir import Workdir


def text_path(workdir: Workdir) -> Path:
  """The tables as a terminal shows them."""
  return workdir.path / 'table.txt'


def show(workdir: Workdir) -> str:
  """The tables and the paths of the run's files."""
  with atomic.as_user_error(text_path(workdir), 'read'):
    lines = [text_path(workdir).read_text(encoding='utf-8')]
  lines += [f'table   {workdir.table_md}', f'rows    {workdir.results}']
  lines += [f'page    {path}' for path in sorted(workdir.path.glob('*.html'))]
  lines += [f'figure  {path}' for path in sorted(workdir.figures.glob('*.png'))]
  return '\n'.join(lines)
