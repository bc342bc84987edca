"""Tables: numbers as text, and the three forms."""
from __future__ import annotations

import math
import re

import numpy as np
import pytest

from launch.study import claims
from launch.study import tables as t


@pytest.mark.parametrize('form, value, text', [
    (t.fixed(3), 0.12349, '0.123'), (t.fixed(3), -0.0004, '0.000'), (t.fixed(3), math.nan, '-'),
    (t.fixed(1, missing='diverged'), math.nan, 'diverged'), (t.fixed(1), None, '-'),
    (t.fixed(1), np.float32('nan'), '-'), (t.fixed(1), -math.inf, '-inf'),
    (t.fixed(2, signed=True), 0.5, '+0.50'), (t.fixed(2, signed=True), -0.001, '0.00'),
    (t.significant(3), 12345.6, '1.23e+04'), (t.significant(3), -0.0, '0'),
    (t.integer(), 8.0, '8'), (t.integer(), math.nan, '-'),
    (t.interval(2), (0.123, 0.456), '[0.12, 0.46]'), (t.interval(2), (-0.001, 1), '[0.00, 1.00]'),
    (t.interval(2), (math.nan, 1.0), '-'), (t.interval(2), None, '-'),
    (t.p_value(), 0.0004, '<0.001'), (t.p_value(), 0.05, '0.050'), (t.p_value(), math.nan, '-'),
    (t.text(), 'two\n words ', 'two words'), (t.text(), '', '-'), (t.text(), None, '-'),
])
def test_formatters(form, value, text):
  assert form(value) == text


TABLE = t.Table('A|B', (
    t.Column('name', 'name', right=False),
    t.Column('loss', 'loss', 'nats', t.fixed(2, missing='diverged')),
    t.Column('ci', '95 % interval', format=t.interval(1)),
), [{'name': 'a|b_c', 'loss': 0.5, 'ci': (0.25, 1)}, {'name': 'longer name', 'loss': math.nan}],
    notes=['Means of 8 seeds & more.'])


def test_markdown_is_aligned_and_escaped():
  assert TABLE.to_markdown() == (
      '### A\\|B\n'
      '\n'
      '| name        | loss (nats) | 95 % interval |\n'
      '| ----------- | ----------: | ------------: |\n'
      '| a\\|b_c      |        0.50 |    [0.2, 1.0] |\n'
      '| longer name |    diverged |             - |\n'
      '\n'
      'Means of 8 seeds & more.\n')


def test_plain_text():
  assert TABLE.to_text() == (
      'A|B\n'
      'name         loss (nats)  95 % interval\n'
      '-----------  -----------  -------------\n'
      'a|b_c               0.50     [0.2, 1.0]\n'
      'longer name     diverged              -\n'
      'Means of 8 seeds & more.\n')


def test_long_cells_are_broken_in_plain_text():
  table = t.Table('', [t.Column('a', 'a', right=False, width=9), t.Column('b', 'b')],
                  [{'a': 'one two three', 'b': 1}])
  assert table.to_text() == 'a        b\n-------  -\none two  1\nthree\n'


def test_latex_is_balanced_escaped_and_of_one_width():
  latex = TABLE.to_latex()
  body = latex[latex.index('\\toprule'):latex.index('\\bottomrule')]
  rows = [line for line in body.splitlines() if line.endswith('\\\\')]
  assert len(rows) == 3
  assert all(len(re.findall(r'(?<!\\)&', row)) == 2 for row in rows)
  assert '\\begin{tabular}{lrr}' in latex and '95 \\% interval' in latex
  assert 'a$|$b\\_c' in latex and 'seeds \\& more' in latex
  bare = re.sub(r'\\[{}$]', '', latex)
  assert bare.count('{') == bare.count('}') and bare.count('$') % 2 == 0
  for name in re.findall(r'\\begin\{(\w+)\}', latex):
    assert latex.count(f'\\begin{{{name}}}') == latex.count(f'\\end{{{name}}}') == 1
  assert set(re.findall(r'\\([a-z]+)', latex)) <= {
      'usepackage', 'begin', 'end', 'centering', 'caption', 'toprule', 'midrule', 'bottomrule',
      'par', 'smallskip', 'footnotesize'}


def test_latex_of_special_characters():
  assert t.escape_latex('50% & $x_1^2$ ~ #{\\}') == (
      r'50\% \& \$x\_1\textasciicircum{}2\$ \textasciitilde{} \#\{\textbackslash{}\}')
  assert t.escape_latex('1 ± 2 ≤ σ²') == r'1 $\pm$ 2 $\leq$ $\sigma$$^2$'
  assert t.escape_latex('Padé') == 'Padé'
  with pytest.raises(ValueError, match='漢'):
    t.escape_latex('漢')


def test_a_latex_row_cannot_begin_with_a_bracket():
  # `\\ [0.1, 0.2]` would be taken for an extra space of length "0.1, 0.2".
  table = t.Table('', [t.Column('ci', 'ci', format=t.interval(1))], [{'ci': (0, 1)}])
  assert '\n{[0.0, 1.0]} \\\\' in table.to_latex()


def test_rows_and_columns_must_fit():
  with pytest.raises(ValueError, match='without a column: los'):
    t.Table('', [t.Column('loss', 'loss')], [{'los': 1}])
  with pytest.raises(ValueError, match='different keys'):
    t.Table('', [t.Column('a', 'x'), t.Column('a', 'y')], [])


def test_a_table_without_rows_still_has_its_head():
  table = t.Table('', [t.Column('a', 'a')], [])
  assert table.to_markdown() == '|   a |\n| --: |\n' and table.to_text() == 'a\n-\n'


def test_the_claims_table_shows_paper_ours_interval_n_and_verdict():
  claim = claims.Claim('c1', 'A beats B.', 'Table 2', 0.91, 'accuracy', 'interval', 'null row')
  good = claims.Outcome('reproduced', 0.9, (0.85, 0.95), 8)
  bad = claims.Outcome('not reproduced')
  records = [claims.Verdict(claim, outcome).record() for outcome in (good, bad)]
  table = t.claims_table(records)
  assert [column.head for column in table.columns][3:] == [
      'paper', 'ours', '95 % interval', 'n', 'verdict']
  assert [row[3:] for row in table.cells()] == [
      ['0.91', '0.9', '[0.85, 0.95]', '8', 'reproduced'], ['0.91', '-', '-', '0', 'not reproduced']]
  assert 'Control: null row.' in table.notes[0]
  for form in (table.to_markdown(), table.to_text(), table.to_latex()):
    assert 'not reproduced' in form
