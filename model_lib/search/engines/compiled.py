"""The engine `expression`, also called jit: the real expression as an activation of its own."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.swept import Leaves, SweptActivation
from model_lib.search.engines.gain import gain
from model_lib.search.expression import Expression
from model_lib.search.grammar import parse
from model_lib.spec import Call

_PER = ('layer', 'channel', 'unit')


@dataclasses.dataclass(frozen=True)
class Compiled(SweptActivation):
  """f itself; its learnable scalars beta_0, beta_1, ... are parameters, each once per `per`.

  Nothing of it is data: a model per expression is compiled.
  """

  expression: Expression
  per: Literal['layer', 'channel', 'unit'] = 'layer'

  @classmethod
  def from_spec(cls, call: Call) -> 'Compiled':
    """The engine of `expression(TEXT)` or `expression(TEXT, per=channel)`; UserError for others."""
    options = dict(call.kwargs)
    per = options.pop('per', 'layer')
    if options or len(call.args) != 1 or per not in _PER:
      raise UserError(f'{call}: write expression(TEXT) or expression(TEXT, per=channel), '
                      f'with per one of {", ".join(_PER)}')
    return cls(parse(str(call.args[0])), per)

  @property
  def name(self) -> str:
    return f'expression({self.expression}{"" if self.per == "layer" else f", per={self.per}"})'

  def default(self) -> Leaves:
    return {}

  def encode(self, text: str) -> Leaves:
    raise UserError(f'{self.name} is one function: a candidate {text!r} needs table() or '
                    'bytecode()')

  def first(self, leaves, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    shapes = {'layer': (), 'channel': shape[-1:], 'unit': shape[1:]}
    return {parameter.name: jnp.full(shapes[parameter.per], parameter.init, jnp.float32)
            for parameter in self.expression.parameters(self.per)}

  def apply(self, leaves, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    def spread(value: jax.Array) -> jax.Array:
      return value.reshape((1,) * (x.ndim - value.ndim) + value.shape) if value.ndim else value
    return self.expression(x, **{name: spread(value) for name, value in params.items()})

  def gain(self) -> float:
    return gain(self.expression)
