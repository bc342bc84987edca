"""The one table of parametrizations: init, forward multipliers and learning rates.

A kernel acts as `multiplier * w` with `w ~ N(0, std^2)` at the start and is trained
with `lr_multiplier * learning_rate`. Every number of that kind is read from here:
no layer and no optimizer has one of its own, so a factor cannot be applied twice.

Roles: `input` (data -> features), `hidden` (features -> features), `readout`
(features -> outputs), `embedding` (a table looked up by token), `position` (a
learned table added to the tokens).

Standard parametrization (`sp`), fan_in being the rows of the kernel:

  input, hidden, readout   std = gain / sqrt(fan_in)
  embedding                std = 1     (a token enters with variance 1)
  position                 std = 0.02  (small beside the embedding, as in GPT-2)
  biases 0, norm gains 1, all multipliers 1, attention logits q.k / sqrt(head_dim)

The gain is `E[f(z)^2]^-1/2`, z ~ N(0, 1), where the kernel consumes the output of
the activation f, so that its own output has variance 1; it is 1 everywhere else.
Draws are normal, not truncated.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

from model_lib.errors import UserError
from model_lib.spec import nearest


@dataclasses.dataclass(frozen=True)
class Rule:
  """How the tensors of one role start, act and learn.

  Attributes:
    std: factor of the standard deviation at the start.
    fan_in_power: power of fan_in in that standard deviation.
    multiplier: factor on the tensor's output in the forward pass.
    lr_multiplier: factor on the learning rate.
  """

  std: float
  fan_in_power: float
  multiplier: float = 1.0
  lr_multiplier: float = 1.0

  def init_std(self, fan_in: int, gain=1.0):
    """std * fan_in^fan_in_power * gain; `gain` may be a traced scalar."""
    return self.std * float(fan_in) ** self.fan_in_power * gain


@dataclasses.dataclass(frozen=True)
class Parametrization:
  """One row of the table.

  Attributes:
    name: the string by which models ask for it.
    source: where the row comes from.
    rules: role -> Rule.
    head_dim_power: attention logits are q.k * head_dim^head_dim_power.
    depth_power: a residual branch is multiplied by depth^depth_power, where depth is
      the number of blocks.
  """

  name: str
  source: str
  rules: Mapping[str, Rule]
  head_dim_power: float
  depth_power: float

  def attention_multiplier(self, head_dim: int) -> float:
    """The factor on q.k."""
    return float(head_dim) ** self.head_dim_power

  def branch_multiplier(self, depth: int) -> float:
    """The factor on the output of each residual branch of a stack of `depth` blocks."""
    return float(depth) ** self.depth_power


_TABLE = {
  'sp': Parametrization(
    name='sp',
    source='Framework defaults; He et al. 2015, arXiv:1502.01852, for the gain',
    rules=types.MappingProxyType({
      'input': Rule(std=1.0, fan_in_power=-0.5),
      'hidden': Rule(std=1.0, fan_in_power=-0.5),
      'readout': Rule(std=1.0, fan_in_power=-0.5),
      'embedding': Rule(std=1.0, fan_in_power=0.0),
      'position': Rule(std=0.02, fan_in_power=0.0),
    }),
    head_dim_power=-0.5,
    depth_power=0.0,
  ),
}


def names() -> tuple[str, ...]:
  """The rows of the table."""
  return tuple(_TABLE)


def get_parametrization(name: str) -> Parametrization:
  """The row `name`.

  Raises:
    UserError: there is no such row; the message names the nearest.
  """
  if not isinstance(name, str) or name not in _TABLE:
    raise UserError(f'unknown parametrization {name!r}{nearest(str(name), names())}; '
                    f'known: {", ".join(names())}')
  return _TABLE[name]
