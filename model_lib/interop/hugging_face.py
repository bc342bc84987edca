"""GPT-2 models from and to folders of Hugging Face's transformers.

  model, variables = load_gpt2('gpt2-small')          a folder: config.json and model.safetensors
  model, variables = load_gpt2('hf:openai-community/gpt2', removable=True)
  save_gpt2('folder', model, variables)

A model that transformers' GPT2LMHeadModel can compute (`not_stock` gives the reason why not) is
written as such, and `from_pretrained` loads it. Any other, such as one whose norms are folded into
its kernels (stock GPT-2 has no way to leave out a norm, nor a bias of the unembedding), is written
with the same names in actnorm.safetensors, with `model_type` actnorm_gpt2 and the attributes of
the model in config.json: transformers then ends with an error, where it would otherwise fill in
norms of its own and compute something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import os
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from model_lib import models
from model_lib.errors import UserError
from model_lib.interop.tensor_folder import CONFIG, TensorFolder, write
from model_lib.models import removable
from model_lib.models.dense import merged
from model_lib.models.gpt2 import GPT2
from model_lib.spec import nearest

STOCK_FILE, OWN_FILE = 'model.safetensors', 'actnorm.safetensors'
OWN_TYPE = 'actnorm_gpt2'
HUB = 'hf:'

# Attribute -> field of the config.
_SIZES = {'vocab': 'vocab_size', 'length': 'n_positions', 'dim': 'n_embd', 'depth': 'n_layer',
          'heads': 'n_head'}
_ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu',
                'relu': 'relu', 'silu': 'silu', 'swish': 'silu'}
_DROPOUTS = ('embd_pdrop', 'attn_pdrop', 'resid_pdrop')
# What the model computes; a field that says otherwise changes the function.
_REQUIRED = {'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
             'reorder_and_upcast_attn': False, 'add_cross_attention': False}
# Masks that old files carry.
_SKIPPED = ('.attn.bias', '.attn.masked_bias')
_PREFIX = 'transformer.'
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}


def load_gpt2(path: str | os.PathLike[str], **attributes) -> tuple[GPT2, dict[str, Any]]:
  """The model and the variables of a folder.

  Names with and without the prefix `transformer.` are read, and old mask buffers skipped. Numbers
  narrower than float32 become float32. lm_head.weight may be absent, or equal to wte.weight;
  one of its own needs tie_word_embeddings false.

  Args:
    path: a folder, or 'hf:OWNER/NAME' for one of the Hugging Face hub, which needs the package
      huggingface_hub (nothing else here uses the network).
    **attributes: of GPT2, beside those that the folder decides, such as removable=True or
      dropout=0.0. A size given here must be the folder's.

  Returns:
    The model, and its variables: params, with removable=True also hp and norm_state.

  Raises:
    UserError: no such folder; a pickle; a config of another architecture; a tensor that is
      missing, unknown, cut off or of another shape. One line that names the tensor or field.
  """
  if str(path).startswith(HUB):
    path = _download(str(path)[len(HUB):])
  folder = TensorFolder(path, (STOCK_FILE, OWN_FILE))
  given = _attributes(folder, attributes)
  names = {name.removeprefix(_PREFIX): name for name in folder.names
           if not name.endswith(_SKIPPED)}
  tied = given['tied']
  model = models.build('gpt2', **given)

  def first():
    return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

  shapes = jax.eval_shape(first)
  expected = flax.traverse_util.flatten_dict(shapes['params'], sep='/')
  params = {}
  for leaf, shape in expected.items():
    parts = []
    for name, one in _tensors(leaf, shape.shape):
      found = names.pop(name, f'{_PREFIX}{name}' if not name.startswith('lm_head') else name)
      parts.append(_wide(folder.read(found, one)))
    value = np.stack(parts) if leaf.startswith('h/') else parts[0]
    params[leaf] = jnp.asarray(value.T if leaf == 'lm_head/kernel' else value)
  if tied and 'lm_head.weight' in names:
    head = _wide(folder.read(names.pop('lm_head.weight'), expected['wte/embedding'].shape))
    if not np.array_equal(head, np.asarray(params['wte/embedding'])):
      raise UserError(f'{folder.path}: tensor lm_head.weight differs from wte.weight, and '
                      f'{CONFIG} says tie_word_embeddings: true; set it to false')
  if names:
    raise UserError(f'{folder.path}: tensor {min(names.values())} belongs to no place of the '
                    f'model that {CONFIG} describes')
  rest = {}
  if len(shapes) > 1:
    # Swept numbers and state; the compiler leaves out the parameters, which nothing reads.
    rest = jax.jit(lambda: {kind: tree for kind, tree in first().items() if kind != 'params'})()
  return model, {'params': flax.traverse_util.unflatten_dict(params, sep='/'), **rest}


def save_gpt2(path: str | os.PathLike[str], model: GPT2, variables: Mapping[str, Any]) -> None:
  """Writes a model as a folder that `load_gpt2` reads, and transformers if it is stock GPT-2.

  LoRA's products are added to their kernels. Of a stock model the config keeps what transformers
  knows; `removable` and its settings are the loader's to give again. A kill leaves the old
  folder, or one without config.json.

  Raises:
    UserError: a norm site is switched, wholly or in part, so that the parameters alone are another
      function; or the folder cannot be written.
  """
  switched = [site for site, g in removable.gates(variables).items() if g != 1]
  if switched:
    raise UserError(f'{path}: the norm site {switched[0]} is switched, which parameters alone do '
                    'not say; fold the norms first')
  params = flax.traverse_util.flatten_dict(
    merged(jax.tree.map(np.asarray, dict(variables['params']))), sep='/')
  model = model.clone(lora_rank=0, removable=False, adaptive=0)
  tensors = {}
  for leaf, value in params.items():
    value = value.T if leaf == 'lm_head/kernel' else value
    for i, (name, _) in enumerate(_tensors(leaf, params[leaf].shape)):
      full = name if name.startswith('lm_head') else _PREFIX + name
      tensors[full] = value[i] if leaf.startswith('h/') else value
  stock = not not_stock(model)
  write(path, _config(model, stock), STOCK_FILE if stock else OWN_FILE, tensors,
        (STOCK_FILE, OWN_FILE))


def not_stock(model: GPT2) -> str:
  """Why transformers' GPT2LMHeadModel cannot compute the model, '' if it can."""
  if model.norm != 'layer':
    return f'its norm is {model.norm!r}'
  if model.activation not in _ACTIVATIONS.values():
    return f'its activation is {model.activation!r}'
  if model.final_norm:
    return f'its final norm is {model.final_norm!r}'
  if model.unembed_bias:
    return 'its unembedding has a bias'
  for name in ('ffn_scale', 'attention_temperature', 'entropy_regularized'):
    if getattr(model, name):
      return f'it has {name}'
  return ''


