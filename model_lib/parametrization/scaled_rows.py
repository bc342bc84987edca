"""The rows of the table that say how tensors and branches change with width and depth.

A row is a `Parametrization`, so its branch multiplier and its attention multiplier are read where
those of all other rows are; to them it adds one `Tensor` per kind of parameter. The numbers are
powers of ratios target / base, so that at the base shape every row is the standard
parametrization (`umup` apart, which has no base and takes the sizes themselves).

r_in, r_out: ratios of a tensor's own fan-in and fan-out. m_L: ratio of the number of blocks.
A residual branch is multiplied by a m_L^-alpha, and an entry of a tensor in it moves by an amount
proportional to m_L^-gamma.

  row                    alpha          gamma        source
  sp, ntk, mean_field    0              0            Yang, Hu 2021, arXiv:2011.14522, table 1
  mup(form=tableN)       0              0            Yang et al. 2022, arXiv:2203.03466, tables
                                                     3, 8 (the default) and 9
  depth_mup              1/2            1/2          Yang et al. 2023, arXiv:2310.02244
  ode                    1              0            ditto
  tp6(alpha, gamma)      any            any          ditto, its family of both exponents
  completep(alpha)       in [1/2, 1]    1 - alpha    Dey et al. 2025 (CompleteP)
  umup                   tau rule       1/2          Blake et al. 2024 (u-muP)

Derived here, not given by the sources: what the Adam columns of `ntk` and `mean_field` say; the
factors of unequal widths except those of kernels under SGD; the depth factor of vectors and
scalars in the blocks of `depth_mup`; its decay, which keeps rate * decay constant.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import types

from model_lib.errors import UserError
from model_lib.parametrization.row import STANDARD, Branch, Parametrization, Rule

FORMS = ('table3', 'table8', 'table9')
CONSTRAINTS = ('none', 'to_output_scale')


@dataclasses.dataclass(frozen=True)
class Powers:
  """r_in^fan_in * r_out^fan_out."""

  fan_in: float = 0.0
  fan_out: float = 0.0

  def __call__(self, r_in: float, r_out: float) -> float:
    return r_in ** self.fan_in * r_out ** self.fan_out


_1 = Powers()


@dataclasses.dataclass(frozen=True)
class Tensor:
  """How a kind of parameter changes with width. The parameter w acts as multiplier * w.

  Attributes:
    std: of w at the start.
    multiplier: the forward factor.
    adam: learning rate under an optimizer whose updates have entries of size 1.
    gradient: size of an entry of the gradient of the loss with respect to w.
    sgd: learning rate under SGD.
  """

  std: Powers = _1
  multiplier: Powers = _1
  adam: Powers = _1
  gradient: Powers = _1
  sgd: Powers = _1


@dataclasses.dataclass(frozen=True)
class ScaledRow(Parametrization):
  """A row with rules of width and depth; `depth_power` is -alpha.

  Attributes:
    tensors: kind -> Tensor; also 'lookup', for embeddings, where they differ from 'input'. A kind
      that is missing has no rule.
    gamma: power of 1 / m_L in the updates of the parameters of a block.
    base_depth: blocks at which the depth factors are 1.
    base_head_dim: head size at which the attention logits have the standard factor.
    constant_rate: whether no learning rate depends on width, whatever the optimizer.
    decay: which factors of the learning rate the weight decay takes back: 'none', 'width' or 'all'.
    thin_decay: decay factors of vectors (in a block, outside of one).
    families: the optimizers that it has rules for; None: all.
    absolute: whether sizes stand in place of ratios.
  """

  tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
  gamma: float = 0.0
  base_depth: float = 1.0
  base_head_dim: float = 1.0
  constant_rate: bool = False
  decay: str = 'all'
  thin_decay: tuple[float, float] = (0.0, 0.0)
  families: tuple[str, ...] | None = None
  absolute: bool = False

  def attention_multiplier(self, head_dim: int) -> float:
    """base^-1/2 (head_dim / base)^head_dim_power."""
    return self.base_head_dim ** -0.5 * (head_dim / self.base_head_dim) ** self.head_dim_power

  def branch_multiplier(self, depth: int) -> float:
    """m_L^-alpha."""
    return (depth / self.base_depth) ** self.depth_power


def _kinds(**tensors: Tensor) -> Mapping[str, Tensor]:
  return types.MappingProxyType({'scalar': Tensor(), **tensors})


_IN, _OUT = Powers(fan_in=1.0), Powers(fan_out=1.0)
_PER_IN, _PER_OUT = Powers(fan_in=-1.0), Powers(fan_out=-1.0)
_PER_ROOT_IN = Powers(fan_in=-0.5)

_SP = _kinds(input=Tensor(std=_PER_ROOT_IN), lookup=Tensor(), hidden=Tensor(std=_PER_ROOT_IN),
             output=Tensor(std=_PER_ROOT_IN), vector=Tensor())

# Table 8: an entry moves by `adam`, and SGD has to divide that by the gradient's size.
_THIN = Tensor(gradient=_PER_OUT, sgd=_OUT)
_MUP = _kinds(
  input=_THIN, vector=_THIN,
  hidden=Tensor(std=_PER_ROOT_IN, adam=_PER_IN, gradient=_PER_OUT, sgd=Powers(-1.0, 1.0)),
  output=Tensor(multiplier=_PER_IN, gradient=_PER_IN, sgd=_IN))


def _moved(tensor: Tensor, theta: Powers) -> Tensor:
  """The same training with multiplier * theta (arXiv:2203.03466, lemma J.1).

  (A, B, C) -> (A theta, B / theta, C / theta), under SGD C / theta^2; the gradient is
  proportional to A.
  """
  def times(powers, n):
    return Powers(powers.fan_in + n * theta.fan_in, powers.fan_out + n * theta.fan_out)

  return Tensor(times(tensor.std, -1), times(tensor.multiplier, 1), times(tensor.adam, -1),
                times(tensor.gradient, 1), times(tensor.sgd, -2))


_FORMS = {
  'table8': _MUP,
  # The output has no multiplier.
  'table3': _kinds(**{**_MUP, 'output': _moved(_MUP['output'], _IN)}),
  # SGD has one rate for all.
  'table9': _kinds(**{
    **_MUP, 'output': _moved(_MUP['output'], Powers(fan_in=0.5)),
    'input': _moved(_THIN, Powers(fan_out=0.5)), 'vector': _moved(_THIN, Powers(fan_out=0.5))}),
}


def sp() -> ScaledRow:
  """Standard parametrization: stds fall as fan_in^-1/2, nothing else changes."""
  return ScaledRow('sp', 'framework defaults', STANDARD, tensors=_SP, constant_rate=True,
                   decay='none', thin_decay=(1.0, 1.0))


def ntk() -> ScaledRow:
  """Stds constant, kernels multiplied by r_in^-1/2; SGD at one rate is the kernel regime.

  Under Adam a kernel's rate is r_in^-1/2: hidden features then move by a constant amount, while
  the logits' updates grow with width. Gradients' sizes are those of the start, as measured.
  """
  def kernel(gradient):
    return Tensor(multiplier=_PER_ROOT_IN, adam=_PER_ROOT_IN, gradient=gradient)

  root_out = Powers(fan_out=-0.5)
  return ScaledRow('ntk', 'Jacot et al. 2018, arXiv:1806.07572; arXiv:2011.14522, table 1',
                   STANDARD, decay='none', thin_decay=(1.0, 1.0), tensors=_kinds(
                     input=kernel(root_out), lookup=Tensor(gradient=root_out),
                     hidden=kernel(Powers(-0.5, -0.5)), output=kernel(_PER_ROOT_IN),
                     vector=Tensor(gradient=root_out)))


def mean_field() -> ScaledRow:
  """One hidden layer: stds constant, readout divided by r_in, SGD's rates times the width."""
  return ScaledRow('mean_field', 'Mei et al. 2018; arXiv:2011.14522, table 1', STANDARD,
                   tensors=_kinds(input=Tensor(gradient=_PER_OUT, sgd=_OUT),
                                  vector=Tensor(gradient=_PER_OUT, sgd=_OUT),
                                  output=Tensor(multiplier=_PER_IN, gradient=_PER_IN, sgd=_IN)))


