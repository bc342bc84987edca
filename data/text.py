"""Text and token files as token arrays.

A source is one file, or a directory with one file each whose name contains 'train',
'valid' and 'test'. A single file is cut by position, 90 / 5 / 5 %. Tokens are bytes,
GPT-2 byte pairs, or, from .npy files, the numbers that stand in them.
"""

from __future__ import annotations

import pathlib

import numpy as np

from data.bpe import GPT2Tokenizer
from data.errors import DataError

SPLITS = ('train', 'validation', 'test')
RECORD = 1 << 16  # tokens per record: large enough to be cheap, small enough to seek in


def read_text(
    source: pathlib.Path, tokenizer: str = 'bytes', bpe: pathlib.Path | None = None
) -> tuple[dict[str, list[np.ndarray]], int, str]:
  """Reads and tokenizes a source.

  Args:
    source: file or directory, as described above.
    tokenizer: 'bytes' or 'gpt2'.
    bpe: directory of encoder.json and vocab.bpe, for 'gpt2'.

  Returns:
    (split -> records of at most `RECORD` tokens, number of different tokens, what a token
    is). Tokens are uint8 up to 256 different ones, uint16 up to 65,536, else int32.

  Raises:
    DataError: missing, empty or undecodable files.
  """
  if source.is_dir():
    paths = {split: _find(source, split) for split in SPLITS}
  elif source.is_file():
    paths = {'all': source}
  else:
    raise DataError(f'{source}: no such file or directory')
  suffixes = {path.suffix == '.npy' for path in paths.values()}
  if len(suffixes) > 1:
    raise DataError(f'{source}: .npy and text files cannot be mixed')
  if suffixes == {True}:
    tokens = {split: _read_numbers(path) for split, path in paths.items()}
    vocab = 1 + max(int(t.max()) for t in tokens.values())
    form = 'token numbers'
  else:
    encode, vocab = _encoder(tokenizer, bpe)
    tokens = {split: encode(_read_bytes(path), path) for split, path in paths.items()}
    form = 'bytes' if tokenizer == 'bytes' else 'GPT-2 byte pairs'
  if 'all' in tokens:
    whole = tokens['all']
    tokens = dict(zip(SPLITS, np.split(whole, [len(whole) * 18 // 20, len(whole) * 19 // 20])))
    if not all(map(len, tokens.values())):
      raise DataError(f'{source}: {len(whole)} tokens are too few to cut into three splits')
  dtype = np.uint8 if vocab <= 256 else np.uint16 if vocab <= 65_536 else np.int32
  records = {}
  for split, array in tokens.items():
    array = array.astype(dtype)
    records[split] = [array[i:i + RECORD] for i in range(0, len(array), RECORD)]
  return records, vocab, form


def _encoder(tokenizer, bpe):
  """(bytes and path -> token array, number of different tokens)."""
  if tokenizer == 'bytes':
    return lambda content, path: np.frombuffer(content, np.uint8), 256
  if bpe is None:
    raise DataError('--tokenizer=gpt2 needs --bpe=DIR, the directory of encoder.json and '
                    'vocab.bpe')
  gpt2 = GPT2Tokenizer.from_directory(bpe)

  def encode(content, path):
    try:
      return gpt2.encode(content.decode('utf-8'))
    except UnicodeDecodeError as e:
      raise DataError(f'{path}: no UTF-8 text at byte {e.start}; use --tokenizer=bytes') from e

  return encode, gpt2.vocab


def _find(source: pathlib.Path, split: str) -> pathlib.Path:
  part = 'valid' if split == 'validation' else split
  found = sorted(p for p in source.iterdir() if p.is_file() and part in p.name)
  if len(found) != 1:
    names = ', '.join(p.name for p in found) or 'none'
    raise DataError(f'{source}: needs exactly one file with {part!r} in its name, '
                    f'there are {len(found)}: {names}')
  return found[0]


def _read_bytes(path: pathlib.Path) -> bytes:
  try:
    content = path.read_bytes()
  except OSError as e:
    raise DataError(f'{path}: cannot be read ({e.strerror or e})') from e
  if not content:
    raise DataError(f'{path}: is empty')
  return content


def _read_numbers(path: pathlib.Path) -> np.ndarray:
  """The token numbers that a .npy file holds, int64 [length]."""
  try:
    array = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as e:
    raise DataError(f'{path}: cannot be read as .npy ({str(e).splitlines()[0]})') from e
  if array.ndim != 1 or array.dtype.kind not in 'iu' or not array.size:
    raise DataError(f'{path}: must hold one axis of integers, has {array.dtype} '
                    f'{list(array.shape)}')
  if int(array.min()) < 0 or int(array.max()) >= 2**31:
    raise DataError(f'{path}: token numbers must lie in 0..2^31-1, found '
                    f'{int(array.min())}..{int(array.max())}')
  return array.astype(np.int64)
