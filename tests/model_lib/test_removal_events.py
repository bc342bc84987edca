"""What a removal did to the loss, on losses made by hand."""
from __future__ import annotations

import math

import numpy as np
import pytest

from model_lib.analysis.removal_events import event_rows, rises


def test_spike_and_recovery_by_hand():
  loss = np.ones(40)
  loss[10:13] = [1.5, 3.0, 1.25]
  norms = np.arange(40.0)
  early, late = event_rows(loss, [20, 10, 10], gap=4, gradient_norm=norms)
  assert early == {'step': 10, 'before': 1.0, 'spike': 2.0, 'recovery': 3, 'gradient_norm': 13.0,
                   'not_finite': 0}
  assert late['spike'] == 0 and late['recovery'] == 0 and late['gradient_norm'] == 23
  # The window ends with the gap: one step sees the first rise only.
  assert event_rows(loss, [10], gap=1)[0]['spike'] == 0.5
  # The spike itself is part of what comes before an event right behind it.
  assert event_rows(loss, [13], gap=4)[0]['before'] == pytest.approx((1 + 1 + 1.5 + 3 + 1.25) / 5)


def test_a_loss_that_stays_up_never_recovers():
  loss = np.where(np.arange(30) < 12, 1.0, 1.1)
  row, = event_rows(loss, [12], gap=5)
  assert math.isnan(row['recovery']) and row['spike'] == pytest.approx(0.1)
  assert math.isnan(row['gradient_norm'])
  # One low step is no recovery: the mean of five must be down.
  loss[15] = 0.9
  assert math.isnan(event_rows(loss, [12], gap=5)[0]['recovery'])
  loss[15] = 0.5
  assert event_rows(loss, [12], gap=5)[0]['recovery'] == 0


def test_losses_that_are_not_finite_are_counted():
  loss = np.ones(30)
  loss[14:16] = math.nan, math.inf
  row, = event_rows(loss, [12], gap=5, gradient_norm=loss)
  assert row['spike'] == row['gradient_norm'] == math.inf and row['not_finite'] == 2
  assert event_rows(loss, [9], gap=5)[0]['spike'] == 0


@pytest.mark.parametrize('event', [4, 30])
def test_events_without_steps_around_them_are_refused(event):
  with pytest.raises(ValueError, match=f'event at step {event}'):
    event_rows(np.ones(30), [event], gap=2)


def test_the_rise_over_a_run_without_removals():
  batches = np.random.default_rng(0).normal(2.0, 0.3, 40)  # how hard they are
  loss = batches.copy()
  loss[10:14] += [0.1, 0.4, 0.2, 0.9]
  np.testing.assert_allclose(rises(loss, batches, [20, 10, 10], gap=3), [0.4, 0], atol=1e-12)
  np.testing.assert_allclose(rises(loss, batches, [10, 13], gap=4), [0.9, 0.9], atol=1e-12)
  # Without the other run the batches are in the number.
  assert abs(event_rows(loss, [20], gap=3)[0]['spike']) > 0.01
  loss[11] = math.nan
  assert rises(loss, batches, [10], gap=3)[0] == math.inf
  assert math.isnan(rises(batches, loss, [10], gap=3)[0])
  assert rises(loss, loss, [20], gap=3)[0] == 0
