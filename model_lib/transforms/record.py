"""Inputs and outputs of layers inside a model, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from model_lib.errors import UserError
from model_lib.models.recording import record_calls
from model_lib.spec import nearest


def record(model: nn.Module, variables, inputs,
           paths: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{path: (first argument, output)} of the modules at `paths`, such as 'blocks/norm_final'.

  The model runs at inference. A module called more than once gives its last call.

  Raises:
    UserError: the model calls no module of that path.
  """

  @jax.jit
  def run(variables, inputs):
    _, calls = record_calls(lambda: model.apply(variables, inputs, train=False))
    by_path = {'/'.join(call.path): call for call in calls}
    for path in paths:
      if path not in by_path:
        raise UserError(f'the model has no layer {path!r}{nearest(path, by_path)}')
      if not by_path[path].inputs:
        raise UserError(f'the layer {path!r} reads no array, so that it has no input to record')
    return {path: (by_path[path].inputs[0], by_path[path].output) for path in paths}

  return jax.tree.map(np.asarray, run(variables, inputs))
