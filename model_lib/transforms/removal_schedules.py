"""When each LayerNorm of a GPT-2 is made linear: sites, schedules as data, and their short names.

A schedule is data: the groups in their order, the step of the first event, and the gap between
the layers of a group. `Schedule.hp(depth)` gives the swept numbers that `models.gpt2` reads, so
that every schedule is the same compiled program. Written as text, for a config:

  staged   staged(start=20, gap_mlp=2, gap_qk=2, gap_v=3)   reversed   qk_first   at_once(step=15)
  final_only   keep_final(staged)   sham(staged(start=20))   paper(size=small)   never
  adaptive(staged, tolerance=0.02)

Numbers that a text leaves out are those of `fitted` for the model's depth and the run's length.
Order and gaps follow arXiv 2507.02559 (Tables 3 and 4), whose own schedules are in `recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math

from model_lib.errors import UserError
from model_lib.models import adaptive_removal
from model_lib.models.removable import NEVER
from model_lib.spec import Call, nearest, parse
from model_lib.transforms.recipes import PAPER

# The groups in the paper's order; queries and keys, and values, read the same LayerNorm.
GROUPS = ('mlp', 'qk', 'v', 'final')
GAPS = {'mlp': 2, 'qk': 2, 'v': 3}  # between layers, times a common factor
_ORDERS = {'staged': GROUPS, 'reversed': GROUPS[::-1], 'qk_first': ('qk', 'mlp', 'v', 'final')}
_NAMES = (*_ORDERS, 'at_once', 'final_only', 'keep_final', 'sham', 'paper', 'never', 'adaptive')


@dataclasses.dataclass(frozen=True)
class Site:
  """A place where a LayerNorm is used, with a switch of its own.

  Attributes:
    path: 'h.3.ln_1.qk', 'h.3.ln_1.v', 'h.3.ln_2' or 'ln_f'.
    group: one of GROUPS.
    layer: from 0; None for the final one.
  """

  path: str
  group: str
  layer: int | None

  @property
  def place(self) -> int:
    """The index in the group's array of numbers."""
    return self.layer or 0


def sites(depth: int) -> tuple[Site, ...]:
  """The 3 depth + 1 sites: by group in the order of GROUPS, then by layer."""
  ends = {'mlp': 'ln_2', 'qk': 'ln_1.qk', 'v': 'ln_1.v'}
  return (*(Site(f'h.{i}.{end}', group, i) for group, end in ends.items() for i in range(depth)),
          Site('ln_f', 'final', None))


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The order and the times of removal.

  The event of a site is the optimizer step, from 0, at whose beginning it becomes linear. Layers
  of a group follow at its gap, and a group starts one gap after the last layer of the one before:
  start(next) = start + depth gap. Gaps need not be integers; events are rounded, halves up.

  Attributes:
    order: groups in the order of removal; one that is left out keeps its norms.
    start: of the first group.
    gaps: steps between layers, for each group of `order`.
    descending: from the last layer to the first.
    enabled: False for a sham, whose events pass and change nothing.
  """

  order: tuple[str, ...]
  start: float
  gaps: tuple[float, ...]
  descending: bool = False
  enabled: bool = True

  def timeline(self, depth: int) -> tuple[tuple[int, Site], ...]:
    """(event, site) in the order of removal."""
    found, at = [], float(self.start)
    for group, gap in zip(self.order, self.gaps, strict=True):
      members = [site for site in sites(depth) if site.group == group]
      for i, site in enumerate(members[::-1] if self.descending else members):
        found.append((math.floor(at + i * gap + 0.5), site))
      at += len(members) * gap
    return tuple(found)

  def hp(self, depth: int) -> dict[str, tuple[int, ...] | int]:
    """The model's swept numbers: `event_qk`, `event_v`, `event_mlp` (tuples of `depth` steps),
    `event_final` and `enabled`; NEVER where a norm is kept."""
    events = {group: [NEVER] * depth for group in GROUPS}
    for step, site in self.timeline(depth):
      events[site.group][site.place] = step
    return {**{f'event_{group}': tuple(events[group]) for group in ('qk', 'v', 'mlp')},
            'event_final': events['final'][0], 'enabled': int(self.enabled)}


@dataclasses.dataclass(frozen=True)
class Adaptive:
  """A removal that follows the loss, for a model with `adaptive` (`models.adaptive_removal`).

  Attributes:
    order: the sites go in the order of this schedule; its times count for nothing.
    settings: of the rule, by name; the others are the rule's defaults.
  """

  order: Schedule
  settings: tuple[tuple[str, float], ...] = ()

  def hp(self, depth: int) -> dict[str, tuple[int, ...] | float]:
    """The model's swept numbers: `adaptive_rank` (3 depth + 1 numbers, as `sites` has them) and
    `adaptive_NAME` for all of the rule's settings, with no events and `enabled`."""
    rank = {site: i for i, (_, site) in enumerate(self.order.timeline(depth))}
    settings = {**adaptive_removal.SETTINGS, **dict(self.settings)}
    return {**Schedule((), 0, (), enabled=self.order.enabled).hp(depth),
            'adaptive_rank': tuple(rank.get(site, NEVER) for site in sites(depth)),
            **{f'adaptive_{name}': value for name, value in settings.items()}}


