"""Attribution patching against activation patching, on copying a byte from context.

A pair of prompts of equal length differs in one byte. `s_1 ... s_n s_1 ... s_{n-1}` is continued by
s_n if the model copies; the corrupt prompt has another byte in place of s_n, which would then be
the continuation. With the metric

  m = logit of the clean prompt's answer - logit of the corrupt one's, at the last position,

place (site, layer l, position p), and a, a* the values there in the corrupt and the clean run,

  activation patching   act  = m(corrupt run with a* in place of a) - m(corrupt run)
  attribution patching  attr = grad of m in the corrupt run at the place . (a* - a)

as in arXiv:2507.02559, section 5.2 (there on names in English sentences, at `resid_pre` alone).
At the first layer's `resid_pre` and the byte that differs, activation patching gives the whole
difference between both runs; errors are in its unit.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import string
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy

from model_lib.analysis.batches import in_batches
from model_lib.analysis.bootstrap import mean_bootstrap
from model_lib.analysis.statistics import Interval
from model_lib.errors import UserError

SITES = ('resid_pre', 'attn_out', 'mlp_out')
LETTERS = string.ascii_letters.encode()


class Pairs(NamedTuple):
  """Prompts [N, 2 n - 1], and the byte that continues each, [N]; they differ at `changed`."""

  clean: np.ndarray
  corrupt: np.ndarray
  answer: np.ndarray
  wrong: np.ndarray
  changed: int


class Patches(NamedTuple):
  """Effects on the metric by site, [N, L, P], at the P positions from the changed byte on.

  Before it nothing differs. `total` [N] is m(clean) - m(corrupt), `metric` [N] is m(clean).
  """

  activation: dict[str, np.ndarray]
  attribution: dict[str, np.ndarray]
  total: np.ndarray
  metric: np.ndarray


class Comparison(NamedTuple):
  """Error of model a minus that of model b; above 0 where the gradient is truer in b.

  Attributes:
    difference: over pairs of prompts, with its bootstrap interval.
    smaller_in_b, smaller_in_a: in how many pairs.
    p: two-sided sign test of 'as often the one as the other', ties left out; 1 if all are ties.
  """

  difference: Interval
  smaller_in_b: int
  smaller_in_a: int
  p: float


def copy_pairs(count: int, length: int, seed: int = 0, alphabet: bytes = LETTERS) -> Pairs:
  """Pairs of an odd length 2 n - 1; the n bytes of a prompt and the wrong one are all different.

  Raises:
    UserError: the length is even or below 3, or n + 1 exceeds the alphabet.
  """
  half = (length + 1) // 2
  if length % 2 == 0 or length < 3 or half + 1 > len(alphabet):
    raise UserError(f'a prompt of length {length}: it must be odd, at least 3, and at most '
                    f'{2 * len(alphabet) - 3} for an alphabet of {len(alphabet)} bytes')
  rng = np.random.Generator(np.random.Philox(seed))
  letters = np.frombuffer(alphabet, np.uint8).astype(np.int32)
  drawn = np.stack([rng.permutation(letters)[:half + 1] for _ in range(count)])
  segment, wrong = drawn[:, :half], drawn[:, half]
  clean = np.concatenate([segment, segment[:, :-1]], axis=1)
  corrupt = clean.copy()
  corrupt[:, half - 1] = wrong
  return Pairs(clean, corrupt, segment[:, -1], wrong, half - 1)


def patch(model: nn.Module, variables: Mapping, pairs: Pairs, batch: int = 32) -> Patches:
  """Both kinds of patching at every site, layer and position from the changed byte on.

  Args:
    model: a `models.gpt2.GPT2`: its taps and edits at `SITES` are used.
    variables: of the model.
    pairs: prompts within the model's length.
    batch: pairs at a time; 3 P passes of the layers from each one on, and one backwards.
  """
  return in_batches(
      lambda block: _patch(model, pairs.changed, variables, block), pairs[:4], batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _patch(model, changed, variables, block):
  clean, corrupt, answer, wrong = block
  count, length = clean.shape
  depth = model.depth

  def metric(logits):
    last, rows = logits[:, -1], jnp.arange(len(logits))
    return last[rows, answer[rows % count]] - last[rows, wrong[rows % count]]

  def both(edits):
    """The metric of the clean prompts, then of the corrupt ones, in one run; and its taps."""
    logits, taps = model.apply(variables, jnp.concatenate([clean, corrupt]), train=False,
                               taps=True, edits=edits)
    found = metric(logits)
    # A prompt's metric depends on its own run only, so the gradient of the sum holds each one's.
    return found.sum(), (found, {site: taps[site] for site in SITES})

  wide = jnp.promote_types(variables['params']['wte']['embedding'].dtype, jnp.float32)
  nothing = jnp.zeros((depth, 2 * count, length, model.dim), wide)
  slope, (found, taps) = jax.grad(both, has_aux=True)(dict.fromkeys(SITES, nothing))
  goal, start = found[:count], found[count:]
  stream = taps['resid_pre'][:, count:]
  # By SITES, whose numbers the places have; jax hands dictionaries back in the order of their keys.
  change = {site: taps[site][:, :count] - taps[site][:, count:] for site in SITES}
  attribution = {
      site: jnp.moveaxis(jnp.sum(slope[site][:, count:] * change[site], -1), 1, 0)[..., changed:]
      for site in SITES}
  places = jnp.stack(jnp.meshgrid(
      jnp.arange(len(SITES)), jnp.arange(changed, length), indexing='ij'), axis=-1).reshape(-1, 2)

  def effects(layer):
    """Of one layer, [B, sites, P]: of the run from it on, since nothing before it changes."""
    rest, own = behind(model, variables, layer)

    def one(place):  # of one program for all sites, which is compiled once
      chosen, position = place
      edits = {}
      for number, (site, value) in enumerate(change.items()):
        first = jnp.zeros_like(value[layer]).at[:, position].set(
            jnp.where(chosen == number, value[layer, :, position], 0))
        if site == 'resid_pre':
          first = first + stream[layer] - stream[0]
        edits[site] = jnp.zeros_like(value[layer:]).at[0].set(first)
      return metric(rest.apply(own, corrupt, train=False, edits=edits)) - start

    return jax.lax.map(one, places).T.reshape(-1, len(SITES), length - changed)

  activation = jnp.stack([effects(layer) for layer in range(depth)], 2)
  return Patches({site: activation[:, i] for i, site in enumerate(SITES)}, attribution,
                 goal - start, goal)


def behind(model: nn.Module, variables: Mapping, layer: int) -> tuple[nn.Module, Mapping]:
  """The layers from one on as a model, and its variables.

  Its stream begins with the embedding of the tokens: the edit `resid_pre` of its first layer makes
  it the one that enters the layer.
  """
  return model.clone(depth=model.depth - layer), {
      name: {**tree, 'h': jax.tree.map(lambda leaf: leaf[layer:], tree['h'])} if 'h' in tree
      else tree for name, tree in variables.items()}


def error(found: Patches, site: str, unit: str = 'pair') -> np.ndarray:
  """Of every pair [N]: sum over positions of |attr - act|, mean over layers, over |total|.

  Args:
    found: of `patch`.
    site: one of `SITES`.
    unit: 'pair': |total| of the pair itself, as in the paper; a pair that the model hardly tells
      apart then counts for much. 'all': mean |total| over all pairs.
  """
  gap = np.abs(np.asarray(found.attribution[site], np.float64)
               - np.asarray(found.activation[site], np.float64)).sum(-1).mean(-1)
  total = np.abs(np.asarray(found.total, np.float64))
  return gap / {'pair': total, 'all': total.mean()}[unit]


def compare(a: Patches, b: Patches, site: str, unit: str = 'all', resamples: int = 1000,
            seed: int = 0, level: float = 0.95) -> Comparison:
  """The errors of two models on the same pairs."""
  difference = error(a, site, unit) - error(b, site, unit)
  in_b, in_a = int(np.sum(difference > 0)), int(np.sum(difference < 0))
  p = float(scipy.stats.binomtest(in_b, in_b + in_a).pvalue) if in_b + in_a else 1.0
  return Comparison(mean_bootstrap(difference, resamples, seed, level), in_b, in_a, p)
