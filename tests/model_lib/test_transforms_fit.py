"""Fits of point-wise functions to norms: known answers, least squares, the change of outputs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.normalization import get_norm
from model_lib.transforms import fit_pointwise, layer_to_pointwise
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

ALPHA, SHIFT = 0.37, 0.21
FORMS = {'dyt': math.tanh, 'derf': math.erf}


def _data(form: str, s: float, seed: int = 0):
  rng = np.random.default_rng(seed)
  x = 3 * rng.normal(size=(4, 50, 3))
  g, b = np.array([0.5, -2.0, 1.5]), np.array([1.0, 0.0, -0.3])
  return x, g * np.vectorize(FORMS[form])(ALPHA * x + s) + b, g, b


@pytest.mark.parametrize('form, s', [('dyt', 0.0), ('derf', SHIFT)])
def test_a_fit_finds_what_made_the_data(form, s) -> None:
  x, y, g, b = _data(form, s)
  fit = fit_pointwise(x, y, form, 'here')
  np.testing.assert_allclose([fit.alpha, fit.s], [ALPHA, s], rtol=1e-4)
  np.testing.assert_allclose(fit.scale, g, rtol=1e-3)
  np.testing.assert_allclose(fit.bias, b, atol=1e-3)
  assert fit.error < 1e-4 and fit.path == 'here'
  # The other function does not fit, at a shift that tanh has not.
  other = fit_pointwise(*_data('derf', SHIFT)[:2], 'dyt')
  assert other.error > 0.01


def test_a_fit_is_the_least_squares() -> None:
  """On a LayerNorm: against numpy's regression over a fine grid of alpha."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(300, 16)) * np.exp(rng.normal(size=(300, 1)) / 2)
  y = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  fit = fit_pointwise(x, y)

  def left(alpha):
    total = 0.0
    for f, target in zip(np.tanh(alpha * x).T, y.T, strict=True):
      matrix = np.stack([f, np.ones_like(f)], 1)
      total += np.linalg.lstsq(matrix, target)[1][0]
    return total

  grid = fit.alpha * np.exp(np.linspace(-2, 2, 41))  # the middle one is the fit's own
  sums = [left(alpha) for alpha in grid]
  assert int(np.argmin(sums)) == 20 and sums[0] > 1.01 * sums[20]
  np.testing.assert_allclose(fit.error, np.sqrt(sums[20] / np.square(y - y.mean(0)).sum()),
                             rtol=1e-9)
  assert 0.05 < fit.error < 0.5


def test_channels_and_data_without_information() -> None:
  x, y, *_ = _data('dyt', 0.0)
  x[..., 1] = 0.0
  fit = fit_pointwise(x, y)
  assert fit.scale[1] == 0 and np.isclose(fit.bias[1], y[..., 1].mean())
  with pytest.raises(UserError, match='norm_0: .*0 or not finite'):
    fit_pointwise(x * 0, y, path='norm_0')
  with pytest.raises(UserError, match='no fit of \'dit\'.*dyt'):
    fit_pointwise(x, y, 'dit')


@pytest.mark.parametrize('name, form, inner', [
  ('gpt', 'dyt', {'alpha'}), ('vit', 'derf', {'alpha', 'shift'})])
def test_a_model_with_fitted_norms(name, form, inner) -> None:
  """The outputs change by less than with numbers that do not fit; the report says by how much."""
  model = models.build(name, **cases.SIZES[name])
  calibration, x = (jnp.concatenate([cases.inputs(name, seed) for seed in seeds])
                    for seeds in (range(6), range(6, 9)))
  variables = cases.numbers(model, x)
  done = layer_to_pointwise(model, variables, calibration, x, form, tolerances={'float32': 1e-4})
  assert done.model.norm == f'pre:{form}' and not done.report.equal
  assert [fit.path for fit in done.fits] == [
    'blocks/norm_attention_0', 'blocks/norm_feed_forward_0', 'blocks/norm_final']
  assert all(0 < fit.error < 0.9 for fit in done.fits) and 'relative error' in str(done)
  blocks = done.variables['params']['blocks']
  for fit in done.fits:
    leaves = blocks[fit.path.rpartition('/')[2]]
    assert set(leaves) == inner | {'scale', 'bias'} and np.isclose(leaves['alpha'], fit.alpha)
    assert np.isclose(leaves.get('shift', 0.0), fit.s) and (fit.s != 0) == ('shift' in inner)

  before = cases.logits(model, variables, x)
  apply = jax.jit(lambda blocks: done.model.apply(
    {**done.variables, 'params': {**done.variables['params'], 'blocks': blocks}}, x, train=False))

  def distance(change) -> float:
    """Root mean square change of the outputs with other leaves in the place of a norm's."""
    changed = {part: change(part, leaves) if part.startswith('norm_') else leaves
               for part, leaves in blocks.items()}
    return np.sqrt(np.mean((np.asarray(apply(changed)) - before) ** 2))

  after, single = np.asarray(apply(blocks)), done.report['float32']
  np.testing.assert_allclose(single.max_difference, np.abs(after - before).max(), rtol=1e-3)
  np.testing.assert_allclose(single.rms_difference, distance(lambda part, leaves: leaves),
                             rtol=1e-3)
  # The controls: as a new layer starts, with the old gain and bias; and slopes that are too steep.
  start = {p.name: np.float32(p.init) for p in get_norm(form).parameters if p.name in inner}
  unfitted = distance(lambda part, leaves: {**variables['params']['blocks'][part], **start})
  steep = distance(lambda part, leaves: {**leaves, 'alpha': leaves['alpha'] * np.float32(20)})
  assert min(unfitted, steep) > 1.1 * single.rms_difference, (unfitted, steep, single)


@pytest.mark.parametrize('norm, form, part', [
  ('pre:batch', 'dyt', 'no layer or rms'), ('none', 'dyt', 'no layer or rms'),
  ('pre:layer', 'dit', 'nearest')])
def test_what_cannot_be_fitted_is_one_line(norm, form, part) -> None:
  model, x = models.build('gpt', norm=norm, **cases.SIZES['gpt']), cases.inputs('gpt')
  with pytest.raises(UserError, match=part):
    layer_to_pointwise(model, cases.numbers(model, x), x, x, form)