def fitted(depth: int, steps: int) -> tuple[int, dict[str, float]]:
  """Start, and gaps by group, of a removal that fits a run; `final` has the gap of the values.

  Gaps are 2 k, 2 k and 3 k for mlp, qk and v, so that the removal spans 7 k depth steps after a
  start at a tenth of the run: k is the integer that brings the span nearest to 45 % of the run.
  Where that is not within 30 to 65 % (a deep model in a short run), k is a fraction and gives
  45 %. At least 25 % of the steps come after the last event. (The paper's runs: spans of 28 to
  84 % of the released steps, starts at 4 to 7 %.)

  Raises:
    UserError: fewer than 20 steps.
  """
  if steps < 20:
    raise UserError(f'a removal fitted to the run needs at least 20 steps, not {steps}; '
                    'give start and gaps in the schedule')
  unit = depth * sum(GAPS.values())
  k: float = max(1, round(0.45 * steps / unit))
  if not 0.3 * steps <= k * unit <= 0.65 * steps:
    k = 0.45 * steps / unit
  gaps = {group: k * gap for group, gap in GAPS.items()}
  return steps // 10, {**gaps, 'final': gaps['v']}


def schedule(text: str, depth: int, steps: int) -> Schedule | Adaptive:
  """The schedule that a text names, for a model of `depth` layers trained for `steps` steps.

  `staged` removes mlp, qk, v, then the final norm; `reversed` is its exact reverse, layers
  included; `qk_first` swaps the first two groups; `at_once` removes all at one step, `final_only`
  the final norm alone; `keep_final` and `sham` take another schedule; `never` keeps all.
  `adaptive` takes a schedule for the order of its sites, and settings of the rule.

  Raises:
    UserError: an unknown name, setting or size (the line has the nearest), a number out of range,
      a paper's schedule for another depth, or an event that the run does not reach.
  """
  call = parse(text)
  if call.name == 'adaptive':
    return _adaptive(call, depth, steps)
  made = _made(call, depth, steps)
  last = max((step for step, _ in made.timeline(depth)), default=0)
  if last >= steps:
    raise UserError(f'schedule {text!r} removes its last norm at step {last} and the run has '
                    f'{steps} steps: it needs smaller gaps or a longer run')
  return made