def mup(form: str = 'table8', base_head_dim: float = 1.0) -> ScaledRow:
  """Maximal update parametrization over width, in one of its three equivalent forms."""
  return ScaledRow(
    'mup', f'Yang et al. 2022, arXiv:2203.03466, {form.replace("table", "table ")}', STANDARD,
    head_dim_power=-1.0, base_head_dim=_at_least_one('base_head_dim', base_head_dim),
    tensors=_FORMS[form])


def tp6(alpha: float = 0.5, gamma: float = 0.5, a: float = 1.0, base_depth: float = 1.0,
        base_head_dim: float = 1.0) -> ScaledRow:
  """muP over width; branches a m_L^-alpha f(x), updates of a block's tensors m_L^-gamma."""
  return _deep('tp6', 'Yang et al. 2023, arXiv:2310.02244', alpha, gamma, a, base_depth,
               base_head_dim)


def depth_mup(a: float = 1.0, base_depth: float = 1.0, base_head_dim: float = 1.0) -> ScaledRow:
  """muP over width; branches a m_L^-1/2 f(x), updates m_L^-1/2. For blocks of one matrix."""
  return _deep('depth_mup', 'Yang et al. 2023, arXiv:2310.02244', 0.5, 0.5, a, base_depth,
               base_head_dim)


def ode(a: float = 1.0, base_depth: float = 1.0, base_head_dim: float = 1.0) -> ScaledRow:
  """muP over width; branches a m_L^-1 f(x), updates constant: a smooth ODE in depth."""
  return _deep('ode', 'Yang et al. 2023, arXiv:2310.02244', 1.0, 0.0, a, base_depth, base_head_dim)


