"""The blocks of both pages: filled from records, stable, shortened as the marker says."""
from __future__ import annotations

import json

import pytest

from launch.readme import PAGES, filled, main, sections
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
TEXT = ('before\n<!-- results: s/cpu OPTIONS -->\nold\n<!-- end results -->\nbetween\n'
        '<!-- claims: s/cpu -->\nold\n<!-- end claims -->\n'
        '<!-- timing: s -->\n<!-- end timing -->\nafter\n')
# Where a link to the record must point from each page's directory.
RECORD = {'README.md': 'experiments/results/s/cpu', 'experiments/results/README.md': 's/cpu'}
on_both_pages = pytest.mark.parametrize('page', PAGES)


def write_record(root, name, entries=(ENTRY,), seconds=60.0, table=TABLE):
  directory = root / 'experiments/results/s' / name
  directory.mkdir(parents=True)
  (directory / 'table.md').write_text(table)
  (directory / 'environment.json').write_text(json.dumps(list(entries)))
  lines = [{'cohort': c, 'members': 8, 'steps': 5, 'prepare_s': seconds, 'train_s': 2 * seconds,
            'evaluate_s': 30.0, 'peak_mib': mib} for c, mib in (('a', 100.4), ('b', 99.0))]
  (directory / 'timing.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def text_with(options=''):
  return TEXT.replace(' OPTIONS', options)


def write_pages(root, text, **others):
  """All pages with one text, but those that `others` gives another."""
  for page in PAGES:
    (root / page).parent.mkdir(parents=True, exist_ok=True)
    (root / page).write_text(others.get(page, text))


def blocks(text, kind):
  """What stands between the marks of the only block of a kind."""
  return text.partition(f'<!-- {kind}: ')[2].partition(' -->\n')[2].partition(
      f'<!-- end {kind} -->')[0]


def test_the_pages_are_these():
  assert set(PAGES) == set(RECORD)


@on_both_pages
def test_without_a_record_it_says_so_and_text_stays(tmp_path, page):
  text = filled(text_with(), tmp_path, page)
  assert text.count('not recorded yet') == 3 and 'old' not in text
  assert text.startswith('before\n<!-- results: s/cpu -->\n') and text.endswith('\nafter\n')
  assert '\n<!-- end results -->\nbetween\n<!-- claims: s/cpu -->\n' in text
  assert '\n<!-- end claims -->\n<!-- timing: s -->\n' in text
  assert filled(text, tmp_path, page) == text


def test_a_study_without_a_whole_record_has_no_times(tmp_path):
  (tmp_path / 'experiments/results/s/.cpu.1.partial').mkdir(parents=True)
  text = filled(text_with(), tmp_path, 'README.md')
  assert blocks(text, 'timing') == '\nnot recorded yet\n\n'


@on_both_pages
def test_a_record_is_shown_whole(tmp_path, page):
  write_record(tmp_path, 'cpu')
  text = filled(text_with(), tmp_path, page)
  arms, claims = sections(TABLE)
  results = blocks(text, 'results')
  for part in ('### Arms on digits\n', '\n'.join(arms[1]), 'A note on relu.',
               '### Claims of s/cpu\n', '\n'.join(claims[1])):
    assert part in results
  assert 'the rule.' in '\n'.join(claims[2]) and 'the rule.' not in text
  assert (f'[`experiments/results/s/cpu`]({RECORD[page]}): commit 0123456789ab, '
          'jax 0.10.2, 2 threads, A CPU, 2026-01-31.') in results
  assert 'rows; all are in' not in text and filled(text, tmp_path, page) == text


@on_both_pages
def test_claims_are_the_origin_and_the_whole_table_alone(tmp_path, page):
  write_record(tmp_path, 'cpu')
  text = filled(text_with(' rows=1'), tmp_path, page)
  claims = sections(TABLE)[1][1]
  assert blocks(text, 'claims') == '\n'.join([
    '', f'Recorded in [`experiments/results/s/cpu`]({RECORD[page]}): commit 0123456789ab, '
    'jax 0.10.2, 2 threads, A CPU, 2026-01-31.', '', *claims, '',
    f'Measures, rules and controls of each claim: [table.md]({RECORD[page]}/table.md).', '', ''])


@on_both_pages
def test_a_record_without_claims_says_so(tmp_path, page):
  write_record(tmp_path, 'cpu', table=TABLE.partition('### Claims')[0])
  text = filled(text_with(), tmp_path, page)
  assert '| ' not in blocks(text, 'claims') and 'It makes no claims.' in blocks(text, 'claims')
  assert 'laims' not in blocks(text, 'results')


@on_both_pages
@pytest.mark.parametrize('options, kept', [
  (' rows=1', ['gelu']), (' rows=1 keep=relu,tanh', ['gelu', 'relu', 'tanh']),
  (' rows=3 keep=relu', ['gelu', 'silu', 'relu']), (' rows=9', ['gelu', 'silu', 'relu', 'tanh'])])
def test_a_table_of_arms_is_shortened_and_the_claims_are_not(tmp_path, options, kept, page):
  write_record(tmp_path, 'cpu')
  text = blocks(filled(text_with(options), tmp_path, page), 'results')
  arms, _, claims = text.partition('### Claims')
  rows = [line.split('|') for line in arms.splitlines() if line.startswith('|  ')]
  assert [row[2].strip() for row in rows] == kept
  shortened = f'{len(kept)} of 4 rows; all are in [table.md]({RECORD[page]}/table.md).'
  assert (shortened in arms) == (len(kept) < 4)
  assert claims.count('| reproduced |') == 3


@on_both_pages
def test_timing_has_a_row_per_record_from_small_to_large(tmp_path, page):
  for name in ('zeta', 'gpu', 'cpu-mnist', 'cpu', 'smoke'):
    write_record(tmp_path, name)
  (tmp_path / 'experiments/results/s/.cpu.1.partial').mkdir()
  text = blocks(filled(text_with(), tmp_path, page), 'timing')
  rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()
          if line.startswith('| `')]
  assert [row[0] for row in rows] == ['`smoke`', '`cpu`', '`cpu-mnist`', '`gpu`', '`zeta`']
  # Two cohorts of 8 runs: 1 + 1, 2 + 2 and 0.5 + 0.5 minutes; the larger of two peaks.
  assert rows[0][1:] == ['16', '7.0', '2.0', '4.0', '1.0', '100', '2 threads, A CPU']


