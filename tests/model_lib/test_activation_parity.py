"""Values and gradients beside those of jax.nn, flax and torch, at defaults and other settings.

keras is no dependency and not compared: an entry that only keras has beside it (ThresholdedReLU is
`threshold` with value 0) is compared with torch's.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.activations import get_activation
from model_lib.activations.host import evaluate

# No point is a kink, where the two may choose another one-sided slope.
_X = np.random.default_rng(0).normal(scale=4, size=200).astype(np.float32)


def _value_and_slope(function, x=_X):
  """(f, f') in float32."""
  return evaluate(lambda x: jnp.stack(jax.jvp(function, (x,), (jnp.ones_like(x),))), x)


def _value_and_gradients(function, cotangent, *inputs):
  """f and the gradients of sum(cotangent f) in every input, float32 and flat."""
  def both(*inputs):
    y, pull = jax.vjp(function, *inputs)
    return jnp.concatenate([array.reshape(-1) for array in (y, *pull(jnp.asarray(cotangent)))])
  return evaluate(both, *inputs)


def _flat(*arrays):
  return np.concatenate([np.asarray(array).ravel() for array in arrays])


@pytest.mark.parametrize('spec, function, settings', [
    ('celu', jax.nn.celu, {}), ('celu(alpha=0.6)', jax.nn.celu, {'alpha': 0.6}),
    ('elu', jax.nn.elu, {}), ('elu(alpha=0.6)', jax.nn.elu, {'alpha': 0.6}),
    # jax's default is the other one.
    ('gelu', jax.nn.gelu, {'approximate': False}), ('gelu_tanh', jax.nn.gelu, {}),
    ('hard_sigmoid', jax.nn.hard_sigmoid, {}), ('hard_silu', jax.nn.hard_silu, {}),
    ('hard_silu', jax.nn.hard_swish, {}), ('hard_tanh', jax.nn.hard_tanh, {}),
    ('identity', jax.nn.identity, {}), ('leaky_relu', jax.nn.leaky_relu, {}),
    ('leaky_relu(slope=0.3)', jax.nn.leaky_relu, {'negative_slope': 0.3}),
    ('log_sigmoid', jax.nn.log_sigmoid, {}), ('mish', jax.nn.mish, {}), ('relu', jax.nn.relu, {}),
    ('relu6', jax.nn.relu6, {}), ('selu', jax.nn.selu, {}), ('sigmoid', jax.nn.sigmoid, {}),
    ('silu', jax.nn.silu, {}), ('silu', jax.nn.swish, {}), ('soft_sign', jax.nn.soft_sign, {}),
    ('softplus', jax.nn.softplus, {}), ('sparse_plus', jax.nn.sparse_plus, {}),
    ('sparse_sigmoid', jax.nn.sparse_sigmoid, {}), ('squareplus', jax.nn.squareplus, {}),
    ('squareplus(b=1.5)', jax.nn.squareplus, {'b': 1.5}), ('tanh', jax.nn.tanh, {}),
])
def test_entries_that_jax_has_are_jax_s(spec, function, settings):
  theirs = _value_and_slope(functools.partial(function, **settings))
  # jax's own forms of GELU and squareplus lose digits on the left.
  np.testing.assert_allclose(_value_and_slope(get_activation(spec)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['gelu', 'squareplus(b=1.5)'])
def test_another_convention_is_told_apart(name):
  other = {'gelu': jax.nn.gelu}.get(name, jax.nn.squareplus)
  ours, theirs = _value_and_slope(get_activation(name)), _value_and_slope(other)
  assert np.all(np.max(np.abs(ours - theirs), axis=1) > 1e-4)


def test_the_gated_linear_unit_and_softmax_are_jax_s():
  x, glu = _X.reshape(20, 10), get_activation('glu')
  weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  # jax has the value first, then the gate.
  half, swapped = weights[:, :5], _value_and_gradients(
      lambda x: glu(x[:, :5], x[:, 5:]), weights[:, :5], x)
  for f, g, cotangent in (
      (lambda x: glu(x[:, 5:], x[:, :5]), jax.nn.glu, half),
      (get_activation('softmax'), jax.nn.softmax, weights)):
    theirs = _value_and_gradients(g, cotangent, x)
    np.testing.assert_allclose(
        _value_and_gradients(f, cotangent, x), theirs, rtol=1e-5, atol=1e-6)
    assert theirs.shape != swapped.shape or np.max(np.abs(theirs - swapped)) > 0.1


def test_prelu_is_flax_s_at_flax_s_first_value():
  layer = nn.PReLU()
  variables = layer.init(jax.random.key(0), _X)
  slope = float(variables['params']['negative_slope'])
  assert slope == pytest.approx(0.01) and get_activation('prelu').parameters[0].init == 0.25
  np.testing.assert_allclose(_value_and_slope(get_activation(f'prelu(slope={slope})')),
                             _value_and_slope(lambda x: layer.apply(variables, x)), rtol=1e-6)


def _scaled_softplus(beta):
  """torch's softplus(beta) in terms of the entry; torch's threshold only saves it an exp."""
  softplus = get_activation('softplus')
  return lambda x: softplus(beta * x) / beta


# Module of torch.nn -> cases of (spec or function, settings).
_TORCH = {
    'CELU': [('celu', {}), ('celu(alpha=0.6)', {'alpha': 0.6})],
    'ELU': [('elu', {}), ('elu(alpha=0.6)', {'alpha': 0.6})],
    'GELU': [('gelu', {}), ('gelu_tanh', {'approximate': 'tanh'})],
    'Hardshrink': [('hard_shrink', {}), ('hard_shrink(threshold=1.2)', {'lambd': 1.2})],
    'Hardsigmoid': [('hard_sigmoid', {})],
    'Hardswish': [('hard_silu', {})],
    'Hardtanh': [('hard_tanh', {}), ('relu_n(n=2.5)', {'min_val': 0.0, 'max_val': 2.5})],
    'LeakyReLU': [('leaky_relu', {}), ('leaky_relu(slope=0.3)', {'negative_slope': 0.3})],
    'LogSigmoid': [('log_sigmoid', {})],
    'Mish': [('mish', {})],
    'PReLU': [('prelu', {}), ('prelu(slope=0.4)', {'init': 0.4})],
    'ReLU': [('relu', {})],
    'ReLU6': [('relu6', {})],
    'RReLU': [('rrelu', {}), ('rrelu(low=0.2, high=0.6)', {'lower': 0.2, 'upper': 0.6})],
    'SELU': [('selu', {})],
    'SiLU': [('silu', {})],
    'Sigmoid': [('sigmoid', {})],
    'Softplus': [('softplus', {}), (_scaled_softplus(2.5), {'beta': 2.5}),
                 (_scaled_softplus(0.5), {'beta': 0.5, 'threshold': 30.0})],
    'Softshrink': [('soft_shrink', {}), ('soft_shrink(threshold=1.2)', {'lambd': 1.2})],
    'Softsign': [('soft_sign', {})],
    'Tanh': [('tanh', {})],
    'Tanhshrink': [('tanh_shrink', {})],
    'Threshold': [('threshold', {'threshold': 1.0, 'value': 0.0}),
                  ('threshold(threshold=0.3, value=-2.0)', {'threshold': 0.3, 'value': -2.0})],
}
# Not maps of single numbers; the first two are compared below, Softmin(x) is softmax(-x).
_TORCH_ELSE = {'GLU', 'Softmax', 'Softmax2d', 'Softmin', 'LogSoftmax', 'MultiheadAttention'}


@pytest.mark.parity
def test_every_activation_of_torch_is_compared_or_named():
  import torch
  assert set(torch.nn.modules.activation.__all__) == set(_TORCH) | _TORCH_ELSE


def _torch_s(function):
  """(f, f') at _X."""
  import torch
  x = torch.tensor(_X, requires_grad=True)
  y = function(x)
  y.sum().backward()
  return np.stack([y.detach().numpy(), x.grad.numpy()])


@pytest.mark.parity
@pytest.mark.parametrize('module', _TORCH)
def test_entries_that_torch_has_are_torch_s(module):
  import torch
  found = []
  for ours, settings in _TORCH[module]:
    # In evaluation mode RReLU has its mean slope.
    theirs = _torch_s(getattr(torch.nn, module)(**settings).eval())
    function = get_activation(ours) if isinstance(ours, str) else ours
    np.testing.assert_allclose(_value_and_slope(function), theirs, rtol=1e-5, atol=1e-5)
    found.append(theirs)
  for other in found[1:]:  # the control: the settings are told apart
    assert np.max(np.abs(other - found[0])) > 1e-4


@pytest.mark.parity
@pytest.mark.parametrize('name, function', [
    ('abs', 'abs'), ('arctan', 'atan'), ('asinh', 'asinh'), ('erf', 'erf'), ('sin', 'sin'),
    ('relu_squared', lambda x: x.relu().square()),
    # torch.sinc is sin(pi x) / (pi x).
    ('sinc', lambda x: (x / np.pi).sinc())])
def test_elementary_functions_are_torch_s(name, function):
  import torch
  theirs = _torch_s(getattr(torch, function) if isinstance(function, str) else function)
  np.testing.assert_allclose(
      _value_and_slope(get_activation(name)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_prelu_by_channel_and_the_gated_linear_unit_are_torch_s_with_their_gradients():
  import torch
  x, slope = _X.reshape(50, 4), np.array([.1, .2, .3, .4], np.float32)
  weights = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
  prelu, glu = get_activation('prelu(per=channel)'), get_activation('glu')
  inputs = [torch.tensor(array, requires_grad=True) for array in (x, slope)]
  theirs = torch.nn.functional.prelu(*inputs)
  theirs.backward(torch.tensor(weights))
  np.testing.assert_allclose(
      _value_and_gradients(lambda x, slope: prelu(x, slope=slope), weights, x, slope),
      _flat(theirs.detach(), *(i.grad for i in inputs)), rtol=1e-5, atol=1e-5)
  # torch has the value first, then the gate.
  both = torch.tensor(x, requires_grad=True)
  theirs = torch.nn.functional.glu(both)
  theirs.backward(torch.tensor(weights[:, :2]))
  np.testing.assert_allclose(
      _value_and_gradients(lambda x: glu(x[:, 2:], x[:, :2]), weights[:, :2], x),
      _flat(theirs.detach(), both.grad), rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_softmax_is_torch_s_with_its_gradient():
  import torch
  x = _X.reshape(10, 5, 4)
  weights = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
  for spec, dim in (('softmax', -1), ('softmax(axis=positions)', -2)):
    theirs = torch.tensor(x, requires_grad=True)
    result = torch.softmax(theirs, dim)
    result.backward(torch.tensor(weights))
    np.testing.assert_allclose(_value_and_gradients(get_activation(spec), weights, x),
                               _flat(result.detach(), theirs.grad), rtol=1e-5, atol=1e-6)