def completep(alpha: float = 1.0, a: float = 1.0, base_depth: float = 1.0,
              base_head_dim: float = 1.0) -> ScaledRow:
  """muP over width; branches a m_L^-alpha f(x), updates m_L^(alpha - 1), alpha in [1/2, 1].

  The weight decay takes back the width's factor of the rate alone, and the norm outside of the
  stack decays, as in the source's table.
  """
  if not 0.5 <= alpha <= 1.0:
    raise UserError(f'completep: alpha must be in [1/2, 1], not {alpha!r}: below, the stream '
                    'blows up at the start; above, training is not faithful')
  row = _deep('completep', 'Dey et al. 2025 (CompleteP), table 1', alpha, 1.0 - alpha, a,
              base_depth, base_head_dim)
  return dataclasses.replace(row, decay='width', thin_decay=(0.0, 1.0))


def _deep(name, source, alpha, gamma, a, base_depth, base_head_dim) -> ScaledRow:
  return ScaledRow(
    name, source, STANDARD, head_dim_power=-1.0, depth_power=-alpha,
    branch=None if a == 1.0 else lambda branch: a, tensors=_MUP, gamma=gamma,
    base_depth=_at_least_one('base_depth', base_depth),
    base_head_dim=_at_least_one('base_head_dim', base_head_dim),
    placements=('none', 'pre', 'parallel', 'sandwich', 'peri', 'olmo2', 'subln'),
    reason='a norm of the sum takes the factor of the branch out again')


def umup(residual: float = 1.0, ratio: float = 1.0, constraint: str = 'none') -> ScaledRow:
  """Unit scaling with muP: stds 1, forward factors fan_in^-1/2, of the readout 1 / fan_in.

  Without a base shape: fans and depth are sizes. The factors are those of the forward pass; the
  backward ones belong to the unit-scaled operations. The weight decay of the recipe is independent
  of the learning rate. Branch number i (from 0) of S, with
  a_mlp = residual (2 / (1 + ratio^2))^1/2 and a_attention = ratio a_mlp, has

    tau^2 = a_i^2 / (S/2 + (branches before it: sum of their a^2)),

  and the stream becomes (x + tau f(x)) / (1 + tau^2)^1/2. Attention logits are q.k / head_dim.

  Args:
    residual, ratio: r and the ratio of attention to mlp.
    constraint: under SGD, 'none' for Adam's rates, or 'to_output_scale' for rates fan_in^1/2 of
      kernels, their sizes of vectors, and 1 of the output.
  """
  a_mlp = residual * math.sqrt(2 / (1 + ratio ** 2))

  def tau(branch: Branch) -> float:
    if branch.per_block != 2:
      raise UserError('umup: its rule of the branches is for blocks of attention and mlp, not for '
                      f'{branch.per_block} branches a block; take completep or depth_mup')
    i, a_attention = branch.taken, ratio * a_mlp
    before = (i + 1) // 2 * a_attention ** 2 + i // 2 * a_mlp ** 2
    return (a_mlp if i % 2 else a_attention) / math.sqrt(branch.count / 2 + before)

  scaled = constraint == 'to_output_scale'
  kernel = Tensor(multiplier=_PER_ROOT_IN, adam=_PER_ROOT_IN,
                  sgd=Powers(fan_in=0.5) if scaled else _PER_ROOT_IN)
  # The fan-in of an embedding is its hidden dimension.
  lookup = Tensor(adam=Powers(fan_out=-0.5), sgd=Powers(fan_out=0.5 if scaled else -0.5))
  unit = types.MappingProxyType({role: Rule(std=1.0, fan_in_power=0.0) for role in STANDARD})
  return ScaledRow(
    'umup', 'Blake et al. 2024 (u-muP); its unit_scaling package', unit, head_dim_power=-1.0,
    skip=lambda branch: (1 + tau(branch) ** 2) ** -0.5,
    branch=lambda branch: tau(branch) * (1 + tau(branch) ** 2) ** -0.5,
    gamma=0.5, thin_decay=(1.0, 1.0), families=('adam', 'sgd', 'momentum'), absolute=True,
    tensors=_kinds(input=kernel, lookup=lookup, hidden=kernel, output=Tensor(multiplier=_PER_IN),
                   vector=Tensor(sgd=_OUT if scaled else _1)))


def _at_least_one(name: str, value: float) -> float:
  if not value >= 1:
    raise UserError(f'{name} must be at least 1, not {value!r}: it is a size of the base model')
  return float(value)


CHOICES = {('mup', 'form'): FORMS, ('umup', 'constraint'): CONSTRAINTS}
MAKERS = {maker.__name__: maker for maker in (
  ntk, mean_field, mup, tp6, depth_mup, ode, completep, umup)}
