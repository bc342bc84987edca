"""Text as bytes, as GPT-2 byte pairs and as given numbers."""
from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from data.bpe import GPT2Tokenizer, byte_characters, word_pattern
from data.errors import DataError
from data.text import RECORD, read_text
from tests.data.make_files import write_bpe

MERGES = [
  ('h', 'e'), ('l', 'l'), ('he', 'll'), ('hell', 'o'), ('Ġ', 'w'), ('Ġw', 'o'), ('l', 'o')]


@pytest.mark.parametrize('text, words', [
  ("I'm here, they'll've", ['I', "'m", ' here', ',', ' they', "'ll", "'ve"]),
  ("don'T 's", ['don', "'", 'T', " '", 's']),
  ('a  b   ', ['a', ' ', ' b', '   ']),
  ('x\n\n  y', ['x', '\n\n ', ' y']),
  ('tab\tq', ['tab', '\t', 'q']),
  ('abc123 45.6', ['abc', '123', ' 45', '.', '6']),
  ('snake_case', ['snake', '_', 'case']),
  ('na\u00efve \u4e2d\u6587 \u2166\u00bd', ['na\u00efve', ' \u4e2d\u6587', ' \u2166\u00bd']),
  ('e\u0301', ['e', '\u0301']),  # a combining mark is neither letter nor number
  ('a\x1c!b', ['a', '\x1c!', 'b']),  # no white space to Unicode, unlike str.isspace
  ('a\u00a0\u3000b', ['a', '\u00a0', '\u3000', 'b']),
])
def test_words(text, words):
  assert word_pattern().findall(text) == words


@given(st.text(alphabet=st.characters(exclude_categories=['Cs'])))
def test_words_lose_nothing_and_do_not_mix_classes(text):
  words = word_pattern().findall(text)
  assert ''.join(words) == text
  for word in words:
    kinds = {unicodedata.category(c)[0] for c in word.removeprefix(' ')} & {'L', 'N'}
    assert len(kinds) < 2


def test_byte_characters_are_a_printable_bijection():
  characters = byte_characters()
  assert len(set(characters)) == 256
  assert not any(c.isspace() or unicodedata.category(c).startswith('C') for c in characters)
  assert characters[ord(' ')] == 'Ġ' and characters[ord('A')] == 'A'
  assert characters[10] == 'Ċ'


def test_merges_by_rank(tmp_path):
  write_bpe(tmp_path / 'b', MERGES)
  gpt2 = GPT2Tokenizer.from_directory(tmp_path / 'b')
  assert gpt2.vocab == 256 + len(MERGES)
  number = {a + b: 256 + i for i, (a, b) in enumerate(MERGES)}
  first = {c: i for i, c in enumerate(byte_characters())}
  # 'llo': ('l', 'l') ranks before ('l', 'o'), although 'lo' alone is a token too.
  assert gpt2.encode('hello llo wo').tolist() == [
    number['hello'], first['Ġ'], number['ll'], first['o'], number['Ġwo']]
  assert gpt2.encode('').shape == (0,)


@given(st.text(alphabet=st.characters(exclude_categories=['Cs']), max_size=40))
def test_decode_inverts_encode(text):
  characters = byte_characters()
  merges = [pair for pair in MERGES]
  tokens = [*characters, *(a + b for a, b in merges)]
  gpt2 = GPT2Tokenizer({t: i for i, t in enumerate(tokens)}, merges)
  assert gpt2.decode(gpt2.encode(text)) == text


def test_damaged_bpe_files(tmp_path):
  with pytest.raises(DataError, match='encoder.json: cannot be read'):
    GPT2Tokenizer.from_directory(tmp_path)
  write_bpe(tmp_path / 'b', MERGES)
  merges = tmp_path / 'b' / 'vocab.bpe'
  merges.write_text(merges.read_text(encoding='utf-8') + 'q z\n', encoding='utf-8')
  with pytest.raises(DataError, match="line 9 is no pair .*'q z'"):
    GPT2Tokenizer.from_directory(tmp_path / 'b')
  encoder = tmp_path / 'b' / 'encoder.json'
  for content, part in (('{"a": 0', 'cannot be decoded'), ('{"a": 1}', 'not a mapping'),
                        ('{"a": 0}', 'no token for the byte character')):
    encoder.write_text(content, encoding='utf-8')
    with pytest.raises(DataError, match=part) as error:
      GPT2Tokenizer.from_directory(tmp_path / 'b')
    assert '\n' not in str(error.value)


