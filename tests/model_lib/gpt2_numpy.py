"""GPT-2 in numpy, float64, one layer after another: an independent reference for measurements."""
from __future__ import annotations

import jax
import numpy as np

from model_lib.models.gpt2 import GPT2
from model_lib.models.removable import NEVER


def small(seed: int = 0, events: int | None = None, spread: float = 0.4, **attributes):
  """A model and variables with random weights, gains, biases and frozen sigmas.

  Args:
    seed: of the weights.
    events: of all norm sites; None for a model without switches.
    spread: standard deviation of the embeddings and kernels.
    attributes: over those of a tiny model.
  """
  model = GPT2(**{'vocab': 11, 'length': 9, 'dim': 12, 'depth': 2, 'heads': 3, 'mlp_ratio': 2,
                  'removable': events is not None, **attributes})
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, model.length), np.int32))
  rng = np.random.default_rng(seed)

  def value(path, leaf):
    collection, name = path[0].key, path[-1].key
    if name.startswith('event_'):
      return np.full(leaf.shape, events, np.int32)
    if name.startswith('sigma_') and collection == 'norm_state':
      return rng.uniform(0.7, 1.5, leaf.shape).astype(np.float32)
    if collection != 'params':
      return np.full(leaf.shape, {'calls': 8, 'sigma_factor': 1, 'enabled': 1,
                                  'calls_per_step': 1}.get(name, 0), leaf.dtype)
    own = rng.normal(0, spread, leaf.shape).astype(np.float32)
    return own + np.float32(1) if name == 'scale' else own

  return model, jax.tree_util.tree_map_with_path(value, dict(shapes))


FROZEN = 3  # an event that has passed in the variables of `small`
KEPT = NEVER


def windows(count: int, length: int = 9, vocab: int = 11, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, vocab, (count, length), np.int32)


def layer_norm(x, params, eps, sigma=None):
  """LayerNorm, or its linear form at a frozen sigma."""
  x = x - x.mean(-1, keepdims=True)
  if sigma is None:
    sigma = np.sqrt((x ** 2).mean(-1, keepdims=True) + eps)
  return x / sigma * params['scale'] + params['bias']


def forward(model, variables, tokens, change=lambda place, layer, value: value, start=None):
  """Everything of a run by name; places of layers as lists.

  Args:
    change: (place, layer or None, value) -> the value that is used in its place.
    start: replaces the residual stream behind the last block, or None.
  """
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  state = variables.get('norm_state')
  frozen = state is not None and int(np.max(variables['hp']['event_final'])) == FROZEN

  def norm(x, own, name, layer=None):
    if not frozen:
      return layer_norm(x, own, model.eps)
    sigma = state['sigma_final'] if layer is None else state['h'][f'sigma_{name}'][layer]
    return layer_norm(x, own, model.eps, float(sigma))

  found = {name: [] for name in ('resid_pre', 'attn_out', 'resid_mid', 'mlp_act', 'mlp_out',
                                 'head_out', 'attention')}
  batch, length = tokens.shape
  head_dim = model.dim // model.heads
  x = params['wte']['embedding'][tokens] + params['wpe']['embedding'][:length]
  for layer in range(model.depth):
    own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params['h'])
    x = change('resid_pre', layer, x)
    found['resid_pre'].append(x)
    kernel, bias = own['attn']['c_attn']['kernel'], own['attn']['c_attn']['bias']
    qk, v_in = (norm(x, own['ln_1'], name, layer) for name in ('qk', 'v'))
    split = lambda y: y.reshape(batch, length, model.heads, head_dim).transpose(0, 2, 1, 3)
    d = model.dim
    q, k = (split(qk @ kernel[:, i * d:(i + 1) * d] + bias[i * d:(i + 1) * d]) for i in (0, 1))
    v = split(v_in @ kernel[:, 2 * d:] + bias[2 * d:])
    scores = np.where(np.tri(length, dtype=bool), q @ k.transpose(0, 1, 3, 2) / head_dim ** 0.5,
                      -np.inf)
    a = np.exp(scores - scores.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    z = (a @ v).transpose(0, 2, 1, 3)
    out = z.reshape(batch, length, d) @ own['attn']['c_proj']['kernel']
    out = change('attn_out', layer, out + own['attn']['c_proj']['bias'])
    x = x + out
    h = norm(x, own['ln_2'], 'mlp', layer) @ own['mlp']['c_fc']['kernel']
    h = h + own['mlp']['c_fc']['bias']
    act = 0.5 * h * (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h ** 3)))
    act = change('mlp_act', layer, act)
    mlp = act @ own['mlp']['c_proj']['kernel'] + own['mlp']['c_proj']['bias']
    mlp = change('mlp_out', layer, mlp)
    for name, value in {'attn_out': out, 'resid_mid': x, 'mlp_act': act, 'mlp_out': mlp,
                        'head_out': z, 'attention': a}.items():
      found[name].append(value)
    x = x + mlp
  x = x if start is None else start
  found['resid_final'] = x
  found['final'] = norm(x, params['ln_f'], 'final')
  found['logits'] = found['final'] @ params['wte']['embedding'].T
  return found


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))
