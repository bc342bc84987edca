"""What nGPT needs besides its blocks: the projection of the weights, and the scale of the logits.

Loshchilov et al. 2024, arXiv:2410.01131. The stream, queries, keys and every vector of a matrix
along the axis of the stream have length 1; there are no norms, no biases in the blocks, no weight
decay and no warmup. The axes of `project` and the start of the logit scale are from memory; learned
positions, which the paper has not, are treated as token embeddings.

The models with the placement hand `project` to whoever trains them (`projection`), to be applied
to the first parameters and after every step of the optimizer. A weight decay would then lengthen
the steps of the matrices and shrink the trained factors: leave it at 0.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from model_lib.normalization import block
from model_lib.normalization.functions import along_channels
from model_lib.normalization.weight import on_sphere

_WRITERS = ('out', 'stem')  # layers whose outputs, not inputs, are added to the stream


def project(params):
  """The parameters with the vectors of every matrix along the stream divided by their length.

  Tables and the kernels that write to the stream along their last axis, kernels that read from it
  along their first. Other leaves stay.
  """
  def leaf(path, value):
    module, name = (path[-2].key if len(path) > 1 else ''), path[-1].key
    if name == 'table' or (name == 'kernel' and module in _WRITERS):
      return on_sphere(value, -1)
    return on_sphere(value, 0) if name == 'kernel' else value
  return jax.tree_util.tree_map_with_path(leaf, params)


def projection(norm: str, parametrization: str) -> Callable | None:
  """`project` with the placement ngpt, else None."""
  return project if block(norm, parametrization).placement == 'ngpt' else None


def scaled_logits(module: nn.Module, logits: jax.Array, norm: str,
                  parametrization: str) -> jax.Array:
  """The logits [..., C], with the placement ngpt times one trained factor per class from 1.

  The factor, `s_z` of the module, is stored at D^-1/2 and acts times D^1/2, D being the module's
  `dim`; it grows where logits beyond [-1, 1] are needed.
  """
  if not projection(norm, parametrization):
    return logits
  start = module.dim ** -0.5
  stored = module.param('s_z', nn.initializers.constant(start), logits.shape[-1:])
  return logits * along_channels((stored / start).astype(logits.dtype), logits.ndim)
