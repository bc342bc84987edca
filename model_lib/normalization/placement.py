"""Where a normalization stands: before a sublayer, after it, or nowhere.

  none        x + m f(x)
  pre:NORM    x + m f(N(x)), and one N after the last block
  post:NORM   N(x + m f(x))

m is the branch multiplier of the parametrization. In a network without residual branches
the sublayer is the activation: `pre` is f(N(Wx)), `post` is N(f(Wx)).
"""

from __future__ import annotations

import dataclasses

from model_lib import spec as spec_lib
from model_lib.errors import UserError
from model_lib.normalization.registry import Norm, get_norm
from model_lib.parametrization import get_parametrization


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """How a block combines its sublayers.

  Attributes:
    placement: 'none', 'pre' or 'post'.
    norm: the norm that is placed.
    residual: the parametrization whose branch multiplier is used.
  """

  placement: str
  norm: Norm
  residual: str

  @property
  def spec(self) -> str:
    """The canonical placement string."""
    return 'none' if self.placement == 'none' else f'{self.placement}:{self.norm.spec}'

  @property
  def final_norm(self) -> bool:
    """Whether the stack ends in a norm: with `pre` nothing else bounds the residual stream."""
    return self.placement == 'pre'

  def branch_multiplier(self, depth: int) -> float:
    """The factor m on every residual branch of a stack of `depth` blocks."""
    return get_parametrization(self.residual).branch_multiplier(depth)


def block(norm: str = 'pre:layer', residual: str = 'sp') -> BlockSpec:
  """Parses a placement such as `none`, `pre:layer` or `post:rms(eps=1e-6)`.

  A norm without a placement, such as `batch`, stands before (`pre`).

  Raises:
    UserError: unknown placement, norm or parametrization; the message names the nearest.
  """
  get_parametrization(residual)
  placement, colon, norm_spec = str(norm).partition(':')
  if not colon:
    placement, norm_spec = 'pre', norm
  placement = placement.strip()
  if placement not in ('pre', 'post'):
    raise UserError(f'{norm!r}: {placement!r} is no placement'
                    f'{spec_lib.nearest(placement, ("pre", "post"))}; '
                    'write none, pre:NORM or post:NORM')
  placed = get_norm(norm_spec)
  return BlockSpec('none' if placed.name == 'none' else placement, placed, residual)
