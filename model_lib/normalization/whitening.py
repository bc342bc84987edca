"""Whitening of the channels by Newton's iteration for the inverse square root."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine
from model_lib.normalization.batch import count_values


def inverse_sqrt(covariance: jax.Array, iterations: int) -> jax.Array:
  """S^(-1/2) by Newton's iteration, which starts from S / tr S: without it, it diverges.

  P_0 = I, P <- (3 P - P^3 S / tr S) / 2, result P / sqrt(tr S).

  Args:
    covariance: [..., c, c], symmetric, positive.
    iterations: of Newton.
  """
  trace = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
  normalized = covariance / trace
  p = jnp.broadcast_to(jnp.eye(covariance.shape[-1], dtype=covariance.dtype), covariance.shape)
  for _ in range(iterations):
    p = 1.5 * p - 0.5 * (p @ p @ p @ normalized)
  return p / jnp.sqrt(trace)


class IterNorm(nn.Module):
  """g * (x - mean) S^(-1/2) + b, S the covariance of each group of channels; x [B, ..., C].

  S is biased and has eps on its diagonal. The running mean and the running S^(-1/2), in
  `batch_stats`, move in training and are used at inference.

  Raises:
    UserError: training with one value per channel, or C is not divisible by `groups`.
  """

  groups: int
  iterations: int
  eps: float
  momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    fn.check_groups(x, self.groups, 'whiten')
    size = x.shape[-1] // self.groups
    is_new = not self.has_variable('batch_stats', 'mean')
    identity = lambda: jnp.tile(jnp.eye(size, dtype=jnp.float32), (self.groups, 1, 1))
    mean_state = self.variable('batch_stats', 'mean', jnp.zeros, x.shape[-1:], jnp.float32)
    whitener_state = self.variable('batch_stats', 'whitener', identity)
    x_ngc = fn.wide(x).reshape(-1, self.groups, size)
    mean_gc, whitener = mean_state.value.reshape(self.groups, size), whitener_state.value
    if train:
      count = count_values(x, 'whiten')
      mean_gc = jnp.mean(x_ngc, axis=0)
      centred = x_ngc - mean_gc[None]
      covariance = jnp.einsum('ngc,ngd->gcd', centred, centred) / count
      covariance += self.eps * jnp.eye(size, dtype=covariance.dtype)[None]
      whitener = inverse_sqrt(covariance, self.iterations)
      if not is_new:
        mean_state.value = fn.moving_average(mean_state.value, mean_gc.reshape(-1), self.momentum)
        whitener_state.value = fn.moving_average(whitener_state.value, whitener, self.momentum)
    y = jnp.einsum('ngc,gcd->ngd', x_ngc - mean_gc[None], whitener)
    return affine(self, y.reshape(x.shape)).astype(x.dtype)
