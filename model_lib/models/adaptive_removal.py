"""Removal of norms that follows the loss: the next one when the loss is back, undone on a spike.

A pure rule on numbers: `advance(state, settings, loss)` takes the loss of the step that was just
made and gives the state with the events of the next one. The state lives in a variable collection
of the model, so that a checkpoint holds all of it and a resumed run goes on with the same bits.

With s the step of `loss`, from 0, and a site removed at its event e (linear from step e on):

* average(s) = decay average(s - 1) + (1 - decay) loss(s); average(0) = loss(0).
* reference = mean of the last `window` losses before the last event.
* Spike: loss(s) > reference + spike, or a loss that is no number, for e <= s < e + window with
  e the last event. The site of that event is real again from step s + 1 on and is not tried again
  before step s + 1 + wait. At most one site is put back for an event: the last one removed.
* Else a site is removed at step s + 1: the one of lowest rank that is real and may be tried, if
  s + 1 >= start, s + 1 >= e + gap, and average(s) <= reference + tolerance. The first removal has
  no reference to come back to. `start` is at least `window` in effect.

The rule is not from a paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.models.hyper import read_hp
from model_lib.models.removable import NEVER

# Defaults of the swept numbers; whole ones are steps, `tolerance` and `spike` are in nats.
SETTINGS: Mapping[str, int | float] = {
    'start': 20, 'gap': 2, 'wait': 20, 'decay': 0.8, 'tolerance': 0.02, 'spike': 1.0}


def initial(sites: int, window: int) -> dict[str, jax.Array]:
  """The state before the first step, for so many sites; `window` is a shape and so fixed.

  event, retry int32 [sites]: the step from which a site is linear, or NEVER; the first step at
  which it may be tried. losses float32 [window]: the last ones, by step modulo window. average,
  reference float32: as above. last, last_event int32: the site removed last, -1 where there is
  none or it was put back, and the step of that event. rollbacks int32 [sites]: how often each was
  put back. step int32: steps seen.
  """
  return {
    'event': jnp.full(sites, NEVER, jnp.int32), 'retry': jnp.zeros(sites, jnp.int32),
    'losses': jnp.zeros(window, jnp.float32), 'average': jnp.zeros((), jnp.float32),
    'reference': jnp.full((), jnp.inf, jnp.float32), 'last': jnp.full((), -1, jnp.int32),
    'last_event': jnp.full((), -NEVER, jnp.int32), 'rollbacks': jnp.zeros(sites, jnp.int32),
    'step': jnp.zeros((), jnp.int32)}


def advance(state: Mapping[str, jax.Array], settings: Mapping[str, jax.Array],
            loss: jax.Array) -> dict[str, jax.Array]:
  """The state after a step.

  Args:
    state: as `initial` makes it.
    settings: those of SETTINGS, and rank int32 [sites]: lower ones are removed first, NEVER keeps
      the norm.
    loss: scalar, of the step that was made with the events in `state`.

  Returns:
    The new state; its `event` holds from the next step on.
  """
  step, window, number = state['step'], state['losses'].shape[0], jnp.isfinite(loss)
  after, places = step + 1, jnp.arange(state['event'].shape[0])
  loss = loss.astype(jnp.float32)
  moved = jnp.where(step == 0, loss, settings['decay'] * state['average']
                    + (1.0 - settings['decay']) * loss)
  average = jnp.where(number, moved, state['average'])
  losses = jnp.where(number, state['losses'].at[step % window].set(loss), state['losses'])

  watched = (state['last'] >= 0) & (step < state['last_event'] + window)
  spike = watched & (~number | (loss > state['reference'] + settings['spike']))
  back = spike & (places == state['last'])
  event = jnp.where(back, NEVER, state['event'])
  retry = jnp.where(back, after + settings['wait'], state['retry'])

  free = (event == NEVER) & (settings['rank'] < NEVER) & (retry <= after)
  ready = (~spike & number & free.any() & (after >= window) & (after >= settings['start'])
           & (after >= state['last_event'] + settings['gap'])
           & (average <= state['reference'] + settings['tolerance']))
  chosen = jnp.argmin(jnp.where(free, settings['rank'], NEVER)).astype(jnp.int32)
  return {
    'event': jnp.where(ready & (places == chosen), after, event), 'retry': retry,
    'losses': losses, 'average': average,
    'reference': jnp.where(ready, losses.mean(), state['reference']),
    'last': jnp.where(ready, chosen, jnp.where(spike, -1, state['last'])),
    'last_event': jnp.where(ready, after, state['last_event']),
    'rollbacks': state['rollbacks'] + back, 'step': after}


def declare(module: nn.Module, depth: int, window: int) -> None:
  """Makes the rule's variables in a model: `hp/adaptive_NAME` for each of SETTINGS,
  `hp/adaptive_rank` int32 [3 depth + 1] (by group mlp, qk, v, then final, in this order) and
  `norm_state/rule`, the state. `after_loss` moves them."""
  for name, default in SETTINGS.items():
    read_hp(module, f'adaptive_{name}', default)
  count = 3 * depth + 1
  module.variable('hp', 'adaptive_rank', lambda: jnp.arange(count, dtype=jnp.int32))
  module.variable('norm_state', 'rule', lambda: initial(count, window))


def after_loss(collections: Mapping, hp: Mapping, loss: jax.Array) -> tuple[dict, dict]:
  """The collections and `hp` after a step with this loss; the new events stand in `hp`.

  Args:
    collections: with norm_state, after the step.
    hp: with the events that the step was made with.
    loss: scalar, without auxiliary terms.
  """
  settings = {name: hp[f'adaptive_{name}'] for name in (*SETTINGS, 'rank')}
  rule = advance(collections['norm_state']['rule'], settings, loss)
  mlp, qk, v, final = jnp.split(rule['event'], [len(rule['event']) // 3 * i for i in (1, 2, 3)])
  events = {'event_mlp': mlp, 'event_qk': qk, 'event_v': v}
  return ({**collections, 'norm_state': {**collections['norm_state'], 'rule': rule}},
          {**hp, 'h': {**hp['h'], **events}, 'event_final': final[0]})
