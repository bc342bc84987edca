"""Conversions that keep the function: gains and batch norms folded, LayerNorm made RMSNorm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from model_lib.errors import UserError
from model_lib.normalization import block
from model_lib.transforms.edits import (
  Flat, absorb_after, absorb_before, centre_input, centre_output, flatten, unflatten)
from model_lib.transforms.report import TOLERANCES, Report, compare
from model_lib.transforms.wiring import NormSite, wiring


# Norms whose last step is g z + b, or g z, with a gain per channel.
_ENDS_IN_GAIN = ('layer', 'rms', 'prms', 'simple', 'frozen_layer', 'group', 'instance', 'frn',
                 'batch', 'renorm', 'switch', 'whiten', 'dyt', 'derf', 'pointwise', 'affine')


@dataclasses.dataclass(frozen=True)
class Converted:
  """A model after surgery.

  Attributes:
    model: the module, with another norm where that changed.
    variables: its variables, NumPy arrays in the old dtypes.
    report: how far its outputs are from those of the model before.
  """

  model: Any
  variables: Any
  report: Report


def convert(model, variables, surgery: Callable, norm: str, inputs,
            tolerances: Mapping[str, float] = TOLERANCES) -> Converted:
  """`variables` after `surgery` for the same model with another norm, and the report."""
  new = model.clone(norm=norm)
  report = compare(lambda v, x: model.apply(v, x, train=False),
                   lambda v, x: new.apply(v, x, train=False),
                   variables, surgery, inputs, tolerances)
  return Converted(new, surgery(variables), report)


def fold_gains(model, variables, inputs) -> Converted:
  """Gains and biases of the norms go into the linear maps that read them; they become 1 and 0.

  With x = g z + b before a map: W' = diag(g) W, b' = b_map + b W. The norms stay.

  Raises:
    UserError: the model has no norms, something other than linear maps reads one, or the norm
      does not end in a gain that multiplies.
  """
  placed, sites = _placed(model, variables, None)
  if placed.norm.name not in _ENDS_IN_GAIN or (
      dict(placed.norm.options).get('gain', 'direct') != 'direct'):
    raise UserError(f'the model has norm={model.norm!r}, whose last step is not g z + b: its gain '
                    'cannot be folded')
  return convert(model, variables, lambda v: fold_gain_tree(v, sites), placed.spec, inputs)


def fold_batch_norm(model, variables, inputs) -> Converted:
  """Batch norms, with their running moments, go into the linear maps; no norm is left.

  At inference the norm is s x + t with s = g / sqrt(var + eps), t = b - s mean. It goes into the
  map before it where the norm alone reads that one (an mlp with `pre`), else into those behind it
  (an mlp with `post`, a transformer with `pre`).

  Raises:
    UserError: the norms are not batch norms, or no linear map stands next to one.
  """
  placed, sites = _placed(model, variables, 'batch')
  eps = dict(placed.norm.options)['eps']
  return convert(model, variables, lambda v: fold_batch_tree(v, sites, eps), 'none', inputs)


def layer_to_rms(model, variables, inputs) -> Converted:
  """LayerNorm becomes RMSNorm of the same eps, exactly.

  RMS(x C) = LN(x) before gain and bias, C = I - 11'/D, since the mean square of x C is the variance
  of x. So the maps that write what a norm reads are centred (W C, b C), which is exact where
  linear maps alone write it and norms alone read it: in pre-LN transformers, and in an mlp with
  `pre`. The bias, which RMSNorm has not, goes into the maps behind the norm. Centring the maps
  behind the norm instead (C W) is not enough: the uncentred root mean square would remain.

  Raises:
    UserError: the norms are not LayerNorms; one reads what is no sum of linear maps (post-LN, an
      activation); or one has a bias with no linear map behind it.
  """
  placed, sites = _placed(model, variables, 'layer')
  eps = dict(placed.norm.options)['eps']
  return convert(model, variables, lambda v: centre_tree(v, sites),
                 f'{placed.placement}:rms(eps={eps!r})', inputs)


def fold_gain_tree(variables, sites: Sequence[NormSite]) -> dict:
  """`fold_gains` on a tree {'params': ...}."""
  flat = flatten(variables['params'])
  for site in sites:
    flat = _fold_affine(flat, site)
  return {**variables, 'params': unflatten(flat)}


def fold_batch_tree(variables, sites: Sequence[NormSite], eps: float) -> dict:
  """`fold_batch_norm` on a tree {'params': ..., 'batch_stats': ...}; the norms leave it.

  A map without a bias gets one: the model it is for must have it.
  """
  flat, state = flatten(variables['params']), flatten(variables['batch_stats'])
  for site in sites:
    gain, bias = _affine(flat, site)
    scale = gain / np.sqrt(state[f'{site.path}/var'].astype(np.float64) + eps)
    shift = bias - scale * state[f'{site.path}/mean'].astype(np.float64)
    if site.alone:
      flat = absorb_after(flat, site.writers[0], scale, shift)
    else:
      flat = _into_consumers(flat, site, scale, shift)
    flat, state = _without(flat, site), _without(state, site)
  rest = {name: tree for name, tree in variables.items() if name != 'batch_stats'}
  return {**rest, 'params': unflatten(flat), **({'batch_stats': unflatten(state)} if state else {})}


def centre_tree(variables, sites: Sequence[NormSite]) -> dict:
  """`layer_to_rms` on a tree {'params': ...}; the norms lose their bias and keep their gain."""
  flat = flatten(variables['params'])
  for site in sites:
    if not site.writers:
      raise UserError(f'{site.path} reads {site.reads}, which no linear map can centre: '
                      'LayerNorm is not an RMSNorm there')
  for m in dict.fromkeys(m for site in sites for m in site.writers):
    flat = centre_output(flat, m)
  for site in sites:
    _, bias = _affine(flat, site)
    if bias.any():
      flat = _into_consumers(flat, site, np.ones_like(bias), bias)
    del flat[f'{site.path}/bias']
  return {**variables, 'params': unflatten(flat)}


def fold_frozen_tree(variables, sites: Sequence[NormSite], sigmas: Mapping[str, Any],
                     centred: bool = True) -> dict:
  """Folds g (x - mean(x)) / sigma + b, a LayerNorm whose deviation is frozen; the norms leave.

  W' = C diag(g / sigma) W and b' = b_map + b W with C = I - 11'/D; for an RMSNorm without C.

  Args:
    variables: a tree {'params': ...}.
    sites: the norms to fold, each read by linear maps alone.
    sigmas: by path of the norm; a number, or one for each output column [n_out] of its only
      consumer, as where queries and keys were frozen apart from values.
    centred: whether the norms take the mean out; RMSNorm does not.

  Raises:
    UserError: something else reads a norm, or a consumer shares its numbers.
  """
  flat = flatten(variables['params'])
  for site in sites:
    gain, bias = _affine(flat, site)
    sigma = np.asarray(sigmas[site.path], np.float64)
    scale = gain / sigma if sigma.ndim == 0 else gain[:, None] / sigma[None]
    flat = _into_consumers(flat, site, scale, bias)
    for m in site.consumers if centred else ():
      flat = centre_input(flat, m)
    flat = _without(flat, site)
  return {**variables, 'params': unflatten(flat)}


def _placed(model, variables, name: str | None):
  """The model's placement and its sites; UserError where its norm is not `name`."""
  sites = wiring(model, variables['params'])
  placed = block(model.norm, model.parametrization)
  if not sites or (name is not None and placed.norm.name != name):
    wanted = f'{name} norms' if name else 'norms'
    raise UserError(f'the model has norm={model.norm!r}: there are no {wanted} to convert')
  return placed, sites


