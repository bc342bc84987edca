"""Plants one error at a time into the source of an activation, its helpers and their constants.

A mutant is the function rebuilt from its own syntax tree with one node changed: a number off by
1 %, a sign flipped, a comparison or a pair of branches swapped. Helpers of the catalogue are
rebuilt with it, so that an error in one of them shows in the function under test alone.
"""

from __future__ import annotations

import ast
import collections
from collections.abc import Callable, Iterator
import copy
import dataclasses
import functools
import inspect
import textwrap
import types

_PACKAGES = ('model_lib.activations', 'model_lib.models.activation_modules')
# Their arguments are shapes and axes, not numbers of a formula.
_SHAPES = frozenset({'range', 'reshape', 'sum', 'mean', 'max', 'broadcast_to', 'len', 'tuple',
                     'zip', 'zeros_like', 'ones_like', 'astype', 'asarray', 'expand_dims'})
# How many of their first arguments are arrays, which may hold a formula.
_ARRAYS = {'sum': 1, 'mean': 1, 'max': 1, 'asarray': 1, 'broadcast_to': 1, 'tuple': 1, 'zip': 2,
           'expand_dims': 1}
_COMPARISONS = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE,
                ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
_CALLS = {'maximum': 'minimum', 'minimum': 'maximum'}


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One error: `kind` is 'number' or 'structure', `label` says where and what."""

  kind: str
  label: str
  function: Callable


def mutants(function: Callable) -> Iterator[Mutant]:
  """All mutants of a function; one that has no number of its own gets 1.01 f."""
  numbers = 0
  for part in _reachable(function):
    own = '' if part is function else f'{part.__name__}: '
    seen = collections.Counter()
    for kind, label, changed in _changes(_tree(part)):
      numbers += kind == 'number'
      seen[label] += 1
      label = own + label + (f' #{seen[label]}' if seen[label] > 1 else '')
      try:
        mutant = _rebuild(function, {part: changed})
      except ValueError:  # a default outside of math's domain
        continue
      yield Mutant(kind, label, mutant)
  for module, name, value in _constants(function):
    for label, changed in _off(value):
      numbers += 1
      yield Mutant('number', f'{name}{label}',
                   _rebuild(function, {}, {(module, name): changed}))
  if not numbers:
    yield Mutant('number', '1.01 f', lambda *xs, **kw: 1.01 * function(*xs, **kw))


def _changes(tree: ast.FunctionDef) -> Iterator[tuple[str, str, ast.FunctionDef]]:
  """(kind, label, changed tree) for every node that can be changed."""
  shapes = _shapes(tree)
  for index, node in enumerate(ast.walk(tree)):
    edits = []
    if id(node) in shapes:
      continue
    if (isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)):
      edits.append(('number', f'{ast.unparse(node)} * 1.01', _scaled))
    if isinstance(node, ast.Attribute) and ast.unparse(node) == 'math.pi':
      edits.append(('number', 'pi * 1.01', _wrapped(lambda n: ast.BinOp(
          n, ast.Mult(), ast.Constant(1.01)))))
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
      edits.append(('structure', f'+- {ast.unparse(node)}', _other_sign))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
      edits.append(('structure', f'no minus {ast.unparse(node)}', _wrapped(lambda n: n.operand)))
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
      edits.append(('structure', f'swapped {ast.unparse(node)}', _compared))
    if isinstance(node, ast.Call):
      name = _name(node)
      if name == 'where' and len(node.args) == 3:
        edits.append(('structure', f'branches of {_short(node)}', _branches))
      elif name in _CALLS:
        edits.append(('structure', f'{_CALLS[name]} for {_short(node)}', _renamed))
      elif (node.args and name not in _SHAPES and not ast.unparse(node.func).startswith('math.')
            and not isinstance(node.args[0], (ast.Starred, ast.List, ast.Tuple))
            and not isinstance(getattr(node.args[0], 'value', None), (str, bool))):
        edits.append(('structure', f'minus in {_short(node)}', _negated))
    for kind, label, edit in edits:
      changed = copy.deepcopy(tree)
      edit(changed, index)
      yield kind, label, ast.fix_missing_locations(changed)


def _shapes(tree: ast.FunctionDef) -> set[int]:
  """ids of the nodes that speak of shapes, axes, words and errors, not of the formula."""
  found = set()
  for node in ast.walk(tree):
    inside = []
    if isinstance(node, ast.Call) and _name(node) in _SHAPES:
      inside = [*node.args[_ARRAYS.get(_name(node), 0):], *node.keywords]
    elif isinstance(node, ast.Subscript):
      inside = [node.slice]
    elif isinstance(node, ast.keyword) and node.arg in ('axis', 'axes', 'ndim', 'length'):
      inside = [node]
    elif isinstance(node, ast.Raise):
      inside = [node]
    elif isinstance(node, (ast.BinOp, ast.Compare)) and any(
        getattr(inner, 'attr', '') in ('ndim', 'shape') or isinstance(
            getattr(inner, 'value', None), str) for inner in ast.walk(node)):
      inside = [node]
    found |= {id(inner) for part in inside for inner in ast.walk(part)}
  return found


def _name(call: ast.Call) -> str:
  return getattr(call.func, 'attr', getattr(call.func, 'id', ''))


def _short(node: ast.AST) -> str:
  text = ast.unparse(node)
  return text if len(text) < 60 else text[:57] + '...'


def _at(tree: ast.AST, index: int) -> ast.AST:
  return next(node for i, node in enumerate(ast.walk(tree)) if i == index)


def _scaled(tree, index):
  node = _at(tree, index)
  node.value = node.value * 1.01 if node.value else 0.01


def _other_sign(tree, index):
  node = _at(tree, index)
  node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()


def _compared(tree, index):
  node = _at(tree, index)
  node.ops[0] = _COMPARISONS[type(node.ops[0])]()


def _branches(tree, index):
  node = _at(tree, index)
  node.args[1], node.args[2] = node.args[2], node.args[1]


def _renamed(tree, index):
  function = _at(tree, index).func
  if isinstance(function, ast.Attribute):
    function.attr = _CALLS[function.attr]
  else:
    function.id = _CALLS[function.id]


def _negated(tree, index):
  node = _at(tree, index)
  node.args[0] = ast.UnaryOp(ast.USub(), node.args[0])


def _wrapped(replace: Callable[[ast.AST], ast.AST]):
  def edit(tree, index):
    target = _at(tree, index)

    class Replace(ast.NodeTransformer):
      def visit(self, node):
        return replace(node) if node is target else self.generic_visit(node)

    Replace().visit(tree)
  return edit


def _off(value) -> Iterator[tuple[str, object]]:
  """(label, value) with one number in a constant off by 1 %."""
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    yield ' * 1.01', value * 1.01 if value else 0.01
  elif isinstance(value, (tuple, list)):
    for index, inner in enumerate(value):
      for label, changed in _off(inner):
        yield f'[{index}]{label}', type(value)([*value[:index], changed, *value[index + 1:]])


@functools.lru_cache(maxsize=None)
def _tree(function: Callable) -> ast.FunctionDef:
  """The function's definition without decorators, docstring and annotations."""
  tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
  tree.decorator_list, tree.returns = [], None
  for argument in ast.walk(tree.args):
    if isinstance(argument, ast.arg):
      argument.annotation = None
  if isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant):
    tree.body = tree.body[1:]
  return tree


