"""One table, three forms: Markdown, LaTeX (booktabs) and plain text for a terminal.

Formatters turn a value into text the same way everywhere: a number that is nan or missing
becomes a dash (or the word that the column gives, such as 'diverged'), never 'nan'; a
rounded zero has no sign; an interval is [low, high].
"""
from __future__ import annotations

import dataclasses
import math
import textwrap
import unicodedata
from typing import Any, Callable, Mapping, Sequence

Formatter = Callable[[Any], str]
MISSING = '-'


def _is_missing(value: Any) -> bool:
  return value is None or (isinstance(value, float) and math.isnan(value))


def fixed(digits: int = 3, signed: bool = False, missing: str = MISSING) -> Formatter:
  """A number with that many decimals; `signed` shows the plus; infinities are 'inf', '-inf'."""
  def form(value: Any) -> str:
    if _is_missing(value) or math.isnan(value):
      return missing
    if math.isinf(value):
      return 'inf' if value > 0 else '-inf'
    text = f'{value:+.{digits}f}' if signed else f'{value:.{digits}f}'
    return text[1:] if float(text) == 0 and text[0] in '+-' else text
  return form


def significant(digits: int = 3, missing: str = MISSING) -> Formatter:
  """A number with that many significant digits, for columns that span magnitudes."""
  def form(value: Any) -> str:
    if _is_missing(value) or math.isnan(value):
      return missing
    return f'{0.0 if value == 0 else value:.{digits}g}'
  return form


def integer(missing: str = MISSING) -> Formatter:
  """A whole number."""
  def form(value: Any) -> str:
    return missing if _is_missing(value) or math.isnan(value) else f'{int(value)}'
  return form


def interval(digits: int = 3, signed: bool = False, missing: str = MISSING) -> Formatter:
  """A pair as [low, high]; a dash when either limit is missing."""
  number = fixed(digits, signed)
  def form(value: Any) -> str:
    if value is None or any(_is_missing(v) or math.isnan(v) for v in value):
      return missing
    low, high = value
    return f'[{number(low)}, {number(high)}]'
  return form


def p_value(missing: str = MISSING) -> Formatter:
  """Three decimals; below that '<0.001'."""
  def form(value: Any) -> str:
    if _is_missing(value) or math.isnan(value):
      return missing
    return '<0.001' if value < 0.001 else f'{value:.3f}'
  return form


def text(missing: str = MISSING) -> Formatter:
  """A text, with every run of white space as one blank."""
  def form(value: Any) -> str:
    return missing if _is_missing(value) else ' '.join(str(value).split()) or missing
  return form


@dataclasses.dataclass(frozen=True)
class Column:
  """A column.

  Attributes:
    key: the entry of each row that it shows; a row without it shows the missing mark.
    header: its head, without the unit.
    unit: shown behind the head in parentheses; '' for none.
    format: value -> text.
    right: numbers stand to the right, words to the left.
    width: longest line in characters before a cell is broken, in plain text and LaTeX;
      None never breaks.
  """
  key: str
  header: str
  unit: str = ''
  format: Formatter = dataclasses.field(default_factory=text)
  right: bool = True
  width: int | None = None

  @property
  def head(self) -> str:
    return f'{self.header} ({self.unit})' if self.unit else self.header


@dataclasses.dataclass(frozen=True)
class Table:
  """Columns, rows (mappings from the columns' keys to values), a title and notes."""
  title: str
  columns: Sequence[Column]
  rows: Sequence[Mapping[str, Any]]
  notes: Sequence[str] = ()

  def __post_init__(self):
    keys = [column.key for column in self.columns]
    if len(set(keys)) < len(keys) or not keys:
      raise ValueError(f'a table needs columns with different keys, got {keys}')
    for row in self.rows:
      unknown = sorted(set(row) - set(keys))
      if unknown:
        raise ValueError(f'a row has entries without a column: {", ".join(unknown)}')

  def cells(self) -> list[list[str]]:
    """The body as text, [rows][columns]."""
    return [[column.format(row.get(column.key)) for column in self.columns]
            for row in self.rows]

  def to_markdown(self) -> str:
    """A Markdown table whose columns are aligned in the source as well."""
    heads = [_escape_markdown(column.head) for column in self.columns]
    body = [[_escape_markdown(cell) for cell in row] for row in self.cells()]
    widths = [max(3, *(_display_width(row[i]) for row in [heads, *body]))
              for i in range(len(heads))]
    rule = [('-' * (w - 1) + ':') if c.right else '-' * w for c, w in zip(self.columns, widths)]
    lines = [f'### {_escape_markdown(self.title)}', ''] if self.title else []
    for row in [heads, rule, *body]:
      cells = [_pad(cell, w, c.right) for cell, w, c in zip(row, widths, self.columns)]
      lines.append('| ' + ' | '.join(cells) + ' |')
    for note in self.notes:
      lines += ['', _escape_markdown(text()(note))]
    return '\n'.join(lines) + '\n'

  def to_text(self) -> str:
    """For a terminal: columns two blanks apart, long cells broken at their column's width."""
    rows = [[_wrap(cell, c.width) for cell, c in zip(row, self.columns)]
            for row in [[column.head for column in self.columns], *self.cells()]]
    widths = [max(_display_width(line) for row in rows for line in row[i])
              for i in range(len(self.columns))]
    lines = [self.title] if self.title else []
    for number, row in enumerate(rows):
      for part in range(max(map(len, row))):
        cells = [_pad(cell[part] if part < len(cell) else '', w, c.right)
                 for cell, w, c in zip(row, widths, self.columns)]
        lines.append('  '.join(cells).rstrip())
      if number == 0:
        lines.append('  '.join('-' * w for w in widths))
    lines += [text()(note) for note in self.notes]
    return '\n'.join(lines) + '\n'

  def to_latex(self) -> str:
    """A LaTeX table; the document needs \\usepackage{booktabs} and nothing else."""
    form = ''.join(f'p{{{0.55 * c.width:.1f}em}}' if c.width else 'lr'[c.right]
                   for c in self.columns)
    lines = ['% needs \\usepackage{booktabs}', '\\begin{table}', '\\centering']
    if self.title:
      lines.append(f'\\caption{{{escape_latex(self.title)}}}')
    lines += [f'\\begin{{tabular}}{{{form}}}', '\\toprule']
    body = [' & '.join(_latex_cell(cell) for cell in row) + ' \\\\' for row in self.cells()]
    heads = ' & '.join(_latex_cell(column.head) for column in self.columns) + ' \\\\'
    lines += [heads, '\\midrule', *body, '\\bottomrule', '\\end{tabular}']
    for note in self.notes:
      lines.append(f'\\par\\smallskip\\footnotesize {escape_latex(text()(note))}')
    return '\n'.join(lines + ['\\end{table}']) + '\n'


