"""Rational functions P(x) / Q(x) with learnable coefficients (Pade activation units).

Every function maps an array of any shape to the same shape, entry by entry, in the dtype it
is given; a parameter is a scalar or an array that broadcasts against x. `get_activation` adds
the float32 arithmetic for narrower inputs and shapes the parameters.

P has degree 5, Q degree 4; the forms differ in how Q is kept from 0. The first values are the
least-squares fit to leaky_relu(0.01) at 601 equidistant points of [-3, 3]. As that function is
0.505 x + 0.495 |x|, the best Q is even, and then all forms describe the same function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations.registry import DOMAIN, register
from model_lib.activations.settings import Bounds

_Number = float | jax.Array
_A0, _A2, _A4 = 0.033582614, 1.651314741, 0.927935630
_B2, _B4 = 3.969339239, 0.300073911
_A1, _A3, _A5 = 0.505, 0.505 * _B2, 0.505 * _B4
_NUMERATOR = ('a0', 'a1', 'a2', 'a3', 'a4', 'a5')
_DENOMINATOR = ('b1', 'b2', 'b3', 'b4')


def _polynomial(x: jax.Array, *coefficients: _Number) -> jax.Array:
  """c_0 + c_1 x + ... by Horner's rule."""
  y = coefficients[-1]
  for coefficient in coefficients[-2::-1]:
    y = coefficient + x * y
  return y


def _absolute(x: jax.Array) -> jax.Array:
  # jnp.abs has the derivative 0 at 0, from where a coefficient would never leave.
  return jnp.where(x < 0, -x, x)


def _sign_changes(coefficients: tuple[float, ...]) -> tuple[float, ...]:
  """The real points where the polynomial c_0 + c_1 x + ... changes its sign."""
  c = np.trim_zeros(np.asarray(coefficients, np.float64), 'b')
  low = np.flatnonzero(c)[:1]
  if not low.size:
    return ()
  roots = np.roots(c[low[0]:][::-1])
  real = roots[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots.real))].real
  # Nonzero roots of even multiplicity do not occur but by design of the coefficients.
  points = [float(root) for root in real] + ([0.0] if low[0] % 2 else [])
  return tuple(sorted(points))


@register(source='rational_activations', learnable=_NUMERATOR + _DENOMINATOR, aliases=('pau',),
          kinks=lambda a0, b1, **_: (0.0,) if a0 and b1 else (),
          duplicates=('rational_b', 'rational_c', 'rational_n'))
def rational_a(
    x: jax.Array, a0: _Number = _A0, a1: _Number = _A1, a2: _Number = _A2, a3: _Number = _A3,
    a4: _Number = _A4, a5: _Number = _A5, b1: _Number = 0.0, b2: _Number = _B2,
    b3: _Number = 0.0, b4: _Number = _B4,
) -> jax.Array:
  """(a0 + a1 x + ... + a5 x^5) / (1 + |b1 x| + |b2 x^2| + |b3 x^3| + |b4 x^4|).

  Molina et al. 2019, arXiv 1907.06732.
  """
  size = jnp.abs(x)
  absolute = [_absolute(jnp.asarray(b, x.dtype)) for b in (b1, b2, b3, b4)]
  return _polynomial(x, a0, a1, a2, a3, a4, a5) / _polynomial(size, 1.0, *absolute)


@register(source='rational_activations', learnable=_NUMERATOR + _DENOMINATOR,
          kinks=lambda b1, b2, b3, b4, **_: _sign_changes((0.0, b1, b2, b3, b4)),
          duplicates=('rational_a', 'rational_c', 'rational_n'))
def rational_b(
    x: jax.Array, a0: _Number = _A0, a1: _Number = _A1, a2: _Number = _A2, a3: _Number = _A3,
    a4: _Number = _A4, a5: _Number = _A5, b1: _Number = 0.0, b2: _Number = _B2,
    b3: _Number = 0.0, b4: _Number = _B4,
) -> jax.Array:
  """(a0 + a1 x + ... + a5 x^5) / (1 + |b1 x + b2 x^2 + b3 x^3 + b4 x^4|).

  Molina et al. 2019, arXiv 1907.06732.
  """
  inner = _polynomial(x, 0.0, b1, b2, b3, b4)
  return _polynomial(x, a0, a1, a2, a3, a4, a5) / (1 + _absolute(inner))


