"""Growth of the stream of `models.deep_mlp` at the start, from the moments of its activation.

x_l = x_{l-1} + s G(phi(W x_{l-1})) with W of variance 1 / n, G v = v - mean(v): what enters phi is
normal with the variance q of the stream over the features, and the branch is uncorrelated with the
stream, so that for n -> infinity

  q_l = q_{l-1} + s^2 c^2 Var f(sqrt(q_{l-1}) z),   z ~ N(0, 1),   phi = c f,

or s^2 c^2 Var f(z) per block where the branch reads x / rms(x). A homogeneous f has
Var f(sqrt(q) z) = q v with v = Var f(z), and then q_L = q_0 (1 + s^2 c^2 v)^L; with
s = a (L / L_b)^-1/2 that is q_0 (1 + a^2 c^2 v L_b / L)^L -> q_0 exp(a^2 c^2 v L_b).
"""

from __future__ import annotations

from model_lib.activations import get_activation


def stream_variances(activation: str, depth: int, branch_scale: float,
                     activation_scale: float = 1.0, start: float = 1.0,
                     prenorm: bool = False) -> list[float]:
  """q_0 ... q_L for blocks of one matrix with the nonlinearity behind it.

  Args:
    activation: spec of f, pointwise.
    depth: L.
    branch_scale: s, of every block.
    activation_scale: c.
    start: q_0.
    prenorm: whether the branch reads x / rms(x).

  Returns:
    L + 1 variances.
  """
  f, found = get_activation(activation), [start]
  factor = (branch_scale * activation_scale) ** 2
  for _ in range(depth):
    q = found[-1]
    found.append(q + factor * f.moments(1.0 if prenorm else q).variance)
  return found


def homogeneous_growth(variance: float, depth: int, a: float, base_depth: float,
                       alpha: float = 0.5) -> float:
  """q_L / q_0 = (1 + a^2 (L / L_b)^(-2 alpha) v)^L of a homogeneous phi with Var phi(z) = v."""
  return (1 + a ** 2 * (depth / base_depth) ** (-2 * alpha) * variance) ** depth
