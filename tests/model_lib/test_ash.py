"""ASH's limits, sparsity and derivatives, on each of its axes; see test_activation_families too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from model_lib.activations import get_activation
from model_lib.activations.host import evaluate

_OVER = {'sample': (1, 2, 3), 'last': (3,), 'channel': (1, 2), 'batch': (0, 1, 2, 3)}
_X = np.random.default_rng(0).normal(size=(2, 4, 5, 6)) * 1.7 + 0.3


def _threshold(x, axes, z):
  mean = x.mean(_OVER[axes], keepdims=True)
  return mean + z * np.sqrt(x.var(_OVER[axes], keepdims=True) + 1e-5)


def _ash(x, **settings):
  text = ', '.join(f'{key}={value}' for key, value in settings.items())
  return evaluate(get_activation(f'ash({text})'), x)


@pytest.mark.parametrize('axes', _OVER)
def test_with_half_alpha_and_the_threshold_at_zero_it_is_silu(axes):
  for z in (0.0, 0.8):
    # Shifted so that the mean of each group is - z std, as it is without another scale.
    centred = _X - _X.mean(_OVER[axes], keepdims=True)
    x = centred - z * np.sqrt(centred.var(_OVER[axes], keepdims=True) + 1e-5)
    silu = x * special.expit(x)
    assert np.abs(_ash(x, axes=axes, alpha=0.5, z=z) - silu).max() < 1e-6
    narrow = _ash(x.astype(np.float32), axes=axes, alpha=0.5, z=z)
    assert narrow.dtype == np.float32 and np.abs(narrow - silu).max() < 1e-6
    # Twice alpha is Swish's beta; and the threshold matters.
    np.testing.assert_allclose(_ash(x, axes=axes, alpha=0.9, z=z), x * special.expit(1.8 * x),
                               atol=1e-6)
    assert np.abs(_ash(x, axes=axes, alpha=0.5, z=z + 0.5) - silu).max() > 0.05


@pytest.mark.parametrize('axes', _OVER)
def test_a_threshold_far_below_makes_it_the_identity(axes):
  assert np.abs(_ash(_X, axes=axes, z=-40, alpha=3) - _X).max() < 1e-12
  assert np.abs(_ash(_X, axes=axes, z=-1, alpha=3) - _X).max() > 0.1
  assert np.abs(_ash(_X, axes=axes, z=40, alpha=3)).max() < 1e-12


@pytest.mark.parametrize('axes', _OVER)
@pytest.mark.parametrize('z', [-0.6, 0.0, 1.1])
def test_a_large_alpha_makes_it_the_hard_threshold(axes, z):
  hard = np.where(_X >= _threshold(_X, axes, z), _X, 0)
  step = evaluate(get_activation(f'ash_step(z={z}, axes={axes})'), _X)
  np.testing.assert_array_equal(step, hard)
  errors = [np.abs(_ash(_X, axes=axes, z=z, alpha=alpha) - hard).max() for alpha in (1, 1e2, 1e7)]
  assert errors[0] > errors[1] > errors[2] and errors[0] > 0.1 and errors[2] < 1e-6
  # Sorted, these are the largest of their group; f_ash names them by their percentage.
  groups = np.moveaxis(_X, _OVER[axes], range(len(_OVER[axes])))
  kept = np.moveaxis(step != 0, _OVER[axes], range(len(_OVER[axes])))
  size = int(np.prod([_X.shape[axis] for axis in _OVER[axes]]))
  for values, mask in zip(groups.reshape(size, -1).T, kept.reshape(size, -1).T):
    assert not mask.any() or mask.all() or values[mask].min() > values[~mask].max()
  k = float(100 * stats.norm.sf(z))
  fixed = evaluate(get_activation(f'f_ash(k={k!r}, axes={axes}, alpha=2.5)'), _X)
  np.testing.assert_allclose(fixed, _ash(_X, axes=axes, z=z, alpha=2.5), atol=1e-9)


@pytest.mark.parametrize('z, share', [(1.96, 0.975), (0.0, 0.5), (-1.0, 0.1587)])
@pytest.mark.parametrize('scale, shift', [(1.0, 0.0), (3.0, -5.0)])
def test_the_share_of_closed_gates_is_the_normal_distribution_function_of_z(z, share, scale, shift):
  assert stats.norm.cdf(z) == pytest.approx(share, abs=1e-4)
  x = scale * np.random.default_rng(1).normal(size=(2, 100_000)) + shift
  k = 100 * stats.norm.sf(z)
  for spec in (f'ash(z={z})', f'f_ash(k={k})', f'ash(z={z}, axes=last)'):
    gates = evaluate(get_activation(spec), x) / x
    assert np.mean(gates < 0.5) == pytest.approx(share, abs=2e-3), spec
  # The control: for another distribution the share is another.
  skewed = scale * np.random.default_rng(1).exponential(size=(2, 100_000)) + shift
  gates = _ash(skewed, z=z) / skewed
  assert abs(np.mean(gates < 0.5) - share) > 0.01


@pytest.mark.parametrize('axes', _OVER)
@pytest.mark.parametrize('stop', [False, True])
def test_derivatives_are_those_of_finite_differences(axes, stop):
  ash = get_activation(f'ash(axes={axes}, stop_gradient={stop})')
  z, alpha = 0.4, 0.9
  cotangent = np.random.default_rng(2).normal(size=_X.shape)

  def total(x, z, alpha):
    return jnp.sum(cotangent * ash(x, z=z, alpha=alpha))
  def gradients(x, z, alpha):
    grads = jax.grad(total, (0, 1, 2))(x, z, alpha)
    return jnp.concatenate([grads[0].ravel(), grads[1][None], grads[2][None]])
  *in_x, in_z, in_alpha = evaluate(gradients, _X, np.float64(z), np.float64(alpha))
  in_x = np.reshape(in_x, _X.shape)

  threshold = _threshold(_X, axes, z)
  std = np.sqrt(_X.var(_OVER[axes], keepdims=True) + 1e-5)
  s = special.expit(2 * alpha * (_X - threshold))
  slope = _X * s * (1 - s)
  assert in_z == pytest.approx(np.sum(cotangent * -2 * alpha * std * slope), rel=1e-9)
  assert in_alpha == pytest.approx(np.sum(cotangent * 2 * (_X - threshold) * slope), rel=1e-9)

  def value(x, held=None):
    return np.sum(cotangent * x * special.expit(
        2 * alpha * (x - (_threshold(x, axes, z) if held is None else held))))
  for place in ((0, 1, 2, 3), (1, 3, 4, 5), (1, 0, 0, 0)):
    move = np.zeros_like(_X)
    move[place] = 1e-6
    differences = [(value(_X + move, held) - value(_X - move, held)) / 2e-6
                   for held in (None, threshold)]
    assert in_x[place] == pytest.approx(differences[stop], rel=1e-6, abs=1e-8)
    # The control: what goes through the statistics is seen.
    assert abs(differences[0] - differences[1]) > 1e-4


def test_its_moments_at_the_first_values():
  moments = get_activation('ash').moments()
  assert (moments.mean, moments.second, moments.gain) == pytest.approx(
      (0.3029, 0.4395, 1.5085), abs=5e-4)
  x = np.linspace(-3, 0, 3001)
  values = x * special.expit(2 * x)
  assert (x[values.argmin()], values.min()) == pytest.approx((-0.639, -0.1392), abs=1e-3)
