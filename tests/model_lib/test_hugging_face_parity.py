"""GPT-2 beside transformers' GPT2LMHeadModel, on random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.interop import load_gpt2, save_gpt2
from model_lib.training.tasks import cross_entropy
from tests.model_lib import gpt2_cases as cases

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures('unoptimized')]

TOKENS = jnp.asarray(cases.TOKENS)
TOLERANCE = {'float32': 1e-5, 'float64': 1e-10}


def theirs(dtype: str = 'float64', weights=None, **changes):
  """Their model with the weights of `cases.tensors`, or with random perturbed ones."""
  import torch
  import transformers
  torch.manual_seed(0)
  config = transformers.GPT2Config(**{
    'vocab_size': 37, 'n_positions': 16, 'n_embd': 24, 'n_layer': 2, 'n_head': 3,
    'bos_token_id': 36, 'eos_token_id': 36, **changes})
  model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if weights is not None:
        parameter.copy_(torch.tensor(weights[name]))
      else:  # at its start every gain is 1 and every bias 0, which would hide mistakes
        parameter.add_(torch.randn_like(parameter) * .3)
  return model


def hidden_and_logits(model):
  import torch
  with torch.no_grad():
    out = model(torch.tensor(cases.TOKENS).long(), output_hidden_states=True)
  return [h.numpy() for h in out.hidden_states], out.logits.numpy()


def close(found, expected, tolerance) -> None:
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


def test_the_golden_file_is_what_transformers_computes() -> None:
  hidden, logits = hidden_and_logits(theirs(weights=cases.tensors()))
  golden = np.load(cases.GOLDEN)
  close([golden['logits'], *golden['hidden']], [logits, *hidden], 1e-12)


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_random_weights_both_ways(tmp_path, dtype) -> None:
  """save_pretrained -> load_gpt2 -> save_gpt2 -> from_pretrained: hidden states and logits."""
  import torch
  import transformers
  model = theirs(dtype, n_embd=48, n_layer=3)
  model.save_pretrained(tmp_path / 'theirs')
  hidden, logits = hidden_and_logits(model)
  with jax.enable_x64(dtype == 'float64'):
    ours, variables = load_gpt2(tmp_path / 'theirs', dropout=0.0)
    found, taps = jax.jit(lambda v: ours.apply(v, TOKENS, taps=True))(variables)
    save_gpt2(tmp_path / 'ours', ours, variables)
  assert found.dtype == dtype
  close([found, *taps['resid_pre'], taps['final']], [logits, *hidden], TOLERANCE[dtype])
  back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / 'ours',
                                                      dtype=getattr(torch, dtype))
  close([hidden_and_logits(back)[1]], [logits], TOLERANCE[dtype])


def test_loss_and_gradients() -> None:
  """Their loss shifts the labels itself, and rounds the logits to float32."""
  import torch
  model = theirs(weights=cases.tensors()).train()
  for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
      module.p = 0.0
  labels = torch.tensor(cases.TOKENS).long()
  out = model(labels, labels=labels)
  loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1),
                                           labels[:, 1:].flatten())
  loss.backward()
  with jax.enable_x64(True):
    ours = cases.build()
    weights = {name.removeprefix('transformer.'): value for name, value in cases.tensors().items()}
    params = {
      'wte': {'embedding': weights['wte.weight']}, 'wpe': {'embedding': weights['wpe.weight']},
      'ln_f': {'scale': weights['ln_f.weight'], 'bias': weights['ln_f.bias']},
      'h': {part: {'scale': _stack(weights, f'{part}.weight'),
                   'bias': _stack(weights, f'{part}.bias')} for part in ('ln_1', 'ln_2')} | {
        part: {name: {'kernel': _stack(weights, f'{part}.{name}.weight'),
                      'bias': _stack(weights, f'{part}.{name}.bias')} for name in names}
        for part, names in (('attn', ('c_attn', 'c_proj')), ('mlp', ('c_fc', 'c_proj')))}}

    def mean_loss(params):
      logits = ours.apply({'params': params}, TOKENS[:, :-1])
      return cross_entropy(logits, TOKENS[:, 1:]).mean()

    value, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-10)
  np.testing.assert_allclose(value, out.loss.item(), rtol=1e-6)
  state = dict(model.named_parameters())
  close([grads['wte']['embedding'], grads['h']['attn']['c_attn']['kernel'][1],
         grads['h']['ln_1']['scale'][0], grads['ln_f']['bias']],
        [state[f'transformer.{name}'].grad.numpy() for name in
         ('wte.weight', 'h.1.attn.c_attn.weight', 'h.0.ln_1.weight', 'ln_f.bias')], 1e-10)


def _stack(weights, tail):
  return np.stack([weights[f'h.{i}.{tail}'] for i in range(2)])


def test_transformers_refuses_what_is_not_stock(tmp_path) -> None:
  """It ends with an error, and does not compute another function without a word."""
  import transformers
  model = cases.build(norm='none', tied=False, unembed_bias=True)
  save_gpt2(tmp_path, model, cases.numbers(model))
  with pytest.raises(OSError, match='model.safetensors'):
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
  with pytest.raises(ValueError, match='actnorm_gpt2'):
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_untied_stock_model(tmp_path) -> None:
  import torch
  import transformers
  model = cases.build(tied=False)
  variables = cases.numbers(model)
  save_gpt2(tmp_path, model, variables)
  back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)
  logits = jax.jit(lambda v: model.apply(v, TOKENS))(variables)
  close([hidden_and_logits(back)[1]], [logits], 1e-5)
  assert np.abs(back.lm_head.weight.detach().numpy()
                - back.transformer.wte.weight.detach().numpy()).max() > .1
