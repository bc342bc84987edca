"""Sinks and entropies of attention that is given, and of a model against numpy."""
from __future__ import annotations

import flax.linen as nn
import numpy as np
import pytest

from model_lib.analysis import attention_patterns
from model_lib.errors import UserError
from tests.model_lib import gpt2_numpy

pytestmark = pytest.mark.usefixtures('unoptimized')


class Given(nn.Module):
  """A model with this attention [L, H, T, T] in every window."""

  def __call__(self, tokens, train=False, taps=False):
    attention = self.get_variable('params', 'attention')
    return tokens, {'attention': attention[:, None].repeat(len(tokens), 1)}


def _given(attention, **options):
  tokens = np.zeros((3, attention.shape[-1]), np.int32)
  variables = {'params': {'attention': np.asarray(attention, np.float32)}}
  return attention_patterns.patterns(Given(), variables, tokens, **options)


def test_the_two_sink_rates_by_hand():
  # Queries 1 to 4 of one head give position 0 the parts 0.4, 0.4, 0.4, 0; of the other 0.31.
  attention = np.zeros((1, 2, 5, 5))
  attention[0, 0, :, 0] = [1, 0.4, 0.4, 0.4, 0]
  attention[0, 1, :, 0] = [1, 0.31, 0.31, 0.31, 0.31]
  for q in range(1, 5):
    attention[0, :, q, q] = 1 - attention[0, :, q, 0]
  found = _given(attention, epsilon=0.305)
  np.testing.assert_allclose(found.sunk, [[[0.75, 1]]] * 3)
  np.testing.assert_allclose(found.to_first, [[[0.3, 0.31]]] * 3, rtol=1e-6)
  rates = attention_patterns.sink_rates(found, epsilon=0.305)
  assert rates['query'].mean == pytest.approx(7 / 8) and rates['head'].mean == pytest.approx(0.5)
  # With query 0, which sees itself alone, the first head would have 4 / 5.
  assert np.mean(attention[0, 0, :, 0] > 0.305) == pytest.approx(0.8)
  assert rates['query'].n == 3 and rates['query'].low == rates['query'].high


def test_even_attention_has_the_largest_entropy_and_a_single_position_none():
  even = np.tri(6) / np.arange(1, 7)[:, None]
  found = _given(np.stack([even, np.eye(6)])[None])
  largest = attention_patterns.largest_entropy(6)
  assert largest == pytest.approx(np.log([1, 2, 3, 4, 5, 6]).sum() / 6)
  assert largest < np.log(6)
  np.testing.assert_allclose(found.entropy, [[[largest, 0]]] * 3, atol=1e-6)
  np.testing.assert_allclose(found.relative_entropy, [[[1, 0]]] * 3, atol=1e-6)
  np.testing.assert_allclose(found.to_first[0, 0, 0], np.mean(1 / np.arange(2, 7)), rtol=1e-6)
  bands = attention_patterns.entropy_bands(found.entropy.mean(0), largest)
  assert bands == {'collapse': 0.5, 'between': 0.0, 'overload': 0.5}
  # Against log T, which no causal head reaches, even attention is no overload.
  assert attention_patterns.entropy_bands(found.entropy.mean(0), np.log(6))['overload'] == 0


def test_bands_hold_their_ends_in_the_middle():
  bands = attention_patterns.entropy_bands(np.array([0.49, 0.5, 1, 1.5, 1.51]), 2.0)
  assert bands == pytest.approx({'collapse': 0.2, 'between': 0.6, 'overload': 0.2})


def test_a_model_against_numpy():
  model, variables = gpt2_numpy.small(spread=0.5)
  tokens = gpt2_numpy.windows(5)
  found = attention_patterns.patterns(model, variables, tokens, batch=2)
  a = np.moveaxis(gpt2_numpy.forward(model, variables, tokens)['attention'], 1, 0)
  rows = -np.where(a > 0, a * np.log(np.where(a > 0, a, 1)), 0).sum(-1)
  np.testing.assert_allclose(found.entropy, rows.mean(-1), atol=1e-4)
  np.testing.assert_allclose(
    found.relative_entropy,
    np.mean([rows[..., q] / np.log(q + 1) for q in range(1, 9)], axis=0), atol=1e-4)
  np.testing.assert_allclose(found.sunk, (a[..., 1:, 0] > 0.3).mean(-1), atol=1e-6)
  assert 0 < found.sunk.mean() < 1
  with pytest.raises(UserError, match='T >= 2'):
    attention_patterns.patterns(model, variables, tokens[:, :1])
