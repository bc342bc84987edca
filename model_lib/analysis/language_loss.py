"""What a language model says of each token: loss, output entropy, confidence; and two models' gap.

A model is called as `model.apply(variables, tokens, train=False)` and gives logits [B, T, V]; the
logits at position p predict token p + 1, so windows of T tokens have T - 1 predictions. Losses and
entropies are in nats.

A mean alone hides the tail. LayerNorm-free GPT-2 XL has a mean cross-entropy of 130 on the Pile
where the median is 1.09, from 3 sequences of 10,000 (arXiv:2507.02559, appendix E.1), so `summary`
gives the tails, the largest loss and the number of tokens above 50 with it.
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

EXPLODED = 50.0  # nats; a token above this is counted


class Predictions(NamedTuple):
  """Of every predicted token, [N, T - 1].

  Attributes:
    loss: -log p(token).
    entropy: -sum p log p of the output.
    confidence: the largest probability.
    correct: whether the token is the most probable one.
  """

  loss: np.ndarray
  entropy: np.ndarray
  confidence: np.ndarray
  correct: np.ndarray


def predict(model: nn.Module, variables: Mapping, tokens: np.ndarray,
            batch: int = 16) -> Predictions:
  """The predictions for windows of tokens [N, T], T >= 2, `batch` windows at a time."""
  _check(tokens)
  return in_batches(lambda block: _predict(logits(model, variables, block), block[:, 1:]),
                    tokens, batch)


@functools.partial(jax.jit, static_argnums=0)
def logits(model: nn.Module, variables: Mapping, tokens: jax.Array) -> jax.Array:
  """Of the tokens after the first, [B, T - 1, V], float32 or wider.

  A program of its own: all that reads logits alone shares it.
  """
  found = model.apply(variables, tokens, train=False)[:, :-1]
  return found.astype(jnp.promote_types(found.dtype, jnp.float32))


@jax.jit
def _predict(logits_btv, targets):
  logp = jax.nn.log_softmax(logits_btv)
  loss = -jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
  return Predictions(loss, entropy(logp), jnp.exp(jnp.max(logp, -1)),
                     jnp.argmax(logp, -1) == targets)


def entropy(logp: jax.Array) -> jax.Array:
  """-sum p log p over the last axis, from log p; a probability of 0 adds 0."""
  return -jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(logp) * logp, 0.0), axis=-1)


def summary(loss: np.ndarray) -> dict[str, float]:
  """The distribution of the losses of tokens, any shape.

  Returns:
    mean, median, the percentiles p0.1, p2.5, p97.5, p99.9 (linear interpolation), max, above_50
    (how many are larger than 50, or not finite), not_finite, tokens. Nothing is dropped: with a
    loss that is no number the others are nan.
  """
  loss = np.asarray(loss, np.float64).ravel()
  shares = (0.1, 2.5, 50.0, 97.5, 99.9)
  low_tail, low, median, high, high_tail = np.percentile(loss, shares)
  return {'mean': float(loss.mean()), 'median': float(median), 'p0.1': float(low_tail),
          'p2.5': float(low), 'p97.5': float(high), 'p99.9': float(high_tail),
          'max': float(loss.max()), 'above_50': int(np.sum(~(loss <= EXPLODED))),
          'not_finite': int(np.sum(~np.isfinite(loss))), 'tokens': loss.size}


def difference(a: np.ndarray, b: np.ndarray, resamples: int = 1000, seed: int = 0,
               level: float = 0.95) -> Interval:
  """Mean of a - b, with the interval of a paired bootstrap over sequences.

  Tokens of a sequence are not independent, so whole sequences are drawn, the same of both models.

  Args:
    a, b: [N, ...] of the same tokens in two models: losses, entropies, ...
    resamples, seed, level: of the bootstrap.

  Raises:
    ValueError: the shapes differ.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(f'pairs need equal shapes, got {a.shape} and {b.shape}')
  return mean_bootstrap((a - b).reshape(len(a), -1).mean(1), resamples, seed, level)


def divergence(a: tuple[nn.Module, Mapping], b: tuple[nn.Module, Mapping], tokens: np.ndarray,
               batch: int = 16) -> np.ndarray:
  """Jensen-Shannon divergence of the outputs of two models, in nats, at the T - 1 predictions.

  JSD(p, q) = KL(p | m) / 2 + KL(q | m) / 2 with m = (p + q) / 2; from 0 to log 2.

  Args:
    a, b: (model, variables), of one vocabulary.
    tokens: [N, T].
    batch: windows at a time.

  Returns:
    [N, T - 1].
  """
  _check(tokens)
  return in_batches(lambda block: _divergence(logits(*a, block), logits(*b, block)), tokens, batch)


@jax.jit
def _divergence(logits_a, logits_b):
  p, q = jax.nn.log_softmax(logits_a), jax.nn.log_softmax(logits_b)
  middle = jnp.logaddexp(p, q) - jnp.log(2.0)

  def kl(p):  # as a sum of differences: those of entropies lose small divergences to rounding
    return jnp.sum(jnp.where(p > -jnp.inf, jnp.exp(p) * (p - middle), 0.0), axis=-1)

  return jnp.maximum((kl(p) + kl(q)) / 2, 0.0)


def _check(tokens: np.ndarray) -> None:
  shape = np.shape(tokens)
  if len(shape) != 2 or shape[1] < 2:
    raise UserError(f'windows of tokens are [N, T] with T >= 2, to predict a token from the one '
                    f'before; got {list(shape)}')
