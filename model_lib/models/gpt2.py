"""GPT-2 with the names of Hugging Face, and norms that can be removed while it trains.

Axes in names: b batch, t query position, s key position, d channel, h head, v token of the
vocabulary; L layers, stacked on the first axis of everything below `h`. Parameters:

  wte/embedding [V, D]   wpe/embedding [length, D]   ln_f/{scale, bias} [D]
  h/ln_1, h/ln_2/{scale, bias} [L, D]                h/attn/c_attn/{kernel [L, D, 3D], bias [L, 3D]}
  h/attn/c_proj, h/mlp/c_fc, h/mlp/c_proj/{kernel [L, in, out], bias [L, out]}
  lm_head/{kernel [D, V], bias [V]}                  (untied only)

The columns of c_attn are queries | keys | values. Kernels start as N(0, 0.02^2), those of the two
c_proj with 0.02 / sqrt(2 L), biases as 0 (Radford et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models import adaptive_removal
from model_lib.models import entropy_regularizer
from model_lib.models import removable as sites
from model_lib.models.activation_layer import ActivationLayer, branches, is_gated
from model_lib.models.causal_softmax import causal_softmax
from model_lib.models.dense import STD, Dense, Unembedding, compute_dtype
from model_lib.models.hyper import read_hp
from model_lib.normalization import get_norm
from model_lib.spec import nearest

LAYER_PLACES = ('resid_pre', 'attn_out', 'mlp_act', 'mlp_out')
DTYPES = ('params', 'float64', 'float32', 'bfloat16', 'float16')


class Settings(nn.Module):
  """The attributes of the model, which its blocks have too.

  Attributes:
    vocab, length, dim, depth, heads: sizes; length is the largest T.
    mlp_ratio: hidden units of the feed-forward layer per channel.
    activation: spec of a pointwise activation.
    norm: 'layer' or 'rms', which can be removed; or the spec of another causal norm without state.
    final_norm: spec of ln_f's norm where it is not that of the blocks; '' for `norm`.
    eps: of 'layer' and 'rms'.
    tied: whether the unembedding is the transposed wte.
    unembed_bias: whether an untied unembedding has a bias.
    dropout: rate on the embedding, the attention weights and both branches, in training.
    eot: the id of the token between documents, which no target of the auxiliary loss counts; -1
      for none.
    removable: whether the norm sites have switches (`models.removable`).
    statistic, positions, buffer: what sigma_avg is; see `removable.removable`.
    target: of the auxiliary loss: 'batch', the mean of the batch, or 'fixed', `hp/aux_target`.
    adaptive: steps that the rule of `models.adaptive_removal` looks back, which sets the events
      while the model trains; 0 where the events are given.
    lora_rank: rank r of x A B beside each of the four maps, A [in, r] ~ N(0, 1/in), B [r, out]
      from 0 (arXiv 2106.09685 with alpha = r); 0 for none.
    ffn_scale: the stream becomes beta x + FFN(x) / alpha with trained alpha, beta from 1
      (arXiv 2410.13060).
    attention_temperature: attention logits are divided by a trained number per head and query
      position, from 1 (arXiv 2501.03489 starts at 0.01 and 0.1).
    entropy_regularized: whether heads are held to trained shares of the largest entropy
      (`models.entropy_regularizer`), with the weight and the margin of `hp`.
    remat: whether the backward pass computes each block again.
    unroll: layers per iteration of the loop over them; 0 for all.
    dtype: of the products; 'params': that of the parameters. Stream, norms and softmax are
      float32 or wider.
  """

  vocab: int = 257
  length: int = 128
  dim: int = 128
  depth: int = 4
  heads: int = 4
  mlp_ratio: int = 4
  activation: str = 'gelu_tanh'
  norm: str = 'layer'
  final_norm: str = ''
  eps: float = 1e-5
  tied: bool = True
  unembed_bias: bool = False
  dropout: float = 0.0
  eot: int = -1
  removable: bool = False
  statistic: str = 'mean'
  positions: str = 'all'
  buffer: str = 'own_event'
  target: str = 'batch'
  adaptive: int = 0
  lora_rank: int = 0
  ffn_scale: bool = False
  attention_temperature: bool = False
  entropy_regularized: bool = False
  remat: bool = False
  unroll: int = 0
  dtype: str = 'params'

  def is_updating(self, train: bool) -> bool:
    """Whether this call moves `norm_state`."""
    return train and self.is_mutable_collection('norm_state') and not self.is_initializing()

  def dropped(self, x: jax.Array, train: bool) -> jax.Array:
    """x with dropout from the random stream 'noise'."""
    return nn.Dropout(self.dropout, deterministic=not train, rng_collection='noise')(x)


class Attention(Settings):
  """Causal multi-head attention.

  Called with x_qk and x_v [B, T, D], which queries with keys, and values read; they may be one
  array. Returns the output [B, T, D], z per head before c_proj [B, T, H, D/H], the attention
  weights [B, H, T, T], and a term of the loss or None.
  """

  @nn.compact
  def __call__(self, x_qk: jax.Array, x_v: jax.Array, train: bool):
    batch, length, dim = x_qk.shape
    c_attn = Dense(3 * dim, lora_rank=self.lora_rank, dtype=self.dtype, name='c_attn')
    # Two products only where they differ.
    parts = (c_attn(x_qk) if x_qk is x_v else c_attn(x_qk, x_v, widths=(2 * dim, dim)))
    q_bthd, k_bshd, v_bshd = (
      x.reshape(batch, length, self.heads, -1)
      for x in jnp.split(jnp.concatenate(parts, axis=-1), 3, axis=-1))
    # In this order of axes no product, also of the backward pass, transposes an array [B, H, T, T].
    # Without the barrier XLA undoes the order. With `causal_softmax` it saves 8 percent of a
    # training step's CPU time.
    q_bhtd, k_bhds, v_bhds = jax.lax.optimization_barrier(
      (q_bthd.transpose(0, 2, 1, 3), k_bshd.transpose(0, 2, 3, 1), v_bshd.transpose(0, 2, 3, 1)))
    wide = jnp.promote_types(q_bhtd.dtype, jnp.float32)
    logits_bhts = jnp.einsum('bhtd,bhds->bhts', q_bhtd, k_bhds, preferred_element_type=wide)
    logits_bhts *= 1 / math.sqrt(dim // self.heads)
    if self.attention_temperature:
      temperature = self.param('temperature', nn.initializers.ones, (self.heads, self.length),
                               jnp.float32)
      logits_bhts /= temperature[None, :, :length, None].astype(wide)
    weights_bhts = causal_softmax(logits_bhts)
    term = None
    if self.entropy_regularized:
      theta = self.param('theta', nn.initializers.constant(entropy_regularizer.FIRST_SHARE),
                         (self.heads,), jnp.float32)
      term = read_hp(self, 'entropy_weight', 0.0) * entropy_regularizer.penalty(
        weights_bhts, theta, read_hp(self, 'entropy_margin', 0.2))
    dropped = self.dropped(weights_bhts, train).astype(q_bhtd.dtype)
    # Not einsum, which would swap the operands.
    z_bhtd = jax.lax.dot_general(dropped, v_bhds, (((3,), (3,)), ((0, 1), (0, 1))))
    z_bthd = z_bhtd.transpose(0, 2, 1, 3)
    out, = Dense(dim, STD / math.sqrt(2 * self.depth), self.lora_rank, self.dtype,
                 name='c_proj')(z_bthd.reshape(batch, length, dim))
    return self.dropped(out, train), z_bthd, weights_bhts, term


class FeedForward(Settings):
  """c_proj f(c_fc x); x [B, T, D]. `at_act` maps what leaves f [B, T, mlp_ratio D]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, at_act) -> jax.Array:
    h, = Dense(self.mlp_ratio * self.dim, lora_rank=self.lora_rank, dtype=self.dtype,
               name='c_fc')(x)
    h = at_act(ActivationLayer(self.activation, name='activation')(h, train=train))
    out, = Dense(self.dim, STD / math.sqrt(2 * self.depth), self.lora_rank, self.dtype,
                 name='c_proj')(h)
    return self.dropped(out, train)


