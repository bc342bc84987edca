"""The depth sweep's benchmark: its sides train the same networks, and it gives records."""

from __future__ import annotations

import numpy as np
import pytest

from launch.benchmark import depth
from launch.benchmark import engine


def test_the_sweep():
  runs = depth.cohort(7).members
  assert len(runs) == 36 and len({(m.hp['learning_rate'], m.seed) for m in runs}) == 36
  assert runs[0].hp['learning_rate'] == pytest.approx(2 ** -10.5)
  assert runs[-1].hp['learning_rate'] == pytest.approx(2 ** -5)


def test_both_sides_train_the_same_networks(tmp_path):
  """From draws of their own: the losses are those of one recipe, and fall with the steps."""
  data = tmp_path / 'digits.npz'
  engine.write_plain_data(data)
  runs = [(2 ** -8, seed) for seed in range(3)]
  losses = {}
  for side, train in depth.SIDES.items():
    for steps in (5, 100):
      seconds, losses[side, steps] = train(data, runs, steps)
      assert seconds > 0 and losses[side, steps].shape == (3,)
  for steps in (5, 100):
    np.testing.assert_allclose(losses['population', steps].mean(), losses['apart', steps].mean(),
                               rtol=0.3)
  assert losses['apart', 100].mean() < 0.7 * losses['apart', 5].mean()


@pytest.mark.slow
def test_the_part_gives_records():
  records = depth.depth(1, full=True, steps=4, count=3, sample=2)
  assert [r['n'] for r in records] == [1] * 4
  assert records[0]['name'] == 'one jit per run / one program' and records[0]['at_least'] == 3
  assert all(np.isfinite(r['median']) and r['median'] > 0 for r in records)
