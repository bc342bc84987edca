"""Folders of Hugging Face: what is read, what is written, and what is refused."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import types

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from model_lib.errors import UserError
from model_lib.interop import load_gpt2, not_stock, save_gpt2
from model_lib.models.hyper import set_hp
from tests.model_lib import gpt2_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

CONFIG = {'model_type': 'gpt2', 'vocab_size': 37, 'n_positions': 16, 'n_embd': 24, 'n_layer': 2,
          'n_head': 3, 'n_inner': None, 'activation_function': 'gelu_new', 'eos_token_id': 36}


def folder(path: Path, tensors=None, **changes) -> Path:
  """A folder as save_pretrained writes it, with changes to its config; None leaves a field out."""
  path.mkdir(exist_ok=True)
  config = {k: v for k, v in {**CONFIG, **changes}.items() if v != 'missing'}
  (path / 'config.json').write_text(json.dumps(config))
  tensors = cases.tensors() if tensors is None else tensors
  safetensors.numpy.save_file({name: np.asarray(value, value.dtype if value.dtype != np.float64
                                                else np.float32) for name, value in
                               tensors.items()}, path / 'model.safetensors')
  return path


def same(variables, others) -> None:
  ours, theirs = cases.flat(variables), cases.flat(others)
  assert set(ours) == set(theirs)
  for path, leaf in ours.items():
    np.testing.assert_array_equal(theirs[path], leaf, err_msg=path)


@pytest.fixture(scope='module')
def stock(tmp_path_factory):
  return folder(tmp_path_factory.mktemp('stock'))


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('float64', 1e-10)])
def test_what_is_loaded_computes_what_transformers_does(tmp_path, dtype, tolerance) -> None:
  """The golden file is transformers' own; test_hugging_face_parity.py compares it with them."""
  golden = np.load(cases.GOLDEN)
  tensors = {name: value.astype(dtype) for name, value in cases.tensors().items()}
  path = tmp_path / 'gpt2'
  folder(path)
  safetensors.numpy.save_file(tensors, path / 'model.safetensors')
  with jax.enable_x64(dtype == 'float64'):
    model, variables = load_gpt2(path)
    logits, taps = jax.jit(functools.partial(model.apply, taps=True))(variables, cases.TOKENS)
  hidden = [*np.asarray(taps['resid_pre']), np.asarray(taps['final'])]
  assert logits.dtype == dtype and golden['hidden'].shape == (3, 2, 11, 24)
  for found, expected in [(logits, golden['logits']), *zip(hidden, golden['hidden'], strict=True)]:
    np.testing.assert_allclose(found, expected, rtol=tolerance,
                               atol=tolerance * np.abs(expected).max())


def test_the_golden_file_tells_mistakes_apart(stock) -> None:
  """Each usual mistake of a port moves the logits far beyond the tolerance."""
  golden = np.load(cases.GOLDEN)['logits']
  model, variables = load_gpt2(stock)
  params = cases.flat(variables['params'])
  kernel = params['h/attn/c_attn/kernel']
  thirds = np.split(kernel, 3, axis=-1)
  square = params['h/attn/c_proj/kernel']
  for changed in (
      {'h/attn/c_attn/kernel': np.concatenate([thirds[1], thirds[0], thirds[2]], -1)},
      {'h/attn/c_attn/kernel': kernel.reshape(2, 24, 3, 3, 8).swapaxes(2, 3).reshape(kernel.shape)},
      {'h/attn/c_proj/kernel': square.swapaxes(1, 2)},
      {'h/ln_1/scale': params['h/ln_2/scale'], 'h/ln_2/scale': params['h/ln_1/scale']},
      {'wpe/embedding': np.roll(params['wpe/embedding'], 1, axis=0)}):
    tree = flax.traverse_util.unflatten_dict({**params, **changed}, sep='/')
    logits = cases.program(model)({'params': tree}, cases.TOKENS)
    assert np.abs(logits - golden).max() > 1e-2 * np.abs(golden).max(), list(changed)
  for attribute in ({'activation': 'gelu'}, {'eps': 1e-3}):
    other = model.clone(**attribute)
    logits = cases.program(other)(variables, cases.TOKENS)
    assert np.abs(logits - golden).max() > 1e-4 * np.abs(golden).max(), attribute


