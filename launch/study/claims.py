"""A paper's claims as data, their outcomes, and claims.json.

A study writes its claims down before the run: what the paper says and where, what is
measured here, the rule that decides, and the control that would catch a pass by accident.
After the run it hands in one `Outcome` per claim. A claim that fails is written as failed.
"""
from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from launch.study import atomic
from model_lib.errors import UserError

REPRODUCED = 'reproduced'
NOT_REPRODUCED = 'not reproduced'
NOT_TESTABLE = 'not testable'
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)
KINDS = ('estimate', 'check')

FIELDS = ('id', 'statement', 'source', 'paper_value', 'measure', 'rule', 'ours', 'interval', 'n',
          'verdict')


@dataclasses.dataclass(frozen=True)
class Claim:
  """One claim, fixed before the run.

  Attributes:
    id: short name, unique in the study.
    statement: what the paper says, in one sentence.
    source: where it says so (section, table, figure).
    paper_value: the paper's number; None when the paper gives none or it is unconfirmed.
    measure: what is computed here, with its unit.
    rule: when the claim counts as reproduced, and when as not testable.
    control: the negative control or null row that stands beside it.
    kind: 'estimate', a mean over runs with its interval; 'check', a number that comes out the
      same every time, which has neither interval nor n: the rule alone decides.
  """
  id: str
  statement: str
  source: str
  paper_value: float | None
  measure: str
  rule: str
  control: str
  kind: str = 'estimate'

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'claim {self.id!r}: kind is one of {", ".join(KINDS)}, not {self.kind!r}')
    for field in ('id', 'statement', 'source', 'measure', 'rule', 'control'):
      value = getattr(self, field)
      if not isinstance(value, str) or not value.strip():
        raise ValueError(f'claim {self.id!r}: {field} must be a text that says something')
    if self.paper_value is not None and not _is_finite_number(self.paper_value):
      raise ValueError(
          f'claim {self.id!r}: paper_value must be a finite number or None, '
          f'got {self.paper_value!r}')


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a study found for one claim.

  Attributes:
    verdict: one of `VERDICTS`.
    ours: the measured number; required for 'reproduced'. nan becomes None.
    interval: (low, high), 95 %, in the unit of `ours`; None when there is none.
    n: number of runs (or pairs of runs) behind `ours`; None for a check, which has none.
    note: why; required for 'not testable'.
  """
  verdict: str
  ours: float | None = None
  interval: tuple[float, float] | None = None
  n: int | None = 0
  note: str = ''

  def __post_init__(self):
    if self.verdict not in VERDICTS:
      raise ValueError(f'verdict must be one of {", ".join(VERDICTS)}; got {self.verdict!r}')
    if self.ours is not None:
      object.__setattr__(self, 'ours', _finite_or_none('ours', self.ours))
    if self.interval is not None:
      object.__setattr__(self, 'interval', _limits(self.interval))
    if self.n is not None:
      if isinstance(self.n, bool) or int(self.n) != self.n or self.n < 0:
        raise ValueError(f'n must be a count, got {self.n!r}')
      object.__setattr__(self, 'n', int(self.n))
    elif self.interval is not None:
      raise ValueError('a check, which has no n, has no interval')
    if self.verdict == NOT_TESTABLE and not self.note.strip():
      raise ValueError('a claim that is not testable needs a note that says why')
    if self.verdict == REPRODUCED and (self.ours is None or self.n == 0):
      raise ValueError('a reproduced claim needs a finite number of ours, and n of at least 1')


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A claim together with its outcome."""
  claim: Claim
  outcome: Outcome

  def record(self) -> dict[str, Any]:
    """The entry of claims.json. `rule` carries the control, and the note as its reason.

    A check has one more field, 'kind'.
    """
    claim, outcome = self.claim, self.outcome
    rule = f'{_sentence(claim.rule)} Control: {_sentence(claim.control)}'
    if outcome.note:
      rule += f' {outcome.verdict.capitalize()}: {_sentence(outcome.note)}'
    return {
        'id': claim.id,
        'statement': claim.statement,
        'source': claim.source,
        'paper_value': claim.paper_value,
        'measure': claim.measure,
        'rule': rule,
        'ours': outcome.ours,
        'interval': None if outcome.interval is None else list(outcome.interval),
        'n': outcome.n,
        'verdict': outcome.verdict,
        **({'kind': claim.kind} if claim.kind == 'check' else {}),
    }


def evaluate(claims: Iterable[Claim], measures: Mapping[str, Outcome]) -> list[Verdict]:
  """Joins the claims with their outcomes, in the order of the claims.

  Args:
    claims: the study's claims.
    measures: claim id -> Outcome.

  Raises:
    ValueError: for two claims of one id, a claim without an outcome, an outcome without a claim,
      a check with an n, or an estimate without.
  """
  claims = list(claims)
  ids = [claim.id for claim in claims]
  twice = sorted({i for i in ids if ids.count(i) > 1})
  if twice:
    raise ValueError(f'more than one claim is called {", ".join(twice)}')
  missing = [i for i in ids if i not in measures]
  if missing:
    raise ValueError(f'no outcome was given for the claims {", ".join(missing)}')
  unknown = sorted(set(measures) - set(ids))
  if unknown:
    raise ValueError(f'outcomes were given for unknown claims {", ".join(unknown)}')
  for claim in claims:
    if (claim.kind == 'check') != (measures[claim.id].n is None):
      raise ValueError(f'{claim.id} is of the kind {claim.kind}: only a check has n=None')
  return [Verdict(claim, measures[claim.id]) for claim in claims]


def write_claims(path: str | os.PathLike, verdicts: Sequence[Verdict]) -> None:
  """Writes claims.json in one step, so that a reader never sees half of it."""
  atomic.write_json(Path(path), [verdict.record() for verdict in verdicts])


def read_claims(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads claims.json.

  Raises:
    UserError: when the file cannot be read or is not such a list.
  """
  path = Path(path)
  records = atomic.read_json(path)
  if not isinstance(records, list):
    raise UserError(f'{path}: claims are a list, found {type(records).__name__}')
  for number, record in enumerate(records):
    missing = [f for f in FIELDS if f not in record] if isinstance(record, dict) else FIELDS
    if missing:
      raise UserError(f'{path}: claim {number} lacks {", ".join(missing)}')
    if record['verdict'] not in VERDICTS:
      raise UserError(
          f'{path}: claim {record["id"]} has the verdict {record["verdict"]!r}; '
          f'a verdict is one of {", ".join(VERDICTS)}')
  return records


def _is_finite_number(value: Any) -> bool:
  return (isinstance(value, (int, float)) and not isinstance(value, bool)
          and math.isfinite(value))


def _finite_or_none(name: str, value: Any) -> float | None:
  try:
    value = float(value)
  except (TypeError, ValueError):
    raise ValueError(f'{name} must be a number or None, got {value!r}') from None
  return value if math.isfinite(value) else None


def _limits(interval: Any) -> tuple[float, float] | None:
  """(low, high); None when a limit is not finite (one run has no interval)."""
  try:
    low, high = (float(limit) for limit in interval)
  except (TypeError, ValueError):
    raise ValueError(f'an interval is a pair [low, high] or None, got {interval!r}') from None
  if not (math.isfinite(low) and math.isfinite(high)):
    return None
  if low > high:
    raise ValueError(f'an interval is [low, high], got [{low}, {high}]')
  return low, high


def _sentence(text: str) -> str:
  text = text.strip()
  return text if text.endswith('.') else text + '.'
