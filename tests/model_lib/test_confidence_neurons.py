"""Scores and ablations of neurons against numpy, and a neuron planted in the null space."""
from __future__ import annotations

import jax
import numpy as np
import pytest

from model_lib.analysis import confidence_neurons as cn
from model_lib.errors import UserError
from tests.model_lib import gpt2_numpy

pytestmark = pytest.mark.usefixtures('unoptimized')


def test_scores_against_numpy():
  model, variables = gpt2_numpy.small()
  found = cn.neurons(model, variables)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  w = params['h']['mlp']['c_proj']['kernel'][-1]
  columns = params['ln_f']['scale'][:, None] * params['wte']['embedding'].T
  columns = columns - columns.mean(0)
  columns = columns - columns.mean(1, keepdims=True)
  score = []
  for row in w:
    row = row - row.mean()
    cosine = [row @ u / np.linalg.norm(row) / np.linalg.norm(u) for u in columns.T]
    score.append(np.linalg.norm(row) / np.var(cosine))
  np.testing.assert_allclose(found.score, score, rtol=1e-4)
  np.testing.assert_array_equal(found.order, np.argsort(score)[::-1])
  # The first layer's neurons have others.
  first = params['h']['mlp']['c_proj']['kernel'][0]
  assert found.norm[0] != pytest.approx(np.linalg.norm(first[0] - first[0].mean()))


def test_ablations_against_numpy():
  model, variables = gpt2_numpy.small(spread=0.6)
  tokens = gpt2_numpy.windows(5)
  sets = [[3], [0, 7], []]
  found = cn.ablate(model, variables, tokens, sets, batch=2)
  assert found.loss.shape == (3, 5)

  def numbers(run):
    logp = gpt2_numpy.log_softmax(run['logits'])[:, :-1]
    return (-np.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0],
            -(np.exp(logp) * logp).sum(-1))

  run = gpt2_numpy.forward(model, variables, tokens)
  mean = run['mlp_act'][-1].mean((0, 1))
  loss, entropy = numbers(run)
  for i, chosen in enumerate(sets):
    def change(place, layer, value):
      if place == 'mlp_act' and layer == model.depth - 1:
        value = value.copy()
        value[..., chosen] = mean[chosen]
      return value
    new_loss, new_entropy = numbers(gpt2_numpy.forward(model, variables, tokens, change))
    for name, expected in {
        'loss': new_loss - loss, 'entropy': new_entropy - entropy,
        'loss_size': abs(new_loss - loss), 'entropy_size': abs(new_entropy - entropy)}.items():
      np.testing.assert_allclose(getattr(found, name)[i], expected.mean(1), atol=1e-4)
  assert found.loss_size[0].min() > 1e-3 and np.abs(found.loss_size[2]).max() == 0


def _with_null_neuron(model, variables):
  """Neuron 5 of the last layer writes where no logit reads (D > V)."""
  variables = jax.tree.map(np.copy, variables)
  embedding = variables['params']['wte']['embedding'].astype(np.float64)
  matrix = variables['params']['ln_f']['scale'][:, None] * embedding.T
  basis = np.linalg.svd(np.concatenate([matrix, np.ones((model.dim, 1))], 1))[0]
  # Orthogonal to all columns and to 1, and as long as its neighbours are together.
  variables['params']['h']['mlp']['c_proj']['kernel'][-1, 5] = 4 * basis[:, -1]
  return variables


def test_a_neuron_in_the_null_space_works_through_a_real_norm_only():
  tokens = gpt2_numpy.windows(6)
  sizes = {}
  for name, events in {'real': gpt2_numpy.KEPT, 'frozen': gpt2_numpy.FROZEN}.items():
    model, variables = gpt2_numpy.small(dim=18, mlp_ratio=1, events=events)
    variables = _with_null_neuron(model, variables)
    found = cn.neurons(model, variables)
    assert found.order[0] == 5 and found.score[5] > 1e6 * found.score[found.order[1]]
    seen = cn.spectrum(model, variables, found.weights[[5, 6]])
    # V - 1 = 10 directions are read of 18.
    assert (seen.dim, seen.vocab, seen.null) == (18, 11, 8)
    assert seen.null_share[0] == pytest.approx(1, abs=1e-6) and seen.null_share[1] < 0.9
    table = cn.rows(model, variables, tokens, top=1, draws=2)
    sizes[name] = table[0]['entropy_size'], table[0]['loss_size']
    if name == 'real':
      first, together = table
      assert first['neurons'] == together['neurons'] == (5,)
      assert first['entropy'] == together['entropy']
      assert first['entropy'].low <= first['entropy'].mean <= first['entropy'].high
      assert first['entropy_ratio'] == pytest.approx(
        first['entropy_size'] / first['control_entropy_size'])
      assert first['entropy_excess'].mean == pytest.approx(
        first['entropy_size'] - first['control_entropy_size'])
  assert min(sizes['real']) > 1e-2 and max(sizes['frozen']) < 1e-5


def test_without_a_null_space_only_the_centring_is_left():
  model, variables = gpt2_numpy.small(dim=6)
  found = cn.neurons(model, variables)
  seen = cn.spectrum(model, variables, found.weights[:3])
  assert seen.null == 1 and seen.values[0] == 1 and np.all(np.diff(seen.values) <= 0)
  np.testing.assert_allclose((seen.cosine ** 2).sum(1), 1)
  np.testing.assert_allclose(seen.null_share, 0, atol=1e-9)  # the weights are centred too
  rms, own = gpt2_numpy.small(dim=6, norm='rms')
  assert cn.spectrum(rms, own, found.weights[:1]).null == 0


def test_controls_are_of_the_nearest_norm_and_never_the_top():
  norm = np.r_[np.arange(20.0), np.arange(20.0) + 100]
  found = cn.Neurons(norm, norm, norm, np.argsort(-norm), norm[:, None])
  drawn = cn.controls(found, [0, 39], draws=50)
  assert len(drawn) == 50 and len({tuple(control) for control in drawn}) > 20
  for low, high in drawn:
    assert 1 <= low <= 10 and 29 <= high <= 38
  # Two of one norm: never the same neuron twice in a set.
  assert all(len(set(control)) == 2 for control in cn.controls(found, [0, 1], draws=50))
  assert drawn == cn.controls(found, [0, 39], draws=50)
  assert drawn != cn.controls(found, [0, 39], draws=50, seed=1)
  with pytest.raises(UserError, match='21 neurons of 40'):
    cn.controls(found, list(range(21)), 1)
