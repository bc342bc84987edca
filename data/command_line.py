"""argparse whose mistakes end in one line; `data` and `launch` read their command lines with it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from data.names import nearest


class Parser(argparse.ArgumentParser):
  """argparse that looks for mistyped flags first, and takes no abbreviated ones.

  argparse itself complains of a required flag before it tells of the mistyped one, and names no
  flag that is near.

  Args:
    error: type of the exception that a mistake raises; its message is one line.
    options: of argparse.ArgumentParser.
  """

  def __init__(self, error: type[Exception], **options):
    super().__init__(allow_abbrev=False, **options)
    self._mistake = error

  def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
    """As argparse's own. Raises an error of the given type for every mistake."""
    args = list(sys.argv[1:] if args is None else args)
    known = self._option_string_actions
    if not {'-h', '--help'}.intersection(args):
      for arg in args[:args.index('--') if '--' in args else None]:
        flag = arg.partition('=')[0]
        if re.match(r'--?[A-Za-z]', flag) and flag not in known:
          names = [name[2:] for name in known if name.startswith('--')]
          self.error(f'unknown flag {flag}{nearest(flag.lstrip("-"), names, "--")}')
    return super().parse_args(args, namespace)

  def error(self, message: str) -> NoReturn:
    raise self._mistake(f'{message}; see {self.prog} --help')
