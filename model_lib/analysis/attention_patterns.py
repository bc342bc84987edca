"""Attention of every head: how much goes to position 0, and its entropy.

With A(q, s) the attention of query q to position s of one head, and query 0 left out of the sinks
(it sees position 0 alone), for eps = 0.3

  sink rate by query   mean over layers, heads and queries of [A(q, 0) > eps]
  sink rate by head    share of the heads with mean over queries of A(q, 0) > eps

The first is what the code of arXiv:2507.02559 computes (with query 0, which always counts there),
the second that of Gu et al. 2024, "When attention sink emerges" (arXiv:2410.10781), here taken in
each window by itself and then averaged.

The entropy of a head is E = mean over queries of -sum_s A log A, in nats (arXiv:2410.13060 and
arXiv:2501.03489). Query q of a causal model sees q + 1 positions, so E cannot exceed the mean of
log(q + 1); log T, which those papers use as the largest, is out of reach.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis.batches import in_batches
from model_lib.analysis.bootstrap import mean_bootstrap
from model_lib.analysis.statistics import Interval
from model_lib.errors import UserError

EPSILON = 0.3


class Patterns(NamedTuple):
  """Per window and head, [N, L, H].

  Attributes:
    sunk: share of the queries behind position 0 with A(q, 0) > eps.
    to_first: their mean A(q, 0).
    entropy: mean over all queries, nats.
    relative_entropy: mean over the queries behind position 0 of the entropy over log(q + 1).
  """

  sunk: np.ndarray
  to_first: np.ndarray
  entropy: np.ndarray
  relative_entropy: np.ndarray


def patterns(model: nn.Module, variables: Mapping, tokens: np.ndarray, batch: int = 8,
             epsilon: float = EPSILON) -> Patterns:
  """The patterns of a causal model whose taps have `attention` [L, B, H, T, T].

  Args:
    model, variables: of a `models.gpt2.GPT2`.
    tokens: windows [N, T], T >= 2.
    batch: windows at a time.
    epsilon: of `sunk`.
  """
  if np.ndim(tokens) != 2 or np.shape(tokens)[1] < 2:
    raise UserError(f'attention is measured in windows [N, T] with T >= 2, got '
                    f'{list(np.shape(tokens))}')
  return in_batches(lambda block: _patterns(model, variables, block, epsilon), tokens, batch)


@functools.partial(jax.jit, static_argnums=0)
def _patterns(model, variables, tokens, epsilon):
  _, taps = model.apply(variables, tokens, train=False, taps=True)
  a = taps['attention']
  a = jnp.moveaxis(a.astype(jnp.promote_types(a.dtype, jnp.float32)), 1, 0)  # [B, L, H, T, T]
  first = a[..., 1:, 0]
  entropy = -jnp.sum(jnp.where(a > 0, a * jnp.log(jnp.where(a > 0, a, 1.0)), 0.0), -1)
  visible = jnp.log(jnp.arange(2, a.shape[-1] + 1).astype(a.dtype))
  return Patterns(jnp.mean(first > epsilon, -1), jnp.mean(first, -1), jnp.mean(entropy, -1),
                  jnp.mean(entropy[..., 1:] / visible[None, None, None], -1))


def sink_rates(found: Patterns, epsilon: float = EPSILON, resamples: int = 1000, seed: int = 0,
               level: float = 0.95) -> dict[str, Interval]:
  """{'query': ..., 'head': ...}: both rates, with a bootstrap interval over windows.

  The epsilon is that of the rate by head; the rate by query keeps the one of `patterns`.
  """
  options = {'resamples': resamples, 'seed': seed, 'level': level}
  return {'query': mean_bootstrap(found.sunk.mean((1, 2)), **options),
          'head': mean_bootstrap((found.to_first > epsilon).mean((1, 2)), **options)}


def largest_entropy(length: int) -> float:
  """mean over q < T of log(q + 1): the entropy of a head that attends evenly, in nats."""
  return float(np.log(np.arange(1, length + 1)).mean())


def entropy_bands(entropy: np.ndarray, largest: float) -> dict[str, float]:
  """Shares of heads by their entropy: 'collapse' below a quarter of the largest, 'overload' above
  three quarters, 'between' (arXiv:2410.13060).

  Args:
    entropy: of each head, any shape: the mean over windows, for one number per head.
    largest: `largest_entropy(T)`, or log(T) as in the paper.
  """
  share = np.asarray(entropy, np.float64) / largest
  return {'collapse': float(np.mean(share < 0.25)),
          'between': float(np.mean((share >= 0.25) & (share <= 0.75))),
          'overload': float(np.mean(share > 0.75))}
