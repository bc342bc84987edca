"""What initialization theory says of an activation: moments, gains, and the rules of He and Kumar.

For y = W f(x) with N summands, weights of mean 0 and x ~ N(0, 1):

  gain             E[f^2]^-1/2, so that N Var w = gain^2 keeps the second moment
  centred_gain     Var[f]^-1/2, the same for a branch that loses its mean
  chi              gain^2 E[f'^2], by which a layer then multiplies a gradient's second moment
  slope_share      (E f')^2 / E f'^2, the cosine of neighbouring layers' gradients
                   (`gradient_diversity`)
  he               N Var w = 2 / (1 + s^2) for max(x, 0) + s min(x, 0) (He et al. 2015,
                   arXiv:1502.01852); nan for another f
  kumar            N Var w = 1 / (f'(0)^2 (1 + f(0)^2)) (Kumar 2017, arXiv:1704.08863), the first
                   order at 0, with a rule of its own for ReLU; where f has no slope at 0 or a
                   zero one, the rule says nothing, and gain^2 stands in its place
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import jax.numpy as jnp

from model_lib.activations import Activation, get_activation
from model_lib.parametrization.initializers import he_std, kumar_std

# Two functions that the table has and the catalogue has not.
_PLAIN = {
  name: dataclasses.replace(
    get_activation('identity'), name=name, spec=name, formula=formula, function=function,
    scalar=function, duplicates=(), monotone='', parity='even')
  for name, formula, function in (('cos', 'cos(x)', jnp.cos), ('square', 'x^2', jnp.square))}
_HE_SLOPES = {'relu': 0.0, 'abs': -1.0, 'identity': 1.0}

ACTIVATIONS = (
  'identity', 'relu', 'abs', 'leaky_relu(slope=0.01)', 'leaky_relu(slope=0.2)', 'tanh', 'erf',
  'sigmoid', 'soft_sign', 'hard_tanh', 'elu', 'selu', 'gelu', 'silu', 'mish', 'hard_silu',
  'softplus', 'sin', 'cos', 'gaussian', 'relu_squared', 'square')


@dataclasses.dataclass(frozen=True)
class Row:
  """One activation; see the module's docstring.

  `kumar_case` is 'linearized', 'relu' or 'second moment' (`initializers.KumarStd`).
  """

  activation: str
  mean: float
  second: float
  variance: float
  gain: float
  centred_gain: float
  slope_second: float
  chi: float
  slope_share: float
  he: float
  kumar: float
  kumar_case: str


def row(spec: str) -> Row:
  """The row of an activation of the catalogue, of 'cos' or of 'square'.

  Raises:
    UserError: no such activation, or one without moments.
  """
  f: Activation = _PLAIN.get(spec) or get_activation(spec)
  m, kumar = f.moments(), kumar_std(f, 1)
  slope = f.constants['slope'] if f.name == 'leaky_relu' else _HE_SLOPES.get(f.name)
  return Row(f.spec, m.mean, m.second, m.variance, m.gain, 1 / m.std, m.slope_second, m.chi_raw,
             m.slope_share, math.nan if slope is None else he_std(1, slope) ** 2, kumar.std ** 2,
             kumar.case)


def table(specs: Sequence[str] = ACTIVATIONS) -> list[Row]:
  """The rows of the activations; UserError as `row`."""
  return [row(spec) for spec in specs]
