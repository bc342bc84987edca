"""The convolution of all models; its scales come from the parametrization."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.kernel import kernel as make_kernel
from model_lib.models.kernel import start_gain
from model_lib.parametrization import Branch, get_parametrization


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """Cross-correlation with zero padding SAME; [B, H, W, C] -> [B, ceil(H/s), ceil(W/s), features].

  kernel: [kh, kw, C, features]. SAME is XLA's: of the max(0, (ceil(n/s) - 1) s + k - n) zeros of
  an axis the smaller half stands in front (torch's padding=1 at stride 2 puts it behind).

  On a CPU `convolve_slices`, elsewhere XLA's convolution: the choice belongs to the backend, as
  do the bits.
  """
  if jax.default_backend() == 'cpu':
    return convolve_slices(x, kernel, stride)
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME',
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def convolve_slices(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """`convolve` as kh kw shifted slices side by side and one matmul.

  XLA's own convolution falls back to a slow path inside a loop on a CPU, where the training
  runs: there it takes about ten times as long.
  """
  batch, height, width, channels = x.shape
  kernel_height, kernel_width, _, features = kernel.shape
  rows, columns = -(-height // stride), -(-width // stride)
  x = jnp.pad(x, ((0, 0), _padding(height, kernel_height, stride),
                  _padding(width, kernel_width, stride), (0, 0)))
  shifted = [
    jax.lax.slice(x, (0, i, j, 0),
                  (batch, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels),
                  (1, stride, stride, 1))
    for i in range(kernel_height) for j in range(kernel_width)]
  return jnp.dot(jnp.concatenate(shifted, axis=-1), kernel.reshape(-1, features))


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
  total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
  return total // 2, total - total // 2


class Conv(nn.Module):
  """multiplier * convolve(x, W) + b; x [B, H, W, C] -> [B, ceil(H/s), ceil(W/s), features].

  W [size, size, C, features] starts as N(0, std^2) with the std of its role at
  fan_in = size^2 C, b as 0. The arithmetic is done in the dtype of x.

  Attributes:
    features: channels of the output.
    role: row of the parametrization's rules, such as 'input' or 'hidden'.
    size: of the square kernel.
    stride: steps between the places of the kernel.
    consumes, init_gain, parametrization, branch, labels, use_bias: as in `Linear`.
    weight: as in `Linear`, but for 'cosine', which is no function of the kernel alone.

  Raises:
    UserError: x is not floating-point, such as images still in uint8.
  """

  features: int
  role: str
  size: int = 3
  stride: int = 1
  consumes: str | None = None
  init_gain: bool = True
  parametrization: str = 'sp'
  branch: Branch | None = None
  labels: Sequence[str] = ()
  weight: str = 'none'
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise UserError(f'the model needs floating-point input, not {x.dtype}: scale it first')
    row = get_parametrization(self.parametrization)
    gain = start_gain(self, self.consumes, self.init_gain, self.parametrization, self.branch)
    kernel = make_kernel(self, (self.size, self.size, x.shape[-1], self.features), self.role,
                         self.parametrization, gain, self.weight, train, self.labels, self.branch)
    y = convolve(x, kernel.astype(x.dtype), self.stride) * row.rules[self.role].multiplier
    if not self.use_bias:
      return y
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return y + bias.astype(x.dtype).reshape(1, 1, 1, -1)
