"""What a parameter is to a width and depth rule: its kind, and its sizes beside the base model's.

A dimension is *scalable* if it grows with the model's width. A parameter's kind counts them
(Yang et al. 2022, arXiv:2203.03466, appendix B):

  hidden   two: features -> features
  input    one, on the way in: data or token -> features (an embedding looks its rows up)
  output   one, on the way out: features -> classes, or any other fixed number of outputs
  vector   one, in a parameter of one dimension: bias, norm gain, norm bias
  scalar   none: a temperature, the bias of the classes
"""

from __future__ import annotations

import dataclasses

KINDS = ('input', 'hidden', 'output', 'vector', 'scalar')


@dataclasses.dataclass(frozen=True)
class Extent:
  """A size in the base model and in the model at hand."""

  base: int
  size: int

  @property
  def ratio(self) -> float:
    """size / base."""
    return self.size / self.base


ONE = Extent(1, 1)


@dataclasses.dataclass(frozen=True)
class Label:
  """One parameter, as the rules see it.

  Attributes:
    path: its name, such as 'block_0/kernel_0/kernel'.
    kind: one of KINDS.
    fan_in: values that enter one output; 1 for a vector or scalar. Of a convolution
      h * w * channels, of an embedding the number of its rows.
    fan_out: its outputs; the length of a vector.
    depth: blocks of the residual stack in whose branch it stands, or None outside of a stack.
    lookup: whether its rows are looked up instead of multiplied.
    shape: in the model at hand, without the axis of the layers of a scanned stack.
  """

  path: str
  kind: str
  fan_in: Extent = ONE
  fan_out: Extent = ONE
  depth: Extent | None = None
  lookup: bool = False
  shape: tuple[int, ...] = ()
