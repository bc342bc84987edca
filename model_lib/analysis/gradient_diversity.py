"""Gradient diversity: how alike the gradients of neighbouring layers of a residual stream are.

Yang et al. 2023 (Tensor Programs VI), arXiv:2310.02244, section 8: in
x_l = x_{l-1} + s G(phi(h_l)), h_l = W_l x_{l-1}, the gradients are

  dL/dh_l = s (G dL/dx_l) phi'(h_l).

dL/dx_l changes little from layer to layer, and at the start h_l and h_{l+1} are nearly independent,
so that the cosine of dL/dh_l and dL/dh_{l+1} over the features is

  (E phi')^2 / E phi'^2,

for preactivations of variance 1 (`Moments.slope_share`): 1 for the identity, 1/2 for ReLU, 0 for an
even function. The ratio is derived here; the paper has the three cases in words. With `prenorm`,
h_l = W_l x_{l-1} / rms(x_{l-1}) and the variance is 1 in every layer; without, it grows with
the stream, and a function that is not homogeneous has another ratio.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp

from model_lib.activations import Activation
from model_lib.errors import UserError
from model_lib.models.deep_mlp import DeepBranch


@functools.partial(jax.jit, static_argnames=('function', 'depth', 'width', 'prenorm', 'examples'))
def layer_gradients(key: jax.Array, function: Callable[[jax.Array], jax.Array], depth: int,
                    width: int, branch_scale: float, prenorm: bool = True,
                    examples: int = 128) -> jax.Array:
  """dL/dh_l [L, B, n] of a network at its start, for inputs and dL/dx_L that are N(0, 1).

  Args:
    key: of the draws.
    function: phi, pointwise.
    depth, width: L and n.
    branch_scale: s.
    prenorm: as above.
    examples: B.
  """
  of_kernels, of_inputs, of_end = jax.random.split(key, 3)
  kernels = jax.random.normal(of_kernels, (depth, width, width)) * width ** -0.5
  x = jax.random.normal(of_inputs, (examples, width))
  end = jax.random.normal(of_end, (examples, width))
  branch = DeepBranch(function, prenorm='rms' if prenorm else 'none')

  def loss(shifts):
    def step(x, layer):
      kernel, shift = layer
      return x + branch_scale * branch(x, (kernel,), shift), None

    return jnp.sum(end * jax.lax.scan(step, x, (kernels, shifts))[0])

  return jax.grad(loss)(jnp.zeros((depth, examples, width)))


def measured(activation: Activation, prenorm: bool = True, depth: int = 64, width: int = 256,
             branch_scale: float = 0.25, examples: int = 32, seed: int = 0) -> float:
  """`neighbour_cosine` of a network of the activation at its parameters' first values.

  phi is scaled to E phi'^2 = 1, which leaves the prediction as it is, so that a block changes
  dL/dx by an equal share whatever the activation.

  Raises:
    UserError: the activation is not pointwise, or it has no finite E phi'^2 above 0 (it jumps, or
      is constant), so that nothing is predicted.
  """
  if activation.kind != 'pointwise':
    raise UserError(f'{activation.spec} is {activation.kind}: the prediction is for pointwise ones')
  second = activation.moments().slope_second
  if not 0 < second < math.inf:
    raise UserError(f"{activation.spec} has E phi'^2 = {second:g}: nothing is predicted for it")
  f = activation.at_first_values()
  return neighbour_cosine(layer_gradients(
    jax.random.key(seed), lambda h: second ** -0.5 * f(h), depth, width, branch_scale, prenorm,
    examples))


def neighbour_cosine(gradients: jax.Array) -> float:
  """Mean over layers and examples of the cosine of gradients [L, B, n] of layers l and l + 1."""
  return float(jnp.mean(cosines(gradients[:-1], gradients[1:])))


def far_cosine(gradients: jax.Array) -> float:
  """The mean cosine of the layers at L / 4 and at 3 L / 4."""
  depth = len(gradients)
  return float(jnp.mean(cosines(gradients[depth // 4], gradients[3 * depth // 4])))


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
  """Over the last axis; 0 where a vector is 0."""
  square = jnp.sum(a * a, -1) * jnp.sum(b * b, -1)
  return jnp.sum(a * b, -1) / jnp.sqrt(jnp.where(square > 0, square, 1.0))