def _names(function: Callable) -> set[str]:
  local = {*function.__code__.co_varnames, *function.__code__.co_cellvars}
  return {node.id for node in ast.walk(_tree(function)) if isinstance(node, ast.Name)} - local


def _free(function: Callable) -> dict[str, object]:
  return {name: cell.cell_contents for name, cell in zip(
      function.__code__.co_freevars, function.__closure__ or (), strict=True)}


@functools.lru_cache(maxsize=None)
def _reachable(function: Callable) -> tuple[types.FunctionType, ...]:
  """The function and the functions of the catalogue that it calls."""
  found, queue = [], [function]
  while queue:
    part = queue.pop(0)
    if part in found:
      continue
    found.append(part)
    scope = {**part.__globals__, **_free(part)}
    queue += [scope[name] for name in sorted(_names(part)) if _of_catalogue(scope.get(name))]
  return tuple(found)


def _of_catalogue(value: object) -> bool:
  return (isinstance(value, types.FunctionType) and value.__module__.startswith(_PACKAGES)
          and not value.__module__.endswith(('.registry', '.moments', '.host'))
          and not hasattr(value, '__wrapped__'))


def _constants(function: Callable) -> Iterator[tuple[str, str, object]]:
  """(module, name, value) of the numbers in module constants that the function reads."""
  seen = set()
  for part in _reachable(function):
    for name in sorted(_names(part)):
      value = part.__globals__.get(name)
      key = part.__module__, name
      if key not in seen and next(_off(value), None):
        seen.add(key)
        yield *key, value


def _rebuild(
    function: Callable, changed: dict[Callable, ast.FunctionDef],
    constants: dict[tuple[str, str], object] | None = None,
) -> Callable:
  """The function with some definitions and module constants replaced."""
  parts = _reachable(function)
  scopes, made = {}, {}
  for part in parts:
    scopes.setdefault(part.__module__, dict(part.__globals__)).update(_free(part))
  for (module, name), value in (constants or {}).items():
    scopes[module][name] = value
  for part in parts:
    tree = changed.get(part, _tree(part))
    code = compile(ast.Module([tree], []), f'<{part.__name__}>', 'exec')
    exec(code, scopes[part.__module__])  # the catalogue's own source
    made[part] = scopes[part.__module__][tree.name]
  for scope in scopes.values():
    for name, value in list(scope.items()):
      if isinstance(value, types.FunctionType) and value in made:
        scope[name] = made[value]
  return made[function]