def test_the_attributes_come_from_the_config(tmp_path) -> None:
  model, _ = load_gpt2(folder(tmp_path / 'a', layer_norm_epsilon=1e12, attn_pdrop=.1))
  assert (model.eps, model.eot, model.dropout, model.tied) == (1e12, 36, .1, True)
  assert (model.vocab, model.length, model.dim, model.depth, model.heads) == (37, 16, 24, 2, 3)
  model, _ = load_gpt2(folder(tmp_path / 'a', eos_token_id=50256, embd_pdrop=0,
                              activation_function='relu'), dropout=.3, vocab=37)
  assert (model.eot, model.dropout, model.activation) == (-1, .3, 'relu')


def test_other_names_and_dtypes(tmp_path, stock) -> None:
  """No prefix, old masks, the tied matrix twice, and bfloat16, which becomes float32."""
  _, expected = load_gpt2(stock)
  tensors = {name.removeprefix('transformer.'): value for name, value in cases.tensors().items()}
  masks = {'h.0.attn.bias': np.ones((1, 1, 16, 16)), 'h.1.attn.masked_bias': np.ones(())}
  _, variables = load_gpt2(folder(tmp_path / 'a', {**tensors, **masks}))
  same(variables, expected)
  tied = {**cases.tensors(), 'lm_head.weight': cases.tensors()['transformer.wte.weight']}
  model, variables = load_gpt2(folder(tmp_path / 'b', tied))
  same(variables, expected)
  _, variables = load_gpt2(folder(tmp_path / 'c', {
    name: value.astype(ml_dtypes.bfloat16) for name, value in cases.tensors().items()}))
  for path, leaf in cases.flat(variables).items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, cases.flat(expected)[path].astype(ml_dtypes.bfloat16)
                                  .astype(np.float32))


def test_shards(tmp_path, stock) -> None:
  path = folder(tmp_path / 'a')
  (path / 'model.safetensors').unlink()
  tensors = {name: np.float32(value) for name, value in cases.tensors().items()}
  files = {name: f'model-{1 + i % 2}-of-2.safetensors' for i, name in enumerate(tensors)}
  for file in set(files.values()):
    safetensors.numpy.save_file({n: v for n, v in tensors.items() if files[n] == file}, path / file)
  index = path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': files}))
  same(load_gpt2(path)[1], load_gpt2(stock)[1])
  for wrong, part in (({'transformer.wte.weight': 'none.safetensors'}, 'none.safetensors'),
                      ({'transformer.wte.weight': '../a/model-1-of-2.safetensors'}, 'no such file'),
                      ({'transformer.wpe.weight': files['transformer.wte.weight']},
                       'transformer.wpe.weight is missing')):
    index.write_text(json.dumps({'weight_map': {**files, **wrong}}))
    refused(path, part)
  index.write_text('{}')
  refused(path, 'weight_map')


def test_a_removable_model_has_its_numbers_and_state(stock) -> None:
  model, variables = load_gpt2(stock, removable=True, positions='rest')
  assert model.removable and model.positions == 'rest'
  expected = cases.numbers(cases.build(removable=True))
  for kind in ('hp', 'norm_state'):
    same(variables[kind], expected[kind])
  same(variables['params'], load_gpt2(stock)[1]['params'])


# Writing.


def test_a_saved_model_comes_back(tmp_path, stock) -> None:
  model, variables = load_gpt2(stock)
  save_gpt2(tmp_path / 'x' / 'y', model, variables)
  written = tmp_path / 'x' / 'y'
  assert sorted(file.name for file in written.iterdir()) == ['config.json', 'model.safetensors']
  config = json.loads((written / 'config.json').read_text())
  assert config['architectures'] == ['GPT2LMHeadModel'] and config['n_inner'] == 96
  ours, theirs = (safetensors.numpy.load_file(path / 'model.safetensors')
                  for path in (written, stock))
  same(ours, theirs)
  again, others = load_gpt2(written)
  assert again == model
  same(others, variables)


def test_lora_is_merged(tmp_path) -> None:
  model = cases.build(lora_rank=2, removable=True)
  variables = cases.numbers(model)
  save_gpt2(tmp_path, model, variables)
  plain, merged = load_gpt2(tmp_path)
  ours, theirs = (cases.program(m)(v, cases.TOKENS)
                  for m, v in ((model, variables), (plain, merged)))
  np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)
  assert not plain.lora_rank


