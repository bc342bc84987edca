"""What stands in a norm's place without statistics: bounded functions, affine maps, soft caps.

All are called as `layer(x, train)`, x [..., C]; result of its shape and dtype.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.normalization import functions as fn
from model_lib.normalization.affine import affine


def exp_sign(x: jax.Array) -> jax.Array:
  """sign(x) (1 - exp(-|x|)); its derivative at 0 is 1."""
  return jnp.where(x < 0, jnp.expm1(jnp.minimum(x, 0)), -jnp.expm1(-jnp.maximum(x, 0)))


# The functions f of `PointwiseNorm`.
FUNCTIONS = {
  'isru': lambda x: x * jax.lax.rsqrt(jnp.square(x) + 1),
  'arctan': lambda x: 2 / math.pi * jnp.arctan(x),
  'expsign': exp_sign,
  'satursin': lambda x: jnp.sin(jnp.clip(x, -math.pi / 2, math.pi / 2)),
  'smoothsign': lambda x: x / (1 + jnp.abs(x)),
  'linear_clip': lambda x: jnp.clip(x, -1, 1),
}


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """cap tanh(x / cap): |result| is below cap; any shape."""
  return (cap * jnp.tanh(fn.wide(x) / cap)).astype(x.dtype)


class Derf(nn.Module):
  """g * erf(alpha * x + s) + b with one alpha and one s; x [..., C]."""

  alpha: float
  shift: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return affine(self, jax.lax.erf(_inner(self, x))).astype(x.dtype)


class PointwiseNorm(nn.Module):
  """g * f(alpha * x + s) + b with one alpha and one s, f of FUNCTIONS; x [..., C]."""

  f: str
  alpha: float
  shift: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return affine(self, FUNCTIONS[self.f](_inner(self, x))).astype(x.dtype)


def _inner(module: nn.Module, x: jax.Array) -> jax.Array:
  alpha = module.param('alpha', nn.initializers.constant(module.alpha), ())
  shift = module.param('shift', nn.initializers.constant(module.shift), ())
  return fn.wide(x) * alpha + shift


class Affine(nn.Module):
  """g * x + b; x [..., C]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return affine(self, fn.wide(x)).astype(x.dtype)


class SoftCap(nn.Module):
  """cap * tanh(x / cap); any shape."""

  cap: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    del train
    return soft_cap(x, self.cap)
