"""The nonlinearities and parametrizations that the depth part of the depth-muP study compares."""

from __future__ import annotations

import dataclasses
import functools
import math


@dataclasses.dataclass(frozen=True)
class Function:
  """A nonlinearity and where it stands; (a, learning rate) are tuned once for each.

  Attributes:
    activation: of the catalogue.
    gain: factor of its output: 'sqrt2', 'one', or 'matched' (the variance of sqrt2 * relu).
    nonlinearity, block_depth, prenorm: of the model `deep_mlp`.
  """

  activation: str
  gain: str = 'one'
  nonlinearity: str = 'post'
  block_depth: int = 1
  prenorm: str = 'none'

  @functools.cached_property
  def scale(self) -> float:
    """The gain as a number."""
    if self.gain != 'matched':
      return {'one': 1.0, 'sqrt2': math.sqrt(2)}[self.gain]
    from model_lib.activations import get_activation
    relu, own = (get_activation(name).moments().variance for name in ('relu', self.activation))
    return math.sqrt(2 * relu / own)


FUNCTIONS = {
    'relu': Function('relu', 'sqrt2'),
    'abs': Function('abs'),
    'abs_matched': Function('abs', 'matched'),
    'pre': Function('relu', 'sqrt2', 'pre'),
    'two': Function('relu', 'sqrt2', block_depth=2),
    'abs_normed': Function('abs', prenorm='layer'),
    'abs_normed_two': Function('abs', block_depth=2, prenorm='layer'),
}


@dataclasses.dataclass(frozen=True)
class Family:
  """A sweep over depth.

  Attributes:
    function: of FUNCTIONS.
    row: of the table of parametrizations, without its base depth: branches a m_L^-alpha f(x),
      updates m_L^-gamma.
    tuned: the function whose a it takes; '' for its own.
  """

  function: str
  row: str = 'depth_mup'
  tuned: str = ''

  @property
  def tuned_as(self) -> str:
    """The function whose a it takes."""
    return self.tuned or self.function


FAMILIES = {
    'depth_mup': Family('relu'),
    'ode': Family('relu', 'ode'),
    'sp': Family('relu', 'sp'),
    'abs': Family('abs'),
    'abs_matched': Family('abs_matched'),
    'abs_same': Family('abs_matched', tuned='relu'),
    'pre': Family('pre'),
    'two': Family('two'),
    'abs_normed': Family('abs_normed'),
    'abs_normed_two': Family('abs_normed_two'),
}
COMPUTED = 'half_zero'  # a family that is computed from the runs of depth_mup
# The same run, which checks that.
HALF_ZERO = Family('relu', 'tp6(gamma=0)')
NEEDED = ('depth_mup', 'ode')
PAIRS = (('depth_mup', 'two'), ('abs_normed', 'abs_normed_two'))  # blocks of one matrix, of two
DIVERSITY = {  # arms of the feature diversity: family and gain
    'depth_mup': ('depth_mup', math.sqrt(2)), 'abs': ('abs', 1.0),
    'unscaled_relu': ('depth_mup', 1.0), 'ode': ('ode', math.sqrt(2))}


def row_of(family: Family, base: int) -> str:
  """The row of a family with its base depth."""
  row = family.row
  if row == 'sp':
    return row
  return f'{row[:-1]}, base_depth={base})' if row.endswith(')') else f'{row}(base_depth={base})'
