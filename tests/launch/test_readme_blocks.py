"""The blocks of README.md: filled from records, stable, shortened as the marker says."""
from __future__ import annotations

import json

import pytest

from launch.readme import filled, main, sections
from model_lib.errors import UserError

TABLE = '''### Arms on digits

| rank | activation | loss |
| ---: | ---------- | ---: |
|    1 | gelu       |  0.1 |
|    2 | silu       |  0.2 |
|    3 | relu       |  0.3 |
|    4 | tanh       |  0.4 |

A note on relu.

### Claims

| claim | verdict    |
| ----- | ---------- |
| a     | reproduced |
| relu  | reproduced |
| c     | reproduced |

a: the rule.

c: another rule.
'''
ENTRY = {'git': {'commit': '0123456789abcdef'}, 'versions': {'jax': '0.10.2'}, 'threads': 2,
         'cpu_model': 'A CPU', 'device_kind': 'cpu', 'started': '2026-01-31T12:00:00+00:00'}
PAGE = ('before\n<!-- results: s/cpu OPTIONS -->\nold\n<!-- end results -->\nbetween\n'
        '<!-- timing: s -->\n<!-- end timing -->\nafter\n')


def write_record(root, name, entries=(ENTRY,), seconds=60.0, table=TABLE):
  directory = root / 'experiments/results/s' / name
  directory.mkdir(parents=True)
  (directory / 'table.md').write_text(table)
  (directory / 'environment.json').write_text(json.dumps(list(entries)))
  lines = [{'cohort': c, 'members': 8, 'steps': 5, 'prepare_s': seconds, 'train_s': 2 * seconds,
            'evaluate_s': 30.0, 'peak_mib': mib} for c, mib in (('a', 100.4), ('b', 99.0))]
  (directory / 'timing.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def page(options=''):
  return PAGE.replace(' OPTIONS', options)


def test_without_a_record_it_says_so_and_text_stays(tmp_path):
  text = filled(page(), tmp_path)
  assert text.count('not recorded yet') == 2 and 'old' not in text
  assert text.startswith('before\n<!-- results: s/cpu -->\n') and text.endswith('\nafter\n')
  assert '\n<!-- end results -->\nbetween\n<!-- timing: s -->\n' in text
  assert filled(text, tmp_path) == text


def test_a_record_is_shown_whole(tmp_path):
  write_record(tmp_path, 'cpu')
  text = filled(page(), tmp_path)
  arms, claims = sections(TABLE)
  for part in ('#### Arms on digits\n', '\n'.join(arms[1]), 'A note on relu.',
               '#### Claims of s/cpu\n', '\n'.join(claims[1])):
    assert part in text
  assert 'the rule.' in '\n'.join(claims[2]) and 'the rule.' not in text
  assert ('[`experiments/results/s/cpu`](experiments/results/s/cpu): commit 0123456789ab, '
          'jax 0.10.2, 2 threads, A CPU, 2026-01-31.') in text
  assert 'rows; all are in' not in text and filled(text, tmp_path) == text


@pytest.mark.parametrize('options, kept', [
  (' rows=1', ['gelu']), (' rows=1 keep=relu,tanh', ['gelu', 'relu', 'tanh']),
  (' rows=3 keep=relu', ['gelu', 'silu', 'relu']), (' rows=9', ['gelu', 'silu', 'relu', 'tanh'])])
def test_a_table_of_arms_is_shortened_and_the_claims_are_not(tmp_path, options, kept):
  write_record(tmp_path, 'cpu')
  text = filled(page(options), tmp_path)
  arms, _, claims = text.partition('#### Claims')
  assert [line.split('|')[2].strip() for line in arms.splitlines() if line.startswith('|  ')] == kept
  shortened = f'{len(kept)} of 4 rows; all are in [table.md](experiments/results/s/cpu/table.md).'
  assert (shortened in arms) == (len(kept) < 4)
  assert claims.count('| reproduced |') == 3


def test_timing_has_a_row_per_record_from_small_to_large(tmp_path):
  for name in ('zeta', 'gpu', 'cpu-mnist', 'cpu', 'smoke'):
    write_record(tmp_path, name)
  (tmp_path / 'experiments/results/s/.cpu.1.partial').mkdir()
  text = filled(page(), tmp_path).partition('<!-- timing')[2]
  rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()
          if line.startswith('| `')]
  assert [row[0] for row in rows] == ['`smoke`', '`cpu`', '`cpu-mnist`', '`gpu`', '`zeta`']
  # Two cohorts of 8 runs: 1 + 1, 2 + 2 and 0.5 + 0.5 minutes; the larger of two peaks.
  assert rows[0][1:] == ['16', '7.0', '2.0', '4.0', '1.0', '100', '2 threads, A CPU']


def test_an_accelerator_is_named(tmp_path):
  write_record(tmp_path, 'gpu', [{**ENTRY, 'device_kind': 'NVIDIA H200'}])
  assert '| NVIDIA H200 |' in filled(page(), tmp_path)


def test_check_tells_and_changes_nothing(tmp_path, capsys):
  readme = tmp_path / 'README.md'
  readme.write_text(page())
  assert main(['--check'], tmp_path) == 1 and readme.read_text() == page()
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'python -m launch.readme' in error
  assert main([], tmp_path) == 0 and main(['--check'], tmp_path) == 0
  write_record(tmp_path, 'cpu')
  assert main(['--check'], tmp_path) == 1
  assert main([], tmp_path) == 0 and main(['--check'], tmp_path) == 0


@pytest.mark.parametrize('text, message', [
  ('<!-- results: s/cpu -->\n', 'README.md:1: .* has no <!-- end results -->'),
  ('x\n<!-- results: a/b -->\n<!-- timing: a -->\n<!-- end results -->\n', 'README.md:2: .*no'),
  ('<!-- results: s/cpu rows=0 -->\n<!-- end results -->\n', 'rows=0 is no option'),
  ('<!-- timing: s rows=3 -->\n<!-- end timing -->\n', 'README.md:1: a block of timing'),
  ('<!-- results: s/cpu best=3 -->\n<!-- end results -->\n', 'best=3 is no option')])
def test_a_wrong_block_is_one_line(tmp_path, capsys, text, message):
  with pytest.raises(UserError, match=message):
    filled(text, tmp_path)
  (tmp_path / 'README.md').write_text(text)
  assert main(['--check'], tmp_path) == 2 and capsys.readouterr().err.count('\n') == 1


def test_a_mistyped_flag_is_one_line(tmp_path, capsys):
  (tmp_path / 'README.md').write_text(page())
  assert main(['--chek'], tmp_path) == 2
  assert capsys.readouterr().err == (
    'launch.readme: unknown flag --chek; nearest: --check; see python -m launch.readme --help\n')
  assert (tmp_path / 'README.md').read_text() == page()


def test_a_damaged_record_is_one_line(tmp_path):
  write_record(tmp_path, 'cpu')
  (tmp_path / 'experiments/results/s/cpu/environment.json').write_text('[')
  with pytest.raises(UserError, match='environment.json is damaged'):
    filled(page(), tmp_path)
  (tmp_path / 'experiments/results/s/cpu/table.md').unlink()
  with pytest.raises(UserError):
    filled(page(), tmp_path)
