"""The linear maps of GPT-2, with names and layouts of transformers' modules."""

from __future__ import annotations

from collections.abc import Mapping

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError

STD = 0.02


def compute_dtype(name: str, parameter: jax.Array) -> jnp.dtype:
  """The dtype of the products; UserError for float64 without jax_enable_x64."""
  dtype = parameter.dtype if name == 'params' else jnp.dtype(name)
  if jax.dtypes.canonicalize_dtype(dtype) != dtype:
    raise UserError('gpt2: dtype=\'float64\' needs jax.config.update(\'jax_enable_x64\', True)')
  return dtype


class Dense(nn.Module):
  """x W + b (+ x A B) with W [in, features], as Hugging Face's Conv1D; x [..., in].

  Several inputs give several results: the first reads the first widths[0] columns, and so on.
  """

  features: int
  std: float = STD
  lora_rank: int = 0
  dtype: str = 'params'

  @nn.compact
  def __call__(self, *inputs: jax.Array, widths: tuple[int, ...] = ()) -> list[jax.Array]:
    fan_in = inputs[0].shape[-1]
    kernel = self.param('kernel', nn.initializers.normal(self.std), (fan_in, self.features),
                        jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    if self.lora_rank:
      lora_a = self.param('lora_a', nn.initializers.normal(fan_in ** -0.5),
                          (fan_in, self.lora_rank), jnp.float32)
      lora_b = self.param('lora_b', nn.initializers.zeros, (self.lora_rank, self.features),
                          jnp.float32)
    outputs, start = [], 0
    for x, width in zip(inputs, widths or (self.features,), strict=True):
      columns = slice(start, start + width)
      dtype = compute_dtype(self.dtype, kernel)
      # With one axis of tokens the kernel's gradient is a plain product. With two, XLA on a CPU
      # transposes the activations in memory for it: a fifth of a training step (6 layers of 192
      # channels).
      x_nd = x.astype(dtype).reshape(-1, fan_in)
      y = x_nd @ kernel[:, columns].astype(dtype) + _row(bias[columns].astype(dtype), 2)
      if self.lora_rank:
        y += (x_nd @ lora_a.astype(dtype)) @ lora_b[:, columns].astype(dtype)
      outputs.append(y.reshape(*x.shape[:-1], width))
      start += width
    return outputs


class Unembedding(nn.Module):
  """x W (+ b) with W [D, vocab]; x [B, T, D] -> [B, T, vocab], float32 or wider."""

  vocab: int
  use_bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', nn.initializers.normal(STD), (x.shape[-1], self.vocab),
                        jnp.float32)
    dtype = compute_dtype(self.dtype, kernel)
    logits = jnp.einsum('btd,dv->btv', x.astype(dtype), kernel.astype(dtype),
                        preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    if not self.use_bias:
      return logits
    bias = self.param('bias', nn.initializers.zeros, (self.vocab,), jnp.float32)
    return logits + _row(bias.astype(logits.dtype), 3)


def merged(params: Mapping) -> dict:
  """The parameters of a model, or of one map, with LoRA's products in the kernels: W' = W + A B.

  Computed in float64 for NumPy arrays, else in float32 or wider; a kernel keeps its dtype.
  """
  flat = flax.traverse_util.flatten_dict(dict(params))
  for path in [path for path in flat if path[-1] == 'lora_a']:
    place = (*path[:-1], 'kernel')
    kernel, a, b = flat[place], flat.pop(path), flat.pop((*path[:-1], 'lora_b'))
    wide = (np.float64 if isinstance(kernel, np.ndarray) else
            jnp.promote_types(kernel.dtype, jnp.float32))
    flat[place] = (kernel.astype(wide) + a.astype(wide) @ b.astype(wide)).astype(kernel.dtype)
  return flax.traverse_util.unflatten_dict(flat)


def _row(vector: jax.Array, ndim: int) -> jax.Array:
  return vector.reshape((1,) * (ndim - 1) + (-1,))
