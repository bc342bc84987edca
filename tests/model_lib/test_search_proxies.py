"""Proxies: moments, networks at init and the Fisher matrix, and how wild candidates fare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from model_lib.activations import get_activation
from model_lib.search import parse
from model_lib.search.proxies import Task, all_proxies, fisher_features, names, scores
from model_lib.search.proxies.fisher import Fisher, features
from model_lib.search.proxies.initialized import Initialized
from model_lib.search.proxies.values import WEIGHTS, Z, hermite
from tests.model_lib.proxy_cases import evaluated, task_of

NETS = ('tanh(x)', 'swish(x)', 'max(relu(x), sigmoid(x))')


def _net(*texts, **options):
  task = task_of(**options)
  return Initialized.of(evaluated(*texts), task), task


# Moments and the spectrum.

@pytest.mark.parametrize('name', [
    'relu', 'tanh', 'gelu', 'swish', 'elu', 'selu', 'mish', 'leaky_relu', 'softplus', 'erf'])
def test_moments_are_those_of_the_registry(name):
  found, exact = evaluated(f'{name}(x)'), get_activation(name).moments()
  np.testing.assert_allclose(
      [found.mean[0], found.second[0], found.slope_second[0], found.gain[0]],
      [exact.mean, exact.second, exact.slope_second, exact.gain], rtol=1e-9, atol=1e-9)


def test_moments_at_kinks_and_jumps_between_the_panels_edges():
  """max(x, t) and sign(x - t) have closed forms."""
  kinks, slopes, jumps = [], [], []
  for t in np.linspace(-0.3, 0.9, 101):
    density, below = np.exp(-t**2 / 2) / np.sqrt(2 * np.pi), special.ndtr(t)
    found = evaluated(f'max(x, {t})', f'div(sub(x, {t}), abs(sub(x, {t})))')
    kinks.append(found.mean[0] - (t * below + density))
    slopes.append(found.slope_second[0] - (1 - below))
    jumps.append(found.mean[1] - (1 - 2 * below))
  # Not better either: what is aligned with the panels is another matter.
  assert 1e-5 < np.abs(kinks).max() < 5e-5
  assert 2e-3 < np.abs(slopes).max() < 0.01
  assert 5e-3 < np.abs(jumps).max() < 0.02


def test_hermite_coefficients_of_polynomials():
  found = hermite(evaluated('square(x)', 'cube(x)', 'add(x, 1)').values, 5)
  np.testing.assert_allclose(found, [
      [1, 0, 2**0.5, 0, 0, 0], [0, 3, 0, 6**0.5, 0, 0], [1, 1, 0, 0, 0, 0]], atol=1e-12)


@pytest.mark.parametrize('name', ['tanh', 'relu', 'elu'])
def test_hermite_coefficients_are_those_of_the_registry(name):
  found = hermite(evaluated(f'{name}(x)').values, 128)[0]
  np.testing.assert_allclose(found, get_activation(name).spectrum(degree=128), atol=1e-9)


def test_the_rule_would_not_pass_with_other_weights():
  with pytest.raises(AssertionError):
    np.testing.assert_allclose((WEIGHTS * 1.0001) @ Z**2, 1.0, rtol=1e-9)
  np.testing.assert_allclose(WEIGHTS @ Z**2, 1.0, rtol=1e-12)


def test_a_degree_that_overflows_is_refused():
  assert np.isfinite(hermite(evaluated('relu(x)').values, 200)).all()
  with pytest.raises(ValueError, match='0 to 200'):
    hermite(evaluated('relu(x)').values, 201)


def test_proxies_of_the_spectrum():
  """ReLU: E f = (2 pi)^(-1/2), E z f = 1/2, E f^2 = 1/2; x^2: E f^2 = 3, E f'^2 = 4."""
  values, _ = all_proxies([parse('relu(x)'), parse('square(x)')], task_of())
  mean = 1 / np.pi
  expected = {
      'share_mean': [mean, 1 / 3], 'share_linear': [0.5, 0], 'share_bent': [0.5 - mean, 2 / 3],
      'nonlinearity': [(0.5 - mean) / (1 - mean), 1], 'chi_raw': [1, 4 / 3],
      'chi_centred': [1 / (1 - mean), 2], 'chi_distance': [0, np.log(4 / 3)]}
  for name, numbers in expected.items():
    np.testing.assert_allclose(values[name], numbers, atol=1e-9, err_msg=name)


