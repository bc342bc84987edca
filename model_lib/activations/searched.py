"""The functions that the Swish search found besides Swish.

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; `get_activation` adds the float32 arithmetic for narrower inputs. All are from
Ramachandran et al. 2017, arXiv 1710.05941.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model_lib.activations.bounded import unnormalized_sinc
from model_lib.activations.numerics import split_at_zero
from model_lib.activations.registry import register

_FIXED_POINT = 0.659046068407407  # of the sigmoid


@register(source='homa', kinks=(_FIXED_POINT,), monotone='increasing')
def max_sigmoid(x: jax.Array) -> jax.Array:
  """max(x, sigmoid(x)).

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return jnp.maximum(x, jax.nn.sigmoid(x))


@register(source='port', monotone='decreasing')
def cos_minus_x(x: jax.Array) -> jax.Array:
  """cos(x) - x.

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return jnp.cos(x) - x


@register(source='homa')
def min_sin(x: jax.Array) -> jax.Array:
  """min(x, sin(x)) = x for x < 0, sin(x) for x >= 0.

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  left, right = split_at_zero(x)
  return left + jnp.sin(right)


@register(source='port', monotone='decreasing')
def arctan_squared_minus_x(x: jax.Array) -> jax.Array:
  """arctan(x)^2 - x.

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return jnp.square(jnp.arctan(x)) - x


@register(source='port', monotone='increasing')
def max_tanh(x: jax.Array) -> jax.Array:
  """max(x, tanh(x)) = tanh(x) for x < 0, x for x >= 0.

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  left, right = split_at_zero(x)
  return jnp.tanh(left) + right


@register(source='port', monotone='increasing')
def sinc_plus_x(x: jax.Array) -> jax.Array:
  """sin(x) / x + x.

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return unnormalized_sinc(x) + x


@register(source='memory', confirmed=False, monotone='increasing', parity='odd')
def x_asinh_squared(x: jax.Array) -> jax.Array:
  """x asinh(x)^2.

  Ramachandran et al. 2017, arXiv 1710.05941.
  """
  return x * jnp.square(jnp.arcsinh(x))
