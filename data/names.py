"""The names of the data sets that can be prepared here, and what a mistyped name is near to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EMBEDDED = ('digits', 'pystdlib', 'pydoc_topics')  # prepared by their first use
ARCHIVES = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')
DATASETS = (*EMBEDDED, *ARCHIVES, 'text')


def nearest(name: str, known: Iterable[str], prefix: str = '') -> str:
  """'; nearest: mnist' for the end of a sentence on a name that is not known, or ''.

  `prefix` is shown before each name and does not count for what is near.
  """
  near = [prefix + other for other in difflib.get_close_matches(name, sorted(known), n=2)]
  return f'; nearest: {", ".join(near)}' if near else ''
