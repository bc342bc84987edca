"""The variance of a residual stream at the start, predicted from the moments of the activation.

Branches of two matrices, f(x) = W2 phi(W1 x), without attention; wide, so that what enters phi is
normal with the variance q of the stream over the features. A branch then has the variance

  v(q) = g2 E phi(sqrt(g1 q) z)^2,   z ~ N(0, 1),   g = fan_in std^2 of a matrix,

and it is uncorrelated with the stream, since W2 has mean 0. A norm (eps = 0) sets q to 1, so that
after L branches on a stream of variance 1 the stream has

  pre     1 + L v(1)        peri, sandwich, olmo2   1 + L        post   1, before its norm 1 + v(1)
  pre with 1/sqrt(l) behind its norm (lns)          1 + sum over l of v(1/l)

Attention mixes tokens, which are correlated. Let x_t be tokens of variance q and correlation rho
of any two, a_ts the weights with which token t attends to n tokens, and W_v, W_o the matrices with
g = fan_in std^2, independent of the weights. The branch f_t = W_o W_v sum_s a_ts x_s then has

  E f_t f_t' / D = g_v g_o q (rho + (1 - rho) O(t, t')),   O(t, t') = sum_s a_ts a_t's,

since sum_s sum_s' a_ts a_t's' = 1: the variance needs O(t, t), the sum of the squared weights, 1/n
if they are uniform. At the start they are not quite: the logits of t are normal, their part in
common to all s leaves the softmax as it is, and the rest has the variance

  spread = g_q g_k q^2 (1 - rho) head_dim multiplier^2

(1 - rho behind a norm, with the usual multiplier head_dim^-1/2), and for two queries the
correlation r, 1 for t = t' and rho otherwise. The ratio of the expectations of numerator and
denominator of O is

  O = 1 / (1 + (n - 1) e^(-spread r)),

exact for large n; at n = 16 and spread 1 it is 1.16 times the expectation, less where tokens are
correlated. Positions are taken as alike: no mask. The branches of two matrices map the
covariance by the dual activation, g2 E phi(u) phi(v) for u, v of variance g1 q and correlation rho,
and a norm divides variance and covariance by the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math

import numpy as np

from model_lib.activations import Activation, get_activation
from model_lib.analysis.signal_propagation import dual_activation
from model_lib.errors import UserError
from model_lib.normalization import block
from model_lib.parametrization import Branch, Parametrization, get_parametrization

# float64: the variance of a token; then, where tokens mix, the covariance of two of them.
_Moments = np.ndarray
_Rule = Callable[[Branch, _Moments], _Moments]


@dataclasses.dataclass(frozen=True)
class Growth:
  """Variances over the features, one per branch in order.

  Attributes:
    sums: of skip + branch, before a norm of the sum.
    stream: of the stream after the branch; the same without such a norm.
    final: of what leaves the stack.
    correlation: of two tokens of the stream after the branch; () where tokens do not mix.
  """

  sums: tuple[float, ...]
  stream: tuple[float, ...]
  final: float
  correlation: tuple[float, ...] = ()


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
  rule = _two_matrices(get_parametrization(residual), _pointwise(activation), gains)
  return _grow(norm, residual, blocks, [('mlp', rule)] * per_block, [start])


def attention_variance(norm: str, residual: str, activation: str, blocks: int, tokens: int,
                       head_dim: int, gains: Sequence[float] = (1.0, 1.0),
                       start: tuple[float, float] = (1.0, 0.0)) -> Growth:
  """Predicted variances and token correlations in blocks of attention and a two-matrix branch.

  Args:
    norm, residual, activation, blocks: as for `residual_variance`.
    tokens: n, that attend to each other.
    head_dim: size of a head.
    gains: g of the two matrices behind the attention; those of its own are 1.
    start: variance of the tokens at the start, and their correlation.

  Raises:
    UserError: as `residual_variance`, or a norm of queries and keys.
  """
  row, (variance, correlation) = get_parametrization(residual), start
  if block(norm, residual).qk != 'none':
    raise UserError(f'no variance is predicted for {norm!r}: its queries and keys are normalized')
  rules = [('attention', _attention(row, tokens, head_dim)),
           ('mlp', _two_matrices(row, _pointwise(activation), gains))]
  return _grow(norm, residual, blocks, rules, [variance, variance * correlation])


def overlap(spread: float, correlation: float, tokens: int) -> float:
  """O of the formula above: the expected sum over s of a_ts a_t's of n weights each."""
  return 1 / (1 + (tokens - 1) * math.exp(-spread * correlation))


