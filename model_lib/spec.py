"""The small grammar in which activations and normalizations are named.

A spec is a name with optional settings, nested where a setting is itself a spec:

  gelu    crrelu(epsilon=0.02, per=channel)    switch(relu, gelu)    glu_of(elu(alpha=2.0))

  call  := name [ '(' [item {',' item}] ')' ]        positional items stand before named ones
  item  := [key '='] value
  value := integer | decimal | 'True' | 'False' | 'None' | word | call with parentheses

A word is a letter or '_' followed by letters, digits, '_', ':', '@' and '^'. `inf` is a number,
and `true` and `false` are accepted for `True` and `False`. `str` of a parsed spec is its
canonical form: named settings in alphabetical order, one space after a comma.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
import dataclasses
import difflib
import re
from typing import Union

from model_lib.errors import UserError

_NUMBER = re.compile(r'[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf)(?![A-Za-z0-9_:@.])')
_WORD = re.compile(r'[A-Za-z_][A-Za-z0-9_:@^]*')
_INTEGER = re.compile(r'[+-]?\d+')
_MAX_DEPTH = 16
_MAX_LENGTH = 4000
_LITERALS = {'True': True, 'true': True, 'False': False, 'false': False, 'None': None}


class SpecError(UserError):
  """A spec string that the grammar cannot read; one line, with the position counted from 1."""


@dataclasses.dataclass(frozen=True)
class Call:
  """One parsed spec: a name, positional values, and named values in alphabetical order."""

  name: str
  args: tuple['Value', ...] = ()
  kwargs: tuple[tuple[str, 'Value'], ...] = ()

  def __str__(self) -> str:
    """Canonical text; `parse(str(call)) == call`."""
    items = [_text(value) for value in self.args]
    items += [f'{key}={_text(value)}' for key, value in self.kwargs]
    return f'{self.name}({", ".join(items)})' if items else self.name


Value = Union[int, float, bool, None, str, Call]


def parse(text: str) -> Call:
  """Reads a spec string.

  Args:
    text: the spec, e.g. 'crrelu(epsilon=0.02, per=channel)'.

  Returns:
    The `Call`. A value with parentheses is a nested `Call`, one without is a `str`.

  Raises:
    SpecError: the text does not follow the grammar; the line names the position.
  """
  if not isinstance(text, str):
    raise SpecError(f'a spec is a string such as \'gelu\', not {type(text).__name__} {text!r}')
  if len(text) > _MAX_LENGTH:
    raise SpecError(f'a spec has at most {_MAX_LENGTH} characters, not {len(text)}')
  reader = _Reader(text)
  call = reader.call(reader.word('a name'))
  reader.end()
  return call


def nearest(name: str, names: Iterable[str]) -> str:
  """The ending of an error line: "; nearest: 'gelu', 'celu'", or '' when nothing is near."""
  known = sorted(names)
  close = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0.5)
  # By shared letters first, in any order: 'gelo' is as near to golu as to gelu, and nearer than
  # to geglu. The sort is stable, so that equals stay in the order of the longest common runs.
  count = collections.Counter(name)
  close.sort(key=lambda other: -(count & collections.Counter(other)).total()
             / max(len(name), len(other)))
  close = close[:3]
  return '; nearest: ' + ', '.join(repr(other) for other in close) if close else ''


def _text(value: Value) -> str:
  if isinstance(value, Call) and not (value.args or value.kwargs):
    # Without the parentheses the value would be read back as a word.
    return f'{value.name}()'
  return str(value) if isinstance(value, (Call, str)) else repr(value)


class _Reader:
  """A cursor on the text; each method reads one rule of the grammar and moves on."""

  def __init__(self, text: str):
    self._text = text
    self._at = 0
    self._depth = 0

  def word(self, what: str) -> str:
    self._skip_space()
    match = _WORD.match(self._text, self._at)
    if match is None:
      raise self._error(f'expected {what}')
    self._at = match.end()
    return match.group()

  def call(self, name: str) -> Call:
    """The rest of a call whose name has just been read."""
    args: list[Value] = []
    kwargs: dict[str, Value] = {}
    if not self._take('('):
      return Call(name)
    self._depth += 1
    if self._depth > _MAX_DEPTH:
      raise self._error(f'nested deeper than {_MAX_DEPTH}')
    while not self._take(')'):
      if (args or kwargs) and not self._take(','):
        raise self._error("expected ',' or ')'")
      self._skip_space()
      start = self._at
      value = self._value()
      if not isinstance(value, str) or not self._take('='):
        if kwargs:
          raise self._error('a value without a name stands after a named one', start)
        args.append(value)
        continue
      if value in kwargs:
        raise self._error(f'{value!r} is given twice', start)
      kwargs[value] = self._value()
    self._depth -= 1
    return Call(name, tuple(args), tuple(sorted(kwargs.items())))

  def end(self) -> None:
    self._skip_space()
    if self._at < len(self._text):
      raise self._error('expected the end')

  def _value(self) -> Value:
    self._skip_space()
    match = _NUMBER.match(self._text, self._at)
    if match:
      self._at = match.end()
      number = match.group()
      return int(number) if _INTEGER.fullmatch(number) else float(number)
    word = self.word('a value')
    if word in _LITERALS:
      return _LITERALS[word]
    return self.call(word) if self._peek() == '(' else word

  def _peek(self) -> str:
    self._skip_space()
    return self._text[self._at:self._at + 1]

  def _take(self, character: str) -> bool:
    found = self._peek() == character
    self._at += found
    return found

  def _skip_space(self) -> None:
    while self._text[self._at:self._at + 1].isspace():
      self._at += 1

  def _error(self, what: str, at: int | None = None) -> SpecError:
    at = self._at if at is None else at
    found = repr(self._text[at:at + 12]) if at < len(self._text) else 'the end'
    return SpecError(f'spec {self._text!r}: {what} at position {at + 1}, found {found}')
