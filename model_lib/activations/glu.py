"""Gated linear units g(gate) * value: two arrays in, one out.

The gate comes first. A layer makes both by its own kernels, x W and x V, usually two thirds as
wide as without a gate, so that the number of weights stays the same. Any pointwise activation
can be the gate: 'glu_of(mish)'. Moments are those of the gate: for independent standard normal
inputs E[(g(a) b)^2] = E[g^2].
"""

from __future__ import annotations

import jax

from model_lib.activations.bounded import identity, sigmoid
from model_lib.activations.gated_self import gelu, silu
from model_lib.activations.rectified import relu
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
