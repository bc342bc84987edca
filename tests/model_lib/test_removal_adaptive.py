"""Removal that follows the loss, on synthetic losses: by hand, and against a plain loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.models import adaptive_removal as rule
from model_lib.models import removable
from model_lib.models.hyper import set_hp

pytestmark = pytest.mark.usefixtures('unoptimized')

NEVER = rule.NEVER
BASE = {'start': 4, 'gap': 2, 'wait': 6, 'decay': 0.5, 'tolerance': 0.1, 'spike': 1.0}
_run = jax.jit(lambda state, settings, losses: jax.lax.scan(
  lambda s, loss: ((new := rule.advance(s, settings, loss)), new['event']), state, losses))


def run(losses, rank=(0, 1, 2), window=4, **changes):
  """Final state, and the events after each step [steps, sites]."""
  settings = {**BASE, **changes, 'rank': jnp.asarray(rank, jnp.int32)}
  state, events = _run(rule.initial(len(rank), window), settings, jnp.asarray(losses, jnp.float32))
  return state, np.asarray(events)


def by_loop(losses, rank, window, start, gap, wait, decay, tolerance, spike):
  """The rule as its docstring has it, with lists; the events after each step."""
  event, retry, seen, average = [NEVER] * len(rank), [0] * len(rank), [], None
  reference, last, at, out = float('inf'), None, None, []
  for s, loss in enumerate(losses):
    seen.append(loss)
    average = loss if average is None else decay * average + (1 - decay) * loss
    if last is not None and s < at + window and loss > reference + spike:
      event[last], retry[last], last = NEVER, s + 1 + wait, None
    else:
      free = [i for i in range(len(rank))
              if event[i] == NEVER and rank[i] < NEVER and retry[i] <= s + 1]
      if (free and s + 1 >= max(start, window) and (at is None or s + 1 >= at + gap)
          and average <= reference + tolerance):
        last = min(free, key=lambda i: rank[i])
        at = event[last] = s + 1
        reference = float(np.mean(seen[-window:]))
    out.append(list(event))
  return np.array(out)


def test_without_spikes_sites_go_at_the_gap_in_the_order_of_their_ranks() -> None:
  state, events = run(np.full(20, 2.0), rank=(1, 0, NEVER, 2), gap=3)
  assert events[-1].tolist() == [7, 4, NEVER, 10]  # the third is kept
  # An event is written in the step before it, never in or after its own.
  for site, first in ((0, 7), (1, 4), (3, 10)):
    assert (events[:first - 1, site] == NEVER).all() and (events[first - 1:, site] == first).all()
  assert int(state['step']) == 20 and not state['rollbacks'].any()


def test_the_next_site_waits_until_the_average_is_back() -> None:
  losses = np.full(20, 2.0)
  losses[4:8] = 2.5  # after the first event; below the spike
  _, events = run(losses)
  # Averages by hand: 2.469 at step 7, then halving its way back: 2.234, 2.117, 2.059 at step 10.
  assert events[-1].tolist() == [4, 11, 13]
  assert run(losses, tolerance=10.0)[1][-1].tolist() == [4, 6, 8]  # without waiting


def test_a_spike_puts_the_last_site_back_for_a_while() -> None:
  losses = np.full(30, 2.0)
  losses[5] = 3.5
  state, events = run(losses)
  assert events[4, 0] == 4 and events[5, 0] == NEVER  # real again from step 6 on
  assert state['rollbacks'].tolist() == [1, 0, 0]
  # Averages 2.75, 2.375, 2.188, 2.094 at step 8: the others go first, at 9 and 11, and the one
  # put back, which may be tried from step 6 + 6 on, a gap after them.
  assert events[-1].tolist() == [13, 9, 11]
  assert run(losses, wait=20)[1][-1].tolist() == [26, 9, 11]
  assert run(losses, spike=2.0)[0]['rollbacks'].tolist() == [0, 0, 0]


def test_a_spike_counts_within_the_window_only() -> None:
  for at, back in ((3, 0), (4, 1), (7, 1), (8, 0)):
    losses = np.full(12, 2.0)
    losses[at] = 4.0
    state, _ = run(losses, gap=20)
    assert int(state['rollbacks'].sum()) == back, at


def test_a_loss_that_is_no_number_is_a_spike_and_leaves_no_trace_in_the_means() -> None:
  losses = np.full(12, 2.0)
  losses[6] = np.nan
  state, events = run(losses, gap=20)
  assert events[5, 0] == 4 and events[6, 0] == NEVER
  assert float(state['average']) == 2.0 and np.isfinite(np.asarray(state['losses'])).all()


@pytest.mark.parametrize('seed', range(12))
def test_against_a_loop(seed) -> None:
  rng = np.random.default_rng(seed)
  losses = np.float32(2 + 0.2 * rng.normal(size=60) + 2.5 * (rng.random(60) < 0.15))
  rank = rng.permutation(7)
  rank[0] = NEVER
  changes = {'gap': int(rng.integers(1, 6)), 'wait': int(rng.integers(1, 12)),
             'start': int(rng.integers(0, 9)), 'tolerance': float(rng.choice([0.1, 0.4]))}
  _, events = run(losses, rank, **changes)
  expected = by_loop(losses, rank, 4, **{**BASE, **changes})
  np.testing.assert_array_equal(events, expected)
  removed = (events[-1] < NEVER).sum()
  assert removed, 'a sequence in which nothing happens shows nothing'


def test_stopped_and_resumed_it_is_the_same() -> None:
  rng = np.random.default_rng(0)
  losses = jnp.asarray(2 + 0.3 * rng.normal(size=40) + 2 * (rng.random(40) < 0.2), jnp.float32)
  settings = {**BASE, 'rank': jnp.arange(5)}
  whole, events = _run(rule.initial(5, 4), settings, losses)
  half, first = _run(rule.initial(5, 4), settings, losses[:17])
  stored = {key: np.array(value) for key, value in half.items()}
  rest, second = _run(stored, settings, losses[17:])
  np.testing.assert_array_equal(events, np.concatenate([first, second]))
  for key in whole:
    np.testing.assert_array_equal(whole[key], rest[key], key)


def test_members_of_a_population_are_apart() -> None:
  losses = jnp.stack([jnp.full(12, 2.0), jnp.full(12, 2.0).at[5].set(4.0)])
  states, _ = jax.vmap(lambda row: _run(rule.initial(3, 4), {**BASE, 'rank': jnp.arange(3)},
                                        row))(losses)
  assert states['rollbacks'].sum(1).tolist() == [0, 1]


# In the model.


def trained(step_losses, hp=(), **attributes):
  """A GPT-2 stepped through given losses, its parameters fixed: the variables after each."""
  model = models.build('gpt2', vocab=11, length=6, dim=8, depth=2, heads=2, mlp_ratio=1, unroll=1,
                       removable=True, **attributes)
  tokens = np.random.default_rng(0).integers(0, 11, (2, 6)).astype(np.int32)
  variables = jax.jit(lambda: model.init(jax.random.key(0), tokens))()

  @jax.jit
  def step(hp, state, loss):
    _, updated = model.apply({**variables, 'hp': hp, **state}, tokens, train=True,
                             mutable=[*state, 'losses'])
    updated.pop('losses')
    state, hp = model.after_loss(updated, hp, loss)
    return hp, state

  hp, found = set_hp(variables['hp'], **dict(hp)), []
  state = {'norm_state': variables['norm_state']}
  for loss in step_losses:
    hp, state = step(hp, state, jnp.float32(loss))
    found.append(jax.tree.map(np.asarray, {'hp': hp, **state}))
  return found


SETTINGS = {f'adaptive_{name}': value for name, value in BASE.items()}


@pytest.mark.slow
def test_the_model_follows_the_rule() -> None:
  losses = np.full(12, 2.0)
  losses[7] = 4.0
  found = trained(losses, SETTINGS, adaptive=4)
  # By the rule: ln_2 of the layers at 4 and 6, the second of them back from step 8 on.
  events = [after['hp']['h']['event_mlp'].tolist() for after in found]
  assert events[2] == [NEVER, NEVER] and events[3] == [4, NEVER] and events[5] == [4, 6]
  assert events[7] == [4, NEVER]
  # An evaluation after step s sees what step s was made with, and at once what was put back.
  sites = ('h.0.ln_2', 'h.1.ln_2', 'h.0.ln_1.qk')
  gates = [[removable.gates(after)[site] for site in sites] for after in found[3:9]]
  assert gates == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]]
  assert found[7]['norm_state']['rule']['rollbacks'].tolist() == [0, 1, 0, 0, 0, 0, 0]


def test_given_events_stay_where_nothing_is_adaptive() -> None:
  model = models.build('gpt2', depth=2, removable=True)
  given = {'norm_state': {}}, {'h': {}}
  assert model.after_loss(*given, jnp.float32(1)) == given
  with pytest.raises(UserError, match='removable=True'):
    models.build('gpt2', adaptive=4)
