"""A training step of GPT-2 against the same step of transformers in PyTorch, eager and compiled.

Each side is a process of its own, with the parent's number of threads, which waits for the line
that asks for the next measurement:

  python -m launch.benchmark.gpt2 KIND FOLDER [NAME=SIZE ...]

All start from the weights in FOLDER and see the same batch; each prints its first loss, and the
seconds of every measurement after it. Ours does its steps in one compiled call, as the engine does:
their memory is then taken from the system once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib.util
import math
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

from launch.benchmark import measure

SIZES = {'vocab': 257, 'length': 128, 'dim': 192, 'depth': 6, 'heads': 6, 'batch': 16}
STEPS = 4  # of a measurement
RATE, DECAY, BETAS, EPS = 6e-4, 0.01, (0.9, 0.999), 1e-8


def gpt2(pairs: int, sizes: Mapping[str, int] = SIZES) -> list[dict[str, Any]]:
  """Seconds of a step (loss, gradient, AdamW, float32, no dropout) in ratio to PyTorch's.

  Where PyTorch and transformers (the extra `parity`) are not installed, ours alone is timed. The
  first losses must agree: the sides compute the same function.
  """
  kinds = ['ours', 'removable']
  if all(importlib.util.find_spec(name) for name in ('torch', 'transformers')):
    kinds += ['eager', 'compiled']
  with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
    _write_weights(Path(directory), sizes)
    calls, losses = {}, {}
    for kind in kinds:
      losses[kind], calls[kind] = stack.enter_context(_side(kind, directory, sizes))
    for kind, loss in losses.items():
      if not math.isclose(loss, losses['ours'], rel_tol=1e-4):
        raise RuntimeError(f'the sides differ: the first losses are {losses}')
    measure.interleave(calls, 1)  # warms up
    seconds = measure.interleave(calls, pairs)
  records = [measure.ratio(f'GPT-2 step / PyTorch {kind}', seconds['ours'], seconds[kind],
                           **({'at_most': 1.0} if kind == 'eager' else {}), **sizes)
             for kind in ('eager', 'compiled') if kind in kinds]
  records.append(measure.ratio('GPT-2 step with removable norms / without', seconds['removable'],
                               seconds['ours'], **sizes))
  return records + [measure.record(f'GPT-2 step, {kind}', [1e3 * s / STEPS for s in seconds[kind]],
                                   'ms') for kind in kinds]


@contextlib.contextmanager
def _side(kind: str, directory: str, sizes: Mapping[str, int]) -> Iterator[
    tuple[float, Callable[[], float]]]:
  """The first loss of a side, and a function that lets it do STEPS steps and gives the seconds."""
  settings = [f'{name}={size}' for name, size in sizes.items()]
  with subprocess.Popen(
      [sys.executable, '-m', 'launch.benchmark.gpt2', kind, directory, *settings],
      cwd=measure.ROOT, env=measure.child_environment(), text=True, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE) as process:

    def answer() -> float:
      line = process.stdout.readline()
      if not line:
        raise RuntimeError(f'the side {kind} ended with exit code {process.wait()}')
      return float(line)

    def call() -> float:
      process.stdin.write('\n')
      process.stdin.flush()
      return answer()

    try:
      yield answer(), call
    finally:
      process.stdin.close()  # the side ends
      process.wait()


def _write_weights(path: Path, sizes: Mapping[str, int]) -> None:
  import jax
  import jax.numpy as jnp

  from model_lib import models
  from model_lib.interop import save_gpt2
  model = models.build('gpt2', **{k: v for k, v in sizes.items() if k != 'batch'})
  tokens = jnp.zeros((1, 1), jnp.int32)
  save_gpt2(path, model, jax.jit(lambda: model.init(jax.random.key(0), tokens))())


def _batch(sizes: Mapping[str, int]):
  """Tokens [B, T + 1], int32."""
  import numpy as np
  shape = sizes['batch'], sizes['length'] + 1
  return np.random.default_rng(0).integers(0, sizes['vocab'], shape).astype(np.int32)


def ours(path: str, sizes: Mapping[str, int], removable: bool) -> Callable[[], list[float]]:
  """steps() -> losses of STEPS steps of our model, in one jitted call."""
  import jax
  import optax

  from model_lib.interop import load_gpt2
  from model_lib.training.tasks import cross_entropy
  model, variables = load_gpt2(path, removable=removable)
  window_bt = jax.device_put(_batch(sizes))
  optimizer = optax.adamw(RATE, b1=BETAS[0], b2=BETAS[1], eps=EPS, weight_decay=DECAY)

  def step(carry, _):
    params, state, rest = carry

    def mean_loss(params):
      logits, moved = model.apply({'params': params, **rest}, window_bt[:, :-1], train=True,
                                  mutable=['norm_state'])
      return cross_entropy(logits, window_bt[:, 1:]).mean(), moved

    (loss, moved), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state, {**rest, **moved}), loss

  params = variables.pop('params')
  state = params, optimizer.init(params), variables
  call = jax.jit(lambda state: jax.lax.scan(step, state, None, STEPS), donate_argnums=0)

  def steps() -> list[float]:
    nonlocal state
    state, losses = call(state)
    return losses.tolist()

  return steps


def theirs(path: str, sizes: Mapping[str, int], compiled: bool) -> Callable[[], list[float]]:
  """steps() -> losses of STEPS steps of transformers' model."""
  import torch
  import transformers
  torch.set_num_threads(int(os.environ['NPROC']))
  model = transformers.GPT2LMHeadModel.from_pretrained(path, use_cache=False).train()
  window_bt = torch.tensor(_batch(sizes)).long()
  optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPS,
                                weight_decay=DECAY, fused=True)

  def mean_loss(window_bt):
    logits = model(window_bt[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), window_bt[:, 1:].flatten())

  if compiled:
    mean_loss = torch.compile(mean_loss)

  def steps() -> list[float]:
    losses = []
    for _ in range(STEPS):
      optimizer.zero_grad(set_to_none=True)
      loss = mean_loss(window_bt)
      loss.backward()
      optimizer.step()
      losses.append(loss.detach())
    return [loss.item() for loss in losses]

  return steps


def main(argv: Sequence[str]) -> None:
  """One side: its first loss, then the seconds of STEPS steps for every line that it reads."""
  kind, path, *settings = argv
  sizes = {name: int(size) for name, size in (setting.split('=') for setting in settings)}
  steps = (ours(path, sizes, kind == 'removable') if kind in ('ours', 'removable')
           else theirs(path, sizes, kind == 'compiled'))
  print(repr(steps()[0]), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    steps()
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
