"""Writes a trained GPT-2 whose norms have become linear as a folder of weights.

  python -m launch.export WORKDIR --member=N --form=fold|trick --out=FOLDER

WORKDIR is a finished run (or one in which the member's cohort is finished), N the row's number in
results.csv. `fold` leaves no norm: an own format, which `model_lib.interop.load_gpt2` reads;
`trick` keeps norms with eps = 1e12, and transformers' GPT2LMHeadModel loads the folder. The
report that is printed compares the written model with the trained one on random tokens (always
the same ones) and looks for normalizations in its graph. A model that is not equal is not written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from data.command_line import Parser
from model_lib.errors import UserError

WINDOWS = 4


def export(workdir: str, member: int, form: str, out: str) -> str:
  """Loads, converts, checks and writes; the text to print.

  Raises:
    UserError: no such run, a norm that is still real, or outputs that differ.
  """
  import jax
  import numpy as np

  from launch.study.load import load_run
  from model_lib.interop.hugging_face import not_stock, save_gpt2
  from model_lib.models.gpt2 import GPT2
  from model_lib.transforms import gpt2_export

  model, variables, config = load_run(workdir, member)
  if not isinstance(model, GPT2):
    raise UserError(f'{workdir}: member {member} is a {config["model"]["name"]}; only gpt2 is '
                    'exported')
  tokens = np.random.default_rng(0).integers(
      0, model.vocab, (WINDOWS, model.length)).astype(np.int32)
  with jax.default_matmul_precision('highest'):  # accelerators round float32 products otherwise
    exported = getattr(gpt2_export, form)(model, variables, tokens)
  if not exported.report.equal:
    first = str(exported.report.precisions).replace('\n', '; ')
    raise UserError(f'{workdir}: member {member}: the {form} is not shown to be the trained model '
                    f'({first}; with real norms {exported.report.control:.1e}); nothing is written')
  save_gpt2(out, exported.model, exported.variables)
  reason = not_stock(exported.model)
  reader = (f'model_lib.interop.load_gpt2 reads it; transformers does not, as {reason}' if reason
            else "transformers' GPT2LMHeadModel and model_lib.interop.load_gpt2 read it")
  return f'{exported.report}\nwrote {out}: {reader}'


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status: 0, or 2 after one line on stderr."""
  try:
    options = _parser().parse_args(argv)
    print(export(options.workdir, options.member, options.form, options.out))
    return 0
  except UserError as error:
    print(f'launch.export: {error}', file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
  parser = Parser(UserError, prog='python -m launch.export',
                  description='Writes a trained GPT-2 whose norms are linear as a folder.')
  parser.add_argument('workdir', metavar='WORKDIR', help='a study\'s workdir')
  parser.add_argument('--member', type=int, required=True, metavar='N',
                      help='the column `member` of results.csv')
  parser.add_argument('--form', choices=('fold', 'trick'), required=True,
                      help='without norms, or with the norms of stock GPT-2 at eps = 1e12')
  parser.add_argument('--out', required=True, metavar='FOLDER', help='where to write')
  return parser


if __name__ == '__main__':
  sys.exit(main())
