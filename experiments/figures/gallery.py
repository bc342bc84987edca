"""The gallery as one HTML file: cards with curves as inline SVG, a search box, nothing to load.

Takes finished cards and tables; looks nothing up. Colours are those of every other figure.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from html import escape
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
import numpy as np

from experiments.figures.gallery_cards import Card, curve
from launch.study import plotting
from launch.study.tables import Table

WIDTH, HEIGHT = 260.0, 150.0  # of a curve, in the units of its SVG
_HERE = Path(__file__).parent


def curves(specs: Sequence[str]) -> Figure:
  """f and f' of the activations that are functions of one number, as small multiples."""
  found = {spec: curve(spec) for spec in specs}
  return plotting.function_grid({spec: c for spec, c in found.items() if c is not None},
                                columns=10)


def page(sections: Mapping[str, Sequence[Card]], tables: Sequence[Table],
         notes: Sequence[str] = ()) -> str:
  """The whole file.

  Args:
    sections: heading -> cards, in order.
    tables: shown below the cards.
    notes: lines below them.
  """
  known = {card.name for cards in sections.values() for card in cards}
  chips = ''.join(
      f'<button type="button" class="chip" data-section="{escape(heading)}" aria-pressed="false">'
      f'{escape(heading)} <b>{len(cards)}</b></button>' for heading, cards in sections.items())
  body = ''.join(
      f'<section data-section="{escape(heading)}"><h2>{escape(heading)}</h2><div class="cards">'
      + ''.join(_card(card, known) for card in cards) + '</div></section>'
      for heading, cards in sections.items())
  css, script = ((_HERE / f'gallery.{kind}').read_text(encoding='utf-8') for kind in ('css', 'js'))
  total = sum(map(len, sections.values()))
  return f'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gallery of activations and normalizations</title>
<style>
{css}</style>
</head>
<body>
<header>
<h1>Activations and normalizations</h1>
<div class="bar"><input id="search" type="search" placeholder="name, tag, paper, formula …"
 aria-label="Search" autocomplete="off" spellcheck="false"><output id="count">{total} of {total}
</output></div>
<div class="chips">{chips}</div>
</header>
<main>
{body}
<p id="nothing" hidden>Nothing has all of these words.</p>
<section class="tables">{''.join(_table(table) for table in tables)}
{''.join(f'<p>Note: {escape(note)}.</p>' for note in notes)}
<p>Moments are under x ~ N(0, 1), parameters at their first values: gain = (E f²)^(−1/2),
χ raw = E f′² / E f², χ centred = E f′² / Var f. Curves: <span class="f">f</span> and
<span class="slope">f′</span> on −4 … 4; triangles mark kinks. Time is that of one forward
and backward pass; saved bytes, per value of the input, are kept in between; see table.md.
“From memory”: no source was at hand to confirm the formula.</p></section>
</main>
<script>
{script}</script>
</body>
</html>
'''


def _card(card: Card, known: Set[str]) -> str:
  """The card; names of other cards are links, others are text."""
  words = ' '.join([card.name, *card.aliases, *card.tags, card.equation, card.paper,
                    *(v for _, v in card.facts), *(n for names in card.links.values()
                                                   for n in names)])
  badges = ''.join(
      f'<span class="tag{" warn" if tag in ("from memory", "surrogate backward") else ""}">'
      f'{escape(tag)}</span>' for tag in card.tags)
  facts = ''.join(f'<dt>{escape(label)}</dt><dd>{escape(value)}</dd>'
                  for label, value in card.facts)
  for label, names in card.links.items():
    if names:
      links = ', '.join(f'<a href="#q={quote(name, safe="")}">{escape(name)}</a>'
                        if name in known else escape(name) for name in names)
      facts += f'<dt>{escape(label)}</dt><dd>{links}</dd>'
  aliases = f'<p class="aliases">also {escape(", ".join(card.aliases))}</p>' if card.aliases else ''
  figure = _svg(card) if card.curve is not None else ''
  return (
      f'<article class="card" data-name="{escape(card.name)}" data-words="{escape(words.lower())}">'
      f'<h3>{escape(card.name)}</h3>{aliases}<p class="tags">{badges}</p>{figure}'
      f'<p class="equation">{escape(card.equation)}</p><dl>{facts}</dl>'
      f'<p class="paper">{escape(card.paper)}</p></article>\n')


def _svg(card: Card) -> str:
  """f and f' with their axes; what leaves the view is cut off."""
  low, high = plotting.view(card.curve)
  left, right = float(np.floor(card.curve.x[0])), float(np.ceil(card.curve.x[-1]))

  def across(x):
    return (x - left) / (right - left) * WIDTH

  def down(y):
    return (high - y) / (high - low) * HEIGHT

  def path(values: np.ndarray) -> str:
    # A line that leaves the view goes on outside of it, and no number is long.
    values = np.clip(values, low - (high - low), high + (high - low))
    steps, pen = [], 'M'
    for x, y in zip(card.curve.x, values, strict=True):
      if not np.isfinite(y):
        pen = 'M'
        continue
      steps.append(f'{pen}{across(x):.1f} {down(y):.1f}')
      pen = 'L'
    return ''.join(steps)

  zero = down(0.0)
  ticks = ''.join(f'<path class="tick" d="M{across(x):.1f} {zero - 3:.1f}v6"/>'
                  for x in range(int(left) + 1, int(right)))
  ticks += ''.join(f'<path class="tick" d="M{across(0.0) - 3:.1f} {down(y):.1f}h6"/>'
                   for y in range(int(np.ceil(low)), int(np.floor(high)) + 1))
  marks = ''.join(f'<path class="kink" d="M{across(x):.1f} {zero:.1f}l-3.5 7h7z"/>'
                  for x in card.kinks if left < x < right)
  labels = (f'<text x="{WIDTH - 2:g}" y="{zero - 4:.1f}" text-anchor="end">{right:g}</text>'
            f'<text x="2" y="{zero - 4:.1f}">{left:g}</text>'
            f'<text x="{across(0.0) + 5:.1f}" y="{down(1.0) + 3:.1f}">1</text>')
  return (f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
          f'aria-label="{escape(card.name)} and its derivative from {left:g} to {right:g}">'
          f'<path class="axis" d="M0 {zero:.1f}H{WIDTH:g}M{across(0.0):.1f} 0V{HEIGHT:g}"/>'
          f'{ticks}<path class="slope" d="{path(card.curve.slope)}"/>'
          f'<path class="f" d="{path(card.curve.y)}"/>{marks}{labels}</svg>')


def _table(table: Table) -> str:
  head = ''.join(f'<th>{escape(column.head)}</th>' for column in table.columns)
  rows = ''.join('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>'
                 for row in table.cells())
  notes = ''.join(f'<p>{escape(note)}</p>' for note in table.notes)
  return (f'<h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
          f'<tbody>{rows}</tbody></table></div>{notes}')
