"""Memory and arithmetic of one training step of a GPT-2, from its shapes, before anything runs.

The memory is that of float32 arithmetic. With P parameters, micro-batch B, T tokens, D channels, H
heads, V tokens of the vocabulary, L layers and r = mlp_ratio, in numbers of 4 bytes:

  parameters P, gradients P (2 P where micro-batches are added up), Adam's moments 2 P;
  kept by the forward pass: L B T D with remat, the inputs of the blocks, else
    L (B T D (5 r + 25) + 2.4 B H T T): nothing is computed twice;
  at work beside that: the larger of 3 B T V, the logits, their exponentials and their gradient,
    and with remat one block: B T D (5 r + 12) + 3.1 B H T T + 2 r D D.

The factors were fitted to what XLA's CPU compiler reserves (`memory_analysis`), L 3 to 24, T 256
and 1024; a test compares again. Products in bfloat16 need less on an accelerator; how much was not
compared, so the estimate leaves it out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from model_lib.models.gpt2 import GPT2

_BYTES = 4


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
  """Bytes of a training step on one device.

  Attributes:
    parameters, gradients, moments: of the whole model.
    kept: from the forward pass for the backward pass.
    working: the largest arrays that are there at one time beside that.
  """

  parameters: int
  gradients: int
  moments: int
  kept: int
  working: int

  @property
  def total(self) -> int:
    """All of it."""
    return sum(dataclasses.astuple(self))


def parameter_count(model: GPT2) -> int:
  """Numbers in the model's parameters; a tied unembedding counts once."""
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), train=False))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def training_memory(model: GPT2, micro_batch: int, accumulation: int = 1) -> TrainingMemory:
  """The estimate of the module's docstring.

  Args:
    model: its length is T.
    micro_batch: B, sequences per backward pass.
    accumulation: backward passes per optimizer step.
  """
  count, length, dim = parameter_count(model), model.length, model.dim
  stream = micro_batch * length * dim
  pairs = micro_batch * model.heads * length * length
  logits = 3 * micro_batch * length * model.vocab
  if model.remat:
    kept = model.depth * stream
    block = (stream * (5 * model.mlp_ratio + 12) + 3.1 * pairs
             + 2 * model.mlp_ratio * dim * dim)
  else:
    kept = model.depth * (stream * (5 * model.mlp_ratio + 25) + 2.4 * pairs)
    block = 0
  numbers = (count, count * (2 if accumulation > 1 else 1), 2 * count, kept, max(logits, block))
  return TrainingMemory(*(int(_BYTES * number) for number in numbers))


def training_flops(model: GPT2, tokens: float) -> float:
  """Floating-point operations of the matrix products of training on so many tokens.

  Forward, per token: 2 (L (4 + 2 r) D^2 + D V) + 4 L T D, attention over all T positions, as it is
  computed; the backward pass twice that. With remat the blocks are computed once more, up to
  their last product, of which the backward pass needs nothing. Elementwise work, norms and the
  optimizer are left out. Divided by the operations per second that a device sustains this is the
  time; the recipes' GPU hours tell what it was for them.
  """
  last = 2 * model.mlp_ratio * model.dim ** 2
  block = 2 * (4 + model.mlp_ratio) * model.dim ** 2 + last + 4 * model.length * model.dim
  again = block - last if model.remat else 0
  return tokens * (model.depth * (3 * block + again) + 3 * 2 * model.dim * model.vocab)
