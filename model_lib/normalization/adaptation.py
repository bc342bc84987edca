"""Batch norms that look at the test batch: they train as `batch`, with its names for variables.

So a model that was trained with norm='batch' is built again with one of these, and gets its
variables (`unmix` needs those of `with_components` besides). The moments of a test batch are
biased. What moves at inference moves with `mutable=['batch_stats']` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine
from model_lib.normalization.batch import (
  batch_axes, moved_moments, running_moments, train_moments)

NOISE_SHARE = 0.5  # the share of the source variance that lies between the components
TEMPERATURE = 0.07


class AlphaBatchNorm(nn.Module):
  """Inference with (1 - alpha) running + alpha batch moments; alpha = 1: the batch's alone.

  Training is that of `BatchNorm`. x [B, ..., C].
  """

  eps: float
  momentum: float
  running: str
  alpha: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    if train:
      mean, var = train_moments(self, x, mean_state, var_state, is_new)
    else:
      mean, var = (fn.moving_average(old.value, new.reshape(-1), self.alpha) for old, new in zip(
        (mean_state, var_state), fn.moments(x, batch_axes(x)), strict=True))
    return affine(self, fn.standardize_with(fn.wide(x), mean, var, self.eps)).astype(x.dtype)


class EmaBatchNorm(nn.Module):
  """Inference with running moments that the test batch has moved first, as in training.

  Training is that of `BatchNorm`. x [B, ..., C].
  """

  eps: float
  momentum: float
  running: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    mean, var = mean_state.value, var_state.value
    if train:
      mean, var = train_moments(self, x, mean_state, var_state, is_new)
    elif not is_new:
      _, (mean, var) = moved_moments(x, mean, var, self.momentum, self.running)
      if self.is_mutable_collection('batch_stats'):
        mean_state.value, var_state.value = mean, var
    return affine(self, fn.standardize_with(fn.wide(x), mean, var, self.eps)).astype(x.dtype)


def start_components(key: jax.Array, mean: jax.Array, var: jax.Array,
                     count: int) -> tuple[jax.Array, jax.Array]:
  """The components of UnMix-TNS: their mixture has `mean` and, in expectation, `var`.

  mean_k = mean + sqrt(a K / (K - 1) var) z, z ~ N(0, 1), var_k = (1 - a) var, a = NOISE_SHARE;
  one component is the source itself.

  Args:
    key: of the noise.
    mean, var: running moments of a trained batch norm, [C].
    count: K.

  Returns:
    (means [K, C], variances [K, C]).
  """
  means, variances = (jnp.tile(m[None], (count, 1)) for m in (mean, var))
  if count == 1:
    return means, variances
  spread = jnp.sqrt(NOISE_SHARE * count / (count - 1) * var)
  noise = jax.random.normal(key, means.shape, means.dtype)
  return means + spread[None] * noise, (1 - NOISE_SHARE) * variances


def with_components(key: jax.Array, batch_stats: Mapping[str, Any], count: int) -> dict:
  """The running moments of every batch norm of a model, and `count` components beside them.

  Args:
    key: of the noise; every layer has its own.
    batch_stats: the collection of a trained model.
    count: components of a layer, as `unmix(components=...)`.
  """
  done: dict[str, Any] = {}
  for name, value in batch_stats.items():
    key, own = jax.random.split(key)
    done[name] = with_components(own, value, count) if isinstance(value, Mapping) else value
  if {'mean', 'var'} <= set(batch_stats):
    means, variances = start_components(key, batch_stats['mean'], batch_stats['var'], count)
    done |= {'component_mean': means, 'component_var': variances}
  return done


def assign_components(mean_bc: jax.Array, means_kc: jax.Array) -> jax.Array:
  """softmax_k(cos(mean_b, mean_k) / TEMPERATURE), [B, K]; no gradient passes."""
  unit = lambda m: m / jnp.maximum(jnp.linalg.norm(m, axis=-1, keepdims=True), 1e-8)
  return jax.lax.stop_gradient(
    jax.nn.softmax(unit(mean_bc) @ unit(means_kc).T / TEMPERATURE, axis=-1))


def unmix_moments(mean_bc: jax.Array, var_bc: jax.Array, means_kc: jax.Array, vars_kc: jax.Array,
                  p_bk: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Moments of the mixture that an example sees: its own are mixed into every component.

  With m_bk = (1 - p) mean_k + p mean_b and w_bk likewise from the variances: mean_k m_bk, and
  mean_k w_bk + var_k m_bk.

  Returns:
    (mean [B, C], variance [B, C]).
  """
  p = p_bk[..., None]
  m_bkc = (1 - p) * means_kc[None] + p * mean_bc[:, None]
  w_bkc = (1 - p) * vars_kc[None] + p * var_bc[:, None]
  mean, between = fn.moments(m_bkc, 1)
  return mean[:, 0], jnp.mean(w_bkc, axis=1) + between[:, 0]


class UnMixNorm(nn.Module):
  """Inference with the moments of `unmix_moments`, of each example's own mixture; x [B, ..., C].

  At inference the components move by 1 - (1 - momentum)^(B / batch_max) times the mean over the
  batch of p_bk (moment_b - moment_k). An array without positions has no moments of an example:
  there the running ones are used. Training is that of `BatchNorm`, and leaves the components.
  """

  eps: float
  momentum: float
  running: str
  components: int
  batch_max: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    started = None
    if not self.has_variable('batch_stats', 'component_mean'):
      if not self.is_initializing():
        raise UserError('unmix: the state has no components; make them from that of the trained '
                        'batch norms with normalization.adaptation.with_components')
      started = start_components(self.make_rng('params'), mean_state.value, var_state.value,
                                 self.components)
    means, variances = (
      self.variable('batch_stats', name, lambda i=i: started[i])
      for i, name in enumerate(('component_mean', 'component_var')))
    wide = fn.wide(x)
    if train or x.ndim < 3:
      mean, var = mean_state.value, var_state.value
      if train:
        mean, var = train_moments(self, x, mean_state, var_state, is_new)
      return affine(self, fn.standardize_with(wide, mean, var, self.eps)).astype(x.dtype)
    own = [m.reshape(len(x), -1) for m in fn.moments(x, fn.positions(x, 'unmix'))]
    p_bk = assign_components(own[0], means.value)
    mean, var = (m.reshape(len(x), *(1,) * (x.ndim - 2), -1)
                 for m in unmix_moments(*own, means.value, variances.value, p_bk))
    if started is None and self.is_mutable_collection('batch_stats'):
      rate = 1 - (1 - self.momentum) ** (len(x) / self.batch_max)
      for state, moment in zip((means, variances), own, strict=True):
        change = p_bk[..., None] * (moment[:, None] - state.value[None])
        state.value = state.value + rate * jnp.mean(change, axis=0)
    return affine(self, (wide - mean) * jax.lax.rsqrt(var + self.eps)).astype(x.dtype)
