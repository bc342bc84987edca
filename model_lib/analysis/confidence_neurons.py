"""Confidence neurons of the last layer: large output weights that hardly move logits apart.

Neuron i of the last MLP writes w_i [D]. With W = C diag(gamma) W_U the unembedding that the
residual stream meets (`analysis.readout`), w_i centred as the final norm does,

  LogitVar(i) = variance over the vocabulary of cos(w_i, W[:, v]),   CN(i) = |w_i| / LogitVar(i)

(arXiv:2507.02559, section 5.4; "entropy neurons" in Stolfo et al. 2024, arXiv:2406.16254). Such a
neuron can act through the final norm alone: it makes the stream longer and so all logits smaller.
The test is a mean ablation, activation -> its mean over the data, against neurons drawn from those
of the nearest |w|.

Directions in the null space of W do nothing at all behind a linear final norm. W has rank at most
V - 1 (centred over the vocabulary), and at most D - 1 behind a LayerNorm: a model with D > V has an
exact null space, one with D < V none beside that of the centering. `spectrum` says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis import readout
from model_lib.analysis.batches import in_batches
from model_lib.analysis.bootstrap import mean_bootstrap
from model_lib.analysis.language_loss import entropy
from model_lib.errors import UserError
from model_lib.models.dense import merged

_NULL = 1e-5  # a singular value below this part of the largest is 0 in float32
_NEAREST = 10  # neurons of the nearest norm that a control is drawn from
_TOGETHER = 6  # sets whose logits are held at once


class Neurons(NamedTuple):
  """Of the last layer's M neurons.

  Attributes:
    norm: [M] |w|, centred.
    logit_variance: [M].
    score: [M] CN.
    order: [M] neurons from the largest score on.
    weights: [M, D] w, centred.
  """

  norm: np.ndarray
  logit_variance: np.ndarray
  score: np.ndarray
  order: np.ndarray
  weights: np.ndarray


class Spectrum(NamedTuple):
  """Singular directions of W [D, V] in the residual stream, from the largest value on.

  Attributes:
    values: [D] singular values over the largest, 0 where W has no more of them.
    cosine: [K, D] |cos| of the neurons' w with each direction; within a null space of several
      dimensions the single directions mean nothing, only `null_share` does.
    null: number of values below 1e-5; the direction 1 of the centering is one of them.
    null_share: [K] part of |w|^2 in those directions.
    dim, vocab: D, V.
  """

  values: np.ndarray
  cosine: np.ndarray
  null: int
  null_share: np.ndarray
  dim: int
  vocab: int


class Ablations(NamedTuple):
  """Change by the mean ablation of each set, [S, N] means over the T - 1 predictions of a window.

  `loss`, `entropy` in nats; `loss_size`, `entropy_size` are the means of the tokens' |change|.
  """

  loss: np.ndarray
  entropy: np.ndarray
  loss_size: np.ndarray
  entropy_size: np.ndarray


def neurons(model: nn.Module, variables: Mapping) -> Neurons:
  """The last layer's neurons and their scores, in float64.

  Take the model before its norms are folded: the centring is then a part of W, and nothing says
  that w_i is to be centred, so that its length, and with it the order, may come out another.

  Raises:
    UserError: the final norm is none of 'layer', 'rms', 'none'.
  """
  w = np.asarray(merged(variables['params']['h']['mlp']['c_proj'])['kernel'][-1], np.float64)
  if readout.centers(model):
    w = w - w.mean(1, keepdims=True)
  columns = np.asarray(readout.readout(model, variables), np.float64)
  norm = np.linalg.norm(w, axis=1)
  with np.errstate(divide='ignore', invalid='ignore'):
    cosine = (w / norm[:, None]) @ (columns / np.linalg.norm(columns, axis=0))
    variance = cosine.var(1)
    score = np.nan_to_num(norm / variance, nan=0.0, posinf=np.inf)  # nan: a neuron without weights
  return Neurons(norm, variance, score, np.argsort(-score, kind='stable'), w)


def spectrum(model: nn.Module, variables: Mapping, weights: np.ndarray) -> Spectrum:
  """Where the rows of weights [K, D] (of `Neurons.weights`) lie in the spectrum of W."""
  matrix = np.asarray(readout.readout(model, variables), np.float64)
  dim, vocab = matrix.shape
  # Of a wide matrix the directions in the vocabulary, V^2 numbers, are not made.
  directions, own, _ = np.linalg.svd(matrix, full_matrices=dim > vocab)
  values = np.zeros(dim)
  values[:len(own)] = own / own[0]
  unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
  cosine = np.abs(unit @ directions)
  null = values < _NULL
  return Spectrum(values, cosine, int(null.sum()), (cosine[:, null] ** 2).sum(1), dim, vocab)


def controls(found: Neurons, top: Sequence[int], draws: int, seed: int = 0) -> list[list[int]]:
  """`draws` sets with one neuron for each of the top ones, all different, none a top one itself.

  Each is drawn from the 10 that are nearest in |w| among those left.

  Raises:
    UserError: fewer neurons are left than the top has.
  """
  if len(found.norm) < 2 * len(top):
    raise UserError(f'{len(top)} neurons of {len(found.norm)} leave too few for controls')
  rng = np.random.Generator(np.random.Philox(seed))
  sets = []
  for _ in range(draws):
    left, drawn = np.setdiff1d(np.arange(len(found.norm)), top), []
    for neuron in top:
      near = np.argsort(np.abs(found.norm[left] - found.norm[neuron]), kind='stable')[:_NEAREST]
      drawn.append(int(left[rng.choice(near)]))
      left = left[left != drawn[-1]]
    sets.append(drawn)
  return sets


def ablate(model: nn.Module, variables: Mapping, tokens: np.ndarray,
           sets: Sequence[Sequence[int]], batch: int = 8) -> Ablations:
  """Mean ablation of each set of neurons of the last layer.

  Args:
    model: a `models.gpt2.GPT2`: its tap `mlp_act` and its edit `resid_final` are used.
    variables: of the model.
    tokens: [N, T]; the means are taken over all of them.
    sets: neurons that are ablated together.
    batch: windows at a time; 2 + S / 6 passes over each batch.
  """
  means = in_batches(lambda block: _activations(model, variables, block), tokens, batch)
  mask = np.zeros((len(sets), means.shape[1]), bool)
  for row, chosen in zip(mask, sets, strict=True):
    row[list(chosen)] = True
  mean = means.mean(0, dtype=np.float64).astype(means.dtype)
  found = in_batches(lambda block: _ablate(model, variables, block, mask, mean), tokens, batch)
  return jax.tree.map(lambda x: x.T, found)


@functools.partial(jax.jit, static_argnums=0)
def _activations(model, variables, tokens):
  _, taps = model.apply(variables, tokens, train=False, taps=True)
  return jnp.mean(taps['mlp_act'][-1], 1)


@functools.partial(jax.jit, static_argnums=0)
def _ablate(model, variables, tokens, mask, mean):
  def numbers(logits):
    logp = jax.nn.log_softmax(logits[:, :-1])
    loss = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    return loss, entropy(logp)

  logits, taps = model.apply(variables, tokens, train=False, taps=True)
  loss, own = numbers(logits)
  act, last = taps['mlp_act'][-1], variables['params']['h']
  weight = merged(last['mlp']['c_proj'])['kernel'][-1]
  if 'ffn_alpha' in last:
    weight = weight / last['ffn_alpha'][-1]

  def one(chosen):
    # As a change of the stream behind the last block: the blocks, which do not depend on the set,
    # are computed once for the sets of a turn.
    change = jnp.where(chosen[None, None], mean[None, None] - act, 0.0) @ weight
    logits = model.apply(variables, tokens, train=False, edits={'resid_final': change})
    new_loss, new = numbers(logits)
    return jnp.stack([jnp.mean(x, 1) for x in (
      new_loss - loss, new - own, jnp.abs(new_loss - loss), jnp.abs(new - own))])

  found = jax.lax.map(one, mask, batch_size=_TOGETHER)
  return Ablations(*jnp.moveaxis(found, (1, 2), (0, 1)))  # [4, B, S]


def rows(model: nn.Module, variables: Mapping, tokens: np.ndarray, top: int = 3, draws: int = 5,
         seed: int = 0, batch: int = 8) -> list[dict[str, Any]]:
  """The top neurons one by one, then all of them together, each against its controls.

  Args:
    model, variables, tokens, batch: as for `ablate`.
    top: number of neurons.
    draws: control sets.
    seed: of the draws and of the bootstraps over windows.

  Returns:
    Rows of neurons (a tuple), score and norm (means over them), loss and entropy (the changes,
    `Interval`s), loss_size and entropy_size, control_loss_size and control_entropy_size (means over
    the controls), entropy_ratio (entropy_size over that of the controls) and entropy_excess
    (entropy_size - that of the controls, paired over windows, an `Interval`).
  """
  found = neurons(model, variables)
  best = [int(i) for i in found.order[:top]]
  drawn = controls(found, best, draws, seed)
  cases = [([neuron], [[control[i]] for control in drawn]) for i, neuron in enumerate(best)]
  cases.append((best, drawn))
  sets = [chosen for case, others in cases for chosen in (case, *others)]
  change = ablate(model, variables, tokens, sets, batch)
  table = []
  for i, (case, _) in enumerate(cases):
    own, others = i * (draws + 1), slice(i * (draws + 1) + 1, (i + 1) * (draws + 1))
    size, control = change.entropy_size[own], change.entropy_size[others].mean(0)
    table.append({
      'neurons': tuple(case), 'score': float(found.score[case].mean()),
      'norm': float(found.norm[case].mean()),
      'loss': mean_bootstrap(change.loss[own], seed=seed),
      'entropy': mean_bootstrap(change.entropy[own], seed=seed),
      'loss_size': float(change.loss_size[own].mean()), 'entropy_size': float(size.mean()),
      'control_loss_size': float(change.loss_size[others].mean()),
      'control_entropy_size': float(control.mean()),
      'entropy_ratio': float(size.mean() / control.mean()) if control.mean() else np.inf,
      'entropy_excess': mean_bootstrap(size - control, seed=seed)})
  return table
