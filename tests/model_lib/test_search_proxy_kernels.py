"""Kernel proxies: against closed forms, a wide network, and a dense solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.search import parse
from model_lib.search.proxies import Task, kernel
from model_lib.search.proxies.kernel import ANGLES, RIDGE, Kernels, regress
from tests.model_lib.proxy_cases import evaluated, task_of

RHO = np.cos(ANGLES)


def _two_layers(kappa, slope):
  """The NNGP and the NTK from a closed form of one layer's map and its derivative."""
  once = kappa(RHO)
  nngp = kappa(once)
  return nngp, nngp + (once + RHO * slope(RHO)) * slope(once)


def _relu_kernels():
  """Arc-cosine kernels: Cho & Saul 2009."""
  return _two_layers(
      lambda r: (np.sqrt(1 - r**2) + r * (np.pi - np.arccos(r))) / np.pi,
      lambda r: (np.pi - np.arccos(np.minimum(r, 1))) / np.pi)


def _erf_kernels():
  """Williams 1997, at input variance 1."""
  second = np.arcsin(2 / 3)
  return _two_layers(lambda r: np.arcsin(2 * r / 3) / second,
                     lambda r: 2 / np.sqrt(9 - 4 * r**2) / second)


@pytest.mark.parametrize('text, closed, tolerances', [
    ('relu(x)', _relu_kernels, (1e-4, 3e-2)), ('erf(x)', _erf_kernels, (1e-8, 1e-8))])
def test_kernels_against_closed_forms(text, closed, tolerances):
  found = Kernels.of(evaluated(text), task_of())
  nngp, ntk = closed()
  for ours, exact, tolerance in zip((found.nngp, found.ntk), (nngp, ntk), tolerances):
    assert np.abs(ours[0] - exact).max() < tolerance
    assert np.abs(ours[0] - exact)[np.abs(RHO) < 0.95].max() < tolerance / 5
  other = Kernels.of(evaluated('softplus(x)'), task_of())  # the negative control
  assert np.abs(other.nngp[0] - nngp).max() > 0.05 and np.abs(other.ntk[0] - ntk).max() > 0.05


def test_the_ntk_is_that_of_a_wide_network():
  f, width = parse('softplus(x)'), 1500
  gain = float(evaluated('softplus(x)').gain[0])

  def network(params, x):
    first, second, last = params
    hidden = f(first @ x)
    return gain * last @ f(gain * (second @ hidden) / width**0.5) / width**0.5

  keys = jax.random.split(jax.random.key(0), 3)
  params = [jax.random.normal(key, shape) for key, shape in zip(
      keys, ((width, 2), (width, width), (width,)))]
  place = 700
  points = jnp.array([[1.0, 0.0], [np.cos(ANGLES[place]), np.sin(ANGLES[place])]])
  gradients = jax.jit(jax.vmap(jax.grad(network), (None, 0)))(params, points)
  empirical = sum(jnp.sum(part[0] * part[1]) for part in gradients)
  found = Kernels.of(evaluated('softplus(x)'), task_of())
  np.testing.assert_allclose(empirical, found.ntk[0, place], rtol=0.05)
  assert abs(empirical - found.nngp[0, place]) > 0.2


def _dense_regression(task, table):
  """In float64, with the kernel evaluated instead of interpolated."""
  def angle(a, b):
    a, b = (v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return np.arccos(np.clip(a @ b.T, -1, 1))
  targets = np.eye(task.n_classes)[task.y]
  matrix = table(angle(task.x, task.x)) + RIDGE * np.eye(len(task.y))
  weights = np.linalg.solve(matrix, targets - targets.mean(0))
  found = table(angle(task.x_val, task.x)) @ weights + targets.mean(0)
  return (np.mean(found.argmax(1) == task.y_val),
          np.mean(np.sum((found - np.eye(task.n_classes)[task.y_val])**2, axis=1)))


def test_regression_against_a_dense_solve():
  task = task_of(n=120, n_val=100)
  found = regress(np.stack([_relu_kernels()[0], 3 * RHO]), task)
  for i, table in enumerate([
      lambda t: np.interp(t, ANGLES, _relu_kernels()[0]), np.cos]):
    accuracy, error = _dense_regression(task, table)
    assert found.accuracy[i] == pytest.approx(accuracy, abs=1e-9)
    assert found.error[i] == pytest.approx(error, rel=1e-3)
  assert found.accuracy[0] > 0.8 and found.error[0] < found.error[1]


def test_single_precision_is_enough():
  task = task_of(n=400, n_val=200)
  tables = Kernels.of(evaluated('relu(x)', 'square(x)', 'exp(x)'), task).ntk
  single, double = regress(tables, task), regress(tables, task, np.float64)
  np.testing.assert_allclose(single.error, double.error, rtol=1e-3)
  np.testing.assert_allclose(single.accuracy, double.accuracy, atol=0.0051)


def test_regression_on_labels_without_meaning_is_at_chance():
  task = task_of(n=300, n_val=300)
  y = np.random.default_rng(1).permutation(task.y)
  found = regress(_relu_kernels()[1][None], Task(task.x, y, task.x_val, task.y_val))
  assert 0.2 < found.accuracy[0] < 0.45


def test_a_kernel_that_is_none_has_nan_and_its_neighbours_have_numbers():
  indefinite = np.where(ANGLES == 0, 1.0, -1.0)
  found = regress(np.stack([RHO, indefinite, np.full_like(RHO, np.nan), -RHO, RHO]), task_of())
  np.testing.assert_array_equal(np.isnan(found.error), [False, True, True, True, False])
  assert found.error[0] == found.error[4] and found.accuracy[0] == found.accuracy[4]


def test_kernels_read_the_cosine_alone():
  """Inputs of other lengths give the same: each is put on the sphere."""
  task = task_of()
  longer = Task(task.x * np.linspace(1, 3, 40, dtype=np.float32)[:, None], task.y, task.x_val,
                task.y_val)
  for stage in (kernel.nngp, kernel.ntk):
    one, two = (stage(Kernels.of(evaluated('gelu(x)'), t), t).error for t in (task, longer))
    np.testing.assert_allclose(one, two, rtol=1e-4)