@pytest.mark.parametrize('changes, reason', [
  ({'norm': 'none', 'tied': False, 'unembed_bias': True}, "norm is 'none'"),
  ({'tied': False, 'unembed_bias': True}, 'has a bias'),
  ({'activation': 'tanh'}, "activation is 'tanh'"), ({'norm': 'rms'}, "norm is 'rms'"),
  ({'norm': 'dyt'}, "norm is 'dyt'"), ({'ffn_scale': True}, 'ffn_scale'),
  ({'attention_temperature': True}, 'attention_temperature')])
def test_what_is_not_stock_comes_back_as_it_was(tmp_path, changes, reason) -> None:
  model = cases.build(eot=36, **changes)
  assert reason in not_stock(model)
  variables = cases.numbers(model)
  save_gpt2(tmp_path, model, variables)
  # transformers looks for model.safetensors, and must not find it.
  assert sorted(file.name for file in tmp_path.iterdir()) == ['actnorm.safetensors', 'config.json']
  again, others = load_gpt2(tmp_path)
  assert again == model
  same(others, variables)


def test_an_untied_unembedding_is_stock(tmp_path) -> None:
  model = cases.build(tied=False)
  variables = cases.numbers(model)
  assert not not_stock(model)
  save_gpt2(tmp_path, model, variables)
  head = safetensors.numpy.load_file(tmp_path / 'model.safetensors')['lm_head.weight']
  np.testing.assert_array_equal(head, variables['params']['lm_head']['kernel'].T)
  again, others = load_gpt2(tmp_path)
  assert again == model
  same(others, variables)


def test_a_switched_site_is_refused(tmp_path) -> None:
  model = cases.build(removable=True)
  variables = cases.numbers(model)
  state = {**variables['norm_state'], 'calls': jnp.int32(6)}
  hp = set_hp(variables['hp'], event_v=(5, 2 ** 30), taper=0.)
  with pytest.raises(UserError, match=r'h\.0\.ln_1\.v is switched'):
    save_gpt2(tmp_path / 'a', model, {**variables, 'norm_state': state, 'hp': hp})
  assert not (tmp_path / 'a').exists()
  save_gpt2(tmp_path / 'a', model, {**variables, 'norm_state': state,
                                    'hp': set_hp(hp, event_v=(6, 6))})


def test_a_folder_with_a_config_is_complete(tmp_path, stock, monkeypatch) -> None:
  """A kill between the two files leaves no config; what the system refuses is one line."""
  model, variables = load_gpt2(stock)
  save_gpt2(tmp_path / 'a', model, variables)
  real, calls = os.replace, []

  def replace(source, target):
    calls.append(Path(target).name)
    if len(calls) == 2:
      raise OSError(28, 'No space left on device')
    real(source, target)

  monkeypatch.setattr(os, 'replace', replace)
  with pytest.raises(UserError, match='No space left') as info:
    save_gpt2(tmp_path / 'a', model, variables)
  assert '\n' not in str(info.value) and calls == ['model.safetensors', 'config.json']
  assert [file.name for file in (tmp_path / 'a').iterdir()] == ['model.safetensors']
  refused(tmp_path / 'a', 'there is no config.json')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    save_gpt2(tmp_path / 'file' / 'a', model, variables)


# What is refused.


def refused(path, part: str, **attributes) -> None:
  with pytest.raises(UserError) as info:
    load_gpt2(path, **attributes)
  assert part in str(info.value) and '\n' not in str(info.value), str(info.value)


