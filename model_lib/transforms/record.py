"""Inputs and outputs of layers inside a model, recorded without editing it.

`nn.intercept_methods` rather than `capture_intermediates`: that stores outputs only, while a fit
needs what the norm reads; and it needs no mutable collection, so that the model runs as it does
in use. The calls are seen while the model is traced; the values leave the compiled function as
its result.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from model_lib.errors import UserError
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
    found, seen = {}, []

    def watch(call, args, kwargs, context):
      out = call(*args, **kwargs)
      if context.method_name == '__call__':
        path = '/'.join(context.module.path)
        seen.append(path)
        if path in paths:
          found[path] = (args[0], out)
      return out

    with nn.intercept_methods(watch):
      model.apply(variables, inputs, train=False)
    for path in paths:
      if path not in found:
        raise UserError(f'the model has no layer {path!r}{nearest(path, seen)}')
    return found

  return jax.tree.map(np.asarray, run(variables, inputs))
