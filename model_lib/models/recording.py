"""The calls of modules inside a model, recorded without editing it.

`nn.intercept_methods` rather than `capture_intermediates`: that stores outputs only, while most
readers need what a module reads; and it needs no mutable collection, so that the model runs as it
does in use. The calls are seen while the model is traced: inside a jit their arrays are tracers,
which leave it as its result alone. Modules under a lifted transform of flax (nn.scan, nn.remat,
nn.vmap) cannot be read from outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np

CALL = '__call__'


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a module.

  Attributes:
    path: names of the module, from the outermost; () is the model itself.
    number: of the call, from 0, among those of this method of this module.
    method: its name.
    module: unbound copy, with the attributes.
    inputs: the arrays among the positional arguments.
    output: what the call returned, or what was put in its place.
  """

  path: tuple[str, ...]
  number: int
  method: str
  module: nn.Module
  inputs: tuple[jax.Array, ...]
  output: Any

  @property
  def site(self) -> str:
    """The path, such as 'blocks/feed_forward_0', with '#n' behind it for call number n > 0."""
    return '/'.join(self.path) + (f'#{self.number}' if self.number else '')

  @property
  def array(self) -> jax.Array | None:
    """The output where it is an array."""
    return self.output if isinstance(self.output, jax.Array) else None


def record_calls(run: Callable[[], Any], methods: Sequence[str] = (CALL,),
                 change: Callable[[Call], Any] | None = None) -> tuple[Any, list[Call]]:
  """What `run` returns, and the calls in it in the order in which they began.

  Args:
    run: applies a model, such as `lambda: model.apply(variables, x, train=False)`.
    methods: names of the methods that are recorded.
    change: Call -> what takes the place of its output, asked as soon as the module has returned.
  """
  calls: list[Call] = []
  times: dict[tuple, int] = {}

  def interceptor(next_fun, args, kwargs, context):
    module, method = context.module, context.method_name
    if method not in methods:
      return next_fun(*args, **kwargs)
    number = times[module.path, method] = times.get((module.path, method), -1) + 1
    place = len(calls)
    calls.append(None)  # those that begin inside of it stand behind it
    output = next_fun(*args, **kwargs)
    inputs = tuple(arg for arg in args if isinstance(arg, (jax.Array, np.ndarray)))
    call = Call(module.path, number, method, module.clone(parent=None, name=None), inputs, output)
    if change is not None:
      output = change(call)
      call = dataclasses.replace(call, output=output)
    calls[place] = call
    return output

  with nn.intercept_methods(interceptor):
    return run(), calls