def _affine(flat: Flat, site: NormSite) -> tuple[np.ndarray, np.ndarray]:
  """Gain and bias of a norm; zeros for the bias that RMSNorm has not."""
  if f'{site.path}/scale' not in flat:
    raise UserError(f'{site.path} has no gain: nothing to fold')
  gain = np.asarray(flat[f'{site.path}/scale'], np.float64)
  return gain, np.asarray(flat.get(f'{site.path}/bias', np.zeros_like(gain)), np.float64)


def _fold_affine(flat: Flat, site: NormSite) -> dict:
  folded = dict(_into_consumers(flat, site, *_affine(flat, site)))
  for name, make in (('scale', np.ones_like), ('bias', np.zeros_like)):
    if f'{site.path}/{name}' in flat:
      folded[f'{site.path}/{name}'] = make(flat[f'{site.path}/{name}'])
  return folded


def _into_consumers(flat: Flat, site: NormSite, scale, shift) -> dict:
  if not site.consumers:
    raise UserError(f'{site.path} feeds {site.feeds}: no linear map behind it takes in its gain '
                    'and bias')
  for m in site.consumers:
    flat = absorb_before(flat, m, scale, shift)
  return dict(flat)


def _without(flat: Flat, site: NormSite) -> dict:
  return {path: leaf for path, leaf in flat.items() if not path.startswith(f'{site.path}/')}
