"""Normalizations of weights as plain functions, and the table that `weight=` strings name.

A kernel is [fan_in, features] or [h, w, in, features]; its last axis are the outputs, the others
together the fan-in. Statistics are taken per output, the singular value of the [fan-in,
features] matrix. Every function computes in at least float32 and returns the kernel's dtype.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from model_lib import spec as spec_lib
from model_lib.errors import UserError
from model_lib.normalization.functions import along_channels


def _wide(w: jax.Array) -> jax.Array:
  return w.astype(jnp.promote_types(w.dtype, jnp.float32))


def _inputs(w: jax.Array) -> tuple[int, ...]:
  return tuple(range(w.ndim - 1))


def lengths(w: jax.Array) -> jax.Array:
  """|w| of each output; [..., features] -> [features], float32 or wider."""
  return jnp.sqrt(jnp.sum(jnp.square(_wide(w)), axis=_inputs(w)))


def weight_norm(v: jax.Array, g: jax.Array) -> jax.Array:
  """g v / |v| per output; shapes: v [..., features], g [features]."""
  return (_wide(v) * along_channels(g / lengths(v), v.ndim)).astype(v.dtype)


def centred_weight_norm(v: jax.Array, g: jax.Array) -> jax.Array:
  """g (v - mean v) / |v - mean v| per output; shapes: v [..., features], g [features]."""
  wide = _wide(v)
  centred = wide - jnp.mean(wide, axis=_inputs(v), keepdims=True)
  return weight_norm(centred, g).astype(v.dtype)


def standardize_weight(w: jax.Array, eps: float = 1e-6, convention: str = 'timm') -> jax.Array:
  """(w - mean) / sd per output.

  convention='timm': sd = sqrt(biased variance + eps), eps 1e-6; 'original': sd = root of the
  unbiased variance, + eps, eps 1e-5 (Qiao et al. 2019).
  """
  wide = _wide(w)
  count = w.size // w.shape[-1]
  centred = wide - jnp.mean(wide, axis=_inputs(w), keepdims=True)
  square = jnp.sum(jnp.square(centred), axis=_inputs(w), keepdims=True)
  sd = (jnp.sqrt(square / count + eps) if convention == 'timm'
        else jnp.sqrt(square / (count - 1)) + eps)
  return (centred / sd).astype(w.dtype)


def scaled_standardize(w: jax.Array, gain: jax.Array, eps: float = 1e-4) -> jax.Array:
  """gain (w - mean) / sqrt(max(N var, eps)) per output, N the fan-in, biased variance.

  Unit-variance inputs give outputs of variance gain^2; shapes: w [..., features], gain [features].
  """
  wide = _wide(w)
  centred = wide - jnp.mean(wide, axis=_inputs(w), keepdims=True)
  square = jnp.sum(jnp.square(centred), axis=_inputs(w), keepdims=True)
  scaled = centred * jax.lax.rsqrt(jnp.maximum(square, eps))
  return (scaled * along_channels(gain, w.ndim)).astype(w.dtype)


def power_step(w: jax.Array, u: jax.Array, eps: float = 1e-12) -> tuple[jax.Array, jax.Array]:
  """One power iteration: v = W u / |W u|, then u = W'v / |W'v|; no gradient passes.

  Args:
    w: kernel [..., features], read as W [fan-in, features].
    u: [features], of length 1.
    eps: the smallest length that is divided by.

  Returns:
    (u [features], v [fan-in]).
  """
  matrix = jax.lax.stop_gradient(_wide(w).reshape(-1, w.shape[-1]))
  v = _unit(matrix @ u, eps)
  return _unit(v @ matrix, eps), v


def singular_value(w: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
  """v'W u, the largest singular value when u and v are its vectors; they are held."""
  u, v = jax.lax.stop_gradient(u), jax.lax.stop_gradient(v)
  return v @ _wide(w).reshape(-1, w.shape[-1]) @ u


def spectral(w: jax.Array, u: jax.Array, v: jax.Array, gamma: jax.Array | float = 1.0) -> jax.Array:
  """gamma w / (v'W u); spectral norm at gamma = 1, sigma-reparam with a trained gamma."""
  return (_wide(w) * (gamma / singular_value(w, u, v))).astype(w.dtype)


def cosine(x: jax.Array, w: jax.Array, eps: float = 1e-12) -> jax.Array:
  """w.x / (|w| |x|) per output; x [..., n_in], w [n_in, features] -> [..., features]."""
  wide = _wide(x)
  length = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
  unit = (wide / jnp.maximum(length, eps)).astype(x.dtype)
  return jnp.dot(unit, weight_norm(w, jnp.ones_like(lengths(w))).astype(x.dtype))


def orthogonal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """A kernel whose [fan-in, features] matrix has orthonormal columns, or rows if there are fewer.

  Times gain it is the start of Saxe et al. 2014, arXiv:1312.6120.
  """
  return jax.nn.initializers.orthogonal()(key, shape, jnp.float32)


def on_sphere(w: jax.Array, axis: int) -> jax.Array:
  """w with every vector along `axis` divided by its length: nGPT's projection of a matrix."""
  wide = _wide(w)
  return (wide / jnp.linalg.norm(wide, axis=axis, keepdims=True)).astype(w.dtype)


