"""Whether a norm turns the gradient of what is read from the residual stream.

For y = LN(x) with x in R^D, xh = (x - mean x) / sigma, C = I - 11'/D, gain gamma, and a linear
functional n . y,

  gradient = (C a - xh (xh . a) / D) / sigma,   a = gamma n,

and behind a LayerNorm with frozen sigma it is C a / sigma: both are parallel up to one direction of
D - 1. Observable Propagation (arXiv:2312.16291, first version) claims that the gradient of a
functional behind a LayerNorm is nearly parallel to n in high dimensions. Derived here: for n normal
and isotropic and gamma = 1, with u = C n / |C n|,

  cos(gradient, C a)^2 = 1 - (u . xh)^2 / D + O(eps),   mean 1 - 1 / (D - 1),

and with a itself in place of C a the mean is about 1 - 2 / D. RMSNorm has C = I: 1 - 1 / D. Where n
lies along xh (a functional that reads the stream's own direction) the gradient all but vanishes, so
the functionals that a model reads must be measured too.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis import readout
from model_lib.analysis.batches import in_batches
from model_lib.analysis.residual_scale import places
from model_lib.errors import UserError
from model_lib.models.dense import merged
from model_lib.models.removable import KINDS, Norm


class Cosines(NamedTuple):
  """Between the gradient and the functional through a real norm, [N, T, 2 L + 1, M] each.

  Attributes:
    centred: with C a, the gradient's direction behind a frozen norm.
    plain: with a.
    frozen: of the gradient behind a frozen norm with C a: the control, 1 to rounding.
  """

  centred: np.ndarray
  plain: np.ndarray
  frozen: np.ndarray


def functionals(model: nn.Module, variables: Mapping, count: int,
                seed: int = 0) -> dict[str, np.ndarray]:
  """n of the places of the stream, [2 L + 1, count, D]: {'random': ..., 'read': ...}.

  'random' are normal and the same at every place; 'read' are columns, drawn without replacement,
  of the matrix behind the norm: c_attn, c_fc, the unembedding.
  """
  rng = np.random.Generator(np.random.Philox(seed))
  params = variables['params']
  inside = [merged(params['h'][part][name])['kernel']
            for part, name in (('attn', 'c_attn'), ('mlp', 'c_fc'))]
  matrices = [np.asarray(kernel[layer]) for layer in range(model.depth) for kernel in inside]
  matrices.append(np.asarray(readout.unembedding(variables)))
  if count > min(matrix.shape[1] for matrix in matrices):
    raise UserError(f'{count} functionals: a matrix behind a norm has fewer columns')
  read = [matrix[:, rng.permutation(matrix.shape[1])[:count]].T for matrix in matrices]
  random = rng.normal(size=(count, model.dim)).astype(read[0].dtype)
  return {'random': np.broadcast_to(random, (len(matrices), *random.shape)), 'read': np.stack(read)}


def cosines(model: nn.Module, variables: Mapping, tokens: np.ndarray, n: np.ndarray,
            batch: int = 8) -> Cosines:
  """The cosines at every place and token, for functionals n [2 L + 1, M, D].

  The gradients are taken through the model's own norm with its gain and shift, on its own stream;
  where a norm was removed from the model this is what a real one would do there.

  Raises:
    UserError: the norms are not all 'layer' or all 'rms'.
  """
  if model.norm not in KINDS or model.final_norm not in ('', model.norm):
    raise UserError(f'norm={model.norm!r}, final_norm={model.final_norm!r}: the direction of the '
                    f'gradient is measured behind norms of one kind, {" or ".join(KINDS)}')
  return in_batches(lambda block: _cosines(model, variables, block, n), tokens, batch)


@functools.partial(jax.jit, static_argnums=0)
def _cosines(model, variables, tokens, n):
  _, taps = model.apply(variables, tokens, train=False, taps=True)
  inside = jnp.stack([taps['resid_pre'], taps['resid_mid']], 1)
  stream = jnp.concatenate([inside.reshape(-1, *inside.shape[2:]), taps['resid_final'][None]])
  params = variables['params']
  affine = jax.tree.map(
      lambda first, second, last: jnp.concatenate(
        [jnp.stack([first, second], 1).reshape(-1, model.dim), last[None]]),
      params['h']['ln_1'], params['h']['ln_2'], params['ln_f'])
  norm = Norm(model.norm, model.eps, model.dim)

  def of_place(x_btd, own, n_md):
    bound = norm.bind({'params': own})
    a_md = n_md * own['scale'][None]
    c_md = a_md - jnp.mean(a_md, -1, keepdims=True) if model.norm == 'layer' else a_md
    sigma = jnp.mean(bound.moments(x_btd)[1])
    pull = jax.vjp(bound, x_btd)[1]
    # Of a linear map it is the same at every token, and so taken at one.
    pull_frozen = jax.vjp(lambda x: bound.affine(bound.moments(x)[0], 1 / sigma),
                          x_btd[:1, :1])[1]

    def of_functional(vectors):
      n_d, a_d, c_d = vectors
      real, = pull(jnp.broadcast_to(n_d, x_btd.shape))
      frozen, = pull_frozen(n_d[None, None])
      return (_cosine(real, c_d), _cosine(real, a_d),
              jnp.broadcast_to(_cosine(frozen, c_d), x_btd.shape[:2]))

    # One after the other: a CPU is four times slower under vmap, and jaxlib 0.10.2 makes a wrong
    # program of it at such sizes (jax-ml/jax issue 39103).
    return jax.lax.map(of_functional, (n_md, a_md, c_md))

  found = jax.lax.map(lambda args: of_place(*args), (stream, affine, n))
  return Cosines(*(jnp.transpose(x, (2, 3, 0, 1)) for x in found))  # from [2 L + 1, M, B, T]


def _cosine(x_btd, y_d):
  return x_btd @ y_d / (jnp.linalg.norm(x_btd, axis=-1) * jnp.linalg.norm(y_d))


def direction_rows(model: nn.Module, variables: Mapping, tokens: np.ndarray, count: int = 16,
                   seed: int = 0, batch: int = 8) -> list[dict[str, Any]]:
  """One row per place and kind of functional.

  Returns:
    place, functional ('random' or 'read'), cosine (mean over tokens and functionals, with C a),
    lowest (the least of a token and functional), first (mean at position 0), square (mean of the
    square), plain (mean cosine with a), frozen (least cosine behind a frozen norm; 1 but for
    rounding), and expected_square (1 - 1 / (D - 1), for 'rms' 1 - 1 / D; of isotropic functionals).
  """
  expected = 1 - 1 / (model.dim - 1 if model.norm == 'layer' else model.dim)
  given = functionals(model, variables, count, seed)
  found = cosines(model, variables, tokens, np.concatenate(list(given.values()), 1), batch)
  table = []
  for k, kind in enumerate(given):
    for i, place in enumerate(places(model.depth)):
      centred, plain, frozen = (np.asarray(x[:, :, i, k * count:(k + 1) * count], np.float64)
                                for x in found)
      table.append({
        'place': place, 'functional': kind, 'cosine': float(centred.mean()),
        'lowest': float(centred.min()), 'first': float(centred[:, 0].mean()),
        'square': float((centred ** 2).mean()), 'plain': float(plain.mean()),
        'frozen': float(frozen.min()), 'expected_square': expected})
  return table