def join(records):
  return {split: np.concatenate(parts) for split, parts in records.items()}


def test_one_file_is_cut_by_position(tmp_path):
  content = bytes(range(256)) * 800
  (tmp_path / 'a.txt').write_bytes(content)
  records, vocab, _ = read_text(tmp_path / 'a.txt')
  assert vocab == 256
  assert max(len(r) for parts in records.values() for r in parts) == RECORD
  tokens = join(records)
  assert b''.join(tokens[s].tobytes() for s in ('train', 'validation', 'test')) == content
  assert [len(t) for t in tokens.values()] == [184320, 10240, 10240]


def test_directory_with_three_files(tmp_path):
  for split in ('train', 'valid', 'test'):
    (tmp_path / f'wiki.{split}.tokens').write_text(f'{split} \u00e9', encoding='utf-8')
  tokens = join(read_text(tmp_path)[0])
  assert tokens['validation'].tobytes() == 'valid \u00e9'.encode()
  (tmp_path / 'old.test.tokens').write_text('x', encoding='utf-8')
  with pytest.raises(DataError, match="exactly one file with 'test'.* there are 2"):
    read_text(tmp_path)


def test_gpt2_tokens_keep_the_text(tmp_path):
  write_bpe(tmp_path / 'b', MERGES)
  text = 'hello world, hello \u00fcber ' * 20
  (tmp_path / 'a.txt').write_text(text, encoding='utf-8')
  records, vocab, _ = read_text(tmp_path / 'a.txt', 'gpt2', tmp_path / 'b')
  tokens = np.concatenate([r for parts in records.values() for r in parts])
  assert tokens.dtype == np.uint16 and vocab == 263 and len(tokens) < len(text.encode())
  assert GPT2Tokenizer.from_directory(tmp_path / 'b').decode(tokens) == text


def test_numbers_from_npy(tmp_path):
  numbers = np.arange(70_000)[::-1]
  np.save(tmp_path / 'ids.npy', numbers)
  records, vocab, _ = read_text(tmp_path / 'ids.npy')
  found = np.concatenate([r for parts in records.values() for r in parts])
  np.testing.assert_array_equal(found, numbers)
  assert vocab == 70_000 and found.dtype == np.int32


@pytest.mark.parametrize('make, options, part', [
  (lambda p: p.write_bytes(b''), {}, 'is empty'),
  (lambda p: p.write_bytes(b'abc'), {}, '3 tokens are too few'),
  (lambda p: p.write_bytes(b'ab\xffcd'), {'tokenizer': 'gpt2'}, 'no UTF-8 text at byte 2'),
  (lambda p: None, {}, 'no such file'),
])
def test_bad_text(tmp_path, make, options, part):
  if options:
    write_bpe(tmp_path / 'b', MERGES)
    options = {**options, 'bpe': tmp_path / 'b'}
  path = tmp_path / 'a.txt'
  make(path)
  with pytest.raises(DataError, match=part) as error:
    read_text(path, **options)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('array, part', [
  (np.zeros((2, 2), np.int32), r'one axis of integers, has int32 \[2, 2\]'),
  (np.zeros(5, np.float32), 'one axis of integers, has float32'),
  (np.asarray([3, -1, 2]), r'must lie in 0..2\^31-1, found -1..3'),
  (np.asarray([{}]), 'cannot be read as .npy'),
])
def test_bad_numbers(tmp_path, array, part):
  np.save(tmp_path / 'ids.npy', array, allow_pickle=True)
  with pytest.raises(DataError, match=part):
    read_text(tmp_path / 'ids.npy')


def test_gpt2_needs_its_files(tmp_path):
  (tmp_path / 'a.txt').write_text('hello')
  with pytest.raises(DataError, match='needs --bpe=DIR'):
    read_text(tmp_path / 'a.txt', 'gpt2')
