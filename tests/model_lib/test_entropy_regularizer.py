"""The entropy regularizer against its formula, and inside GPT-2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.models.entropy_regularizer import penalty
from tests.model_lib import gpt2_cases as cases


def weights(seed=0):
  """Causal attention weights [2, 3, 5, 5], float64 NumPy; one head attends to itself alone."""
  logits = np.random.default_rng(seed).standard_normal((2, 3, 5, 5)) * 2
  logits = np.where(np.tri(5), logits, -np.inf)
  found = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  found[:, 1] = np.eye(5)
  return found


def by_hand(a, theta, margin):
  total = 0.0
  for h in range(a.shape[1]):
    rows = a[:, h].reshape(-1, a.shape[-1])
    entropy = np.mean([-sum(p * np.log(p) for p in row if p > 0) for row in rows])
    d = entropy - theta[h] * np.log(a.shape[-1])
    total += d * d if abs(d) > margin * np.log(a.shape[-1]) else 0
  return total / a.shape[1]


@pytest.mark.parametrize('margin', [0.0, 0.1, 0.3, 1.0])
def test_the_penalty_is_the_formula(margin):
  a, theta = weights(), np.array([0.1, 0.5, 0.9])
  found = penalty(jnp.asarray(a, jnp.float32), jnp.asarray(theta, jnp.float32), margin)
  np.testing.assert_allclose(found, by_hand(a, theta, margin), rtol=1e-5, atol=1e-7)
  # The head that attends to itself alone has entropy 0, and finite gradients.
  gradient = jax.grad(lambda a: penalty(a, jnp.asarray(theta, jnp.float32), margin))(
      jnp.asarray(a, jnp.float32))
  assert np.isfinite(gradient).all()


def test_a_head_within_the_margin_is_free():
  a = jnp.asarray(weights(), jnp.float32)
  assert penalty(a, jnp.full(3, 0.4), 1.0) == 0 < penalty(a, jnp.full(3, 0.4), 0.0)


def test_gpt2_sows_the_mean_over_layers_and_trains_theta():
  model = cases.build(entropy_regularized=True)
  tokens = jnp.asarray(cases.TOKENS)
  variables = model.init(jax.random.key(0), tokens)
  assert variables['hp']['h']['attn']['entropy_weight'].shape == (model.depth,)
  hp = jax.tree.map(jnp.asarray, {'h': {'attn': {
      'entropy_weight': np.full(model.depth, 2.0, np.float32),
      'entropy_margin': np.full(model.depth, 0.1, np.float32)}}})

  def term(params):
    _, updated = model.apply({'params': params, 'hp': hp}, tokens, train=True, mutable=['losses'])
    return sum(jax.tree.leaves(updated['losses']))

  _, taps = model.apply(variables, tokens, taps=True)
  theta = np.full(model.heads, 0.5)
  expected = 2 * np.mean([by_hand(np.asarray(a, np.float64), theta, 0.1)
                          for a in taps['attention']])
  np.testing.assert_allclose(term(variables['params']), expected, rtol=1e-5)
  gradient = jax.grad(term)(variables['params'])['h']['attn']
  assert np.abs(gradient['theta']).min() > 0 and np.abs(gradient['c_attn']['kernel']).max() > 0
