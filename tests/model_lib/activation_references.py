"""Textbook forms of the pointwise activations in mpmath, and the comparison with them.

`REFERENCES[name](x, **settings)` takes and returns an `mpf`. Its keyword arguments are the
settings of the registry entry (parameters and constants, same names and defaults) and, beyond
those, every fixed number of the formula, so that a test can plant a wrong one.

In 60 digits no cancellation matters, so nothing here is rearranged for the sake of precision:
these are the formulas as printed, which is what makes them independent of the code under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

DIGITS = 60
# Around 0, ordinary values, and tails on which careless forms overflow.
POINTS = (0.0, 1e-30, -1e-30, 1e-4, -1e-4, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5, 10.0, -10.0, 88.0,
          -88.0, 1e4, -1e4)
REFERENCES: dict[str, Callable[..., mp.mpf]] = {}


def _reference(function=None, *, name: str | None = None):
  """Enters a function under its own name without the leading '_', or under `name`."""
  if function is None:
    return functools.partial(_reference, name=name)
  REFERENCES[name or function.__name__.strip('_')] = function
  return function


def reference_values(
    name: str, points: Sequence[float], settings: Mapping[str, float] | None = None,
) -> np.ndarray:
  """The reference at the points, rounded to float64; +-inf beyond float64's range."""
  with mp.workdps(DIGITS):
    return np.array([float(REFERENCES[name](mp.mpf(float(x)), **dict(settings or {})))
                     for x in points])


def reference_slopes(
    name: str, points: Sequence[float], settings: Mapping[str, float] | None = None,
    order: int = 1,
) -> np.ndarray:
  """Derivatives of the reference by central differences in 60 digits."""
  step = mp.mpf('1e-25') if order == 1 else mp.mpf('1e-15')
  with mp.workdps(DIGITS):
    return np.array([
        float(mp.diff(lambda x: REFERENCES[name](x, **dict(settings or {})), mp.mpf(float(x)),
                      order, h=step)) for x in points])


def relative_error(
    ours: np.ndarray, expected: np.ndarray, rtol: float = 2e-5, atol: float = 2e-36,
) -> float:
  """The largest |ours - expected| / (atol + rtol |expected|); inf where only one is finite.

  The default atol is 88 times more than what float32 arithmetic flushes to 0. A value that
  float32 cannot hold must be the infinity of its sign.
  """
  ours = np.asarray(ours, np.float64)
  expected = np.where(np.abs(expected) > np.finfo(np.float32).max,
                      np.copysign(np.inf, expected), expected)
  same = ours == expected  # the infinities; their difference is no number
  with np.errstate(invalid='ignore'):
    error = np.abs(ours - expected) / (atol + rtol * np.abs(expected))
  return float(np.max(np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))))


def value_error(
    function: Callable[..., jax.Array], name: str, settings: Mapping[str, float] | None = None,
    points: Sequence[float] = POINTS,
) -> float:
  """How far a float32 function is from the reference, in units of what is tolerated.

  Args:
    function: called with a float32 array and `settings` by name.
    name: of the reference.
    settings: of the registry entry; the defaults where missing.
    points: where to compare.

  Returns:
    At most 1 for a correct function; inf where one side alone is finite.
  """
  settings = dict(settings or {})
  single = np.asarray(points, np.float32)
  return relative_error(np.asarray(function(jnp.asarray(single), **settings)),
                        reference_values(name, single, settings))


def _sigmoid(x):
  return 1 / (1 + mp.exp(-x))


def _softplus(x):
  return mp.log1p(mp.exp(x))


def _relu(x):
  return max(x, mp.mpf(0))


def _ramp(x, low, high):
  return min(max(x, mp.mpf(low)), mp.mpf(high))


def _phi(x):
  return mp.erfc(-x / mp.sqrt(2)) / 2


def _double(x):
  """exp(-e^x); mpmath cannot take e^1e4 as an exponent."""
  return mp.exp(-mp.exp(x)) if x < 100 else mp.mpf(0)


def _tanh_exp(x):
  return mp.tanh(mp.exp(x)) if x < 100 else mp.mpf(1)


def _erf_exp(factor, x):
  """erf(factor e^x)."""
  return mp.erf(factor * mp.exp(min(x, mp.mpf(50))))


# Bounded and slowly growing.


@_reference
def identity(x):
  return x


@_reference
def sigmoid(x):
  return _sigmoid(x)


@_reference
def tanh(x):
  return mp.tanh(x)


