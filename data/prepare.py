"""Turns the published archives into prepared data.

  python -m data.prepare --dataset=mnist --source=DIR
  python -m data.prepare --dataset=cifar10 --source=cifar-10-binary.tar.gz
  python -m data.prepare --dataset=text --source=input.txt --variant=shakespeare
  python -m data.prepare --dataset=tfds:svhn_cropped

An archive whose record counts or content sums differ from the published ones is refused,
unless --variant names the deviation: --dataset=cifar10 --variant=jpeg75 prepares a dataset
that is called cifar10-jpeg75 everywhere. Damaged files are refused always.

Exit codes: 0 prepared, 2 bad usage or data (one line), 75 stopped by a signal (run again).
Nothing half-written is ever left in place.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import signal
import sys
import time

from data import directories
from data.command_line import Parser
from data.errors import DataError
from data.names import ARCHIVES, DATASETS, EMBEDDED, nearest

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: list[str] | None = None) -> int:
  """Runs the program but for its signal handlers; returns its exit code."""
  try:
    _prepare(_parse(arguments))
  except DataError as e:
    print(f'data.prepare: {e}', file=sys.stderr)
    return 2
  return 0


def _stop(number: int, frame: object) -> None:
  del frame
  for each in _SIGNALS:  # a second signal must not interrupt the cleaning
    signal.signal(each, signal.SIG_IGN)
  directories.remove_active()
  name = signal.Signals(number).name
  os.write(2, f'data.prepare: stopped by {name}, nothing was changed; run it again\n'.encode())
  os._exit(75)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(
      DataError, prog='python -m data.prepare', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--dataset', required=True, metavar='NAME',
                      help=f'one of {", ".join(DATASETS)}, or tfds:NAME (needs TensorFlow)')
  parser.add_argument('--source', type=pathlib.Path, metavar='PATH',
                      help='directory of the files; for CIFAR also the .tar.gz')
  parser.add_argument('--variant', default='', metavar='NAME',
                      help='names a deviation from the published data, or a text')
  parser.add_argument('--data_dir', metavar='DIR',
                      help='default $ACTNORM_DATA_DIR, else ~/.cache/actnorm-lab/data')
  parser.add_argument('--tokenizer', choices=('bytes', 'gpt2'), default='bytes',
                      help='for text; .npy files hold token numbers and need none')
  parser.add_argument('--bpe', type=pathlib.Path, metavar='DIR',
                      help='directory of encoder.json and vocab.bpe, for --tokenizer=gpt2')
  options = parser.parse_args(arguments)
  name = options.dataset
  if name not in DATASETS and not re.fullmatch(r'tfds:[A-Za-z][\w/:.+-]*', name):
    near = nearest(name, DATASETS) or f'; known: {", ".join(DATASETS)}, tfds:NAME'
    raise DataError(f'--dataset={name}: unknown{near}')
  if options.variant and not re.fullmatch(r'[a-z0-9][a-z0-9._-]*', options.variant):
    raise DataError(f'--variant={options.variant}: use lower-case letters, digits, and . _ -')
  if name in ARCHIVES or name == 'text':
    if options.source is None:
      raise DataError(f'--dataset={name} needs --source=PATH')
    if not options.source.exists():
      raise DataError(f'{options.source}: no such file or directory')
  elif options.source is not None or options.variant:
    raise DataError(f'--dataset={name} takes neither --source nor --variant')
  if name != 'text' and (options.bpe is not None or options.tokenizer != 'bytes'):
    raise DataError(f'--dataset={name} takes neither --tokenizer nor --bpe')
  return options


def _prepare(options: argparse.Namespace) -> None:
  started = time.monotonic()
  root = directories.data_directory(options.data_dir)
  if options.dataset.startswith('tfds:'):
    from data import tfds_import
    with directories.temporary_directory(root) as temporary:
      content = tfds_import.read(options.dataset[len('tfds:'):], temporary)
  else:
    content = _read(options)
  from data import builders
  directory = builders.write(content, root)
  counts = ', '.join(f'{count:,} {split}' for split, count in content.counts().items())
  unit = 'tokens' if content.kind == 'tokens' else 'examples'
  print(f'{content.name}: {counts} {unit}, sha256 {builders.read_metadata(directory)["sha256"]}, '
        f'in {directory} ({time.monotonic() - started:.1f} s)')
  print(f'{content.name}: {content.about}')


def _read(options: argparse.Namespace):
  from data import cifar, content, digits, idx, stdlib_text, text
  from data.official import OFFICIAL, deviations

  name, source = options.dataset, options.source
  if name in EMBEDDED:
    return {'digits': digits.read, 'pystdlib': stdlib_text.read,
            'pydoc_topics': stdlib_text.read_topics}[name]()
  full_name = f'{name}-{options.variant}' if options.variant else name
  if name == 'text':
    records, vocab, form = text.read_text(source, options.tokenizer, options.bpe)
    return content.Content(
        name=full_name, kind='tokens', inputs=records, labels={}, vocab=vocab,
        about=f'{form} of {source.name}')
  official = OFFICIAL[name]
  if name.startswith('cifar'):
    images, labels, sums = cifar.read_cifar(name, source, official.num_classes)
  else:
    images, labels, sums = idx.read_mnist_layout(source, official.num_classes)
  found = deviations(name, {k: len(v) for k, v in images.items()}, sums)
  if found and not options.variant:
    raise DataError(f'{source}: {"; ".join(found)}; fetch the published files, or name the '
                    'deviation with --variant=NAME')
  if found:
    about = f'deviates from the published {name}: {"; ".join(found)}'
  elif official.sums:
    about = f'counts and the content sums on record equal those of the published {name}'
  else:
    about = f'counts equal those of the published {name}; no content sums of it are on record'
  return content.Content(
      name=full_name, kind='images', inputs=images, labels=labels,
      num_classes=official.num_classes, about=about)


if __name__ == '__main__':
  for _number in _SIGNALS:
    signal.signal(_number, _stop)
  sys.exit(main())
