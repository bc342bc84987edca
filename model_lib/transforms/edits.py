"""Edits of the trees: what stands before or after a linear map goes into its numbers.

A tree is flat here: {'head/kernel': array} as `flatten` makes it. Each function returns a new
dict. The arithmetic is float64 on the host, whatever the dtype of the leaves, which stays: a
surgery in float32 rounds once.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.traverse_util
import numpy as np

from model_lib.errors import UserError
from model_lib.transforms.wiring import Map

Flat = Mapping[str, np.ndarray]
TABLES = ('table', 'embedding')  # names of a table of vectors, here and in Hugging Face's layout


def flatten(tree) -> dict[str, np.ndarray]:
  """The leaves as NumPy arrays by path, such as 'head/kernel'."""
  flat = flax.traverse_util.flatten_dict(dict(tree), sep='/')
  return {path: np.asarray(leaf) for path, leaf in flat.items()}


def unflatten(flat: Flat) -> dict:
  """The tree of `flatten`."""
  return flax.traverse_util.unflatten_dict(dict(flat), sep='/')


def unstack(flat: Flat, root: str) -> dict[str, np.ndarray]:
  """The layers that a scan over `root` stacked on a first axis, apart: h/attn/kernel [L, ...]
  becomes h/0/attn/kernel, h/1/attn/kernel ..."""
  apart = {}
  for path, leaf in flat.items():
    below = path.removeprefix(f'{root}/')
    parts = {path: leaf} if below == path else {
      f'{root}/{i}/{below}': layer for i, layer in enumerate(leaf)}
    apart.update(parts)
  return apart


def stack(flat: Flat, root: str) -> dict[str, np.ndarray]:
  """The reverse of `unstack`; all layers have the same leaves."""
  stacked, layers = {}, {}
  for path, leaf in flat.items():
    top, _, below = path.partition('/')
    if top != root:
      stacked[path] = leaf
      continue
    i, _, rest = below.partition('/')
    layers.setdefault(rest, {})[int(i)] = leaf
  for rest, by_layer in layers.items():
    stacked[f'{root}/{rest}'] = np.stack([by_layer[i] for i in range(len(by_layer))])
  return stacked


def absorb_before(flat: Flat, m: Map, scale, shift) -> dict[str, np.ndarray]:
  """The map for z in place of x = scale * z + shift: W' = scale W, b' = b + multiplier shift W.

  Shapes: W [..., n_in, n_out], scale [n_in] or [n_in, n_out] (a factor per output column, as
  where queries and values have their own), shift [n_in].

  Raises:
    UserError: the numbers are shared, or a shift stands before zero padding: the padding is not
      shifted, so that no bias replaces it at the borders.
  """
  kernel = _own(flat, m, 'kernel')
  scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
  if m.padded and shift.any():
    raise UserError(f'{m.path} pads with zeros: a shift before it cannot go into its bias; '
                    'fold the norm into the map before it')
  scaled = kernel * (scale[:, None] if scale.ndim == 1 else scale)
  added = m.multiplier * (shift @ kernel).reshape(-1, kernel.shape[-1]).sum(0)
  return _put(flat, m, 'kernel', scaled, _bias(flat, m) + added)


def absorb_after(flat: Flat, m: Map, scale, shift) -> dict[str, np.ndarray]:
  """The map that gives scale * y + shift in place of y: W' = W scale, b' = scale b + shift.

  Shapes: W [..., n_in, n_out], scale and shift [n_out].

  Raises:
    UserError: the numbers are shared.
  """
  kernel = _own(flat, m, 'kernel')
  return _put(flat, m, 'kernel', kernel * scale, scale * _bias(flat, m) + shift)


def centre_output(flat: Flat, m: Map) -> dict[str, np.ndarray]:
  """W C and b C with C = I - 11'/n_out: the output loses its mean over the channels.

  Raises:
    UserError: the numbers are shared.
  """
  leaf = _weights(flat, m.path)
  weights, bias = _own(flat, m, leaf), _bias(flat, m)
  return _put(flat, m, leaf, weights - weights.mean(-1, keepdims=True), bias - bias.mean())


def centre_input(flat: Flat, m: Map) -> dict[str, np.ndarray]:
  """C W with C = I - 11'/n_in: the map of x - mean(x), for a map that takes x.

  Raises:
    UserError: the numbers are shared.
  """
  kernel = _own(flat, m, 'kernel')
  return _put(flat, m, 'kernel', kernel - kernel.mean(-2, keepdims=True), _bias(flat, m))


def untie(flat: Flat, table: str = 'embedding', head: str = 'head') -> dict[str, np.ndarray]:
  """A readout of its own in place of x E': kernel E' and a bias of zeros; E stays the embedding.

  Raises:
    UserError: there is no such table, or the readout has numbers already.
  """
  leaf = _weights(flat, table)
  if leaf == 'kernel':
    raise UserError(f'untie: there is no {table}/table')
  if f'{head}/kernel' in flat:
    raise UserError(f'untie: {head} has a kernel of its own already')
  weights = np.asarray(flat[f'{table}/{leaf}'])
  return {**flat, f'{head}/kernel': weights.T.copy(),
          f'{head}/bias': np.zeros(weights.shape[0], weights.dtype)}


def _own(flat: Flat, m: Map, leaf: str) -> np.ndarray:
  if m.shared_with is not None:
    raise UserError(f'{m.path} shares its numbers with {m.shared_with}, which an edit would change '
                    'too; untie them first (transforms.edits.untie)')
  return np.asarray(flat[f'{m.path}/{leaf}'], np.float64)


def _weights(flat: Flat, path: str) -> str:
  """The name of a map's matrix: of a table of vectors, or of a kernel."""
  return next((leaf for leaf in TABLES if f'{path}/{leaf}' in flat), 'kernel')


def _bias(flat: Flat, m: Map) -> np.ndarray:
  """The bias, zeros where there is none."""
  path = f'{m.path}/bias'
  if path in flat:
    return np.asarray(flat[path], np.float64)
  return np.zeros(flat[f'{m.path}/{_weights(flat, m.path)}'].shape[-1])


def _put(flat: Flat, m: Map, leaf: str, weights, bias) -> dict[str, np.ndarray]:
  """The new numbers in the old dtype; a bias comes into being where it is not zero."""
  dtype = flat[f'{m.path}/{leaf}'].dtype
  new = {**flat, f'{m.path}/{leaf}': weights.astype(dtype)}
  if f'{m.path}/bias' in flat or np.any(bias):
    new[f'{m.path}/bias'] = bias.astype(dtype)
  return new
