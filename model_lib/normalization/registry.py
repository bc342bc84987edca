"""The normalizations by name: what each computes and which conventions it follows.

`get_norm('rms(eps=1e-6)')` gives a frozen `Norm`; `norm.layer(name='norm')` gives the
Linen layer, called as `layer(x, train)`. Reading this table does not import jax.
"""

from __future__ import annotations

import dataclasses
import math

from model_lib import spec as spec_lib
from model_lib.errors import UserError

ALIASES = {'ln': 'layer', 'bn': 'batch', 'gn': 'group'}


@dataclasses.dataclass(frozen=True)
class NormParameter:
  """A trained parameter: its start value, one per 'channel' or one per 'layer'."""

  name: str
  init: float
  per: str


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
  options: tuple[tuple[str, int | float | str], ...]

  @property
  def spec(self) -> str:
    """The canonical string: every option written out, in alphabetical order."""
    return str(spec_lib.Call(self.name, (), tuple(sorted(self.options))))

  def layer(self, name: str | None = None):
    """The Linen module of this norm, to be called as `layer(x, train)`; x [B, ..., C]."""
    from model_lib.normalization import layers  # here, so that the table needs no jax
    return layers.LAYERS[self.name](name=name, **dict(self.options))


_GAIN = NormParameter('scale', 1.0, 'channel')
_BIAS = NormParameter('bias', 0.0, 'channel')
_UNIT_GAIN = 'kernels after it use gain 1: its output has second moment 1 at the start'

_NORMS = {norm.name: norm for norm in (
  Norm(
    name='layer',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    statistics='channels, per example and position',
    train_inference='the same',
    parameters=(_GAIN, _BIAS), state=(),
    init_rule=_UNIT_GAIN,
    conventions='eps inside the root, 1e-5 as torch (flax 1e-6, keras 1e-3); biased variance, '
                'two-pass (flax: one-pass by default)',
    paper='Ba, Kiros, Hinton 2016, arXiv:1607.06450',
    causal=True, options=(('eps', 1e-5),),
  ),
  Norm(
    name='rms',
    equation='g * x / sqrt(mean(x^2) + eps)',
    statistics='channels, per example and position',
    train_inference='the same',
    parameters=(_GAIN,), state=(),
    init_rule=_UNIT_GAIN,
    conventions='eps inside the root, 1e-6 as flax and keras (torch: machine epsilon of the '
                'dtype); gain starts at 1 and multiplies directly (Gemma: 1 + g, g = 0)',
    paper='Zhang, Sennrich 2019, arXiv:1910.07467',
    causal=True, options=(('eps', 1e-6),),
  ),
  Norm(
    name='batch',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    statistics='examples and positions, per channel',
    train_inference='training: moments of the batch; inference: running moments',
    parameters=(_GAIN, _BIAS), state=('mean', 'var'),
    init_rule=_UNIT_GAIN,
    conventions='eps inside the root, 1e-5 as torch and flax (keras 1e-3); momentum is the '
                'weight of the NEW value, 0.1 as torch (flax and keras: weight of the old, 0.99); '
                'biased variance in training; running variance unbiased as torch and the paper '
                '(running=biased as flax and keras)',
    paper='Ioffe, Szegedy 2015, arXiv:1502.03167',
    causal=True, options=(('eps', 1e-5), ('momentum', 0.1), ('running', 'unbiased')),
  ),
  Norm(
    name='group',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    statistics='positions and the C/groups channels of a group, per example',
    train_inference='the same',
    parameters=(_GAIN, _BIAS), state=(),
    init_rule=_UNIT_GAIN,
    conventions='eps inside the root, 1e-5 as torch (flax 1e-6, keras 1e-3); 8 groups (flax and '
                'keras 32), gain and bias per channel; biased variance',
    paper='Wu, He 2018, arXiv:1803.08494',
    causal=False, options=(('groups', 8), ('eps', 1e-5)),
  ),
  Norm(
    name='dyt',
    equation='g * tanh(alpha * x) + b',
    statistics='none',
    train_inference='the same',
    parameters=(NormParameter('alpha', 0.5, 'layer'), _GAIN, _BIAS), state=(),
    init_rule='alpha starts at 0.5; the output has second moment below 1 at the start',
    conventions='one alpha per layer; the option is its start value',
    paper='Zhu, Chen, He, LeCun, Liu 2025, arXiv:2503.10622',
    causal=True, options=(('alpha', 0.5),),
  ),
  Norm(
    name='none',
    equation='x',
    statistics='none',
    train_inference='the same',
    parameters=(), state=(),
    init_rule='none',
    conventions='none',
    paper='none',
    causal=True, options=(),
  ),
)}

_RANGES = {
  'eps': (lambda v: v >= 0, 'a number >= 0'),
  'momentum': (lambda v: 0 < v <= 1, 'a number in (0, 1]'),
  'running': (lambda v: v in ('biased', 'unbiased'), 'biased or unbiased'),
  'groups': (lambda v: v >= 1, 'an integer >= 1'),
  'alpha': (lambda v: True, 'a number'),
}


def names() -> tuple[str, ...]:
  """The names that `get_norm` knows, aliases left out."""
  return tuple(_NORMS)


def get_norm(spec: str) -> Norm:
  """The norm of a spec string such as `layer`, `ln`, `rms(eps=1e-6)` or `group(4)`.

  Options may be given by position, in the order in which the norm declares them.

  Raises:
    UserError: unknown name or option (the message names the nearest), or a value of
      the wrong type or out of range.
  """
  call = spec_lib.parse(spec)
  name = ALIASES.get(call.name, call.name)
  if name not in _NORMS:
    known = (*names(), *ALIASES)
    raise UserError(f'unknown normalization {call.name!r}{spec_lib.nearest(call.name, known)}; '
                    f'known: {", ".join(known)}')
  norm = _NORMS[name]
  options = dict(norm.options)
  if len(call.args) > len(options):
    raise UserError(f'{spec!r}: {name} takes at most {len(options)} options, '
                    f'{len(call.args)} given')
  given = [*zip(options, call.args, strict=False), *call.kwargs]
  for key, value in given:
    if key not in options:
      takes = f'it takes {", ".join(options)}' if options else 'it takes none'
      raise UserError(f'{spec!r}: {name} has no option {key!r}'
                      f'{spec_lib.nearest(key, options)}; {takes}')
    if [k for k, _ in given].count(key) > 1:
      raise UserError(f'{spec!r}: option {key!r} is given twice')
    options[key] = _checked(spec, key, value, type(options[key]))
  parameters = tuple(dataclasses.replace(p, init=options[p.name]) if p.name in options else p
                     for p in norm.parameters)
  return dataclasses.replace(norm, options=tuple(options.items()), parameters=parameters)


def _checked(spec: str, key: str, value, kind: type):
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  in_range, allowed = _RANGES[key]
  finite = not isinstance(value, float) or math.isfinite(value)
  if type(value) is not kind or not finite or not in_range(value):
    raise UserError(f'{spec!r}: {key} must be {allowed}, not {value!r}')
  return value
