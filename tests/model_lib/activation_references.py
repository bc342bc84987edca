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
POINTS = (0.0, 1e-30, -1e-30, 1e-4, -1e-4, 0.05, -0.05, 0.2, -0.2, 0.3, -0.3, 1.0, -1.0, 1.005,
          2.5, -2.5, 10.0, -10.0, 88.0, -88.0, 1e4, -1e4)
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
    ours: np.ndarray, expected: np.ndarray, rtol: float = 2e-5, atol: float | np.ndarray = 2e-36,
) -> float:
  """The largest |ours - expected| / (atol + rtol |expected|); inf where only one is finite.

  The default atol is 88 times more than what float32 arithmetic flushes to 0. A number beyond
  the range of `ours`' dtype must be the infinity of its sign.
  """
  largest = float(jnp.finfo(ours.dtype).max)
  ours = np.asarray(ours, np.float64)
  expected = np.where(np.abs(expected) > largest, np.copysign(np.inf, expected), expected)
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
def logish(x, alpha=1.0, beta=1.0):
  return alpha * x * mp.log1p(_sigmoid(beta * x))


@_reference
def smish(x, alpha=1.0, beta=1.0):
  return alpha * x * mp.tanh(mp.log1p(_sigmoid(beta * x)))


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
def golu(x, alpha=1.0, beta=1.0, gamma=1.0):
  return alpha * x * mp.exp(-beta * mp.exp(min(-gamma * x, mp.mpf(50))))


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
def relu_bump(x, epsilon=0.01, angle=0.0, p=(15, -25, 6), q=(-195, 640, -393, 54)):
  def norm(c):  # E (x e^(-x^2/2) sum c_k x^2k)^2 over that of x e^(-x^2/2), by moments of N(0, 1/3)
    return mp.sqrt(3 * sum(a * b * mp.fac2(2 * (j + k) + 1) / mp.mpf(3)**(j + k + 1)
                           for j, a in enumerate(c) for k, b in enumerate(c)))
  bump = sum(turn / norm(c) * sum(a * x**(2 * k) for k, a in enumerate(c))
             for turn, c in ((mp.cos(angle), p), (mp.sin(angle), q)))
  return _relu(x) + epsilon * bump * x * mp.exp(-x**2 / 2)


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


@_reference
def xiprelu(x, raw_p=math.log(math.expm1(0.8)), raw_n=math.log(math.expm1(0.8)), beta=0.5):
  return _softplus(mp.mpf(raw_p if x > 0 else raw_n)) * x**2 + beta * x


# The second half of the bounded ones and of the rectifiers.


@_reference
def symexp(x):
  return mp.sign(x) * mp.expm1(abs(x))


@_reference
def binary_step(x, low=0, high=1):
  return mp.mpf(high if x >= 0 else low)


@_reference
def rootsig(x, a=1.0):
  return a * x / (1 + mp.sqrt(1 + mp.mpf(a)**2 * x**2))


@_reference
def smooth_step(x, a=2.0):
  if abs(x) >= mp.mpf(a) / 2:
    return mp.mpf(1 if x > 0 else 0)
  return -2 * x**3 / mp.mpf(a)**3 + 3 * x / (2 * mp.mpf(a)) + mp.mpf(1) / 2


@_reference
def soft_clipping(x, a=1.0, edge=1):
  return (_softplus(a * x) - _softplus(a * (x - edge))) / a


@_reference
def srs(x, a=2.0, b=3.0):
  return x / (x / a + mp.exp(-x / b))


@_reference
def relu_n(x, n=1.0):
  return _ramp(x, 0, n)


@_reference
def repu(x, power=3.0):
  return _relu(x)**power if x > 0 else mp.mpf(0)


@_reference
def fractional_relu(x, order=0.3):
  return x**(1 - mp.mpf(order)) / mp.gamma(2 - mp.mpf(order)) if x > 0 else mp.mpf(0)


@_reference
def threshold(x, threshold=1.0, value=0.0):
  return x if x > threshold else mp.mpf(value)


@_reference
def tent(x, a=1.0):
  return _relu(a - abs(x))


# Piecewise linear.


@_reference(name='frelu@kunc2024')
def flexible_relu(x, b=0.0):
  return _relu(x) + b


@_reference
def dprelu(x, a=1.0, b=0.01):
  return (a if x >= 0 else b) * x


@_reference
def dual_line(x, a=1.0, b=0.01, m=-0.22):
  return (a if x >= 0 else b) * x + m


@_reference
def arelu(x, a=0.9, b=2.0, low=0.01, high=0.99):
  return (1 + _sigmoid(mp.mpf(b))) * x if x >= 0 else _ramp(mp.mpf(a), low, high) * x


@_reference
def srelu(x, t_l=0.0, a_l=0.1, t_r=1.0, a_r=1.0):
  if x >= t_r:
    return t_r + a_r * (x - t_r)
  return x if x > t_l else t_l + a_l * (x - t_l)


@_reference
def apl(x, a1=0.2, b1=0.5, a2=0.2, b2=-0.5):
  return _relu(x) + a1 * _relu(b1 - x) + a2 * _relu(b2 - x)