@pytest.mark.parametrize('changes, part', [
  ({'model_type': 'gpt_neo'}, "model_type is 'gpt_neo'"),
  ({'model_type': 'missing'}, 'model_type is missing'),
  ({'n_head': 'missing'}, 'n_head is missing'),
  ({'n_layer': '2'}, "n_layer is '2'"),
  ({'n_head': 5}, 'heads=5'),
  ({'vocab_size': 38}, 'wte.weight has the shape [37, 24], and config.json asks for [38, 24]'),
  ({'n_positions': 15}, 'wpe.weight has the shape [16, 24]'),
  ({'n_layer': 3}, 'tensor transformer.h.2.'),
  ({'n_layer': 1}, 'tensor transformer.h.1.attn.c_attn.bias belongs to no place'),
  ({'activation_function': 'gelu_nw'}, "activation_function is 'gelu_nw'; nearest: 'gelu_new'"),
  ({'activation_function': 'quick_gelu'}, "activation_function is 'quick_gelu'"),
  ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
  ({'reorder_and_upcast_attn': True}, 'reorder_and_upcast_attn'),
  ({'scale_attn_weights': False}, 'scale_attn_weights'),
  ({'add_cross_attention': True}, 'add_cross_attention'),
  ({'n_inner': 90}, 'n_inner is 90'),
  ({'n_inner': 48}, 'mlp.c_fc'),
  ({'attn_pdrop': .2}, 'attn_pdrop=0.2'),
  ({'tie_word_embeddings': False}, 'lm_head.weight is missing'),
])
def test_a_wrong_config_is_one_line(tmp_path, changes, part) -> None:
  refused(folder(tmp_path / 'a', **changes), part)


@pytest.mark.parametrize('change, part', [
  (lambda t: t.pop('transformer.h.1.ln_2.bias'), 'tensor transformer.h.1.ln_2.bias is missing'),
  (lambda t: t.update({'transformer.h.0.mlp.c_fc.weight': np.zeros((96, 24))}),
   'tensor transformer.h.0.mlp.c_fc.weight has the shape [96, 24], and config.json asks for '
   '[24, 96]'),
  (lambda t: t.update({'lm_head.weight': np.zeros((37, 24))}),
   'lm_head.weight differs from wte.weight'),
  (lambda t: t.update({'score.weight': np.zeros(3)}), 'score.weight belongs to no place'),
  (lambda t: t.update({'transformer.ln_f.bias': np.zeros(24, np.int32)}),
   'transformer.ln_f.bias is of type int32'),
])
def test_a_wrong_tensor_is_one_line(tmp_path, change, part) -> None:
  tensors = cases.tensors()
  change(tensors)
  refused(folder(tmp_path / 'a', tensors), part)


def test_a_broken_file_is_one_line(tmp_path) -> None:
  path = folder(tmp_path / 'a') / 'model.safetensors'
  whole = path.read_bytes()
  for size, part in ((len(whole) - 1, 'is truncated: tensor transformer.'),
                     (1000, 'is truncated: its header'), (5, 'is truncated: its header')):
    path.write_bytes(whole[:size])
    refused(path.parent, part)
  path.write_bytes(whole[:8] + b'x' + whole[9:])
  refused(path.parent, 'model.safetensors')
  (path.parent / 'config.json').write_text('{')
  refused(path.parent, 'is no JSON')


def test_what_is_no_folder_of_safetensors_is_one_line(tmp_path, stock) -> None:
  refused(tmp_path / 'none', 'no such folder')
  path = folder(tmp_path / 'a')
  (path / 'model.safetensors').unlink()
  refused(path, 'there is no model.safetensors')
  (path / 'pytorch_model.bin').write_bytes(b'')
  refused(path, 'pytorch_model.bin is a pickle')
  (path / 'config.json').unlink()
  refused(path, 'there is no config.json')
  refused(stock, "nearest: 'removable'", removble=True)
  refused(stock, 'vocab_size makes vocab=37, and 257 is asked for', vocab=257)


def test_the_hub_is_asked_only_by_name(monkeypatch, stock) -> None:
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  refused('hf:openai-community/gpt2', 'needs the package huggingface_hub')
  asked = []

  def download(name, allow_patterns):
    asked.append((name, allow_patterns))
    if name == 'no/where':
      raise OSError('no connection\nand more')
    return str(stock)

  monkeypatch.setitem(sys.modules, 'huggingface_hub',
                      types.SimpleNamespace(snapshot_download=download))
  same(load_gpt2('hf:a/b')[1], load_gpt2(stock)[1])
  assert asked == [('a/b', ['config.json', '*.safetensors', '*.safetensors.index.json'])]
  refused('hf:no/where', 'hf:no/where: cannot be downloaded: no connection')


def test_reading_needs_neither_torch_nor_transformers() -> None:
  code = ('import sys; sys.modules["torch"] = sys.modules["transformers"] = None; '
          'import model_lib.interop')
  subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[2])
