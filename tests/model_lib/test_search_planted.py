"""Planted truths: training ranks first the functions of which it is known that they should be.

A teacher y = 2^(1/2) sin(3 w.x), |w| = 1, x ~ N(0, I) in two dimensions, is learned by functions of
the Swish space. Planted are those that come near sin(3u) as f(a u + b); no training decides which.
The student has 4 hidden units: with more, combinations of functions that are not planted, such as
x + sin(x), do as well. So small a student often stops far from its optimum, hence each function's
best of 16 starts counts, by other examples than its test loss. Width, rate, steps and starts were
chosen on other samples of functions, with other teachers: of 200 functions, 6 to 8 of them planted,
the median planted one stood in the first 4 % with each of 8 teachers; with 8 starts at 6.5 % once.

On XOR a linear model cannot be better than chance, and almost every valid function must be.
"""
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from model_lib.search import ValidityFilter, parse
from model_lib.training.tasks import Classification, Regression
from tests.model_lib.planted import HELD_OUT, largest_correlations, sample, train

TEACHERS = 5
PLANTED = 0.9  # the correlation from which on a function is planted
# Of the sample, as 39 of the first 1,000 functions are. The median moves with the share: with 10 of
# 200 planted it was met at 4.75 to 6.5 %, with other teachers and longer training too.
SHARE = 0.04
STUDENT = dict(width=4, outputs=1, rate=3e-2, steps=300, batch=128, starts=16)
XOR = dict(width=8, outputs=2, rate=1e-2, steps=150, batch=64)
IDENTITY = parse('identity(x)')


def data():
  """Tables 0 to 4: a teacher each. Table 5: the first one with its targets permuted."""
  rng = np.random.default_rng(0)
  n = STUDENT['steps'] * STUDENT['batch'] + 2 * HELD_OUT  # every example is met once
  x = rng.standard_normal((n, 2)).astype(np.float32)
  angles = rng.uniform(0, 2 * np.pi, TEACHERS)
  y = 2**0.5 * np.sin(3 * x @ np.stack([np.cos(angles), np.sin(angles)]))
  targets = np.concatenate([y, rng.permutation(y[:, :1])], 1)
  return {'inputs': x, 'targets': targets[:, :, None].astype(np.float32)}


def drawn(count):
  """Functions of which SHARE are planted, and which of them are; the first of the random order."""
  functions = sample(count + count // 4)
  planted = largest_correlations(functions) >= PLANTED
  n = round(SHARE * count)
  chosen = np.sort(np.append(np.flatnonzero(planted)[:n], np.flatnonzero(~planted)[:count - n]))
  assert len(chosen) == count and planted[chosen].sum() == n
  return [functions[i] for i in chosen], planted[chosen]


def losses_of(functions, tables, folder):
  """[function, tables]: the test loss of each function's best start."""
  choice, test = train(functions, tables, Regression(), data(), folder, **STUDENT)
  best = choice['loss'].argmin(-1)[..., None]
  return np.take_along_axis(test['loss'], best, -1)[..., 0]


def shares(losses):
  """Ranks within each table as shares of the functions, the lowest loss first."""
  return stats.rankdata(losses, axis=0) / len(losses)


def permutation_p(ranks, planted):
  """Share of the sets of as many functions whose median rank is at least as low."""
  rng, found = np.random.default_rng(0), np.median(ranks[planted])
  medians = [np.median(ranks[rng.permutation(planted)]) for _ in range(2000)]
  return (1 + np.sum(np.array(medians) <= found)) / (1 + len(medians))


def check_planted(count, teachers, folder):
  functions, planted = drawn(count)
  losses = losses_of(functions, [*range(teachers), TEACHERS], folder)
  real, permuted = np.split(losses, [teachers], axis=1)
  assert np.median(real[planted]) < 0.1 < 0.3 < np.median(real)  # it was learned; 1 is the mean's
  assert np.median(shares(real)[planted]) <= 0.05
  assert permutation_p(shares(real), planted) < 1e-3
  assert np.abs(np.median(permuted) - 1) < 0.1
  assert permutation_p(shares(permuted), planted) > 0.05


def test_which_functions_are_planted():
  """Against values computed apart, on another grid; sin(x)^2 is a cosine."""
  known = {'sin(x)': 1.0, 'mul(x, sinc(x))': 1.0, 'mul(sin(x), sin(x))': 1.0,
           'mul(x, sin(x))': 0.774, 'sinc(x)': 0.810, 'erf(x)': 0.431, 'tanh(x)': 0.414,
           'identity(x)': 0.047}
  found = largest_correlations([parse(text) for text in known])
  np.testing.assert_allclose(found, list(known.values()), atol=5e-3)
  assert (found >= PLANTED).tolist() == [True] * 3 + [False] * 5


def test_the_planted_functions_are_found(tmp_path):
  check_planted(200, 1, tmp_path)


@pytest.mark.slow
def test_the_planted_functions_are_found_with_five_teachers(tmp_path):
  check_planted(1000, TEACHERS, tmp_path)


def xor():
  """Four clusters in the plane as two pixels; the class is whether their signs differ."""
  rng = np.random.default_rng(0)
  n = XOR['steps'] * XOR['batch'] + 2 * HELD_OUT
  bright = rng.integers(0, 2, (n, 2))
  pixels = 64 + 128 * bright + rng.normal(0, 20, bright.shape)
  return {'inputs': pixels.round().clip(0, 255).astype(np.uint8),
          'labels': (bright[:, :1] ^ bright[:, 1:]).astype(np.int32)}


def xor_results(expressions, starts, folder):
  """Accuracy and loss on test examples, [expressions, starts]."""
  _, test = train(expressions, [0], Classification(128.0, 64.0), xor(), folder, starts=starts,
                  **XOR)
  return test['accuracy'][:, 0], test['loss'][:, 0]


def above_chance(accuracy):
  """(mean - 1/2) / standard error, over the starts."""
  return (accuracy.mean() - 0.5) / stats.sem(accuracy)


def check_xor(count, folder):
  assert ValidityFilter()(IDENTITY).reason == 'linear'  # only here is it let through
  accuracy, loss = xor_results([IDENTITY, *sample(count)], 8, folder)
  assert abs(above_chance(accuracy[0])) < 2
  assert abs(loss[0].mean() - np.log(2)) < 5e-3
  beaten = (accuracy[1:].mean(1) > accuracy[0].mean()) & (loss[1:].mean(1) < loss[0].mean())
  assert beaten.mean() >= 0.9
  # The bound of 2 standard errors is no loose one: the others pass it.
  assert np.mean([above_chance(row) > 2 for row in accuracy[1:]]) >= 0.9


def test_the_identity_stays_at_chance_on_xor(tmp_path):
  check_xor(60, tmp_path)


@pytest.mark.slow
def test_the_identity_stays_at_chance_on_xor_where_a_thousand_functions_do_not(tmp_path):
  check_xor(1000, tmp_path)
