"""Surrogates: predictions against dense formulas, neighbours, features."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from model_lib.search import X, parse
from model_lib.search.algorithms import (
  Answer, GaussianProcessSearch, NearestNeighbours, Query, output_features,
  side_by_side)
from model_lib.search.algorithms.gaussian_process import (
  GaussianProcess, expected_improvement, log_likelihood, most_likely)
from tests.model_lib import search_tables


def some_features(n=40, d=3):
  return np.random.default_rng(1).normal(size=(n, d))


def test_predictions_of_the_gaussian_process_are_those_of_the_dense_formulas():
  features, length, noise = some_features(), 0.8, 0.15
  observed, rng = [3, 30, *range(5, 25)], np.random.default_rng(2)  # more than its first room
  y = rng.normal(size=len(observed))
  model = GaussianProcess(features, length, noise)
  for index in observed:
    model.observe(index)
  mean, sd = model.predict(y)

  squares = ((features[:, None] - features[None])**2).sum(-1)
  kernel = np.exp(-squares / (2 * length**2))
  cross = kernel[:, observed]
  inverse = np.linalg.inv(kernel[np.ix_(observed, observed)] + noise * np.eye(len(observed)))
  scale = y @ inverse @ y / len(y)
  np.testing.assert_allclose(mean, cross @ inverse @ y, atol=1e-10)
  np.testing.assert_allclose(
    sd**2, scale * (1 - np.einsum('ij,jk,ik->i', cross, inverse, cross)), atol=1e-10)

  own = kernel[np.ix_(observed, observed)]
  expected = [stats.multivariate_normal(cov=s * np.linalg.inv(inverse)).logpdf(y)
              for s in (scale, 1.1 * scale, 0.9 * scale)]
  np.testing.assert_allclose(log_likelihood(own, noise, y), expected[0], rtol=1e-10)
  assert expected[0] > max(expected[1:])


def test_expected_improvement_is_the_integral():
  means, sds, best = np.array([0.0, 0.5, -2.0, 1.0]), np.array([1.0, 0.3, 0.5, 0.0]), 0.4
  found = expected_improvement(means, sds, best)
  for mean, sd, value in zip(means[:3], sds[:3], found[:3]):
    integral = integrate.quad(
      lambda g: (best - g) * stats.norm.pdf(g, mean, sd), -12, best, points=[mean])[0]
    np.testing.assert_allclose(value, integral, rtol=1e-6)
  assert found[3] == 0 and expected_improvement(np.zeros(1), np.zeros(1), 0.4)[0] == 0.4


def test_the_most_likely_length_and_noise_are_those_that_made_the_targets():
  lengths, noises, rng = (0.1, 0.4, 1.6), (0.01, 0.1, 1.0), np.random.default_rng(0)
  x = rng.uniform(-3, 3, size=120)
  squares = (x[:, None] - x)**2
  for length in lengths:
    for noise in noises:
      covariance = 7 * (np.exp(-squares / (2 * length**2)) + noise * np.eye(120))
      y = np.linalg.cholesky(covariance) @ rng.normal(size=120)
      assert most_likely(squares, y, lengths, noises) == (length, noise)


def test_neighbours_are_the_nearest_and_diverged_ones_the_worst():
  features = some_features(60)
  expressions = [parse(f'add(tanh(x), {i}.0)') for i in range(60)]
  search = NearestNeighbours(expressions, features, seed=0, explore=0.0)
  values = np.random.default_rng(3).normal(size=60)
  values[::9] = np.nan
  told = []
  for _ in range(25):
    query, = search.ask(1)
    told.append(expressions.index(query.expression))
    search.tell([Answer(query, values[told[-1]])])
  ranks = stats.rankdata(np.where(np.isnan(values[told]), np.inf, values[told]))
  targets = stats.norm.ppf((ranks - 0.5) / 25)
  distances = ((features[:, None] - features[told])**2).sum(-1)
  scores = targets[np.argsort(distances, axis=1)[:, :3]].mean(1)
  np.testing.assert_allclose(search.scores(), scores, atol=1e-12)
  scores[told] = np.inf
  assert [expressions.index(query.expression) for query in search.ask(4)] == list(
    np.argsort(scores, kind='stable')[:4])


def test_what_surrogates_refuse():
  expressions = search_tables.functions()[:20]
  with pytest.raises(ValueError, match='features of 20 candidates'):
    NearestNeighbours(expressions, np.zeros((19, 2)), 0)
  with pytest.raises(ValueError, match='features of 20 candidates'):
    GaussianProcessSearch(expressions, np.full((20, 2), np.nan), 0)
  with pytest.raises(ValueError, match='k=11'):
    NearestNeighbours(expressions, np.zeros((20, 2)), 0, k=11)
  with pytest.raises(ValueError, match='initial=0'):
    GaussianProcessSearch(expressions, np.zeros((20, 2)), 0, initial=0)
  search = NearestNeighbours(expressions, np.zeros((20, 2)), 0)
  answer = Answer(Query(expressions[0]), 1.0)
  search.tell([answer])
  for bad in (answer, Answer(Query(X), 1.0)):
    with pytest.raises(ValueError, match='is no candidate, or was told before'):
      search.tell([bad])


def test_a_surrogate_ends_with_its_candidates():
  expressions = search_tables.functions()[:15]
  search = GaussianProcessSearch(expressions, some_features(15), 0, initial=4)
  asked = []
  while queries := search.ask(6):
    asked += [query.expression for query in queries]
    search.tell([Answer(query, float(len(asked) % 5)) for query in queries])
  assert set(asked) == set(expressions) and len(asked) == 15


def test_output_features_keep_distances_of_standardized_functions():
  texts = ('tanh(x)', 'erf(x)', 'add(mul(3, tanh(x)), 5)', 'relu(x)', 'square(x)', 'swish(x)',
           'elu(x)', 'exp(x)', 'abs(x)', 'sigmoid(x)')
  features = output_features([parse(text) for text in texts], 9)
  assert features.shape == (10, 9)
  np.testing.assert_allclose(features[0], features[2], atol=1e-10)
  # 9 components are all of 10 rows: sqrt(2 - 2 correlation).
  x = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
  correlation = np.corrcoef(np.tanh(x), np.maximum(x, 0))[0, 1]
  np.testing.assert_allclose(
    ((features[0] - features[3])**2).sum(), 2 - 2 * correlation, rtol=1e-8)
  spread = features.var(0)
  assert (np.diff(spread) <= 1e-12).all() and spread[0] > 0.1
  with pytest.raises(ValueError, match='1 to 2 components, not 3'):
    output_features([parse('x'), parse('tanh(x)')], 3)
  with pytest.raises(ValueError, match='constant or not finite'):
    output_features([parse('tanh(x)'), parse('one(x)')], 2)


def test_blocks_of_features_count_the_same_whatever_their_scale():
  few, many = some_features(40, 2), 1000 + 50 * some_features(40, 30)
  joined = side_by_side(few, many, np.ones((40, 3)))
  assert joined.shape == (40, 35)

  def mean_square(rows):
    return ((rows[:, None] - rows[None])**2).sum(-1).mean()
  np.testing.assert_allclose(mean_square(joined[:, :2]), mean_square(joined[:, 2:32]))
  np.testing.assert_allclose(joined[:, 32:], 0)
  np.testing.assert_allclose(np.corrcoef(joined[:, 0], few[:, 0])[0, 1], 1)
