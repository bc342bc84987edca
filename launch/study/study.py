"""What a study hands to the frame: its config, its cohorts, its report. Plain data, no jax."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import pandas as pd

  from launch.study.claims import Outcome
  from launch.study.datasets import StudyData
  from launch.study.load import Trained
  from launch.study.request import DataRequest
  from launch.study.tables import Table
  from model_lib.training.cohort import Cohort


@dataclasses.dataclass(frozen=True)
class Given:
  """What a measurement may read.

  Attributes:
    data: the study's data, or None where it has none.
    trained: name of a finished cohort (and a step of its `keep_at`) -> its networks
      (`launch.study.load.Trained`).
    rows: names of finished cohorts and measurements -> their rows.
  """

  data: StudyData | None
  trained: Callable[..., Trained]
  rows: Callable[[Sequence[str]], pd.DataFrame]


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Rows that are computed without training: a check, or trained networks evaluated again.

  Once computed they are files, as the rows of a cohort are; a start that is stopped before
  computes all of them again.

  Attributes:
    name: unique among the study's cohorts and measurements; the `run` of its rows.
    compute: a module's function, called as compute(given, **arguments); it returns the rows, flat
      mappings to texts and numbers, none of them called `member` or `run`.
    arguments: what the rows depend on beside the data and the cohorts that are read: plain
      values. They are told apart by them and by the function's name on resume.
    seconds: estimated time on two CPU cores, for --list.
  """

  name: str
  compute: Callable[..., Sequence[Mapping[str, Any]]]
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0

  def fingerprint(self) -> str:
    """SHA-256 of the name, the function's name and the arguments."""
    text = json.dumps([self.name, self.compute.__qualname__, dict(self.arguments)],
                      sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Report:
  """What a study makes of its finished rows.

  Attributes:
    tables: in the order of printing.
    outcomes: one per claim, by id; none for a study without claims.
    figures: file stem -> function that draws and returns a matplotlib figure.
    pages: file name -> text of a page, written beside the tables.
    files: file name -> function that writes further data to a path beside the tables.
  """

  tables: Sequence[Table]
  outcomes: Mapping[str, Outcome] = dataclasses.field(default_factory=dict)
  figures: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
  pages: Mapping[str, str] = dataclasses.field(default_factory=dict)
  files: Mapping[str, Callable[[Path], object]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
  """What the report may read.

  Attributes:
    config: the study's config.
    rows: results.csv as a DataFrame.
    metrics: function that reads metrics.jsonl into a DataFrame.
    dataset: the data set's full name, which every table and figure shows; '' without data.
    notes: lines that every table must carry, such as 'mixed environment'.
    class_shares: share of each class among the labels; empty for text and without data.
  """

  config: Any
  rows: pd.DataFrame
  metrics: Callable[[], pd.DataFrame]
  dataset: str
  notes: tuple[str, ...] = ()
  class_shares: tuple[float, ...] = ()


Cohorts = Generator[Sequence['Cohort | Measurement'], 'pd.DataFrame', None]


@dataclasses.dataclass(frozen=True)
class Study:
  """One study.

  Attributes:
    name: of its module under experiments/.
    config: the frozen dataclass type of its config; it has the fields `engine`
      (EngineConfig) and `io` (IoConfig).
    presets: name -> {'field.sub': value}.
    preset_notes: name of a preset -> lines that --list prints below it, such as what of the paper
      is not there.
    notes: config -> further such lines, such as an estimate; called where the libraries are loaded.
    data: config -> DataRequest, or None where nothing is trained and no data is read.
    cohorts: config -> generator. It yields a list of cohorts and measurements and is sent their
      finished rows as a DataFrame, in their order, so that later cohorts may be
      computed from earlier rows and from nothing else. --list answers with the
      rows of cohorts alone.
    report: Run -> Report.
    claims: config -> the claims under test, as data; a study may have none.
    check: raises UserError for a config that names what does not exist; called
      once the heavy libraries are loaded.
    extendable: fields that `--extend` may enlarge: numbers may grow, lists may
      get more items at the end.
  """

  name: str
  config: type
  presets: Mapping[str, Mapping[str, object]]
  data: Callable[[Any], DataRequest | None]
  cohorts: Callable[[Any], Cohorts]
  report: Callable[[Run], Report]
  claims: Callable[[Any], Sequence[Any]] = lambda config: ()
  check: Callable[[Any], None] = lambda config: None
  extendable: tuple[str, ...] = ()
  preset_notes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  notes: Callable[[Any], Sequence[str]] = lambda config: ()
