"""GPT-2's byte-pair encoding, from its two public files encoder.json and vocab.bpe.

Radford et al., 'Language Models are Unsupervised Multitask Learners' (2019). Text is cut
into words by a pattern over Unicode classes; the UTF-8 bytes of a word are written as 256
printable characters and merged pair by pair, the pair of lowest rank first.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from data.errors import DataError

# Unicode's White_Space property. Python's own \s also takes U+001C..U+001F, which the
# published pattern treats as symbols.
_SPACE = '\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000'


@functools.cache
def byte_characters() -> tuple[str, ...]:
  """The printable character that stands for each byte 0..255.

  Bytes that are printable in Latin-1 stand for themselves; the other 68 take the
  characters from U+0100 on, in the order of the bytes.
  """
  own = {*range(ord('!'), ord('~') + 1), *range(0xa1, 0xad), *range(0xae, 0x100)}
  others = iter(range(0x100, 0x200))
  return tuple(chr(b if b in own else next(others)) for b in range(256))


@functools.cache
def word_pattern() -> re.Pattern[str]:
  r"""The word pattern of GPT-2 for the standard library's `re`.

  In the notation of engines that know Unicode properties it reads
  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ ;
  here \p{L} and \p{N} are written out as ranges from `unicodedata`.
  """
  letter, number = _ranges('L'), _ranges('N')
  return re.compile(
      r"'(?:s|t|re|ve|m|ll|d)"
      f'| ?[{letter}]+| ?[{number}]+| ?[^{_SPACE}{letter}{number}]+'
      f'|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+')


def _ranges(category: str) -> str:
  """A character-class body with all code points whose general category starts so."""
  body, start = [], None
  for point in range(sys.maxunicode + 2):
    inside = point <= sys.maxunicode and unicodedata.category(chr(point))[0] == category
    if inside and start is None:
      start = point
    elif not inside and start is not None:
      body.append(f'\\U{start:08x}-\\U{point - 1:08x}')
      start = None
  return ''.join(body)


class GPT2Tokenizer:
  """Encodes and decodes text.

  Args:
    encoder: token (in byte characters) -> number, numbers 0..n-1.
    merges: pairs of tokens, best first.
  """

  def __init__(self, encoder: Mapping[str, int], merges: Sequence[tuple[str, str]]):
    self._encoder = dict(encoder)
    self._decoder = {number: token for token, number in self._encoder.items()}
    self._ranks = {pair: rank for rank, pair in enumerate(merges)}
    self._characters = byte_characters()
    self._bytes = {c: b for b, c in enumerate(self._characters)}
    self._words: dict[str, tuple[int, ...]] = {}

  @classmethod
  def from_directory(cls, path: str | pathlib.Path) -> GPT2Tokenizer:
    """Reads encoder.json and vocab.bpe.

    Raises:
      DataError: a file is missing or is not what it should be.
    """
    path = pathlib.Path(path)
    encoder_path, merges_path = path / 'encoder.json', path / 'vocab.bpe'
    try:
      encoder = json.loads(encoder_path.read_text(encoding='utf-8'))
      lines = merges_path.read_text(encoding='utf-8').split('\n')
    except OSError as e:
      raise DataError(f'{e.filename}: cannot be read ({e.strerror}); GPT-2 BPE needs '
                      'encoder.json and vocab.bpe') from e
    except ValueError as e:
      raise DataError(f'{encoder_path}: cannot be decoded ({e})') from e
    if not isinstance(encoder, dict) or sorted(
        v for v in encoder.values() if type(v) is int) != list(range(len(encoder))):
      raise DataError(f'{encoder_path}: not a mapping of tokens to the numbers 0..n-1')
    for character in byte_characters():
      if character not in encoder:
        raise DataError(f'{encoder_path}: has no token for the byte character {character!r}')
    first = 1 if lines[0].startswith('#version') else 0
    merges = []
    for number, line in enumerate(lines[first:], start=first + 1):
      if line:
        pair = tuple(line.split(' '))
        if len(pair) != 2 or ''.join(pair) not in encoder:
          raise DataError(f'{merges_path}: line {number} is no pair that merges to a token '
                          f'of encoder.json: {line!r}')
        merges.append(pair)
    return cls(encoder, merges)

  @property
  def vocab(self) -> int:
    """Number of tokens."""
    return len(self._encoder)

  def encode(self, text: str) -> np.ndarray:
    """Token numbers of `text`, int32 [length]. '<|endoftext|>' in a text is plain text."""
    tokens: list[int] = []
    words = self._words
    for match in word_pattern().finditer(text):
      word = match.group()
      numbers = words.get(word)
      if numbers is None:
        numbers = words[word] = self._encode_word(word)
      tokens.extend(numbers)
    return np.asarray(tokens, np.int32)

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of token numbers; bytes that are no UTF-8 become U+FFFD."""
    characters = ''.join(self._decoder[int(t)] for t in tokens)
    return bytes(self._bytes[c] for c in characters).decode('utf-8', errors='replace')

  def _encode_word(self, word: str) -> tuple[int, ...]:
    parts = [self._characters[b] for b in word.encode('utf-8')]
    while len(parts) > 1:
      pairs = list(zip(parts, parts[1:]))
      best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
      if best not in self._ranks:
        break
      merged, i = [], 0
      while i < len(parts):
        if i < len(pairs) and pairs[i] == best:
          merged.append(parts[i] + parts[i + 1])
          i += 2
        else:
          merged.append(parts[i])
          i += 1
      parts = merged
    return tuple(self._encoder[part] for part in parts)
