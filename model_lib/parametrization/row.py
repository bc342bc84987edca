"""What a row of the table consists of: rules of tensors, and rules of residual branches.

A branch f joins the stream x as

  N(skip * x + branch * f(norm * N(input * x)))

with the norms that its placement has. The four factors, the trained factors and the std of the
kernels in the branch are the row's; nothing else scales a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
import types


@dataclasses.dataclass(frozen=True)
class Branch:
  """Where a residual branch stands in its stack.

  Attributes:
    block: number of its block, from 1.
    blocks: number of blocks.
    kind: 'attention' or 'mlp' (any branch without attention).
    within: number of the branch in its block, from 1.
    per_block: branches of a block.
    layers: matrices on the path through the branch.
    before: branches that the stream has taken since its variance was 1; None: since the start.
  """

  block: int
  blocks: int
  kind: str = 'mlp'
  within: int = 1
  per_block: int = 2
  layers: int = 2
  before: int | None = None

  @property
  def count(self) -> int:
    """Number of branches of the stack."""
    return self.blocks * self.per_block

  @property
  def taken(self) -> int:
    """Branches in the stream when this one joins it."""
    if self.before is not None:
      return self.before
    return (self.block - 1) * self.per_block + self.within - 1


@dataclasses.dataclass(frozen=True)
class Rule:
  """How the tensors of one role start and act.

  Attributes:
    std: factor of the standard deviation at the start.
    fan_in_power: power of fan_in in that standard deviation.
    multiplier: factor on the tensor's output in the forward pass.
  """

  std: float
  fan_in_power: float
  multiplier: float = 1.0

  def init_std(self, fan_in: int, gain=1.0):
    """std * fan_in^fan_in_power * gain; `gain` may be a traced scalar."""
    return self.std * float(fan_in) ** self.fan_in_power * gain


@dataclasses.dataclass(frozen=True)
class Learned:
  """A trained factor of a residual rule.

  Attributes:
    name: of the parameter.
    init: its effective value at the start, given the branch.
    per: 'channel', or 'layer' for a scalar.
    on: 'branch' or 'skip', which it multiplies; 'step': the step from x towards f.
    shared: one for all branches of a block.
    kinds: the kinds of branches that have it.
    stored_power: None, or p: the parameter starts at dim^p and acts times init * dim^-p, so
      that an optimizer's step changes it by a share of dim^p.
  """

  name: str
  init: Callable[[Branch], float]
  per: str = 'layer'
  on: str = 'branch'
  shared: bool = False
  kinds: tuple[str, ...] = ('attention', 'mlp')
  stored_power: float | None = None


@dataclasses.dataclass(frozen=True)
class Parametrization:
  """One row of the table. A field that is None leaves its factor at 1.

  Attributes:
    name: the string by which models ask for it, settings included.
    source: where the row comes from.
    rules: role -> Rule.
    head_dim_power: attention logits are q.k * head_dim^head_dim_power.
    depth_power: a residual branch is multiplied by depth^depth_power, where depth is
      the number of blocks.
    skip, branch, norm, input: the factors above, given the branch; swept numbers, by the names
      `skip_scale`, `branch_scale`, `norm_scale` and `input_scale`.
    learned: the trained factor.
    kernel: factor on the std of a kernel of a branch by its label: 'query', 'key', 'value' and
      'out' of attention, 'in' (gates too) and 'out' of the others.
    xavier: whether those kernels start from std (2 / (fan_in + fan_out))^1/2, whatever they
      consume, instead of the rule of their role.
    embedding: std of the token embedding, given dim and the number of blocks.
    head_scale: whether each attention head has a trained factor, 1 at the start.
    placements: the placements that the row is derived for; None: all.
    norms: the norms that it is derived for; None: all.
    reason: why, for the refusal of another placement or norm.
    confirmed: False where the equation is known from memory only.
  """

  name: str
  source: str
  rules: Mapping[str, Rule]
  head_dim_power: float = -0.5
  depth_power: float = 0.0
  skip: Callable[[Branch], float] | None = None
  branch: Callable[[Branch], float] | None = None
  norm: Callable[[Branch], float] | None = None
  input: Callable[[Branch], float] | None = None
  learned: Learned | None = None
  kernel: Callable[[str, Branch], float] | None = None
  xavier: bool = False
  embedding: Callable[[int, int], float] | None = None
  head_scale: bool = False
  placements: tuple[str, ...] | None = None
  norms: tuple[str, ...] | None = None
  reason: str = ''
  confirmed: bool = True

  def attention_multiplier(self, head_dim: int) -> float:
    """The factor on q.k."""
    return float(head_dim) ** self.head_dim_power

  def branch_multiplier(self, depth: int) -> float:
    """The factor on the output of each residual branch of a stack of `depth` blocks."""
    return float(depth) ** self.depth_power

  def factors(self, branch: Branch) -> dict[str, float]:
    """The fixed factors of a branch, by the name of the swept number; those that stay 1 left out.

    skip_scale on the stream, branch_scale on the branch's output, norm_scale on the output of
    the norm before it, input_scale on the stream where the branch reads it.
    """
    given = {'skip_scale': self.skip, 'branch_scale': self.branch,
             'norm_scale': self.norm, 'input_scale': self.input}
    found = {name: float(rule(branch)) for name, rule in given.items() if rule}
    if self.depth_power:
      found['branch_scale'] = (self.branch_multiplier(branch.blocks)
                               * found.get('branch_scale', 1.0))
    return found

  def init_std(self, role: str, fan_in: int, gain=1.0, *, fan_out: int = 0, label: str = '',
               branch: Branch | None = None):
    """Standard deviation of a kernel at the start.

    Args:
      role: a key of `rules`.
      fan_in: values that enter one output.
      gain: factor for what the kernel consumes; may be a traced scalar.
      fan_out: values that one input enters; read by the rows with `xavier`.
      label, branch: of a kernel in a residual branch.
    """
    if branch is None:
      return self.rules[role].init_std(fan_in, gain)
    std = (math.sqrt(2.0 / (fan_in + fan_out)) if self.xavier
           else self.rules[role].init_std(fan_in, gain))
    return std * self.kernel(label, branch) if self.kernel else std

  def table_std(self, role: str, rows: int, dim: int, blocks: int) -> float:
    """Standard deviation of a table [rows, dim] of a model of `blocks` blocks at the start."""
    if role == 'embedding' and self.embedding:
      return self.embedding(dim, blocks)
    return self.rules[role].init_std(rows)


STANDARD = types.MappingProxyType({
  'input': Rule(std=1.0, fan_in_power=-0.5),
  'hidden': Rule(std=1.0, fan_in_power=-0.5),
  'readout': Rule(std=1.0, fan_in_power=-0.5),
  'embedding': Rule(std=1.0, fan_in_power=0.0),
  'position': Rule(std=0.02, fan_in_power=0.0),
})
