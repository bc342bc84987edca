"""Gradients behind a norm: the formula in numpy, its expectation, and where the claim fails."""
from __future__ import annotations

import jax
import numpy as np
import pytest

from model_lib import models
from model_lib.analysis import norm_direction as nd
from model_lib.errors import UserError
from tests.model_lib import gpt2_numpy

pytestmark = pytest.mark.usefixtures('unoptimized')


def _cosine(x, y):
  return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


@pytest.fixture(scope='module')
def case():
  return *gpt2_numpy.small(eps=0.01), gpt2_numpy.windows(4)


def test_cosines_are_those_of_the_formula(case):
  model, variables, tokens = case
  n = nd.functionals(model, variables, 3)['random']
  found = nd.cosines(model, variables, tokens, n, batch=4)
  assert found.centred.shape == (4, 9, 5, 3)
  run = gpt2_numpy.forward(model, variables, tokens)
  params = variables['params']
  scales = [params['h'][name]['scale'][layer] for layer in (0, 1) for name in ('ln_1', 'ln_2')]
  scales.append(params['ln_f']['scale'])
  streams = [run['resid_pre'][0], run['resid_mid'][0], run['resid_pre'][1], run['resid_mid'][1],
             run['resid_final']]
  for place, (x, scale) in enumerate(zip(streams, scales)):
    centred = x - x.mean(-1, keepdims=True)
    xh = centred / np.sqrt(x.var(-1, keepdims=True) + 0.01)
    for i in range(3):
      a = scale * n[place, i]
      c = a - a.mean()
      gradient = c - xh * (xh @ a)[..., None] / 12
      np.testing.assert_allclose(found.centred[:, :, place, i], _cosine(gradient, c), atol=1e-4)
      np.testing.assert_allclose(found.plain[:, :, place, i], _cosine(gradient, a), atol=1e-4)
  np.testing.assert_allclose(found.frozen, 1, atol=1e-5)
  # Through a real norm of 12 channels the gradient does turn.
  assert found.centred.min() < 0.95


@pytest.mark.slow  # optimized there: the compiler's wrong program is
def test_cosines_at_the_size_of_a_study():
  """With vmap over the functionals jaxlib 0.10.2 gives gradients that are a third off here."""
  model = models.build('gpt2', vocab=64, length=128, dim=96, depth=1, heads=4, unroll=1)
  tokens = np.random.default_rng(0).integers(0, 64, (8, 128)).astype(np.int32)
  variables = jax.jit(lambda: model.init(jax.random.key(0), tokens))()
  n = nd.functionals(model, variables, 16)['random']
  params = variables['params']
  x = np.asarray(params['wte']['embedding'][tokens] + params['wpe']['embedding'][None], np.float64)
  xh = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  found = nd.cosines(model, variables, tokens, n)
  for i, a in enumerate(np.asarray(n[0], np.float64)):
    c = a - a.mean()
    gradient = c - xh * (xh @ c)[..., None] / 96
    np.testing.assert_allclose(found.centred[:, :, 0, i], _cosine(gradient, c), atol=1e-5)


@pytest.mark.parametrize('norm, expected', [('layer', 1 - 1 / 11), ('rms', 1 - 1 / 12)])
def test_the_mean_square_of_isotropic_functionals(norm, expected):
  model, variables = gpt2_numpy.small(eps=1e-6, norm=norm)
  variables = jax.tree_util.tree_map_with_path(
    lambda path, x: np.ones_like(x) if path[-1].key == 'scale' else x, variables)
  n = np.random.default_rng(0).normal(size=(5, 400, 12)).astype(np.float32)
  found = nd.cosines(model, variables, gpt2_numpy.windows(2), n)
  square, plain = (x.astype(np.float64) ** 2 for x in (found.centred, found.plain))
  # Of 2,000 functionals: its standard deviation is near 0.11.
  error = square.mean((0, 1)).std() / 2000 ** 0.5
  assert abs(square.mean() - expected) < 4 * error < 0.02
  assert plain.mean() == pytest.approx(1 - (2 if norm == 'layer' else 1) / 12, abs=0.012)


def test_a_functional_along_the_stream_is_turned(case):
  model, variables, tokens = case
  # At the first token: n with gamma n near the centred stream there, at the first place.
  params = variables['params']
  x = params['wte']['embedding'][tokens[0, 0]] + params['wpe']['embedding'][0]
  rng = np.random.default_rng(0)
  x = x - x.mean()
  aside = rng.normal(size=12)
  aside = (aside - aside.mean()) / np.linalg.norm(aside) * np.linalg.norm(x)
  n = (x + 0.3 * aside) / params['h']['ln_1']['scale'][0]
  found = nd.cosines(model, variables, tokens[:1],
                     np.broadcast_to(n, (5, 1, 12)).astype(np.float32))
  assert abs(found.centred[0, 0, 0, 0]) < 0.5 < 0.99 < found.frozen[0, 0, 0, 0]


def test_rows_and_the_functionals_that_are_read(case):
  model, variables, tokens = case
  table = nd.direction_rows(model, variables, tokens, count=4)
  assert [(row['functional'], row['place']) for row in table] == [
    (kind, place) for kind in ('random', 'read')
    for place in ('h.0.ln_1', 'h.0.ln_2', 'h.1.ln_1', 'h.1.ln_2', 'ln_f')]
  for row in table:
    assert row['lowest'] <= row['cosine'] <= 1 + 1e-6 and abs(row['frozen'] - 1) < 1e-5
    assert row['expected_square'] == 1 - 1 / 11
  read = nd.functionals(model, variables, 4)['read']
  columns = variables['params']['h']['mlp']['c_fc']['kernel'][1].T
  for n in read[3]:
    assert (columns == n).all(-1).sum() == 1
  assert (variables['params']['wte']['embedding'] == read[4, 0]).all(-1).sum() == 1
  assert table[0] == nd.direction_rows(model, variables, tokens, count=4)[0]
  with pytest.raises(UserError, match='12 functionals'):
    nd.functionals(model, variables, 12)
  for norms in ({'norm': 'none'}, {'final_norm': 'rms'}):
    other, own = gpt2_numpy.small(**norms)
    with pytest.raises(UserError, match=f"{next(iter(norms))}='{next(iter(norms.values()))}'"):
      nd.cosines(other, own, tokens, read)
