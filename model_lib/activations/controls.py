"""Activations that no paper proposes: what a learned correction is compared with."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from model_lib.activations.numerics import polynomial
from model_lib.activations.registry import register

# Coefficients of x e^(-x^2/2) (1, x^2, x^4, x^6). Each sum is orthogonal under N(0, 1) to x, to
# x e^(-x^2/2) and to the other sum, and after the division E b^2 = 3^(-3/2) = E (x e^(-x^2/2))^2.
FIRST_BUMP = (15.0, -25.0, 6.0, 0.0)
SECOND_BUMP = (-195.0, 640.0, -393.0, 54.0)
FIRST_SQUARE, SECOND_SQUARE = 70.0, 21560.0


def odd_bump(x: jax.Array, angle: float = 0.0) -> jax.Array:
  """b(x) = x e^(-x^2/2) (cos(angle) p(x) + sin(angle) q(x)), the odd bumps of `relu_bump`.

  p = (15 - 25 x^2 + 6 x^4) / 70^(1/2) and
  q = (-195 + 640 x^2 - 393 x^4 + 54 x^6) / 21560^(1/2). They span what is odd, has degree 7 at most
  and is orthogonal under N(0, 1) to max(x, 0) and to x e^(-x^2/2), the correction of CRReLU; every
  b has that correction's norm.
  """
  square = jnp.square(x)
  # Where the bump has underflown, its polynomial has not overflown.
  near = jnp.where(square < 400, square, 0)
  mixed = (math.cos(angle) / math.sqrt(FIRST_SQUARE) * polynomial(FIRST_BUMP, near)
           + math.sin(angle) / math.sqrt(SECOND_SQUARE) * polynomial(SECOND_BUMP, near))
  return x * jnp.exp(-0.5 * square) * mixed


@register(source='control', learnable=('epsilon',), kinks=(0.0,))
def relu_bump(
    x: jax.Array, epsilon: float | jax.Array = 0.01, angle: float = 0.0,
) -> jax.Array:
  """max(x, 0) + epsilon x e^(-x^2 / 2) (cos(angle) (15 - 25 x^2 + 6 x^4) / 70^(1/2)
  + sin(angle) (-195 + 640 x^2 - 393 x^4 + 54 x^6) / 21560^(1/2)).

  No paper: the control of CRReLU (Sun et al. 2024, arXiv 2405.12954).

  Another odd bump of the same norm, to be learned from the same start. Under N(0, 1) it is
  orthogonal to max(x, 0), so that E f^2 = 1/2 + epsilon^2 / (3 sqrt 3), and to CRReLU's
  correction. The entropy of the positive branch does not change to first order in epsilon, where
  CRReLU's grows by epsilon / (2 sqrt 2). A random angle is a random such bump.
  """
  return jax.nn.relu(x) + epsilon * odd_bump(x, angle)