def _unit(x: jax.Array, eps: float) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x), eps)


@dataclasses.dataclass(frozen=True)
class WeightNorm:
  """A normalization of weights, described and with its options filled in.

  Attributes:
    name: registry name.
    equation: the kernel that acts, w or v being the trained one.
    parameters: trained parameters beside the kernel, with their start.
    state: names of the variables in the collection `batch_stats`.
    train_inference: how training and inference differ.
    backward: 'exact', or 'surrogate' where the gradient holds quantities that depend on w.
    conventions: where frameworks differ, what this one does.
    paper: the source.
    confirmed: False where the equation is known from memory only.
    options: (name, value) pairs, complete, in declared order.
  """

  name: str
  equation: str
  parameters: str
  state: tuple[str, ...]
  train_inference: str
  backward: str
  conventions: str
  paper: str
  confirmed: bool = True
  options: tuple[tuple[str, float | str], ...] = ()

  @property
  def spec(self) -> str:
    """The canonical string: every option written out."""
    return str(spec_lib.Call(self.name, (), tuple(sorted(self.options))))


_U_V = 'training: one power iteration first; inference: u and v of the last one'
_WEIGHT_NORMS = {entry.name: entry for entry in (
  WeightNorm('none', 'w', 'none', (), 'the same', 'exact', 'none', 'none'),
  WeightNorm('weight_norm', 'g v / |v| per output', 'g = |v| per output', (), 'the same', 'exact',
             'g starts at |v|, so the start is the plain layer (flax: at 1)',
             'Salimans, Kingma 2016, arXiv:1602.07868'),
  WeightNorm('centred_weight_norm', 'g (v - mean v) / |v - mean v| per output',
             'g = |v - mean v| per output', (), 'the same', 'exact', 'as weight_norm',
             'Huang et al. 2017, arXiv:1710.02338', confirmed=False),
  WeightNorm('spectral', 'w / (v\'W u)', 'none', ('u', 'v'), _U_V, 'surrogate',
             'one iteration per step, eps 1e-12; u and v are held in the gradient',
             'Miyato et al. 2018, arXiv:1802.05957'),
  WeightNorm('sigma_reparam', 'gamma w / (v\'W u)', 'gamma = 1 per matrix', ('u', 'v'), _U_V,
             'surrogate', 'as spectral', 'Zhai et al. 2023, arXiv:2303.06296', confirmed=False),
  WeightNorm('weight_standardization', '(w - mean) / sd per output', 'none', (), 'the same',
             'exact', 'timm: sqrt(biased variance + eps), eps 1e-6; original: sqrt(unbiased '
             'variance) + eps, eps 1e-5', 'Qiao et al. 2019, arXiv:1903.10520',
             options=(('convention', 'timm'), ('eps', 1e-6))),
  WeightNorm('scaled_ws', 'gain (w - mean) / sqrt(max(N var, eps)) per output',
             'gain = 1 per output', (), 'the same', 'exact', 'eps 1e-4, biased variance, N the '
             'fan-in', 'Brock, De, Smith 2021, arXiv:2101.08692', options=(('eps', 1e-4),)),
  WeightNorm('cosine', 'w.x / (|w| |x|)', 'none', (), 'the same', 'exact',
             'acts on the input too; no scale', 'Luo et al. 2017, arXiv:1702.05870',
             confirmed=False),
  WeightNorm('orthogonal', 'w, at the start gain times an orthogonal matrix', 'none', (),
             'the same', 'exact', 'orthonormal columns, or rows if there are fewer',
             'Saxe et al. 2014, arXiv:1312.6120'),
)}


def weight_norms() -> tuple[str, ...]:
  """The names that `get_weight_norm` knows."""
  return tuple(_WEIGHT_NORMS)


def get_weight_norm(spec: str) -> WeightNorm:
  """The entry of a spec such as `weight_norm` or `scaled_ws(eps=1e-3)`.

  Raises:
    UserError: unknown name or option (the message names the nearest), or a value out of range.
  """
  call = spec_lib.parse(spec)
  if call.name not in _WEIGHT_NORMS:
    raise UserError(f'unknown weight norm {call.name!r}'
                    f'{spec_lib.nearest(call.name, _WEIGHT_NORMS)}; '
                    f'known: {", ".join(_WEIGHT_NORMS)}')
  entry = _WEIGHT_NORMS[call.name]
  options = dict(entry.options)
  if call.args:
    raise UserError(f'{spec!r}: options are given by name; {call.name} takes '
                    f'{", ".join(options) or "none"}')
  given = dict(call.kwargs)
  for key, value in given.items():
    if key not in options:
      raise UserError(f'{spec!r}: {call.name} has no option {key!r}'
                      f'{spec_lib.nearest(key, options)}; it takes {", ".join(options) or "none"}')
    if key == 'convention':
      if value not in ('timm', 'original'):
        raise UserError(f'{spec!r}: convention must be timm or original, not {value!r}')
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not (
        0 <= value < math.inf):
      raise UserError(f'{spec!r}: {key} must be a number >= 0, not {value!r}')
    options[key] = float(value) if key == 'eps' else value
  if given.get('convention') == 'original' and 'eps' not in given:
    options['eps'] = 1e-5
  return dataclasses.replace(entry, options=tuple(options.items()))
