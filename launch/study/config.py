"""Typed, frozen configuration trees: build, check, override, compare.

A study's config is a frozen dataclass. Its fields are leaves (`str`, `int`, `float`, `bool`,
`tuple[str, ...]`, `tuple[int, ...]`, `tuple[float, ...]`) or further frozen dataclasses:

    @dataclasses.dataclass(frozen=True)
    class Training:
      steps: int = field(500, 'Updates per run.', low=1)

    @dataclasses.dataclass(frozen=True)
    class Config:
      training: Training = Training()
      engine: EngineConfig = EngineConfig()
      io: IoConfig = IoConfig()

Fields are named by their dotted path, `training.steps`. Everything that is wrong with a value is a
`UserError` of one line which names that path. A dataclass may check what concerns several of its
fields in `__post_init__` by raising `ValueError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from model_lib.errors import UserError

T = TypeVar('T')

_SCALARS = {str: 'a string', int: 'an integer', float: 'a number', bool: 'true or false'}
_LISTS = {
    tuple[str, ...]: (str, 'a list of strings'),
    tuple[int, ...]: (int, 'a list of integers'),
    tuple[float, ...]: (float, 'a list of numbers'),
}


def field(
    default: Any,
    help: str = '',
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
  """A dataclass field with a help text and the values it may take.

  Args:
    default: the value when nothing else is said. An empty tuple as default allows an empty list.
    help: one sentence with the unit, shown by `--help`.
    choices: the allowed values; of each element, for a tuple.
    low: smallest allowed value, inclusive; of each element, for a tuple.
    high: largest allowed value, inclusive; of each element, for a tuple.
  """
  metadata = {'help': help, 'choices': choices, 'low': low, 'high': high}
  return dataclasses.field(
      default=default, metadata={k: v for k, v in metadata.items() if v is not None})


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """How the members of a study are computed. Part of the bits: fixed when a run begins."""

  batching: str = field(
      'auto', 'Members one after the other in one program (map) or side by side (vmap); auto takes '
      'map on a CPU and vmap elsewhere.', choices=('auto', 'map', 'vmap'))
  chunk: int = field(
      0, 'Members per compiled program, the last chunk padded; 0 takes as many as fit in memory.',
      low=0)
  steps_per_call: int = field(
      0, 'Training steps per compiled call; 0 measures once for calls of at most about 2 s.', low=0)
  memory_limit_mib: int = field(
      0, 'Memory that one program may take, in MiB; 0 takes a share of what the device has.', low=0)
  feed: str = field(
      'auto', 'Where batches come from: all examples on the device (device) or read ahead from '
      'disk (stream); auto decides by size.', choices=('auto', 'device', 'stream'))
  log_every: int = field(25, 'Steps between two recorded training metrics.', low=1)


@dataclasses.dataclass(frozen=True)
class IoConfig:
  """What is written and how often. No part of the results: may change on every start."""

  checkpoint_interval_s: float = field(
      30.0, 'Seconds between two checkpoints; 0 saves after every call.', low=0)
  tensorboard: bool = field(True, 'Write TensorBoard events next to metrics.jsonl.')
  figures: bool = field(True, 'Draw the figures when the study is done.')
  data_dir: str = field(
      '', 'Directory of the prepared datasets; empty takes $ACTNORM_DATA_DIR, else '
      '~/.cache/actnorm-lab/data.')
  progress_interval_s: float = field(
      10.0, 'Seconds between two progress lines in a log; a terminal shows a bar.', low=0)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One settable field: its dotted path, type, default, and what it may be."""

  path: str
  type: Any
  default: Any
  metadata: Mapping[str, Any]

  @property
  def is_list(self) -> bool:
    return self.type in _LISTS

  @property
  def expected(self) -> str:
    """The type in words, e.g. 'a list of integers'."""
    return _LISTS[self.type][1] if self.is_list else _SCALARS[self.type]


@functools.cache
def _types(config_type: type) -> dict[str, Any]:
  return typing.get_type_hints(config_type)


def _default(item: dataclasses.Field) -> Any:
  if item.default is not dataclasses.MISSING:
    return item.default
  if item.default_factory is not dataclasses.MISSING:
    return item.default_factory()
  raise TypeError(f'config field {item.name!r} has no default')


@functools.cache
def leaves(config_type: type, prefix: str = '') -> tuple[Leaf, ...]:
  """All settable fields of a config type, in the order of the source."""
  found: list[Leaf] = []
  for item in dataclasses.fields(config_type):
    path, kind = prefix + item.name, _types(config_type)[item.name]
    if dataclasses.is_dataclass(kind):
      found.extend(leaves(kind, path + '.'))
    elif kind in _SCALARS or kind in _LISTS:
      found.append(Leaf(path, kind, _default(item), item.metadata))
    else:
      raise TypeError(f'config field {path!r} has type {kind}, which no flag can set')
  return tuple(found)


def field_names(config_type: type) -> tuple[str, ...]:
  """Dotted paths of all settable fields, e.g. ('training.steps', 'engine.batching', ...)."""
  return tuple(leaf.path for leaf in leaves(config_type))


