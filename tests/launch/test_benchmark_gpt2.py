"""The GPT-2 part of the benchmark: both sides train alike, and the records are there."""

from __future__ import annotations

import json
import math

import pytest

from launch.benchmark import gpt2
from tests import helpers

SIZES = {'vocab': 37, 'length': 16, 'dim': 24, 'depth': 2, 'heads': 3, 'batch': 4}


@pytest.mark.slow
@pytest.mark.parity
def test_the_sides_train_alike(tmp_path, monkeypatch) -> None:
  """Loss by loss over eight steps, so that the optimizers are the same too."""
  monkeypatch.setenv('NPROC', '2')
  gpt2._write_weights(tmp_path, SIZES)
  sides = [gpt2.ours(tmp_path, SIZES, False), gpt2.ours(tmp_path, SIZES, True),
           gpt2.theirs(tmp_path, SIZES, False)]
  losses = [side() + side() for side in sides]
  assert losses[0][-1] < losses[0][0] - .01
  for other in losses[1:]:
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(losses[0], other, strict=True))


@pytest.mark.slow
@pytest.mark.parity
def test_the_records() -> None:
  code = f"""
import json
from launch.benchmark import gpt2
print(json.dumps(gpt2.gpt2(2, {SIZES!r})))
"""
  done = helpers.run_python(code, env={'NPROC': '2'}, timeout=600)
  assert done.returncode == 0, done.stderr
  records = json.loads(done.stdout.splitlines()[-1])
  assert [record['name'] for record in records] == [
    'GPT-2 step / PyTorch eager', 'GPT-2 step / PyTorch compiled',
    'GPT-2 step with removable norms / without', *(
      f'GPT-2 step, {kind}' for kind in ('ours', 'removable', 'eager', 'compiled'))]
  assert records[0]['at_most'] == 1 and all(record['n'] == 2 for record in records)
