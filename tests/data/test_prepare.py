"""`python -m data.prepare`: official data, variants, bad requests, kills and full disks."""
from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data import directories
from data import official
from data import prepare
from data.load import load
from tests import helpers
from tests.data.make_files import (
  idx_bytes, random_images, write_bpe, write_cifar10, write_mnist)


def run(capsys, *arguments) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of the program, in this process; an error is one line."""
  code = prepare.main([str(a) for a in arguments])
  out, err = capsys.readouterr()
  assert code in (0, 2)
  assert err.count('\n') == (code == 2), err
  return code, out, err


@pytest.fixture
def small_mnist(monkeypatch):
  """Declares 40 + 20 examples, with a sum of the training labels, to be the official MNIST."""
  labels = (np.arange(40) % 10).astype(np.uint8)
  sums = {'train-labels-idx1-ubyte': hashlib.sha256(idx_bytes(labels)).hexdigest()}
  monkeypatch.setitem(official.OFFICIAL, 'mnist', dataclasses.replace(
      official.OFFICIAL['mnist'], counts={'train': 40, 'test': 20}, sums=sums))


def test_official_table_is_plausible():
  for name, facts in official.OFFICIAL.items():
    assert facts.counts['test'] == 10_000 and facts.counts['train'] in (50_000, 60_000), name
    assert all(len(bytes.fromhex(value)) == 32 for value in facts.sums.values())


def test_official_data_is_prepared_and_loaded(tmp_path, capsys, small_mnist):
  arrays = write_mnist(tmp_path / 'm')
  code, out, _ = run(capsys, '--dataset=mnist', f'--source={tmp_path / "m"}',
                     f'--data_dir={tmp_path / "d"}')
  assert code == 0 and '40 train, 20 test' in out and 'equal those of the published' in out
  dataset = load('mnist', tmp_path / 'd')
  inputs = np.concatenate([arrays[f'{p}-images-idx3-ubyte'] for p in ('train', 't10k')])
  labels = np.concatenate([arrays[f'{p}-labels-idx1-ubyte'] for p in ('train', 't10k')])
  np.testing.assert_array_equal(dataset.inputs, inputs)
  np.testing.assert_array_equal(dataset.labels, labels)
  assert dataset.official == {'train': (0, 40), 'test': (40, 60)}
  assert dataset.sha256 == hashlib.sha256(
      inputs.tobytes() + labels.astype('<i4').tobytes()).hexdigest()
  np.testing.assert_allclose(dataset.mean, inputs[:40].mean(), rtol=1e-12)
  np.testing.assert_allclose(dataset.std, inputs[:40].astype(float).std(), rtol=1e-12)
  assert not dataset.inputs.flags.writeable


def test_deviation_needs_a_name(tmp_path, capsys):
  write_cifar10(tmp_path / 'c')
  command = ['--dataset=cifar10', f'--source={tmp_path / "c"}', f'--data_dir={tmp_path / "d"}']
  code, _, err = run(capsys, *command)
  assert code == 2
  assert '100 train examples, the official cifar10 has 50,000' in err
  assert '20 test examples, the official cifar10 has 10,000' in err
  record = (tmp_path / 'c' / 'data_batch_1.bin').read_bytes()[:3073]
  assert hashlib.sha256(record).hexdigest() in err
  assert official.OFFICIAL['cifar10'].sums['data_batch_1.bin, record 0'] in err
  assert not (tmp_path / 'd').exists()
  code, out, _ = run(capsys, *command, '--variant=jpeg75')
  assert code == 0 and 'deviates from the published cifar10' in out
  assert load('cifar10-jpeg75', tmp_path / 'd').name == 'cifar10-jpeg75'
  assert os.listdir(tmp_path / 'd') == ['cifar10-jpeg75']


def test_changed_content_is_seen_by_its_sum(tmp_path, capsys, small_mnist):
  write_mnist(tmp_path / 'm')
  labels = (np.arange(40) % 10).astype(np.uint8)
  labels[0] = 5
  path = tmp_path / 'm' / 'train-labels-idx1-ubyte.gz'
  path.write_bytes(gzip.compress(idx_bytes(labels)))
  code, _, err = run(capsys, '--dataset=mnist', f'--source={tmp_path / "m"}',
                     f'--data_dir={tmp_path / "d"}')
  assert code == 2 and err.count('content sum') == 1 and 'train-labels-idx1-ubyte' in err


def test_a_variant_does_not_excuse_damage(tmp_path, capsys):
  write_cifar10(tmp_path / 'c')
  path = tmp_path / 'c' / 'test_batch.bin'
  path.write_bytes(path.read_bytes()[:-1])
  code, _, err = run(capsys, '--dataset=cifar10', f'--source={tmp_path / "c"}', '--variant=x',
                     f'--data_dir={tmp_path / "d"}')
  assert code == 2 and str(path) in err
  assert not (tmp_path / 'd').exists()


def text_command(tmp_path: Path, content: bytes, *more: str) -> list[str]:
  (tmp_path / 'a.txt').write_bytes(content)
  return ['--dataset=text', f'--source={tmp_path / "a.txt"}', f'--data_dir={tmp_path / "d"}', *more]


def snapshot(folder: Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_what_exists_is_never_replaced(tmp_path, capsys):
  assert run(capsys, *text_command(tmp_path, b'abcdefgh' * 40))[0] == 0
  before = snapshot(tmp_path / 'd')
  assert run(capsys, *text_command(tmp_path, b'abcdefgh' * 40))[0] == 0  # the same: left alone
  code, _, err = run(capsys, *text_command(tmp_path, b'other text' * 40))
  assert code == 2 and 'already holds other content' in err and '--variant' in err
  assert snapshot(tmp_path / 'd') == before
  assert run(capsys, *text_command(tmp_path, b'other text' * 40, '--variant=two'))[0] == 0
  assert load('text-two', tmp_path / 'd').inputs.tobytes() == b'other text' * 40


def test_two_preparations_give_the_same_bytes(tmp_path, capsys):
  for folder in ('1', '2'):
    (tmp_path / folder).mkdir()
    assert run(capsys, *text_command(tmp_path / folder, b'abcdefgh' * 40))[0] == 0
  first, second = (snapshot(tmp_path / f / 'd') for f in ('1', '2'))
  assert first == second and len(first) == 6


def test_gpt2_text(tmp_path, capsys):
  write_bpe(tmp_path / 'b', [('a', 'b')])
  command = text_command(tmp_path, b'abab cd ' * 30, '--tokenizer=gpt2', f'--bpe={tmp_path / "b"}')
  assert run(capsys, *command)[0] == 0
  dataset = load('text', tmp_path / 'd')
  assert dataset.vocab == 257 and dataset.inputs.dtype == np.uint16
  assert dataset.inputs[:3].tolist() == [256, 256, 32]  # 'ab', 'ab', then the byte ' '


@pytest.mark.parametrize('arguments, part', [
  ([], 'required: --dataset'),
  (['--datset=mnist', '--source=x'], 'unknown flag --datset; nearest: --dataset; see python -m '),
  (['--dataset=mnist', '--qqqq=1'], 'unknown flag --qqqq; see python -m data.prepare --help'),
  (['--dataset=mnist', '--varian=x'], 'unknown flag --varian; nearest: --variant'),
  (['--dataset=mnist', '-source=x'], 'unknown flag -source; nearest: --source'),
  (['--dataset=cifar'], 'unknown; nearest: cifar10'),
  (['--dataset=zzzz'], 'unknown; known: digits'),
  (['--dataset=mnist'], 'needs --source=PATH'),
  (['--dataset=mnist', '--source=/nonexistent/x'], '/nonexistent/x: no such file'),
  (['--dataset=mnist', '--source=/', '--variant=Bad Name'], '--variant=Bad Name: use lower-case'),
  (['--dataset=digits', '--source=/'], 'takes neither --source nor --variant'),
  (['--dataset=digits', '--tokenizer=gpt2'], 'takes neither --tokenizer nor --bpe'),
  (['--dataset=text', '--source=/', '--tokenizer=words'], "invalid choice: 'words'"),
  (['--dataset=tfds:'], 'unknown'),
])
def test_bad_requests(capsys, tmp_path, arguments, part):
  code, out, err = run(capsys, *arguments, f'--data_dir={tmp_path / "d"}')
  assert code == 2 and part in err and out == ''
  assert not (tmp_path / 'd').exists()


def test_target_whose_parent_is_a_file(tmp_path, capsys):
  (tmp_path / 'file').write_text('kept')
  for target in (tmp_path / 'file', tmp_path / 'file' / 'deeper'):
    command = [a for a in text_command(tmp_path, b'abcdefgh' * 40) if 'data_dir' not in a]
    code, _, err = run(capsys, *command, f'--data_dir={target}')
    assert code == 2 and str(target) in err and 'pass another --data_dir' in err
  assert (tmp_path / 'file').read_text() == 'kept'


def run_with_limit(size: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
  """The program with no file larger than `size` bytes: writing more fails as on a full disk."""
  return helpers.run_python(
      'import resource, runpy, signal, sys\n'
      'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
      f'resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n'
      f'sys.argv = ["data.prepare", *{arguments!r}]\n'
      'runpy.run_module("data.prepare", run_name="__main__")')


# In the records; in the JSON files that Python writes (the records alone are smaller).
@pytest.mark.parametrize('content, size', [
  (np.random.default_rng(0).bytes(400_000), 100_000), (b'abcdefgh' * 40, 400)])
def test_full_disk(tmp_path, content, size):
  (tmp_path / 'd' / 'other').mkdir(parents=True)
  (tmp_path / 'd' / 'other' / 'file').write_text('kept')
  command = text_command(tmp_path, content)
  failed = run_with_limit(size, command)
  assert failed.returncode == 2, failed
  assert failed.stderr.count('\n') == 1 and failed.stdout == ''
  assert str(tmp_path / 'd') in failed.stderr and 'File too large' in failed.stderr
  assert snapshot(tmp_path / 'd') == {'other/file': b'kept'}
  assert os.listdir(tmp_path / 'd') == ['other']
  # The negative control: the same command passes where the limit does not bind.
  passed = run_with_limit(2_000_000, command)
  assert passed.returncode == 0 and passed.stderr == ''


def start_and_wait_until_it_writes(tmp_path: Path) -> tuple[subprocess.Popen, list[str]]:
  """A preparation of some seconds, and its command, at a moment when records are being written."""
  folder = tmp_path / 'm'
  folder.mkdir()
  for prefix, n in (('train', 60_000), ('t10k', 10_000)):
    for kind, array in (('images-idx3', random_images(n, (2, 2))),
                        ('labels-idx1', np.zeros(n, np.uint8))):
      (folder / f'{prefix}-{kind}-ubyte').write_bytes(idx_bytes(array))
  command = helpers.module_command(
      'data.prepare', '--dataset=mnist', f'--source={folder}', '--variant=dots',
      f'--data_dir={tmp_path / "d"}')
  process = subprocess.Popen(
      command, cwd=helpers.ROOT, env=helpers.child_environment(), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  deadline = time.monotonic() + 60
  while not list((tmp_path / 'd').glob('.preparing-*/*/*')):
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.01)
  return process, command


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_while_writing(tmp_path, number):
  process, _ = start_and_wait_until_it_writes(tmp_path)
  sent = time.monotonic()
  process.send_signal(number)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 75 and time.monotonic() - sent < 5
  assert out == '' and err.count('\n') == 1 and 'run it again' in err
  assert os.listdir(tmp_path / 'd') == []


def test_kill_while_writing_is_cleaned_by_the_next_start(tmp_path):
  process, command = start_and_wait_until_it_writes(tmp_path)
  process.kill()
  process.communicate()
  left = os.listdir(tmp_path / 'd')
  assert len(left) == 1 and left[0].startswith('.preparing-')  # the control: there was a half
  again = subprocess.run(command, cwd=helpers.ROOT, env=helpers.child_environment(),
                         capture_output=True, text=True, check=False)
  assert again.returncode == 0, again
  assert os.listdir(tmp_path / 'd') == ['mnist-dots']


def test_only_leftovers_of_dead_processes_of_this_host_are_removed(tmp_path):
  host = directories.socket.gethostname()
  child = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'],
                         capture_output=True, text=True, check=True)
  dead = tmp_path / f'.preparing-{host}-{int(child.stdout)}-0'
  kept = [tmp_path / f'.preparing-{host}-{os.getppid()}-0',
          tmp_path / f'.preparing-another-host-{int(child.stdout)}-0', tmp_path / 'mnist']
  for path in (dead, *kept):
    path.mkdir()
  directories.remove_leftovers(tmp_path)
  assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_the_loser_of_a_race_accepts_equal_content(tmp_path, capsys, monkeypatch):
  """Another process finishes the same dataset between our check and our rename."""
  command = text_command(tmp_path, b'abcdefgh' * 40)
  assert run(capsys, *command)[0] == 0
  target = tmp_path / 'd' / 'text' / '1.0.0'
  move, exists = directories.move_into_place, Path.exists
  calls = []
  monkeypatch.setattr(Path, 'exists', lambda self: self != target and exists(self))
  monkeypatch.setattr(
      directories, 'move_into_place', lambda *a: calls.append(move(*a)) or calls[-1])
  assert run(capsys, *command)[0] == 0
  code, _, err = run(capsys, *text_command(tmp_path, b'something else' * 40))
  assert code == 2 and 'already holds other content' in err
  assert calls == [False, False]
  assert os.listdir(tmp_path / 'd') == ['text']


def test_metadata_says_where_the_data_is_from(tmp_path, capsys):
  assert run(capsys, *text_command(tmp_path, b'abcdefgh' * 40))[0] == 0
  metadata = json.loads((tmp_path / 'd' / 'text' / '1.0.0' / 'metadata.json').read_text())
  assert metadata['about'] == 'bytes of a.txt' and metadata['format'] == 1