@on_both_pages
def test_an_accelerator_is_named(tmp_path, page):
  write_record(tmp_path, 'gpu', [{**ENTRY, 'device_kind': 'NVIDIA H200'}])
  assert '| NVIDIA H200 |' in filled(text_with(), tmp_path, page)


@on_both_pages
def test_check_tells_and_changes_nothing(tmp_path, capsys, page):
  write_pages(tmp_path, text_with())
  assert main([], tmp_path) == 0 and main(['--check'], tmp_path) == 0
  (tmp_path / page).write_text(text_with())  # one of them is old
  others = {other: (tmp_path / other).read_text() for other in PAGES if other != page}
  assert main(['--check'], tmp_path) == 1 and (tmp_path / page).read_text() == text_with()
  error = capsys.readouterr().err
  assert error == (f'launch.readme: not up to date with the records: {page}; '
                   'run: python -m launch.readme\n')
  assert main([], tmp_path) == 0 and main(['--check'], tmp_path) == 0
  assert {other: (tmp_path / other).read_text() for other in others} == others
  write_record(tmp_path, 'cpu')
  assert main(['--check'], tmp_path) == 1 and ', '.join(PAGES) in capsys.readouterr().err
  assert main([], tmp_path) == 0 and main(['--check'], tmp_path) == 0
  for name in PAGES:
    assert f'({RECORD[name]})' in (tmp_path / name).read_text()


@on_both_pages
@pytest.mark.parametrize('text, message', [
  ('<!-- results: s/cpu -->\n', 'PAGE:1: .* has no <!-- end results -->'),
  ('<!-- claims: s/cpu -->\n<!-- end results -->\n', 'PAGE:1: .* has no <!-- end claims -->'),
  ('x\n<!-- results: a/b -->\n<!-- timing: a -->\n<!-- end results -->\n', 'PAGE:2: .*no'),
  ('<!-- results: s/cpu rows=0 -->\n<!-- end results -->\n', 'PAGE:1: rows=0 is no option'),
  ('<!-- timing: s rows=3 -->\n<!-- end timing -->\n', 'PAGE:1: a block of timing has no options'),
  ('\n<!-- claims: s/cpu rows=3 -->\n<!-- end claims -->\n', 'PAGE:2: a block of claims has no'),
  ('<!-- results: s/cpu best=3 -->\n<!-- end results -->\n', 'PAGE:1: best=3 is no option')])
def test_a_wrong_block_is_one_line(tmp_path, capsys, text, message, page):
  with pytest.raises(UserError, match='^' + message.replace('PAGE', page)):
    filled(text, tmp_path, page)
  write_pages(tmp_path, text_with(), **{page: text})
  for arguments in ['--check'], []:
    assert main(arguments, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.startswith(f'launch.readme: {page}:')
  # Neither page is written when one is wrong.
  assert {other: (tmp_path / other).read_text() for other in PAGES} == {
    other: text if other == page else text_with() for other in PAGES}


@on_both_pages
def test_a_missing_page_is_one_line(tmp_path, capsys, page):
  write_pages(tmp_path, text_with())
  (tmp_path / page).unlink()
  assert main([], tmp_path) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and f'{tmp_path / page}: there is no such file' in error
  assert not (tmp_path / page).exists()


def test_a_mistyped_flag_is_one_line(tmp_path, capsys):
  write_pages(tmp_path, text_with())
  assert main(['--chek'], tmp_path) == 2
  assert capsys.readouterr().err == (
    'launch.readme: unknown flag --chek; nearest: --check; see python -m launch.readme --help\n')
  assert all((tmp_path / page).read_text() == text_with() for page in PAGES)


@on_both_pages
@pytest.mark.parametrize('kind', ['results', 'claims'])
def test_a_damaged_record_is_one_line(tmp_path, kind, page):
  write_record(tmp_path, 'cpu')
  text = f'<!-- {kind}: s/cpu -->\n<!-- end {kind} -->\n'
  record = tmp_path / 'experiments/results/s/cpu'
  environment = (record / 'environment.json').read_text()
  (record / 'environment.json').write_text('[')
  with pytest.raises(UserError, match='environment.json is damaged'):
    filled(text, tmp_path, page)
  (record / 'environment.json').write_text(environment)
  (record / 'table.md').unlink()
  with pytest.raises(UserError, match='s/cpu/table.md: there is no such file'):
    filled(text, tmp_path, page)


@on_both_pages
def test_figures_are_linked_from_the_directory_of_the_page(page, tmp_path):
  write_record(tmp_path, 'cpu')
  assert 'Figures:' not in filled(text_with(), tmp_path, page)
  figures = tmp_path / 'experiments/results/s/cpu/figures'
  figures.mkdir()
  for name in ('b.png', 'a.png', 'a.txt'):
    (figures / name).write_bytes(b'')
  found = blocks(filled(text_with(), tmp_path, page), 'results')
  record = RECORD[page]
  assert f'Figures: [a]({record}/figures/a.png), [b]({record}/figures/b.png).\n' in found
