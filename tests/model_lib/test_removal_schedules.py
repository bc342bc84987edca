"""Sites and schedules of LayerNorm removal, as data and as text; the published recipes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models.removable import NEVER
from model_lib.transforms import removal_schedules
from model_lib.transforms.recipes import CONTEXT, PAPER
from model_lib.transforms.removal_schedules import schedule, sites


def events(text, depth=2, steps=100):
  """{path: event} of a schedule."""
  return {site.path: step for step, site in schedule(text, depth, steps).timeline(depth)}


def test_sites() -> None:
  assert [site.path for site in sites(2)] == [
    'h.0.ln_2', 'h.1.ln_2', 'h.0.ln_1.qk', 'h.1.ln_1.qk', 'h.0.ln_1.v', 'h.1.ln_1.v', 'ln_f']
  assert len(sites(12)) == 37


# The published table: starts of each group, the final event, tokens per step, tokens in all.
@pytest.mark.parametrize('size, depth, mlp, qk, v, final, per_step, total', [
  ('small', 12, 20, 44, 68, 104, 524288, 157e6), ('medium', 24, 20, 68, 116, 188, 518144, 259e6),
  ('large', 36, 30, 174, 318, 534, 516096, 310e6), ('xl', 48, 50, 242, 434, 722, 516096, 413e6)])
def test_the_papers_schedules(size, depth, mlp, qk, v, final, per_step, total) -> None:
  recipe = PAPER[size]
  hp = schedule(f'paper(size={size})', depth, recipe.steps).hp(depth)
  assert (hp['event_mlp'][0], hp['event_qk'][0], hp['event_v'][0]) == (mlp, qk, v)
  assert hp['event_final'] == final and hp['enabled'] == 1
  for group, gap in (('mlp', recipe.gap_mlp), ('qk', recipe.gap_qk), ('v', recipe.gap_v)):
    steps = hp[f'event_{group}']
    assert len(steps) == depth and {b - a for a, b in zip(steps, steps[1:])} == {gap}
  assert recipe.tokens_per_step == per_step and CONTEXT == 1024
  # The printed totals are rounded to millions.
  assert abs(recipe.fine_tuning_tokens - per_step * recipe.steps) < 0.6e6
  assert recipe.fine_tuning_tokens == total and recipe.dim % recipe.heads == 0


def test_orders() -> None:
  numbers = '(start=10, gap_mlp=1, gap_qk=2, gap_v=3)'
  assert events(f'staged{numbers}') == {
    'h.0.ln_2': 10, 'h.1.ln_2': 11, 'h.0.ln_1.qk': 12, 'h.1.ln_1.qk': 14,
    'h.0.ln_1.v': 16, 'h.1.ln_1.v': 19, 'ln_f': 22}
  assert events(f'reversed{numbers}') == {
    'ln_f': 10, 'h.1.ln_1.v': 13, 'h.0.ln_1.v': 16, 'h.1.ln_1.qk': 19, 'h.0.ln_1.qk': 21,
    'h.1.ln_2': 23, 'h.0.ln_2': 24}
  assert events(f'qk_first{numbers}') == {
    'h.0.ln_1.qk': 10, 'h.1.ln_1.qk': 12, 'h.0.ln_2': 14, 'h.1.ln_2': 15, 'h.0.ln_1.v': 16,
    'h.1.ln_1.v': 19, 'ln_f': 22}
  assert set(events('at_once(step=15)').values()) == {15} and len(events('at_once(step=15)')) == 7
  assert events('final_only(step=4)') == {'ln_f': 4}
  staged = events('staged')
  kept = events('keep_final(staged)')
  assert {**kept, 'ln_f': staged['ln_f']} == staged and 'ln_f' not in kept
  assert events('keep_final') == kept
  order = [site.path for _, site in schedule('staged', 3, 100).timeline(3)]
  back = [site.path for _, site in schedule('reversed', 3, 100).timeline(3)]
  assert back == order[::-1]


def test_hp_keeps_what_a_schedule_leaves_out() -> None:
  assert schedule('never', 2, 5).hp(2) == {
    'event_qk': (NEVER,) * 2, 'event_v': (NEVER,) * 2, 'event_mlp': (NEVER,) * 2,
    'event_final': NEVER, 'enabled': 1}
  assert schedule('keep_final', 2, 100).hp(2)['event_final'] == NEVER
  only = schedule('final_only(step=3)', 2, 100).hp(2)
  assert only['event_final'] == 3 and only['event_v'] == (NEVER, NEVER)


def test_a_sham_has_the_events_and_switches_nothing() -> None:
  real, sham = (schedule(text, 3, 90).hp(3) for text in ('staged', 'sham(staged)'))
  assert sham == {**real, 'enabled': 0}
  assert schedule('sham(keep_final(staged))', 3, 90).order == ('mlp', 'qk', 'v')


def test_adaptive_ranks_are_the_order_of_a_schedule() -> None:
  plan = schedule('adaptive(staged, gap=5, tolerance=0.1)', 2, 100)
  hp = plan.hp(2)
  assert hp['adaptive_rank'] == (0, 1, 2, 3, 4, 5, 6)
  assert (hp['adaptive_gap'], hp['adaptive_tolerance'], hp['adaptive_wait']) == (5, 0.1, 20)
  assert hp['event_mlp'] == (NEVER, NEVER) and hp['event_final'] == NEVER and hp['enabled'] == 1
  assert schedule('adaptive', 2, 100).hp(2)['adaptive_rank'] == hp['adaptive_rank']
  back = schedule('adaptive(reversed)', 2, 100).hp(2)['adaptive_rank']
  assert back == (6, 5, 4, 3, 2, 1, 0)
  kept = schedule('adaptive(sham(keep_final(qk_first)))', 2, 100).hp(2)
  assert kept['adaptive_rank'] == (2, 3, 0, 1, 4, 5, NEVER) and kept['enabled'] == 0
  # All of the model's swept numbers of this kind are there.
  model = models.build('gpt2', depth=2, vocab=5, dim=4, heads=1, removable=True, adaptive=4)
  own = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 1), np.int32)))['hp']
  names = {*own, *own['h']}
  assert set(hp) <= names and {n for n in names if n.startswith(('adaptive', 'event'))} <= set(hp)
  assert own['adaptive_rank'].shape == (7,)


@given(st.integers(1, 48), st.integers(20, 2000))
def test_fitted_to_any_depth_and_length(depth, steps) -> None:
  timeline = schedule('staged', depth, steps).timeline(depth)
  times = [step for step, _ in timeline]
  assert len(times) == 3 * depth + 1 and times == sorted(times)
  span, half = times[-1] - times[0], 1  # each of the two events is rounded by a half
  assert 0.3 * steps - half <= span <= 0.65 * steps + half
  assert times[-1] <= 0.75 * steps + 0.5 and times[0] == steps // 10
  start, gaps = removal_schedules.fitted(depth, steps)
  assert gaps['mlp'] == gaps['qk'] and gaps['v'] * 2 == pytest.approx(gaps['mlp'] * 3)


def test_fitted_gaps_are_whole_where_that_is_possible() -> None:
  assert removal_schedules.fitted(4, 150) == (15, {'mlp': 4, 'qk': 4, 'v': 6, 'final': 6})
  assert schedule('staged', 4, 150).hp(4)['event_final'] == 71
  assert removal_schedules.fitted(48, 100)[1]['mlp'] < 1


def test_numbers_that_are_left_out_are_fitted() -> None:
  assert schedule('staged(start=20)', 4, 150).gaps == schedule('staged', 4, 150).gaps
  assert schedule('staged(gap_v=1)', 4, 150).gaps == (4, 4, 1, 1)
  assert set(events('at_once', 4, 150).values()) == {15}
  # All given: no run is too short to fit.
  assert schedule('staged(start=1, gap_mlp=0, gap_qk=0, gap_v=0)', 2, 3).start == 1


@pytest.mark.parametrize('text, part', [
  ('stagd', "nearest: 'staged'"), ('staged(strat=3)', "nearest: 'start'"),
  ('staged(3)', 'settings have names'), ('staged(start=-1)', 'from 0, not -1'),
  ('staged(start=2.5)', 'start must be an integer'), ('staged(gap_v=all)', 'not all'),
  ('staged(start=True)', 'not True'), ('staged(gap_v=inf)', 'not inf'),
  ('at_once(start=3)', "no setting 'start'"), ('never(start=3)', 'it takes none'),
  ('paper(size=smal)', "nearest: 'small'"), ('paper', 'sizes: small, medium'),
  ('paper(size=3)', 'sizes: small, medium'), ('paper(size=medium)', 'for 24 layers'),
  ('sham(staged, staged)', 'takes one schedule'), ('sham(schedule=staged)', 'takes one schedule'),
  ('keep_final(3)', 'takes one schedule'), ('keep_final(sham(stagde))', "nearest: 'staged'"),
  ('adaptive(staged, tolerence=1)', "nearest: 'tolerance'"), ('adaptive(gap=1.5)', 'an integer'),
  ('adaptive(decay=1)', 'from 0 to below 1'), ('adaptive(stagde)', "nearest: 'staged'"),
  ('adaptive(staged, reversed)', 'takes one schedule'), ('sham(adaptive)', 'stands inside'),
  ('staged(start=95)', 'last norm at step'), ('staged(', 'position 8'),
])
def test_a_mistake_is_one_line(text, part) -> None:
  with pytest.raises(UserError) as info:
    schedule(text, 12, 100)
  assert part in str(info.value) and '\n' not in str(info.value)


def test_a_run_too_short_to_fit_is_refused() -> None:
  with pytest.raises(UserError, match='at least 20 steps, not 10'):
    schedule('staged', 2, 10)
