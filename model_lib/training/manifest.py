"""SHA-256 manifest of a directory: what was written, so that damage is noticed.

The manifest lies in the directory that it describes, under `NAME`:

  {"format": 1, "files": {"state/_METADATA": {"size": 1186, "sha256": "..."}, ...}}

It is written last and appears whole or not at all, so its presence also says that
everything before it was finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

NAME = 'manifest.sha256.json'
FORMAT = 1
_TEMPORARY = NAME + '.tmp'


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """All files below `directory` but the manifest, by POSIX path relative to it."""
  found = (path for path in directory.rglob('*') if not path.is_dir())
  names = {path.relative_to(directory).as_posix(): path for path in found}
  return {name: names[name] for name in sorted(names) if name not in (NAME, _TEMPORARY)}


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _entry(path: pathlib.Path) -> dict[str, int | str]:
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256')
    return {'size': file.tell(), 'sha256': digest.hexdigest()}


def write(directory: pathlib.Path) -> None:
  """Writes the manifest of every file below `directory`.

  Files and directories are fsynced first; the manifest is written under a temporary
  name, fsynced, renamed, and the directory fsynced, so that a crash leaves the old
  state or the new one.

  Raises:
    OSError: something cannot be read or written.
  """
  files = {}
  for name, path in _files(directory).items():
    files[name] = _entry(path)
    _sync(path)
  for path in directory.rglob('*'):
    if path.is_dir():
      _sync(path)
  temporary = directory / _TEMPORARY
  with open(temporary, 'w', encoding='utf-8') as file:
    json.dump({'format': FORMAT, 'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, directory / NAME)
  _sync(directory)
  _sync(directory.parent)  # The entry of `directory` itself.


def _listed(directory: pathlib.Path) -> dict[str, dict[str, int | str]]:
  """The manifest's files. Raises OSError or ValueError with the reason."""
  content = json.loads((directory / NAME).read_text(encoding='utf-8'))
  if not isinstance(content, dict) or not isinstance(content.get('files'), dict):
    raise ValueError('not a manifest')
  if content.get('format') != FORMAT:
    raise ValueError(f'format {content.get("format")!r} instead of {FORMAT}')
  return content['files']


def verify(directory: pathlib.Path) -> list[str]:
  """Compares `directory` with its manifest.

  Returns:
    The problems, each `<file>: <reason>` on one line, in the order of the file names;
    empty when the directory holds exactly the files of the manifest, with their sizes
    and sums. A missing or unreadable manifest is the only problem reported then.
  """
  try:
    listed = _listed(directory)
  except FileNotFoundError:
    return [f'{NAME}: missing']
  except (OSError, ValueError) as error:
    return [f'{NAME}: unreadable ({" ".join(str(error).split())})']
  present = _files(directory)
  problems = []
  for name in sorted(listed.keys() | present.keys()):
    if name not in present:
      problems.append(f'{name}: missing')
    elif name not in listed:
      # An unlisted file may also be a listed one that the manifest has lost.
      problems.append(f'{name}: not in the manifest')
    else:
      reason = _difference(listed[name], present[name])
      if reason:
        problems.append(f'{name}: {reason}')
  return problems


def _difference(expected: object, path: pathlib.Path) -> str:
  if not isinstance(expected, dict):
    return 'its entry in the manifest is unreadable'
  try:
    size = path.stat().st_size
    if size != expected.get('size'):
      return f'{size} bytes instead of {expected.get("size")}'
    if _entry(path)['sha256'] != expected.get('sha256'):
      return 'SHA-256 differs from the manifest'
  except OSError as error:
    return f'unreadable ({error.strerror})'
  return ''
