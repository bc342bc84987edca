"""The running moments of batch norms, changed after training; pure functions on (params, state)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax

from model_lib.errors import UserError
from model_lib.models.recording import record_calls
from model_lib.normalization import functions as fn
from model_lib.normalization.layers import BatchNorm


def biased_running(batch_stats: Mapping[str, Any], count: int, momentum: float, steps: int) -> dict:
  """What `running='biased'` would have kept, from the state that `running='unbiased'` has.

  The running variance is r = k + count / (count - 1) s with k = (1 - momentum)^steps, the rest of
  its start at 1, and s a weighted sum of biased variances; the biased one is k + s. The state
  does not act on training, so nothing else would differ.

  Args:
    batch_stats: the collection: `mean` and `var` of every batch norm.
    count: values per channel in a training batch, at least 2; the same at all of them.
    momentum: weight of the new value.
    steps: training steps since the start.

  Returns:
    The collection with the variances changed.
  """
  rest = (1.0 - momentum) ** steps

  def change(path, leaf):
    if path[-1].key != 'var':
      return leaf
    return rest + (leaf - rest) * ((count - 1) / count)

  return jax.tree_util.tree_map_with_path(change, dict(batch_stats))


def recalibrated(model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array) -> dict:
  """The population's moments in place of the running ones: those of `inputs` as one batch.

  Every layer gets its inputs as they are when the layers before it use the population's moments
  too. The variance is the biased one of `inputs`, which should be many.

  Args:
    model: Linen module, called as model.apply(variables, inputs, train=True).
    variables: its variables.
    inputs: training examples.

  Returns:
    The collection `batch_stats`.

  Raises:
    UserError: a layer whose training pass does not use the moments of its whole batch, or another
      state than that of batch norm.
  """
  _, calls = record_calls(
      lambda: model.apply(variables, inputs, train=True, mutable=['batch_stats']))
  found: dict[str, Any] = {}
  for call in calls:
    if isinstance(call.module, BatchNorm):
      if call.module.stat_mode != 'batch':
        raise UserError(f'{call.site}: moments of the population are taken for batch norm with '
                        f'stat_mode=batch, not {call.module.stat_mode}')
      x, = call.inputs
      mean, var = fn.moments(x, tuple(range(x.ndim - 1)))
      node = found
      for name in call.path:
        node = node.setdefault(name, {})
      node |= {'mean': mean.reshape(-1), 'var': var.reshape(-1)}
  other = (set(flax.traverse_util.flatten_dict(dict(variables.get('batch_stats', {})), sep='/'))
           - set(flax.traverse_util.flatten_dict(found, sep='/')))
  if other:
    raise UserError(f'the state {min(other)} is none of a batch norm; only those are recalibrated')
  return found
