"""The other side of the benchmarks: one run in plain jax and optax, without the engine.

As a program it trains one run of the population and prints its last loss:

  python -m launch.benchmark.plain DATA.npz SEED STEPS

It is what a careful user would write by hand: it imports jax and optax alone, draws the
initialization and the batches with numpy, keeps the data on the device, gathers there, moves
100 steps per call inside lax.scan, donates its state and waits for the device once, at the end.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS_PER_CALL = 100
WIDTHS = (64, 64)
CLASSES = 10
BATCH = 128
RATE = 1e-3


def initial(seed: int, inputs: int) -> tuple[Any, Any]:
  """(params, optimizer state): kernels N(0, 2 / fan_in), biases 0."""
  rng = np.random.default_rng(seed)
  sizes = (inputs, *WIDTHS, CLASSES)
  params = [
      (np.float32(rng.standard_normal((i, o)) * np.sqrt(2 / i)), np.zeros((1, o), np.float32))
      for i, o in zip(sizes[:-1], sizes[1:], strict=True)]
  params = jax.device_put(params)
  return params, optax.adam(RATE).init(params)


def make_step(images, labels, mean: float, std: float):
  """step((params, optimizer state), index [B]) -> (the new pair, mean loss of the batch)."""
  optimizer = optax.adam(RATE)

  def step(carry, index_b):
    params, optimizer_state = carry
    x_bi = (images[index_b].astype(jnp.float32).reshape(len(index_b), -1) - mean) * (1.0 / std)

    def mean_loss(params):
      h_bi = x_bi
      for w, b in params[:-1]:
        h_bi = jax.nn.relu(h_bi @ w + b)
      w, b = params[-1]
      losses = optax.softmax_cross_entropy_with_integer_labels(h_bi @ w + b, labels[index_b])
      return losses.mean()

    loss, grads = jax.value_and_grad(mean_loss)(params)
    updates, optimizer_state = optimizer.update(grads, optimizer_state)
    return (optax.apply_updates(params, updates), optimizer_state), loss

  return step


def make_scan(mean: float, std: float):
  """(state, images, labels, index [K, B]) -> (state, losses [K]); the state is donated."""
  def call(state, images, labels, index_kb):
    return jax.lax.scan(make_step(images, labels, mean, std), state, index_kb)

  return jax.jit(call, donate_argnums=0)


def batches(seed: int, examples: np.ndarray, steps: int) -> np.ndarray:
  """int32 [steps, B]: permutations of the examples, one after the other."""
  rng = np.random.default_rng(seed)
  epochs = -(-steps * BATCH // len(examples))
  order = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
  return order[:steps * BATCH].reshape(steps, BATCH).astype(np.int32)


def main(path: str, seed: int, steps: int) -> None:
  """Trains one run and prints its last loss."""
  data = np.load(path)
  images, labels = jax.device_put((data['images'], data['labels']))
  state = initial(seed, data['images'][0].size)
  index = batches(seed, data['train'], steps)
  call = make_scan(float(data['mean']), float(data['std']))
  for start in range(0, steps, STEPS_PER_CALL):
    state, losses = call(state, images, labels, index[start:start + STEPS_PER_CALL])
  print(float(losses[-1]))


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
