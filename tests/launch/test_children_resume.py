"""The search with vision transformers as children and the gated layers, killed between stages."""
from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from launch.study import records
from launch.study.claims import NOT_TESTABLE, read_claims
from tests.launch import study_runs
from tests.launch.study_runs import Start

SMALL = {
  # Side by side in chunks, as on a GPU.
  'children': {'children__known': 'relu', 'children__candidates': 4, 'engine__batching': 'vmap',
               'engine__chunk': 4},
  'glu': {'glu__activations': 'relu,reglu', 'glu__copies': 1},
}
# Cohorts and measurements after whose end it is killed: what comes next is computed from them.
AFTER = {
  'children': ('children-rung-0', 'children-proxies', 'children-cnn-select-found',
               'children-vit-select-fixed'),
  'glu': ('glu-unigram', 'glu-select-reglu', 'glu-fresh-fixed'),
}
TABLES = {'children': ('Successive halving', 'Proxies', 'ResNet-4', 'ViT 1 x 8'),
          'glu': ('Feed-forward layers in a byte GPT', 'A gate against none')}


def results(workdir: Path) -> pd.DataFrame:
  """The rows as texts, without the columns of time."""
  return pd.read_csv(workdir / 'results.csv', dtype=str).drop(
      columns=list(records.TIMING_COLUMNS), errors='ignore')


@pytest.mark.slow
@pytest.mark.parametrize('part', SMALL)
def test_killed_between_stages(tmp_path, compile_cache, part):
  options = {'parts': part, **SMALL[part]}
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  out = study_runs.run(whole, timeout=1200, **options).out
  assert all(title in out for title in TABLES[part])
  # Two fresh seeds are too few for any verdict.
  assert {claim['verdict'] for claim in read_claims(whole / 'claims.json')} == {NOT_TESTABLE}
  for stage in AFTER[part]:
    with Start(killed, **options) as start:
      start.until(lambda stage=stage: stage in study_runs.finished(killed), timeout=600)
      start.kill()
    assert study_runs.status(killed)['state'] == 'running'
  study_runs.run(killed, timeout=1200, **options)
  pd.testing.assert_frame_equal(results(killed), results(whole))
  for name in ('metrics.jsonl', 'claims.json'):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
