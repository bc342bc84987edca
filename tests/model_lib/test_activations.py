"""The registry of activations: look-up, settings, parameters, dtypes, error lines."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.activations import aliases, get_activation, names
from model_lib.activations.host import evaluate
from model_lib.activations.activation import KINDS
from model_lib.errors import UserError


def _inputs(activation, shape=(4, 3), dtype=jnp.float32):
  x = jnp.linspace(-3.1, 3.3, int(np.prod(shape))).reshape(shape).astype(dtype)
  return (x, jnp.flip(x)) if activation.kind == 'gated' else (x,)


def test_the_registry_is_large_sorted_and_documented():
  assert len(names()) >= 160
  assert list(names()) == sorted(set(names()))
  assert not set(aliases()) & set(names())
  for name in names():
    activation = get_activation(name)
    assert activation.spec == str(activation) == name
    # Where another function owns the name, or nobody does, the source is part of the spec.
    assert name in (activation.name, activation.id)
    assert activation.id == f'{activation.name}@{activation.source}'
    assert activation.formula and activation.source
    assert activation.kind in KINDS
    assert set(activation.jumps) <= set(activation.kinks)
    assert get_activation(activation.id) == activation


def test_conventions_that_differ_between_frameworks_are_named():
  assert 'exact' in get_activation('gelu').formula
  assert 'jax.nn' in get_activation('gelu_tanh').formula
  x = jnp.linspace(-4, 4, 101)
  exact, tanh = get_activation('gelu')(x), get_activation('gelu_tanh')(x)
  np.testing.assert_allclose(exact, jax.nn.gelu(x, approximate=False), atol=1e-6)
  np.testing.assert_allclose(tanh, jax.nn.gelu(x, approximate=True), atol=1e-6)
  assert jnp.max(jnp.abs(exact - tanh)) > 1e-4


def test_an_alias_is_its_entry():
  assert get_activation('swish') == get_activation('silu')
  assert all(get_activation(alias).spec == name for alias, name in aliases().items())
  assert get_activation('telu').spec == 'tanhexp'


@pytest.mark.parametrize('spec, canonical', [
    ('telu', 'tanhexp'), ('telu@fernandez2024', 'tanhexp'), ('telu@kunc2024', 'telu@kunc2024'),
    ('srelu', 'srelu'), ('srelu@clevert2015', 'shifted_relu'), ('e_swish', 'e_swish'),
    ('e_swish@alcaide2018', 'e_swish'), ('e_swish@torch_activation', 'e_swish@torch_activation'),
    ('delu@kunc2024', 'delu'), ('msilu@homa', 'msilu@homa'), ('frelu@kunc2024(b=1)',
                                                              'frelu@kunc2024(b=1.0)'),
])
def test_functions_of_one_name_are_told_apart_by_their_source(spec, canonical):
  activation = get_activation(spec)
  assert activation.spec == canonical
  assert activation.name == canonical.partition('(')[0].partition('@')[0]


@pytest.mark.parametrize('spec, canonical', [
    ('crrelu(per=channel, epsilon=0.02)', 'crrelu(epsilon=0.02, per=channel)'),
    ('crrelu(epsilon=0.01, per=layer)', 'crrelu'),
    ('celu(alpha=2)', 'celu(alpha=2.0)'),
    ('hard_swish', 'hard_silu'),
    ('ash(stop_gradient=true, axes=last)', 'ash(axes=last, stop_gradient=True)'),
    ('glu_of(swish)', 'glu_of(silu)'),
    ('glu_of(celu(alpha=2))', 'glu_of(celu(alpha=2.0))'),
])
def test_the_canonical_spec_says_what_differs_from_the_defaults(spec, canonical):
  activation = get_activation(spec)
  assert activation.spec == canonical
  again = get_activation(canonical)
  assert again == activation and hash(again) == hash(activation)
  assert activation != get_activation('tanh')


def test_settings_reach_the_function():
  x = jnp.array([-1.0, 2.0])
  np.testing.assert_allclose(get_activation('leaky_relu(slope=0.5)')(x), [-0.5, 2.0])
  np.testing.assert_allclose(get_activation('prelu(slope=0.5)')(x), [-0.5, 2.0])
  assert get_activation('elu').kinks == () and get_activation('elu(alpha=2)').kinks == (0.0,)
  assert get_activation('soft_shrink(threshold=0.3)').kinks == (-0.3, 0.3)
  # What is known of the default function does not carry over to another one.
  assert get_activation('elu').duplicates and not get_activation('elu(alpha=2)').duplicates
  assert get_activation('swish_beta(per=unit)').duplicates


@pytest.mark.parametrize('spec, words', [
    ('gleu', ["unknown activation 'gleu'", "'gelu'"]),
    ('gelo', ["'gelu'", "'golu'"]),
    ('qqqqq', ["unknown activation 'qqqqq'"]),
    ('msilu', ['different formula in each source', 'msilu@homa or msilu@torch_activation']),
    ('telu@jax', ["'telu@kunc2024'", "'telu@fernandez2024'"]),
    ('leaky_relu(slope=x)', ['slope must be a finite number, not x']),
    ('relu_n(n=-1)', ['n must be above 0, not -1']),
    ('repu(power=0.5)', ['power must be at least 1 and at most 9, not 0.5']),
    ('pdelu(t=1)', ['t must be at least 0 and below 1, not 1']),
    ('ash(k=-3)', ["no setting 'k'; it has 'z', 'alpha'"]),
    ('gelu@torch', ["'gelu@jax'"]),
    ('crrelu(epsilom=0.1)', ["no setting 'epsilom'", "nearest: 'epsilon'"]),
    ('relu(per=layer)', ["no setting 'per'", 'no settings']),
    ('crrelu(per=row)', ['per must be one of layer, channel, unit, not row']),
    ('crrelu(epsilon=big)', ['epsilon must be a finite number, not big']),
    ('crrelu(epsilon=True)', ['epsilon must be a finite number, not True']),
    ('crrelu(epsilon=inf)', ['epsilon must be a finite number, not inf']),
    (f'crrelu(epsilon=1{"0" * 400})', ['epsilon must be a finite number']),
    ('crrelu(0.1)', ["settings are given by name, as in 'crrelu(KEY=VALUE)'", "'epsilon'"]),
    ('celu(alpha=0)', ['alpha must be above 0, not 0']),
    ('ash(axes=rows)', ['axes must be one of sample, last, channel, batch, not rows']),
    ('ash(stop_gradient=1)', ['stop_gradient must be True or False, not 1']),
    ('glu_of', ['one pointwise activation']),
    ('glu_of(relu, gelu)', ['one pointwise activation']),
    ('glu_of(ash)', ["'ash' is statistics"]),
    ('glu_of(glu)', ["'glu' is gated"]),
    ('glu_of(gleu)', ["unknown activation 'gleu'"]),
    ('relu(', ['position 6']),
])
def test_a_mistake_is_one_line_that_says_what_is_allowed(spec, words):
  get_activation('ash(stop_gradient=True)')  # equal to 1 in Python: must not be found in a cache
  get_activation('crrelu(epsilon=1)')
  with pytest.raises(UserError) as caught:
    get_activation(spec)
  message = str(caught.value)
  assert '\n' not in message
  assert all(word in message for word in words), message


@pytest.mark.parametrize('per, shape', [('layer', ()), ('channel', (3,)), ('unit', (5, 3))])
def test_parameters_have_the_shape_that_the_spec_says(per, shape):
  prelu = get_activation(f'prelu(slope=0.1, per={per})')
  (parameter,) = prelu.parameters
  assert (parameter.name, parameter.init, parameter.per) == ('slope', 0.1, per)
  values = prelu.init_parameters((2, 5, 3))
  assert values['slope'].shape == shape and values['slope'].dtype == jnp.float32
  slope = jnp.arange(1.0, 1 + np.prod(shape)).reshape(shape) / 10
  x = -jnp.ones((2, 5, 3))
  with jax.numpy_rank_promotion('raise'):
    np.testing.assert_allclose(prelu(x, slope=slope), np.broadcast_to(-slope, x.shape))
    np.testing.assert_allclose(prelu(x, **values), prelu(x))


@pytest.mark.parametrize('spec', [
    n for n in names()
    if get_activation(n).parameters and get_activation(n).kind in ('pointwise', 'statistics')])
def test_every_learnable_entry_takes_parameters_per_channel_and_differentiates_in_them(spec):
  activation = get_activation(f'{spec}(per=channel)')
  x = np.asarray(_inputs(activation, (4, 3))[0])
  keys = [parameter.name for parameter in activation.parameters]

  def everything(x):
    values = activation.init_parameters(x.shape)
    grads = jax.grad(lambda values: jnp.sum(jnp.sin(activation(x, **values))))(values)
    difference = jnp.max(jnp.abs(activation(x, **values) - activation(x)))
    return jnp.stack([jnp.full(3, difference), *(grads[key] for key in keys)])

  difference, *grads = evaluate(everything, x, x64=False)
  assert np.max(difference) < 1e-6
  for key, grad in zip(keys, grads, strict=True):
    assert np.all(np.isfinite(grad))
    # With its right slope at 1, srelu has no edge there to move.
    assert np.any(grad != 0) != ((spec, key) == ('srelu', 't_r')), key


def test_wrong_calls_say_what_is_wrong():
  x = jnp.ones((2, 3))
  with pytest.raises(TypeError, match='swiglu takes 2 array'):
    get_activation('swiglu')(x)
  with pytest.raises(TypeError, match="no parameter 'slop'; it has: .'slope'."):
    get_activation('prelu')(x, slop=1.0)
  with pytest.raises(ValueError, match='against an input of 2 axes'):
    get_activation('prelu')(x, slope=jnp.ones((1, 1, 3)))


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize('name', ['gelu', 'ash', 'swiglu', 'polyrelu', 'relu_squared'])
def test_arithmetic_is_float32_and_the_result_has_the_input_dtype(name, dtype):
  activation = get_activation(name)
  inputs = _inputs(activation, dtype=dtype)
  result = activation(*inputs)
  assert result.dtype == dtype
  wide = activation(*[array.astype(jnp.float32) for array in inputs])
  np.testing.assert_array_equal(result, wide.astype(dtype))


def test_float64_is_kept_and_integers_become_float32():
  assert get_activation('relu')(jnp.arange(3)).dtype == jnp.float32
  with jax.enable_x64(True):
    x = jnp.linspace(-2, 2, 9, dtype=jnp.float64)
    result = get_activation('gelu')(x)
    narrow = get_activation('gelu')(x.astype(jnp.float32))
    assert result.dtype == jnp.float64
    difference = float(jnp.max(jnp.abs(result - narrow)))
  assert 0 < difference < 1e-6


def test_importing_and_looking_up_computes_no_moments_and_starts_no_backend():
  # No backend of this name exists: whatever needs one ends the child.
  environment = os.environ | {'JAX_PLATFORMS': 'no_such_platform'}
  looks_up = """
from model_lib.activations import activation, get_activation, names
assert len(names()) > 60
gelu = get_activation('gelu')
print(activation.cached_moments.cache_info().currsize)
"""
  takes_moments = 'gelu.moments(); print(activation.cached_moments.cache_info().currsize)'
  child = subprocess.run([sys.executable, '-c', looks_up + takes_moments], env=environment,
                         check=True, capture_output=True, text=True)
  assert child.stdout.split() == ['0', '1']
  calls = 'import jax.numpy as jnp; gelu(jnp.asarray(1.0))'
  child = subprocess.run([sys.executable, '-c', looks_up + calls], env=environment,
                         check=False, capture_output=True, text=True)
  assert child.returncode and child.stdout.split() == ['0']
  assert "Unable to initialize backend 'no_such_platform'" in child.stderr


def test_one_compiled_program_can_switch_between_pointwise_entries():
  functions = [get_activation(name) for name in ('relu', 'gelu', 'silu')]
  x = jnp.linspace(-2.0, 2.0, 5)
  switched = jax.jit(lambda code, x: jax.lax.switch(code, functions, x))
  for code, function in enumerate(functions):
    np.testing.assert_allclose(switched(code, x), function(x), rtol=1e-6)
