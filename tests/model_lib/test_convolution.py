"""The convolution: against XLA's, against a plain loop, scales at the start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.models.activation_layer import consumer_gains
from model_lib.models.convolution import Conv, convolve, convolve_slices

pytestmark = pytest.mark.usefixtures('unoptimized')

# height, width, kernel, stride: even and odd sizes, and a kernel larger than the image.
CASES = [(6, 5, 3, 2), (5, 7, 2, 1), (8, 8, 1, 3), (2, 2, 5, 1)]


def _xla(x, kernel, stride):
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME',
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _arrays(height, width, size, seed=0):
  rng = np.random.default_rng(seed)
  return (jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32),
          jnp.asarray(rng.normal(size=(size, size, 3, 4)), jnp.float32))


def test_slices_are_the_convolution_of_xla() -> None:
  """Values and both gradients, all cases in one program; a flipped kernel is another function."""
  arrays = [_arrays(*case[:3]) for case in CASES]

  @jax.jit
  def run(arrays):
    def with_gradients(function, x, kernel, stride):
      y, pull = jax.vjp(lambda x, kernel: function(x, kernel, stride), x, kernel)
      return y, *pull(jnp.cos(y))
    return [tuple(with_gradients(f, *pair, stride) for f in (convolve_slices, _xla))
            + (_xla(pair[0], pair[1][::-1, ::-1], stride),)
            for pair, (_, _, _, stride) in zip(arrays, CASES, strict=True)]

  for case, (ours, theirs, flipped) in zip(CASES, run(arrays), strict=True):
    assert ours[0].shape == (2, -(-case[0] // case[3]), -(-case[1] // case[3]), 4)
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4, err_msg=str(case))
    if case[2] > 1:
      assert np.abs(ours[0] - flipped).max() > 0.1


def test_against_a_loop() -> None:
  x, kernel = _arrays(5, 4, 3)
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (0, 1), (0, 0)))
  expected = np.zeros((2, 3, 2, 4))
  for i in range(3):
    for j in range(2):
      window = padded[:, 2 * i:2 * i + 3, 2 * j:2 * j + 3]
      expected[:, i, j] = np.tensordot(window, np.asarray(kernel, np.float64), 3)
  np.testing.assert_allclose(convolve(x, kernel, 2), expected, rtol=1e-5, atol=1e-5)


def test_a_layer() -> None:
  """fan_in is the whole kernel's; the gain is the one of what it reads; bias optional."""
  x = jnp.zeros((1, 4, 4, 16))
  layer = Conv(64, 'hidden', consumes='tanh')
  y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
  kernel, bias = (np.asarray(variables['params'][name]) for name in ('kernel', 'bias'))
  assert y.shape == (1, 4, 4, 64) and kernel.shape == (3, 3, 16, 64) and not bias.any()
  std = consumer_gains('tanh')[0] / np.sqrt(9 * 16)
  np.testing.assert_allclose(kernel.std(), std, rtol=5 / np.sqrt(2 * kernel.size))
  moved = jax.jit(layer.apply)({'params': {'kernel': kernel, 'bias': bias + 2.0}}, x)
  np.testing.assert_array_equal(moved, y + 2)
  plain = Conv(64, 'hidden', size=1, stride=2, use_bias=False)
  y, variables = jax.eval_shape(
    lambda x: plain.init_with_output(jax.random.key(0), x), x.astype(jnp.bfloat16))
  assert y.shape == (1, 2, 2, 64) and y.dtype == jnp.bfloat16
  assert set(variables) == {'params'} and set(variables['params']) == {'kernel'}


def test_integers_are_refused() -> None:
  with pytest.raises(UserError, match='floating-point'):
    Conv(4, 'input').init(jax.random.key(0), np.zeros((1, 4, 4, 1), np.uint8))
