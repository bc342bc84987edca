"""The audit finds wrong running moments and the fast-variance trap, and passes what is sound."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.analysis.audit import audit_norms
from model_lib.errors import UserError
from model_lib.normalization import get_norm

pytestmark = pytest.mark.usefixtures('unoptimized')


class OneNorm(nn.Module):
  """N(x)."""

  norm: str

  @nn.compact
  def __call__(self, x, train):
    return get_norm(self.norm).layer('norm')(x, train)


def _audit(norm, x, running=None, parts=1):
  model = OneNorm(norm)
  variables = model.init(jax.random.key(0), jnp.asarray(x), train=False)
  if running:
    mean, var = (jnp.asarray(m, jnp.float32) for m in running)
    variables = {**variables, 'batch_stats': {'norm': {'mean': mean, 'var': var}}}
  row, = audit_norms(model, variables, np.split(x, parts), sizes=(2, 8))
  return row


def _x(mean=0.0, std=1.0, size=128):
  return (np.random.default_rng(0).normal(size=(size, 16)) * std + mean).astype(np.float32)


def test_fresh_batch_norm_on_shifted_data_is_stale_and_a_calibrated_one_is_not():
  x = _x(3.0, 2.0)
  row = _audit('batch', x, parts=2)
  assert {'gap', 'stale'} <= set(row.verdict.split('+'))
  wide = x.astype(np.float64)
  mean, var = wide.mean(0), wide.var(0)
  assert row.stale_mean == pytest.approx(np.max(np.abs(mean) / np.sqrt(var)), rel=1e-9)
  assert row.stale_var == pytest.approx(np.max(np.abs(np.log(var))), rel=1e-9)
  first = wide[:64]
  trained = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5)
  inferred = first / np.sqrt(1 + 1e-5)
  expected = np.sqrt(np.mean((trained - inferred) ** 2) / np.mean(inferred ** 2))
  assert row.gap == pytest.approx(expected, rel=1e-5)
  sizes = dict(row.batch)
  assert sizes[2] > sizes[8] > 0.1
  sound = _audit('batch', x, (mean, var))
  assert sound.stale_mean < 1e-6 and sound.gap < 1e-5
  assert sound.verdict == 'batch'  # a batch of 2 is another function, whatever the state


def test_batches_sorted_by_label_are_told_from_shuffled_ones():
  """The running moments are the data's in both; a batch of one class has others."""
  rng = np.random.default_rng(1)
  classes = np.repeat(2.0 * np.eye(4, 16, dtype=np.float32), 256, axis=0)
  x = classes + rng.normal(0, 0.5, classes.shape).astype(np.float32)
  wide = x.astype(np.float64)
  running = wide.mean(0), wide.var(0)
  by_label, shuffled = (_audit('batch', rows, running, parts=4)
                        for rows in (x, rng.permutation(x)))
  assert 'gap' in by_label.verdict and 'gap' not in shuffled.verdict
  assert by_label.gap > 0.3 > 0.1 > shuffled.gap
  for row in (by_label, shuffled):
    assert 'stale' not in row.verdict and row.stale_mean < 1e-3 and row.stale_var < 1e-3
  # The sweep stays inside one batch, whose class all of its parts share.
  assert _audit('layer', x, parts=4).gap == 0


def test_layer_norm_passes_and_its_output_has_no_batch_in_it():
  row = _audit('layer', _x())
  assert row.verdict == 'ok' and not row.reasons
  assert row.gap == 0 and all(value < 1e-6 for _, value in row.batch)
  assert np.isnan(row.stale_mean) and row.f32 < 1e-6 < row.bf16 < 1e-2


def test_fast_variance_trap_and_eps():
  trap = _audit('layer', _x(3000.0))
  assert 'fast-variance' in trap.verdict and trap.fast > 0.05 and trap.bf16 > 0.1
  assert trap.f32 < 1e-3  # the layer itself takes two passes
  # Two passes do not help where the mean itself has no digits left for the deviations.
  beyond = _audit('layer', _x(3e5))
  assert beyond.f32 > 1e-3 and 'precision' in beyond.verdict and 'precision' not in trap.verdict
  tiny = _audit('layer', _x(0, 1e-3))
  assert tiny.verdict == 'eps'
  ratio = 1e-5 / np.var(_x(0, 1e-3).astype(np.float64), axis=1)
  assert tiny.eps_over_v == pytest.approx(np.median(ratio), rel=1e-9)
  assert tiny.shrink == pytest.approx(np.median((1 + ratio) ** -0.5), rel=1e-9)


@pytest.mark.parametrize('norm', ['layer', 'batch'])
def test_an_input_that_is_no_number_is_named(norm):
  x = _x()
  x[3, 2] = np.inf
  assert 'not-finite' in _audit(norm, x).verdict
  assert 'not-finite' not in _audit(norm, _x()).verdict


def test_mistakes():
  with pytest.raises(UserError, match='no batch'):
    audit_norms(OneNorm('layer'), {}, [])
  with pytest.raises(UserError, match='no norm'):
    audit_norms(OneNorm('none'), {}, [_x()])
