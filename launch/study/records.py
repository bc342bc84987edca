"""What a workdir keeps of its study: config.json, finished cohorts, rows.

config.json holds the resolved config of the first start and of every extension,
and the engine's decisions. A finished cohort is `checkpoints/<cohort>/finished.json`
(its rows, its program, the length of metrics.jsonl at its end) beside
`checkpoints/<cohort>/final` (its parameters).
"""

from __future__ import annotations

import dataclasses
import gzip
import resource
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.study import atomic
from launch.study import config as config_lib
from launch.study.workdir import Workdir
from model_lib.errors import UserError

if TYPE_CHECKING:
  import pandas as pd

FORMAT = 1
TIMING_COLUMNS = ('step_us', 'pass_us', 'cost_ratio', 'wall_s')


@dataclasses.dataclass
class Record:
  """The content of config.json.

  Attributes:
    study, preset: names.
    configs: the config of the first start, then that of each extension, as dicts.
    engine: 'cpu_threads', 'device_kind', 'devices', and 'plans': cohort -> plan.
    data: {'name', 'sha256'}.
  """

  study: str
  preset: str
  configs: list[dict]
  engine: dict[str, Any] = dataclasses.field(default_factory=dict)
  data: dict[str, str] = dataclasses.field(default_factory=dict)

  def write(self, workdir: Workdir) -> None:
    """Replaces config.json."""
    workdir.write_config({'format': FORMAT, 'config': self.configs[-1],
                          **dataclasses.asdict(self)})

  @classmethod
  def read(cls, workdir: Workdir) -> Record:
    """The record of a workdir.

    Raises:
      UserError: another format, or a damaged file.
    """
    found = workdir.read_config()
    if found.get('format') != FORMAT:
      raise UserError(f'{workdir.config} has format {found.get("format")}, this program writes '
                      f'format {FORMAT}; use the version that made it, or another --workdir')
    try:
      return cls(**{f.name: found[f.name] for f in dataclasses.fields(cls)})
    except KeyError as e:
      raise UserError(f'{workdir.config} is damaged: {e} is missing; '
                      'start again in another --workdir') from e


def networks(workdir: Workdir, cohort: str, step: int | None = None) -> Path:
  """Directory of a cohort's networks: the trained ones, or those kept at a step on the way."""
  return cohort_directory(workdir, cohort) / ('final' if step is None else f'kept_{step}')


def without_io(config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a config that decides results."""
  return {k: v for k, v in config.items() if k != 'io'}


def check_change(old: Mapping[str, Any], new: Mapping[str, Any], extend: bool,
                 extendable: Sequence[str], workdir: Path) -> bool:
  """Whether `new` extends `old`; equal configs (apart from io) do not.

  Raises:
    UserError: a difference that is no extension, or one without --extend; the
      line shows every difference.
  """
  lines = config_lib.diff(without_io(old), without_io(new))
  if not lines:
    return False
  shown = '; '.join(lines)
  if not extend:
    extends = all(line.split(':', 1)[0] in extendable for line in lines)
    raise UserError(f'{workdir} holds a run with another config ({shown}); go back to its config'
                    + (', name another --workdir, or add --extend if only seeds or arms are added'
                       if extends else ' or name another --workdir'))
  for line in lines:
    path = line.split(':', 1)[0]
    before, after = _at(old, path), _at(new, path)
    if path not in extendable:
      allowed = ', '.join(extendable) or (
          'nothing: this study names no fields that --extend may enlarge (Study(extendable=...))')
      raise UserError(f'{workdir}: --extend cannot change {line}; it may enlarge {allowed}')
    larger = (after[:len(before)] == before if isinstance(before, list) else after > before)
    if not larger:
      raise UserError(f'{workdir}: --extend only adds, and {line} takes away; '
                      'name another --workdir')
  return True


def _at(tree: Mapping[str, Any], path: str) -> Any:
  for part in path.split('.'):
    tree = tree[part]
  return tree


def cohort_directory(workdir: Workdir, cohort: str) -> Path:
  """Where a cohort keeps its checkpoints, its final parameters and its record."""
  return workdir.checkpoints / cohort


def finished_path(workdir: Workdir, cohort: str) -> Path:
  """The file whose existence means: this cohort is done."""
  return cohort_directory(workdir, cohort) / 'finished.json'


def read_finished(workdir: Workdir, cohort: str) -> dict[str, Any] | None:
  """The record of a finished cohort, or None."""
  path = finished_path(workdir, cohort)
  return atomic.read_json(path) if path.exists() else None


def all_finished(workdir: Workdir) -> list[dict[str, Any]]:
  """The records of all finished cohorts in the order of their rows."""
  found = [atomic.read_json(p) for p in workdir.checkpoints.glob('*/finished.json')]
  return sorted(found, key=lambda r: r['first_member'])


def with_nan(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Rows as they were before JSON, which has no nan: what was not finite is null there."""
  return [{k: float('nan') if v is None else v for k, v in row.items()} for row in rows]


def peak_mib() -> float:
  """Largest resident memory of this process so far, for timing.jsonl."""
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def write_results(workdir: Workdir, rows: Sequence[Mapping[str, Any]]) -> None:
  """results.csv: one row per run; the timing columns stand last."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  columns = [c for c in columns if c not in TIMING_COLUMNS] + [
      c for c in TIMING_COLUMNS if c in columns]
  workdir.write_csv(workdir.results, rows, columns)


def results_path(workdir: Workdir) -> Path:
  """results.csv, or its packed form in a large record."""
  packed = workdir.packed_results
  return packed if packed.is_file() and not workdir.results.is_file() else workdir.results


def read_results(workdir: Workdir) -> pd.DataFrame:
  """The rows of a workdir or of a record.

  Raises:
    UserError: they are missing, or damaged.
  """
  import pandas as pd

  path = results_path(workdir)
  with atomic.as_user_error(path, 'read'):
    try:
      frame = pd.read_csv(path, low_memory=False)  # columns of one part are empty in another
    # pandas' parser errors are ValueErrors; the others tell of a damaged .gz
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise UserError(f'{path} is damaged: {" ".join(str(error).split())}') from error
  missing = [column for column in ('member', 'seed') if column not in frame]
  if missing:
    raise UserError(f'{path} is damaged: it has no column {missing[0]}')
  return frame
