"""The rules of width and depth as one pure function: row, parameter, optimizer -> five factors.

With U the size of an update's entry that the row wants (`Tensor.adam` m_L^-gamma), G that of the
gradient's (`Tensor.gradient` m_L^-alpha) and B the factor of the std, the learning rate is

  adam, lion, sign, adafactor       U        their updates have entries of size 1
  sgd, momentum                     U / G    so m_L^(alpha - gamma) in a block
  adafactor_scaled, lamb            U / B    entries of size rms(w): `multiply_by_parameter_scale`
                                             and the trust ratio; so r_in^-1/2 of hidden kernels
  muon                              U (r_in r_out)^1/2 of hidden kernels, adam's of all others

and the standard row has 1 everywhere. Adam's, SGD's and the width factor of the third line are the
sources' (`scaled_rows`). Derived here: the depth factor of the third line, and muon's: an update
whose singular values are 1 moves an output by up to (n_in / n_out)^1/2 rms(input), so with muP it
has to grow as (r_out / r_in)^1/2. That is for the orthogonal update itself, as from
`optax.contrib.scale_by_muon`, without a further factor for the matrix's shape.

Momentum, betas, schedules and the global norm for clipping do not change with width; with depth
the gradient's norm of the whole stack goes as m_L^(1/2 - alpha).
"""

from __future__ import annotations

import dataclasses

from model_lib.errors import UserError
from model_lib.parametrization import scaled_rows
from model_lib.parametrization.label import KINDS, Label
from model_lib.parametrization.row import Parametrization
from model_lib.parametrization.scaled_rows import ScaledRow
from model_lib.spec import nearest

ENTRYWISE = ('adam', 'lion', 'sign', 'adafactor')
GRADIENT = ('sgd', 'momentum')
NORMALIZED = ('adafactor_scaled', 'lamb')
FAMILIES = (*ENTRYWISE, *GRADIENT, *NORMALIZED, 'muon')
_WITH_EPS = ('adam', 'adafactor', 'adafactor_scaled', 'lamb', 'muon')


@dataclasses.dataclass(frozen=True)
class Factors:
  """What multiplies the settings of the base model for one parameter.

  Attributes:
    init_std: its std at the start (and the mean, where that is not 0).
    multiplier: its output in the forward pass, which takes multiplier * w for w.
    learning_rate: of the optimizer's family.
    eps: the eps that is added to the root of the second moment; square it for one under the root;
      1 for an optimizer without it.
    decay: the weight decay, in an update rate * (direction + decay * w). 0: it does not decay.
  """

  init_std: float = 1.0
  multiplier: float = 1.0
  learning_rate: float = 1.0
  eps: float = 1.0
  decay: float = 1.0


def factors(row: Parametrization, label: Label, family: str = 'adam') -> Factors:
  """The factors of one parameter.

  Args:
    row: of the table; one that says nothing of width is standard in it.
    label: the parameter.
    family: one of FAMILIES; 'adam' is AdamW too.

  Raises:
    UserError: an unknown family or kind, a parameter or an optimizer that the row has no rule
      for, or a base depth that is not the row's. The message names the parameter.
  """
  row = row if isinstance(row, ScaledRow) else scaled_rows.sp()
  tensor = _tensor(row, label, family)
  if row.absolute:
    r_in, r_out = float(label.fan_in.size), float(label.fan_out.size)
  else:
    r_in, r_out = label.fan_in.ratio, label.fan_out.ratio
  branch = update = 1.0  # what depth makes of the branch, and of an update in it
  if label.depth is not None:
    branch = row.branch_multiplier(label.depth.size)
    update = (label.depth.size / row.base_depth) ** -row.gamma
  std = tensor.std(r_in, r_out)
  width, depth = tensor.adam(r_in, r_out), update
  orthogonal = family == 'muon' and label.kind == 'hidden'
  if row.constant_rate:
    width = 1.0
  elif family in GRADIENT:
    width, depth = tensor.sgd(r_in, r_out), update / branch
  elif family in NORMALIZED:
    width /= std
  elif orthogonal:
    width *= (r_in * r_out) ** 0.5
  return Factors(
    std, tensor.multiplier(r_in, r_out), width * depth,
    tensor.gradient(r_in, r_out) * branch if family in _WITH_EPS and not orthogonal else 1.0,
    _decay(row, label, width, depth))


def _decay(row: ScaledRow, label: Label, width: float, depth: float) -> float:
  # The bias of the classes and a temperature are as thin as a vector, whatever their kind.
  if label.kind == 'vector' or (label.kind == 'scalar' and len(label.shape) < 2):
    thin = row.thin_decay[0 if label.depth is not None else 1]
    if not thin:
      return 0.0
  return {'none': 1.0, 'width': 1 / width, 'all': 1 / (width * depth)}[row.decay]


def _tensor(row: ScaledRow, label: Label, family: str) -> scaled_rows.Tensor:
  """The row's rule for the parameter, if it may have one."""
  if family not in FAMILIES:
    raise UserError(f'unknown optimizer family {family!r}{nearest(family, FAMILIES)}; '
                    f'known: {", ".join(FAMILIES)}')
  if row.families is not None and family not in row.families:
    raise UserError(f'{row.name} has no rule for {family}; take one of {", ".join(row.families)}')
  if label.kind not in KINDS:
    raise UserError(f'{label.path}: unknown kind {label.kind!r}{nearest(label.kind, KINDS)}; '
                    f'known: {", ".join(KINDS)}')
  if row.name == 'mean_field' and (label.kind == 'hidden' or label.depth is not None):
    raise UserError(f'{label.path}: mean_field is for one hidden layer (more get stuck at the '
                    'start), and this parameter lies between two; take mup')
  deep = not row.absolute and (row.gamma or row.depth_power)
  if deep and label.depth is not None and label.depth.base != row.base_depth:
    raise UserError(f'{label.path}: the base model has {label.depth.base} blocks, but {row.name} '
                    f'says base_depth={row.base_depth:g}; make them equal')
  lookup = label.lookup and label.kind == 'input' and 'lookup' in row.tensors
  return row.tensors['lookup' if lookup else label.kind]


def init_gain(label: Label, found: Factors, fan_in_power: float = -0.5,
              absolute: bool = False) -> float:
  """Factor on a std that already follows fan_in^fan_in_power, so that the row's std comes out.

  The standard rules (`Rule.init_std`) take the model's own fan-in; the row's std is that of the
  base model times `found.init_std`, or with `absolute` that itself. The std of a table that is
  looked up follows no fan-in.
  """
  own = 1.0 if label.lookup else float(label.fan_in.size) if absolute else label.fan_in.ratio
  return found.init_std / own ** fan_in_power


def tied_multiplier(row: Parametrization, embedding: Label) -> float:
  """The multiplier where an embedding [rows, features] is used as readout too.

  Raises:
    UserError: the row gives embedding and readout another std or learning rate, so that one
      tensor cannot be both.
  """
  if not isinstance(row, ScaledRow) or row.constant_rate:
    return 1.0
  first = row.tensors['lookup' if 'lookup' in row.tensors else 'input']
  output, two = row.tensors['output'], 2.0
  if any(getattr(first, name)(1.0, two) != getattr(output, name)(two, 1.0)
         for name in ('std', 'adam', 'sgd')):
    raise UserError(f'{embedding.path}: {row.name} gives an embedding and a readout different '
                    'stds or learning rates, so they cannot be tied; untie them or take '
                    'mup(form=table8)')
  return output.multiplier(embedding.fan_out.ratio, 1.0)
