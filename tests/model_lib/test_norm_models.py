"""Norms in models and populations: what is refused in one line, and state beside other members."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.errors import UserError
from model_lib.normalization import get_norm
from model_lib.normalization.adaptation import start_components, with_components
from model_lib.training.cohort import ModelSpec
from model_lib.transforms import fold_gains
from tests.model_lib import model_cases
from tests.model_lib import norm_cases as cases
from tests.model_lib.engine import Engine, members


@pytest.mark.parametrize('spec, shape, part', [
  ('instance', (4, 8), 'has none; take layer, rms or batch'),
  ('frn_tlu', (4, 8), 'over the positions of an example'),
  ('switch', (4, 8), 'switch norm: its statistics'), ('evonorm_b0', (4, 8), 'evonorm_b0: its'),
  ('group(3)', (4, 3, 8), '8 channels do not divide into 3 groups; write e.g. group(groups=1)'),
  ('evonorm_s0', (4, 3, 8), 'evonorm_s0(groups=1)'), ('whiten(groups=3)', (4, 8), 'whiten(groups'),
  ('batch_channel(3)', (4, 8), 'batch_channel(groups=1)'), ('prms', (4, 8), 'at least 0.125'),
  ('batch', (1, 8), 'at least 2 values'), ('renorm', (1, 8), 'at least 2 values'),
  ('whiten', (1, 8), 'at least 2 values'),
  ('film', (4, 8), 'takes a condition'), ('adain', (4, 8), 'takes a condition'),
  ('spade', (4, 8), 'takes a condition'), ('adaln_zero', (4, 8), 'takes a condition')])
def test_an_array_that_does_not_fit_is_one_line(spec, shape, part) -> None:
  with pytest.raises(UserError) as info:
    jax.eval_shape(lambda x: get_norm(spec).layer().init(jax.random.key(0), x, True),
                   jax.ShapeDtypeStruct(shape, jnp.float32))
  assert part in str(info.value) and '\n' not in str(info.value)


def test_ghosts_divide_the_batch_and_unmix_needs_components() -> None:
  x = cases.inputs(dtype=np.float32)
  variables = cases.starts()['batch']
  with pytest.raises(UserError, match='4 examples are no whole number of ghosts of 3'):
    cases.call('batch(stat_mode=ghost(3))', variables, x, True)
  with pytest.raises(UserError, match='at least 2 values'):
    cases.call('batch(stat_mode=ghost(1))', variables, x[:, 0, 0], True)
  with pytest.raises(UserError, match='with_components'):
    cases.call('unmix', variables, x, False)


@pytest.mark.parametrize('name, norm, part', [
  ('mlp', 'instance', 'layers.0.norm'), ('mlp', 'film', 'takes a condition'),
  ('gpt', 'instance', 'later ones'), ('gpt', 'frn', 'later ones'), ('gpt', 'unmix', 'later ones'),
  ('gpt', 'adaln_zero', 'takes a condition'), ('vit', 'evonorm_s0', 'evonorm_s0(groups=1)'),
  ('cnn', 'spade', 'takes a condition')])
def test_a_model_refuses_what_does_not_fit(name, norm, part) -> None:
  with pytest.raises(UserError, match=part.replace('(', r'\(').replace(')', r'\)')) as info:
    models.build(name, norm=norm, **model_cases.SIZES[name])
  assert '\n' not in str(info.value)


@pytest.mark.parametrize('name, norms', [
  ('gpt', ('prms(p=0.5)', 'frozen_layer')), ('vit', ('switch', 'frn_tlu', 'whiten')),
  ('cnn', ('evonorm_b0', 'evonorm_s0(groups=2)')),
  ('mlp', ('renorm', 'unmix', 'pointwise(f=expsign)', 'lrn'))])
def test_others_build(name, norms) -> None:
  for norm in norms:
    model = models.build(name, norm=norm, **model_cases.SIZES[name])
    jax.eval_shape(lambda model=model: model.init(
      jax.random.key(0), model_cases.inputs(name), train=True))


STATEFUL = ('renorm(ramp=20)', 'whiten(groups=2, iterations=3)')


def test_members_have_their_own_state() -> None:
  """Under vmap and lax.map each is the member run alone; lax.map bit for bit."""
  x = jnp.stack([jnp.asarray(cases.inputs(seed=i, dtype=np.float32)) for i in range(2)])
  states = {spec: cases.drawn(spec, np.float32) for spec in STATEFUL}
  states = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), states)

  def step(arguments):
    states, x = arguments

    def loss(params, spec):
      y, state = cases.call(spec, {'params': params, 'batch_stats': states[spec][1]}, x, True)
      return jnp.mean(jnp.square(y) * x), state

    return {spec: jax.value_and_grad(loss, has_aux=True)(states[spec][0], spec)
            for spec in STATEFUL}

  # With the emitters that training uses, which `cases.compiled` replaces; without optimization.
  level = {'xla_backend_optimization_level': 0}
  mapped, vmapped = jax.jit(lambda states, x: (
    jax.lax.map(step, (states, x)), jax.vmap(lambda s, x: step((s, x)))(states, x)),
    compiler_options=level)(states, x)
  alone = jax.jit(lambda states, x: jax.lax.map(step, (states, x)), compiler_options=level)
  for i in range(2):
    own = alone(*jax.tree.map(lambda leaf, i=i: leaf[i:i + 1], (states, x)))
    for a, b, c in zip(*map(jax.tree.leaves, (mapped, own, vmapped)), strict=True):
      np.testing.assert_array_equal(a[i], b[0])
      np.testing.assert_allclose(c[i], b[0], rtol=1e-3, atol=1e-5)
  for spec, ((_, state), _) in mapped.items():
    assert max(np.abs(np.asarray(state[k]) - states[spec][1][k]).max() for k in state) > 1e-3


@pytest.mark.slow
def test_they_train_in_the_engine(tmp_path) -> None:
  """An mlp with a stateful norm of another kind in every layer: a member alone has its bits."""
  model = ModelSpec('mlp', {'widths': (8, 8, 8), 'norm': 'renorm', 'overrides': (
    'layers.1.norm: whiten', 'layers.2.norm: batch(stat_mode=ghost(16))')})
  together, alone = (Engine(model, chunk=size, k=2, steps=2, streams=2, evaluates=False)
                     for size in (2, 1))
  (tmp_path / 'a').mkdir()
  (tmp_path / 'b').mkdir()
  both = together.train(members(2), tmp_path / 'a')
  own = alone.train([members(2)[1]], tmp_path / 'b')
  assert own.leaves(0) == both.leaves(1) != both.leaves(0)
  names = [name for name in own.leaves(0) if 'batch_stats' in name]
  assert any('whitener' in name for name in names) and any('steps' in name for name in names)
  assert all(both.leaves(0)[name] != both.leaves(1)[name] for name in names if 'mean' in name)


def test_the_components_of_unmix() -> None:
  """Their mixture has the source's mean, and in expectation its variance; one is the source."""
  mean, var = jnp.asarray([0.5, -1.0]), jnp.asarray([4.0, 0.25])
  m, v = cases.compiled(jax.vmap(lambda key: start_components(key, mean, var, 4)))(
    jax.random.split(jax.random.key(0), 400))
  m, v = np.asarray(m), np.asarray(v)
  np.testing.assert_allclose(m.mean((0, 1)), mean, atol=0.1)
  np.testing.assert_allclose((v.mean(1) + m.var(1)).mean(0), var, rtol=0.1)
  one = start_components(jax.random.key(0), mean, var, 1)
  np.testing.assert_array_equal(one, (mean[None], var[None]))
  stats = {'a': {'norm': {'mean': mean, 'var': var}}, 'b': {'mean': mean, 'var': var}}
  done = with_components(jax.random.key(0), stats, 4)
  assert set(done['b']) == set(done['a']['norm']) == {
    'mean', 'var', 'component_mean', 'component_var'}
  assert np.any(done['b']['component_mean'] != done['a']['norm']['component_mean'])


def test_gains_fold_only_where_they_multiply_last() -> None:
  x = model_cases.inputs('gpt')
  for norm in ('rms(gain=one_plus)', 'scale_norm'):
    model = models.build('gpt', norm=norm, **model_cases.SIZES['gpt'])
    with pytest.raises(UserError, match='cannot be folded'):
      fold_gains(model, model_cases.numbers(model, x), x)
