"""The last map of a GPT-2, from the residual stream to the logits, as one matrix at a known scale.

With r the residual stream [D], C = I - 11'/D the centering of the final LayerNorm, gamma and beta
its gain and shift, and W_U the unembedding [D, V],

  logits = s(r) r W + constant,   W = C diag(gamma) W_U,   s(r) = 1 / sigma(r), or a frozen number.

A constant over the vocabulary changes no probability, so W is centred over it too. This is what is
left of "fold the norm, centre the weights" without a change to the model: W is the folded matrix.
RMSNorm has C = I, and a model without a final norm also gamma = 1 and s = 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError


def centers(model: nn.Module) -> bool:
  """Whether the final norm of a `models.gpt2.GPT2` subtracts the mean.

  Raises:
    UserError: it is none of 'layer', 'rms', 'none': then the last map is not linear at a fixed
      scale.
  """
  norm = model.final_norm or model.norm
  if norm not in ('layer', 'rms', 'none'):
    raise UserError(f'final norm {norm!r}: the map from the residual stream to the logits is read '
                    "as a matrix at a scale, which needs 'layer', 'rms' or 'none'")
  return norm == 'layer'


def unembedding(variables: Mapping) -> jax.Array:
  """W_U [D, V]: the readout's kernel, or the transposed embedding where they are tied."""
  params = variables['params']
  return params['lm_head']['kernel'] if 'lm_head' in params else params['wte']['embedding'].T


def readout(model: nn.Module, variables: Mapping) -> jax.Array:
  """W [D, V] of the module's docstring, centred over the vocabulary."""
  weight = unembedding(variables)
  norm = variables['params'].get('ln_f', {})
  if 'scale' in norm:
    weight = norm['scale'][:, None] * weight
  if centers(model):
    weight = weight - jnp.mean(weight, 0, keepdims=True)
  return weight - jnp.mean(weight, 1, keepdims=True)


def scale(model: nn.Module, variables: Mapping, taps: Mapping) -> jax.Array:
  """s(r) [B, T] as the model used it: from what entered its final norm and what left it.

  The norm's output without its shift is s times the (centred) residual stream times the gain; s
  is the projection of the one onto the other, so it is right for a real, a frozen and a
  half-removed norm alike.
  """
  norm = variables['params'].get('ln_f', {})
  x, y = taps['resid_final'], taps['final']
  if centers(model):
    x = x - jnp.mean(x, -1, keepdims=True)
  if 'scale' in norm:
    x = x * norm['scale'][None, None]
  if 'bias' in norm:
    y = y - norm['bias'][None, None]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  x, y = x.astype(wide), y.astype(wide)
  return jnp.sum(x * y, -1) / jnp.sum(x * x, -1)