def _tensors(leaf: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Names (without prefix) and shapes of the tensors that a leaf of the parameters is stacked of.

  Kernels of the blocks are [in, out] in both (transformers' Conv1D); the unembedding is a Linear,
  [out, in] there.
  """
  *places, last = leaf.split('/')
  if places[0] == 'h':
    tail = '.'.join([*places[1:], _LEAVES.get(last, last)])
    yield from ((f'h.{i}.{tail}', shape[1:]) for i in range(shape[0]))
  else:
    yield ('.'.join([*places, _LEAVES.get(last, last)]),
           shape[::-1] if leaf == 'lm_head/kernel' else shape)


def _wide(value: np.ndarray) -> np.ndarray:
  return value if value.dtype.itemsize >= 4 else value.astype(np.float32)


def _attributes(folder: TensorFolder, given: Mapping[str, Any]) -> dict[str, Any]:
  """The attributes of the model: the folder's, then what is given."""
  known = {field.name for field in dataclasses.fields(GPT2)} - {'parent', 'name'}
  for name in given:
    if name not in known:
      raise UserError(f'gpt2 has no attribute {name!r}{nearest(name, known)}')
  kind = folder.field('model_type', str)
  if kind == OWN_TYPE:
    fixed = folder.field('attributes', dict)
    free = {}
  elif kind == 'gpt2':
    fixed, free = _stock_attributes(folder, given)
  else:
    raise UserError(f'{folder.path / CONFIG}: model_type is {kind!r}, and only gpt2 is read here')
  for name, value in given.items():
    if name in fixed and fixed[name] != value and name != 'dtype':
      field = _SIZES.get(name, name)
      raise UserError(f'{folder.path / CONFIG}: {field} makes {name}={fixed[name]!r}, and '
                      f'{value!r} is asked for')
  return {**fixed, **free, **given}


def _stock_attributes(folder: TensorFolder,
                      given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """What a config of transformers fixes, and what it proposes."""
  where = folder.path / CONFIG
  for name, value in _REQUIRED.items():
    if folder.field(name, bool, value) != value:
      raise UserError(f'{where}: {name} is {not value}, which is another attention than that of '
                      f'GPT-2; only {value} is read here')
  fixed: dict[str, Any] = {name: folder.field(field, int) for name, field in _SIZES.items()}
  activation = folder.field('activation_function', str, 'gelu_new')
  if activation not in _ACTIVATIONS:
    raise UserError(f'{where}: activation_function is {activation!r}'
                    f'{nearest(activation, _ACTIVATIONS)}; there are: {", ".join(_ACTIVATIONS)}')
  inner = folder.field('n_inner', int, 4 * fixed['dim'])
  if inner % fixed['dim']:
    raise UserError(f'{where}: n_inner is {inner}, no multiple of n_embd={fixed["dim"]}')
  fixed |= {'activation': _ACTIVATIONS[activation], 'mlp_ratio': inner // fixed['dim'],
            'norm': 'layer', 'eps': folder.field('layer_norm_epsilon', float, 1e-5),
            'tied': folder.field('tie_word_embeddings', bool, True)}
  rates = {field: folder.field(field, float, 0.1) for field in _DROPOUTS}
  if len(set(rates.values())) > 1 and 'dropout' not in given:
    raise UserError(f'{where}: {", ".join(f"{k}={v:g}" for k, v in rates.items())} are different '
                    'rates, and the model has one; give dropout=')
  eot = folder.config.get('eos_token_id')
  inside = type(eot) is int and 0 <= eot < fixed['vocab']
  return fixed, {'dropout': rates[_DROPOUTS[0]], 'eot': eot if inside else -1}


def _config(model: GPT2, stock: bool) -> dict[str, Any]:
  eot = model.eot if model.eot >= 0 else None
  fields = {
    **{field: getattr(model, name) for name, field in _SIZES.items()},
    'n_inner': model.mlp_ratio * model.dim, 'layer_norm_epsilon': model.eps,
    'tie_word_embeddings': model.tied, 'bos_token_id': eot, 'eos_token_id': eot,
    **dict.fromkeys(_DROPOUTS, model.dropout)}
  if stock:
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {**fields, **_REQUIRED, 'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'],
            'activation_function': names[model.activation]}
  attributes = {field.name: getattr(model, field.name) for field in dataclasses.fields(GPT2)
                if field.name not in ('parent', 'name')}
  return {**fields, 'model_type': OWN_TYPE, 'architectures': ['ActnormGPT2'],
          'attributes': attributes}


def _download(name: str) -> str:
  """The local folder of a repository of the Hugging Face hub, safetensors and configs only."""
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(f'{HUB}{name} needs the package huggingface_hub: pip install '
                    'huggingface_hub, or give a folder') from None
  try:
    return huggingface_hub.snapshot_download(
      name, allow_patterns=[CONFIG, '*.safetensors', '*.safetensors.index.json'])
  except (OSError, ValueError) as error:  # no connection, no such repository, no such name
    reason = str(error).strip().splitlines()
    raise UserError(f'{HUB}{name}: cannot be downloaded: '
                    f'{reason[0] if reason else type(error).__name__}') from None
