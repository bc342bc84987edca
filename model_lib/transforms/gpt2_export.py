"""A GPT-2 whose norms have become linear, written as a model without norms, or for stock loaders.

`fold` puts each site g (x - mean(x)) / sigma + b into the map that reads it. No norm is left; the
unembedding gets numbers of its own and a bias. `trick` keeps the modules: with scale g 1e6 / sigma
and eps = 1e12 a real LayerNorm is that linear map to a relative error of var(x) / 2e12, so that
stock GPT-2 code, tied and with norms, runs it (the published code's export, arXiv 2507.02559).
Both give the new model, its variables and a report of how far its outputs are from the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.errors import UserError
from model_lib.models import removable
from model_lib.models.dense import merged
from model_lib.transforms import edits
from model_lib.transforms.convert import fold_frozen_tree
from model_lib.transforms.graph import Finding, find_normalizations
from model_lib.transforms.report import TOLERANCES, Report, compare
from model_lib.transforms.wiring import gpt2_wiring

TRICK_EPS = 1e12
LOWER = ('bfloat16', 'float16')


@dataclasses.dataclass(frozen=True)
class Lower:
  """The exported weights, rounded, beside the old model in float32; no test, for information.

  Attributes:
    dtype: of the weights and products; stream, norms and softmax stay float32.
    difference: max |new - old| / max |old| over the finite outputs.
    not_finite: outputs that are inf or nan, of `outputs`.
    outputs: how many there are.
  """

  dtype: str
  difference: float
  not_finite: int
  outputs: int

  def __str__(self) -> str:
    if self.not_finite == self.outputs:
      return f'{self.dtype} weights: no output is finite'
    lost = f', {self.not_finite} of {self.outputs} not finite' if self.not_finite else ''
    return f'{self.dtype} weights: max |difference| {self.difference:.1e} of the largest{lost}'


@dataclasses.dataclass(frozen=True)
class ExportReport:
  """How the exported model compares.

  Attributes:
    form: 'fold' or 'trick'.
    precisions: the outputs before and after in float32 and float64.
    lower: rows of lower precisions.
    control: max |real norms - old| / max |old|, float32: what the comparison shows where a norm
      is not linear.
    findings: operations of the exported model that may normalize, given the tokens as data.
    control_findings: the same of the model with real norms.
    kept: whether the final norm stays, real.
    max_variance: the largest variance (RMSNorm: mean square) that a site reads.
  """

  form: str
  precisions: Report
  lower: tuple[Lower, ...]
  control: float
  findings: tuple[Finding, ...]
  control_findings: tuple[Finding, ...]
  kept: bool
  max_variance: float

  @property
  def equal(self) -> bool:
    """Whether the outputs agree in float32 and float64, and real norms would not have."""
    return self.precisions.equal and not self.control <= self.precisions['float32'].tolerance

  def __str__(self) -> str:
    return '\n'.join([
      f'{self.form}' + (', final norm kept' if self.kept else ''), str(self.precisions),
      *map(str, self.lower),
      f'with real norms (control): max |difference| {self.control:.1e} of the largest',
      f'largest variance that a norm reads: {self.max_variance:.3g}',
      f'operations that normalize: {_listed(self.findings)}; '
      f'with real norms: {_listed(self.control_findings)}'])


def places(findings: tuple[Finding, ...]) -> tuple[str, ...]:
  """The modules that findings stand in, such as 'GPT2/ln_f', without names of methods."""
  return tuple(sorted({'/'.join(part for part in finding.scope.split('/') if '.' not in part)
                       for finding in findings}))


def _listed(findings: tuple[Finding, ...]) -> str:
  return f'{len(findings)}, in {", ".join(places(findings))}' if findings else 'none'


@dataclasses.dataclass(frozen=True)
class Exported:
  """An exported model: the module, its variables (NumPy, in the old dtypes), and the report."""

  model: Any
  variables: dict
  report: ExportReport


def fold(model, variables, tokens, lower: Sequence[str] = LOWER) -> Exported:
  """The exact fold: a GPT2 with norm='none' and an untied unembedding with bias.

  W_qkv' = C diag(g / sigma) W_qkv, b' = b + beta W_qkv with C = I - 11'/D (RMSNorm: without) and
  sigma of queries and keys, or of values, by column; the same for c_fc, and for the unembedding
  W' = C diag(g / sigma) wte^T, b' = beta wte^T. A final norm that is still real stays as it is,
  and so does the unembedding. LoRA's products are added to the kernels.

  Args:
    model: GPT2 with removable=True.
    variables: params, norm_state and hp after training.
    tokens: [B, T], inputs of the report.
    lower: dtypes below float32 that the report has a row of.

  Raises:
    UserError: norms other than the final one are still real; the line names them.
  """
  real = real_sites(model, variables)
  kept = real == ('ln_f',)
  if real and not kept:
    raise _still_real('fold', real)
  new = _plain(model, norm='none', final_norm=model.norm if kept else '',
               tied=model.tied and kept, unembed_bias=model.unembed_bias or not kept)
  return _exported('fold', model, new, variables, tokens,
                   lambda v: fold_tree(v, model.norm, model.tied, kept), kept, lower)


def trick(model, variables, tokens) -> Exported:
  """The export for stock GPT-2 code: scale g 1e6 / sigma and eps = 1e12 in every norm.

  Where sigma differs between queries with keys and values, the values' columns make up for it:
  W_v' = k W_v, b_v' = b_v + (1 - k) beta W_v with k = sigma_qk / sigma_v. Its own error is
  var / 2e12, so the tolerances are those of `fold` plus 4 max(var) / 2e12.

  Args: as `fold`.

  Raises:
    UserError: norms are still real, the final one included: eps is one number for all.
  """
  real = real_sites(model, variables)
  if real:
    raise _still_real('trick', real)
  return _exported('trick', model, _plain(model, eps=TRICK_EPS), variables, tokens, trick_tree,
                   False)


def real_sites(model, variables) -> tuple[str, ...]:
  """The paths of the norm sites that are not, or not wholly, linear at inference.

  Raises:
    UserError: the model's norms have no switches.
  """
  if not getattr(model, 'removable', False):
    raise UserError(f'{type(model).__name__}: an export needs a GPT2 with removable=True, whose '
                    'norms have become linear in training')
  return tuple(path for path, g in removable.gates(variables).items() if g != 0)


def fold_tree(variables, norm: str, tied: bool, keep_final: bool) -> dict:
  """`fold` on a tree {'params', 'norm_state', 'hp'}: the new params, and hp."""
  flat = edits.flatten(merged(variables['params']))
  depth, dim = flat['h/ln_1/scale'].shape
  sigma = sigmas(variables)
  if not keep_final:
    flat = edits.untie(flat, 'wte', 'lm_head') if tied else {
      'lm_head/bias': np.zeros_like(flat['lm_head/kernel'][0]), **flat}
  by_path = {'ln_f': sigma['final']}
  for i in range(depth):
    by_path[f'h/{i}/ln_1'] = np.repeat([sigma['qk'][i], sigma['v'][i]], [2 * dim, dim])
    by_path[f'h/{i}/ln_2'] = sigma['mlp'][i]
  places = gpt2_wiring(depth, tied and keep_final, final=not keep_final)
  apart = {'params': edits.unflatten(edits.unstack(flat, 'h'))}
  folded = fold_frozen_tree(apart, places, by_path, centred=norm == 'layer')
  together = edits.stack(edits.flatten(folded['params']), 'h')
  return {'params': edits.unflatten(together), 'hp': variables['hp']}


def trick_tree(variables) -> dict:
  """`trick` on a tree {'params', 'norm_state', 'hp'}: the new params, and hp."""
  flat = edits.flatten(merged(variables['params']))
  sigma = sigmas(variables)
  ratio = sigma['qk'] / sigma['v']
  dim = flat['h/ln_1/scale'].shape[1]

  def change(path, function):
    flat[path] = np.asarray(function(flat[path].astype(np.float64)), flat[path].dtype)

  values = np.asarray(flat['h/attn/c_attn/kernel'][..., 2 * dim:], np.float64)
  change('h/attn/c_attn/kernel', lambda w: np.concatenate(
    [w[..., :2 * dim], ratio[:, None, None] * values], -1))
  if 'h/ln_1/bias' in flat:
    shift = np.einsum('li,lio->lo', flat['h/ln_1/bias'].astype(np.float64), values)
    change('h/attn/c_attn/bias', lambda b: np.concatenate(
      [b[:, :2 * dim], b[:, 2 * dim:] + (1 - ratio)[:, None] * shift], -1))
  for path, group in (('h/ln_1', 'qk'), ('h/ln_2', 'mlp'), ('ln_f', 'final')):
    factor = np.sqrt(TRICK_EPS) / sigma[group]
    change(f'{path}/scale', lambda scale: scale * factor[..., None])
  return {'params': edits.unflatten(flat), 'hp': variables['hp']}


def sigmas(variables) -> dict[str, np.ndarray]:
  """sigma_factor sigma_avg by group, float64: qk, v, mlp [L], final []."""
  state, factor = variables['norm_state'], np.float64(variables['hp']['sigma_factor'])
  found = {group: state['h'][f'sigma_{group}'] for group in ('qk', 'v', 'mlp')}
  return {group: factor * np.asarray(value, np.float64)
          for group, value in {**found, 'final': state['sigma_final']}.items()}


def _still_real(form: str, real: tuple[str, ...]) -> UserError:
  shown = ', '.join(real[:4]) + (f' and {len(real) - 4} more' if len(real) > 4 else '')
  count = f'{len(real)} norm sites are' if len(real) > 1 else 'a norm site is'
  return UserError(f'{form}: {count} still real ({shown}); train on until the last event, or give '
                   'every site one' + ('; fold keeps a final norm' if real == ('ln_f',) else ''))


def _plain(model, **changes):
  """The model without switches."""
  return model.clone(removable=False, adaptive=0, lora_rank=0, **changes)


@functools.lru_cache(maxsize=16)
def _run(model) -> Callable:
  """model.apply at inference, in the precision of the variables."""
  exact = model.clone(dtype='params')
  return lambda variables, tokens, **options: exact.apply(variables, tokens, train=False,
                                                          **options)


def _exported(form: str, model, new, variables, tokens, surgery: Callable,
              kept: bool, dtypes: Sequence[str] = LOWER) -> Exported:
  variables = jax.tree.map(np.asarray, {name: variables[name]
                                        for name in ('params', 'hp', 'norm_state')})
  real = _plain(model)
  paths = {m: _hp_paths(m, tokens) for m in (new, real)}

  def made(v):
    tree = surgery(v)
    return _with_hp(tree['params'], tree['hp'], paths[new])

  after, unchanged = made(variables), _with_hp(merged(variables['params']), variables['hp'],
                                               paths[real])
  old, variance, normed, *rounded = jax.tree.map(np.asarray, _outputs(
    model, real, new, variables, unchanged, [_rounded(after, dtype) for dtype in dtypes], tokens))
  more = 4 * float(variance) / (2 * TRICK_EPS) if form == 'trick' else 0.0
  precisions = compare(_run(model), _run(new), variables, made, tokens,
                       {dtype: allowed + more for dtype, allowed in TOLERANCES.items()})
  return Exported(new, after, ExportReport(
    form, precisions, tuple(_lower(dtype, logits, old) for dtype, logits in zip(dtypes, rounded)),
    float(np.abs(normed - old).max() / np.abs(old).max()), _findings(new, after, tokens),
    _findings(real, unchanged, tokens), kept, float(variance)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _outputs(model, real, new, variables, unchanged, rounded, tokens):
  """All that is compared with the old model in float32, as one program."""
  return (*with_variance(model, variables, tokens), _run(real)(unchanged, tokens),
          *(_run(new)(low, tokens) for low in rounded))


def with_variance(model, variables, tokens) -> tuple[jax.Array, jax.Array]:
  """The logits, and the largest variance (RMSNorm: mean square) that any site reads."""
  logits, taps = _run(model)(variables, tokens, taps=True)
  def moment(x):
    return jnp.var(x, -1) if model.norm == 'layer' else jnp.mean(jnp.square(x), -1)
  return logits, jnp.stack([moment(taps[place]).max()
                            for place in ('resid_pre', 'resid_mid', 'resid_final')]).max()


def _findings(model, variables, tokens) -> tuple[Finding, ...]:
  # The variables are constants here: a trained divisor normalizes nothing.
  constants = jax.tree.map(jnp.asarray, variables)
  return find_normalizations(lambda tokens: model.apply(constants, tokens, train=False), tokens)


def _rounded(variables, dtype: str) -> dict:
  # What is too large for float16 becomes inf, which the row shows.
  with np.errstate(over='ignore'):
    return jax.tree.map(
      lambda x: np.asarray(x).astype(dtype) if np.issubdtype(x.dtype, np.floating) else x,
      variables)


def _lower(dtype: str, logits: np.ndarray, old: np.ndarray) -> Lower:
  finite = np.isfinite(logits)
  worst = np.abs(logits - old)[finite].max(initial=0.0) / np.abs(old).max()
  return Lower(dtype, float(worst), int((~finite).sum()), logits.size)


def _hp_paths(model, tokens) -> frozenset[str]:
  """The swept numbers that a model reads, by path."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, train=False))
  return frozenset(flax.traverse_util.flatten_dict(dict(shapes.get('hp', {})), sep='/'))


def _with_hp(params, hp, paths: frozenset[str]) -> dict:
  flat = flax.traverse_util.flatten_dict(dict(hp), sep='/')
  kept = {path: flat[path] for path in flat if path in paths}
  return {'params': params, **({'hp': flax.traverse_util.unflatten_dict(kept, sep='/')}
                               if kept else {})}
