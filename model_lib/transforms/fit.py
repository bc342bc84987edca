"""LayerNorm replaced by a point-wise function, DyT or Derf, fitted to what the norm does.

  dyt    g * tanh(alpha x) + b           Zhu et al. 2025, arXiv:2503.10622
  derf   g * erf(alpha x + s) + b        arXiv:2512.10938

alpha and s are one number per layer, g and b one per channel. For given alpha and s the best g and
b are a linear regression per channel, so that the search is over one or two numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from scipy import optimize, special

from model_lib.errors import UserError
from model_lib.normalization import block, get_norm
from model_lib.spec import nearest
from model_lib.transforms.convert import convert
from model_lib.transforms.edits import flatten, unflatten
from model_lib.transforms.record import record
from model_lib.transforms.report import TOLERANCES, Report
from model_lib.transforms.wiring import wiring

FORMS = {'dyt': lambda x, alpha, s: np.tanh(alpha * x),
         'derf': lambda x, alpha, s: special.erf(alpha * x + s)}


@dataclasses.dataclass(frozen=True)
class SiteFit:
  """The fit of one norm.

  Attributes:
    path: of the norm.
    alpha: slope.
    s: shift inside the function, 0 for dyt.
    scale: g, [C].
    bias: b, [C].
    error: root mean square of fit - target over that of target - its channel means, on the
      calibration data: 0 is exact, 1 no better than a constant per channel.
  """

  path: str
  alpha: float
  s: float
  scale: np.ndarray
  bias: np.ndarray
  error: float


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A model whose norms were replaced by fits.

  Attributes:
    model: the module with the new norm.
    variables: its variables.
    fits: one per norm, in the order of the forward pass.
    report: the change of the outputs; nothing says that they should be equal.
  """

  model: Any
  variables: Any
  fits: tuple[SiteFit, ...]
  report: Report

  def __str__(self) -> str:
    lines = [f'{fit.path}: alpha {fit.alpha:.3g}, relative error {fit.error:.3f}'
             for fit in self.fits]
    return '\n'.join([*lines, *(f'{p.dtype}: outputs change by {p.rms_difference:.3g} (root mean '
                                f'square), at most {p.max_difference:.3g}, largest output '
                                f'{p.largest:.3g}' for p in self.report.precisions)])


def fit_pointwise(x, y, form: str = 'dyt', path: str = '') -> SiteFit:
  """The least-squares alpha, s, g, b of `form` for inputs x and targets y, both [..., C].

  alpha is searched from e^-5 to e^3 over the root mean square of x: 33 values, then refined
  between the neighbours of the best (dyt: bounded minimization; derf: Nelder-Mead with s).

  Raises:
    UserError: an unknown form, or inputs that are all 0 or not finite.
  """
  if form not in FORMS:
    raise UserError(f'no fit of {form!r}{nearest(form, FORMS)}; there are: {", ".join(FORMS)}')
  x, y = (np.asarray(a, np.float64).reshape(-1, np.shape(a)[-1]) for a in (x, y))
  rms = np.sqrt(np.mean(np.square(x)))
  if not (np.isfinite(rms) and np.isfinite(y).all() and rms > 0):
    raise UserError(f'{path or form}: the recorded activations are 0 or not finite; '
                    'nothing can be fitted')
  centred = y - y.mean(0)

  def regress(alpha, s):
    """g, b and the sum of squares that is left."""
    f = FORMS[form](x, alpha, s)
    mean = f.mean(0)
    f = f - mean
    square = np.sum(f * f, 0)
    # A channel on which f does not move has no slope; its best fit is the mean.
    g = np.divide(np.sum(f * centred, 0), square, out=np.zeros_like(mean), where=square > 0)
    return g, y.mean(0) - g * mean, float(np.sum(np.square(centred - g * f)))

  def left(log_alpha, s=0.0):
    return regress(np.exp(log_alpha), s)[2]

  grid = np.linspace(-5, 3, 33) - np.log(rms)
  best = grid[int(np.argmin([left(point) for point in grid]))]
  step = grid[1] - grid[0]
  if form == 'dyt':
    found = optimize.minimize_scalar(left, bounds=(best - step, best + step), method='bounded',
                                     options={'xatol': 1e-8})
    alpha, s = float(np.exp(found.x)), 0.0
  else:
    start = np.array([[best, 0.0], [best + step, 0.0], [best, 0.2]])
    found = optimize.minimize(lambda p: left(*p), start[0], method='Nelder-Mead',
                              options={'initial_simplex': start, 'xatol': 1e-7, 'fatol': 0.0,
                                       'maxiter': 400})
    alpha, s = float(np.exp(found.x[0])), float(found.x[1])
  g, b, residual = regress(alpha, s)
  total = float(np.sum(np.square(centred)))
  return SiteFit(path, alpha, s, g, b, float(np.sqrt(residual / total)) if total else 0.0)


def layer_to_pointwise(model, variables, calibration, inputs, form: str = 'dyt',
                       tolerances: Mapping[str, float] = TOLERANCES) -> Fitted:
  """Every LayerNorm or RMSNorm of the model becomes the fitted `form`, gain and bias included.

  Each norm is fitted to its own input and output in the model as it was: the errors of the fits
  before it are not corrected by a later one.

  Args:
    model: an mlp, vit or gpt with LayerNorm or RMSNorm.
    variables: its variables.
    calibration: inputs on which the norms are recorded.
    inputs: inputs on which the change of the outputs is reported; others than `calibration`.
    form: 'dyt' or 'derf'.
    tolerances: precisions of the report.

  Raises:
    UserError: another norm, an unknown form, or activations that cannot be fitted.
  """
  sites = wiring(model, variables['params'])
  placed = block(model.norm, model.parametrization)
  if not sites or placed.norm.name not in ('layer', 'rms'):
    raise UserError(f'the model has norm={model.norm!r}: there is no layer or rms to replace')
  target = get_norm(form)
  seen = record(model, variables, calibration, [site.path for site in sites])
  fits = tuple(fit_pointwise(*seen[site.path], form, site.path) for site in sites)
  # The names are the registry's: those that a norm of this form has besides alpha, scale and bias.
  inner = {p.name for p in target.parameters} - {'alpha', 'scale', 'bias'}

  def surgery(old):
    flat = flatten(old['params'])
    for fit in fits:
      dtype = flat[f'{fit.path}/scale'].dtype
      values = {'alpha': fit.alpha, 'scale': fit.scale, 'bias': fit.bias,
                **{name: fit.s for name in inner}}
      flat.update({f'{fit.path}/{name}': np.asarray(value, dtype)
                   for name, value in values.items()})
    return {**old, 'params': unflatten(flat)}

  after = convert(model, variables, surgery, f'{placed.placement}:{form}', inputs, tolerances)
  return Fitted(after.model, after.variables, fits, after.report)