# Networks at init.

def _logits(net, i, f, x, shifts=(0.0, 0.0, 0.0)):
  """One candidate's network in JAX, with changes of the pre-activations."""
  weights = [jnp.asarray(w, jnp.float32) for w in (net.weights[0], *(
      part[i] for part in net.weights[1:]))]
  return _forward(weights, [0.0] * 3, f, x, shifts)


def _forward(weights, biases, f, x, shifts=(0.0, 0.0, 0.0)):
  h = x
  for layer, (weight, bias, shift) in enumerate(zip(weights, biases, shifts)):
    h = (f(h) if layer else h) @ weight + bias + shift
  return h


@pytest.fixture(scope='module')
def nets():
  net, task = _net(*NETS)
  values, _ = all_proxies([parse(text) for text in NETS], task)
  return net, task, values


@pytest.mark.parametrize('i', range(len(NETS)))
def test_loss_and_gradient_norm_against_jax(nets, i):
  net, task, values = nets
  f = parse(NETS[i])
  params = ([jnp.asarray(w, jnp.float32) for w in (net.weights[0], net.weights[1][i],
                                                   net.weights[2][i])],
            [jnp.zeros(64), jnp.zeros(64), jnp.zeros(task.n_classes)])

  def loss(params, biased=True):
    weights, biases = params
    with jax.numpy_rank_promotion('allow'):
      logits = _forward(weights, biases if biased else [0.0] * 3, f, jnp.asarray(task.x))
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), task.y[:, None], 1))

  value, gradient = jax.value_and_grad(loss)(params)
  squares = [sum(jnp.sum(part**2) for part in parts) for parts in gradient]
  assert values['loss_at_init'][i] == pytest.approx(float(value), rel=1e-5)
  assert values['gradient_norm'][i] == pytest.approx(
      0.5 * float(jnp.log(sum(squares))), abs=1e-4)
  # Without the biases it is another number: they are in it.
  assert abs(values['gradient_norm'][i] - 0.5 * float(jnp.log(squares[0]))) > 1e-3


@pytest.mark.parametrize('i', range(len(NETS)))
def test_zen_and_jacobians_against_jax(nets, i):
  net, task, values = nets
  f = parse(NETS[i])
  x, noise = jnp.asarray(task.x), jnp.asarray(net.noise, jnp.float32)
  moved = jax.jvp(
      lambda x: net.gain[i] * f(f(x @ net.weights[0]) @ net.weights[1][i]), (x,), (noise,))[1]
  assert values['zen'][i] == pytest.approx(
      float(jnp.log(jnp.mean(jnp.linalg.norm(moved, axis=1)))), abs=1e-4)

  jacobians = jax.grad(lambda x: jnp.sum(_logits(net, i, f, x)))(x)[:32]
  eigenvalues = np.linalg.eigvalsh(np.corrcoef(np.asarray(jacobians, np.float64))) + 1e-5
  expected = -np.sum(np.log(eigenvalues) + 1 / eigenvalues)
  # float32 gradients: 0 is 1e-7 there, to which 1 / (l + 1e-5) answers.
  assert values['jacobian_covariance'][i] == pytest.approx(expected, rel=2e-2)


def test_hidden_layers_have_second_moment_1():
  net, _ = _net('relu(x)', 'tanh(x)', n=256, d=64)
  for layer in range(2):
    moments = np.mean(net.hidden[layer]**2, axis=(1, 2)) * net.gain**2
    np.testing.assert_allclose(moments, 1, atol=0.25)
  assert (np.abs(np.mean(net.hidden[0]**2, axis=(1, 2)) - 1) > 0.3).all()  # without the gain


