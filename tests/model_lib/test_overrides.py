"""Overrides by path: what a pattern matches, what a value means, and the error lines."""

from __future__ import annotations

import jax
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models import overrides
from model_lib.models.site import Site, summary
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

SITES = (
  Site('stem.norm', 'norm', 'batch'),
  *(Site(f'blocks.{i}.{part}', kind, spec) for i in range(5) for part, kind, spec in (
    ('attention.norm', 'placement', 'post:layer'),
    ('mlp.norm', 'placement', 'post:layer'),
    ('mlp.activation', 'activation', 'gelu'))),
  Site('final.norm', 'norm', 'layer'))


def _changed(*texts: str) -> dict[str, str]:
  after = overrides.apply(SITES, texts)
  assert [(a.path, a.kind) for a in after] == [(b.path, b.kind) for b in SITES]
  return {a.path: a.spec for a, b in zip(after, SITES, strict=True) if a.spec != b.spec}


@pytest.mark.parametrize('text, expected', [
  ('blocks.0-1.mlp: relu^2', {f'blocks.{i}.mlp.activation': 'relu^2' for i in (0, 1)}),
  ('blocks.4: relu', {'blocks.4.mlp.activation': 'relu'}),
  ('blocks.*.mlp.activation: relu', {f'blocks.{i}.mlp.activation': 'relu' for i in range(5)}),
  ('activation: relu', {f'blocks.{i}.mlp.activation': 'relu' for i in range(5)}),
  # A norm keeps the place, a placement changes it, and neither is an activation.
  ('blocks.3: rms', {f'blocks.3.{part}.norm': 'post:rms' for part in ('attention', 'mlp')}),
  ('blocks.3.mlp: pre:rms(eps=1e-6)', {'blocks.3.mlp.norm': 'pre:rms(eps=1e-6)'}),
  ('blocks.2-2.attention.norm: none', {'blocks.2.attention.norm': 'post:none'}),
  # A placement stands at no site of a norm alone.
  ('norm: pre:rms', {f'blocks.{i}.{part}.norm': 'pre:rms' for i in range(5)
                     for part in ('attention', 'mlp')}),
  ('  stem.norm :  rms ', {'stem.norm': 'rms'}),
])
def test_what_an_override_changes(text, expected) -> None:
  assert _changed(text) == expected


def test_a_norm_stands_everywhere() -> None:
  changed = _changed('norm: rms')
  assert changed == {site.path: {'norm': 'rms', 'placement': 'post:rms'}[site.kind]
                     for site in SITES if site.kind != 'activation'}


def test_the_later_one_counts() -> None:
  assert _changed('activation: relu', 'blocks.1: tanh')['blocks.1.mlp.activation'] == 'tanh'
  assert set(_changed('blocks.1: tanh', 'activation: relu').values()) == {'relu'}
  assert _changed('blocks.0.mlp: pre:layer', 'blocks.0.mlp: rms') == {
    'blocks.0.mlp.norm': 'pre:rms'}


@pytest.mark.parametrize('text, part', [
  ('blocks.0', 'write PATH: SPEC'),
  (': relu', 'write PATH: SPEC'),
  ('blocks.0:', 'write PATH: SPEC'),
  ('blocks..mlp: relu', "'.mlp' is no path"),
  ('blocks.: relu', 'is no path'),
  ('blocks.x-3: relu', 'is no path'),
  ('Blocks: relu', 'is no path'),
  ('blocks.3-1: relu', 'the range 3-1 is empty'),
  ('blocks.3-5.mlp: relu', 'the model has blocks.0-4'),
  ('mlp.0: relu', 'the model has mlp without numbers'),
  ('block.0.mlp: relu', "nearest: 'blocks.mlp'"),
  ('blocks.0.mpl: relu', "nearest: 'blocks.mlp'"),
  ('layers.0: relu', 'there are: stem.norm, blocks.0-4.attention.norm, '),
  ('mlp.blocks: relu', "no place of the model is 'mlp.blocks'"),
  ('attention: relu', "there is none at 'attention'; there stand: blocks.0-4.attention.norm"),
  ('mlp.activation: rms', "'rms' is a norm, and there is none"),
  ('stem: pre:rms', "'pre:rms' is a placed norm, and there is none"),
  ('blocks.0.mlp: gelo', "nearest: 'gelu'"),
  ('blocks.0.mlp: layr', "'layer'"),
  ('blocks.0.mlp: relu(', 'position'),
])
def test_a_wrong_override_is_one_line(text, part) -> None:
  with pytest.raises(UserError) as info:
    overrides.apply(SITES, (text,))
  assert part in str(info.value) and '\n' not in str(info.value)
  assert part.endswith('position') or text in str(info.value)


def test_summary() -> None:
  assert summary(SITES) == ('stem.norm, blocks.0-4.attention.norm, blocks.0-4.mlp.norm, '
                            'blocks.0-4.mlp.activation, final.norm')
  assert summary(SITES[1:2]) == 'blocks.0.attention.norm'
  pairs = [Site(f'blocks.{i}.activation.{n}', 'activation', 'relu') for i in (1, 2) for n in (0, 1)]
  assert summary(pairs) == 'blocks.1-2.activation.0-1'


@pytest.mark.parametrize('name', cases.SIZES)
def test_an_override_of_everything_is_the_attribute(name) -> None:
  """The same program, letter by letter; an override of one place is neither."""
  x = cases.inputs(name)
  sizes = {**cases.SIZES[name], 'activation': 'tanh', 'norm': 'pre:layer'}

  def program(**kwargs):
    model = models.build(name, **{**sizes, **kwargs})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return str(jax.make_jaxpr(lambda v: model.apply(v, x, train=False))(shapes))

  plain = program()
  assert plain == program(overrides=('activation: tanh', 'norm: layer'))
  for attribute, everything, one in (
      ({'activation': 'relu'}, 'activation: relu', '.0.activation: relu'),
      ({'norm': 'pre:rms'}, 'norm: rms', '.0.norm: rms')):
    one = ('layers' if name == 'mlp' else 'blocks') + one
    programs = [plain, program(**attribute), program(overrides=(one,))]
    assert program(overrides=(everything,)) == programs[1]
    # The one block of three of the models has their only activation.
    only = 'activation' in attribute and name in ('resmlp', 'vit', 'gpt')
    assert len(set(programs)) == (2 if only else 3)


def test_sites() -> None:
  model = models.build('gpt', depth=2, overrides=('blocks.1: post:rms', 'blocks.0: relu^2'))
  found = {site.path: site.spec for site in models.sites(model)}
  assert found == {
    'blocks.0.attention.norm': 'pre:layer(eps=1e-05)', 'blocks.0.mlp.norm': 'pre:layer(eps=1e-05)',
    'blocks.0.mlp.activation': 'relu^2', 'blocks.1.attention.norm': 'post:rms',
    'blocks.1.mlp.norm': 'post:rms', 'blocks.1.mlp.activation': 'gelu',
    'final.norm': 'layer(eps=1e-05)'}


def test_a_model_without_sites_says_so() -> None:
  with pytest.raises(UserError, match='GPT2 has no sites'):
    models.sites(models.build('gpt2'))
