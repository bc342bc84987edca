"""Sites: the places of a model where an activation or a norm stands, and what fits there."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer, branches, is_gated
from model_lib.normalization import BlockSpec, block, get_norm
from model_lib.normalization.placement import placed_norm

ACTIVATION, NORM, PLACEMENT = 'activation', 'norm', 'placement'
WHOLE = ('parallel', 'resi_dual', 'ngpt')  # `mix` stands at the sites as pre and post

# Axes before the channels of an array to try a layer on.
_SHAPES = {'': (4,), 'tokens': (4, 3), 'pixels': (4, 3, 3)}


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
    kernels: of that branch.
    changed: whether an override put the spec there.
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
  kernels: int = 2
  changed: bool = False


def without_attention(model: str, norm: str, parametrization: str) -> BlockSpec:
  """The placements of a stack whose branches are no attention; UserError for what is about it."""
  spec = block(norm, parametrization)
  if spec.placement == 'ngpt':
    raise UserError(f'{model}: ngpt keeps the matrices of a transformer on spheres; '
                    'take a vit or a gpt')
  if spec.attention != spec.mlp or spec.qk != 'none':
    raise UserError(f'{model}: norm={norm!r} is about attention, which the model does not have; '
                    'write PLACEMENT:NORM')
  return spec


def end_sites(spec: BlockSpec, **where) -> tuple[Site, ...]:
  """The norms of what enters and of what leaves a stack, where it has them."""
  return tuple(Site(f'{name}.norm', NORM, norm.spec, **where)
               for name, norm in (('embed', spec.embed), ('final', spec.final))
               if norm.name != 'none')


def summary(sites: Sequence[Site]) -> str:
  """The paths with ranges for their numbers: 'blocks.0-3.mlp.norm, final.norm'."""
  numbers: dict[str, list[list[int]]] = {}
  for site in sites:
    found = [int(number) for number in re.findall(r'\d+', site.path)]
    numbers.setdefault(re.sub(r'\d+', '{}', site.path), []).append(found)
  return ', '.join(path.format(*map(_range, zip(*found, strict=True)))
                   for path, found in numbers.items())


def _range(numbers: Sequence[int]) -> str:
  low, high = min(numbers), max(numbers)
  return str(low) if low == high else f'{low}-{high}'


def check(model: str, sites: Sequence[Site], norm: str, parametrization: str) -> None:
  """Whether what stands at the sites can stand there, as far as that is known without the input.

  Args:
    model: the model's name, for the error.
    sites: the model's, overrides included.
    norm, parametrization: the model's own.

  Raises:
    UserError: it makes no sense there; one line with the site, the reason and the cure.
  """
  gated = any(is_gated(site.spec) for site in sites if site.kind == ACTIVATION)
  for site in sites:
    where = f'{model}: {site.path} is {site.spec!r}, '
    if site.kind == ACTIVATION:
      _check_activation(where, site, None if gated else site.channels,
                        [s for s in sites if s.second_kernel])
    else:
      _check_norm(where, site, None if gated else site.channels)
      if site.kind == PLACEMENT:
        _check_placement(where, site, block(norm, parametrization).placement, parametrization)


def _check_activation(where: str, site: Site, channels: int | None,
                      gateable: Sequence[Site]) -> None:
  for activation in branches(site.spec):
    if activation.kind == 'gated' and not site.second_kernel:
      fits = f'it fits at: {summary(gateable)}' if gateable else 'take one of one array'
      raise UserError(f'{where}which takes two arrays, and no kernel stands before it that could '
                      f'be doubled; {fits}')
    if site.causal and not activation.causal:
      raise UserError(f'{where}which lets a position see later ones; take a pointwise activation')
    if site.keeps_channels and activation.width_factor != 1:
      raise UserError(f'{where}which has {activation.width_factor:g} times the channels of its '
                      'input, and they are added to the stream; take one that keeps them')
    if activation.kind not in ('pointwise', 'gated') and channels:
      _fit(where, ACTIVATION, site.spec, _SHAPES[site.positions] + (channels,))


def _check_placement(where: str, site: Site, whole: str, parametrization: str) -> None:
  placement = placed_norm(site.spec).placement
  if not site.residual and placement not in ('none', 'pre', 'post'):
    raise UserError(f'{where}and {placement} is about a residual branch, which is not there; '
                    'take pre:NORM or post:NORM, or a resmlp')
  if site.kernels < 2 and 'inner' in placed_norm(site.spec).spots('mlp'):
    raise UserError(f'{where}and {placement} has a norm between the kernels of a branch, '
                    'which has one kernel here')
  if not (site.residual and site.changed):
    return
  if placement != whole and (placement in (*WHOLE, 'mix') or whole in WHOLE):
    name = whole if whole in WHOLE else placement
    raise UserError(f'{where}and {name} is a placement of the whole stack: give it as norm=, '
                    'and override norms alone')
  block(site.spec, parametrization)


def _check_norm(where: str, site: Site, channels: int | None) -> None:
  norm = get_norm(site.spec) if site.kind == NORM else placed_norm(site.spec).norm
  if site.causal and not norm.causal:
    raise UserError(f'{where}which lets a position see later ones '
                    f'(statistics over {norm.statistics}); take layer or rms')
  if norm.name != 'none' and channels:
    _fit(where, NORM, norm.spec, _SHAPES[site.positions] + (channels,))


def _fit(where: str, kind: str, spec: str, shape: tuple[int, ...]) -> None:
  """Lets the layer itself say whether it can take an array of the shape."""
  try:
    _trace(kind, spec, shape)
  except UserError as error:
    raise UserError(f'{where}and {error}') from None


@functools.lru_cache(maxsize=None)
def _trace(kind: str, spec: str, shape: tuple[int, ...]) -> None:
  layer = get_norm(spec).layer() if kind == NORM else ActivationLayer(spec)

  def init(x):
    keys = {'params': jax.random.key(0), 'noise': jax.random.key(0)}
    return layer.init(keys, x, train=True)

  jax.eval_shape(init, jax.ShapeDtypeStruct(shape, jnp.float32))
