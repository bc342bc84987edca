"""TensorBoard event files from metrics.jsonl, written without TensorFlow.

An event file is a row of records, each a serialized `Event`: length (uint64), masked CRC-32C
of the length, the bytes, masked CRC-32C of the bytes. The messages are TensorBoard's own; the
framing is done here because its writer sums the CRC byte by byte in Python (0.15 us a byte,
which for a population costs more than everything else together).

Each cohort has a directory of its own. Of its members the first `members` are drawn one by one
(`loss/train/member_0012`); `loss/train/median`, `q25` and `q75` are over all of them.
"""
from __future__ import annotations

import functools
import itertools
import json
import math
import os
from pathlib import Path
import struct
import time
from typing import Any, Iterator, Mapping
import urllib.parse

import numpy as np

MEMBERS = 64
_PREFIX = 'events.out.tfevents.'
_SUFFIX = '.actnorm'
_BLOCK = 1024
_KEYS = ('run', 'member', 'split', 'step')
_QUARTILES = (('q25', 0.25), ('median', 0.5), ('q75', 0.75))
_serial = itertools.count()


class EventWriter:
  """An event file in `directory`, which is made if it is missing.

  TensorBoard reads the files of a directory in the order of their names, which begin with the
  time: a resumed run just opens another one.
  """

  def __init__(self, directory: str | os.PathLike):
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    now = time.time()
    name = f'{_PREFIX}{int(now):010d}.{next(_serial):06d}.{os.getpid()}{_SUFFIX}'
    self._file = open(directory / name, 'xb')
    event = _messages().Event(wall_time=now, file_version='brain.Event:2')
    self._file.write(_record(event.SerializeToString()))
    self._file.flush()

  def add(self, step: int, values: Mapping[str, float], wall_time: float | None = None) -> None:
    """Writes one event that holds all values of a step.

    Args:
      step: the training step.
      values: tag -> number; stored as float32.
      wall_time: seconds since the epoch; now by default.
    """
    event = _messages().Event(step=step, wall_time=time.time() if wall_time is None else wall_time)
    add = event.summary.value.add
    for tag, value in values.items():
      add(tag=tag, simple_value=value)
    self._file.write(_record(event.SerializeToString()))

  def flush(self) -> None:
    """Hands what was added to the operating system; TensorBoard then sees it."""
    self._file.flush()

  def close(self) -> None:
    """Flushes and closes; may be called again."""
    self._file.close()

  def __enter__(self) -> EventWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def cohort_directory(directory: str | os.PathLike, run: str) -> Path:
  """Where the events of a cohort lie; different names have different directories."""
  name = urllib.parse.quote(run, safe=' (),=+@')
  if not name.strip('.'):  # '', '.' and '..' would be other directories
    name = '%2E' * len(name) or '%'
  return Path(directory) / name


def population_values(metrics: Mapping[str, Mapping[int, float]], split: str,
                      members: int = MEMBERS) -> dict[str, float]:
  """The tags and values of one step of a population.

  Args:
    metrics: metric name -> {member number: value}. A member may lack a metric.
    split: 'train', 'val' or 'test'.
    members: how many members get a tag of their own: those with the lowest numbers.

  Returns:
    tag -> value. The quartiles (linear between order statistics) are over the finite values of
    all members; they are left out when there is none.
  """
  values: dict[str, float] = {}
  for metric, by_member in metrics.items():
    for member in sorted(by_member)[:members]:
      values[f'{metric}/{split}/member_{member:04d}'] = by_member[member]
    finite = sorted(v for v in by_member.values() if math.isfinite(v))
    for name, share in _QUARTILES if finite else ():
      values[f'{metric}/{split}/{name}'] = _quantile(finite, share)
  return values


