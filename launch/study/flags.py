"""The command line of a study: --workdir, --preset, --config.field.sub=value and a few switches.

The order is defaults, preset, overrides. `ml_collections` parses the overrides into a mutable copy;
the result is checked and frozen here. Nothing global is touched, so `parse` may be called again.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_dict, config_flags

from launch.study import config as config_lib
from model_lib import spec
from model_lib.errors import UserError

_HELP = {'-h', '-help', '--help', '--helpfull', '--helpshort'}
_OVERRIDE = re.compile(r'^--?(?:no)?config\.([^=]*)(=.*)?$', re.DOTALL)
_PAIRS = {'(': ')', '[': ']'}


@dataclasses.dataclass(frozen=True)
class Parsed:
  """What the command line asks for.

  Attributes:
    workdir: the directory of the run; None is possible only with `list_runs` or `dry_run`.
    preset: name of the preset in use.
    config: the frozen config: defaults, preset, overrides.
    extend: new seeds or arms may be added to an old workdir.
    list_runs: print the runs and stop.
    dry_run: print the resolved config and its cost and stop.
    preset_given: whether --preset stood on the command line.
    overrides: dotted paths of the config fields set on the command line.
  """

  workdir: str | None
  preset: str
  config: Any
  extend: bool
  list_runs: bool
  dry_run: bool
  preset_given: bool
  overrides: tuple[str, ...]


def split_list(text: str) -> tuple[str, ...]:
  """Splits at the commas outside of all brackets: 'relu, ash(k=1, axes=last)' has two items.

  Brackets around the whole, quotes around an item and one comma at the end are dropped.

  Raises:
    ValueError: brackets that do not match, or an empty item.
  """
  text = text.strip()
  items, expected, start, outer = [], [], 0, bool(text) and text[0] in _PAIRS
  for i, char in enumerate(text):
    if char in _PAIRS:
      expected.append(_PAIRS[char])
    elif char in _PAIRS.values():
      if not expected or expected.pop() != char:
        raise ValueError(f'{char!r} at {i} closes nothing')
      outer = outer and (bool(expected) or i == len(text) - 1)
    elif char == ',' and not expected:
      items.append(text[start:i])
      start = i + 1
      outer = False
  if expected:
    raise ValueError(f'{expected[-1]!r} is missing')
  if outer:
    return split_list(text[1:-1])
  items.append(text[start:])
  items = [_unquoted(item.strip()) for item in items]
  if items[-1] == '':
    items.pop()
  if '' in items:
    raise ValueError('an item is empty')
  return tuple(items)


def _unquoted(item: str) -> str:
  return item[1:-1] if len(item) > 1 and item[0] == item[-1] and item[0] in '\'"' else item


def parse(
    argv: Sequence[str],
    study_name: str,
    config_type: type,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    default_preset: str = 'cpu',
) -> Parsed:
  """Reads the command line of a study.

  Args:
    argv: the program name and its arguments, as in sys.argv.
    study_name: e.g. 'activation_search'; used in messages.
    config_type: the study's config, a frozen dataclass tree in which every field has a default. The
      docstring of its module is what --help shows.
    presets: for every preset the fields in which it differs from the defaults, {'a.b': value}.
    default_preset: the preset that is used when none is named.

  Raises:
    UserError: whatever is wrong, in one line. Nothing has been written.
    SystemExit: code 0, after printing the help that was asked for.
  """
  defaults = config_type()
  if _HELP.intersection(argv[1:]):
    preset = _named_preset(argv, default_preset)
    _check_preset(preset, study_name, presets)
    _print_help(study_name, preset, config_lib.apply_preset(defaults, presets[preset]), presets,
                default_preset)
    raise SystemExit(0)

  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'Directory of the run.', flag_values=values)
  flags.DEFINE_string('preset', default_preset, 'Preset.', flag_values=values)
  flags.DEFINE_bool('extend', False, 'Add seeds or arms.', flag_values=values)
  flags.DEFINE_bool('list', False, 'Print the runs.', flag_values=values)
  flags.DEFINE_bool('dry_run', False, 'Print the config.', flag_values=values)
  try:
    argv = values.read_flags_from_files(list(argv), force_gnu=False)
  except flags.Error as error:
    raise UserError(_one_line(error)) from error
  leaves = {leaf.path: leaf for leaf in config_lib.leaves(config_type)}
  _check_override_names(argv, leaves)
  try:
    config_flags.DEFINE_config_dict(
        'config', _mutable(defaults, leaves), flag_values=values, sys_argv=argv)
    rest = values(argv)
  except flags.UnrecognizedFlagError as error:
    _unknown_flag(error.flagname, values, leaves)
  except flags.IllegalFlagValueError as error:
    raise UserError(_illegal(error, leaves)) from error
  except flags.Error as error:
    raise UserError(_one_line(error)) from error
  if len(rest) > 1:
    raise UserError(f'unexpected argument {rest[1]!r}; flags are written --name=value')

  preset = values['preset'].value
  _check_preset(preset, study_name, presets)
  given = {
      path: _from_text(leaves[path], value)
      for path, value in values['config'].override_values.items()
  }
  config = config_lib.apply_preset(config_lib.apply_preset(defaults, presets[preset]), given)
  return Parsed(
      workdir=_workdir(values),
      preset=preset,
      config=config,
      extend=values['extend'].value,
      list_runs=values['list'].value,
      dry_run=values['dry_run'].value,
      preset_given=bool(values['preset'].present),
      overrides=tuple(given),
  )


def _named_preset(argv: Sequence[str], default: str) -> str:
  """The preset on a command line that asks for help, whatever else is wrong with it."""
  found = default
  for arg, after in zip(argv, [*argv[1:], default]):
    name, separator, value = arg.partition('=')
    if name in ('--preset', '-preset'):
      found = value if separator else after
  return found


def _check_preset(preset: str, study_name: str, presets: Mapping[str, Mapping[str, Any]]) -> None:
  if preset not in presets:
    raise UserError(
        f'--preset={preset}: {study_name} has the presets {", ".join(presets)}'
        f'{spec.nearest(preset, presets)}')


def _mutable(config: Any, leaves: Mapping[str, config_lib.Leaf]) -> config_dict.ConfigDict:
  """The copy which ml_collections writes into; a list is a string there, split by us later."""
  mutable = config_dict.ConfigDict(config_lib.to_dict(config))
  with mutable.ignore_type():
    mutable.update_from_flattened_dict({path: '' for path, leaf in leaves.items() if leaf.is_list})
  return mutable


def _from_text(leaf: config_lib.Leaf, value: Any) -> Any:
  """The value of a flag: already typed, but for lists, which are still text."""
  if not leaf.is_list:
    return value
  try:
    items = split_list(value)
  except ValueError as error:
    raise UserError(f'--config.{leaf.path}={value}: {error}') from error
  convert = {tuple[int, ...]: int, tuple[float, ...]: float}.get(leaf.type, str)
  try:
    return tuple(convert(item) for item in items)
  except ValueError as error:
    raise UserError(f'--config.{leaf.path}={value}: expected {leaf.expected}') from error


def _workdir(values: flags.FlagValues) -> str | None:
  workdir = values['workdir'].value
  if workdir is None and (values['list'].value or values['dry_run'].value):
    return None
  if workdir is None:
    raise UserError('--workdir=DIR is missing: the directory in which the run keeps its files')
  if not workdir.strip() or workdir.startswith('-'):
    raise UserError(f'--workdir={workdir}: that is no directory name')
  return workdir


def _check_override_names(argv: Sequence[str], leaves: Mapping[str, config_lib.Leaf]) -> None:
  """ml_collections answers an unknown field with a traceback, so they are looked up before it."""
  for arg in argv[1:]:
    if re.match(r'^--?(no)?config(=|$)', arg):
      raise UserError(
          f'{arg}: --config takes no value of its own; write --config.FIELD=VALUE, for example '
          f'--config.{next(iter(leaves))}=...')
    match = _OVERRIDE.match(arg)
    if match and match[1] not in leaves:
      problem = config_lib.unknown_field(match[1], tuple(leaves))
      raise UserError(f'--config.{match[1]}: {problem}; --help lists all fields')


def _unknown_flag(
    name: str, values: flags.FlagValues, leaves: Mapping[str, config_lib.Leaf]) -> NoReturn:
  known = [flag for flag in values if flag.split('.')[0] != 'config']
  near = [f'--{flag}' for flag in difflib.get_close_matches(name, known, 2)]
  fields = config_lib.nearest_fields(name, tuple(leaves)).removeprefix('; nearest: ')
  near += [f'--config.{path}' for path in fields.split(', ') if path]
  raise UserError(
      f'unknown flag --{name}'
      + (f'; nearest: {", ".join(near[:3])}' if near else '; --help lists all flags'))


def _illegal(error: flags.Error, leaves: Mapping[str, config_lib.Leaf]) -> str:
  """'--config.a.b=x: expected an integer', from absl's message, in the words of its parser."""
  text = _one_line(error)
  match = re.match(r'flag --((?:config\.)?([^=]*))=(.*?): ', text)
  if match and match[1].startswith('config.') and match[2] in leaves:
    return f'--{match[1]}={match[3]}: expected {leaves[match[2]].expected}'
  if match and text.endswith(')'):  # absl's own words for a switch are a printed tuple
    return f'--{match[1]}={match[3]}: expected true or false'
  return text.removeprefix('flag ')


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split()).removeprefix('ERROR:: ')