class Block(Settings):
  """One pre-norm block, the body of the loop over layers.

  Called with the stream [B, T, D], the layer's edits, the tokens that the auxiliary loss counts
  [B, T] and the control of the norm sites (None without switches). Returns the stream, and
  (auxiliary loss, taps).
  """

  train: bool = False
  taps: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, edits: Mapping[str, jax.Array], counted_bt: jax.Array | None,
               control: sites.Control | None):
    found, aux = {}, []

    def at(place, value):
      if place in edits:
        value = value + edits[place].astype(value.dtype)
      found[place] = value
      return value

    def norm(name, paths, x):
      outputs, sigma = _norm(self, name, paths, x, control, self.train)
      if control is not None:
        fixed = control.aux_target if self.target == 'fixed' else None
        aux.append(control.aux_every * sites.spread(sigma, counted_bt, fixed))
      return outputs

    settings = _settings(self)
    x = at('resid_pre', x)
    x_qk, *x_v = norm('ln_1', ('qk', 'v'), x)
    attn_out, head_out, attention, term = Attention(**settings, name='attn')(
      x_qk, x_v[0] if x_v else x_qk, self.train)
    if term is not None:
      aux.append(term / self.depth)  # a mean over layers
    found.update(head_out=head_out, attention=attention)
    x = x + at('attn_out', attn_out.astype(x.dtype))
    found['resid_mid'] = x
    x_mlp, = norm('ln_2', ('mlp',), x)
    mlp_out = FeedForward(**settings, name='mlp')(
      x_mlp, self.train, lambda h: at('mlp_act', h))
    if self.ffn_scale:
      alpha, beta = (self.param(f'ffn_{name}', nn.initializers.ones, (), jnp.float32)
                     .astype(x.dtype) for name in ('alpha', 'beta'))
      x, mlp_out = beta * x, mlp_out / alpha
    x = x + at('mlp_out', mlp_out.astype(x.dtype))
    return x, (sum(aux), found if self.taps else {})