def test_naswot_of_relu_is_the_kernel_of_active_units():
  net, task = _net('relu(x)', n=12)
  active = np.concatenate([net.inputs @ net.weights[0] > 0,
                           (net.hidden[0] @ net.weights[1])[0] > 0], axis=1)
  kernel_ = np.array([[np.sum(a == b) for b in active] for a in active]) / active.shape[1]
  expected = np.log(np.linalg.det(kernel_ + 1e-6 * np.eye(12)))
  values, _ = all_proxies([parse('relu(x)'), parse('tanh(x)')], task)
  assert values['naswot'][0] == pytest.approx(expected, rel=1e-9)
  assert abs(values['naswot'][1] - expected) > 0.1


def test_naswot_of_equal_examples_is_low():
  task = task_of(n=12)
  # Slopes that are one number to rounding have no codes.
  flat = all_proxies([parse('add(sub(x, cosh(x)), cosh(x))')], task)[0]
  assert flat['naswot'][0] == pytest.approx(11 * np.log(1e-6) + np.log(12), abs=0.01)
  same = Task(np.tile(task.x[:1], (12, 1)), task.y, task.x_val, task.y_val)
  one, other = (all_proxies([parse('relu(x)')], t)[0]['naswot'][0] for t in (same, task))
  assert one == pytest.approx(11 * np.log(1e-6) + np.log(12), abs=0.01) and one < other - 50


# The Fisher matrix.

@pytest.mark.parametrize('i', range(len(NETS)))
def test_fisher_eigenvalues_are_those_of_the_explicit_kronecker_product(nets, i):
  """Layers 1 and 3, of 384 and 195 parameters; a class is drawn from the network's own softmax."""
  net, task, _ = nets
  f, found = parse(NETS[i]), Fisher.of(net, task)

  def log_probabilities(shifts, x):
    return jax.nn.log_softmax(_logits(net, i, f, x, shifts))

  zero = (jnp.zeros(64), jnp.zeros(64), jnp.zeros(task.n_classes))
  x = jnp.asarray(task.x)
  with jax.numpy_rank_promotion('allow'):
    logs = jax.vmap(log_probabilities, (None, 0))(zero, x)
    jacobians = jax.jit(jax.vmap(jax.jacobian(log_probabilities), (None, 0)))(zero, x)
  p = np.exp(np.asarray(logs, np.float64))
  for layer, inputs in ((0, net.inputs), (2, net.hidden[1][i])):
    g = np.asarray(jacobians[layer], np.float64)
    outer = np.einsum('bc,bci,bcj->ij', p, g, g) / len(p)
    a = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    explicit = np.linalg.eigvalsh(np.kron(a.T @ a / len(a), outer))[::-1]
    ours = np.sort(10**found.layers[layer][i].ravel())[::-1]
    assert ours.shape == explicit.shape
    np.testing.assert_allclose(ours, explicit, rtol=1e-4, atol=1e-6 * explicit[0])
    wrong = np.linalg.eigvalsh(np.kron(a.T @ a / len(a), np.eye(len(outer))))[::-1]
    assert np.abs(ours - wrong).max() > 0.1 * ours[0]


def test_fisher_scalars_and_features(nets):
  net, task, values = nets
  found = Fisher.of(net, task)
  every = [np.concatenate([logs[i].ravel() for logs in found.layers]) for i in range(len(NETS))]
  for i, logs in enumerate(every):
    assert values['fisher_trace'][i] == pytest.approx(np.log10(np.sum(10**logs)))
    assert values['fisher_largest'][i] == pytest.approx(logs.max())
    assert values['fisher_spread'][i] == pytest.approx(logs.max() - logs.mean())
  table = fisher_features([parse(text) for text in NETS], task, bins=16)
  np.testing.assert_array_equal(table, features(found, 16))
  assert table.shape == (3, 48) and (np.diff(table.reshape(3, 3, 16)) >= 0).all()
  np.testing.assert_array_equal(table.reshape(3, 3, 16)[:, :, -1], 1.0)
  # Bin 11 of 16 ends at 10^0: what is below is counted up to there.
  share = np.mean(found.layers[1][0] < 0)
  assert table.reshape(3, 3, 16)[0, 1, 11] == share and 0.5 < share < 1


# All of them.

