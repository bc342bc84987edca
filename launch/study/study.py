"""What a study hands to the frame: its config, its cohorts, its report. Plain data, no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import pandas as pd

  from launch.study.claims import Outcome
  from launch.study.tables import Table
  from model_lib.training.cohort import Cohort


@dataclasses.dataclass(frozen=True)
class DataRequest:
  """The data that all cohorts of a study read.

  Attributes:
    dataset: name known to `data.load`.
    splits: number of different train / validation / test splits.
    seed: of the splits and of the label permutations.
    eval_batch: examples per evaluation batch.
    window: tokens per example, for text.
  """

  dataset: str
  splits: int = 1
  seed: int = 0
  eval_batch: int = 512
  window: int = 128


@dataclasses.dataclass(frozen=True)
class Report:
  """What a study makes of its finished rows.

  Attributes:
    tables: in the order of printing.
    outcomes: one per claim, by id; none for a study without claims.
    figures: file stem -> function that draws and returns a matplotlib figure.
  """

  tables: Sequence[Table]
  outcomes: Mapping[str, Outcome] = dataclasses.field(default_factory=dict)
  figures: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
  """What the report may read.

  Attributes:
    config: the study's config.
    rows: results.csv as a DataFrame.
    metrics: function that reads metrics.jsonl into a DataFrame.
    dataset: the data set's full name, which every table and figure shows.
    notes: lines that every table must carry, such as 'mixed environment'.
    class_shares: share of each class among the labels; empty for text.
  """

  config: Any
  rows: pd.DataFrame
  metrics: Callable[[], pd.DataFrame]
  dataset: str
  notes: tuple[str, ...] = ()
  class_shares: tuple[float, ...] = ()


Cohorts = Generator[Sequence['Cohort'], 'pd.DataFrame', None]


@dataclasses.dataclass(frozen=True)
class Study:
  """One study.

  Attributes:
    name: of its module under experiments/.
    config: the frozen dataclass type of its config; it has the fields `engine`
      (EngineConfig) and `io` (IoConfig).
    presets: name -> {'field.sub': value}.
    data: config -> DataRequest.
    cohorts: config -> generator. It yields a list of cohorts and is sent their
      finished rows as a DataFrame, in the members' order, so that later cohorts
      may be computed from earlier rows and from nothing else.
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
  data: Callable[[Any], DataRequest]
  cohorts: Callable[[Any], Cohorts]
  report: Callable[[Run], Report]
  claims: Callable[[Any], Sequence[Any]] = lambda config: ()
  check: Callable[[Any], None] = lambda config: None
  extendable: tuple[str, ...] = ()
