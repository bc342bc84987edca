"""The kernel of a layer: its start from the parametrization, its normalization by `weight=`."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError
from model_lib.models.activation_layer import consumer_gains
from model_lib.models.hyper import read_hp
from model_lib.normalization import weight as weights
from model_lib.parametrization import Branch, get_parametrization


def start_gain(module: nn.Module, consumes: str | None, init_gain: bool, parametrization: str,
               branch: Branch | None) -> jax.Array | float:
  """The gain of a kernel that is about to be made; 1 for one that exists or reads no activation.

  Args:
    module: in whose compact method this is called, before `kernel`.
    consumes: spec of the activation whose output the layer reads, or None.
    init_gain: whether the gain follows the activation (else it is sqrt(2)).
    parametrization, branch: a branch of a row that starts from Xavier's std has no gain.

  Returns:
    The swept number `init_gain` where the run sets it, else the gain of the activation.
  """
  has_gain = consumes is not None and not (get_parametrization(parametrization).xavier and branch)
  if not has_gain or module.has_variable('params', 'kernel'):
    return 1.0
  return read_hp(module, 'init_gain', consumer_gains(consumes, init_gain)[0])


def kernel(module: nn.Module, shape: tuple[int, ...], role: str, parametrization: str,
           gain: jax.Array | float = 1.0, weight: str = 'none', train: bool = False,
           labels: Sequence[str] = (), branch: Branch | None = None) -> jax.Array:
  """The kernel that acts; makes `kernel` and what its weight norm needs in the module.

  Args:
    module: in whose compact method this is called.
    shape: [fan_in, features] or [h, w, in, features].
    role, parametrization: the rule of its start.
    gain: factor on the std at the start.
    weight: a spec of `normalization.weight`.
    train: whether the power iteration of a spectral norm moves.
    labels: of its equal parts along the features, such as query, key and value: each has its
      own std, singular value and gamma; () for one part.
    branch: the residual branch in which it stands.

  Returns:
    The normalized kernel, float32 for float32 parameters; for weight='cosine' the plain one.
  """
  row, entry = get_parametrization(parametrization), weights.get_weight_norm(weight)
  parts = max(1, len(labels))
  fan_in, fan_out = int(np.prod(shape[:-1])), shape[-1] // parts
  stds = [row.init_std(role, fan_in, gain, fan_out=fan_out, label=label, branch=branch)
          for label in labels or ('',)]

  def start(key, shape):
    if entry.name == 'orthogonal':
      # std sqrt(fan_in) is the gain: an orthogonal matrix keeps the length of what it reads.
      pieces = [weights.orthogonal(k, (*shape[:-1], fan_out)) * (std * fan_in ** 0.5)
                for k, std in zip(jax.random.split(key, parts), stds, strict=True)]
      return jnp.concatenate(pieces, axis=-1)
    drawn = jax.random.normal(key, shape, jnp.float32)
    if row.kernel is None or parts == 1:
      return drawn * stds[0]
    each = jnp.repeat(jnp.stack([jnp.asarray(std, jnp.float32) for std in stds]), fan_out)
    return drawn * each.reshape((1,) * (len(shape) - 1) + (-1,))

  w = module.param('kernel', start, shape)
  if entry.name in ('weight_norm', 'centred_weight_norm'):
    centred = entry.name == 'centred_weight_norm'
    of = w - jnp.mean(w, axis=tuple(range(w.ndim - 1)), keepdims=True) if centred else w
    g = module.param('g', lambda key: weights.lengths(of))
    return (weights.centred_weight_norm if centred else weights.weight_norm)(w, g)
  options = dict(entry.options)
  if entry.name == 'weight_standardization':
    if fan_in < 2:
      raise UserError('weight_standardization needs kernels with a fan-in of at least 2')
    return weights.standardize_weight(w, **options)
  if entry.name == 'scaled_ws':
    gains = module.param('gain', nn.initializers.ones, (shape[-1],))
    return weights.scaled_standardize(w, gains, **options)
  if entry.state:
    return _spectral(module, w, parts, train, trained=entry.name == 'sigma_reparam')
  return w


def _spectral(module: nn.Module, w: jax.Array, parts: int, train: bool, trained: bool) -> jax.Array:
  pieces = jnp.split(w, parts, axis=-1)
  is_new = not module.has_variable('batch_stats', 'u')

  def first():
    drawn = jax.random.normal(module.make_rng('params'), (parts, pieces[0].shape[-1]), jnp.float32)
    drawn /= jnp.linalg.norm(drawn, axis=1, keepdims=True)
    return jnp.stack([weights.power_step(piece, u)[0]
                      for piece, u in zip(pieces, drawn, strict=True)])

  u_state = module.variable('batch_stats', 'u', first)
  v_state = module.variable('batch_stats', 'v', lambda: jnp.stack([
    weights.power_step(piece, u)[1] for piece, u in zip(pieces, u_state.value, strict=True)]))
  us, vs = u_state.value, v_state.value
  if train and not is_new:
    steps = [weights.power_step(piece, u) for piece, u in zip(pieces, us, strict=True)]
    us, vs = jnp.stack([u for u, _ in steps]), jnp.stack([v for _, v in steps])
    if module.is_mutable_collection('batch_stats'):
      u_state.value, v_state.value = us, vs
  gamma = (module.param('gamma', nn.initializers.ones, (parts,)) if trained
           else jnp.ones(parts, jnp.float32))
  return jnp.concatenate([weights.spectral(piece, us[i], vs[i], gamma[i])
                          for i, piece in enumerate(pieces)], axis=-1)
