"""The models, batches and optimizers of the coordinate check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import inspect
from typing import Any

from model_lib.errors import UserError
from model_lib.spec import nearest

# n must be large beside what a batch holds: with more tokens than features the random part of an
# update's effect, which falls as n^-1/2, is as large as the part that stays.
EXAMPLES, TOKENS, VOCAB, SIDE, CLASSES = 16, 8, 64, 8, 10
MODELS = ('mlp', 'resmlp', 'vit', 'gpt')
AXES = ('width', 'depth')
DATA = ('random', 'digits')


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model of the package along an axis.

  Attributes:
    name, arguments: as `model_lib.models.build` takes them.
    at: size -> the arguments that it sets.
    wider: size of the base -> the arguments of the delta model.
    sizes, base: by default.
    rate: factor of the learning rate. Small over depth, where the response should be linear, and
      where a norm bounds what a control can grow to.
    width: of the stream; 0 where that is the size.
    normed: whether the branches read the stream through a norm.
    trained: as of `OptimizerSpec`.
    numbers: swept numbers by path.
  """

  name: str
  arguments: Mapping[str, Any]
  at: Callable[[int], dict[str, Any]]
  wider: Callable[[int], dict[str, Any]]
  sizes: tuple[int, ...]
  base: int
  rate: float = 1.0
  width: int = 0
  normed: bool = True
  trained: tuple[str, ...] = ()
  numbers: Mapping[tuple[str, ...], float] = dataclasses.field(default_factory=dict)


def _over_width(name: str, at: Callable[[int], dict], rate: float = 0.5, **arguments) -> Setting:
  return Setting(name, arguments, at, lambda base: at(2 * base), (64, 128, 256, 512), 16, rate)


def _over_depth(name: str, width: str, sizes: tuple[int, ...], base: int, **arguments) -> Setting:
  return Setting(name, {width: 64, **arguments}, lambda depth: {'depth': depth},
                 lambda depth: {'depth': depth, width: 128}, sizes, base, 0.25, 64)


def _settings() -> dict[tuple[str, str], Setting]:
  vit = {'patch': 4, 'num_classes': CLASSES}
  gpt = {'vocab': VOCAB, 'length': TOKENS}
  deep = _over_depth('deep_mlp', 'width', (8, 32, 128), 4, num_classes=CLASSES)
  return {
    ('mlp', 'width'): _over_width('mlp', lambda n: {'widths': (n, n)}, 1.0,
                                  activation='tanh', num_classes=CLASSES),
    ('resmlp', 'width'): _over_width('resmlp', lambda n: {'width': n}, depth=2,
                                     num_classes=CLASSES),
    ('vit', 'width'): _over_width('vit', lambda n: {'dim': n}, depth=2, **vit),
    ('gpt', 'width'): _over_width('gpt', lambda n: {'dim': n}, depth=2, **gpt),
    # Tensor Programs VI's network, sec. 6.3: ReLU times 2^1/2, input and readout frozen.
    ('resmlp', 'depth'): dataclasses.replace(
      deep, normed=False, trained=('stack/',),
      numbers={('stack', 'activation_scale'): 2 ** 0.5}),
    ('vit', 'depth'): _over_depth('vit', 'dim', (4, 8, 16), 2, **vit),
    ('gpt', 'depth'): _over_depth('gpt', 'dim', (4, 8, 16), 2, **gpt)}


def setting(model: str, axis: str) -> Setting:
  """UserError for a model without that axis."""
  found = _settings().get((model, axis))
  if found is None:
    raise UserError(f'--model={model}: it has no residual stack, so --axis={axis} has no meaning; '
                    'take resmlp, vit or gpt')
  return found


def batch(model: str, data: str, seed: int = 0):
  """(task, inputs, targets): the fixed batch, with random labels unless the data has them.

  Raises:
    UserError: digits for a language model.
  """
  import numpy as np

  from model_lib.training.tasks import Classification, NextToken
  rng = np.random.default_rng(seed)
  if model == 'gpt':
    if data != 'random':
      raise UserError(f'--data={data}: gpt reads tokens; take --data=random')
    tokens = rng.integers(0, VOCAB, (2, TOKENS + 1)).astype(np.int32)
    return NextToken(), tokens[:, :-1], tokens[:, 1:]
  if data == 'digits':
    from data.load import load
    found = load('digits')
    images = (found.inputs[:EXAMPLES] - found.mean) / found.std
    return Classification(0.0, 1.0), images.astype(np.float32), found.labels[:EXAMPLES]
  images = rng.standard_normal((EXAMPLES, SIDE, SIDE)).astype(np.float32)
  return Classification(0.0, 1.0), images, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def optimizers() -> dict[str, tuple[Any, float]]:
  """Name -> (OptimizerSpec, learning rate by default over width).

  Entries of an update have size 1 in the first steps, so the rates are of one size too; an eps of
  1e-12 stays below the gradients' entries at all sizes. Adafactor's is smaller: at 2^-10 its control
  at width 512 learns the batch in four steps, and what has learned stops to move.
  """
  from model_lib.training.cohort import OptimizerSpec
  return {
    'adam': (OptimizerSpec('adam', eps=1e-12), 2.0 ** -10),
    'lion': (OptimizerSpec('lion', b2=0.99), 2.0 ** -10),
    'muon': (OptimizerSpec('muon', momentum=0.95, eps=1e-12), 2.0 ** -8),
    'lamb': (OptimizerSpec('lamb', eps=1e-12), 2.0 ** -6),
    'adafactor': (OptimizerSpec('adafactor', eps=1e-12), 2.0 ** -12),
    'sgd': (OptimizerSpec('sgd'), 0.1),
    'momentum': (OptimizerSpec('sgd', momentum=0.9), 0.1)}


def row(text: str, found: Setting, base: int) -> str:
  """The row with the base's depth and head size, where it takes them and they are not given.

  Raises:
    UserError: no such row or setting.
  """
  from model_lib import spec
  from model_lib.parametrization import get_parametrization
  from model_lib.parametrization.scaled_rows import MAKERS
  call = spec.parse(text)
  if call.name not in MAKERS:
    return get_parametrization(text).name
  takes = inspect.signature(MAKERS[call.name]).parameters
  own = {**found.arguments, **found.at(base)}
  if found.width:
    own['depth'] = base
  known = {'base_depth': own.get('depth', 1)}
  if 'dim' in own:
    known['base_head_dim'] = own['dim'] // HEADS
  given = list(takes)[:len(call.args)] + [key for key, _ in call.kwargs]
  more = tuple((key, float(value)) for key, value in known.items()
               if key in takes and key not in given)
  return get_parametrization(str(spec.Call(call.name, call.args, call.kwargs + more))).name


HEADS = 4  # of vit and gpt, by default


def chosen(name: str, given: str, known) -> str:
  """`given`, if it is one of `known`; UserError with the nearest otherwise."""
  if given not in known:
    raise UserError(f'--{name}={given}: unknown{nearest(given, known)}; '
                    f'there are: {", ".join(known)}')
  return given
