"""Gated linear units g(gate) * value: two arrays in, one out.

The gate comes first. A layer makes both by its own kernels, x W and x V, usually two thirds as
wide as without a gate, so that the number of weights stays the same. Any pointwise activation
can be the gate: 'glu_of(mish)'. Moments are those of the gate: for independent standard normal
inputs E[(g(a) b)^2] = E[g^2].
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from model_lib.activations.bounded import identity, sigmoid
from model_lib.activations.exponential import selu
from model_lib.activations.gated_exponential import golu
from model_lib.activations.gated_self import gelu, silu
from model_lib.activations.learnable import xielu
from model_lib.activations.moments import Moments, gaussian_moments
from model_lib.activations.rectified import relu, relu_squared
from model_lib.activations.registry import register


@register(source='dauphin2016', kind='gated', scalar=sigmoid, duplicates=('glu_of(sigmoid)',))
def glu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """sigmoid(gate) * value (jax.nn.glu takes both in one array, the value first).

  Dauphin et al. 2016, arXiv 1612.08083.
  """
  return jax.nn.sigmoid(gate) * value


@register(source='shazeer2020', kind='gated', scalar=identity, duplicates=('glu_of(identity)',))
def bilinear(gate: jax.Array, value: jax.Array) -> jax.Array:
  """gate * value.

  Dauphin et al. 2016, arXiv 1612.08083; Shazeer 2020, arXiv 2002.05202.
  """
  return gate * value


@register(source='shazeer2020', kind='gated', scalar=relu, kinks=(0.0,),
          duplicates=('glu_of(relu)',))
def reglu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """max(gate, 0) * value.

  Shazeer 2020, arXiv 2002.05202.
  """
  return jax.nn.relu(gate) * value


@register(source='shazeer2020', kind='gated', scalar=gelu, duplicates=('glu_of(gelu)',))
def geglu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """gate Phi(gate) * value with the exact normal CDF.

  Shazeer 2020, arXiv 2002.05202.
  """
  return gelu(gate) * value


@register(source='shazeer2020', kind='gated', scalar=silu, duplicates=('glu_of(silu)',))
def swiglu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """gate sigmoid(gate) * value.

  Shazeer 2020, arXiv 2002.05202.
  """
  return jax.nn.silu(gate) * value


@register(source='shazeer2020', kind='gated', scalar=selu, kinks=(0.0,),
          duplicates=('glu_of(selu)',))
def seglu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """selu(gate) * value.

  A gated linear unit as in Shazeer 2020, arXiv 2002.05202, with another gate.
  """
  return selu(gate) * value


@register(source='shazeer2020', kind='gated', scalar=golu, duplicates=('glu_of(golu)',))
def goglu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """golu(gate) * value.

  A gated linear unit as in Shazeer 2020, arXiv 2002.05202, with another gate.
  """
  return golu(gate) * value


@register(source='shazeer2020', kind='gated', scalar=relu_squared,
          duplicates=('glu_of(relu_squared)',))
def relu_squared_glu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """max(gate, 0)^2 * value.

  A gated linear unit as in Shazeer 2020, arXiv 2002.05202, with another gate.
  """
  return relu_squared(gate) * value


@register(source='shazeer2020', kind='gated', learnable=('raw_p', 'raw_n'), scalar=xielu,
          duplicates=('glu_of(xielu)',))
def xiglu(
    gate: jax.Array, value: jax.Array, raw_p: float | jax.Array = math.log(math.expm1(0.8)),
    raw_n: float | jax.Array = math.log(math.expm1(0.3)), beta: float = 0.5,
) -> jax.Array:
  """xielu(gate) * value.

  A gated linear unit as in Shazeer 2020, arXiv 2002.05202, with the gate of Huang & Schlag 2024,
  arXiv 2411.13010.
  """
  return xielu(gate, raw_p, raw_n, beta) * value


@functools.lru_cache(maxsize=None)
def _tanh_unit() -> Moments:
  """Moments of sigmoid(a) tanh(b), a and b independent; the slopes are those in b."""
  gate, value = gaussian_moments(jax.nn.sigmoid), gaussian_moments(jnp.tanh)
  second, slope_second = gate.second * value.second, gate.second * value.slope_second
  return Moments(mean=0.0, second=second, gain=second**-0.5,
                 slope_mean=gate.mean * value.slope_mean, slope_second=slope_second,
                 chi_raw=slope_second / second, chi_centred=slope_second / second)


@register(source='dauphin2016', kind='gated', population=_tanh_unit)
def gtu(gate: jax.Array, value: jax.Array) -> jax.Array:
  """sigmoid(gate) * tanh(value).

  Dauphin et al. 2016, arXiv 1612.08083, the gated tanh unit.

  The value is not linear, so that this is no `glu_of`. Moments are those of the product, the
  slopes those in the value.
  """
  return jax.nn.sigmoid(gate) * jnp.tanh(value)
