"""What the rules say of training: equivalent rows give equal losses, and optax follows them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model_lib.errors import UserError
from model_lib.parametrization import optax_wiring
from model_lib.parametrization import scaled_rows as rows
from model_lib.parametrization.kinds import as_tree, label_parameters
from model_lib.parametrization.label import Extent
from model_lib.parametrization.rules import Factors, factors

pytestmark = pytest.mark.usefixtures('unoptimized')
BASE, WIDTH, N_IN, CLASSES, STEPS = 8, 32, 6, 3, 10


def sizes(n: int, layers: int) -> dict[str, tuple[int, ...]]:
  hidden = {f'hidden_{i}': {'kernel': (n, n), 'bias': (n,)} for i in range(1, layers)}
  return {'hidden_0': {'kernel': (N_IN, n), 'bias': (n,)}, **hidden,
          'head': {'kernel': (n, CLASSES)}}


def labelled(layers: int, width: int = WIDTH):
  models = [jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), sizes(n, layers),
                         is_leaf=lambda s: isinstance(s, tuple)) for n in (BASE, 2 * BASE, width)]
  return label_parameters(*models, stack='')


def start(labels, found, key=0):
  """Parameters of the base's std (biases too, so that theirs are tested) times the factor."""
  rng = np.random.default_rng(key)
  drawn = {path: np.float32(rng.standard_normal(label.shape) * label.fan_in.base ** -0.5
                            * found[path].init_std) for path, label in labels.items()}
  tree = {}
  for path, value in drawn.items():
    module, name = path.split('/')
    tree.setdefault(module, {})[name] = jnp.asarray(value)
  return tree


def loss(params, found):
  """Cross-entropy of a tanh network on fixed data, with every multiplier."""
  rng = np.random.default_rng(1)
  h = jnp.asarray(rng.standard_normal((16, N_IN)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, CLASSES, 16))
  w = jax.tree.map(lambda w, f: w * f, params, as_tree(
    {path: f.multiplier for path, f in found.items()}, params))
  for name in sorted(set(w) - {'head'}):
    h = jnp.tanh(h @ w[name]['kernel'] + w[name]['bias'].reshape(1, -1))
  logits = h @ w['head']['kernel']
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1).mean()


def losses(row, family: str, make, layers: int, rate: float, **more) -> np.ndarray:
  labels = labelled(layers)
  found = {path: factors(row, label, family) for path, label in labels.items()}
  tx = optax_wiring.optimizer(make, found, rate, **more)
  params = start(labels, found)

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params, found)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  run = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), None, STEPS)[1])
  return np.asarray(run())


def sgd(eps: float) -> optax.GradientTransformation:
  del eps
  return optax.identity()


def adam_with(eps: float):
  return lambda factor: optax.scale_by_adam(eps=eps * factor)


def test_mean_field_is_mup_with_one_hidden_layer() -> None:
  reference = losses(rows.mean_field(), 'sgd', sgd, 1, 0.2)
  assert reference[0] - reference[-1] > 0.05  # it learns
  for form in rows.FORMS:
    np.testing.assert_allclose(losses(rows.mup(form), 'sgd', sgd, 1, 0.2), reference, rtol=2e-6)
  # The standard row is another training, and so is a readout without its rate.
  assert np.abs(losses(rows.sp(), 'sgd', sgd, 1, 0.2) / reference - 1).max() > 1e-2
  assert np.abs(losses(rows.ntk(), 'sgd', sgd, 1, 0.2) / reference - 1).max() > 1e-2


@pytest.mark.parametrize('family, make, rate', [
  ('sgd', sgd, 0.2), ('adam', adam_with(1e-30), 0.01),
  # An eps as large as the gradients' entries: its factor has to be right.
  ('adam', adam_with(1e-2), 0.05)])
def test_the_three_tables_are_one_training(family, make, rate) -> None:
  more = {'weight_decay': 0.1}
  runs = [losses(rows.mup(form), family, make, 2, rate, **more) for form in rows.FORMS]
  assert runs[0][0] - runs[0][-1] > 0.02
  for run in runs[1:]:
    np.testing.assert_allclose(run, runs[0], rtol=5e-6)


def test_an_eps_that_does_not_follow_is_seen() -> None:
  def fixed(factor):
    del factor
    return optax.scale_by_adam(eps=1e-2)

  runs = [losses(rows.mup(form), 'adam', fixed, 2, 0.05) for form in ('table3', 'table9')]
  assert np.abs(runs[0] / runs[1] - 1).max() > 1e-3


def test_gradients_have_the_sizes_that_eps_follows() -> None:
  """An entry's size at 8 times the width over that before, against the factor of eps."""
  for row in (rows.ntk(), rows.mup()):
    sizes_at = []
    for width in (2 * BASE, 16 * BASE):
      labels = labelled(2, width)
      found = {path: factors(row, label) for path, label in labels.items()}
      drawn = jax.tree.map(lambda *w: jnp.stack(w), *(start(labels, found, key)
                                                      for key in range(32)))
      grads = jax.vmap(jax.grad(lambda w, found=found: loss(w, found)))(drawn)
      sizes_at.append(jax.tree.map(lambda g, eps: float(jnp.sqrt(jnp.mean(g ** 2))) / eps, grads,
                                   as_tree({path: f.eps for path, f in found.items()}, grads)))
    for ratio in jax.tree.leaves(jax.tree.map(lambda a, b: b / a, *sizes_at)):
      assert 0.6 < ratio < 1.6, (row.name, sizes_at)  # half a power off would be 2.8 or 0.35