# Not finite anywhere, far out, or below 0.
WILD = ('div(x, sub(x, x))', 'exp(exp(exp(x)))', 'pow(x, erf(x))')
TAME = ('relu(x)', 'mul(sinh(x), cosh(x))', 'gelu(x)')


def test_wild_candidates_have_nan_and_do_not_touch_the_others(monkeypatch):
  task = task_of()
  mixed = [parse(text) for pair in zip(WILD, TAME) for text in pair]
  values, _ = all_proxies(mixed, task)
  alone = [all_proxies([f], task)[0] for f in mixed]
  monkeypatch.setattr(scores, '_CHUNK', 3)
  chunked, seconds = all_proxies(mixed, task)
  table, chunked_table = (fisher_features(part, task) for part in (mixed, mixed[:1]))
  for name, found in values.items():
    assert found.shape == (6,) and found.dtype == np.float64
    assert not np.isinf(found).any()
    assert np.isnan(found[[0, 2, 4]]).all(), name
    assert np.isfinite(found[1::2]).all(), name
    np.testing.assert_allclose(
        found, np.concatenate([one[name] for one in alone]), rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found, chunked[name], rtol=1e-6, err_msg=name)
  assert all(value > 0 for value in seconds.values())
  assert np.isnan(table[[0, 2, 4]]).all() and np.isfinite(table[1::2]).all()
  assert np.isnan(chunked_table).all()


def test_an_infinity_is_nan():
  """Of inputs near 1e30, x^3 makes finite logits, and a gradient whose square is beyond float64."""
  task = task_of()
  large = Task(task.x * np.float32(1e30), task.y, task.x_val, task.y_val)
  values, _ = all_proxies([parse('cube(x)'), parse('relu(x)')], large)
  assert 1e250 < values['loss_at_init'][0] < np.inf and np.isnan(values['gradient_norm'][0])
  assert np.isfinite(values['gradient_norm'][1])


def test_seeds_are_common_and_matter():
  task = task_of()
  other = Task(task.x, task.y, task.x_val, task.y_val, seed=1)
  twice = [parse('tanh(x)'), parse('tanh(x)')]
  one, two = all_proxies(twice, task)[0], all_proxies(twice, other)[0]
  for name, found in one.items():
    assert found[0] == found[1]
    drawn = names()[name].stage in ('initialized', 'fisher')
    assert (found[0] != two[name][0]) == drawn


def test_an_exact_zero_is_0_for_every_candidate():
  """Otherwise rounding would rank the odd functions, and the homogeneous ones."""
  values, _ = all_proxies([parse(text) for text in (
      'tanh(x)', 'sinh(x)', 'atan(x)', 'relu(x)', 'abs(x)', 'leaky_relu(x)')], task_of())
  assert (values['share_mean'][:3] == 0).all() and (values['share_mean'][3:] > 0.01).all()
  assert (values['chi_distance'][3:] == 0).all() and (values['chi_distance'][:3] > 0.01).all()


def test_every_proxy_says_what_it_is_and_which_sign_is_expected():
  values, seconds = all_proxies([], task_of())
  assert list(values) == list(seconds) == list(names())
  for name, proxy in names().items():
    assert proxy.sign in (-1, 1) and values[name].shape == (0,)
    assert proxy.about.endswith('.') and len(proxy.about) > 30
    assert ('higher is better' in proxy.about) == (proxy.sign == 1)
    assert ('lower is better' in proxy.about) == (proxy.sign == -1)
  assert fisher_features([], task_of(), bins=8).shape == (0, 24)


@pytest.mark.parametrize('change, message', [
    ({'y': np.zeros(3, int)}, 'are needed'), ({'x': np.zeros(40)}, 'are needed'),
    ({'x_val': np.zeros((30, 4))}, 'are needed'), ({'y': np.zeros(40)}, 'integers'),
    ({'y_val': np.full(30, -1)}, 'integers')])
def test_a_task_that_does_not_fit_is_refused(change, message):
  task = task_of()
  parts = {'x': task.x, 'y': task.y, 'x_val': task.x_val, 'y_val': task.y_val}
  with pytest.raises(ValueError, match=message):
    Task(**{**parts, **change})
