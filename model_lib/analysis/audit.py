"""Checks the norms of a model on live activations: training against inference, and precision.

  table = audit_norms(model, variables, batches)

Each norm is applied alone to what reaches it at inference, so a finding is that norm's own and
not one that it inherited. Divergences are rms(a - b) / rms(b). The limits behind the verdicts are
this tool's conventions, not facts; `Limits` has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis import probes
from model_lib.errors import UserError
from model_lib.models.recording import Call
from model_lib.normalization import layers

BATCH_SIZES = (2, 8, 32, 128, 512)
OK = 'ok'


@dataclasses.dataclass(frozen=True)
class Limits:
  """Above these a row gets the verdict of that name.

  Attributes:
    gap: divergence of the training output from the inference output.
    stale_mean: max over channels of |running - population mean| / population sigma.
    stale_var: max over channels of |log(running / population variance)|.
    batch: divergence of the training output of the smallest batch from that of the largest.
    fast: relative error of a float32 variance E x^2 - (E x)^2, the largest of all statistics.
    precision: divergence of the float32 output from the float64 one.
    eps: median eps / v.
  """

  gap: float = 0.1
  stale_mean: float = 0.5
  stale_var: float = math.log(2)
  batch: float = 0.1
  fast: float = 0.01
  precision: float = 1e-3
  eps: float = 0.1


@dataclasses.dataclass(frozen=True)
class Row:
  """One norm; nan where a column does not apply.

  Attributes:
    site: of `probes.record`.
    norm: the layer's class.
    verdict: 'ok', or words out of: gap, stale, batch, fast-variance, precision, eps, not-finite;
      joined by '+'.
    reasons: one sentence for each.
    gap: train against inference output, on the first batch.
    batch: (size, divergence from the output with the whole first batch, same examples).
    stale_mean, stale_var: as in `Limits`, against the moments of all batches.
    fast: as in `Limits`.
    f32, bf16: divergence from the float64 output, input and output rounding included.
    eps_over_v, shrink: median of eps / v and of (1 + eps/v)^-1/2 over the statistics.
  """

  site: str
  norm: str
  verdict: str
  reasons: tuple[str, ...]
  gap: float
  batch: tuple[tuple[int, float], ...]
  stale_mean: float
  stale_var: float
  fast: float
  f32: float
  bf16: float
  eps_over_v: float
  shrink: float


@np.errstate(invalid='ignore')  # what is not finite gets a verdict
def audit_norms(model, variables: Mapping, batches: Iterable, limits: Limits = Limits(),
                sizes: Sequence[int] = BATCH_SIZES) -> list[Row]:
  """One row per norm, those that diverge most between training and inference first.

  Batches in the order of training show what that order does: with examples sorted by label a
  batch has moments that the running ones, though those of the data, do not fit.

  Args:
    model: called as `model.apply(variables, x, train=...)`; its norms are the project's layers.
    variables: with `batch_stats` where a norm has state.
    batches: of inputs x [B, ...]; the first is used for all but the staleness, which takes all.
    limits: behind the verdicts.
    sizes: of the sweep; those below the size of the first batch are tried.

  Returns:
    The rows.

  Raises:
    UserError: there is no batch, or no norm.
  """
  live = jax.jit(lambda x: {call.site: call.inputs[0]
                            for call in probes.record(model, variables, x).calls
                            if _is_norm(call.module)})
  norms, inputs, population = {}, {}, {}
  for x in batches:
    x = jnp.asarray(x)
    if not norms:
      norms = {call.site: call for call in _modules(model, variables, x)}
      if not norms:
        raise UserError('audit: the model has no norm; nothing to check')
    found = live(x)
    inputs = inputs or found
    for site, h in found.items():
      if 'batch_stats' in probes.of_module(variables, norms[site].path):
        _add(population.setdefault(site, []), np.asarray(h, np.float64))
  if not norms:
    raise UserError('audit: there is no batch; give at least one')
  table = [_row(call, probes.of_module(variables, call.path), inputs[site],
                population.get(site, []), limits, sizes) for site, call in norms.items()]
  # A gap that is no number is the largest of all.
  return sorted(table, key=lambda row: -np.nan_to_num(row.gap, nan=np.inf))


def _modules(model, variables, x) -> list[Call]:
  """The calls of norms, without computing: for their modules, which a jit cannot return."""
  calls = []
  jax.eval_shape(lambda: [calls.append(call) for call in probes.record(model, variables, x).calls
                          if _is_norm(call.module)])
  return calls


def _is_norm(module) -> bool:
  return type(module) in layers.LAYERS.values() and not isinstance(module, layers.NoNorm)


def _row(call, own, x, population, limits, sizes) -> Row:
  module = call.module

  def apply(x, train):
    y, _ = module.apply(own, x, train, mutable=['batch_stats'])
    return np.asarray(y, np.float64)

  trained, inferred = apply(x, True), apply(x, False)
  gap = divergence(trained, inferred)
  sweep = tuple((size, divergence(apply(x[:size], True), trained[:size]))
                for size in sorted(sizes) if 2 <= size < len(x))
  stale_mean, stale_var = _stale(own, population)
  with jax.enable_x64(True):
    exact = apply(jnp.asarray(np.asarray(x, np.float64)), False)
  f32 = divergence(apply(x.astype(jnp.float32), False), exact)
  bf16 = divergence(apply(x.astype(jnp.bfloat16), False), exact)
  fast = _fast_error(module, np.asarray(x, np.float32))
  ratio, shrink = _eps(module, own, np.asarray(x, np.float64))
  worst = max((value for _, value in sweep), default=0.0)
  checks = (
    ('gap', gap, limits.gap, f'training and inference outputs differ by {gap:.3g}'),
    ('stale', stale_mean, limits.stale_mean,
     f'a running mean is {stale_mean:.3g} sigma from that of the data'),
    ('stale', stale_var, limits.stale_var,
     f'a running variance is off by a factor of {math.exp(min(stale_var, 700)):.3g}'),
    ('batch', worst, limits.batch, f'the training output changes by {worst:.3g} with the batch'),
    ('fast-variance', fast, limits.fast,
     f'E x^2 - (E x)^2 in float32 is off by {fast:.3g} of the variance; keep two passes'),
    ('precision', f32, limits.precision, f'float32 differs from float64 by {f32:.3g}'),
    ('eps', ratio, limits.eps, f'eps is {ratio:.3g} of the variance; outputs shrink to '
                               f'{shrink:.3g}'))
  # nan: a column that does not apply, which no limit finds; hence the check of the outputs.
  bad = [(word, reason) for word, value, limit, reason in checks if value > limit]
  if not np.isfinite(exact).all() or not np.isfinite(trained).all():
    bad.append(('not-finite', 'an output is nan or infinite'))
  return Row(call.site, type(module).__name__,
             '+'.join(dict.fromkeys(word for word, _ in bad)) or OK,
             tuple(reason for _, reason in bad), gap, sweep, stale_mean, stale_var, fast, f32,
             bf16, ratio, shrink)


def divergence(a: np.ndarray, b: np.ndarray) -> float:
  """rms(a - b) / rms(b); 0 where both are 0."""
  above, below = np.sqrt(np.mean((a - b) ** 2)), np.sqrt(np.mean(b ** 2))
  if above == 0:
    return 0.0
  return float(above / below) if below else math.inf


def _add(total: list, h: np.ndarray) -> None:
  """Adds h [..., C] to [count, mean [C], sum of squared deviations [C]]."""
  h = h.reshape(-1, h.shape[-1])
  n, mean = len(h), h.mean(0)
  m2 = ((h - mean) ** 2).sum(0)
  if not total:
    total[:] = [n, mean, m2]
    return
  count, old, old_m2 = total
  d, both = mean - old, count + n
  total[:] = [both, old + d * n / both, old_m2 + m2 + d ** 2 * count * n / both]


def _stale(own: Mapping[str, Any], population: list) -> tuple[float, float]:
  state = own.get('batch_stats', {})
  if not population or not {'mean', 'var'} <= set(state):
    return math.nan, math.nan
  count, mean, m2 = population
  var = np.maximum(m2 / count, np.finfo(np.float32).tiny)
  running = np.maximum(np.asarray(state['var'], np.float64), np.finfo(np.float32).tiny)
  return (float(np.max(np.abs(np.asarray(state['mean'], np.float64) - mean) / np.sqrt(var))),
          float(np.max(np.abs(np.log(running / var)))))


def _grouped(module, x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]] | None:
  """x in a shape whose given axes are those of the module's statistics; None without any."""
  if isinstance(module, layers.GroupNorm):
    x = x.reshape(len(x), -1, module.groups, x.shape[-1] // module.groups)
    return x, (1, 3)
  if isinstance(module, (layers.LayerNorm, layers.RMSNorm)):
    return x, (-1,)
  if isinstance(module, layers.BatchNorm):
    return x, tuple(range(x.ndim - 1))
  return None


def _fast_error(module, x: np.ndarray) -> float:
  """Largest relative error of the one-pass float32 variance; nan for a norm without variance."""
  found = None if isinstance(module, layers.RMSNorm) else _grouped(module, x)
  if found is None:
    return math.nan
  x, axes = found
  fast = np.asarray(jnp.mean(jnp.square(x), axes) - jnp.square(jnp.mean(x, axes)), np.float64)
  exact = np.var(x.astype(np.float64), axis=axes)
  seen = exact > 0
  return float(np.max(np.abs(fast - exact)[seen] / exact[seen])) if seen.any() else math.nan


def _eps(module, own: Mapping[str, Any], x: np.ndarray) -> tuple[float, float]:
  found = _grouped(module, x)
  if found is None:
    return math.nan, math.nan
  x, axes = found
  if isinstance(module, layers.RMSNorm):
    v = np.mean(x ** 2, axis=axes)
  elif isinstance(module, layers.BatchNorm):
    v = np.asarray(own['batch_stats']['var'], np.float64)
  else:
    v = np.var(x, axis=axes)
  with np.errstate(divide='ignore'):
    ratio = module.eps / v
  return float(np.median(ratio)), float(np.median(1 / np.sqrt(1 + ratio)))
