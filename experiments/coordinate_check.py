"""Does a parametrization keep the size of updates, over width or depth? A table and a verdict.

  python -m experiments.coordinate_check --model=mlp|resmlp|vit|gpt --parametrization=mup
      [--axis=width|depth] [--optimizer=adam|sgd|...] [--sizes=64,128,256,512] [--base=16]
      [--seeds=3] [--steps=8] [--rate=R] [--data=random|digits] [--out=DIR]

Networks of several sizes train for a few steps on one fixed batch. A parametrization transfers only
if the moves z_t - z_0 of all tensors have the same size in all of them: the slope S of log2 rms
over log2 size is near 0. The row of the same optimizer that must fail is run beside it (sp, under
SGD ntk; over depth alpha = 1/2 with two wrong gammas, and no rule of depth at all): where that does
not show, or the two gammas do not differ, there is no verdict, whatever the row does. The bounds
are those of `model_lib.analysis.coordinate_rules`.

`--model=resmlp --axis=depth` is the network of Tensor Programs VI (deep_mlp: 64 wide, ReLU times
2^1/2, input and readout frozen). For a model of your own see `model_lib.analysis.coordinate_check`.

--out gets coordinate_check.json, .csv (rms and mean |.| of every tensor, size, seed and step) and
.png. The exit code is 0 whatever the verdict, 2 for a wrong command. To expect on two CPU cores:
half a minute for mlp and resmlp, one or two for vit and gpt.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import sys
from typing import Any

from data.command_line import Parser
from data.errors import DataError
from experiments.parts import coordinate_models as parts
from model_lib.errors import UserError

SHOWN = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Check:
  """What the command line asks for, resolved; the settings in the json."""

  model: str
  parametrization: str
  axis: str
  optimizer: str
  sizes: tuple[int, ...]
  base: int
  seeds: int
  steps: int
  rate: float
  data: str


@dataclasses.dataclass(frozen=True)
class Result:
  """Of every row that was run, the first under test: its traces and slopes; and the verdict."""

  check: Check
  traces: Mapping[str, list]
  slopes: Mapping[str, list]
  verdict: Any

  @property
  def steps(self) -> tuple[int, ...]:
    """The steps that are shown."""
    return tuple(t for t in SHOWN if t <= self.check.steps)


def parse(argv: Sequence[str] | None = None) -> tuple[Check, Path | None]:
  """The check, and the folder of its files. Raises UserError in one line."""
  parser = Parser(UserError, prog='python -m experiments.coordinate_check', description=__doc__,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
  for name, text in (('model', '|'.join(parts.MODELS)), ('parametrization', 'ROW')):
    parser.add_argument(f'--{name}', required=True, metavar=text)
  parser.add_argument('--axis', default='width', metavar='|'.join(parts.AXES))
  parser.add_argument('--optimizer', default='adam', metavar='NAME')
  parser.add_argument('--sizes', metavar='A,B,C', help='widths, or numbers of blocks')
  parser.add_argument('--base', type=int, metavar='N', help='size at which all rows are alike')
  parser.add_argument('--seeds', type=int, default=3, metavar='N', help='initializations per size')
  parser.add_argument('--steps', type=int, default=8, metavar='N')
  parser.add_argument('--rate', type=float, metavar='R', help='learning rate at the base')
  parser.add_argument('--data', default='random', metavar='|'.join(parts.DATA))
  parser.add_argument('--out', type=Path, metavar='DIR')
  given = parser.parse_args(argv)
  parts.chosen('model', given.model, parts.MODELS)
  parts.chosen('axis', given.axis, parts.AXES)
  parts.chosen('data', given.data, parts.DATA)
  optimizers = parts.optimizers()
  parts.chosen('optimizer', given.optimizer, optimizers)
  if given.axis == 'depth' and given.optimizer in ('sgd', 'momentum'):
    raise UserError(f'--optimizer={given.optimizer}: the controls over depth are those of adam and '
                    'the like')
  found = parts.setting(given.model, given.axis)
  sizes = _sizes(given.sizes) if given.sizes else found.sizes
  base = given.base if given.base is not None else found.base
  for name, value, low in (('base', base, 4 if given.axis == 'width' else 1),
                           ('seeds', given.seeds, 2), ('steps', given.steps, 2)):
    if value < low:
      raise UserError(f'--{name}={value}: it must be at least {low}')
  if found.name in ('vit', 'gpt') and given.axis == 'width':
    for size in (*sizes, base):
      if size % parts.HEADS:
        raise UserError(f'width {size}: {given.model} has {parts.HEADS} heads, which must divide '
                        'it')
  rate = given.rate if given.rate is not None else optimizers[given.optimizer][1] * found.rate
  if not 0 < rate < math.inf:
    raise UserError(f'--rate={rate:g}: it must be a number > 0')
  row = parts.row(given.parametrization, found, base)
  return Check(given.model, row, given.axis, given.optimizer, sizes, base, given.seeds,
               given.steps, rate, given.data), given.out


def _sizes(text: str) -> tuple[int, ...]:
  try:
    sizes = tuple(int(part) for part in text.split(','))
  except ValueError:
    raise UserError(f'--sizes={text}: expected whole numbers with commas between them') from None
  if len(sizes) < 2 or min(sizes) < 1 or sorted(set(sizes)) != list(sizes):
    raise UserError(f'--sizes={text}: expected at least two sizes > 0, ascending')
  return sizes


def run(check: Check, say=lambda line: None) -> Result:
  """Trains the networks of all sizes under the row and its controls."""
  from model_lib.analysis import coordinate_rules as rules
  from model_lib.analysis.coordinate_check import Program, roles, slopes
  from model_lib.models.parametrized import build
  from model_lib.parametrization import get_parametrization
  from model_lib.training import optimizers

  found = parts.setting(check.model, check.axis)
  optimizer = dataclasses.replace(parts.optimizers()[check.optimizer][0], trained=found.trained)
  family = optimizers.family(optimizer)
  control = rules.width_control(family)
  controls = rules.DEPTH_CONTROLS if check.axis == 'depth' else (control,)
  controls = tuple(parts.row(text, found, check.base) for text in controls)
  task, inputs, targets = parts.batch(check.model, check.data)
  traces, moves, compiled = {}, {}, {}
  for row in dict.fromkeys((check.parametrization, *controls)):
    traces[row] = []
    for size in check.sizes:
      model = build(
        found.name, {**found.arguments, **found.at(size), 'parametrization': row},
        found.at(check.base), found.wider(check.base), family)
      program = Program(model, task, inputs, targets, optimizer, check.steps, check.axis,
                        compiled=compiled)
      numbers = _with(program.numbers(), found.numbers)
      traces[row].append(program.trace(size, check.rate, range(check.seeds), numbers))
      say(f'{row}, {check.axis} {size}')
    role = roles(model.labels(inputs, train=False), traces[row][0].rms)
    moves[row] = slopes(traces[row], role)
  row = check.parametrization
  if check.axis == 'width':
    verdict = rules.judge_width(row, moves[row], control, moves[controls[0]],
                                rules.zero_readout(traces[row]), family)
  else:
    named = dict(zip(rules.DEPTH_CONTROLS, controls))
    verdict = rules.judge_depth(
      row, {row: moves[row], **{short: moves[full] for short, full in named.items()}},
      traces[named[rules.PLAIN]], found.width, found.normed,
      get_parametrization(row).depth_power == -0.5)
  return Result(check, traces, moves, verdict)


def _with(numbers: Mapping, given: Mapping[tuple[str, ...], float]) -> dict:
  """The swept numbers with some of them replaced, by path."""
  import flax.traverse_util
  import numpy as np
  flat = flax.traverse_util.flatten_dict(dict(numbers))
  return flax.traverse_util.unflatten_dict(
    {**flat, **{path: np.float32(value) for path, value in given.items()}})


def table(result: Result):
  """One row per tensor: the slopes of the row under test with half their intervals."""
  from launch.study.tables import Column, Table, text
  columns = [Column('row', 'row', right=False), Column('tensor', 'tensor', right=False),
             Column('role', 'role', right=False)]
  columns += [Column(f't{t}', f'S, t = {t}', format=text()) for t in result.steps]
  rows = []
  for name, found in result.slopes.items():
    for tensor in dict.fromkeys(slope.tensor for slope in found):
      own = {slope.step: slope for slope in found if slope.tensor == tensor}
      if not any(own[t].moves[-1] for t in result.steps):
        continue  # nothing trained is in front of it
      rows.append({'row': name, 'tensor': tensor, 'role': own[1].role,
                   **{f't{t}': _with_half(own[t].slope) for t in result.steps}})
  check = result.check
  return Table(f'Slopes S of log2 rms(z_t - z_0) over log2 {check.axis}, {check.model}', columns,
               rows, [f'{check.optimizer}, learning rate {check.rate:g}, sizes '
                      f'{", ".join(map(str, check.sizes))}, base {check.base}, {check.seeds} '
                      'seeds: mean and half of the 95 % interval.'])


def _with_half(slope) -> str:
  if math.isnan(slope.mean):
    return '-'
  return f'{slope.mean:+.2f} ± {slope.high - slope.mean:.2f}'


def records(result: Result) -> list[dict[str, Any]]:
  """One per row, tensor, size, seed and step."""
  return [
    {'row': row, 'tensor': tensor, result.check.axis: trace.size, 'seed': seed, 'step': step,
     'rms': float(trace.rms[tensor][seed, step]),
     'move_rms': float(trace.move_rms[tensor][seed, step]),
     'move_l1': float(trace.move_l1[tensor][seed, step])}
    for row, found in result.traces.items() for trace in found for tensor in trace.rms
    for seed in range(result.check.seeds) for step in range(result.check.steps + 1)]


def make(out: Path) -> None:
  """Makes the folder; UserError where it cannot be made."""
  from launch.study import atomic
  with atomic.as_user_error(out):
    out.mkdir(parents=True, exist_ok=True)


def write(result: Result, out: Path) -> None:
  """The three files, each of them in one step."""
  from experiments.figures import coordinate_check as figures
  from launch.study import atomic, plotting
  make(out)
  found = [
    {'row': row, 'tensor': s.tensor, 'role': s.role, 'step': s.step, 'slope': s.slope.mean,
     'low': s.slope.low, 'high': s.slope.high, 'n': s.slope.n, 'sizes': s.sizes, 'moves': s.moves}
    for row, slopes in result.slopes.items() for s in slopes]
  plotting.save_png(figures.moves(result), out / 'coordinate_check.png')
  atomic.write_csv(out / 'coordinate_check.csv', records(result))
  atomic.write_json(out / 'coordinate_check.json', {
    'check': dataclasses.asdict(result.check), 'verdict': result.verdict.verdict,
    'text': result.verdict.text, 'slopes': found})


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns the exit status: 0, or 2 after one line on stderr."""
  try:
    check, out = parse(argv)
    if out is not None:  # before minutes of training
      make(out)
    result = run(check, lambda line: print(line, file=sys.stderr, flush=True))
    print(table(result).to_text())
    print(result.verdict.text)
    if out is not None:
      write(result, out)
    return 0
  except (UserError, DataError) as error:
    print(f'experiments.coordinate_check: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
