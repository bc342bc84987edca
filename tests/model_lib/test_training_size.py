"""Estimated memory and arithmetic of training a GPT-2, beside what the compiler says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from model_lib import models
from model_lib.analysis import training_size
from model_lib.training.tasks import cross_entropy
from model_lib.transforms.recipes import CONTEXT, PAPER, VOCABULARY


def paper_model(size, **attributes):
  recipe = PAPER[size]
  return models.build('gpt2', **{
    'vocab': VOCABULARY, 'length': CONTEXT, 'dim': recipe.dim, 'depth': recipe.depth,
    'heads': recipe.heads, 'remat': True, 'removable': True, 'unroll': 1, **attributes})


# The published models' numbers of parameters.
@pytest.mark.parametrize('size, count', [
  ('small', 124_439_808), ('medium', 354_823_168), ('large', 774_030_080), ('xl', 1_557_611_200)])
def test_of_the_papers_models(size, count) -> None:
  model, recipe = paper_model(size), PAPER[size]
  assert training_size.parameter_count(model) == count
  memory = training_size.training_memory(model, recipe.micro_batch, recipe.accumulation)
  assert (memory.parameters, memory.gradients, memory.moments) == (4 * count, 8 * count, 8 * count)
  assert memory.total == sum((20 * count, memory.kept, memory.working))
  flops = training_size.training_flops(model, recipe.tokens_per_step * recipe.steps)
  # Six operations per parameter and token are the usual lower bound; remat makes them eight.
  ratio = flops / (6 * count * recipe.tokens_per_step * recipe.steps)
  print(f'{size}: {memory.total / 2**30:.1f} GiB, {flops:.3g} operations, {ratio:.2f} x 6 N D')
  assert 1.0 < ratio < 2.0


def test_it_grows_with_what_it_should() -> None:
  def at(micro_batch=1, accumulation=1, **attributes):
    return training_size.training_memory(paper_model('small', **attributes), micro_batch,
                                         accumulation)
  one, two = at(), at(2)
  assert (two.kept, two.working) == (2 * one.kept, 2 * one.working)
  assert two.parameters == one.parameters and at(1, 2).gradients == 2 * one.gradients
  assert one.kept == 4 * 12 * 1024 * 768 and one.working == 4 * 3 * 1024 * 50257
  assert at(remat=False).kept > 20 * one.kept
  # With a small vocabulary the block at work is the largest.
  assert at(vocab=257).working < one.working


def compiled(model, micro_batch):
  """The compiled gradient of the cross-entropy, for abstract arguments."""
  tokens = jax.ShapeDtypeStruct((micro_batch, model.length), jnp.int32)
  variables = jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 1), jnp.int32), train=False))

  def loss(params, rest, tokens):
    logits, _ = model.apply({'params': params, **rest}, tokens, train=True,
                            mutable=['norm_state', 'losses'])
    return cross_entropy(logits[:, :-1], tokens[:, 1:]).mean()

  rest = {name: tree for name, tree in variables.items() if name in ('hp', 'norm_state')}
  return jax.jit(jax.grad(loss)).lower(variables['params'], rest, tokens).compile()


def check_memory(model, micro_batch) -> None:
  found = compiled(model, micro_batch).memory_analysis()
  own = training_size.training_memory(model, micro_batch)
  # The arguments hold the parameters, the results the gradients; there are no moments here.
  bytes_ = (found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
            + found.temp_size_in_bytes)
  estimate = own.total - own.moments
  shown = f'estimate {estimate / 2**20:.0f} MiB, compiler {bytes_ / 2**20:.0f}'
  print(shown)
  assert 0.9 < estimate / bytes_ < 1.1, shown
  beside = (own.kept + own.working) / found.temp_size_in_bytes
  assert 0.85 < beside < 1.2, f'{shown}; without parameters and gradients {beside:.2f}'


@pytest.mark.slow
@pytest.mark.parametrize('micro_batch, attributes', [
  (1, {}), (4, {}), (2, {'vocab': 257}), (4, {'length': 256, 'vocab': 257}),
  (1, {'depth': 6, 'vocab': 257, 'remat': False}), (2, {'depth': 4, 'length': 256, 'remat': False}),
])
def test_the_compilers_memory(micro_batch, attributes) -> None:
  check_memory(paper_model('small', **attributes), micro_batch)


@pytest.mark.slow
@pytest.mark.parametrize('remat', [False, True])
def test_the_compilers_operations(remat) -> None:
  model = models.build('gpt2', vocab=512, length=64, dim=256, depth=3, heads=4, remat=remat)
  flops = compiled(model, 2).cost_analysis()['flops']
  ratio = training_size.training_flops(model, 2 * 64) / flops
  print(f'remat={remat}: {ratio:.3f} of the compiler\'s')
  # The compiler also counts what is done element by element.
  assert 0.85 < ratio < 1.02, ratio
