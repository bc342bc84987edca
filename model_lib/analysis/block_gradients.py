"""Gradient norms of a vision transformer: of its patch embedding and of each of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from model_lib.models.vit import ViT
from model_lib.training import state
from model_lib.training.cohort import Member
from model_lib.training.population import compile_options
from model_lib.training.tasks import cross_entropy


def gradient_norms(model: ViT) -> Callable:
  """The function (variables, x [batches, B, ...], labels [batches, B]) -> (stem, blocks [depth]).

  A norm is that of the gradient of a batch's mean cross-entropy, root mean square over the
  batches: of the stem's kernel and bias, and of all parameters of a block, its norms included.
  The network is applied with train=True.
  """
  def mean_loss(params, rest, x, labels):
    logits = model.apply({**rest, 'params': params}, x, train=True)
    return cross_entropy(logits, labels).mean()

  def norms(variables: Mapping, x: jax.Array, labels: jax.Array):
    rest = {name: tree for name, tree in variables.items() if name != 'params'}

    def squares(batch):
      g = jax.grad(mean_loss)(variables['params'], rest, *batch)
      blocks = [{name: leaf for name, leaf in g['blocks'].items() if name.endswith(f'_{i}')}
                for i in range(model.depth)]
      return (jnp.square(optax.tree.norm(g['stem'])),
              jnp.stack([jnp.square(optax.tree.norm(block)) for block in blocks]))

    return jax.tree.map(lambda s: jnp.sqrt(s.mean(0)), jax.lax.map(squares, (x, labels)))

  return norms


def initializer(model, example: jax.Array) -> Callable:
  """The function (hp, seed) -> the parameters that a training run of the seed begins with.

  Args:
    model: Linen module.
    example: inputs, of which the shape counts.
  """
  def create(hp, key_data):
    return state.create(model, optax.identity(), example, {'model': hp}, key_data).params

  compiled = jax.jit(create, compiler_options=compile_options())
  return lambda hp, seed: compiled(hp, state.seed_keys([Member({}, seed, seed, 0, {})])[0])
