"""A search that is killed in every stage ends as one that was never stopped, its npz included."""
from __future__ import annotations

import time

import numpy as np
import pytest

from tests.launch import study_runs
from tests.launch.study_runs import Reference, Start

SMALL = {
  'parts': 'search', 'splits': 3, 'search__operators': 'zero,identity,relu,tanh,abs,add', 'search__steps': 12,
  'search__marks': '4,8', 'search__searches': 4, 'search__evaluations': '3,6', 'search__copies': 2,
  'search__live_evaluations': 6, 'search__live_batch': 3, 'search__eafo_starts': 'tanh(x)',
  'search__eafo_steps': 1, 'search__finalists': 1, 'search__selection_seeds': 1,
  'search__fresh_seeds': 2, 'search__transfer_seeds': 0}
# A cohort or measurement whose end is awaited; the kill comes a little later.
AFTER = ('search-table-0', 'search-proxies', 'search-evolution-0', 'search-random-0',
         'search-eafo', 'search-select-fixed', 'search-fresh-1')


@pytest.mark.slow
def test_killed_in_every_stage(tmp_path, compile_cache):
  whole = tmp_path / 'whole'
  study_runs.run(whole, timeout=600, **SMALL)
  reference = Reference.of(whole)
  killed = tmp_path / 'killed'
  for number, stage in enumerate(('', *AFTER)):
    with Start(killed, **SMALL) as start:
      if stage:
        start.until(lambda stage=stage: stage in study_runs.finished(killed), timeout=300)
        time.sleep(0.3 * (number % 3))
      else:
        start.until(lambda: study_runs.steps(killed, 'search-table-0'), timeout=300)
      start.kill()
    assert study_runs.status(killed)['state'] == 'running'
  study_runs.run(killed, timeout=600, **SMALL)
  study_runs.assert_same(killed, reference)
  with np.load(whole / 'table.npz') as one, np.load(killed / 'table.npz') as other:
    assert one.files == other.files
    for name in one.files:
      np.testing.assert_array_equal(one[name], other[name])
  # Another seed gives another table.
  study_runs.run(tmp_path / 'other', timeout=600, seed=1, **SMALL)
  with np.load(whole / 'table.npz') as one, np.load(tmp_path / 'other/table.npz') as other:
    assert (one['test_loss'] != other['test_loss']).any()
