"""Labels from the shapes of three models: every parameter once, or an error with the cure."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from model_lib.errors import UserError
from model_lib.models import build
from model_lib.parametrization import report
from model_lib.parametrization import scaled_rows as rows
from model_lib.parametrization.kinds import as_tree, label_parameters, shapes
from model_lib.parametrization.label import Extent
from model_lib.parametrization.rules import factors


def array(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def params(name: str, x: jax.Array, **settings):
  model = build(name, **settings)
  return jax.eval_shape(lambda key: model.init(key, x, train=False), jax.random.key(0))['params']


def tiny(n: int, classes: int = 10) -> dict:
  return {'stem': {'kernel': array(64, n), 'bias': array(n)}, 'mid': {'kernel': array(n, 2 * n)},
          'head': {'kernel': array(2 * n, classes), 'bias': array(classes)}}


def test_a_transformer_is_labelled_by_its_shapes() -> None:
  tokens = jnp.zeros((2, 8), jnp.int32)
  base, delta, target = (params('gpt', tokens, dim=dim, depth=depth, heads=2)
                         for dim, depth in ((8, 2), (16, 2), (32, 3)))
  labels = label_parameters(base, delta, target)
  assert set(labels) == set(shapes(target))
  kinds = {path: label.kind for path, label in labels.items()}
  assert kinds['embedding/table'] == kinds['position/table'] == 'input'
  assert labels['embedding/table'].lookup
  assert kinds['head/kernel'] == 'output' and kinds['head/bias'] == 'scalar'
  last = labels['blocks/feed_forward_2/out/kernel']
  assert (last.kind, last.fan_in, last.fan_out) == ('hidden', Extent(32, 128), Extent(8, 32))
  # Block 2, which the base has not, takes the shapes of the base's last.
  assert last.depth == Extent(2, 3)
  assert kinds['blocks/norm_attention_0/scale'] == 'vector'
  assert labels['blocks/norm_attention_0/scale'].depth == Extent(2, 3)
  assert labels['blocks/norm_final/scale'].depth is None


def test_the_blocks_of_a_residual_mlp_are_found_and_a_plain_mlp_has_none() -> None:
  x = jnp.zeros((2, 8, 8, 1))
  labels = label_parameters(*(params('resmlp', x, width=n, depth=d)
                              for n, d in ((8, 2), (16, 2), (32, 4))))
  assert {p.split('/')[0] for p, label in labels.items() if label.depth is None} == {
    'stem', 'norm_final', 'head'}
  labels = label_parameters(*(params('mlp', x, widths=(n, n)) for n in (8, 16, 32)))
  assert all(label.depth is None for label in labels.values())
  assert labels['hidden_0/kernel'].kind == 'input' and labels['hidden_1/kernel'].kind == 'hidden'


def test_convolutions_count_channels_not_pixels() -> None:
  def conv(n):
    return {'first': {'kernel': array(3, 3, 3, n)}, 'second': {'kernel': array(3, 3, n, n)}}

  labels = label_parameters(conv(8), conv(16), conv(32))
  assert labels['first/kernel'].kind == 'input'
  assert labels['second/kernel'].kind == 'hidden'
  assert labels['second/kernel'].fan_in == Extent(72, 288)
  assert factors(rows.mup(), labels['second/kernel']).learning_rate == 1 / 4


def test_the_layer_axis_of_a_scanned_stack_is_no_width() -> None:
  def scanned(n, blocks):
    return {'layers': {'kernel': array(blocks, n, n), 'scale': array(blocks, n),
                       'alpha': array(blocks)}, 'stem': {'kernel': array(64, n)}}

  labels = label_parameters(scanned(8, 2), scanned(16, 2), scanned(32, 6), stack='^layers/')
  kernel, gain = labels['layers/kernel'], labels['layers/scale']
  assert (kernel.kind, kernel.depth, kernel.shape) == ('hidden', Extent(2, 6), (32, 32))
  assert kernel.fan_in == Extent(8, 32)
  # A stacked gain has two dimensions, and is a vector that does not decay.
  assert (gain.kind, gain.fan_out) == ('vector', Extent(8, 32))
  assert factors(rows.mup(), gain).decay == 0
  assert labels['layers/alpha'].kind == 'scalar' and labels['stem/kernel'].depth is None
  with pytest.raises(UserError, match='layers/alpha: base shape .* axis 0 differs.*stack='):
    label_parameters(scanned(8, 2), scanned(16, 2), scanned(32, 6), stack='')
  with pytest.raises(UserError, match='base has 2 blocks and delta 3'):
    label_parameters(scanned(8, 2), scanned(16, 3), scanned(32, 6), stack='^layers/')


@pytest.mark.parametrize('heads, size', [((2, 4, 8), (4, 4, 4)), ((2, 2, 2), (4, 8, 16))])
def test_kernels_of_heads_have_the_fans_of_the_maps_that_they_are(heads, size) -> None:
  """More heads, or larger ones: [in, heads, size] and [heads, size, out]."""
  def attention(number, size):
    dim = number * size
    model = nn.MultiHeadDotProductAttention(number, qkv_features=dim)
    x = jnp.zeros((1, 3, dim))
    return jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0))['params']

  labels = label_parameters(*map(attention, heads, size))
  assert len(labels) == 8
  for path, label in labels.items():
    if path.endswith('bias'):
      assert (label.kind, label.fan_out.ratio) == ('vector', 4), path
    else:
      assert (label.kind, label.fan_in.ratio, label.fan_out.ratio) == ('hidden', 4, 4), path


def test_a_dimension_that_stays_is_not_scalable() -> None:
  def feed_forward(dim, hidden):
    return {'kernel': array(dim, hidden)}

  # The hidden width is the same in all: from features to a fixed number.
  labels = label_parameters(feed_forward(8, 64), feed_forward(16, 64), feed_forward(32, 64))
  assert labels['kernel'].kind == 'output'


@pytest.mark.parametrize('kinds, message', [
  ({'mid': 'hidden', 'kernel': 'hidden'}, "mid/kernel: labelled twice, by the patterns 'mid' and"),
  ({'nothing': 'hidden'}, "the pattern 'nothing' matches no parameter"),
  ({'mid': 'hiden'}, "mid/kernel: unknown kind 'hiden'; nearest: 'hidden'"),
  ({'stem/bias': 'hidden'}, 'stem/bias: a parameter of 1 dimensions cannot be hidden'),
])
def test_kinds_that_cannot_be_are_refused(kinds, message) -> None:
  with pytest.raises(UserError) as info:
    label_parameters(tiny(8), tiny(16), tiny(32), kinds=kinds)
  assert message in str(info.value) and '\n' not in str(info.value)


def test_an_unknown_layout_is_refused_until_it_is_named() -> None:
  def model(n):
    return {'qk': {'gain': array(2, n)}, **tiny(n)}

  models = [model(n) for n in (8, 16, 32)]
  with pytest.raises(UserError, match=r"qk/gain: unlabelled: axes \(1,\) of 2.*kinds="):
    label_parameters(*models)
  labels = label_parameters(*models, kinds={'^qk/': 'vector'})
  assert (labels['qk/gain'].kind, labels['qk/gain'].fan_out) == ('vector', Extent(16, 64))


@pytest.mark.parametrize('base, delta, target, message', [
  (tiny(8), tiny(8), tiny(32), 'the same shapes, so no dimension is scalable'),
  (tiny(8), tiny(16), tiny(32, classes=12), 'head/bias: base shape (10,) does not fit shape (12,)'),
  (tiny(8), {'stem': tiny(16)['stem']}, tiny(32), 'the same parameters'),
  (tiny(8), tiny(16), {**tiny(32), 'new': array(3)}, 'new: the base model has no such parameter'),
  (tiny(8), tiny(16), {'stem': tiny(32)['stem']}, 'the target has not'),
  ({'w': array(8)}, {'w': array(16)}, {'w': array(8, 8)}, 'number of dimensions differs'),
])
def test_a_base_that_does_not_fit_is_refused(base, delta, target, message) -> None:
  with pytest.raises(UserError) as info:
    label_parameters(base, delta, target)
  assert message in str(info.value) and '\n' not in str(info.value)


def test_mean_field_refuses_a_second_hidden_layer_by_name() -> None:
  labels = label_parameters(tiny(8), tiny(16), tiny(32))
  with pytest.raises(UserError, match='^mid/kernel: mean_field is for one hidden layer'):
    {path: factors(rows.mean_field(), label) for path, label in labels.items()}


def test_a_tree_of_values_and_the_table_to_read() -> None:
  labels = label_parameters(tiny(8), tiny(16), tiny(32))
  tree = as_tree({path: label.kind for path, label in labels.items()}, tiny(32))
  assert tree['mid']['kernel'] == 'hidden' and tree['head']['kernel'] == 'output'
  with pytest.raises(UserError, match='^head/bias: the parameter has no label'):
    as_tree({}, tiny(32))
  found = {path: factors(rows.mup(), label) for path, label in labels.items()}
  text = report.lines(labels, found)
  assert len(text) == 1 + len(labels) and len(report.table(labels, found)) == len(labels)
  line = next(line for line in text if line.startswith('mid/kernel'))
  assert line.split() == ['mid/kernel', 'hidden', '8->32', '16->64', '-', '0.5', '1', '0.25',
                          '0.25', '4']
