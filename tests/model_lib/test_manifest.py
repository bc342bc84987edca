"""The manifest notices every change of a directory, and names it."""

from __future__ import annotations

import hashlib
import json
import os

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from model_lib.training import manifest


@pytest.fixture
def directory(tmp_path):
  made = tmp_path / 'step'
  (made / 'state' / 'd').mkdir(parents=True)
  (made / 'state' / 'd' / 'array').write_bytes(bytes(range(256)) * 4)
  (made / 'state' / 'empty').write_bytes(b'')
  (made / 'position').write_text('{"x": 1}')
  manifest.write(made)
  return made


def test_written_directory_verifies_and_sums_are_sha256(directory):
  assert manifest.verify(directory) == []
  content = json.loads((directory / manifest.NAME).read_text())
  assert content['format'] == manifest.FORMAT
  assert list(content['files']) == ['position', 'state/d/array', 'state/empty']
  data = bytes(range(256)) * 4
  assert content['files']['state/d/array'] == {
      'size': 1024, 'sha256': hashlib.sha256(data).hexdigest()}


def test_writing_again_after_an_interrupted_write(directory):
  os.rename(directory / manifest.NAME, directory / (manifest.NAME + '.tmp'))
  assert manifest.verify(directory) == [f'{manifest.NAME}: missing']
  manifest.write(directory)
  assert manifest.verify(directory) == []
  assert sorted(os.listdir(directory)) == [manifest.NAME, 'position', 'state']


@settings(max_examples=60, deadline=None)
@given(byte=st.integers(0, 1023), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory, byte, bit):
  made = tmp_path_factory.mktemp('flip')
  data = bytearray(bytes(range(256)) * 4)
  (made / 'array').write_bytes(data)
  manifest.write(made)
  data[byte] ^= 1 << bit
  (made / 'array').write_bytes(data)
  assert manifest.verify(made) == ['array: SHA-256 differs from the manifest']
  data[byte] ^= 1 << bit  # The control: undone, it verifies again.
  (made / 'array').write_bytes(data)
  assert manifest.verify(made) == []


def test_missing_truncated_and_foreign_files_are_named_in_order(directory):
  (directory / 'position').unlink()
  (directory / 'state' / 'd' / 'array').write_bytes(b'short')
  (directory / 'state' / 'stray').write_text('')
  assert manifest.verify(directory) == [
      'position: missing',
      'state/d/array: 5 bytes instead of 1024',
      'state/stray: not in the manifest',
  ]


@pytest.mark.parametrize('text, reason', [
    ('', 'unreadable'),
    ('{"format": 1, "files"', 'unreadable'),
    ('[]', 'not a manifest'),
    ('{"format": 1, "files": []}', 'not a manifest'),
    ('{"format": 2, "files": {}}', 'format 2 instead of 1'),
    ('\x00\xff', 'unreadable'),
])
def test_a_manifest_that_is_none_is_one_problem(directory, text, reason):
  (directory / manifest.NAME).write_bytes(text.encode('latin-1'))
  problem, = manifest.verify(directory)
  assert problem.startswith(manifest.NAME + ': unreadable')
  assert reason in problem and '\n' not in problem


def test_a_manifest_that_lost_its_entries_does_not_verify(directory):
  (directory / manifest.NAME).write_text('{"format": 1, "files": {}}')
  assert len(manifest.verify(directory)) == 3
  (directory / manifest.NAME).write_text('{"format": 1, "files": {"position": 7}}')
  assert manifest.verify(directory)[0] == 'position: its entry in the manifest is unreadable'
