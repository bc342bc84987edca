"""The search language: expressions, the spaces of the literature, and which candidates count.

  space = get_space('act_bench')                      # also: swish, pangaea, aquasurf
  found = candidates(space.expressions())             # 5,103 expressions -> the valid functions
  f = parse('mul(x, sigmoid(scale(x)))')
  y = f(x, beta_0=1.5)
"""

from model_lib.search.canonical import canonical
from model_lib.search.evaluation import Evaluator
from model_lib.search.expression import Expression, X, number
from model_lib.search.fingerprint import Counts, Fingerprints, count_functions, distinct
from model_lib.search.grammar import ExpressionError, parse
from model_lib.search.operators import OPERATORS, Operator, get_operator
from model_lib.search.spaces import SPACES, Space, get_space
from model_lib.search.validity import Candidates, ValidityFilter, Verdict, candidates

__all__ = [
    'Candidates', 'Counts', 'Evaluator', 'Expression', 'ExpressionError', 'Fingerprints',
    'OPERATORS', 'Operator', 'SPACES', 'Space', 'ValidityFilter', 'Verdict', 'X', 'candidates',
    'canonical', 'count_functions', 'distinct', 'get_operator', 'get_space', 'number', 'parse']
