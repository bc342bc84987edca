"""Direct logit attribution of attention heads against their direct effect on the logits.

With r the residual stream behind the last block at position p, c_h what head h adds to it (its z
through its rows of the output kernel, no bias), t the token at p + 1 and u_t its column of the
unembedding, centred over the vocabulary,

  direct effect       DE_h  = LN_f(r) . u_t - LN_f(r - c_h) . u_t
  direct attribution  DLA_h = c_h . W_t s(r),  with the scale s(r) of the whole stream kept
  error               NMAE  = 100 mean |DLA - DE| / mean |DE|  percent

of arXiv:2507.02559, section 5.1. Its equation 10 is the mean of each head's NMAE; its code gives
one ratio of all heads and samples. Both are here. The code also reads the token *at* p from the
stream at p, which predicts the one behind it; here t is the predicted token.

DLA = DE to rounding wherever the last norm is linear, since then s does not depend on r. That is
algebra, not a finding about a model: it checks a removal or a fold.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis import readout
from model_lib.analysis.batches import in_batches
from model_lib.analysis.bootstrap import bootstrap
from model_lib.analysis.statistics import Interval
from model_lib.models.dense import merged


class Attribution(NamedTuple):
  """Of the logit of the last token, read at the position before it; [N, L, H] each."""

  attribution: np.ndarray
  effect: np.ndarray


class Nmae(NamedTuple):
  """In percent.

  Attributes:
    per_head: mean over heads of their NMAE (the paper's equation).
    pooled: one ratio of all heads and sequences (the paper's code).
    heads: [L, H] NMAE of each; inf for a head without any effect.
  """

  per_head: Interval
  pooled: Interval
  heads: np.ndarray


def attribute(model: nn.Module, variables: Mapping, tokens: np.ndarray,
              batch: int = 8) -> Attribution:
  """DLA and DE of every head for windows of tokens [N, T], T >= 2.

  Args:
    model: a `models.gpt2.GPT2`: its taps `head_out`, `resid_final` and `final` and its edit
      `resid_final` are used.
    variables: of the model.
    tokens: the last of each window is the predicted one.
    batch: windows at a time; L + 1 passes over each batch.

  Raises:
    UserError: the final norm is none of 'layer', 'rms', 'none'.
  """
  readout.centers(model)
  return in_batches(lambda block: _attribute(model, variables, block), tokens, batch)


@functools.partial(jax.jit, static_argnums=0)
def _attribute(model, variables, tokens):
  _, taps = model.apply(variables, tokens, train=False, taps=True)
  at, target = tokens.shape[1] - 2, tokens[:, -1]
  c_lhbd = contributions(variables, taps['head_out'][:, :, at])
  weight = readout.readout(model, variables).T[target]  # [B, D]
  s_b = readout.scale(model, variables, taps)[:, at]
  attribution = jnp.einsum('lhbd,bd,b->blh', c_lhbd, weight, s_b)

  def logit(change_bd):
    """The centred logit of the target, with the change added to the stream at the position."""
    zeros = jnp.zeros_like(taps['resid_final'])
    logits = model.apply(variables, tokens, train=False,
                         edits={'resid_final': zeros.at[:, at].add(change_bd)})[:, at]
    own = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
    return own - jnp.mean(logits, -1)

  whole = logit(jnp.zeros_like(c_lhbd[0, 0]))
  # Heads of a layer under vmap: what does not depend on the change is computed once.
  without_lhb = jax.lax.map(jax.vmap(logit), -c_lhbd)
  return Attribution(attribution, jnp.moveaxis(whole[None, None] - without_lhb, 2, 0))


def contributions(variables: Mapping, z_lbhd: jax.Array) -> jax.Array:
  """What every head adds to the residual stream at one position: z [L, B, H, d] -> [L, H, B, D]."""
  kernel = merged(variables['params']['h']['attn']['c_proj'])['kernel']
  depth, _, heads, head_dim = z_lbhd.shape
  return jnp.einsum('lbhd,lhde->lhbe', z_lbhd, kernel.reshape(depth, heads, head_dim, -1))


def nmae(found: Attribution, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Nmae:
  """Both errors, with percentile intervals over heads and sequences, resampled together."""
  count = len(found.effect)
  effect = np.abs(np.asarray(found.effect, np.float64)).reshape(count, -1)
  error = np.abs(np.asarray(found.attribution, np.float64)
                 - np.asarray(found.effect, np.float64)).reshape(count, -1)

  def heads_of(rows, columns):
    # Means over the drawn sequences, as weights: no copy of the whole table per draw.
    weights = np.bincount(rows, minlength=count) / len(rows)
    return (weights @ error)[columns], (weights @ effect)[columns]

  def per_head(rows, columns):
    with np.errstate(divide='ignore', invalid='ignore'):
      above, below = heads_of(rows, columns)
      return 100 * np.mean(above / below)

  def pooled(rows, columns):
    with np.errstate(divide='ignore', invalid='ignore'):
      above, below = heads_of(rows, columns)
      return 100 * above.sum() / below.sum()

  with np.errstate(divide='ignore', invalid='ignore'):
    heads = 100 * error.mean(0) / effect.mean(0)
  options = {'resamples': resamples, 'seed': seed, 'level': level}
  return Nmae(bootstrap(per_head, error.shape, **options),
              bootstrap(pooled, error.shape, **options), heads.reshape(found.effect.shape[1:]))
