"""Activations with learnable numbers of their own; the defaults are their first values.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; a parameter is a scalar or an array that broadcasts against x. `get_activation` adds
the float32 arithmetic for narrower inputs and shapes the parameters. None of them should
have weight decay.
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from model_lib.activations.bounded import unnormalized_sinc
from model_lib.activations.numerics import EXPONENT_LIMIT
from model_lib.activations.registry import register


@register(source='torch', learnable=('slope',), kinks=(0.0,),
          monotone=lambda slope: 'increasing' if slope >= 0 else '')
def prelu(x: jax.Array, slope: float | jax.Array = 0.25) -> jax.Array:
  """x for x >= 0, slope x for x < 0.

  He et al. 2015, arXiv 1502.01852.

  The paper has a slope per channel, and a variant with one per layer.
  """
  return jnp.where(x >= 0, x, slope * x)


@register(source='ramachandran2017', learnable=('beta',), duplicates=('acon_c', 'silu', 'xsilu'))
def swish_beta(x: jax.Array, beta: float | jax.Array = 1.0) -> jax.Array:
  """x sigmoid(beta x).

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return x * jax.nn.sigmoid(beta * x)


@register(source='sun2024', learnable=('epsilon',), kinks=(0.0,))
def crrelu(x: jax.Array, epsilon: float | jax.Array = 0.01) -> jax.Array:
  """max(x, 0) + epsilon x e^(-x^2 / 2).

  Sun et al. 2024, arXiv 2405.12954.

  Increasing on x > 0 while -1 < epsilon < e^1.5 / 2. E f^2 = 1/2 + epsilon / (2 sqrt 2) +
  epsilon^2 / (3 sqrt 3) under N(0, 1). The entropy of the positive branch under a Gaussian
  input falls for a negative epsilon, although the first value is positive.
  """
  return jax.nn.relu(x) + epsilon * x * jnp.exp(-0.5 * jnp.square(x))


@register(source='ma2021', learnable=('p1', 'p2', 'beta'),
          duplicates=('silu', 'swish_beta', 'xsilu'))
def acon_c(
    x: jax.Array, p1: float | jax.Array = 1.0, p2: float | jax.Array = 0.0,
    beta: float | jax.Array = 1.0,
) -> jax.Array:
  """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x.

  Ma et al. 2021, arXiv 2009.04759.

  There p1 and p2 start from N(0, 1); the fixed first values here make it SiLU.
  """
  scaled = (p1 - p2) * x
  return scaled * jax.nn.sigmoid(beta * scaled) + p2 * x


@register(source='ziyin2020', learnable=('a',), monotone='increasing')
def snake(x: jax.Array, a: float | jax.Array = 1.0) -> jax.Array:
  """x + sin(a x)^2 / a, and x for a = 0.

  Ziyin et al. 2020, arXiv 2006.08195.
  """
  return x + x * jnp.sin(a * x) * unnormalized_sinc(a * x)


@register(source='kunc2024', learnable=('alpha', 'beta'))
def erfact(
    x: jax.Array, alpha: float | jax.Array = 0.75, beta: float | jax.Array = 0.75,
) -> jax.Array:
  """x erf(alpha e^(beta x)).

  Biswas et al. 2021, arXiv 2109.04386.
  """
  return x * lax.erf(alpha * jnp.exp(jnp.minimum(beta * x, EXPONENT_LIMIT)))


@register(source='kunc2024', learnable=('gamma', 'delta'))
def pserf(
    x: jax.Array, gamma: float | jax.Array = 1.25, delta: float | jax.Array = 0.85,
) -> jax.Array:
  """x erf(gamma ln(1 + e^(delta x))).

  Biswas et al. 2021, arXiv 2109.04386.
  """
  return x * lax.erf(gamma * jax.nn.softplus(delta * x))


@register(source='kunc2024', learnable=('a', 'b'))
def sinlu(x: jax.Array, a: float | jax.Array = 1.0, b: float | jax.Array = 1.0) -> jax.Array:
  """(x + a sin(b x)) sigmoid(x).

  Paul et al. 2022.
  """
  return (x + a * jnp.sin(b * x)) * jax.nn.sigmoid(x)


@register(source='kunc2024', learnable=('a', 'b'))
def coslu(x: jax.Array, a: float | jax.Array = 1.0, b: float | jax.Array = 1.0) -> jax.Array:
  """(x + a cos(b x)) sigmoid(x).

  Pishchik 2023.
  """
  return (x + a * jnp.cos(b * x)) * jax.nn.sigmoid(x)


@register(source='zhuo2024', learnable=('w1', 'w2', 'w3', 'bias'),
          kinks=lambda w1, **_: () if w1 == 0 else (0.0,),
          monotone=lambda w1, w2, w3, bias: 'increasing' if min(w1, w2, w3) >= 0 else '')
def polyrelu(
    x: jax.Array, w1: float | jax.Array = 1 / 3, w2: float | jax.Array = 1 / 3,
    w3: float | jax.Array = 1 / 3, bias: float | jax.Array = 0.0,
) -> jax.Array:
  """w1 r + w2 r^2 + w3 r^3 + bias with r = max(x, 0).

  Zhuo et al. 2024, arXiv 2411.03884.
  """
  r = jax.nn.relu(x)
  return r * (w1 + r * (w2 + r * w3)) + bias


@register(source='huang2024', learnable=('raw_p', 'raw_n'))
def xielu(
    x: jax.Array, raw_p: float | jax.Array = math.log(math.expm1(0.8)),
    raw_n: float | jax.Array = math.log(math.expm1(0.3)), beta: float = 0.5,
) -> jax.Array:
  """a_p x^2 + beta x for x > 0, a_n (e^x - 1) - a_n x + beta x for x <= 0, with
  a_p = ln(1 + e^raw_p) and a_n = beta + ln(1 + e^raw_n); both start at 0.8.

  Huang & Schlag 2024, arXiv 2411.13010.
  """
  left = jnp.where(x > 0, 0, x)
  positive = jax.nn.softplus(raw_p) * jnp.square(x)
  negative = (beta + jax.nn.softplus(raw_n)) * (jnp.expm1(left) - left)
  return jnp.where(x > 0, positive, negative) + beta * x


@register(source='huang2024', learnable=('raw_p', 'raw_n'))
def xiprelu(
    x: jax.Array, raw_p: float | jax.Array = math.log(math.expm1(0.8)),
    raw_n: float | jax.Array = math.log(math.expm1(0.8)), beta: float = 0.5,
) -> jax.Array:
  """a_p x^2 + beta x for x > 0, a_n x^2 + beta x for x <= 0, with a_p = ln(1 + e^raw_p) and
  a_n = ln(1 + e^raw_n); both start at 0.8.

  Huang & Schlag 2024, arXiv 2411.13010.
  """
  curvature = jnp.where(x > 0, jax.nn.softplus(raw_p), jax.nn.softplus(raw_n))
  return x * (curvature * x + beta)
