"""The embedded text `pystdlib`: bytes of the running Python's standard library.

The .py files in the order of their paths, without tests, installed packages and files
that describe the machine, as many whole ones as fit into 4 MiB. Of every ten files the
ninth goes to validation and the tenth to test. The content belongs to one Python
version, so the directory of the prepared data carries it.

`pydoc_topics` is a text of another kind for models of it: the language reference as plain text,
which Python keeps in pydoc_data/topics.py; no file of `pystdlib` comes from there.
"""

from __future__ import annotations

import pathlib
import platform
import re
import sysconfig

import numpy as np

from data.content import Content
from data.errors import DataError

LIMIT = 4 << 20  # bytes
_SKIPPED = {'site-packages', 'dist-packages', 'test', 'tests', '__pycache__', 'idlelib',
            'pydoc_data'}


def directory_name(name: str = 'pystdlib') -> str:
  """Name of the prepared data of the running Python."""
  return f'{name}-{re.sub(r"[^0-9A-Za-z.]", "_", platform.python_version())}'


def read(library: pathlib.Path | None = None, limit: int = LIMIT) -> Content:
  """The content of `pystdlib`, one record per file.

  Args:
    library: directory of the .py files; the running Python's by default.
    limit: bytes in all.

  Raises:
    DataError: fewer than ten files are found (Python was installed without sources).
  """
  library = library or pathlib.Path(sysconfig.get_paths()['stdlib'])
  records = {'train': [], 'validation': [], 'test': []}
  total = count = 0
  for path in _files(library):
    content = path.read_bytes()
    if total + len(content) > limit:
      break
    if content:
      split = {8: 'validation', 9: 'test'}.get(count % 10, 'train')
      records[split].append(np.frombuffer(content, np.uint8))
      total += len(content)
      count += 1
  if count < 10:
    raise DataError(f'{library}: {count} Python files are too few for pystdlib; this Python '
                    'has no sources of its standard library')
  return Content(
      name=directory_name(), kind='tokens', inputs=records, labels={}, vocab=256,
      about=f'{count} files of the standard library of Python {platform.python_version()}')


def read_topics(library: pathlib.Path | None = None) -> Content:
  """The content of `pydoc_topics`: topics.py, cut by position into 10 / 10 / 80 %.

  Raises:
    DataError: this Python was installed without it.
  """
  library = library or pathlib.Path(sysconfig.get_paths()['stdlib'])
  path = library / 'pydoc_data' / 'topics.py'
  try:
    content = np.frombuffer(path.read_bytes(), np.uint8)
  except OSError as e:
    raise DataError(f'{path}: cannot be read ({e.strerror}); this Python has no topics of its '
                    'reference') from e
  parts = np.split(content, [len(content) // 10, len(content) // 5])
  return Content(
      name=directory_name('pydoc_topics'), kind='tokens',
      inputs={split: [part] for split, part in
              zip(('train', 'validation', 'test'), parts, strict=True)},
      labels={}, vocab=256, about=f'pydoc_data/topics.py of Python {platform.python_version()}')


def _files(library: pathlib.Path) -> list[pathlib.Path]:
  found = []
  for path in library.rglob('*.py'):
    relative = path.relative_to(library)
    machine = relative.name.startswith('_sysconfig')
    configuration = relative.parts[0].startswith('config-')
    if not machine and not configuration and _SKIPPED.isdisjoint(relative.parts[:-1]):
      found.append((relative.as_posix(), path))
  return [path for _, path in sorted(found)]
