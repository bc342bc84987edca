"""The command: what it prints, writes and refuses, and the settings of a row that it fills in."""

from __future__ import annotations

import csv
import json

import pytest

from experiments import coordinate_check as command
from experiments.parts import coordinate_models as parts
from model_lib.errors import UserError

SMALL = ('--sizes=16,32,64', '--base=8', '--seeds=2', '--steps=2')


def test_what_is_printed_and_written(tmp_path, capsys) -> None:
  out = tmp_path / 'new' / 'check'
  status = command.main(['--model=mlp', '--parametrization=mup', f'--out={out}', *SMALL])
  printed = capsys.readouterr()
  assert status == 0
  *table, verdict = printed.out.strip().splitlines()
  assert [line.split()[:3] for line in table if 'hidden_1' in line] == [
    ['mup', 'hidden_1', 'hidden'], ['sp', 'hidden_1', 'hidden']]
  assert verdict.startswith('mup: ')
  assert sorted(file.name for file in out.iterdir()) == [
    'coordinate_check.csv', 'coordinate_check.json', 'coordinate_check.png']
  found = json.loads((out / 'coordinate_check.json').read_text())
  assert found['text'] == verdict and found['verdict'] in ('passed', 'failed', 'no verdict')
  assert found['check']['sizes'] == [16, 32, 64] and found['check']['rate'] == 2 ** -10
  with open(out / 'coordinate_check.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 3 * 5 * 2 * 3  # rows, sizes, tensors, seeds, steps with the start
  assert all(float(row['move_rms']) == 0 for row in rows if row['step'] == '0')
  moved = [row for row in rows if row['step'] == '2']
  assert all(0 < float(row['move_l1']) <= float(row['move_rms']) for row in moved)
  assert (out / 'coordinate_check.png').read_bytes().startswith(b'\x89PNG')


def test_a_folder_that_cannot_be_made(tmp_path, capsys) -> None:
  (tmp_path / 'file').write_text('')
  check = command.Check('mlp', 'mup', 'width', 'adam', (8, 16), 8, 2, 2, 1e-3, 'random')
  with pytest.raises(UserError, match='cannot write'):
    command.write(command.Result(check, {}, {}, None), tmp_path / 'file' / 'out')


@pytest.mark.parametrize('argv, message', [
  (['--model=mpl'], "--model=mpl: unknown; nearest: 'mlp'"),
  (['--parametrization=mop'], "unknown parametrization 'mop'; nearest: 'mup'"),
  (['--size=8,16'], 'unknown flag --size; nearest: --sizes'),
  (['--axis=with'], "--axis=with: unknown; nearest: 'width'"),
  (['--axis=depth'], 'has no residual stack'),
  (['--optimizer=adan'], "nearest: 'adam'"),
  (['--model=resmlp', '--axis=depth', '--optimizer=sgd'], 'those of adam'),
  (['--sizes=8'], 'at least two sizes'), (['--sizes=8,four'], 'whole numbers'),
  (['--sizes=16,8'], 'ascending'), (['--seeds=1'], '--seeds=1: it must be at least 2'),
  (['--steps=x'], "invalid int value: 'x'"), (['--rate=0'], '--rate=0: it must be a number > 0'),
  (['--model=vit', '--sizes=6,8'], 'has 4 heads'),
  (['--model=gpt', '--data=digits'], 'gpt reads tokens')])
def test_a_wrong_command_is_one_line(argv, message, capsys) -> None:
  assert command.main(['--model=mlp', '--parametrization=mup', *argv]) == 2
  printed = capsys.readouterr()
  assert message in printed.err and printed.err.count('\n') == 1 and not printed.out


def test_the_row_gets_the_sizes_of_the_base() -> None:
  gpt, deep = parts.setting('gpt', 'width'), parts.setting('resmlp', 'depth')
  assert parts.row('mup', gpt, 16) == 'mup(base_head_dim=4.0)'
  assert parts.row('mup(base_head_dim=8)', gpt, 16) == 'mup(base_head_dim=8.0)'
  assert parts.row('depth_mup', deep, 4) == 'depth_mup(base_depth=4.0)'
  assert parts.row('completep(0.5)', parts.setting('gpt', 'depth'), 2) == (
    'completep(alpha=0.5, base_depth=2.0, base_head_dim=16.0)')
  assert parts.row('sp', gpt, 16) == 'sp'


def test_digits_are_another_batch() -> None:
  _, inputs, labels = parts.batch('mlp', 'digits')
  assert inputs.shape == (parts.EXAMPLES, 8, 8) and abs(inputs.mean()) < 0.3
  assert labels.shape == (parts.EXAMPLES,) and (inputs != parts.batch('mlp', 'random')[1]).any()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(
    tmp_path, capsys, monkeypatch) -> None:
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(command, 'run', lambda *_: pytest.fail('it trained first'))
  status = command.main(['--model=mlp', '--parametrization=mup', f'--out={tmp_path / "file"}'])
  error = capsys.readouterr().err
  assert status == 2 and error.count('\n') == 1 and 'a file' in error