def _print_help(
    study_name: str,
    preset: str,
    config: Any,
    presets: Mapping[str, Mapping[str, Any]],
    default_preset: str,
) -> None:
  """Prints the flags, those of the config with the values that they have in the preset."""
  module = sys.modules.get(type(config).__module__)
  lines = [inspect.cleandoc(module.__doc__ or '') if module else '', '',
           f'flags of {study_name}, with the values of --preset={preset}:']

  def entry(flag: str, text: str) -> None:
    lines.append(f'  {flag}')
    lines.extend(textwrap.wrap(text, 92, initial_indent=' ' * 6, subsequent_indent=' ' * 6))

  entry('--workdir=DIR', 'Directory in which the run keeps its files; the same command resumes it.')
  entry(f'--preset={"|".join(presets)}', f'Size of the study (default: {default_preset}).')
  entry('--list', 'Print the runs of the preset with their number, parameters and cost.')
  entry('--dry_run', 'Print the resolved config with the estimated memory and time; write nothing.')
  entry('--extend', 'Add the new seeds or arms to an old workdir; its rows keep their bits.')
  for leaf in config_lib.leaves(type(config)):
    value = functools.reduce(getattr, leaf.path.split('.'), config)
    shown = ','.join(map(str, value)) if leaf.is_list else value
    text = leaf.metadata.get('help', '')
    if 'choices' in leaf.metadata:
      text += f' One of {", ".join(map(str, leaf.metadata["choices"]))}.'
    entry(f'--config.{leaf.path}={shown}', text.strip())
  print('\n'.join(lines).strip())
