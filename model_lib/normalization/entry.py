"""What the registry says about a normalization layer."""

from __future__ import annotations

import dataclasses

from model_lib import spec as spec_lib

Options = tuple[tuple[str, int | float | str | bool], ...]

# What a norm may not notice, x being [B, ..., C] and every factor above 0.
INVARIANCES = {
  'scale': 'x times one factor',
  'example_scale': 'each example times a factor of its own',
  'position_scale': 'each position of each example times a factor of its own',
  'channel_scale': 'each channel times a factor of its own',
  'example_shift': 'each example plus a number of its own',
  'position_shift': 'each position of each example plus a number of its own',
  'channel_shift': 'each channel plus a number of its own',
}


@dataclasses.dataclass(frozen=True)
class NormParameter:
  """A trained parameter.

  Attributes:
    name: in the collection `params`.
    init: start value; a text where the shape of the input decides it.
    per: one per 'channel', per 'layer' or per 'statistic' that is mixed (three); 'condition' for
      an array whose shape depends on that of the condition.
    when: the option that has to be True for the parameter to exist; '' where it always does.
  """

  name: str
  init: float | str
  per: str
  when: str = ''


@dataclasses.dataclass(frozen=True)
class Norm:
  """A normalization layer, described and with its options filled in.

  Attributes:
    name: registry name.
    equation: what the layer computes; g is `scale`, b is `bias`.
    statistics: the axes that the statistics are taken over.
    train_inference: how training and inference differ.
    parameters: the trained parameters.
    state: names of the variables in the collection `batch_stats`.
    init_rule: the init that belongs to the layer.
    conventions: where frameworks differ, what this one does.
    paper: the source.
    causal: whether at inference a position's output depends on that position alone.
    options: (name, value) pairs, complete, in declared order.
    family: the kind of layer: 'token', 'spatial', 'batch', 'pointwise', 'joint', 'conditional'
      or 'test_time'; '' for one that was added.
    confirmed: False where the equation is known from memory only.
    backward: '' where the gradient is that of the equation; 'surrogate' where quantities that
      depend on x are held in it.
    invariances: keys of INVARIANCES, complete, for the default options but eps = 0 (and
      sigma = 0), in training, at the start values of the parameters.
    batch: whether the output for an example depends on the other examples: in training, and at
      inference for the family 'test_time'.
    spatial: whether it needs axes between the first and the last.
    condition: whether it is called as `layer(x, train, condition)`.
    presets: (name, options) pairs: the conventions of 'torch', 'keras', 'flax' or the 'paper'.
  """

  name: str
  equation: str
  statistics: str
  train_inference: str
  parameters: tuple[NormParameter, ...]
  state: tuple[str, ...]
  init_rule: str
  conventions: str
  paper: str
  causal: bool
  options: Options
  family: str = ''
  confirmed: bool = True
  backward: str = ''
  invariances: tuple[str, ...] = ()
  batch: bool = False
  spatial: bool = False
  condition: bool = False
  presets: tuple[tuple[str, Options], ...] = ()

  @property
  def spec(self) -> str:
    """The canonical string: every option written out, in alphabetical order."""
    return str(spec_lib.Call(self.name, (), tuple(sorted(self.options))))

  def layer(self, name: str | None = None):
    """The Linen module of this norm, to be called as `layer(x, train)`; x [B, ..., C]."""
    from model_lib.normalization import layers  # here, so that the table needs no jax
    return layers.LAYERS[self.name](name=name, **dict(self.options))


GAIN = NormParameter('scale', 1.0, 'channel')
BIAS = NormParameter('bias', 0.0, 'channel')
UNIT_GAIN = 'kernels after it use gain 1: its output has second moment 1 at the start'
SAME = 'the same'
PER_POSITION = ('scale', 'example_scale', 'position_scale')
PER_POSITION_CENTRED = (*PER_POSITION, 'example_shift', 'position_shift')
PER_CHANNEL = ('scale', 'channel_scale', 'channel_shift')