def _made(call: Call, depth: int, steps: int) -> Schedule:
  name = call.name
  if name in _ORDERS:
    values = _settings(call, ('start', 'gap_mlp', 'gap_qk', 'gap_v'))
    start, gaps = values.pop('start', None), {key[4:]: value for key, value in values.items()}
    if start is None or len(gaps) < len(GAPS):
      first, defaults = fitted(depth, steps)
      start, gaps = first if start is None else start, {**defaults, **gaps}
    gaps['final'] = gaps['v']
    order = _ORDERS[name]
    return Schedule(order, start, tuple(gaps[group] for group in order), name == 'reversed')
  if name in ('at_once', 'final_only'):
    order = GROUPS if name == 'at_once' else ('final',)
    step = _settings(call, ('step',)).get('step')
    return Schedule(order, fitted(depth, steps)[0] if step is None else step, (0,) * len(order))
  if name in ('keep_final', 'sham'):
    inner = _made(_inner(call), depth, steps)
    if name == 'sham':
      return dataclasses.replace(inner, enabled=False)
    pairs = [(g, gap) for g, gap in zip(inner.order, inner.gaps) if g != 'final']
    return dataclasses.replace(inner, order=tuple(g for g, _ in pairs),
                               gaps=tuple(gap for _, gap in pairs))
  if name == 'paper':
    return _of_paper(call, depth)
  if name == 'never':
    _settings(call, ())
    return Schedule((), 0, ())
  if name == 'adaptive':
    raise UserError(f'{call} stands inside of another schedule; write adaptive(keep_final(staged)) '
                    'or adaptive(sham(staged))')
  raise UserError(f'unknown schedule {name!r}{nearest(name, _NAMES)}; known: {", ".join(_NAMES)}')


def _adaptive(call: Call, depth: int, steps: int) -> Adaptive:
  known = adaptive_removal.SETTINGS
  for key, value in call.kwargs:
    if key not in known:
      raise UserError(f'{call}: adaptive has no setting {key!r}{nearest(key, known)}; it takes a '
                      f'schedule and {", ".join(known)}')
    whole = isinstance(known[key], int)
    if type(value) not in ((int,) if whole else (int, float)) or not 0 <= value < (
        1 if key == 'decay' else NEVER):
      raise UserError(f'{call}: {key} must be {"an integer" if whole else "a number"} from 0'
                      f'{" to below 1" if key == "decay" else ""}, not {value}')
  return Adaptive(_made(_inner(Call(call.name, call.args)), depth, steps), call.kwargs)


def _of_paper(call: Call, depth: int) -> Schedule:
  values = dict(call.kwargs)
  if call.args or set(values) != {'size'} or values['size'] not in PAPER:
    wrong = str(values.get('size', ''))
    raise UserError(f'{call}: write paper(size=NAME){nearest(wrong, PAPER)}; '
                    f'sizes: {", ".join(PAPER)}')
  recipe = PAPER[values['size']]
  if recipe.depth != depth:
    raise UserError(f'{call} is for {recipe.depth} layers and the model has {depth}; '
                    "'staged' fits the schedule to any model")
  gaps = (recipe.gap_mlp, recipe.gap_qk, recipe.gap_v, recipe.gap_v)
  return Schedule(GROUPS, recipe.start, gaps)


def _settings(call: Call, names: tuple[str, ...]) -> dict[str, float]:
  """The named numbers of a call: steps at least 0, those of an event whole."""
  if call.args:
    raise UserError(f'{call}: settings have names; {call.name} takes {", ".join(names) or "none"}')
  for key, value in call.kwargs:
    if key not in names:
      raise UserError(f'{call}: {call.name} has no setting {key!r}{nearest(key, names)}; '
                      f'it takes {", ".join(names) or "none"}')
    whole = not key.startswith('gap')
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 <= value < NEVER:
      raise UserError(f'{call}: {key} must be {"an integer" if whole else "a number"} of steps '
                      f'from 0, not {value}')
  return dict(call.kwargs)


def _inner(call: Call) -> Call:
  """The schedule that a schedule takes: keep_final(staged), or `staged` where none is given."""
  values: list = [*call.args, *(value for _, value in call.kwargs)]
  keys: Mapping = dict(call.kwargs)
  if keys or len(values) > 1 or any(not isinstance(value, (str, Call)) for value in values):
    raise UserError(f'{call}: {call.name} takes one schedule, such as {call.name}(staged)')
  value = values[0] if values else 'staged'
  return value if isinstance(value, Call) else Call(value)
