"""Sites: the places of a model where an activation or a norm stands, and what fits there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import re

from model_lib.errors import UserError
from model_lib.models.activation_layer import branches, is_gated
from model_lib.normalization import block

ACTIVATION, NORM, PLACEMENT = 'activation', 'norm', 'placement'


@dataclasses.dataclass(frozen=True)
class Site:
  """One place of a model.

  Attributes:
    path: names with dots, numbers behind the names that are repeated: 'blocks.0.mlp.activation'.
    kind: 'activation'; 'norm', a norm alone; 'placement', a norm and where it stands.
    spec: what stands there.
    channels: size of the last axis there, as long as no activation is gated (which shrinks
      widths by an amount that depends on the input); None where the input decides it.
    positions: what the axes between the first and the last are: '', 'tokens' or 'pixels'.
    causal: whether a position must not see later ones.
    second_kernel: whether an activation of two arrays gets a kernel for each.
    keeps_channels: whether the output of the activation is added to an array of its input's shape.
    residual: whether a placement has a residual branch to stand on.
  """

  path: str
  kind: str
  spec: str
  channels: int | None = None
  positions: str = ''
  causal: bool = False
  second_kernel: bool = False
  keeps_channels: bool = False
  residual: bool = False


def summary(sites: Sequence[Site]) -> str:
  """The paths with ranges for their numbers: 'blocks.0-3.mlp.norm, final.norm'."""
  numbers: dict[str, list[int]] = {}
  for site in sites:
    numbers.setdefault(re.sub(r'\d+', '#', site.path), []).extend(
      int(number) for number in re.findall(r'\d+', site.path))
  return ', '.join(path.replace('#', _range(found)) for path, found in numbers.items())


def _range(numbers: Iterable[int]) -> str:
  low, high = min(numbers, default=0), max(numbers, default=0)
  return str(low) if low == high else f'{low}-{high}'


def check(model: str, sites: Sequence[Site]) -> None:
  """Whether what stands at the sites can stand there, as far as that is known without the input.

  Raises:
    UserError: it makes no sense there; one line with the site, the reason and the cure.
  """
  gated = any(is_gated(site.spec) for site in sites if site.kind == ACTIVATION)
  for site in sites:
    where = f'{model}: {site.path} is {site.spec!r}, '
    if site.kind == ACTIVATION:
      _check_activation(where, site)
    else:
      _check_norm(where, site, None if gated else site.channels)


def _check_activation(where: str, site: Site) -> None:
  for activation in branches(site.spec):
    if activation.kind == 'gated' and not site.second_kernel:
      raise UserError(f'{where}which takes two arrays, and there is one: no kernel stands right '
                      f'before it; override it with an activation of one array, as in '
                      f'\'{site.path}: silu\'')
    if site.causal and activation.kind == 'statistics' and activation.constants['axes'] != 'last':
      raise UserError(f'{where}whose statistics let a position see later ones; '
                      'take axes=last or a pointwise activation')


def _check_norm(where: str, site: Site, channels: int | None) -> None:
  placed = block(site.spec)
  if not site.residual and placed.placement not in ('none', 'pre', 'post'):
    raise UserError(f'{where}and {placed.placement} is about a residual branch, which the model '
                    'does not have there; take pre:NORM or post:NORM, or a resmlp')
  if site.causal and not placed.norm.causal:
    raise UserError(f'{where}which lets a position see later ones '
                    f'(statistics over {placed.norm.statistics}); take layer or rms')
  groups = dict(placed.norm.options).get('groups')
  if groups and channels and channels % groups:
    fits = [n for n in range(1, channels + 1) if channels % n == 0]
    near = min(fits, key=lambda n: abs(n - groups))
    raise UserError(f'{where}and its {channels} channels do not divide into {groups} groups; '
                    f'take e.g. {placed.norm.name}(groups={near})')
