"""Cheap proxies: numbers about a candidate that may predict its result without training it.

  task = Task(x, y, x_val, y_val)
  values, seconds = all_proxies(expressions, task)     # name -> [candidate], name -> seconds
  names()['ntk_accuracy'].about, names()['ntk_accuracy'].sign
  table = fisher_features(expressions, task)           # for a surrogate model
"""

from model_lib.search.proxies.scores import Proxy, all_proxies, fisher_features, names
from model_lib.search.proxies.values import Evaluated, Task

__all__ = ['Evaluated', 'Proxy', 'Task', 'all_proxies', 'fisher_features', 'names']