@_reference
def plu(x, v1=0.0, v2=0.0, v3=0.0, v4=1.0, v5=2.0, first=-2, spacing=1):
  values = [mp.mpf(v) for v in (v1, v2, v3, v4, v5)]
  segment = int(min(max(mp.floor((x - first) / spacing), 0), 3))
  share = (x - first) / spacing - segment
  return values[segment] * (1 - share) + values[segment + 1] * share


@_reference
def melu(x, slope=0.01, a1=0.0, a2=0.0, a3=0.0, b1=-1.0, b2=-1 / 3, b3=1 / 3, c1=1.0, c2=1 / 2,
         c3=1 / 3):
  bumps = [a * _relu(c - abs(x - b)) for a, b, c in ((a1, b1, c1), (a2, b2, c2), (a3, b3, c3))]
  return (x if x >= 0 else slope * x) + sum(bumps)


@_reference
def galu(x, slope=0.01, a1=0.0, a2=0.0, a3=0.0, b1=-1.0, b2=-1 / 3, b3=1 / 3, c1=1.0, c2=1 / 2,
         c3=1 / 3):
  bumps = [a * (_relu(c - abs(x - b)) + min(abs(x - b - 2 * mp.mpf(c)) - c, mp.mpf(0)))
           for a, b, c in ((a1, b1, c1), (a2, b2, c2), (a3, b3, c3))]
  return (x if x >= 0 else slope * x) + sum(bumps)


# More of the ELU and softplus families.


@_reference
def pelu(x, a=1.0, b=1.0):
  return a / mp.mpf(b) * x if x >= 0 else a * mp.expm1(x / b)


@_reference
def mpelu(x, a=1.0, b=1.0):
  return x if x >= 0 else a * mp.expm1(b * x)


@_reference
def felu(x, a=1.0, base=2):
  return x if x >= 0 else a * (mp.mpf(base)**(x / mp.log(base)) - 1)


@_reference
def pdelu(x, a=1.0, t=0.9):
  t = mp.mpf(t)
  return x if x > 0 else a * (_relu(1 + (1 - t) * x)**(1 / (1 - t)) - 1)


@_reference
def hard_elish(x, offset=1, width=2):
  return (x if x >= 0 else mp.expm1(x)) * _ramp((x + offset) / width, 0, 1)


@_reference
def blu(x, beta=0.0):
  return beta * (mp.sqrt(x**2 + 1) - 1) + x


@_reference
def soft_plus_plus(x, k=1.0, c=2.0, argument=2):
  return _softplus(k * x) + x / c - mp.log(argument)


@_reference
def soft_exponential(x, a=0.0):
  a = mp.mpf(a)
  if a < 0:
    return -mp.log(1 - a * (x + a)) / a
  return mp.expm1(a * x) / a + a if a else x


@_reference(name='telu@kunc2024')
def tanh_elu(x, a=1.0):
  return x * mp.tanh(a * x if x > 0 else mp.expm1(a * x))


@_reference
def delu(x, a=0.0, extra=0.5):
  return (a + extra) * x + abs(mp.expm1(-x)) if x >= 0 else x * _sigmoid(x)


@_reference(name='delu@torch_activation')
def silu_or_line(x, n=1.0):
  return x * _sigmoid(x) if x <= 0 else x * (n - 1)


# More of x g(x).


@_reference(name='e_swish@torch_activation')
def exponential_swish(x):
  return mp.exp(-x) * _sigmoid(x)


@_reference(name='msilu@homa')
def msilu_homa(x, height=0.25, offset=-1):
  return x * _sigmoid(x) + height * mp.exp(-x**2 + offset)


@_reference(name='msilu@torch_activation')
def msilu_torch_activation(x, divisor=4):
  return x * _sigmoid(x) + mp.exp(-x**2 / divisor)


@_reference
def lambda_gelu(x, hardness=1.0):
  return x * _phi(hardness * x)


@_reference
def smu(x, a=0.25, b=25.0):
  return ((1 + a) * x + (1 - a) * x * mp.erf(b * (1 - a) * x)) / 2


@_reference
def tanhsoft_1(x, a=1.0):
  return mp.tanh(a * x) * _softplus(x)


@_reference
def tanhsoft_2(x, b=0.6, c=1.0):
  return x * mp.tanh(b * mp.exp(min(c * x, mp.mpf(100))))


@_reference
def tanhsoft_3(x, a=1.0):
  return mp.log1p(mp.exp(x) * mp.tanh(a * x))


@_reference
def aria2(x, alpha=1.5, beta=2.0):
  return x * (1 + mp.exp(-beta * x))**-alpha


@_reference
def falu(x, a=0.5, b=1.0):
  g = x * _sigmoid(b * x)
  return g + a * _sigmoid(b * x) * (1 - g)


@_reference
def xatlu(x, alpha=0.0):
  return x * ((mp.mpf(1) / 2 + mp.atan(x) / mp.pi) * (1 + 2 * mp.mpf(alpha)) - alpha)


