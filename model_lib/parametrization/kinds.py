"""Labels of a model's parameters, from the shapes of three models of one architecture.

`base` is the model whose settings are known, `delta` the same with every scalable dimension
changed, `target` the model at hand. A dimension is scalable exactly if base and delta differ in
it, so nothing is guessed from names or sizes; the depth of base and delta is the same. Shapes come
from `jax.eval_shape(model.init, ...)['params']`, which allocates nothing.

Layouts are flax's: a `kernel` is [..., in, out] (a convolution [h, w, in, out]) or, of attention
heads, [in, heads, size] or [heads, size, out]; a `table` or `embedding` [rows, features].
"""

from __future__ import annotations

from collections.abc import Mapping
import math
import re
from typing import Any, TypeVar

import jax

from model_lib.errors import UserError
from model_lib.parametrization.label import KINDS, Extent, Label
from model_lib.spec import nearest

# Paths of the parameters in the residual stacks of `model_lib.models`, with the block's number.
STACK = r'(?:^|/)(?:\w+_)?(?:block|attention|feed_forward|residual)_(\d+)/'
_LOOKUPS = ('table', 'embedding')
_THIN = ('bias', 'scale')  # vectors even where they have an axis of heads
# Axes of [in, heads, size] (for the second of [heads, size, out] too) that grow together.
_MORE_HEADS, _LARGER_HEADS = (0, 1), (0, 2)
Shapes = dict[str, tuple[int, ...]]
T = TypeVar('T')


