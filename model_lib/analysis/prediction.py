"""Measured beside predicted second moments of a plain MLP at the start, with a tolerance band.

The kernel of layer l has entries N(0, s_l / n_(l-1)), no bias acts yet, and n_0 inputs enter, so
for one input x the outputs h_l of the layer are normal with, n -> infinity,

  q_1 = s_1 mean(x^2),   q_l = s_l E f(sqrt(q_(l-1)) z)^2,   z ~ N(0, 1).

Finite width, to first order in 1/n, for one input. Given q_l the mean of h_l^2 over n_l units has
the relative variance 2 / n_l; the q_l of the next layer, s_l mean f(h)^2, fluctuates by itself with
k / n, k = E f^4 / (E f^2)^2 - 1, and hands on the deviation before it times e = dlog q_l / dlog q. The measured mean has u_l + 2 / n_l:

  u_1 = 0,   u_l = e^2 u_(l-1) + k / n_(l-1).

Several inputs average out some of it; the band is that of one, which is exact where they are fully
correlated and too wide otherwise. Beside it `local` takes the measured activations of the layer
before in place of the theory's: mean h_l^2 over s_l mean f(h_(l-1))^2, whose relative variance is
2 / n_l alone. It says which layer is off.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations import Activation, get_activation
from model_lib.activations.moments import gaussian_moments
from model_lib.analysis.probes import record
from model_lib.analysis.signal_propagation import Layer
from model_lib.errors import UserError
from model_lib.models.activation_layer import consumer_gains
from model_lib.models.mlp import MLP
from model_lib.parametrization import get_parametrization

DEVIATIONS = 4.0  # half width of the band in standard deviations of the log


@dataclasses.dataclass(frozen=True)
class Row:
  """One linear layer.

  Attributes:
    site: its name.
    predicted: second moment of its output from that of the input and the registry's moments.
    measured: mean of its squared output over the inputs.
    low, high: predicted times exp(-+ DEVIATIONS (u + 2/n)^1/2).
    outside: whether measured is outside of low ... high.
    local: measured over what the measured input of the layer leads to; about 1.
    local_outside: whether |log local| is above DEVIATIONS (2/n)^1/2.
  """

  site: str
  predicted: float
  measured: float
  low: float
  high: float
  outside: bool
  local: float
  local_outside: bool


def predict_variances(model: MLP, features: int, second: float) -> list[tuple[float, float, float]]:
  """(weight variance s_l, predicted second moment, its relative variance u_l + 2/n_l) per layer.

  Args:
    model: a plain MLP: no norm, one pointwise activation.
    features: n_0.
    second: mean square of the input's entries.

  Raises:
    UserError: the model has a norm, overrides or an activation for which this does not hold.
  """
  if not isinstance(model, MLP) or model.norm != 'none' or model.overrides:
    raise UserError("no variance is predicted for this model: take an mlp with norm='none' and "
                    'no overrides')
  function = get_activation(model.activation)
  if function.kind != 'pointwise':
    raise UserError(f'no variance is predicted for {model.activation!r}: it is {function.kind}')
  row = get_parametrization(model.parametrization)
  gain, = consumer_gains(model.activation, model.init_gain)
  widths = (features, *model.widths, model.num_classes)
  found, q, u = [], second, 0.0
  for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])):
    role = 'input' if i == 0 else 'readout' if i == len(model.widths) else 'hidden'
    std = row.init_std(role, n_in, gain if i else 1.0, fan_out=n_out)
    s = n_in * (float(std) * row.rules[role].multiplier) ** 2
    if i == 0:
      q *= s
    else:
      layer = Layer(function, weight_variance=s)
      after = layer.variance(q)
      u = (layer.variance_slope(q) * q / after) ** 2 * u + _excess(function, q) / n_in
      q = after
    found.append((s, q, u + 2 / n_out))
  return found


@functools.lru_cache(maxsize=1024)
def _excess(function: Activation, q: float) -> float:
  """E f^4 / (E f^2)^2 - 1."""
  plain = function.at_first_values()
  square = gaussian_moments(lambda x: plain(x) ** 2, function.kinks, function.jumps, q)
  return square.second / square.mean ** 2 - 1


def compare(model: MLP, variables: Mapping, x: jax.Array) -> list[Row]:
  """Prediction beside measurement for inputs x [B, ...] of about the same mean square.

  Raises:
    UserError: as `predict_variances`; inputs whose mean squares differ by more than a factor of
      2, for which one q says nothing: standardize them.
  """
  flat = np.asarray(x, np.float64).reshape(len(x), -1)
  squares = np.mean(flat ** 2, axis=1)
  if not squares.min() * 2 >= squares.max():
    raise UserError(f'the mean squares of the inputs go from {squares.min():.3g} to '
                    f'{squares.max():.3g}; scale each input to one mean square first')
  predicted = predict_variances(model, flat.shape[1], float(squares.mean()))
  names = [*(f'hidden_{i}' for i in range(len(model.widths))), 'head']

  @jax.jit
  def second_moments(variables, x):
    calls = {call.site: call for call in record(model, variables, x).calls}
    return [(jnp.mean(calls[name].inputs[0] ** 2), jnp.mean(calls[name].array ** 2))
            for name in names]

  table, widths = [], (*model.widths, model.num_classes)
  for name, n, (s, q, variance), (before, after) in zip(
      names, widths, predicted, second_moments(variables, x), strict=True):
    before, after, half = float(before), float(after), DEVIATIONS * math.sqrt(variance)
    low, high, local = q * math.exp(-half), q * math.exp(half), after / (s * before)
    table.append(Row(name, q, after, low, high, not low <= after <= high, local,
                     not abs(math.log(local)) <= DEVIATIONS * math.sqrt(2 / n)))
  return table