@_reference
def xgelu(x, alpha=0.0):
  return x * (_phi(x) * (1 + 2 * mp.mpf(alpha)) - alpha)


@_reference
def xsilu(x, alpha=0.0):
  return x * (_sigmoid(x) * (1 + 2 * mp.mpf(alpha)) - alpha)


@_reference
def eis_1(x, delta=1.16):
  return x * _softplus(x) / (x + delta * mp.exp(-x))


@_reference
def eis_2(x):
  return x * _softplus(x) / mp.sqrt(1 + x**2)


@_reference
def eis_3(x, delta=0.68, theta=1.7):
  return x / (1 + delta * mp.exp(-theta * x))


# Found by search.


@_reference
def max_sigmoid(x):
  return max(x, _sigmoid(x))


@_reference
def cos_minus_x(x):
  return mp.cos(x) - x


@_reference
def min_sin(x):
  return min(x, mp.sin(x))


@_reference
def arctan_squared_minus_x(x):
  return mp.atan(x)**2 - x


@_reference
def max_tanh(x):
  return max(x, mp.tanh(x))


@_reference
def sinc_plus_x(x):
  return (mp.sin(x) / x if x else mp.mpf(1)) + x


@_reference
def x_asinh_squared(x):
  return x * mp.asinh(x)**2


# Polynomials, Fourier sums and rational functions.


@_reference
def ncu(x):
  return x - x**3


@_reference
def squ(x):
  return x**2 + x


_PEAK = 1 / math.sqrt(2 * math.pi)


@_reference
def slaf(x, a0=3 / 8 * _PEAK, a1=1 / 2, a2=3 / 4 * _PEAK, a3=0.0, a4=-1 / 24 * _PEAK, a5=0.0):
  return sum(a * x**i for i, a in enumerate((a0, a1, a2, a3, a4, a5)))


@_reference
def chebyshev(x, a0=1 / math.pi, a1=1 / 2, a2=2 / (3 * math.pi), a3=0.0):
  return sum(a * mp.chebyt(i, x) for i, a in enumerate((a0, a1, a2, a3)))


@_reference
def hermite(x, a0=_PEAK, a1=1 / 2, a2=_PEAK / 2, a3=0.0):
  # mpmath has the physicists' polynomials: He_n(x) = 2^(-n/2) H_n(x / sqrt 2).
  return sum(a * mp.hermite(i, x / mp.sqrt(2)) / mp.sqrt(2)**i
             for i, a in enumerate((a0, a1, a2, a3)))


@_reference
def legendre(x, a0=1 / 4, a1=1 / 2, a2=5 / 16, a3=0.0):
  # By the recursion (n + 1) P_{n+1} = (2 n + 1) x P_n - n P_{n-1}.
  p = [mp.mpf(1), x]
  for n in (1, 2):
    p.append(((2 * n + 1) * x * p[n] - n * p[n - 1]) / (n + 1))
  return sum(a * p[i] for i, a in enumerate((a0, a1, a2, a3)))


@_reference
def fourier(x, a=math.pi / 4, b1=-2 / math.pi, b2=0.0, b3=-2 / (9 * math.pi), c1=1.0, c2=-1 / 2,
            c3=1 / 3, omega=1.0):
  return a + sum(b * mp.cos(j * omega * x) + c * mp.sin(j * omega * x)
                 for j, b, c in ((1, b1, c1), (2, b2, c2), (3, b3, c3)))


_P = {'a0': 0.033582614, 'a1': 0.505, 'a2': 1.651314741, 'a3': 0.505 * 3.969339239,
      'a4': 0.927935630, 'a5': 0.505 * 0.300073911}
_Q = {'b1': 0.0, 'b2': 3.969339239, 'b3': 0.0, 'b4': 0.300073911}


def _terms(x, settings, defaults, letter, degrees):
  """The terms c_i x^i of a polynomial whose coefficients are settings called a0, a1 ..."""
  return [settings.get(f'{letter}{i}', defaults[f'{letter}{i}']) * x**i for i in degrees]


@_reference
def rational_a(x, one=1.0, **settings):
  inner = sum(abs(term) for term in _terms(x, settings, _Q, 'b', range(1, 5)))
  return sum(_terms(x, settings, _P, 'a', range(6))) / (one + inner)


@_reference
def rational_b(x, one=1.0, **settings):
  inner = sum(_terms(x, settings, _Q, 'b', range(1, 5)))
  return sum(_terms(x, settings, _P, 'a', range(6))) / (one + abs(inner))


@_reference
def rational_c(x, epsilon=0.1, **settings):
  inner = sum(_terms(x, settings, {**_Q, 'b0': 0.9}, 'b', range(5)))
  return sum(_terms(x, settings, _P, 'a', range(6))) / (epsilon + abs(inner))


@_reference
def rational_n(x, one=1.0, **settings):
  inner = sum(_terms(x, settings, _Q, 'b', range(1, 5)))
  return sum(_terms(x, settings, _P, 'a', range(6))) / (one + inner)
