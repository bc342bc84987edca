"""Tasks: from example numbers to inputs, targets and per-example losses.

A task is static (hashable numbers only); its arrays are arguments of the
compiled program, so that they live on the device once.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-log softmax(logits)[target] in nats; logits [..., C], integer targets [...]."""
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen


@dataclasses.dataclass(frozen=True)
class Classification:
  """Images to classes.

  arrays: {'inputs': uint8 [n, ...], 'labels': int32 [n, tables]}; table 0 holds
  the data's own labels, table k > 0 the k-th random permutation of them.
  Inputs are standardized with one mean and one standard deviation of the pixels.
  """

  mean: float
  std: float

  def batch(self, arrays, index_b: jax.Array, labels: jax.Array):
    """float32 inputs [B, ...] and int32 targets [B] of the examples index_b."""
    raw = arrays['inputs'][index_b].astype(jnp.float32)
    return (raw - self.mean) * (1.0 / self.std), arrays['labels'][index_b, labels]

  def example_inputs(self, arrays, batch_size: int) -> np.ndarray:
    """Zeros of a batch's shape and type, to initialize a model with."""
    return np.zeros((batch_size, *arrays['inputs'].shape[1:]), np.float32)

  def losses(self, logits: jax.Array, targets: jax.Array):
    """Cross-entropy [B] in nats, and {'accuracy': 1 where the largest logit is the target}."""
    right = jnp.argmax(logits, axis=-1) == targets
    loss = cross_entropy(logits, targets)
    return loss, {'accuracy': right.astype(loss.dtype)}


@dataclasses.dataclass(frozen=True)
class Regression:
  """Numbers to numbers.

  arrays: {'inputs': float32 [n, ...], 'targets': float32 [n, tables, k]}; a run reads the table
  of its labels, with k numbers per example, so that several targets of the same inputs train in
  one program. Nothing is standardized here.
  """

  def batch(self, arrays, index_b: jax.Array, labels: jax.Array):
    """float32 inputs [B, ...] and targets [B, k] of the examples index_b."""
    return arrays['inputs'][index_b], arrays['targets'][index_b, labels]

  def example_inputs(self, arrays, batch_size: int) -> np.ndarray:
    """Zeros of a batch's shape and type, to initialize a model with."""
    return np.zeros((batch_size, *arrays['inputs'].shape[1:]), np.float32)

  def losses(self, outputs: jax.Array, targets: jax.Array):
    """Squared error [B], the mean over the k numbers of an example; no further metric.

    Raises:
      ValueError: the model's outputs are not [B, k].
    """
    if outputs.shape != targets.shape:  # else [B, 1] and [B, k] would be broadcast
      raise ValueError(f'outputs of shape {outputs.shape} for targets of shape {targets.shape}')
    error = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)) - targets
    return jnp.square(error).mean(axis=-1), {}


@dataclasses.dataclass(frozen=True)
class NextToken:
  """Text to its next token.

  arrays: {'inputs': integer windows [n, length + 1]}. The loss of a window is the
  mean over its `length` predicted tokens.
  """

  def batch(self, arrays, index_b: jax.Array, labels: jax.Array):
    """int32 inputs and targets [B, length], the targets one token later."""
    del labels  # text has no label tables
    window_bt = arrays['inputs'][index_b].astype(jnp.int32)
    return window_bt[:, :-1], window_bt[:, 1:]

  def example_inputs(self, arrays, batch_size: int) -> np.ndarray:
    """Zeros of a batch's shape and type, to initialize a model with."""
    return np.zeros((batch_size, arrays['inputs'].shape[1] - 1), np.int32)

  def losses(self, logits: jax.Array, targets: jax.Array):
    """Mean cross-entropy [B] of each window in nats per token, and its accuracy."""
    loss = cross_entropy(logits, targets)
    right = (jnp.argmax(logits, axis=-1) == targets).astype(loss.dtype)
    return loss.mean(axis=-1), {'accuracy': right.mean(axis=-1)}
