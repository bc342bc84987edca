"""Gaussian moments against a table, closed forms and other quadratures."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate, special, stats

from model_lib.activations import get_activation, names
from model_lib.activations.host import evaluate
from model_lib.activations.moments import gaussian_moments
from model_lib.errors import UserError

# spec: E f, E f^2, gain, std f, E f'^2, E f'^2 / Var f; from a 480,000-point trapezoid rule.
_TABLE = """
identity 0.0000 1.0000 1.0000 1.0000 1.0000 1.000
sigmoid 0.5000 0.2934 1.8462 0.2083 0.0448 1.034
tanh 0.0000 0.3943 1.5925 0.6279 0.4644 1.178
hard_sigmoid 0.5000 0.2776 1.8978 0.1663 0.0277 1.002
hard_tanh 0.0000 0.5161 1.3920 0.7184 0.6827 1.323
lecun_tanh 0.0000 0.7504 1.1544 0.8663 0.8040 1.071
soft_sign 0.0000 0.1830 2.3375 0.4278 0.2277 1.244
arctan 0.0000 0.4497 1.4912 0.6706 0.5000 1.112
erf 0.0000 0.4646 1.4672 0.6816 0.5694 1.226
isru 0.0000 0.3443 1.7042 0.5868 0.4139 1.202
elliott 0.5000 0.2958 1.8388 0.2139 0.0569 1.244
sqnl 0.0000 0.3946 1.5920 0.6282 0.4492 1.138
penalized_tanh 0.2085 0.2095 2.1849 0.4074 0.2467 1.486
loglog 0.3818 0.2163 2.1501 0.2657 0.0783 1.110
cloglog 0.6182 0.4528 1.4861 0.2657 0.0783 1.110
laplace_mega 0.2481 0.1994 2.2392 0.3713 0.3076 2.231
gaussian 0.5774 0.4472 1.4953 0.3375 0.3578 3.142
sin 0.0000 0.4323 1.5209 0.6575 0.5677 1.313
sinc 0.8556 0.7640 1.1441 0.1785 0.0654 2.053
asinh 0.0000 0.6332 1.2567 0.7957 0.6557 1.036
symlog 0.0000 0.3868 1.6078 0.6220 0.4128 1.067
bent_identity 0.1773 1.0727 0.9655 1.0204 1.0861 1.043
relu 0.3989 0.5000 1.4142 0.5838 0.5000 1.467
relu6 0.3989 0.5000 1.4142 0.5838 0.5000 1.467
leaky_relu 0.3950 0.5001 1.4141 0.5866 0.5000 1.453
prelu 0.2992 0.5313 1.3720 0.6646 0.5312 1.203
very_leaky 0.2660 0.5556 1.3416 0.6963 0.5556 1.146
shifted_relu 0.0833 0.7580 1.1486 0.8667 0.8413 1.120
relu_squared 0.5000 1.5000 0.8165 1.1180 2.0000 1.600
star_relu 0.0000 0.9999 1.0000 1.0000 1.5999 1.600
abs 0.7979 1.0000 1.0000 0.6028 1.0000 2.752
nlrelu 0.2674 0.1934 2.2738 0.3492 0.2064 1.693
hard_shrink 0.0000 0.9691 1.0158 0.9844 nan nan
soft_shrink 0.0000 0.4193 1.5444 0.6475 0.6171 1.472
tanh_shrink 0.0000 0.1829 2.3384 0.4276 0.2530 1.383
elu 0.1605 0.6449 1.2452 0.7869 0.6681 1.079
selu 0.0000 1.0000 1.0000 1.0000 1.0716 1.072
celu(alpha=2.0) 0.0982 0.7494 1.1552 0.8601 0.7616 1.030
serlu 0.0000 1.0000 1.0000 1.0000 1.4183 1.418
isrlu 0.1374 0.6722 1.2197 0.8083 0.7070 1.082
elish 0.2392 0.3431 1.7073 0.5346 0.3665 1.282
softplus 0.8061 0.9212 1.0419 0.5211 0.2934 1.081
shifted_softplus 0.1129 0.2843 1.8756 0.5211 0.2934 1.081
squareplus 1.1093 1.5000 0.8165 0.5191 0.2893 1.074
log_sigmoid -0.8061 0.9212 1.0419 0.5211 0.2934 1.081
silu 0.2066 0.3558 1.6765 0.5595 0.3795 1.212
e_swish 0.2841 0.6726 1.2193 0.7694 0.7175 1.212
gelu 0.2821 0.4252 1.5335 0.5879 0.4559 1.319
gelu_tanh 0.2820 0.4252 1.5336 0.5879 0.4558 1.319
quick_gelu 0.2823 0.4220 1.5395 0.5850 0.4495 1.314
hard_silu 0.1662 0.3316 1.7367 0.5513 0.3585 1.180
mish 0.2404 0.4523 1.4868 0.6281 0.4791 1.214
tanhexp 0.2621 0.5291 1.3748 0.6785 0.5612 1.219
serf 0.2493 0.5014 1.4122 0.6628 0.5300 1.207
smish 0.1201 0.1584 2.5130 0.3794 0.1676 1.164
logish 0.1398 0.1945 2.2677 0.4182 0.2061 1.178
gish 0.1655 0.2495 2.0021 0.4712 0.2635 1.187
loglogish 0.2589 0.4944 1.4223 0.6537 0.5222 1.222
golu 0.2589 0.3196 1.7688 0.5026 0.3475 1.376
phish 0.3253 0.3611 1.6642 0.5052 0.4412 1.728
lisht 0.6057 0.7579 1.1487 0.6253 0.8657 2.214
gcu 0.0000 0.2970 1.8349 0.5450 1.0000 3.367
asu 0.6065 0.7030 1.1927 0.5789 1.0000 2.984
dsilu 0.5000 0.3795 1.6233 0.3598 0.1438 1.111
calu 0.2087 0.3467 1.6984 0.5506 0.3624 1.196
lalu 0.2616 0.3971 1.5869 0.5733 0.4184 1.273
colu 0.2767 0.5526 1.3452 0.6900 0.6246 1.312
sinsig 0.2203 0.5000 1.4142 0.6719 0.5292 1.172
sgelu 0.5642 0.7009 1.1945 0.6185 0.8234 2.152
double_silu 0.1097 0.4018 1.5775 0.6243 0.4160 1.067
eanaf 0.1922 0.2558 1.9771 0.4678 0.2815 1.286
pflu 0.2824 0.4139 1.5543 0.5781 0.4354 1.303
suish 0.2616 0.5426 1.3575 0.6886 0.5853 1.234
tsrelu 0.1605 0.2450 2.0204 0.4682 0.2596 1.184
snake 0.4323 1.3074 0.8746 1.0585 1.4998 1.339
erfact 0.2434 0.5294 1.3743 0.6857 0.5559 1.182
pserf 0.2152 0.5495 1.3490 0.7094 0.5797 1.152
sinlu 0.3386 0.8995 1.0544 0.8859 0.9769 1.245
coslu 0.5099 0.5381 1.3633 0.5273 0.3128 1.125
crrelu 0.3989 0.5036 1.4092 0.5869 0.5036 1.462
xielu 0.5284 1.7355 0.7591 1.2068 2.0703 1.422
polyrelu 0.5656 2.2754 0.6629 1.3984 3.3523 1.714
ash 0.3029 0.4395 1.5085 0.5897 0.4664 1.341
acon_c 0.2066 0.3558 1.6765 0.5595 0.3795 1.212
ncu 0.0000 10.0000 0.3162 3.1623 22.0000 2.200
squ 1.0000 4.0000 0.5000 1.7321 5.0000 1.667
xiprelu 0.8000 2.1700 0.6788 1.2369 2.8100 1.837
max_sigmoid 0.6253 0.6082 1.2823 0.4660 0.2917 1.343
cos_minus_x 0.6065 1.5677 0.7987 1.0953 1.4323 1.194
min_sin -0.1098 0.7162 1.1817 0.8391 0.7838 1.113
arctan_squared_minus_x 0.4497 1.3592 0.8578 1.0756 1.4038 1.213
max_tanh 0.1210 0.6971 1.1977 0.8261 0.7322 1.073
sinc_plus_x 0.8556 1.7640 0.7529 1.0158 1.0654 1.033
x_asinh_squared 0.0000 3.1350 0.5648 1.7706 4.6799 1.493
"""
_ROWS = [line.split() for line in _TABLE.strip().splitlines()]


@pytest.mark.parametrize('spec, numbers', [(row[0], row[1:]) for row in _ROWS])
def test_moments_agree_with_the_table(spec, numbers):
  moments = get_activation(spec).moments()
  ours = [moments.mean, moments.second, moments.gain, moments.std, moments.slope_second]
  np.testing.assert_allclose(ours, [float(n) for n in numbers[:5]], rtol=0, atol=1e-4)
  np.testing.assert_allclose(moments.chi_centred, float(numbers[5]), rtol=0, atol=6e-4)
  np.testing.assert_allclose(
      moments.chi_raw, moments.slope_second / moments.second, rtol=1e-12, equal_nan=True)


def test_the_table_has_its_94_rows_and_entries_with_their_gate_s_moments_agree_with_them():
  # The entries that are not in it are compared with the trapezoid rule below.
  assert len(_ROWS) == len({row[0] for row in _ROWS}) == 94
  gates = {'glu': 'sigmoid', 'bilinear': 'identity', 'reglu': 'relu', 'geglu': 'gelu',
           'swiglu': 'silu', 'swish_beta': 'silu', 'celu': 'elu'}
  for name, other in gates.items():
    ours, theirs = get_activation(name).moments(), get_activation(other).moments()
    assert ours.second == pytest.approx(theirs.second, rel=1e-12)
    assert ours.slope_second == pytest.approx(theirs.slope_second, rel=1e-12)


@pytest.mark.parametrize('spec, key, exact', [
    ('relu', 'second', 1 / 2),
    ('relu', 'mean', 1 / math.sqrt(2 * math.pi)),
    ('relu_squared', 'second', 3 / 2),
    ('relu_squared', 'slope_second', 2),
    ('abs', 'mean', math.sqrt(2 / math.pi)),
    ('sin', 'second', (1 - math.exp(-2)) / 2),
    ('sin(omega=30)', 'second', 1 / 2),
    ('sin(omega=30)', 'slope_second', 450),
    ('gaussian', 'mean', 1 / math.sqrt(3)),
    ('gaussian', 'second', 1 / math.sqrt(5)),
    ('gelu', 'mean', 1 / (2 * math.sqrt(math.pi))),
    ('erf', 'second', 2 / math.pi * math.asin(2 / 3)),
    ('prelu(slope=0.5)', 'second', 5 / 8),
    ('polyrelu', 'slope_second', (19 + 28 / math.sqrt(2 * math.pi)) / 9),
    ('crrelu', 'second', 0.5 + 0.01 / (2 * math.sqrt(2)) + 0.01**2 / (3 * math.sqrt(3))),
    ('soft_shrink(threshold=0.3)', 'slope_second', math.erfc(0.3 / math.sqrt(2))),
    ('hard_shrink(threshold=0.3)', 'second', math.erfc(0.3 / math.sqrt(2))
     + 0.6 * math.exp(-0.045) / math.sqrt(2 * math.pi)),
    ('sparse_sigmoid', 'slope_second', math.erf(math.sqrt(0.5)) / 4),
    ('sparse_plus', 'slope_second',
     (2 * math.erf(math.sqrt(0.5)) - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)) / 4
     + math.erfc(math.sqrt(0.5)) / 2),
])
def test_moments_agree_with_closed_forms(spec, key, exact):
  assert getattr(get_activation(spec).moments(), key) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize('name', [n for n in names() if get_activation(n).scalar])
def test_moments_agree_with_a_trapezoid_rule_and_differences(name):
  activation = get_activation(name)
  params = {parameter.name: parameter.init for parameter in activation.parameters}
  step = 1e-3
  # Half a step off every kink, so that no difference reaches across one; a kink or a jump that is
  # no multiple of the step costs up to a step times the density there.
  off = any(abs(kink / step - round(kink / step)) > 1e-6 for kink in activation.kinks)
  tolerance = 5e-4 if off else 1e-5
  points = np.arange(-12 + step / 2, 12, step)
  x = np.concatenate([points, points + 1e-4, points - 1e-4])
  values, above, below = np.split(
      evaluate(lambda x: activation.scalar(x, **params, **activation.constants), x), 3)
  weights = step * np.exp(-points**2 / 2) / math.sqrt(2 * math.pi)
  moments = activation.moments()
  assert moments.mean == pytest.approx(np.sum(weights * values), abs=tolerance)
  assert moments.second == pytest.approx(np.sum(weights * values**2), abs=tolerance)
  slopes = (above - below) / 2e-4
  if activation.jumps:
    assert math.isnan(moments.slope_second) and math.isnan(moments.chi_centred)
  elif activation.closed_form is None:  # else f'^2 is unbounded, and no such sum is near E f'^2
    assert moments.slope_second == pytest.approx(np.sum(weights * slopes**2), abs=tolerance)


@pytest.mark.parametrize('name, function', [
    ('gelu', mpmath.ncdf),
    ('mish', lambda x: mpmath.tanh(mpmath.log1p(mpmath.exp(x)))),
    ('golu', lambda x: mpmath.exp(-mpmath.exp(-x))),
    ('pflu', lambda x: (1 + x / mpmath.sqrt(1 + x**2)) / 2),
])
def test_moments_agree_with_adaptive_quadrature(name, function):
  def expectation(g):
    return mpmath.quad(lambda x: g(x) * mpmath.npdf(x), [-12, -6, -2, 0, 2, 6, 12])
  moments = get_activation(name).moments()
  assert moments.mean == pytest.approx(float(expectation(lambda x: x * function(x))), rel=1e-10)
  assert moments.second == pytest.approx(
      float(expectation(lambda x: (x * function(x))**2)), rel=1e-10)


@pytest.mark.parametrize('spec, order', [
    ('fractional_relu', 0.3), ('fractional_relu(order=0.45)', 0.45),
    ('fractional_relu(order=0)', 0)])
def test_moments_and_spectrum_of_fractional_relu_agree_with_quadrature(spec, order):
  q, activation = 1.7, get_activation(spec)
  scale = math.gamma(2 - order)

  def expectation(g):
    # x = t^20, so that the integrand has no pole at 0.
    return integrate.quad(
        lambda t: g(t**20) * stats.norm.pdf(t**20, 0, math.sqrt(q)) * 20 * t**19, 1e-12, 1.2,
        epsabs=1e-12, epsrel=1e-11, limit=200)[0]

  def f(x):
    return x**(1 - order) / scale

  def slope(x):
    return (1 - order) * x**-order / scale

  moments = activation.moments(q)
  assert moments.mean == pytest.approx(expectation(f), rel=1e-9)
  assert moments.second == pytest.approx(expectation(lambda x: f(x)**2), rel=1e-9)
  assert moments.slope_mean == pytest.approx(expectation(slope), rel=1e-9)
  assert moments.slope_second == pytest.approx(expectation(lambda x: slope(x)**2), rel=1e-9)
  assert moments.gain == pytest.approx(math.sqrt(q / moments.second), rel=1e-12)
  assert moments.chi_raw == pytest.approx((1 - order)**2 / (1 - 2 * order), rel=1e-12)
  assert moments.chi_centred == pytest.approx(
      q * moments.slope_second / moments.variance, rel=1e-12)
  # The square has a finite slope: quadrature follows its power beside 0.
  fourth = gaussian_moments(lambda x: activation(x)**2, (0.0,), (), q).second
  assert fourth == pytest.approx(expectation(lambda x: f(x)**4), rel=1e-8)
  coefficients = activation.spectrum(q, degree=6)
  for k in range(7):
    exact = expectation(lambda x: f(x) * special.eval_hermitenorm(k, x / math.sqrt(q)))
    exact /= math.sqrt(math.factorial(k))
    assert coefficients[k] == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_fractional_relu_of_order_zero_is_relu_and_an_order_of_one_half_has_no_chi():
  relu, zero = get_activation('relu'), get_activation('fractional_relu(order=0)')
  x = np.linspace(-3, 3, 61)
  np.testing.assert_array_equal(evaluate(zero, x), evaluate(relu, x))
  assert zero.moments(2.0).chi_centred == pytest.approx(relu.moments(2.0).chi_centred, rel=1e-12)
  np.testing.assert_allclose(zero.spectrum(2.0), relu.spectrum(2.0), atol=1e-12)
  with pytest.raises(UserError, match='order must be at least 0 and below 0.5, not 0.5'):
    get_activation('fractional_relu(order=0.5)')
  # What is left of E f'^2 below 0.01, 1e-4 ...: at order 1/2 every two decades add the same.
  edges = 10.0**-np.arange(2, 12, 2)
  for order, converges in ((0.3, True), (0.5, False)):
    parts = np.array([integrate.quad(lambda x: x**(-2 * order), low, high)[0]
                      for low, high in zip(edges[1:], edges)])
    assert bool(parts[-1] < 0.1 * parts[0]) is converges
    assert np.allclose(parts, parts[0], rtol=1e-6) is not converges
  with pytest.raises(ArithmeticError):
    gaussian_moments(get_activation('fractional_relu').at_first_values(), (0.0,))


def test_an_undeclared_kink_is_noticed_and_a_declared_one_is_exact():
  def shifted(x):
    return jnp.maximum(x - 0.1, 0)
  with pytest.raises(ArithmeticError, match='is a kink undeclared'):
    gaussian_moments(shifted)
  exact = 0.5 * math.erfc(0.1 / math.sqrt(2))
  assert gaussian_moments(shifted, (0.1,)).slope_second == pytest.approx(exact, rel=1e-12)


def test_moments_leave_the_configuration_alone_and_can_be_taken_under_a_trace():
  spec = 'isru(alpha=1.2345)'  # no other test has it in the cache

  @jax.jit
  def scaled(x):
    return x * get_activation(spec).moments().gain

  traced = scaled(jnp.ones(3))
  assert traced.dtype == jnp.float32
  assert not jax.config.jax_enable_x64 and jnp.ones(1).dtype == jnp.float32
  assert get_activation(spec).moments() is get_activation(spec).moments()
  np.testing.assert_allclose(traced, get_activation(spec).moments().gain, rtol=1e-6)


def test_moments_are_taken_at_the_given_first_values():
  assert get_activation('prelu(slope=1.0)').moments().second == pytest.approx(1, rel=1e-12)
  assert get_activation('prelu').moments().second != pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize('spec, q, key, exact', [
    ('relu', 3.0, 'second', 3 / 2),
    ('relu', 3.0, 'gain', math.sqrt(2)),
    ('relu', 3.0, 'chi_raw', 1.0),
    ('identity', 0.2, 'chi_centred', 1.0),
    ('erf', 2.0, 'second', 2 / math.pi * math.asin(4 / 5)),
    ('erf', 2.0, 'slope_mean', 2 / math.sqrt(5 * math.pi)),
    ('sin', 0.5, 'second', (1 - math.exp(-1)) / 2),
    ('sin', 0.5, 'slope_mean', math.exp(-1 / 4)),
    ('relu6', 100.0, 'slope_mean', math.erf(0.6 / math.sqrt(2)) / 2),
    ('binary_step', 4.0, 'slope_mean', 1 / (2 * math.sqrt(2 * math.pi))),
])
def test_moments_at_other_variances_agree_with_closed_forms(spec, q, key, exact):
  moments = get_activation(spec).moments(q)
  assert moments.q == q
  assert getattr(moments, key) == pytest.approx(exact, rel=1e-9)
  if spec not in ('relu', 'identity') or key == 'second':
    assert getattr(get_activation(spec).moments(), key) != pytest.approx(exact, rel=1e-3)


# E f'^2 / E f^2 and (E f')^2 / E f'^2 at q = 1, from a 2,400,000-point trapezoid rule.
@pytest.mark.parametrize('spec, chi_raw, share', [
    ('identity', 1, 1), ('relu', 1, 0.5), ('abs', 1, 0), ('leaky_relu', 1, 0.510),
    ('leaky_relu(slope=0.2)', 1, 0.692), ('tanh', 1.178, 0.790), ('erf', 1.226, 0.745),
    ('sigmoid', 0.153, 0.952), ('soft_sign', 1.244, 0.748), ('hard_tanh', 1.323, 0.683),
    ('elu', 1.036, 0.868), ('selu', 1.072, 0.906), ('gelu', 1.072, 0.548), ('silu', 1.067, 0.659),
    ('mish', 1.059, 0.663), ('hard_silu', 1.081, 0.697), ('softplus', 0.318, 0.852),
    ('sin', 1.313, 0.648), ('gaussian', 0.800, 0), ('relu_squared', 1.333, 0.318)])
def test_chi_raw_and_the_share_of_the_mean_slope(spec, chi_raw, share):
  moments = get_activation(spec).moments()
  assert moments.chi_raw == pytest.approx(chi_raw, abs=6e-4)
  assert moments.slope_share == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize('name', ['selu', 'serlu', 'star_relu'])
def test_self_normalizing_entries_have_second_moment_one(name):
  assert get_activation(name).moments().second == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('spec', ['relu', 'fractional_relu'])
def test_a_variance_that_is_none_is_refused(spec):
  with pytest.raises(ValueError, match='the variance q must be above 0, not 0'):
    get_activation(spec).moments(0.0)
  with pytest.raises(ValueError, match='the variance q must be above 0, not -1'):
    get_activation(spec).spectrum(-1.0)
  with pytest.raises(ValueError, match='degree must be from 0 to 1000, not 2000'):
    get_activation(spec).spectrum(degree=2000)
