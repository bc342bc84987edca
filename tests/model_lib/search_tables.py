"""Tables with a planted optimum, on which searches are tested."""
from __future__ import annotations

import functools

import numpy as np

from model_lib.search import candidates, get_space
from model_lib.search.tabulated import Table

FULL = 300
# 720 expressions, of which 331 valid functions.
SPACE = get_space('act_bench').restricted(
  ['identity', 'neg', 'abs', 'erf', 'tanh', 'sigmoid', 'atan', 'relu', 'elu', 'swish', 'softplus',
   'softsign', 'add', 'sub', 'mul', 'max', 'min'])


@functools.cache
def functions():
  return candidates(SPACE.expressions()).valid


@functools.cache
def effects() -> np.ndarray:
  """[functions, 9]: of each of the three operators, three numbers."""
  rng = np.random.default_rng(3)
  own = {name: rng.normal(size=3) for name in SPACE.operators}
  return np.array([
    np.concatenate([own[node.operator] for _, node in expression.walk() if node.args])
    for expression in functions()])


@functools.cache
def planted(permuted: bool = False, early_tells: bool = True) -> Table:
  """Losses are the squared distance of a function's effects to those of one of them.

  Short runs have an error of their own, all seeds' runs noise. Permuted: the same losses, at
  functions with which they have nothing to do. Without `early_tells`, the losses of short runs
  are those of other functions.
  """
  rng = np.random.default_rng(4)
  losses = ((effects() - 0.9 * effects()[rng.integers(len(effects()))])**2).mean(1)
  losses = (losses - losses.mean()) / losses.std()
  if permuted:
    losses = rng.permutation(losses)
  n = len(losses)
  early = rng.normal(size=(n, 1, 1)) * np.array([0.5, 0.25, 0])
  validation, test = (
    losses[:, None, None] + early + 0.1 * rng.normal(size=(n, 3, 3)) for _ in range(2))
  if not early_tells:
    validation[:, :, :2] = rng.permutation(validation[:, :, :2])
  return Table(tuple(map(str, functions())), (0, 1, 2), (30, 100, FULL), validation, test,
               -validation, -test, {'planted': True})
