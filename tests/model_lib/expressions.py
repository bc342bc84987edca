"""Random expressions, and runs with candidates; shared by the tests of the search's engines."""
from __future__ import annotations

import functools

import numpy as np

from model_lib.models import swept
from model_lib.search import ValidityFilter, get_space
from model_lib.training.cohort import Member

_SPACES = ('swish', 'pangaea', 'act_bench', 'aquasurf')


@functools.cache
def random_expressions(count, parameters=True):
  """Valid expressions, as many of each space; every third has a parameter on an edge."""
  rng, judge, found = np.random.default_rng(11), ValidityFilter(), []
  while len(found) < count:
    space = get_space(_SPACES[len(found) % len(_SPACES)])
    expression = space.sample(rng, parameters=int(parameters and len(found) % 3 == 0))
    if judge(expression).valid and expression.n_parameters <= (4 if parameters else 0) and (
        expression not in found):
      found.append(expression)
  return tuple(found)


def encoded(engine, expressions):
  """The leaves of all candidates, stacked."""
  rows = [swept.find(engine).encode(str(expression)) for expression in expressions]
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def runs(texts, **hp):
  return tuple(Member({'number': i}, i, 0, 0, {'learning_rate': 3e-3, 'candidate': text, **hp})
               for i, text in enumerate(texts))
