"""NumPy carries out what JAX traced: against XLA in float64, primitive by primitive."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.activations import get_activation, names
from model_lib.activations import host

_X = np.linspace(-3.1, 2.9, 24)


def _everything(x):
  """One number per entry and operation, [operation, entry]."""
  positive, unit = jnp.abs(x) + 0.1, jnp.tanh(x) * 0.9
  plain = [jnp.sin, jnp.cos, jnp.tan, jnp.sinh, jnp.cosh, jnp.tanh, jnp.arctan, jnp.arcsinh,
           jnp.exp, jnp.expm1, jnp.exp2, jnp.abs, jnp.sign, jnp.floor, jnp.ceil, jnp.square,
           lax.erf, lax.erfc, jax.nn.sigmoid, jax.nn.relu, jax.nn.softplus, jax.nn.relu6,
           jax.nn.selu, jax.nn.squareplus, jnp.negative, lax.stop_gradient, jnp.isfinite, jnp.isnan]
  return jnp.stack([
      *(f(x).astype(x.dtype) for f in plain),
      *(f(positive) for f in (jnp.log, jnp.log1p, jnp.sqrt, lax.rsqrt, jnp.cbrt, lax.lgamma)),
      *(f(unit) for f in (jnp.arcsin, jnp.arccos, jnp.arctanh, lax.erf_inv)),
      jnp.arccosh(positive + 1), x**3, x**-2, positive**1.3, jnp.arctan2(x, positive),
      jnp.clip(x, -1, 2), jnp.maximum(x, 0.3), jnp.minimum(x, 0.3),
      lax.rem(x, jnp.full_like(x, 0.7)), jnp.where(x <= 0, 1, 0).astype(x.dtype),
      jnp.where((x > 0.5) | ~(x >= -1) & (x != 0), x, 2 * x),
      unit ** 20, x / positive - jnp.sum(x) + jnp.mean(x),
      x - jnp.max(x) + jnp.min(x), jnp.concatenate([x[5:], x[:5]]), x.reshape(4, 6).T.reshape(-1),
      jnp.squeeze(x[None]), jnp.arange(x.size, dtype=x.dtype), x == jnp.argmax(x),
      jax.checkpoint(jnp.sin)(x), *(f(x) for f in (jax.scipy.special.i0e, jax.scipy.special.i1e)),
      jax.jvp(jnp.tanh, (x,), (jnp.ones_like(x),))[1]])


def test_every_primitive_agrees_with_xla():
  with jax.enable_x64(True):
    expected = np.asarray(jax.jit(
        _everything, compiler_options={'xla_backend_optimization_level': 0})(jnp.asarray(_X)))
    traced = jax.make_jaxpr(_everything)(_X)
  assert host.unknown_primitives(traced.jaxpr) == set()
  ours = host.evaluate(_everything, _X)
  np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)
  single = host.evaluate(_everything, _X.astype(np.float32), x64=False)
  assert single.dtype == np.float32
  np.testing.assert_allclose(single, expected, rtol=2e-4, atol=2e-4)
  assert np.abs(ours - expected[::-1]).max() > 1


@pytest.mark.parametrize('name', names())
def test_no_pointwise_entry_needs_the_compiler(name):
  activation = get_activation(name)
  if activation.kind == 'pointwise':
    with jax.enable_x64(True):
      traced = jax.make_jaxpr(activation.at_first_values())(_X)
    assert host.unknown_primitives(traced.jaxpr) == set()


def test_an_unknown_primitive_is_left_to_xla():
  def ranks(x):
    return jnp.sort(x)[::-1]
  with jax.enable_x64(True):
    assert host.unknown_primitives(jax.make_jaxpr(ranks)(_X).jaxpr) >= {'sort'}
  found = host.evaluate(ranks, _X)
  assert found.dtype == np.float64
  np.testing.assert_array_equal(found, _X[::-1])


def test_evaluation_is_possible_under_a_trace_and_changes_no_configuration():
  seen = []

  @jax.jit
  def outer(x):
    seen.append(host.evaluate(jnp.tanh, _X))
    return x

  outer(jnp.ones(2))
  np.testing.assert_allclose(seen[0], np.tanh(_X), rtol=1e-15)
  assert not jax.config.jax_enable_x64