def test_the_relabelling_of_rates_over_depth_is_exact() -> None:
  # alpha = 1/2: at rate e with gamma = 1/2 every update is that of e / sqrt(m_L) with gamma = 0.
  labels = {path: label for path, label in labelled(2).items() if path.startswith('hidden_1')}
  deep = {path: dataclasses.replace(label, depth=Extent(4, 64)) for path, label in labels.items()}
  for path, label in deep.items():
    half, none = (factors(rows.tp6(0.5, gamma, base_depth=4), label) for gamma in (0.5, 0.0))
    assert half.learning_rate * 0.3 == none.learning_rate * (0.3 / 4), path
    assert half.eps == none.eps and half.init_std == none.init_std


PARAMS = {'a': jnp.asarray([1.0, -2.0]), 'b': jnp.asarray([[3.0]])}
GRADS = {'a': jnp.asarray([0.5, 0.25]), 'b': jnp.asarray([[-4.0]])}
FACTORS = {'a': Factors(learning_rate=0.5, eps=4.0, decay=0.0),
           'b': Factors(learning_rate=0.25, eps=0.5, decay=8.0)}


def update(**more):
  tx = optax_wiring.optimizer(more.pop('make', sgd), more.pop('factors', FACTORS), 0.1, **more)
  return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize('decay, of_b', [
  # rate 0.1, decay 0.01, w = 3
  ('coupled', 0.1 * 0.25 * 0.01 * 3), ('compensated', 0.1 * 0.25 * 8 * 0.01 * 3),
  ('independent', 0.01 * 3)])
def test_each_way_to_decay(decay, of_b) -> None:
  for schedule, s in ((None, 1.0), (lambda step: 0.5, 0.5)):
    found = update(weight_decay=0.01, decay=decay, schedule=schedule)
    np.testing.assert_allclose(found['a'], -0.1 * 0.5 * s * GRADS['a'], rtol=1e-6)
    np.testing.assert_allclose(found['b'], [[-s * (0.1 * 0.25 * -4.0 + of_b)]], rtol=1e-6)


def test_eps_and_rate_of_each_parameter() -> None:
  found = update(make=adam_with(0.1))
  for path, f in FACTORS.items():  # the first step of Adam: g / (|g| + eps)
    g = GRADS[path]
    np.testing.assert_allclose(found[path], -0.1 * f.learning_rate * g / (jnp.abs(g) + 0.1 * f.eps),
                               rtol=1e-5)


def test_the_norm_for_clipping_is_that_of_all_parameters() -> None:
  norm = float(optax.tree.norm(GRADS))
  found = update(clip=1.0)
  np.testing.assert_allclose(found['a'], -0.1 * 0.5 * GRADS['a'] / norm, rtol=1e-6)
  alone = float(jnp.linalg.norm(GRADS['a']))
  assert not np.allclose(found['a'], -0.1 * 0.5 * GRADS['a'] / max(1.0, alone), rtol=1e-2)


def test_at_the_base_shape_it_is_plain_adamw_bit_for_bit() -> None:
  ones = {path: Factors() for path in PARAMS}
  plain = optax.adamw(0.1, weight_decay=0.01)
  ours = optax_wiring.optimizer(adam_with(1e-8), ones, 0.1, weight_decay=0.01)
  states, params = [plain.init(PARAMS), ours.init(PARAMS)], [PARAMS, PARAMS]
  for _ in range(3):
    for i, tx in enumerate((plain, ours)):
      moves, states[i] = tx.update(GRADS, states[i], params[i])
      params[i] = optax.apply_updates(params[i], moves)
  for path in PARAMS:
    np.testing.assert_array_equal(params[0][path], params[1][path])


def test_rates_may_be_traced() -> None:
  def first(rate):
    tx = optax_wiring.optimizer(sgd, FACTORS, rate, weight_decay=0.01, decay='independent')
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]['b'][0, 0]

  np.testing.assert_allclose(jax.vmap(first)(jnp.asarray([0.1, 0.2])), [0.1 - 0.03, 0.2 - 0.03],
                             rtol=1e-5)


def test_hidden_matrices_may_have_an_optimizer_of_their_own() -> None:
  labels = labelled(2)
  found = {path: factors(rows.mup(), label, 'muon') for path, label in labels.items()}
  params = start(labels, found)
  tx = optax_wiring.direction(sgd, found, hidden=optax.scale_by_sign(), labels=labels)
  moves, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_array_equal(moves['hidden_1']['kernel'], jnp.sign(params['hidden_1']['kernel']))
  np.testing.assert_array_equal(moves['hidden_0']['kernel'], params['hidden_0']['kernel'])


@pytest.mark.parametrize('make, message', [
  (lambda: update(decay='decoupled'), "unknown decay 'decoupled'; nearest: 'coupled'"),
  (lambda: optax_wiring.decay_factors(FACTORS, 'independent'), 'pass rate='),
  (lambda: update(factors={'a': FACTORS['a']}), 'b: the parameter has no label'),
  (lambda: optax_wiring.direction(sgd, FACTORS, hidden=optax.identity()), 'pass labels='),
])
def test_errors_are_one_line(make, message) -> None:
  with pytest.raises(UserError) as info:
    make()
  assert message in str(info.value) and '\n' not in str(info.value)
