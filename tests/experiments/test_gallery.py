"""The gallery: a card for every entry, a page that loads nothing, a search that finds."""
from __future__ import annotations

import collections
from html.parser import HTMLParser
from pathlib import Path
import re
import shutil
import subprocess

import pandas as pd
import pytest

from experiments import gallery as study
from experiments.figures import gallery as figures
from experiments.figures import gallery_cards as cards
from launch.study import config as config_lib
from launch.study.study import Run
from model_lib import activations, normalization
from model_lib.activations.fingerprint import affine_duplicates
from model_lib.errors import UserError
from model_lib.normalization.entry import INVARIANCES
from model_lib.normalization.placement import PLACEMENTS
from model_lib.normalization.weight import weight_norms
from model_lib.parametrization.residual_rows import MAKERS
from tests import helpers

LIMIT = 10e6  # bytes
REFERENCES = {'activation': study.ACTIVATION, 'norm': study.NORM}
CHROMIUM = shutil.which('chromium')
VOID = {'meta', 'input', 'br', 'hr', 'img', 'link'}


class Reader(HTMLParser):
  """Nesting, addresses and cards of a page."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.faults: list[str] = []
    self.addresses: list[str] = []
    self.cards: dict[str, list[str]] = collections.defaultdict(list)
    self.section = ''
    self.feed(text)
    self.close()
    self.faults += [f'<{tag}> is never closed' for tag in self.open]

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    if tag not in VOID:
      self.open.append(tag)
    self.addresses += [value for key, value in attrs if key in ('src', 'href', 'action', 'data')]
    if tag == 'section':
      self.section = attributes.get('data-section', '')
    if tag == 'article':
      self.cards[self.section].append(attributes['data-name'])

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    self.handle_endtag(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.faults.append(f'</{tag}> closes something else')


def loaded(text: str) -> list[str]:
  """What a browser would load for the page, links within it aside."""
  found = [address for address in Reader(text).addresses if not address.startswith('#')]
  return found + re.findall(r'url\([^)]*\)|@import|\bfetch\(|\bimport\(|XMLHttp|https?://', text)


def made_up_rows(config: study.Config) -> pd.DataFrame:
  """Rows as the measurements give them, without measuring."""
  names = {'activation': study.activations(config), 'norm': study.norms(config)}
  return pd.DataFrame([
      {'kind': kind, 'name': name, 'pass_us': 10.0 + i, 'cost_ratio': 1 + i / 8,
       'saved_bytes': 4.0 * (i % 5)}
      for kind, some in names.items()
      for i, name in enumerate(dict.fromkeys((REFERENCES[kind], *some)))])


def reported(config: study.Config):
  return study.report(Run(config, made_up_rows(config), lambda: None, '', ('a note',)))


@pytest.fixture(scope='module')
def whole():
  """The page of all entries, the costs made up."""
  return reported(study.Config()).pages['index.html']


def test_every_entry_has_one_card(whole):
  assert Reader(whole).cards == {
      'Activations': list(activations.names()), 'Norms': list(normalization.names()),
      'Weight norms': list(weight_norms()), 'Placements': list(PLACEMENTS),
      'Residual rules': list(MAKERS)}


def test_the_page_is_well_formed_and_small_and_loads_nothing(whole):
  assert Reader(whole).faults == []
  assert loaded(whole) == []
  assert 1e5 < len(whole.encode()) < LIMIT


@pytest.mark.parametrize('text', ['<p><b></p></b>', '<div>', '</p>'])
def test_a_page_that_is_not_well_formed_is_noticed(text):
  assert Reader(text).faults


@pytest.mark.parametrize('text', [
    '<img src="a.png">', '<script src="https://x.org/y.js"></script>', '<a href="other.html"></a>',
    '<style>@import "a.css"</style>', '<style>p{background:url(a.png)}</style>'])
def test_a_page_that_loads_something_is_noticed(text):
  assert loaded(text)


def test_links_lead_to_cards(whole):
  from urllib.parse import unquote
  known = set(Reader(whole).cards['Activations'])
  linked = {unquote(a.removeprefix('#q=')) for a in Reader(whole).addresses}
  assert len(linked) > 10 and linked <= known
  assert 'glu_of(relu)' in card_text(whole, 'reglu')  # a spec without a card is text


def card_text(page: str, name: str) -> str:
  """The card of an activation as text."""
  found = re.search(rf'<article class="card" data-name="{re.escape(name)}".*?</article>', page,
                    re.DOTALL)
  return re.sub(r'<[^>]*>', ' ', found[0])


def test_a_card_says_what_the_registry_says(whole):
  text = ' '.join(card_text(whole, 'gelu').split())
  moments = activations.get_activation('gelu').moments()
  for label, value in (('E f', moments.mean), ('E f²', moments.second), ('gain', moments.gain),
                       ('E f′²', moments.slope_second), ('χ raw', moments.chi_raw),
                       ('χ centred', moments.chi_centred)):
    assert f'{label} {value:.4g}' in text, label
  assert '2016, arXiv' in text or 'Gimpel' in text
  silu = ' '.join(card_text(whole, 'silu').split())
  for other in (*activations.get_activation('silu').duplicates, *affine_duplicates('silu')):
    assert other in silu
  assert 'from memory' not in text
  unconfirmed = next(n for n, p in PLACEMENTS.items() if not p.confirmed)
  assert 'from memory' in card_text(whole, unconfirmed)


def test_a_norm_says_its_invariances_and_whether_its_gradient_is_its_own(whole):
  rms = ' '.join(card_text(whole, 'rms').split())
  for key, words in INVARIANCES.items():
    assert (words in rms) == (key in normalization.get_norm('rms').invariances), key
  batch = ' '.join(card_text(whole, 'batch').split())
  assert 'running = unbiased' in batch and 'keras: eps = 0.001' in batch
  entries = {name: normalization.get_norm(name) for name in normalization.names()}
  assert {bool(entry.backward) for entry in entries.values()} == {True, False}
  for name, entry in entries.items():
    assert ('of a surrogate' in card_text(whole, name)) == bool(entry.backward)
    assert ('from memory' in card_text(whole, name)) == (not entry.confirmed)


def test_curves_are_those_of_the_functions():
  import numpy as np
  relu, step = cards.curve('relu'), cards.curve('tanh')
  np.testing.assert_array_equal(relu.y, np.maximum(relu.x, 0))
  np.testing.assert_array_equal(relu.slope, relu.x > 0)
  np.testing.assert_allclose(step.slope, 1 / np.cosh(step.x)**2, rtol=1e-12)
  assert cards.curve('softmax') is None
  jumping = next(n for n in activations.names() if activations.get_activation(n).jumps
                 and 0.0 in activations.get_activation(n).jumps)
  assert np.isnan(cards.curve(jumping).y[cards.POINTS // 2])


def test_text_that_looks_like_html_is_shown_as_text():
  card = cards.Card('<b>', ('x',), 'x < 0 & y', (('a', '<i>'),), '"paper"')
  page = figures.page({'S': [card]}, ())
  assert Reader(page).faults == [] and '<i>' not in page and 'x &lt; 0 &amp; y' in page


def test_the_cost_tables_are_relative_to_relu_and_none():
  config = config_lib.apply_preset(study.Config(), study.PRESETS['smoke'])
  of_activations, of_norms, gains = reported(config).tables
  assert [row['name'] for row in of_activations.rows] == ['relu', 'gelu', 'prelu', 'softmax',
                                                          'swiglu']
  assert [row['share'] for row in of_norms.rows[1:]] and of_norms.rows[0]['name'] == 'none'
  assert {row['name'] for row in gains.rows} >= {'relu', 'gelu_tanh', 'silu'}
  distances = {row['name']: row['distance'] for row in gains.rows}
  # 1 / std of relu is sqrt(2 pi / (pi - 1)).
  assert distances['relu'] == pytest.approx(
      100 * (1.71396 / (2 * 3.141592653589793 / 2.141592653589793)**0.5 - 1), abs=1e-9)


@pytest.mark.parametrize('change, words', [
    ({'activations': ('gelo',)}, 'gelu'), ({'norms': ('layre',)}, 'layer'),
    ({'activations': ('relu', 'relu')}, 'relu stands there twice')])
def test_what_does_not_exist_is_one_line(change, words):
  with pytest.raises(UserError, match=words):
    study.check(config_lib.apply_preset(study.Config(), change))


def test_the_command(tmp_path):
  """One whole run of the smallest preset."""
  workdir = tmp_path / 'w'
  done = helpers.run_module('experiments.gallery', '--preset=smoke', f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  page = (workdir / 'index.html').read_text(encoding='utf-8')
  assert Reader(page).faults == loaded(page) == []
  assert Reader(page).cards['Norms'] == ['layer', 'batch', 'none']
  assert 'Cost of each activation' in done.stdout and str(workdir / 'index.html') in done.stdout
  rows = pd.read_csv(workdir / 'results.csv')
  cost = rows.set_index('name')
  assert (cost.pass_us > 0).all() and cost.saved_bytes['none'] == 0
  assert cost.saved_bytes['relu'] == 1  # a mask
  assert (workdir / 'environment.json').exists() and (workdir / 'figures/functions.png').exists()


def dump(page: Path, query: str, tmp_path: Path) -> str:
  """The page as a browser has it after its script ran."""
  done = subprocess.run(
      [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
       '--disable-background-networking', '--disable-component-update', '--disable-sync',
       f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', f'file://{page}#{query}'],
      capture_output=True, text=True, timeout=120, check=True)
  return done.stdout


def visible(dom: str) -> list[str]:
  """Names of the cards that are not hidden."""
  return re.findall(r'<article class="card" data-name="([^"]*)"(?:(?! hidden=)[^>])*>', dom)


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
def test_the_search_finds(whole, tmp_path):
  page = tmp_path / 'index.html'
  page.write_text(whole, encoding='utf-8')
  total = sum(map(len, Reader(whole).cards.values()))
  for query, wanted, unwanted in (
      ('q=gelu', {'gelu', 'gelu_tanh', 'geglu'}, {'relu', 'layer'}),
      ('q=Hendrycks%20Gimpel', {'gelu'}, {'relu'}), ('q=rms&in=Norms', {'rms'}, {'batch', 'gelu'}),
      ('q=nothingcalledso', set(), {'gelu'})):
    dom = dump(page, query, tmp_path)
    shown = visible(dom)
    assert wanted <= set(shown) and not unwanted & set(shown), query
    assert f'>{len(shown)} of {total}<' in dom
  assert len(visible(dump(page, '', tmp_path))) == total
