"""A folder with config.json and tensors in safetensors files, read and written with clear errors.

Tensors are in one file, or in several with an index ('weight_map': tensor -> file) as Hugging Face
writes them. Every error is a `UserError` of one line that names the file, and the tensor or field.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from pathlib import Path
import struct
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from model_lib.errors import UserError

CONFIG = 'config.json'
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')


class TensorFolder:
  """The config and the tensors of a folder; tensors are read one by one, when asked for.

  Args:
    path: of the folder.
    files: names of the single file that holds all tensors; the first that exists counts.
  """

  def __init__(self, path: str | os.PathLike[str], files: tuple[str, ...]):
    self.path = Path(path)
    if not self.path.is_dir():
      raise UserError(f'{self.path}: there is no such folder')
    self.config = _read_json(self.path / CONFIG)
    self._files = self._find(files)

  def _find(self, files: tuple[str, ...]) -> dict[str, Path]:
    """tensor -> the file that holds it."""
    single = next((self.path / name for name in files if (self.path / name).is_file()), None)
    if single is not None:
      return dict.fromkeys(_names(single), single)
    index = self.path / f'{files[0]}.index.json'
    if not index.is_file():
      pickles = sorted(file.name for pattern in _PICKLES for file in self.path.glob(pattern))
      if pickles:
        raise UserError(f'{self.path}: {pickles[0]} is a pickle, which can run code when it is '
                        'read; convert it to safetensors')
      raise UserError(f'{self.path}: there is no {files[0]} and no {index.name}')
    where = _read_json(index).get('weight_map')
    if not isinstance(where, dict):
      raise UserError(f'{index}: weight_map is missing')
    held: dict[str, set[str]] = {}
    for name, file in where.items():
      # A file elsewhere is none of this folder's.
      if not isinstance(file, str) or Path(file).name != file or not (self.path / file).is_file():
        raise UserError(f'{index}: {name} is in {file!r}, and there is no such file')
      if file not in held:
        held[file] = set(_names(self.path / file))
      if name not in held[file]:
        raise UserError(f'{self.path / file}: tensor {name} is missing, which {index.name} '
                        'places there')
    return {name: self.path / file for name, file in where.items()}

  @property
  def names(self) -> tuple[str, ...]:
    """The names of all tensors."""
    return tuple(self._files)

  def field(self, name: str, kind: type, default: Any = None) -> Any:
    """A field of the config; UserError if it is missing without a default, or of another type."""
    value = self.config.get(name)
    value = default if value is None else value  # null stands for the default
    if value is None:
      raise UserError(f'{self.path / CONFIG}: {name} is missing')
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      raise UserError(f'{self.path / CONFIG}: {name} is {value!r}, and not of type '
                      f'{kind.__name__}')
    return value

  def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in its own dtype; UserError if it is missing, of another shape, or no float."""
    if name not in self._files:
      raise UserError(f'{self.path}: tensor {name} is missing')
    with safetensors.safe_open(self._files[name], 'numpy') as file:
      found = tuple(file.get_slice(name).get_shape())
      if found != shape:
        raise UserError(f'{self._files[name]}: tensor {name} has the shape {list(found)}, and '
                        f'{CONFIG} asks for {list(shape)}')
      value = file.get_tensor(name)
    if value.dtype.name not in ('float64', 'float32', 'float16', 'bfloat16'):
      raise UserError(f'{self._files[name]}: tensor {name} is of type {value.dtype}, and not '
                      'floating-point')
    return value


def write(path: str | os.PathLike[str], config: Mapping[str, Any], file: str,
          tensors: Mapping[str, np.ndarray], replaced: tuple[str, ...] = ()) -> None:
  """Writes a folder, each file under a temporary name first.

  The config comes last, and an old one goes first: a folder with a config is complete. `replaced`
  names the files that the folder may have held its tensors in before, which go.

  Raises:
    UserError: the system refuses; the message names the path.
  """
  path = Path(path)
  temporary = path / f'.{file}.partial'
  try:
    path.mkdir(parents=True, exist_ok=True)
    # The metadata is what transformers looks for.
    safetensors.numpy.save_file(
      {name: np.asarray(value, order='C') for name, value in tensors.items()}, temporary,
      metadata={'format': 'pt'})
    (path / CONFIG).unlink(missing_ok=True)
    for name in replaced:
      (path / name).unlink(missing_ok=True)
    os.replace(temporary, path / file)
    temporary = path / f'.{CONFIG}.partial'
    temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    os.replace(temporary, path / CONFIG)
  except (OSError, safetensors.SafetensorError) as error:
    if temporary.is_file():
      temporary.unlink()
    raise UserError(f'{path}: cannot be written: {error}') from None


def _read_json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    raise UserError(f'{path.parent}: there is no {path.name}')
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f'{path}: is no JSON: {error}') from None
  if not isinstance(found, dict):
    raise UserError(f'{path}: is no JSON object')
  return found


def _names(path: Path) -> list[str]:
  """The tensors of a safetensors file."""
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return list(file.keys())
  except safetensors.SafetensorError as error:
    raise UserError(f'{path}: {_cut(path) or error}') from None


def _cut(path: Path) -> str:
  """Which tensor a truncated file lacks; '' where the file is broken otherwise.

  A file is the length of a JSON header in 8 bytes, the header with each tensor's place behind it,
  then the tensors.
  """
  size = path.stat().st_size
  with path.open('rb') as file:
    start = file.read(8)
    length, = struct.unpack('<Q', start) if len(start) == 8 else (size,)
    if 8 + length > size:
      return f'is truncated: its header ends behind its {size} bytes'
    try:
      header = json.loads(file.read(length))
      ends = {name: 8 + length + entry['data_offsets'][1] for name, entry in header.items()
              if name != '__metadata__'}
    except (ValueError, TypeError, KeyError, IndexError):
      return ''
  late = sorted((end, name) for name, end in ends.items() if end > size)
  return late and (f'is truncated: tensor {late[0][1]} ends at byte {late[0][0]} of {size}') or ''
