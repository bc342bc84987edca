"""Overrides: another activation, norm or placement at some places of a model.

  'blocks.0-3.mlp: relu^2'    'blocks.*.norm: rms'    'blocks.1.mlp.norm: post:layer'

  override := pattern ':' value
  pattern  := step {'.' step}            step := name ['.' numbers]
  numbers  := '*' | number | number '-' number

A pattern names steps of a site's path in their order and may leave out steps; a step without
numbers stands for all of them. So 'blocks.0-3.mlp' is everything in the mlp of the first four
blocks, and 'norm' every norm of the model. The value says what is meant: an activation replaces
activations, a norm replaces norms where they stand, and PLACEMENT:NORM replaces both. Of two
overrides of one site the later one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import re

from model_lib import activations
from model_lib import spec as spec_lib
from model_lib.errors import UserError
from model_lib.models import swept
from model_lib.models.site import ACTIVATION, NORM, PLACEMENT, Site, summary
from model_lib.normalization import block, get_norm
from model_lib.normalization import registry as norms

_STEP = re.compile(r'([a-z_]+)(?:\.(\*|\d+(?:-\d+)?))?(?:\.|$)')
_MAKERS = ('switch', 'glu_of')


@dataclasses.dataclass(frozen=True)
class _Step:
  """A name with the range of numbers that may follow it; None where any may, or none."""

  name: str
  numbers: tuple[int, int] | None


def resolved(model) -> tuple[Site, ...]:
  """The sites of a model with its overrides in place.

  Raises:
    UserError: as `apply`, or the model has no sites.
  """
  if not hasattr(model, 'sites'):
    raise UserError(f'{type(model).__name__} has no sites: its activation and norms are set by its '
                    'own attributes, and it takes no candidate and no overrides')
  return apply(model.sites(), model.overrides)


def specs(model) -> dict[str, str]:
  """What stands where: the spec of each site of the model, by path."""
  return {site.path: site.spec for site in resolved(model)}


def ends(norm: str, parametrization: str, specs: Mapping[str, str]) -> str:
  """The placements `norm` with the norms that stand at the sites embed.norm and final.norm."""
  spec = block(norm, parametrization)
  found = {name: get_norm(specs[f'{name}.norm']) for name in ('embed', 'final')
           if f'{name}.norm' in specs}
  return dataclasses.replace(spec, **found).spec


def apply(sites: Sequence[Site], overrides: Sequence[str]) -> tuple[Site, ...]:
  """The sites with the specs that the overrides put there; their fit is not checked here.

  Raises:
    UserError: an override that cannot be read, an unknown path or value, a value that fits no
      site of its pattern, or one that could mean an activation and a norm.
  """
  sites = list(sites)
  for text in overrides:
    pattern, steps, value = _read(text)
    kinds = _kinds(text, value)
    found = _find(text, pattern, steps, sites)
    meant = [i for i in found if sites[i].kind in kinds]
    if not meant:
      raise UserError(f'override {text!r}: {value!r} is {_what(kinds)}, and there is none at '
                      f'{pattern!r}; there stand: {summary([sites[i] for i in found])}')
    if len({sites[i].kind == ACTIVATION for i in meant}) > 1:
      raise UserError(f'override {text!r}: {value!r} is an activation and a norm; write '
                      f'\'{pattern}.activation: {value}\' or \'{pattern}.norm: {value}\'')
    for i in meant:
      sites[i] = dataclasses.replace(sites[i], spec=_placed(sites[i], value), changed=True)
  return tuple(sites)


def _read(text: str) -> tuple[str, list[_Step], str]:
  pattern, colon, value = text.partition(':')
  pattern, value = pattern.strip(), value.strip()
  if not (colon and pattern and value):
    raise UserError(f'override {text!r}: write PATH: SPEC, as in \'blocks.0-3.mlp: relu^2\'')
  steps, at = [], 0
  while at < len(pattern):
    match = _STEP.match(pattern, at)
    if match is None or (match.end() == len(pattern) and pattern.endswith('.')):
      raise UserError(f'override {text!r}: {pattern[at:]!r} is no path; write names with dots, '
                      'each with a number, a range or * behind it, as in blocks.0-3.mlp')
    low, _, high = (match[2] or '*').partition('-')
    numbers = None if low == '*' else (int(low), int(high or low))
    if numbers and numbers[0] > numbers[1]:
      raise UserError(f'override {text!r}: the range {match[2]} is empty')
    steps.append(_Step(match[1], numbers))
    at = match.end()
  return pattern, steps, value


def _kinds(text: str, value: str) -> set[str]:
  """The kinds of sites that the value can stand at."""
  head, colon, _ = value.partition(':')
  # A colon inside a norm's settings is no placement's.
  if colon and head.count('(') == head.count(')'):
    return {PLACEMENT}
  name = spec_lib.parse(value).name.partition('@')[0]
  known_norms = {*norms.names(), *norms.ALIASES}
  functions = {*activations.names(), *activations.aliases(), *_MAKERS, *swept.names()}
  kinds = ({ACTIVATION} if name in functions else set()) | (
    {NORM, PLACEMENT} if name in known_norms else set())
  if not kinds:
    raise UserError(f'override {text!r}: {name!r} is no activation and no norm'
                    f'{spec_lib.nearest(name, known_norms | functions)}')
  return kinds


def _what(kinds: set[str]) -> str:
  names = {frozenset({ACTIVATION}): 'an activation', frozenset({PLACEMENT}): 'a placed norm',
           frozenset({NORM, PLACEMENT}): 'a norm'}
  return names.get(frozenset(kinds), 'an activation or a norm')


def _find(text: str, pattern: str, steps: list[_Step], sites: Sequence[Site]) -> list[int]:
  """Numbers of the sites that the pattern matches."""
  paths = [_steps_of(site.path) for site in sites]
  for step in steps:
    indices = [number for path in paths for name, number in path if name == step.name]
    if not indices:
      continue  # the message about the whole pattern says more
    numbered = [number for number in indices if number is not None]
    if step.numbers and step.numbers[1] > max(numbered, default=-1):
      have = f'{step.name}.0-{max(numbered)}' if numbered else f'{step.name} without numbers'
      raise UserError(f'override {text!r}: the model has {have}')
  found = [i for i, path in enumerate(paths) if _matches(steps, path)]
  if not found:
    raise UserError(f'override {text!r}: no place of the model is {pattern!r}'
                    f'{_nearest(steps, sites)}; there are: {summary(sites)}')
  return found


def _steps_of(path: str) -> list[tuple[str, int | None]]:
  return [(match[1], int(match[2]) if match[2] else None) for match in _STEP.finditer(path)]


def _matches(steps: Sequence[_Step], path: list[tuple[str, int | None]]) -> bool:
  """Whether the steps are found in the path in their order."""
  rest = iter(path)
  return all(any(step.name == name and (step.numbers is None or number is not None
                                        and step.numbers[0] <= number <= step.numbers[1])
                 for name, number in rest) for step in steps)


def _nearest(steps: Sequence[_Step], sites: Sequence[Site]) -> str:
  """The nearest paths without their numbers; also parts of paths, since a pattern may be one."""
  paths = {}
  for site in sites:
    names = [name for name, _ in _steps_of(site.path)]
    for end in range(1, len(names) + 1):
      paths.update({'.'.join(names[start:end]): None for start in range(end)})
  close = difflib.get_close_matches('.'.join(step.name for step in steps), list(paths), 3, 0.5)
  return '; nearest: ' + ', '.join(repr(path) for path in close) if close else ''


def _placed(site: Site, value: str) -> str:
  """The value as the site's spec: a norm alone keeps the placement of the site."""
  placement, colon, _ = site.spec.partition(':')
  if site.kind != PLACEMENT or ':' in value or not colon:
    return value
  return f'{placement}:{value}'