class GPT2(Settings):
  """tokens [B, T] (integers below vocab, T <= length) -> logits [B, T, vocab], float32 or wider.

  With `taps` it returns (logits, taps), arrays stacked over layers, edits included: resid_pre,
  attn_out, resid_mid, mlp_out [L, B, T, D] (attn_out and mlp_out as they are added to the stream),
  mlp_act [L, B, T, mlp_ratio D], head_out [L, B, T, H, D/H], attention [L, B, H, T, T];
  resid_final and final [B, T, D], the input and the output of ln_f.

  `edits` are added to the values at their places: resid_pre, attn_out, mlp_act, mlp_out
  [L, B, T, ...] and resid_final [B, T, D]. So one patches, ablates, and takes gradients there.

  With `removable`, `hp` has h/event_qk, h/event_v, h/event_mlp int32 [L], event_final, and the
  numbers of `removable.Control` with aux_weight and calls_per_step; `norm_state` has h/sigma_qk,
  h/sigma_v, h/sigma_mlp float32 [L], sigma_final and the counter `calls`. A training call in which
  'losses' is mutable sows there aux_weight * spread of ln_f's input plus aux_every * the sum of
  the spreads of the inputs of all ln_1 and ln_2, one number (`removable.spread`).

  Raises:
    UserError: the tokens are not integers [B, T] with T <= length, an edit has no such place, or
      dropout without the random stream 'noise'.
  """

  @classmethod
  def minimum(cls, name: str) -> int:
    """The least value of an integer attribute."""
    return {'eot': -1, 'adaptive': 0, 'lora_rank': 0, 'unroll': 0}.get(name, 1)

  def check(self) -> None:
    """Whether the attributes make sense, alone and together. Raises UserError."""
    for name, known in {'statistic': sites.STATISTICS, 'positions': sites.POSITIONS,
                        'buffer': sites.BUFFERS, 'target': ('batch', 'fixed'),
                        'dtype': DTYPES}.items():
      value = getattr(self, name)
      if value not in known:
        raise UserError(f'gpt2: {name}={value!r}{nearest(value, known)}; '
                        f'there are: {", ".join(known)}')
    if not 0 <= self.dropout < 1:
      raise UserError(f'gpt2: dropout must be in [0, 1), not {self.dropout:g}')
    if not self.eps >= 0:
      raise UserError(f'gpt2: eps must be at least 0, not {self.eps:g}')
    if self.eot >= self.vocab:
      raise UserError(f'gpt2: eot={self.eot} is no token of a vocabulary of {self.vocab}')
    if self.unembed_bias and self.tied:
      raise UserError('gpt2: unembed_bias needs an unembedding of its own; take tied=False')
    if self.adaptive and not self.removable:
      raise UserError('gpt2: adaptive removal needs norms with switches; take removable=True')
    _check_activation(self.activation)
    _check_norm(self.norm, self.removable)
    if self.final_norm:
      _check_norm(self.final_norm, False)
      if self.removable:
        raise UserError('gpt2: removable=True and a final_norm: all sites have one kind of norm')

  def after_loss(self, collections: Mapping, hp: Mapping,
                 loss: jax.Array) -> tuple[Mapping, Mapping]:
    """What training carries on after a step with this loss: the collections, and hp with the
    events of the next step (`adaptive_removal.after_loss`); unchanged where events are given."""
    return adaptive_removal.after_loss(collections, hp, loss) if self.adaptive else (
      collections, hp)

  @nn.compact
  def __call__(self, tokens: jax.Array, train: bool = False, taps: bool = False,
               edits: Mapping[str, jax.Array] | None = None):
    edits = dict(edits or {})
    self._check_call(tokens, train, edits)
    length = tokens.shape[1]
    wte, wpe = (self._table(name, rows) for name, rows in
                (('wte', self.vocab), ('wpe', self.length)))
    wide = jnp.promote_types(compute_dtype(self.dtype, wte.embedding), jnp.float32)
    x = wte.embedding.astype(wide)[tokens] + wpe.embedding.astype(wide)[None, :length]
    x = self.dropped(x, train)
    control, counted_bt = None, None
    if self.adaptive:
      adaptive_removal.declare(self, self.depth, self.adaptive)
    if self.removable:
      control = sites.read_control(self, train, self.is_updating(train))
      counted_bt = (tokens != self.eot) & (jnp.arange(length) > 0)[None]

    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    layers = nn.scan(
      block, variable_axes={'params': 0, 'hp': 0, 'norm_state': 0},
      split_rngs={'params': True, 'noise': True}, in_axes=(0, nn.broadcast, nn.broadcast),
      length=self.depth, unroll=self.unroll or self.depth)
    x, (aux, found) = layers(**_settings(self), train=train, taps=taps, name='h')(
      x, {place: edits[place] for place in LAYER_PLACES if place in edits}, counted_bt, control)

    if 'resid_final' in edits:
      x = x + edits['resid_final'].astype(wide)
    (final,), sigma = _norm(self, 'ln_f', ('final',), x, control, train, self.final_norm)
    terms = jnp.sum(aux)
    if control is not None:
      fixed = control.aux_target if self.target == 'fixed' else None
      terms = read_hp(self, 'aux_weight', 0.0) * sites.spread(sigma, counted_bt, fixed) + terms
    if (control is not None or self.entropy_regularized) and train and not self.is_initializing():
      self.sow('losses', 'aux', terms)
    logits = self._unembedded(final, wte.embedding)
    return (logits, {**found, 'resid_final': x, 'final': final}) if taps else logits

  def _table(self, name: str, rows: int) -> nn.Embed:
    return nn.Embed(rows, self.dim, embedding_init=nn.initializers.normal(STD), name=name)

  def _unembedded(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
    if not self.tied:
      return Unembedding(self.vocab, self.unembed_bias, self.dtype, name='lm_head')(x)
    dtype = compute_dtype(self.dtype, embedding)
    return jnp.einsum('btd,vd->btv', x.astype(dtype), embedding.astype(dtype),
                      preferred_element_type=jnp.promote_types(dtype, jnp.float32))

  def _check_call(self, tokens: jax.Array, train: bool, edits: Mapping[str, jax.Array]) -> None:
    if (tokens.ndim != 2 or tokens.shape[1] > self.length
        or not jnp.issubdtype(tokens.dtype, jnp.integer)):
      raise UserError(f'gpt2: input {tokens.dtype}{list(tokens.shape)} is not integer tokens '
                      f'[B, T] with T <= length={self.length}')
    places = (*LAYER_PLACES, 'resid_final')
    for place in edits:
      if place not in places:
        raise UserError(f'gpt2: there is no place {place!r} for an edit{nearest(place, places)}; '
                        f'there are: {", ".join(places)}')
    if train and self.dropout and not self.has_rng('noise'):
      raise UserError('gpt2: dropout draws random numbers in training: apply the model with '
                      'rngs={\'noise\': key}')


def _settings(module: Settings) -> dict[str, object]:
  return {field.name: getattr(module, field.name) for field in dataclasses.fields(Settings)
          if field.name not in ('parent', 'name')}


def _norm(module: Settings, name: str, paths: tuple[str, ...], x: jax.Array,
          control: sites.Control | None, train: bool,
          kind: str = '') -> tuple[list[jax.Array], jax.Array | None]:
  """The outputs of a norm site, one for each path with a switch, and sigma_tok of such a site.

  `kind` is the spec of its norm where it is not `module.norm`.
  """
  kind = kind or module.norm
  if kind not in sites.KINDS:
    return [get_norm(kind).layer(name)(x, train)], None
  norm = sites.Norm(kind, module.eps, module.dim, name=name)
  if control is None:
    return [norm(x)], None
  return sites.removable(module, norm, x, paths, control, module.is_updating(train),
                         module.statistic, module.positions, module.buffer)


def _check_activation(spec: str) -> None:
  if is_gated(spec):
    raise UserError(f'gpt2: activation={spec!r} takes two arrays, and c_fc gives one; take one of '
                    'one array')
  for branch in branches(spec):
    if not branch.causal or branch.width_factor != 1:
      raise UserError(f'gpt2: activation={spec!r} lets a position see later ones or changes the '
                      'width; take a pointwise activation')


def _check_norm(spec: str, removable: bool) -> None:
  norm = get_norm(spec)
  if norm.name in sites.KINDS and spec not in sites.KINDS:
    raise UserError(f'gpt2: norm={spec!r}: write {norm.name!r}, and its eps as eps=')
  if not norm.causal or norm.state or norm.condition:
    raise UserError(f'gpt2: norm={spec!r} has a state, a condition, or lets a position see later '
                    'ones; take layer, rms, dyt, derf or none')
  if removable and norm.name not in sites.KINDS:
    raise UserError(f'gpt2: removable=True needs norm=\'layer\' or \'rms\', and not {spec!r}')