def shapes(params: Any) -> Shapes:
  """Path -> shape of a tree of arrays or of `jax.ShapeDtypeStruct`."""
  return {_path(path): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def as_tree(by_path: Mapping[str, T], params: Any) -> Any:
  """The tree of `params` with the value of each path.

  Raises:
    UserError: a parameter has no value.
  """
  def value(path, leaf):
    if _path(path) not in by_path:
      raise UserError(f'{_path(path)}: the parameter has no label; label the parameters of the '
                      'model that is trained')
    return by_path[_path(path)]

  return jax.tree_util.tree_map_with_path(value, params)


def _path(path) -> str:
  return '/'.join(str(getattr(key, 'key', getattr(key, 'idx', key))) for key in path)


def label_parameters(base: Any, delta: Any, target: Any, *, stack: str = STACK,
                     kinds: Mapping[str, str] | None = None) -> dict[str, Label]:
  """Path -> label of every parameter of `target`.

  Args:
    base, delta, target: trees of parameters, of arrays or of `jax.ShapeDtypeStruct`.
    stack: pattern (`re.search`) of the paths in the residual stack. With a group, that is the
      block's number. Without one the layers are scanned: the first axis of every such parameter
      counts the blocks, and is no dimension of the tensor. '' for a model without a stack.
    kinds: pattern -> kind, for parameters whose layout the shapes do not tell.

  Raises:
    UserError: a parameter is unlabelled or labelled twice, a base shape does not fit, a pattern
      matches nothing, or delta is no wider. The message names the parameter and the cure.
  """
  base, delta, target = shapes(base), shapes(delta), shapes(target)
  kinds = dict(kinds or {})
  if set(base) != set(delta):
    raise UserError(f'{min(set(base) ^ set(delta))}: base and delta must have the same parameters; '
                    'they may differ in width alone, not in depth')
  if base == delta:
    raise UserError('base and delta have the same shapes, so no dimension is scalable; '
                    'build delta with another width')
  finder = _Stack(stack, base, target)
  labels = {path: _label(path, shape, base, delta, finder, kinds)
            for path, shape in target.items()}
  extra = {finder.key(path) for path in base} - {finder.key(path) for path in target}
  if extra:
    raise UserError(f'{min(extra)}: the base model has this parameter and the target has not; '
                    'build both from the same settings')
  for pattern in kinds:
    if not any(re.search(pattern, path) for path in target):
      raise UserError(f'kinds: the pattern {pattern!r} matches no parameter'
                      f'{nearest(pattern, target)}')
  return labels


class _Stack:
  """Which parameters are in blocks, and which of the base's stands for one of the target's."""

  def __init__(self, pattern: str, base: Shapes, target: Shapes):
    self.pattern = re.compile(pattern) if pattern else None
    self.numbered = bool(self.pattern and self.pattern.groups)
    self._base = base
    self._blocks = [self._count(base), self._count(target)]

  def _count(self, paths: Shapes) -> int:
    return len({number for path in paths if (number := self._number(path)) is not None})

  def _number(self, path: str) -> str | None:
    found = self.pattern.search(path) if self.numbered else None
    return found and found.group(1)

  def key(self, path: str) -> str:
    """The path without the block's number."""
    number = self._number(path)
    if number is None:
      return path
    start, end = self.pattern.search(path).span(1)
    return f'{path[:start]}*{path[end:]}'

  def counterpart(self, path: str) -> str:
    """The base's path: in the block of the same number, or else in the last that has it."""
    if path in self._base:
      return path
    same = [p for p in self._base if self.key(p) == self.key(path)]
    if self._number(path) is None or not same:
      raise UserError(f'{path}: the base model has no such parameter; build it from the same '
                      'settings' + (', or name the stack that differs in depth with stack='
                                    if not self.numbered else ''))
    return max(same, key=lambda p: int(self._number(p)))

  def depth(self, path: str, of_base: tuple[int, ...], shape: tuple[int, ...]) -> Extent | None:
    """Blocks of the stack around a parameter."""
    if not self.pattern or not self.pattern.search(path):
      return None
    if self.numbered:
      return Extent(*self._blocks)
    if not shape or not of_base:
      raise UserError(f'{path}: a parameter of a scanned stack needs a first axis of the blocks, '
                      f'but its shape is {shape}; make stack= name the scanned parameters only')
    return Extent(of_base[0], shape[0])


def _label(path: str, shape: tuple[int, ...], base: Shapes, delta: Shapes, stack: _Stack,
           kinds: Mapping[str, str]) -> Label:
  twin = stack.counterpart(path)
  of_base, of_delta = base[twin], delta[twin]
  if not len(shape) == len(of_base) == len(of_delta):
    raise UserError(f'{path}: base shape {of_base} and delta shape {of_delta} do not fit shape '
                    f'{shape}: the number of dimensions differs; build all from the same settings')
  depth = stack.depth(path, of_base, shape)
  if depth is not None and not stack.numbered:
    if of_base[0] != of_delta[0]:
      raise UserError(f'{path}: base has {of_base[0]} blocks and delta {of_delta[0]}; '
                      'build delta with the depth of base')
    shape, of_base, of_delta = shape[1:], of_base[1:], of_delta[1:]
  scalable = tuple(i for i in range(len(shape)) if of_base[i] != of_delta[i])
  for i in set(range(len(shape))) - set(scalable):
    if shape[i] != of_base[i]:
      raise UserError(
        f'{path}: base shape {of_base} does not fit shape {shape}: axis {i} differs, but base and '
        'delta agree in it; change it in delta too if it grows with width, name the stack with '
        'stack= if it counts blocks, or build base with the same size')
  kind, name = _kind(path, scalable, len(shape), kinds), path.rsplit('/', 1)[-1]
  # Of heads whose number grows, [in, heads, size], the last two axes are the outputs.
  split = 1 if scalable == _MORE_HEADS and name == 'kernel' else len(shape) - 1
  if len(shape) < 2 or kind in ('vector', 'scalar'):
    split = 0
  fans = (Extent(math.prod(of_base[:split]), math.prod(shape[:split])),
          Extent(math.prod(of_base[split:]), math.prod(shape[split:])))
  return Label(path, kind, *fans, depth, name in _LOOKUPS, shape)


def _kind(path: str, scalable: tuple[int, ...], ndim: int, kinds: Mapping[str, str]) -> str:
  given = {pattern: kind for pattern, kind in kinds.items() if re.search(pattern, path)}
  if len(given) > 1:
    raise UserError(f'{path}: labelled twice, by the patterns '
                    f'{" and ".join(map(repr, given))}; narrow one of them')
  for kind in given.values():
    if kind not in KINDS:
      raise UserError(f'{path}: unknown kind {kind!r}{nearest(kind, KINDS)}; '
                      f'known: {", ".join(KINDS)}')
    if kind in ('input', 'hidden', 'output') and ndim < 2:
      raise UserError(f'{path}: a parameter of {ndim} dimensions cannot be {kind}; '
                      'label it vector or scalar')
    return kind
  name = path.rsplit('/', 1)[-1]
  if not scalable:
    return 'scalar'
  if ndim == 1:
    return 'vector'
  last, before = ndim - 1, ndim - 2
  known = {}
  if name in _LOOKUPS:
    known = {(last,): 'input'}
  elif name == 'kernel':
    known = {(last,): 'input', (before,): 'output', (before, last): 'hidden'}
    if ndim == 3:
      known |= {_MORE_HEADS: 'hidden', _LARGER_HEADS: 'hidden'}
  elif name in _THIN and len(scalable) == 1:
    known = {scalable: 'vector'}
  if scalable not in known:
    raise UserError(
      f'{path}: unlabelled: axes {scalable} of {ndim} grow with width, which is no kernel '
      "[..., in, out] and no table [rows, features]; name its kind, as in "
      f"kinds={{'{re.escape(path)}': 'hidden'}}")
  return known[scalable]