@_reference
def hard_sigmoid(x, offset=3, width=6):
  return _ramp(x + offset, 0, width) / width


@_reference
def hard_tanh(x, low=-1, high=1):
  return _ramp(x, low, high)


@_reference
def sparse_sigmoid(x, offset=1, width=2):
  return _ramp(x + offset, 0, width) / width


@_reference
def lecun_tanh(x, scale=1.7159, numerator=2, denominator=3):
  return scale * mp.tanh(numerator * x / denominator)


@_reference
def penalized_tanh(x, slope=0.25):
  return mp.tanh(x) if x > 0 else slope * mp.tanh(x)


@_reference
def soft_sign(x, offset=1):
  return x / (offset + abs(x))


@_reference
def elliott(x, scale=0.5, offset=0.5):
  return scale * x / (1 + abs(x)) + offset


@_reference
def arctan(x):
  return mp.atan(x)


@_reference
def erf(x):
  return mp.erf(x)


@_reference
def isru(x, alpha=1.0):
  return x / mp.sqrt(1 + alpha * x**2)


@_reference
def sqnl(x, edge=2, divisor=4):
  return x - x * abs(x) / divisor if abs(x) <= edge else mp.sign(x)


@_reference
def loglog(x):
  return _double(-x)


@_reference
def cloglog(x):
  return 1 - _double(x)


@_reference
def laplace_mega(x, mu=0.707107, sigma=0.282095):
  return mp.erfc((mu - x) / (sigma * mp.sqrt(2))) / 2


@_reference
def gaussian(x):
  return mp.exp(-x**2)


@_reference
def sin(x, omega=1.0):
  return mp.sin(omega * x)


@_reference
def sinc(x):
  return mp.sin(x) / x if x else mp.mpf(1)


@_reference
def asinh(x):
  return mp.asinh(x)


@_reference
def symlog(x):
  return mp.sign(x) * mp.log1p(abs(x))


# Rectifiers.


@_reference
def relu(x):
  return _relu(x)


@_reference
def relu6(x, ceiling=6):
  return _ramp(x, 0, ceiling)


@_reference
def leaky_relu(x, slope=0.01):
  return x if x >= 0 else slope * x


@_reference
def very_leaky(x, divisor=3):
  return x if x >= 0 else x / divisor


@_reference
def shifted_relu(x, floor=-1):
  return max(x, mp.mpf(floor))


@_reference
def relu_squared(x):
  return _relu(x)**2


@_reference
def star_relu(x, scale=0.8944, shift=-0.4472):
  return scale * _relu(x)**2 + shift


@_reference
def abs_(x):
  return abs(x)


@_reference
def nlrelu(x, beta=1.0):
  return mp.log1p(beta * _relu(x))


@_reference
def hard_shrink(x, threshold=0.5):
  return x if abs(x) > threshold else mp.mpf(0)


@_reference
def soft_shrink(x, threshold=0.5):
  return mp.sign(x) * _relu(abs(x) - threshold)


@_reference
def tanh_shrink(x):
  return x - mp.tanh(x)


@_reference
def suish(x):
  return max(x, x * mp.exp(-abs(x)))


# ELU and softplus families.


@_reference
def elu(x, alpha=1.0):
  return x if x > 0 else alpha * mp.expm1(x)


@_reference
def selu(x, scale=1.0507009873554805, alpha=1.6732632423543772):
  return scale * (x if x > 0 else alpha * mp.expm1(x))


@_reference
def celu(x, alpha=1.0):
  return _relu(x) + min(mp.mpf(0), alpha * mp.expm1(min(x, mp.mpf(0)) / alpha))


@_reference
def serlu(x, scale=1.07862, alpha=2.90427):
  return scale * (x if x >= 0 else alpha * x * mp.exp(x))


@_reference
def isrlu(x, alpha=1.0):
  return x if x >= 0 else x / mp.sqrt(1 + alpha * x**2)


@_reference
def elish(x):
  return (x if x >= 0 else mp.expm1(x)) * _sigmoid(x)


@_reference
def softplus(x):
  return _softplus(x)


@_reference
def shifted_softplus(x, argument=2):
  return _softplus(x) - mp.log(argument)


@_reference
def squareplus(x, b=4.0):
  return (x + mp.sqrt(x**2 + b)) / 2


@_reference
def sparse_plus(x, edge=1, divisor=4):
  return x if x >= edge else _relu(x + edge)**2 / divisor


@_reference
def log_sigmoid(x):
  return -_softplus(-x)