def replay(metrics_path: str | os.PathLike, directory: str | os.PathLike,
           members: int = MEMBERS) -> int:
  """Writes the events of a whole metrics.jsonl again, in place of those that are there.

  Event files of this project below `directory` are removed first, others are left alone. The
  file has no times, so all events carry the time of its last change. A last line without its
  newline (a write that was cut off) is left out.

  Returns:
    The number of events written.
  """
  metrics_path, directory = Path(metrics_path), Path(directory)
  for old in sorted(directory.glob(f'**/{_PREFIX}*{_SUFFIX}')):
    old.unlink()
  if not metrics_path.exists():
    return 0
  wall_time = metrics_path.stat().st_mtime
  writers: dict[str, EventWriter] = {}
  count = 0
  try:
    with open(metrics_path, encoding='utf-8') as file:
      for (run, step), splits in _steps(file):
        if run not in writers:
          writers[run] = EventWriter(cohort_directory(directory, run))
        values: dict[str, float] = {}
        for split, metrics in splits.items():
          values.update(population_values(metrics, split, members))
        writers[run].add(step, values, wall_time)
        count += 1
  finally:
    for writer in writers.values():
      writer.close()
  return count


def _steps(lines: Any) -> Iterator[tuple[tuple[str, int], dict[str, dict[str, dict[int, float]]]]]:
  """Groups neighbouring lines of one run and step: (run, step), split -> metric -> member."""
  parsed = (json.loads(line) for line in lines if line.endswith('\n'))
  for key, group in itertools.groupby(parsed, lambda line: (line['run'], line['step'])):
    splits: dict[str, dict[str, dict[int, float]]] = {}
    for line in group:
      metrics = splits.setdefault(line['split'], {})
      member = line['member']
      for name, value in line.items():
        if name not in _KEYS:
          # JSON has no nan: a diverged member's metric is null there.
          metrics.setdefault(name, {})[member] = math.nan if value is None else value
    yield key, splits


def _quantile(ordered: list[float], share: float) -> float:
  """Linear between order statistics, numpy's default method; far cheaper on short lists."""
  place = share * (len(ordered) - 1)
  low = int(place)
  high = min(low + 1, len(ordered) - 1)
  return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@functools.cache
def _messages() -> Any:
  # Imported at the first event: a run without TensorBoard does not pay for protobuf.
  from tensorboard.compat.proto import event_pb2  # pylint: disable=g-import-not-at-top
  return event_pb2


def _record(data: bytes) -> bytes:
  length = struct.pack('<Q', len(data))
  return b''.join((length, struct.pack('<I', _masked(_crc32c(length))),
                   data, struct.pack('<I', _masked(_crc32c(data)))))


def _masked(crc: int) -> int:
  """The mask of the record format: a CRC of bytes that hold CRCs would be weak."""
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc_tables() -> np.ndarray:
  """uint32 [distance, byte]: what a byte adds to the register, `distance` bytes before the end."""
  first = np.arange(256, dtype=np.uint32)
  for _ in range(8):  # 0x82F63B78: the Castagnoli polynomial, lowest bit first
    first = np.where(first & 1, (first >> 1) ^ np.uint32(0x82F63B78), first >> 1)
  tables = np.empty((_BLOCK, 256), np.uint32)
  tables[0] = first
  for i in range(1, _BLOCK):
    tables[i] = (tables[i - 1] >> 8) ^ first[tables[i - 1] & 0xFF]
  return tables


def _crc32c(data: bytes) -> int:
  """CRC-32C, a block at a time: the sum is linear, so a block's bytes add up by exclusive or."""
  tables = _crc_tables()
  register = 0xFFFFFFFF
  for start in range(0, len(data), _BLOCK):
    block = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - start), start).copy()
    head = min(4, block.size)
    block[:head] ^= np.frombuffer(struct.pack('<I', register), np.uint8)[:head]
    added = np.bitwise_xor.reduce(tables[np.arange(block.size - 1, -1, -1), block])
    register = int(added) ^ (register >> (8 * head))
  return register ^ 0xFFFFFFFF
