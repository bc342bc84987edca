"""How large the residual stream is: per token, at position 0 and elsewhere, and against the scales
that removed norms were frozen at.

Places along the stream, in order: before each block ('h.0.ln_1', what ln_1 reads), between its
attention and its MLP ('h.0.ln_2'), and behind the last block ('ln_f').
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis.batches import in_batches
from model_lib.errors import UserError


class Scale(NamedTuple):
  """Of each token at each place, [N, 2 L + 1, T].

  Attributes:
    sigma: what a norm divides by: sqrt(mean((x - mean x)^2) + eps), or sqrt(mean(x^2) + eps) for
      'rms'.
    norm: Euclidean length.
  """

  sigma: np.ndarray
  norm: np.ndarray


def places(depth: int) -> list[str]:
  """Names of the 2 L + 1 places."""
  return [f'h.{layer}.{name}' for layer in range(depth) for name in ('ln_1', 'ln_2')] + ['ln_f']


def residual_scale(model: nn.Module, variables: Mapping, tokens: np.ndarray,
                   batch: int = 8) -> Scale:
  """The scales in windows of tokens [N, T], T >= 2.

  Args:
    model: with the taps `resid_pre`, `resid_mid` [L, B, T, D] and `resid_final` [B, T, D], and the
      attributes `norm`, `final_norm` and `eps`.
    variables: of the model.
    tokens: the windows.
    batch: windows at a time.
  """
  if np.ndim(tokens) != 2 or np.shape(tokens)[1] < 2:
    raise UserError(f'position 0 is compared with others in windows [N, T] with T >= 2, got '
                    f'{list(np.shape(tokens))}')
  return in_batches(lambda block: _scale(model, variables, block), tokens, batch)


@functools.partial(jax.jit, static_argnums=0)
def _scale(model, variables, tokens):
  _, taps = model.apply(variables, tokens, train=False, taps=True)
  inside, last = (functools.partial(sigma, center=norm != 'rms', eps=model.eps)
                  for norm in (model.norm, model.final_norm or model.norm))
  return Scale(_along(taps, inside, last), _along(taps, _length, _length))


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sigma(x: jax.Array, center: bool, eps: float) -> jax.Array:
  """What a norm divides x [..., D] by, [...]."""
  x = _wide(x)
  if center:
    x = x - jnp.mean(x, -1, keepdims=True)
  return jnp.sqrt(jnp.mean(x ** 2, -1) + eps)


def _length(x):
  return jnp.linalg.norm(_wide(x), axis=-1)


def _along(taps, inside, last):
  """The two functions of the stream [B, 2 L + 1, T], in the order of `places`."""
  found = jnp.stack([inside(taps['resid_pre']), inside(taps['resid_mid'])], 1)  # [L, 2, B, T]
  found = found.reshape(-1, *found.shape[2:])
  return jnp.moveaxis(jnp.concatenate([found, last(taps['resid_final'])[None]]), 1, 0)


def position_rows(found: Scale) -> list[dict[str, Any]]:
  """Position 0 against the others, one row per place.

  Returns:
    place, first (mean length at position 0), others, ratio (first / others), and growth_first,
    growth_others: the length over that at the place before (nan at the first).
  """
  norm = np.asarray(found.norm, np.float64)
  first, others = norm[..., 0].mean(0), norm[..., 1:].mean((0, 2))
  names = places((norm.shape[1] - 1) // 2)
  return [{'place': name, 'first': float(first[i]), 'others': float(others[i]),
           'ratio': float(first[i] / others[i]),
           'growth_first': float(first[i] / first[i - 1]) if i else np.nan,
           'growth_others': float(others[i] / others[i - 1]) if i else np.nan}
          for i, name in enumerate(names)]


def drift_rows(found: Scale, frozen: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  """The scale that each norm site holds against the true one, one row per site.

  Args:
    found: of the model now.
    frozen: `frozen_sigmas(variables)`.

  Returns:
    site, at_freeze (the number that the site holds), now (mean over tokens of sigma), ratio (now /
    at_freeze: the drift), variation (standard deviation over tokens / mean), first_ratio (mean
    sigma at position 0 / mean elsewhere).
  """
  sigmas = np.asarray(found.sigma, np.float64)
  depth = (sigmas.shape[1] - 1) // 2
  rows = []
  for i, place in enumerate(places(depth)):
    here = sigmas[:, i]
    now = float(here.mean())
    switches = {'ln_1': ('qk', 'v'), 'ln_2': ('mlp',), 'ln_f': ('final',)}[place.split('.')[-1]]
    for switch in switches:
      at = float(frozen[switch]) if switch == 'final' else float(frozen[switch][i // 2])
      rows.append({
        'site': f'{place}.{switch}' if place.endswith('ln_1') else place, 'at_freeze': at,
        'now': now, 'ratio': now / at, 'variation': float(here.std() / now),
        'first_ratio': float(here[:, 0].mean() / here[:, 1:].mean())})
  return rows


def frozen_sigmas(variables: Mapping) -> dict[str, np.ndarray]:
  """The state of the norm sites: 'qk', 'v', 'mlp' [L] and 'final' [].

  Raises:
    UserError: the model has no removable norms.
  """
  if 'norm_state' not in variables:
    raise UserError("the variables have no 'norm_state': build the model with removable=True")
  state = variables['norm_state']
  found = {name: np.asarray(state['h'][f'sigma_{name}'], np.float64)
           for name in ('qk', 'v', 'mlp')}
  return {**found, 'final': np.asarray(state['sigma_final'], np.float64)}