def _pointwise(activation: str) -> Activation:
  function = get_activation(activation)
  if function.kind != 'pointwise':
    raise UserError(f'no variance is predicted for {activation!r}: it is {function.kind}')
  return function


def _gain(row: Parametrization, label: str, branch: Branch) -> float:
  """The row's factor on the variance of a kernel."""
  return row.kernel(label, branch) ** 2 if row.kernel else 1.0


def _two_matrices(row: Parametrization, function: Activation, gains: Sequence[float]) -> _Rule:
  def rule(branch: Branch, read: _Moments) -> _Moments:
    g1, g2 = (g * _gain(row, label, branch) for g, label in zip(gains, ('in', 'out'), strict=True))
    if not g2:
      return np.zeros_like(read)
    q = g1 * read[0]
    pairs = [float(dual_activation(function, q)(c / read[0])) for c in read[1:]]
    return g2 * np.array([function.moments(q).second, *pairs])
  return rule


def _attention(row: Parametrization, tokens: int, head_dim: int) -> _Rule:
  def rule(branch: Branch, read: _Moments) -> _Moments:
    query, key, value, out = (_gain(row, label, branch)
                              for label in ('query', 'key', 'value', 'out'))
    rho = read[1] / read[0]
    spread = (query * key * read[0] ** 2 * (1 - rho)
              * head_dim * row.attention_multiplier(head_dim) ** 2)
    return value * out * read[0] * np.array(
      [rho + (1 - rho) * overlap(spread, r, tokens) for r in (1.0, rho)])
  return rule


def _grow(norm: str, residual: str, blocks: int, rules: Sequence[tuple[str, _Rule]],
          start: Sequence[float]) -> Growth:
  """The stream through blocks whose branches have these kinds and rules, one after another."""
  row, spec = get_parametrization(residual), block(norm, residual)
  if spec.placement in ('resi_dual', 'ngpt', 'subln', 'normformer'):
    raise UserError(f'no variance is predicted for {spec.placement}: its branch is no W2 phi(W1 x) '
                    'or its stream is not one')
  stream, sums, streams = np.array(start, np.float64), [], []
  for number in range(blocks * len(rules)):
    i, within = divmod(number, len(rules))
    kind, rule = rules[within]
    branch = Branch(i + 1, blocks, kind, within + 1, len(rules))
    factors, spots = row.factors(branch), spec.kind(kind).at(i + 1, blocks).spots(kind)
    # With `parallel` every branch reads the stream before the block.
    if spec.placement != 'parallel' or not within:
      entering = stream * factors.get('input_scale', 1.0) ** 2
    read = entering / entering[0] if 'input' in spots else entering
    f = rule(branch, read * factors.get('norm_scale', 1.0) ** 2)
    f = f / f[0] if 'output' in spots else f
    learned, on = 1.0, ''
    if row.learned and kind in row.learned.kinds:
      learned, on = row.learned.init(branch), row.learned.on
    f = f * (factors.get('branch_scale', 1.0) * (learned if on == 'branch' else 1.0)) ** 2
    skip = factors.get('skip_scale', 1.0) * (learned if on == 'skip' else 1.0)
    stream = skip ** 2 * stream + f
    sums.append(float(stream[0]))
    if 'sum' in spots:
      stream = stream / stream[0]
    streams.append(stream)
  variances = tuple(float(moments[0]) for moments in streams)
  return Growth(tuple(sums), variances, 1.0 if spec.final_norm else variances[-1],
                tuple(float(moments[1] / moments[0]) for moments in streams if len(moments) > 1))
