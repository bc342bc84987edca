"""Slopes of made-up moves, and the verdicts on made-up slopes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model_lib.analysis import coordinate_check as check
from model_lib.analysis import coordinate_rules as rules
from model_lib.analysis.statistics import Interval
from model_lib.errors import UserError


def trace(size: int, moves: dict[str, list[float]], steps: int = 1) -> check.Trace:
  """moves: tensor -> the move of each seed, the same at every step from 1."""
  arrays = {name: np.array([[0.0] + [v] * steps for v in values]) for name, values in moves.items()}
  return check.Trace(size, arrays, arrays, arrays, np.zeros((2, steps + 1)))


def test_slopes_by_hand() -> None:
  # Of the smallest size, which the slope leaves out, nothing is a power law.
  traces = [trace(n, {'a': [3.0 if n == 8 else 2.0 * n, 5.0 if n == 8 else n ** 2.0],
                      'b': [1.0, 0.0], 'logits': [1.0, 1.0], **({'c': [1, 1]} if n == 8 else {})})
            for n in (64, 8, 16, 32)]
  found = {s.tensor: s for s in check.slopes(traces, {'a': 'hidden'}, upper=3)}
  assert set(found) == {'a', 'b', 'logits'} and found['a'].sizes == (8, 16, 32, 64)
  assert found['a'].slope.mean == pytest.approx(1.5) and found['a'].slope.n == 2
  assert found['a'].slope.sd == pytest.approx(0.5 ** 0.5)
  assert found['a'].role == 'hidden' and found['logits'].role == 'logits'
  assert found['a'].moves[1] == pytest.approx((32 + 256) / 2)
  assert math.isnan(found['b'].slope.mean) and found['logits'].slope.mean == 0
  with pytest.raises(UserError, match='two sizes'):
    check.slopes(traces[:1])


def slope(role: str, value: float, step: int = 2, tensor: str = '', moves=(1.0, 1.0)):
  return check.Slope(tensor or role, role, step, Interval(value, value, value, 3, 0.0), (8, 16),
                     tuple(moves))


GOOD = [slope('hidden', 0.05), slope('input', 0.0), slope('logits', -0.14)]
CONTROL = [slope('hidden', 0.5), slope('input', -0.1), slope('logits', 0.9)]


def width(found, control=tuple(CONTROL), name='sp', **more) -> rules.Verdict:
  return rules.judge_width('row', found, name, control, **more)


def test_width_passes_and_says_how_near() -> None:
  verdict = width(GOOD)
  assert verdict.verdict == rules.PASSED
  assert 'all 3 slopes' in verdict.text and 'logits S = -0.14 at t = 2' in verdict.text
  assert 'control sp: S from +0.50 to +0.90, S >= +0.35' in verdict.text
  assert '\n' not in verdict.text


@pytest.mark.parametrize('more, says', [
  (slope('hidden', 0.11), 'hidden S = +0.11 at t = 2, and should have |S| <= 0.10'),
  (slope('feature', -0.2), 'feature S = -0.20'), (slope('logits', 0.16), '|S| <= 0.15'),
  (slope('input', math.nan), 'input S = +nan'),
  # A hidden kernel whose output never moves was not trained.
  (slope('hidden', math.nan, moves=(0, 0)), 'hidden S = +nan')])
def test_width_fails_and_names_the_worst(more, says) -> None:
  verdict = width([*GOOD, more])
  assert verdict.verdict == rules.FAILED and says in verdict.text and '1 of 4' in verdict.text


def test_what_is_not_judged() -> None:
  more = [slope('attention', -0.5), slope('hidden', 9.0, step=3), slope('hidden', 9.0, step=1),
          slope('feature', math.nan, moves=(0, 0))]
  assert width([*GOOD, *more]).verdict == rules.PASSED
  with pytest.raises(UserError, match='nothing|no slope'):
    width(GOOD[:0])


@pytest.mark.parametrize('control, name, says', [
  ([slope('hidden', 0.3), slope('logits', 0.9)], 'sp', 'hidden S = +0.30'),
  ([slope('hidden', 0.5), slope('input', 0.2)], 'sp', 'input S = +0.20'),
  ([slope('hidden', -0.3), slope('input', -0.5)], 'ntk', 'S <= -0.35')])
def test_without_its_control_there_is_no_verdict(control, name, says) -> None:
  verdict = width(GOOD, control, name)
  assert verdict.verdict == rules.NONE and says in verdict.text


@pytest.mark.parametrize('name, found, verdict', [
  ('sp', GOOD, rules.NONE), ('ntk', GOOD, rules.NONE), ('sp', CONTROL, rules.FAILED),
  ('sp', [slope('hidden', 0.3), slope('logits', 0.9)], rules.NONE),
  ('ntk', [slope('hidden', -0.5), slope('input', -0.4)], rules.FAILED)])
def test_a_row_that_is_its_own_control_never_passes(name, found, verdict) -> None:
  judged = rules.judge_width(name, found, name, found)
  assert judged.verdict == verdict and '\n' not in judged.text, judged.text


def test_a_readout_of_zeros() -> None:
  first = [slope('hidden', math.nan, step=1, moves=(0, 0)), *CONTROL]
  assert width(GOOD, first).verdict == rules.NONE
  assert width(GOOD, first, zero_readout=True).verdict == rules.PASSED


def test_the_control_of_each_family() -> None:
  assert [rules.width_control(f) for f in ('adam', 'lion', 'sgd', 'momentum')] == [
    'sp', 'sp', 'ntk', 'ntk']


def depth(own: float, faster: float, slower: float, *, growth: float = 1e4, width: int = 64,
          normed: bool = False, plain: float = 2.0, half: bool = True) -> rules.Verdict:
  found = {'row': own, rules.FASTER: faster, rules.SLOWER: slower, rules.PLAIN: plain}
  slopes = {name: [check.Slope(rules.END, 'feature', 8, Interval(v, v, v, 3, 0.0), (8, 32),
                               (1.0, 1.0))] for name, v in found.items()}
  traces = [trace(n, {rules.END: [value]}) for n, value in ((32, growth), (8, 1.0))]
  for each, value in zip(traces, (growth, 1.0)):
    each.rms[rules.END][:, 0] = value
  return rules.judge_depth('row', slopes, traces, width, normed, half)


@pytest.mark.parametrize('verdict, given', [
  (rules.PASSED, dict(own=0.27, faster=0.58, slower=-0.2)),  # the numbers of the first run of it
  (rules.FAILED, dict(own=0.36, faster=0.8, slower=-0.2)),
  (rules.FAILED, dict(own=0.27, faster=0.58, slower=-0.2, width=128)),  # a tighter limit
  (rules.FAILED, dict(own=0.27, faster=0.46, slower=-0.2)),
  (rules.FAILED, dict(own=0.0, faster=0.5, slower=-0.2)),
  (rules.PASSED, dict(own=0.0, faster=0.5, slower=-0.2, half=False)),
  # CompleteP in a small GPT: its early moves hold what vanishes with depth.
  (rules.PASSED, dict(own=-0.2, faster=0.5, slower=-0.4, half=False, width=128)),
  (rules.FAILED, dict(own=-0.36, faster=0.5, slower=-0.6, half=False, width=128)),
  (rules.FAILED, dict(own=math.nan, faster=0.5, slower=-0.5)),
  (rules.NONE, dict(own=0.0, faster=0.5, slower=-0.5, growth=99.0)),
  (rules.PASSED, dict(own=0.0, faster=0.5, slower=-0.5, growth=math.inf)),
  (rules.PASSED, dict(own=0.0, faster=0.5, slower=-0.5, growth=2.0, normed=True, plain=0.9)),
  (rules.NONE, dict(own=0.0, faster=0.5, slower=-0.5, normed=True, plain=0.3)),
  # The two controls tell nothing apart: neither a flat row nor a steep one is judged.
  (rules.NONE, dict(own=0.0, faster=0.1, slower=-0.1)),
  (rules.NONE, dict(own=2.0, faster=0.1, slower=-0.1)),
  (rules.NONE, dict(own=0.0, faster=0.3, slower=-0.14)),
  (rules.NONE, dict(own=0.0, faster=-0.5, slower=0.5)),
  (rules.NONE, dict(own=0.0, faster=math.nan, slower=-0.5)),
  (rules.NONE, dict(own=0.0, faster=0.5, slower=math.nan)),
  (rules.NONE, dict(own=0.0, faster=math.inf, slower=-0.5)),
  (rules.NONE, dict(own=0.0, faster=0.3, slower=-0.1, half=False)),
  (rules.NONE, dict(own=0.0, faster=0.5, slower=math.nan, half=False)),
  (rules.FAILED, dict(own=0.0, faster=0.3, slower=-0.16))])
def test_depth(verdict, given) -> None:
  found = depth(**given)
  assert found.verdict == verdict and '\n' not in found.text, found.text


def test_controls_that_do_not_separate_are_named() -> None:
  assert depth(own=0.0, faster=0.1, slower=-0.1).text == (
    'row: no verdict, since the controls do not separate at these depths: S(1/2, 0) - S(1/2, 1) = '
    '+0.20, and should be >= 0.45')
