"""Norms whose gain and bias come from a condition, called as `layer(x, train, condition)`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.normalization import functions as fn
from model_lib.normalization.batch import running_moments, train_moments


def adain(x: jax.Array, style: jax.Array, eps: float) -> jax.Array:
  """sd(style) (x - mean) / sd(x) + mean(style), moments over positions, sd = sqrt(var + eps).

  Shapes: x [B, ..., C], style [B, ..., C] with positions of its own.

  Raises:
    UserError: one of them has no positions.
  """
  mean, var = fn.moments(style, fn.positions(style, 'adain'))
  sd, mean = ((m.reshape(len(m), *(1,) * (x.ndim - 2), -1)) for m in (jnp.sqrt(var + eps), mean))
  y = fn.standardize(fn.wide(x), fn.positions(x, 'adain'), eps)
  return (y * sd + mean).astype(x.dtype)


def modulate(x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
  """gain x + bias; x [B, ..., C], gain and bias [B, C] or of the shape of x."""
  if gain.ndim < x.ndim:
    gain, bias = (part.reshape(len(x), *(1,) * (x.ndim - 2), -1) for part in (gain, bias))
  return (fn.wide(x) * gain + bias).astype(x.dtype)


def _given(condition: jax.Array | None, norm: str) -> jax.Array:
  if condition is None:
    raise UserError(f'{norm} takes a condition, which this model does not have; call its layer as '
                    'layer(x, train, condition) in a model of your own')
  return condition


def _mapped(module: nn.Module, condition: jax.Array, features: int) -> jax.Array:
  """A linear map of the condition [..., D] to [..., features]; it starts at 0."""
  wide = fn.wide(condition)
  kernel = module.param('kernel', nn.initializers.zeros, (wide.shape[-1], features))
  bias = module.param('bias', nn.initializers.zeros, (features,))
  return fn.shift(wide @ kernel.astype(wide.dtype), bias)


class AdaIN(nn.Module):
  """sd(condition) * (x - mean) / sd + mean(condition); x [B, ..., C], condition likewise."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, condition: jax.Array | None = None) -> jax.Array:
    del train
    return adain(x, _given(condition, 'adain'), self.eps)


class FiLM(nn.Module):
  """g(c) * x + b(c), no norm: g and b are affine in the condition; x [B, ..., C], c [B, D].

  They start at 1 and 0. What is trained is g(c) - 1.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, condition: jax.Array | None = None) -> jax.Array:
    del train
    gain, bias = jnp.split(_mapped(self, _given(condition, 'film'), 2 * x.shape[-1]), 2, axis=-1)
    return modulate(x, 1 + gain, bias)


class SPADE(nn.Module):
  """(1 + g(map)) * BN(x) + b(map), g and b linear in each position of the map.

  x [B, ..., C], condition [B, ..., M] with the same positions; BN as `BatchNorm`, without gain
  and bias.
  """

  eps: float
  momentum: float
  running: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, condition: jax.Array | None = None) -> jax.Array:
    condition = _given(condition, 'spade')
    mean_state, var_state, is_new = running_moments(self, x.shape[-1])
    mean, var = mean_state.value, var_state.value
    if train:
      mean, var = train_moments(self, x, mean_state, var_state, is_new)
    y = fn.standardize_with(fn.wide(x), mean, var, self.eps)
    gain, bias = jnp.split(_mapped(self, condition, 2 * x.shape[-1]), 2, axis=-1)
    return modulate(y, 1 + gain, bias).astype(x.dtype)


class AdaLNZero(nn.Module):
  """((1 + s(c)) * LN(x) + t(c), a(c)): the second is the gate of the residual branch.

  s, t and a are linear in the condition and 0 at the start, so that the branch starts closed.
  x [B, ..., C], c [B, D]; the gate is [B, 1, ..., 1, C].
  """

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool,
               condition: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    del train
    parts = _mapped(self, _given(condition, 'adaln_zero'), 3 * x.shape[-1])
    gain, bias, gate = jnp.split(parts, 3, axis=-1)
    y = modulate(fn.standardize(fn.wide(x), -1, self.eps), 1 + gain, bias)
    return y.astype(x.dtype), gate.reshape(len(x), *(1,) * (x.ndim - 2), -1).astype(x.dtype)