def nearest_fields(path: str, names: Sequence[str]) -> str:
  """'; nearest: a.b, c.d' for a mistyped dotted path, or '' when nothing is near.

  A path is near by its whole or by its last part, so that `chunk` finds `engine.chunk`.
  """
  def likeness(name: str) -> float:
    whole = difflib.SequenceMatcher(None, path, name).ratio()
    last = difflib.SequenceMatcher(None, path.split('.')[-1], name.split('.')[-1]).ratio()
    return max(whole, last)

  near = sorted(((likeness(name), name) for name in names), key=lambda pair: -pair[0])
  close = [name for ratio, name in near[:3] if ratio >= 0.6]
  return f'; nearest: {", ".join(close)}' if close else ''


def unknown_field(path: str, names: Sequence[str]) -> str:
  """What is wrong with a path that is none of `names`: half of a line, without the path."""
  members = [name for name in names if name.startswith(path + '.')]
  if members:
    return f'that is a group of fields; set one of {", ".join(members)}'
  return f'no such field{nearest_fields(path, names)}'


def _shown(value: Any) -> str:
  try:
    return json.dumps(value)
  except (TypeError, ValueError):
    return repr(value)


def _checked_scalar(path: str, value: Any, kind: type, metadata: Mapping[str, Any]) -> Any:
  """`value` as `kind`, or a UserError that names the field and what it may be."""
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise UserError(f'config.{path}: expected {_SCALARS[kind]}, got {_shown(value)}')
  if kind is float and not math.isfinite(value):
    raise UserError(f'config.{path}: expected a finite number, got {value}')
  choices, low, high = (metadata.get(key) for key in ('choices', 'low', 'high'))
  if choices is not None and value not in choices:
    allowed = ', '.join(str(choice) for choice in choices)
    raise UserError(f'config.{path}: {_shown(value)} is not one of {allowed}')
  if (low is not None and value < low) or (high is not None and value > high):
    if high is None:
      allowed = f'at least {low}'
    elif low is None:
      allowed = f'at most {high}'
    else:
      allowed = f'between {low} and {high}'
    raise UserError(f'config.{path}: {value} is out of range; it must be {allowed}')
  return value


def check(leaf: Leaf, value: Any) -> Any:
  """`value` in the type of the field: int becomes float, a list a tuple.

  Raises:
    UserError: wrong type, not one of the choices, out of range, not finite, or an empty list where
      the default is not empty; the line names the field and what is allowed.
  """
  if not leaf.is_list:
    return _checked_scalar(leaf.path, value, leaf.type, leaf.metadata)
  if not isinstance(value, (list, tuple)):
    raise UserError(f'config.{leaf.path}: expected {leaf.expected}, got {_shown(value)}')
  if not value and leaf.default:
    raise UserError(f'config.{leaf.path}: expected at least one value, got an empty list')
  kind = _LISTS[leaf.type][0]
  return tuple(_checked_scalar(leaf.path, item, kind, leaf.metadata) for item in value)


def _build(config_type: type, flat: Mapping[str, Any], prefix: str = '') -> Any:
  values = {}
  for item in dataclasses.fields(config_type):
    path, kind = prefix + item.name, _types(config_type)[item.name]
    values[item.name] = (
        _build(kind, flat, path + '.') if dataclasses.is_dataclass(kind) else flat[path])
  try:
    return config_type(**values)
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f'config{"." + prefix[:-1] if prefix else ""}: {error}') from error


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} as {'a.b': 1}."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(_flat(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def to_dict(config: Any) -> dict[str, Any]:
  """The config as nested dicts and lists, equal to what comes back from JSON."""
  values = {}
  for item in dataclasses.fields(config):
    value = getattr(config, item.name)
    if dataclasses.is_dataclass(value):
      value = to_dict(value)
    elif isinstance(value, tuple):
      value = list(value)
    values[item.name] = value
  return values


def apply_preset(defaults: T, values: Mapping[str, Any]) -> T:
  """A checked copy of `defaults` with the fields in `values` ({'a.b': value}) replaced.

  Raises:
    UserError: an unknown field (with the nearest names), or a value its field cannot take.
  """
  by_path = {leaf.path: leaf for leaf in leaves(type(defaults))}
  flat = _flat(to_dict(defaults))
  for path, value in values.items():
    if path not in by_path:
      raise UserError(f'config.{path}: {unknown_field(path, tuple(by_path))}')
    flat[path] = value
  checked = {path: check(leaf, flat[path]) for path, leaf in by_path.items()}
  return _build(type(defaults), checked)


def from_dict(config_type: type[T], values: Mapping[str, Any]) -> T:
  """The inverse of `to_dict`, checked; a field that is not in `values` keeps its default.

  Raises:
    UserError: an unknown field (with the nearest names), or a value its field cannot take.
  """
  return apply_preset(config_type(), _flat(values))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lines 'a.b: old -> new', one for every field in which two config dicts differ."""
  old_flat, new_flat = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
  lines = []
  for path in dict.fromkeys([*old_flat, *new_flat]):
    if path not in old_flat:
      lines.append(f'{path}: (absent) -> {_shown(new_flat[path])}')
    elif path not in new_flat:
      lines.append(f'{path}: {_shown(old_flat[path])} -> (absent)')
    elif old_flat[path] != new_flat[path]:
      lines.append(f'{path}: {_shown(old_flat[path])} -> {_shown(new_flat[path])}')
  return lines
