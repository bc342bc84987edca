"""Tiny models of free form (all but gpt2), their inputs and their variables, for the tests."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np

SIZES = {
  'mlp': {'widths': (16, 16)},
  'resmlp': {'width': 16, 'depth': 1},
  'cnn': {'widths': (4,), 'blocks': 1},
  'vit': {'dim': 8, 'depth': 1, 'heads': 2, 'mlp_ratio': 2},
  'gpt': {'vocab': 11, 'length': 6, 'dim': 8, 'depth': 1, 'heads': 2, 'mlp_ratio': 2},
}


def inputs(name: str, seed: int = 0) -> jax.Array:
  """A batch of three for the model: tokens, or 4x4 images."""
  rng = np.random.default_rng(seed)
  if name == 'gpt':
    return jnp.asarray(rng.integers(0, 11, (3, 6)), jnp.int32)
  return jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)


def init(model, x, seed: int = 0):
  """The model's own start values."""
  return jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(seed))


def numbers(model, x, train: bool | None = False):
  """Variables of the model's shapes with random parameters: no init to compile."""
  call = {} if train is None else {'train': train}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, **call))
  rng = np.random.default_rng(1)

  def fill(path, leaf):
    start = {'scale': 1.0, 'var': 1.0}.get(path[-1].key, 0.0)
    noise = 0.0 if path[0].key in ('hp', 'batch_stats') else 0.3
    return jnp.asarray(start + noise * rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def logits(model, variables, x) -> np.ndarray:
  """The model's output at inference, compiled."""
  return np.asarray(jax.jit(lambda v: model.apply(v, x, train=False))(variables))


def flat(tree) -> dict[str, np.ndarray]:
  """Leaves by path, such as 'head/kernel'."""
  return {name: np.asarray(leaf)
          for name, leaf in flax.traverse_util.flatten_dict(tree, sep='/').items()}