@_reference
def bent_identity(x, divisor=2):
  return (mp.sqrt(x**2 + 1) - 1) / divisor + x


# x g(x).


@_reference
def gelu(x):
  return x * _phi(x)


@_reference
def gelu_tanh(x, cubic=0.044715):
  return x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + cubic * x**3))) / 2


@_reference
def quick_gelu(x, factor=1.702):
  return x * _sigmoid(factor * x)


@_reference
def silu(x):
  return x * _sigmoid(x)


@_reference
def hard_silu(x, offset=3, width=6):
  return x * _ramp(x + offset, 0, width) / width


@_reference
def e_swish(x, beta=1.375):
  return beta * x * _sigmoid(x)


@_reference
def eanaf(x, offset=2):
  return x * mp.exp(x) / (mp.exp(x) + offset)


@_reference
def double_silu(x):
  return x * _sigmoid(x * _sigmoid(x))


@_reference
def dsilu(x):
  return _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))


@_reference
def logish(x):
  return x * mp.log1p(_sigmoid(x))


@_reference
def smish(x):
  return x * mp.tanh(mp.log1p(_sigmoid(x)))


@_reference
def tsrelu(x, a=1.0):
  return x * mp.tanh(a * _sigmoid(x))


@_reference
def sinsig(x, divisor=2):
  return x * mp.sin(mp.pi * _sigmoid(x) / divisor)


@_reference
def calu(x):
  return x * (mp.mpf(1) / 2 + mp.atan(x) / mp.pi)


@_reference
def lalu(x):
  return x * (1 - mp.exp(-x) / 2 if x >= 0 else mp.exp(x) / 2)


@_reference
def pflu(x):
  return x * (1 + x / mp.sqrt(1 + x**2)) / 2


@_reference
def sgelu(x, alpha=1.0):
  return alpha * x * mp.erf(x / mp.sqrt(2))


@_reference
def lisht(x):
  return x * mp.tanh(x)


@_reference
def phish(x):
  return x * mp.tanh(x * _phi(x))


@_reference
def gcu(x):
  return x * mp.cos(x)


@_reference
def asu(x):
  return x * mp.sin(x)


@_reference
def mish(x):
  return x * mp.tanh(_softplus(x))


@_reference
def serf(x):
  return x * mp.erf(_softplus(x))


@_reference
def tanhexp(x):
  return x * _tanh_exp(x)


@_reference
def gish(x, offset=2):
  return x * mp.log(offset - _double(x))


@_reference
def loglogish(x):
  return x * (1 - _double(x))


@_reference
def golu(x):
  return x * _double(-x)


@_reference
def colu(x):
  return x / (1 - x * mp.exp(-x) * _double(x))


# Learnable.


@_reference
def prelu(x, slope=0.25):
  return x if x >= 0 else slope * x


@_reference
def swish_beta(x, beta=1.0):
  return x * _sigmoid(beta * x)


@_reference
def crrelu(x, epsilon=0.01):
  return _relu(x) + epsilon * x * mp.exp(-x**2 / 2)


@_reference
def acon_c(x, p1=1.0, p2=0.0, beta=1.0):
  return (p1 - p2) * x * _sigmoid(beta * (p1 - p2) * x) + p2 * x


@_reference
def snake(x, a=1.0):
  return x + mp.sin(a * x)**2 / a if a else x


@_reference
def erfact(x, alpha=0.75, beta=0.75):
  return x * _erf_exp(alpha, beta * x)


@_reference
def pserf(x, gamma=1.25, delta=0.85):
  return x * mp.erf(gamma * _softplus(delta * x))


@_reference
def sinlu(x, a=1.0, b=1.0):
  return (x + a * mp.sin(b * x)) * _sigmoid(x)


@_reference
def coslu(x, a=1.0, b=1.0):
  return (x + a * mp.cos(b * x)) * _sigmoid(x)


@_reference
def polyrelu(x, w1=1 / 3, w2=1 / 3, w3=1 / 3, bias=0.0):
  r = _relu(x)
  return w1 * r + w2 * r**2 + w3 * r**3 + bias


@_reference
def xielu(x, raw_p=math.log(math.expm1(0.8)), raw_n=math.log(math.expm1(0.3)), beta=0.5):
  if x > 0:
    return _softplus(mp.mpf(raw_p)) * x**2 + beta * x
  negative = beta + _softplus(mp.mpf(raw_n))
  return negative * mp.expm1(x) - negative * x + beta * x
