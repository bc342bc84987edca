"""Norm sites that can be switched from a LayerNorm or RMSNorm to a linear map during a run.

A site computes
  y = (x - mu) inv scale + bias,      inv = g / sigma_tok + (1 - g) / (factor sigma_avg),
with mu and sigma_tok = sqrt(var + eps) of the token (RMSNorm: mu = 0, sigma_tok = rms, no bias),
g = 1 while the site is real and 0 when it is linear; sigma_avg is one number, a statistic of
sigma_tok over a training batch, followed by an exponential average until the site's event and
frozen there; no gradient passes through it (arXiv 2507.02559, section 3; the taper of g as
arXiv 2602.10408 is described by others; its own text was not at hand). Events and settings are
swept numbers (`hp`), sigma_avg is in the collection `norm_state`.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.hyper import read_hp
from model_lib.normalization.functions import along_channels, wide

NEVER = 2 ** 30  # the event of a site that stays real
KINDS = ('layer', 'rms')
STATISTICS = ('mean', 'rms', 'harmonic', 'least_squares')
POSITIONS = ('all', 'rest')
BUFFERS = ('own_event', 'paper_code')


class Control(NamedTuple):
  """What all sites of a call share; scalars.

  Attributes:
    step: int32, the optimizer step that the call belongs to; -1 before the first.
    first: bool, no training call came before.
    enabled: bool, whether events switch anything.
    taper: steps in which g goes from 1 to 0 as half a cosine from the event on; 0: at once.
    ema: m in sigma_avg <- m sigma_avg + (1 - m) statistic.
    factor: on sigma_avg.
    aux_every: weight of `spread` at every site but the last.
    aux_target: the target of `spread` where it is fixed.
  """

  step: jax.Array
  first: jax.Array
  enabled: jax.Array
  taper: jax.Array
  ema: jax.Array
  factor: jax.Array
  aux_every: jax.Array
  aux_target: jax.Array


def read_control(module: nn.Module, train: bool, update: bool) -> Control:
  """The control of a call, from the module's `hp` and its counter `norm_state/calls`.

  A training call with the counter c is step c // calls_per_step, and counts with `update`; an
  evaluation belongs to the step of the last training call.
  """
  calls = module.variable('norm_state', 'calls', lambda: jnp.zeros((), jnp.int32))
  before = calls.value
  step = (before if train else before - 1) // read_hp(module, 'calls_per_step', 1)
  if update:
    calls.value = before + 1
  return Control(
    step, before == 0, read_hp(module, 'enabled', 1) != 0, read_hp(module, 'taper', 0.0),
    read_hp(module, 'ema', 0.9), read_hp(module, 'sigma_factor', 1.0),
    read_hp(module, 'aux_every', 0.0), read_hp(module, 'aux_target', 1.0))


class Norm(nn.Module):
  """LayerNorm ('layer') or RMSNorm ('rms', no centring and no bias) in separate parts.

  The arithmetic is float32 or wider; x [B, T, D].
  """

  kind: str
  eps: float
  dim: int

  def setup(self):
    self.scale = self.param('scale', nn.initializers.ones, (self.dim,), jnp.float32)
    if self.kind == 'layer':
      self.bias = self.param('bias', nn.initializers.zeros, (self.dim,), jnp.float32)

  def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x - mu [B, T, D] and sigma_tok [B, T, 1]."""
    centred, square = self.squares(x)
    return centred, jnp.sqrt(square)

  def squares(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x - mu [B, T, D] and sigma_tok^2 = mean((x - mu)^2) + eps [B, T, 1]."""
    return _squares(wide(x), self.kind, self.eps)

  def affine(self, centred: jax.Array, inverse: jax.Array) -> jax.Array:
    """centred * inverse * scale + bias; centred [B, T, D], inverse [B, T, 1] or a scalar."""
    y = centred * inverse * along_channels(self.scale, 3)
    return y + along_channels(self.bias, 3) if self.kind == 'layer' else y

  def __call__(self, x: jax.Array) -> jax.Array:
    """The norm itself."""
    return self.affine(_standardized(wide(x), self.kind, self.eps), 1)


def _squares(x: jax.Array, kind: str, eps: float) -> tuple[jax.Array, jax.Array]:
  if kind == 'layer':
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x, jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _standardized(x: jax.Array, kind: str, eps: float) -> jax.Array:
  """y = (x - mu) / sigma_tok.

  Its derivative dy = (dx - mean(dx) - y mean(y dx)) / sigma_tok (RMSNorm: no mean(dx)) is stated
  because JAX derives a longer one: 1 to 5 percent of the CPU time of a training step of GPT-2.
  """
  centred, square = _squares(x, kind, eps)
  return centred * jax.lax.rsqrt(square)


@_standardized.defjvp
def _derivative(kind, eps, primals, tangents):
  centred, square = _squares(primals[0], kind, eps)
  y, (dx,) = centred * jax.lax.rsqrt(square), tangents
  dy = dx - y * jnp.mean(y * dx, axis=-1, keepdims=True)
  if kind == 'layer':
    dy = dy - jnp.mean(dx, axis=-1, keepdims=True)
  return y, dy * jax.lax.rsqrt(square)


def removable(module: nn.Module, norm: Norm, x: jax.Array, paths: tuple[str, ...],
              control: Control, update: bool, statistic: str, positions: str,
              buffer: str) -> tuple[list[jax.Array], jax.Array]:
  """The outputs of the paths that read one norm, each with a switch of its own.

  Makes in the module, for each path, `hp/event_PATH` (int32: the first step at which it is linear)
  and `norm_state/sigma_PATH` (float32, 1 before the first training call).

  Args:
    module: in whose compact method this is called.
    norm: gives the moments and the affine map.
    x: [B, T, D].
    paths: such as ('qk', 'v').
    control: of the call.
    update: whether the paths that follow the batch take its statistic now.
    statistic, positions: see `token_statistic`.
    buffer: 'own_event': sigma_PATH follows until the path's own event; 'paper_code': until the
      last event of all paths, as in the paper's code, where they share one buffer.

  Returns:
    y per path [B, T, D], and sigma_tok [B, T, 1].
  """
  centred, square = norm.squares(x)
  sigma_tok = jnp.sqrt(square)
  events = [read_hp(module, f'event_{path}', NEVER) for path in paths]
  ends = [jnp.max(jnp.stack(events))] * len(events) if buffer == 'paper_code' else events
  outputs = []
  for path, event, end in zip(paths, events, ends, strict=True):
    sigma = module.variable('norm_state', f'sigma_{path}', lambda: jnp.ones((), jnp.float32))
    if update:
      seen = jax.lax.stop_gradient(token_statistic(
        sigma_tok, centred * along_channels(norm.scale, 3), statistic, positions))
      # The first call has no average yet.
      kept = jnp.where(control.first, 0.0, control.ema)
      moved = (kept * sigma.value + (1 - kept) * seen).astype(sigma.value.dtype)
      sigma.value = jnp.where(is_real(control, end), moved, sigma.value)
    outputs.append(norm.affine(centred, inverse(square, sigma.value, gate(control, event),
                                                control.factor)))
  return outputs, sigma_tok


def is_real(control: Control, event: jax.Array) -> jax.Array:
  """Whether the event is still to come, or never does."""
  return (control.step < event) | ~control.enabled


def gate(control: Control, event: jax.Array) -> jax.Array:
  """g: 1 before the event, then (1 + cos(pi u / taper)) / 2 after u steps, 0 from u = taper on."""
  since = (control.step - event).astype(control.taper.dtype)
  share = jnp.clip(since / jnp.where(control.taper > 0, control.taper, 1), 0, 1)
  # cos(pi) is -1 in float32 too, but 0 is to be 0 on every device.
  falling = jnp.where(since >= control.taper, 0.0, (1 + jnp.cos(jnp.pi * share)) / 2)
  return jnp.where(is_real(control, event), 1.0, falling)


def inverse(square: jax.Array, sigma_avg: jax.Array, g: jax.Array,
            factor: jax.Array) -> jax.Array:
  """g / sigma_tok + (1 - g) / (factor sigma_avg), [B, T, 1], with square = sigma_tok^2 [B, T, 1].

  Where g = 1 it is rsqrt(square) to the bit. Where g = 0 nothing of sigma_tok is left, also not in
  the gradient. None reaches sigma_avg.
  """
  g = g.astype(square.dtype)
  average = jax.lax.stop_gradient(factor * sigma_avg).astype(square.dtype)
  token = jax.lax.rsqrt(jnp.where(g == 0, 1, square))
  return jnp.where(g == 1, token, g * token + (1 - g) / average)


def gates(variables: Mapping[str, Mapping]) -> dict[str, float]:
  """g of every switch in an evaluation: {'h.3.ln_1.qk': 1.0, ..., 'ln_f': 0.0}; {} without any.

  Args:
    variables: of one model, with its `hp` and `norm_state`.
  """
  hp, state = variables.get('hp', {}), variables.get('norm_state', {})
  if 'calls' not in state:
    return {}
  zero = jnp.zeros(())
  control = Control((state['calls'] - 1) // hp['calls_per_step'], state['calls'] == 0,
                    jnp.asarray(hp['enabled']) != 0, jnp.asarray(hp['taper']), zero, zero, zero,
                    zero)
  found = {}
  for i in range(len(hp['h']['event_mlp'])):
    for path, name in (('qk', 'ln_1.qk'), ('v', 'ln_1.v'), ('mlp', 'ln_2')):
      found[f'h.{i}.{name}'] = float(gate(control, hp['h'][f'event_{path}'][i]))
  return {**found, 'ln_f': float(gate(control, hp['event_final']))}


def token_statistic(sigma_tok: jax.Array, scaled: jax.Array, statistic: str,
                    positions: str) -> jax.Array:
  """One number for the sigma_tok of a batch.

  Args:
    sigma_tok: [B, T, 1].
    scaled: (x - mu) scale, [B, T, D].
    statistic: 'mean' E[s]; 'rms' sqrt(E[s^2]); 'harmonic' 1 / E[1/s]; 'least_squares'
      E|z|^2 / E[|z|^2 / s] with z = scaled, whose inverse is the c that minimizes
      E|z / s - c z|^2 (the scale of arXiv 2602.10408).
    positions: 'all', or 'rest': without position 0.

  Raises:
    UserError: 'rest' of a single position.
  """
  if positions == 'rest':
    if sigma_tok.shape[1] < 2:
      raise UserError('gpt2: positions=\'rest\' leaves nothing of sequences of one token; '
                      'take longer ones, or positions=\'all\'')
    sigma_tok, scaled = sigma_tok[:, 1:], scaled[:, 1:]
  if statistic == 'mean':
    return jnp.mean(sigma_tok)
  if statistic == 'rms':
    return jnp.sqrt(jnp.mean(jnp.square(sigma_tok)))
  if statistic == 'harmonic':
    return 1 / jnp.mean(1 / sigma_tok)
  square = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
  return jnp.mean(square) / jnp.mean(square / sigma_tok)


def spread(sigma_tok: jax.Array, counted_bt: jax.Array, fixed: jax.Array | None) -> jax.Array:
  """mean over all tokens of (sigma_tok - sg[target])^2, the auxiliary loss of arXiv 2507.02559.

  Args:
    sigma_tok: [B, T, 1].
    counted_bt: bool, the tokens whose mean sigma_tok is the target; 1 if there is none.
    fixed: the target instead of that mean, or None.
  """
  sigma_bt = sigma_tok[..., 0]
  if fixed is None:
    count = jnp.sum(counted_bt)
    mean = jnp.sum(jnp.where(counted_bt, sigma_bt, 0)) / jnp.maximum(count, 1)
    fixed = jnp.where(count > 0, mean, 1)
  return jnp.mean(jnp.square(sigma_bt - jax.lax.stop_gradient(fixed)))
