"""How the sublayers of a stack join its residual stream: placements and factors in one place.

  stack = Stack('pre:layer', 'sp', blocks=2)
  stream = stack.start(x, train)
  for i in range(2):
    stream = stack.block(stream, i, {'attention': attention, 'mlp': feed_forward}, train)
  x = stack.finish(stream, train)

The methods make the norms and the trained factors, so they are called inside the compact method
of the model whose stack it is; the parameters get their names there. What is computed is said
in `normalization.placement` (the norms) and `parametrization.row` (the factors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.models.hyper import read_hp
from model_lib.normalization import BlockSpec, block
from model_lib.normalization.functions import along_channels
from model_lib.normalization.placement import Placed
from model_lib.parametrization import Branch, Learned, get_parametrization

Sublayer = Callable[[jax.Array, bool], jax.Array]


class Stream(NamedTuple):
  """What passes between blocks: x [B, ..., C], and the second stream of resi_dual."""

  x: jax.Array
  second: jax.Array | None = None


def unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
  """x / max(|x|, eps) over the last axis, in float32 or wider; any shape, the dtype of x."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(jnp.maximum(square, eps ** 2))).astype(x.dtype)


class Trained(nn.Module):
  """The trained factor of a residual rule: a scalar, or one per channel."""

  rule: Learned
  branch: Branch

  @nn.compact
  def __call__(self, channels: int) -> jax.Array:
    init, power = self.rule.init(self.branch), self.rule.stored_power
    start = init if power is None else float(channels) ** power
    shape = (channels,) if self.rule.per == 'channel' else ()
    value = self.param(self.rule.name, nn.initializers.constant(start), shape)
    return value if power is None else value * (init / start)


class Fixed(nn.Module):
  """The fixed factors of a branch, which are swept numbers."""

  parametrization: str
  branch: Branch

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    factors = get_parametrization(self.parametrization).factors(self.branch)
    return {name: read_hp(self, name, value) for name, value in factors.items()}


@dataclasses.dataclass(frozen=True)
class Stack:
  """The residual stream of `blocks` blocks.

  Attributes:
    norm: placements, as `normalization.block` reads them.
    parametrization: row of the parametrization table.
    blocks: number of blocks.
    per_block: branches of a block.
  """

  norm: str
  parametrization: str
  blocks: int
  per_block: int = 2

  @property
  def spec(self) -> BlockSpec:
    """The placements, read; UserError as `normalization.block`."""
    return block(self.norm, self.parametrization)

  def branch(self, i: int, kind: str, within: int = 1, **more) -> Branch:
    """The branch number `within` (from 1) of block i (from 0)."""
    return Branch(i + 1, self.blocks, kind, within, self.per_block, **more)

  def placed(self, i: int, kind: str) -> Placed:
    """Norm and placement of the branches of the kind in block i (from 0)."""
    return self.spec.kind(kind).at(i + 1, self.blocks)

  def start(self, x: jax.Array, train: bool) -> Stream:
    """The stream of an embedded input x [B, ..., C]."""
    spec = self.spec
    x = spec.embed.layer('norm_embed')(x, train)
    if spec.placement == 'ngpt':
      x = unit(x)
    return Stream(x, x if spec.placement == 'resi_dual' else None)

  def block(self, stream: Stream, i: int, sublayers: Mapping[str, Sublayer], train: bool,
            placed: Mapping[str, Placed] | None = None,
            shortcut: Callable[[jax.Array], jax.Array] | None = None,
            before: int | None = None) -> Stream:
    """One block: the sublayers join the stream one after another, or with `parallel` together.

    Args:
      stream: the stream before the block.
      i: number of the block, from 0.
      sublayers: kind ('attention' or 'mlp') -> Linen module, called as f(x, train); its name
        names the norms and factors beside it.
      train: whether the norms use the batch.
      placed: kind -> norm and placement, where they differ from the stack's.
      shortcut: what the skip applies to x where shapes change; with a row that divides the
        input of a branch it gets the divided x.
      before: branches that the stream has taken since its variance was 1; None: all so far.

    Returns:
      The stream after the block.
    """
    row = get_parametrization(self.parametrization)
    parallel = self.spec.placement == 'parallel'
    shared = row.learned and row.learned.shared and Trained(
      row.learned, self.branch(i, 'mlp'), name=f'residual_{i}')
    joined = stream
    for number, (kind, sublayer) in enumerate(sublayers.items()):
      at = (placed or {}).get(kind) or self.placed(i, kind)
      branch = self.branch(i, kind, 1 if parallel else number + 1,
                           before=None if before is None else
                           before + (0 if parallel else number))
      trained = shared or (row.learned and kind in row.learned.kinds and Trained(
        row.learned, branch, name=f'residual_{sublayer.name}'))
      # Without a factor there is no module, which whoever captures intermediates would meet.
      fixed = Fixed(self.parametrization, branch, name=f'factors_{sublayer.name}')() if (
        row.factors(branch)) else {}
      join = _Join(at, kind, sublayer, row.learned if trained else None, trained, fixed, train)
      # With `parallel` each branch reads the x before the block, and the last sum has them all.
      joined = join(joined, stream.x if parallel else joined.x, shortcut)
      shortcut = None
    return joined

  def finish(self, stream: Stream, train: bool) -> jax.Array:
    """What leaves the stack: N(x), or with resi_dual x + N(d)."""
    norm = self.spec.final.layer('norm_final')
    if stream.second is not None:
      return stream.x + norm(stream.second, train)
    return norm(stream.x, train)


@dataclasses.dataclass(frozen=True)
class _Join:
  """One branch on its way into the stream."""

  placed: Placed
  kind: str
  sublayer: Sublayer
  rule: Learned | None
  trained: Trained | None
  fixed: Mapping[str, jax.Array]
  train: bool

  def __call__(self, stream: Stream, source: jax.Array,
               shortcut: Callable[[jax.Array], jax.Array] | None) -> Stream:
    h = self._times(source, 'input_scale')
    skip = stream.x if shortcut is None else shortcut(h)
    f = self.sublayer(self._times(self._norm('input', h), 'norm_scale'), self.train)
    f = self._norm('output', f)
    factor = self.trained(f.shape[-1]) if self.rule else None
    if 'step' in self.placed.spots(self.kind):
      return Stream(unit(skip + _scale(unit(f) - skip, jnp.abs(factor))))
    on = self.rule.on if self.rule else ''
    f = self._times(_scale(f, factor) if on == 'branch' else f, 'branch_scale')
    skip = self._times(_scale(skip, factor) if on == 'skip' else skip, 'skip_scale')
    second = None if stream.second is None else stream.second + f
    return Stream(self._norm('sum', skip + f), second)

  def _times(self, x: jax.Array, name: str) -> jax.Array:
    return x * self.fixed[name].astype(x.dtype) if name in self.fixed else x

  def _norm(self, spot: str, x: jax.Array) -> jax.Array:
    spots = [s for s in self.placed.spots(self.kind) if s != 'inner']
    if spot not in spots:
      return x
    name = self.sublayer.name if len(spots) == 1 else f'{spot}_{self.sublayer.name}'
    return self.placed.norm.layer(f'norm_{name}')(x, self.train)


def _scale(x: jax.Array, factor: jax.Array) -> jax.Array:
  factor = factor.astype(x.dtype)
  return x * (along_channels(factor, x.ndim) if factor.ndim else factor)
