"""What the slopes of a coordinate check must be: fixed bounds, their controls, and the verdict.

  width, under test        |S| <= 0.10 of every tensor, 0.15 of the logits, at t = 2, 4, 8
  width, control, sp       S >= +0.35 of the outputs of hidden kernels and of the logits, and of
                           the input layer's output S <= 0.10, at t = 1, 2, 4; under lamb, muon
                           and scaled adafactor of the logits and the input layer alone
  width, control, ntk      (SGD) S <= -0.35 of every tensor but the logits
  depth, under test        |S| <= 0.35 of the stream's end at the last step, and
                           S(alpha=1/2, gamma=0) - S >= 0.20; where the row's own alpha is 1/2 also
                           S - S(alpha=1/2, gamma=1) >= 0.25, and |S| <= 0.15 if the width is at
                           least four times the largest number of blocks
  depth, controls          S(alpha=1/2, gamma=0) - S(alpha=1/2, gamma=1) >= 0.45, the sum of both;
                           and without a rule of depth the stream at the start grows by a factor of
                           100 per 24 blocks, or, where the branches read it through a norm,
                           S >= +0.35

A check whose control does not come out says nothing, whatever the row under test does: its verdict
is 'no verdict', also where the row is its own control. Under a readout of zeros the first step
moves the readout alone, so t = 1 is left out there. Queries times keys are shown and not judged: at
the start they are random, and with 1 / head_dim they fade with width in every correct model (`Yang
et al. 2022`, appendix D).

NTK is no control under Adam: its hidden tensors move by a constant amount. The controls of sp were
measured as +0.58 and +0.97, of ntk as -0.50, in networks 64-n-n-10 with n from 64 to 1024. Where
the size of an update is that of its kernel or of an orthogonal matrix, hidden outputs grow little
or not at all under sp (measured: +0.21 to +0.24 under lamb, -0.05 to +0.01 under muon, for logits
+0.66 and +0.52): there the check says nothing of the rate of hidden kernels. Train them alone for
that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from model_lib.analysis.coordinate_check import LOGITS, Slope, Trace
from model_lib.errors import UserError
from model_lib.parametrization.rules import ENTRYWISE, GRADIENT

END = 'stream end'
FEATURES = ('input', 'hidden', 'feature')
PASSED, FAILED, NONE = 'passed', 'failed', 'no verdict'


@dataclasses.dataclass(frozen=True)
class Bound:
  """low <= S <= high for the tensors of some roles after some steps."""

  roles: tuple[str, ...]
  steps: tuple[int, ...]
  low: float = -math.inf
  high: float = math.inf

  def margin(self, slope: float) -> float:
    """Distance to the nearer limit, negative outside of them; -inf for nan."""
    return -math.inf if math.isnan(slope) else min(slope - self.low, self.high - slope)

  def __str__(self) -> str:
    if self.low == -self.high:
      return f'|S| <= {self.high:.2f}'
    return f'S >= {self.low:+.2f}' if self.high == math.inf else f'S <= {self.high:+.2f}'


FLAT = (Bound(FEATURES, (2, 4, 8), -0.10, 0.10), Bound((LOGITS,), (2, 4, 8), -0.15, 0.15))
GROWS = (Bound(('hidden', LOGITS), (1, 2, 4), low=0.35), Bound(('input',), (1, 2, 4), high=0.10))
FADES = (Bound(FEATURES, (1, 2, 4, 8), high=-0.35),)
DEPTH, DEPTH_WIDE, WIDE = 0.35, 0.15, 4  # |S|; |S| where width >= WIDE * blocks
ABOVE, BELOW = 0.20, 0.25  # a row's distance from (1/2, 0), from (1/2, 1); the sum between them
GROWTH, PER_BLOCKS = 100.0, 24  # of the stream without a rule of depth
READOUT_GROWS = (Bound((LOGITS,), (1, 2, 4), low=0.35), GROWS[1])
CONTROLS = {'sp': GROWS, 'ntk': FADES}
FASTER, SLOWER, PLAIN = 'tp6(alpha=0.5, gamma=0.0)', 'tp6(alpha=0.5, gamma=1.0)', 'sp'
DEPTH_CONTROLS = (FASTER, SLOWER, PLAIN)


class Verdict(NamedTuple):
  """`text` is one line; `verdict` is PASSED, FAILED or NONE."""

  verdict: str
  text: str


def width_control(family: str) -> str:
  """The row whose failure shows that a width check under this family of optimizers can fail."""
  return 'ntk' if family in GRADIENT else 'sp'


def control_bounds(control: str, family: str) -> tuple[Bound, ...]:
  """What the slopes of a control, a key of CONTROLS, must be under a family of optimizers."""
  if control == 'sp' and family not in (*ENTRYWISE, *GRADIENT):
    return READOUT_GROWS
  return CONTROLS[control]


def outside(bounds: Sequence[Bound], found: Sequence[Slope], zero_readout: bool = False,
            ) -> tuple[list[tuple[Bound, Slope]], list[tuple[Bound, Slope]]]:
  """The judged (bound, slope), and those of them that are outside, the worst first.

  Args:
    bounds: of which every slope meets the first that has its role and step.
    found: the slopes.
    zero_readout: whether step 1 is left out.
  """
  judged = []
  for slope in found:
    bound = next((b for b in bounds if slope.role in b.roles and slope.step in b.steps), None)
    still = slope.role == 'feature' and not any(slope.moves)  # in front of all parameters
    if bound and not still and not (zero_readout and slope.step == 1):
      judged.append((bound, slope))
  out = [(b, s) for b, s in judged if not b.margin(s.slope.mean) >= 0]
  return judged, sorted(out, key=lambda pair: pair[0].margin(pair[1].slope.mean))


def judge_width(row: str, found: Sequence[Slope], control: str, of_control: Sequence[Slope],
                zero_readout: bool = False, family: str = 'adam') -> Verdict:
  """Whether the moves of `row` do not change with width, and those of its control do.

  Args:
    row, found: under test.
    control, of_control: a key of CONTROLS, and its slopes. It may be the row itself, which fails
      where it shows as a control, and has no verdict where it does not.
    zero_readout: whether the readout starts as zeros.
    family: of the optimizer, one of `parametrization.rules.FAMILIES`.

  Raises:
    UserError: there is nothing to judge.
  """
  judged, out = outside(FLAT, found, zero_readout)
  expected = control_bounds(control, family)
  checked, missed = outside(expected, of_control, zero_readout)
  if not judged or not checked:
    raise UserError(f'there is no slope to judge {row} or its control {control} by: the check '
                    'needs hidden kernels, and 2 steps or more')
  if missed:
    bound, slope = missed[0]
    return Verdict(NONE, f'{row}: no verdict, since the control {control} does not show at these '
                         f'sizes: {_said(slope)}, and should have {bound}')
  beside = ('' if control == row else
            f'; control {control}: {_range(of_control, expected, zero_readout)}')
  if out:
    bound, slope = out[0]
    return Verdict(FAILED, f'{row}: failed: {_said(slope)}, and should have {bound}; {len(out)} of '
                           f'{len(judged)} slopes are outside{beside}')
  worst = min(judged, key=lambda pair: pair[0].margin(pair[1].slope.mean))[1]
  return Verdict(PASSED, f'{row}: passed: all {len(judged)} slopes are inside, nearest to its '
                         f'limit {_said(worst)}{beside}')


def judge_depth(row: str, slopes: Mapping[str, Sequence[Slope]], plain: Sequence[Trace],
                width: int, normed: bool, half: bool = True) -> Verdict:
  """Whether the stream's end moves alike in nets of all depths, and its controls apart from it.

  Args:
    row: under test.
    slopes: row -> slopes, of the row and of DEPTH_CONTROLS.
    plain: the traces of PLAIN.
    width: of the stream.
    normed: whether the branches read the stream through a norm.
    half: whether the row's own alpha is 1/2. With alpha = 1 the branches of the start vanish with
      depth, and the first moves with them: its distance to gamma = 1 says nothing, and no width
      makes its limit narrower. The two controls must differ all the same.
  """
  end = {name: _end(found) for name, found in slopes.items()}
  own, sizes = end[row].slope.mean, end[row].sizes
  limit = DEPTH_WIDE if half and width >= WIDE * sizes[-1] else DEPTH
  growth = stream_ratio_over_depth(plain)
  blocks = sizes[-1] - sizes[0]
  if normed:
    plain_shows = end[PLAIN].slope.mean >= GROWS[0].low
    grows = f'{PLAIN} S = {end[PLAIN].slope.mean:+.2f}'
  else:
    plain_shows = not growth < GROWTH ** (blocks / PER_BLOCKS)
    grows = f'stream of {PLAIN} grows {growth:.3g} times over {blocks} blocks'
  faster, slower = end[FASTER].slope.mean, end[SLOWER].slope.mean
  above, below, apart = faster - own, own - slower, faster - slower
  conditions = {
    f'|S| = {abs(own):.2f} <= {limit:.2f}': abs(own) <= limit,
    f'S(1/2, 0) - S = {above:+.2f} >= {ABOVE:.2f}': above >= ABOVE}
  if half:
    conditions[f'S - S(1/2, 1) = {below:+.2f} >= {BELOW:.2f}'] = below >= BELOW
  if not plain_shows:
    return Verdict(NONE, f'{row}: no verdict, since the control does not show at these depths: '
                         f'{grows}')
  if not (math.isfinite(apart) and apart >= ABOVE + BELOW):
    return Verdict(NONE, f'{row}: no verdict, since the controls do not separate at these depths: '
                         f'S(1/2, 0) - S(1/2, 1) = {apart:+.2f}, and should be >= '
                         f'{ABOVE + BELOW:.2f}')
  wrong = [text for text, right in conditions.items() if not right]
  if wrong:
    return Verdict(FAILED, f'{row}: failed: not {", nor ".join(wrong)}; {grows}')
  return Verdict(PASSED, f'{row}: passed: {", ".join(conditions)}; {grows}')


def stream_ratio_over_depth(traces: Sequence[Trace]) -> float:
  """rms(x_L) of the deepest net at the start over that of the shallowest, mean over seeds of logs.

  Infinite where it overflows.
  """
  traces = sorted(traces, key=lambda trace: trace.size)
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    first, last = (np.log(trace.rms[END][:, 0].astype(np.float64)) for trace in
                   (traces[0], traces[-1]))
    ratio = float(np.exp((last - first).mean()))
  return math.inf if math.isnan(ratio) else ratio


def zero_readout(traces: Sequence[Trace]) -> bool:
  """Whether the logits of every net are zero at the start."""
  return all(not trace.rms[LOGITS][:, 0].any() for trace in traces)


def _end(found: Sequence[Slope]) -> Slope:
  return max((s for s in found if s.tensor == END), key=lambda s: s.step)


def _said(slope: Slope) -> str:
  return f'{slope.tensor} S = {slope.slope.mean:+.2f} at t = {slope.step}'


def _range(found: Sequence[Slope], bounds: Sequence[Bound], zero: bool) -> str:
  values = [s.slope.mean for b, s in outside(bounds[:1], found, zero)[0]]
  return f'S from {min(values):+.2f} to {max(values):+.2f}, {bounds[0]}'
