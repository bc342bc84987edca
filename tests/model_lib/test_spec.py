"""The grammar of specs: what it reads, what it writes, and its error lines."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
import pytest

from model_lib.errors import UserError
from model_lib.spec import Call, SpecError, nearest, parse

_LITERALS = ('True', 'true', 'False', 'false', 'None', 'inf')
_words = st.from_regex(r'[A-Za-z_][A-Za-z0-9_:@^]{0,8}', fullmatch=True).filter(
    lambda word: word not in _LITERALS)
_scalars = st.one_of(
    st.integers(-10**12, 10**12), st.floats(allow_nan=False), st.booleans(), st.none(), _words)


def _calls(values):
  return st.builds(
      lambda name, args, kwargs: Call(name, tuple(args), tuple(sorted(kwargs.items()))),
      _words, st.lists(values, max_size=3), st.dictionaries(_words, values, max_size=3))


@given(_calls(st.recursive(_scalars, _calls, max_leaves=4)))
def test_text_of_a_call_reads_back_as_the_same_call(call):
  again = parse(str(call))
  assert again == call
  # 1, 1.0 and True are equal in Python, not in a spec.
  assert repr(again) == repr(call)
  assert str(again) == str(call)


@given(_calls(_scalars), st.sampled_from(['', ' ', '\n', ' \t ']))
def test_white_space_between_tokens_changes_nothing(call, space):
  text = str(call)
  for token in '(),=':
    text = text.replace(token, f'{space}{token}{space}')
  assert parse(f'{space}{text}{space}') == call


@pytest.mark.parametrize('text, call', [
    ('gelu', Call('gelu')),
    ('gelu()', Call('gelu')),
    ('gelu@jax', Call('gelu@jax')),
    ('relu^2', Call('relu^2')),
    ('crrelu(per=channel, epsilon=0.02)',
     Call('crrelu', (), (('epsilon', 0.02), ('per', 'channel')))),
    ('rms(eps=1e-6)', Call('rms', (), (('eps', 1e-6),))),
    ('switch(relu, gelu,silu)', Call('switch', ('relu', 'gelu', 'silu'))),
    ('glu_of(celu(alpha=2))', Call('glu_of', (Call('celu', (), (('alpha', 2),)),))),
    ('f(-1, +2, .5, 2., inf, -inf, infinite)',
     Call('f', (-1, 2, 0.5, 2.0, float('inf'), float('-inf'), 'infinite'))),
    ('f(True, false, None, a=pre:layer)',
     Call('f', (True, False, None), (('a', 'pre:layer'),))),
    ('f(g())', Call('f', (Call('g'),))),
])
def test_reads(text, call):
  assert repr(parse(text)) == repr(call)


def test_a_bare_word_and_a_call_without_settings_are_told_apart():
  assert parse('f(g)') != parse('f(g())')


@pytest.mark.parametrize('text, position, what', [
    ('', 1, 'expected a name'),
    ('2gelu', 1, 'expected a name'),
    ('gelu tanh', 6, 'expected the end'),
    ('gelu)', 5, 'expected the end'),
    ('crrelu(epsilon=', 16, 'expected a value'),
    ('crrelu(epsilon=)', 16, 'expected a value'),
    ('crrelu(epsilon 0.1)', 16, "expected ',' or ')'"),
    ('crrelu(', 8, 'expected a value'),
    ('crrelu(1', 9, "expected ',' or ')'"),
    ('crrelu(1,)', 10, 'expected a value'),
    ('crrelu(,1)', 8, 'expected a value'),
    ('crrelu(a=1, a=2)', 13, "'a' is given twice"),
    ('crrelu(a=1, 2)', 13, 'a value without a name stands after a named one'),
    ('crrelu(1.2.3)', 8, 'expected a value'),
    ('crrelu(1e)', 8, 'expected a value'),
    ('f(' * 17 + ')' * 17, 35, 'nested deeper than 16'),
])
def test_an_error_is_one_line_with_the_position(text, position, what):
  with pytest.raises(SpecError) as caught:
    parse(text)
  message = str(caught.value)
  assert f'{what} at position {position}, found' in message
  assert '\n' not in message
  assert isinstance(caught.value, UserError)


@pytest.mark.parametrize('text', [None, 3, ['gelu'], 'a' * 4001])
def test_what_cannot_be_a_spec_is_refused_in_one_line(text):
  with pytest.raises(SpecError, match='a spec '):
    parse(text)


@given(st.text(max_size=30))
def test_any_text_is_either_read_or_refused_in_one_line(text):
  try:
    call = parse(text)
  except SpecError as error:
    assert '\n' not in str(error)
  else:
    assert parse(str(call)) == call


def test_nearest_names_what_is_near_and_nothing_else():
  assert nearest('gleu', ['gelu', 'celu', 'tanh']) == "; nearest: 'gelu', 'celu'"
  assert nearest('gelu', ['gelu']) == "; nearest: 'gelu'"
  assert nearest('qqqqq', ['gelu', 'celu']) == ''


def test_the_grammar_does_not_import_jax():
  code = 'import sys, model_lib.spec; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
