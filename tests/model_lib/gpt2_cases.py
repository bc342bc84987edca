"""A small GPT-2 for the tests: sizes that hide nothing, weights by a formula, numpy references."""

from __future__ import annotations

import functools
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from model_lib import models

SIZES = {'vocab': 37, 'length': 16, 'dim': 24, 'heads': 3, 'depth': 2}
GOLDEN = Path(__file__).parent / 'golden' / 'gpt2.npz'  # what transformers computes
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 11)).astype(np.int32)


def tensors(depth: int = 2, dim: int = 24, vocab: int = 37, length: int = 16) -> dict:
  """Weights with transformers' names, float64: sines, so that no gain is 1 and no bias 0."""
  shapes = {'wte.weight': (vocab, dim), 'wpe.weight': (length, dim),
            'ln_f.weight': (dim,), 'ln_f.bias': (dim,)}
  for i in range(depth):
    for name, fan in (('attn.c_attn', (dim, 3 * dim)), ('attn.c_proj', (dim, dim)),
                      ('mlp.c_fc', (dim, 4 * dim)), ('mlp.c_proj', (4 * dim, dim))):
      shapes |= {f'h.{i}.{name}.weight': fan, f'h.{i}.{name}.bias': fan[1:]}
    for name in ('ln_1', 'ln_2'):
      shapes |= {f'h.{i}.{name}.weight': (dim,), f'h.{i}.{name}.bias': (dim,)}
  found = {}
  for k, (name, shape) in enumerate(shapes.items()):
    wave = np.sin((1 + k) * (1.7 + np.arange(np.prod(shape)) ** 1.1)).reshape(shape)
    found[f'transformer.{name}'] = .4 * wave + ('ln' in name and name.endswith('weight'))
  return found


def build(**kwargs):
  return models.build('gpt2', **{**SIZES, **kwargs})


@functools.cache
def program(model, **kwargs):
  """The compiled model at inference: (variables, tokens) -> logits, or as `kwargs` say."""
  return jax.jit(functools.partial(model.apply, **kwargs))


def numbers(model, seed: int = 1) -> dict:
  """Variables of the model with random parameters, and the others at their start values."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(TOKENS)))
  rng = np.random.default_rng(seed)
  starts = {'scale': 1.0, 'alpha': 1.0, 'ffn_alpha': 1.0, 'ffn_beta': 1.0, 'temperature': 1.0,
            'ema': .9, 'sigma_factor': 1, 'enabled': 1, 'calls_per_step': 1, 'aux_target': 1}

  def fill(path, leaf):
    name = path[-1].key
    start = starts.get(name, 2 ** 30 if name.startswith('event') else name.startswith('sigma'))
    noise = .3 * (path[0].key == 'params')
    return jnp.asarray(start + noise * rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def flat(tree) -> dict[str, np.ndarray]:
  """Leaves by path, such as 'h/ln_1/scale'."""
  return {path: np.asarray(leaf)
          for path, leaf in flax.traverse_util.flatten_dict(tree, sep='/').items()}


def gelu(x: np.ndarray) -> np.ndarray:
  return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + .044715 * x ** 3))) / 2


def moments(x: np.ndarray, kind: str = 'layer', eps: float = 1e-5) -> tuple:
  """x - mu and sigma of each token."""
  x = np.asarray(x, np.float64)
  x = x - x.mean(-1, keepdims=True) * (kind == 'layer')
  return x, np.sqrt((x ** 2).mean(-1, keepdims=True) + eps)


def after(params: dict, taps: dict, inverse, kind: str = 'layer', heads: int = 3) -> dict:
  """attention, head_out, mlp_act, final from the streams before them, in float64 numpy.

  `inverse(site, layer, sigma_tok)` gives what x - mu is multiplied with, for the sites qk, v, mlp,
  final (layer None).
  """
  p = {path: np.asarray(leaf, np.float64) for path, leaf in flat(params).items()}
  found = {'attention': [], 'head_out': [], 'mlp_act': []}

  def site(name, layer, at, x):
    centred, sigma = moments(x, kind)
    scale, bias = (p.get(f'{at}/{leaf}', np.zeros(1)) for leaf in ('scale', 'bias'))
    pick = () if layer is None else (layer,)
    return centred * inverse(name, layer, sigma) * scale[pick] + (bias[pick] if bias.any() else 0)

  for i, (pre, mid) in enumerate(zip(taps['resid_pre'], taps['resid_mid'], strict=True)):
    kernel, bias = p['h/attn/c_attn/kernel'][i], p['h/attn/c_attn/bias'][i]
    b, t, dim = pre.shape
    q, k, v = (((site(name, i, 'h/ln_1', pre)) @ kernel + bias)[..., part * dim:(part + 1) * dim]
               .reshape(b, t, heads, -1) for part, name in enumerate(('qk', 'qk', 'v')))
    logits = np.einsum('bthd,bshd->bhts', q, k) / np.sqrt(dim // heads)
    logits = np.where(np.tri(t, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    found['attention'].append(weights)
    found['head_out'].append(np.einsum('bhts,bshd->bthd', weights, v))
    found['mlp_act'].append(gelu(site('mlp', i, 'h/ln_2', mid) @ p['h/mlp/c_fc/kernel'][i]
                                 + p['h/mlp/c_fc/bias'][i]))
  found['final'] = site('final', None, 'ln_f', taps['resid_final'])
  return found
