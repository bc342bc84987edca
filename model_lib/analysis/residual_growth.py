"""The variance of a residual stream at the start, predicted from the moments of the activation.

Branches of two matrices, f(x) = W2 phi(W1 x), without attention; wide, so that what enters phi is
normal with the variance q of the stream over the features. A branch then has the variance

  v(q) = g2 E phi(sqrt(g1 q) z)^2,   z ~ N(0, 1),   g = fan_in std^2 of a matrix,

and it is uncorrelated with the stream, since W2 has mean 0. A norm (eps = 0) sets q to 1, so that
after L branches on a stream of variance 1 the stream has

  pre     1 + L v(1)        peri, sandwich, olmo2   1 + L        post   1, before its norm 1 + v(1)
  pre with 1/sqrt(l) behind its norm (lns)          1 + sum over l of v(1/l)

Attention has less, by the correlation of the tokens: it averages values.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from model_lib.activations import get_activation
from model_lib.errors import UserError
from model_lib.normalization import block
from model_lib.parametrization import Branch, get_parametrization


@dataclasses.dataclass(frozen=True)
class Growth:
  """Variances over the features, one per branch in order.

  Attributes:
    sums: of skip + branch, before a norm of the sum.
    stream: of the stream after the branch; the same without such a norm.
    final: of what leaves the stack.
  """

  sums: tuple[float, ...]
  stream: tuple[float, ...]
  final: float


def residual_variance(norm: str, residual: str, activation: str, blocks: int,
                      gains: Sequence[float] = (1.0, 1.0), per_block: int = 1,
                      start: float = 1.0) -> Growth:
  """Predicted variances in a stack of `blocks` blocks of `per_block` two-matrix branches.

  Args:
    norm: placement, as `normalization.block` reads it.
    residual: row of the parametrization table; its factors and inits count.
    activation: spec of phi, pointwise.
    blocks, per_block: blocks, and branches of one.
    gains: g of the two matrices before the row's factors: (1, 2) is He's second matrix.
    start: variance of the stream at the start.

  Returns:
    The variances.

  Raises:
    UserError: a placement with two streams, a norm in the branch or a step on the sphere, or a
      gated activation, for which the formula above does not hold.
  """
  row, spec, function = get_parametrization(residual), block(norm, residual), get_activation(
    activation)
  if spec.placement in ('resi_dual', 'ngpt', 'subln', 'normformer'):
    raise UserError(f'no variance is predicted for {spec.placement}: its branch is no W2 phi(W1 x) '
                    'or its stream is not one')
  if function.kind != 'pointwise':
    raise UserError(f'no variance is predicted for {activation!r}: it is {function.kind}')
  q, sums, stream = float(start), [], []
  for number in range(blocks * per_block):
    i, within = divmod(number, per_block)
    branch = Branch(i + 1, blocks, 'mlp', within + 1, per_block)
    factors = row.factors(branch)
    at = spec.mlp.at(i + 1, blocks)
    # With `parallel` every branch reads the stream before the block.
    if spec.placement != 'parallel' or not within:
      entering = q * factors.get('input_scale', 1.0) ** 2
    read = (1.0 if 'input' in at.spots('mlp') else entering) * factors.get('norm_scale', 1.0) ** 2
    g1, g2 = (g * (row.kernel(label, branch) ** 2 if row.kernel else 1.0)
              for g, label in zip(gains, ('in', 'out'), strict=True))
    v = g2 * function.moments(g1 * read).second if g2 else 0.0
    v = 1.0 if 'output' in at.spots('mlp') else v
    learned, on = 1.0, ''
    if row.learned and 'mlp' in row.learned.kinds:
      learned, on = row.learned.init(branch), row.learned.on
    v *= (factors.get('branch_scale', 1.0) * (learned if on == 'branch' else 1.0)) ** 2
    skip = factors.get('skip_scale', 1.0) * (learned if on == 'skip' else 1.0)
    sums.append(skip ** 2 * q + v)
    q = 1.0 if 'sum' in at.spots('mlp') else sums[-1]
    stream.append(q)
  return Growth(tuple(sums), tuple(stream), 1.0 if spec.final_norm else q)
