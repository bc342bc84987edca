"""LayerNorm removal from given GPT-2 weights: what they decide, and what training them takes."""

from __future__ import annotations

import functools
from typing import Any

from model_lib.errors import UserError

DECIDED = ('vocab', 'length', 'dim', 'depth', 'heads', 'mlp_ratio', 'activation', 'norm', 'eps',
           'tied', 'unembed_bias', 'ffn_scale', 'attention_temperature', 'entropy_regularized',
           'eot')
GIB = 2 ** 30


@functools.lru_cache(maxsize=1)
def attributes(folder: str) -> dict[str, Any]:
  """The attributes of the model that a folder holds; everything in it is read, and so checked.

  Raises:
    UserError: no such folder, a damaged or foreign one, or a model without norms to remove.
  """
  from model_lib.interop.hugging_face import load_gpt2
  from model_lib.models.removable import KINDS
  try:
    model, _ = load_gpt2(folder)
  except UserError as error:
    raise UserError(f'config.weights: {error}') from None
  if model.norm not in KINDS or model.final_norm:
    raise UserError(f'config.weights: {folder}: its norms are {model.norm!r}'
                    + (f' and {model.final_norm!r}' if model.final_norm else '')
                    + f'; only those of a model with {" or ".join(KINDS)} everywhere are removed')
  return {name: getattr(model, name) for name in DECIDED}


def check_weights(folder: str, window: int) -> None:
  """Whether a folder can be read and windows of so many tokens fit. Raises UserError."""
  length = attributes(folder)['length']
  if window > length:
    raise UserError(f'config.window: {window} tokens do not fit in the {length} positions of '
                    f'{folder}')


def estimates(named: dict[str, tuple[Any, int, int, int]]) -> list[str]:
  """One line per model: its parameters, the memory of a training step, the arithmetic of a run.

  Args:
    named: name -> (model, micro-batch, micro-batches per step, steps).
  """
  from model_lib.analysis.training_size import parameter_count, training_flops, training_memory
  lines = []
  for name, (model, micro_batch, accumulation, steps) in named.items():
    memory = training_memory(model, micro_batch, accumulation)
    tokens = micro_batch * accumulation * steps * model.length
    lines.append(
        f'{name}: {parameter_count(model) / 1e6:,.1f} million parameters; about '
        f'{memory.total / GIB:.1f} GiB per run at a time (weights, gradients and Adam '
        f'{(memory.parameters + memory.gradients + memory.moments) / GIB:.1f}); '
        f'{tokens / 1e6:,.1f} million tokens, {training_flops(model, tokens) / 1e15:,.3g} PFLOP '
        'per run.')
  return lines


def recipes() -> list[str]:
  """The same for the four published recipes, with the hours and the memory that they took."""
  from model_lib.models.gpt2 import GPT2
  from model_lib.transforms.recipes import CONTEXT, PAPER, VOCABULARY
  lines = estimates({
      f'GPT-2 {name}': (
          GPT2(vocab=VOCABULARY, length=CONTEXT, dim=r.dim, depth=r.depth, heads=r.heads,
               remat=True, unroll=1), r.micro_batch, r.accumulation, r.steps)
      for name, r in PAPER.items()})
  return [f'{line} Published: {r.gpu_hours:g} h on one GPU of {r.gpu_gb} GB, '
          f'{r.vanilla_gpu_hours:g} h with LayerNorm.'
          for line, r in zip(lines, PAPER.values(), strict=True)]
