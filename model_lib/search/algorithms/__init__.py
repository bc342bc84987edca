"""Search algorithms behind one interface: ask for losses, be told them."""

from model_lib.search.algorithms.algorithm import Algorithm, Answer, FunctionKeys, Key, Query
from model_lib.search.algorithms.controller import Controller
from model_lib.search.algorithms.evolution import Evolution
from model_lib.search.algorithms.exhaustive import Exhaustive
from model_lib.search.algorithms.features import output_features, side_by_side
from model_lib.search.algorithms.gaussian_process import GaussianProcessSearch
from model_lib.search.algorithms.halving import Halving
from model_lib.search.algorithms.mutations import MUTATIONS, Mutations
from model_lib.search.algorithms.random_search import RandomSearch
from model_lib.search.algorithms.surrogate import NearestNeighbours

__all__ = [
    'Algorithm', 'Answer', 'Controller', 'Evolution', 'Exhaustive', 'FunctionKeys',
    'GaussianProcessSearch', 'Halving', 'Key', 'MUTATIONS', 'Mutations', 'NearestNeighbours',
    'Query', 'RandomSearch', 'output_features',
    'side_by_side']