def claims_table(records: Sequence[Mapping[str, Any]], title: str = 'Claims') -> Table:
  """The claims with the paper's value, ours with its 95 % interval, n and the verdict.

  Args:
    records: entries of claims.json, or `Verdict.record()` of each claim.
    title: head of the table.
  """
  columns = (
      Column('id', 'claim', right=False),
      Column('statement', 'statement', right=False, width=44),
      Column('source', 'source', right=False, width=20),
      Column('paper_value', 'paper', format=significant(4)),
      Column('ours', 'ours', format=significant(4)),
      Column('interval', '95 % interval', format=_significant_interval(4)),
      Column('n', 'n', format=integer()),
      Column('verdict', 'verdict', right=False),
  )
  keys = [column.key for column in columns]
  notes = [f'{record["id"]}: {record["measure"]}. Rule: {record["rule"]}' for record in records]
  return Table(title, columns, [{key: record[key] for key in keys} for record in records], notes)


def _significant_interval(digits: int) -> Formatter:
  number = significant(digits)
  def form(value: Any) -> str:
    return MISSING if value is None else f'[{number(value[0])}, {number(value[1])}]'
  return form


def _display_width(cell: str) -> int:
  """Terminal columns: combining marks take none, wide East Asian characters two."""
  shown = [c for c in cell if not unicodedata.combining(c)]
  return len(shown) + sum(unicodedata.east_asian_width(c) in 'WF' for c in shown)


def _pad(cell: str, width: int, right: bool) -> str:
  blanks = ' ' * (width - _display_width(cell))
  return blanks + cell if right else cell + blanks


def _wrap(cell: str, width: int | None) -> list[str]:
  return (textwrap.wrap(cell, width, break_on_hyphens=False) if width else [cell]) or ['']


def _escape_markdown(cell: str) -> str:
  return cell.replace('\\', '\\\\').replace('|', '\\|').replace('*', '\\*').replace('<', '&lt;')


_LATEX = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '%': r'\%',
    '#': r'\#', '_': r'\_', '^': r'\textasciicircum{}', '~': r'\textasciitilde{}',
    '<': r'$<$', '>': r'$>$', '|': r'$|$', '"': "''",
    '±': r'$\pm$', '×': r'$\times$', '·': r'$\cdot$', '≤': r'$\leq$', '≥': r'$\geq$',
    '≈': r'$\approx$', '∞': r'$\infty$', '√': r'$\surd$', '−': r'$-$', '–': '--', '→': r'$\to$',
    'α': r'$\alpha$', 'β': r'$\beta$', 'γ': r'$\gamma$', 'δ': r'$\delta$', 'ε': r'$\epsilon$',
    'λ': r'$\lambda$', 'μ': r'$\mu$', 'µ': r'$\mu$', 'π': r'$\pi$', 'σ': r'$\sigma$',
    'τ': r'$\tau$', 'φ': r'$\phi$', 'Φ': r'$\Phi$', 'Δ': r'$\Delta$', '²': r'$^2$', '³': r'$^3$',
}


def escape_latex(string: str) -> str:
  """LaTeX source that prints the string in any text font, pdflatex included.

  A character outside of Latin that has no entry in the table above is an error: pdflatex
  would stop at it, far from where it came from.

  Raises:
    ValueError: with the character and the string.
  """
  out = []
  for character in string:
    if character in _LATEX:
      out.append(_LATEX[character])
    elif character.isspace():
      out.append(' ')
    elif ' ' <= character < '\u0180' and character != '\x7f':
      out.append(character)
    else:
      raise ValueError(f'no LaTeX form for {character!r} in {string!r}')
  return ''.join(out)


def _latex_cell(cell: str) -> str:
  escaped = escape_latex(cell)
  # At the start of a row, `[` and `*` would be read as arguments of the \\ before them.
  return f'{{{escaped}}}' if escaped.startswith(('[', '*')) else escaped