@register(source='rational_activations', learnable=_NUMERATOR + ('b0',) + _DENOMINATOR,
          kinks=lambda b0, b1, b2, b3, b4, **_: _sign_changes((b0, b1, b2, b3, b4)),
          duplicates=('rational_a', 'rational_b', 'rational_n'))
def rational_c(
    x: jax.Array, a0: _Number = _A0, a1: _Number = _A1, a2: _Number = _A2, a3: _Number = _A3,
    a4: _Number = _A4, a5: _Number = _A5, b0: _Number = 0.9, b1: _Number = 0.0,
    b2: _Number = _B2, b3: _Number = 0.0, b4: _Number = _B4, epsilon: float = 0.1,
) -> jax.Array:
  """(a0 + a1 x + ... + a5 x^5) / (epsilon + |b0 + b1 x + b2 x^2 + b3 x^3 + b4 x^4|).

  A form of the Pade activation units of Molina et al. 2019, arXiv 1907.06732.
  """
  inner = _polynomial(x, b0, b1, b2, b3, b4)
  return _polynomial(x, a0, a1, a2, a3, a4, a5) / (epsilon + _absolute(inner))


def _between_poles(b1: float, b2: float, b3: float, b4: float, **_) -> tuple[float, float]:
  poles = _sign_changes((1.0, b1, b2, b3, b4))
  # A thousandth of the way from the pole, where the denominator is no longer rounding.
  return (max([DOMAIN[0], *(0.999 * pole for pole in poles if pole < 0)]),
          min([DOMAIN[1], *(0.999 * pole for pole in poles if pole > 0)]))


@register(source='rational_activations', learnable=_NUMERATOR + _DENOMINATOR, domain=_between_poles,
          duplicates=('rational_a', 'rational_b', 'rational_c'))
def rational_n(
    x: jax.Array, a0: _Number = _A0, a1: _Number = _A1, a2: _Number = _A2, a3: _Number = _A3,
    a4: _Number = _A4, a5: _Number = _A5, b1: _Number = 0.0, b2: _Number = _B2,
    b3: _Number = 0.0, b4: _Number = _B4,
) -> jax.Array:
  """(a0 + a1 x + ... + a5 x^5) / (1 + b1 x + b2 x^2 + b3 x^3 + b4 x^4); training can make poles.

  A form of the Pade activation units of Molina et al. 2019, arXiv 1907.06732.
  """
  return _polynomial(x, a0, a1, a2, a3, a4, a5) / _polynomial(x, 1.0, b1, b2, b3, b4)


@register(source='rational_activations', kind='stochastic', learnable=_NUMERATOR + _DENOMINATOR,
          bounds={'noise': Bounds(0, 1)},
          kinks=lambda b1, b2, b3, b4, **_: _sign_changes((0.0, b1, b2, b3, b4)))
def rational_d(
    x: jax.Array, key: jax.Array | None, a0: _Number = _A0, a1: _Number = _A1,
    a2: _Number = _A2, a3: _Number = _A3, a4: _Number = _A4, a5: _Number = _A5, b1: _Number = 0.0,
    b2: _Number = _B2, b3: _Number = 0.0, b4: _Number = _B4, noise: float = 0.1,
) -> jax.Array:
  """rational_b; in training each coefficient times a number ~ U(1 - noise, 1 + noise), drawn once
  for the array.

  A form of the Pade activation units of Molina et al. 2019, arXiv 1907.06732.
  """
  coefficients = (a0, a1, a2, a3, a4, a5, b1, b2, b3, b4)
  if key is not None:
    factors = jax.random.uniform(key, (len(coefficients),), x.dtype, 1 - noise, 1 + noise)
    coefficients = tuple(a * factor for a, factor in zip(coefficients, factors, strict=True))
  return rational_b(x, *coefficients)
