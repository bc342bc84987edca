"""The scanned residual MLP: against a loop in NumPy, its taps, its memory and its compilation."""

from __future__ import annotations

import dataclasses
import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model_lib import models, parametrization
from model_lib.errors import UserError
from model_lib.models import deep_mlp
from model_lib.models.hyper import set_hp
from model_lib.training import loop
from model_lib.training.cohort import Member, ModelSpec, OptimizerSpec
from tests.model_lib import engine
from tests.model_lib import model_cases as cases

SIZES = {'width': 12, 'depth': 6, 'num_classes': 5, 'activation': 'tanh'}
FORMS = ({}, {'nonlinearity': 'pre'}, {'block_depth': 2}, {'block_depth': 2, 'nonlinearity': 'pre'},
         {'prenorm': 'rms'}, {'prenorm': 'layer'}, {'mean_subtraction': False})


def _built(**kwargs):
  """(model, variables, x) with other swept numbers than the defaults."""
  model, x = models.build('deep_mlp', **{**SIZES, **kwargs}), cases.inputs('deep_mlp')
  variables = cases.numbers(model, x)
  hp = set_hp(variables['hp'], branch_scale=0.7, activation_scale=1.5, readout_scale=2.0)
  return model, {**variables, 'hp': hp}, x


def _by_hand(variables, x, block_depth=1, nonlinearity='post', prenorm='none',
             mean_subtraction=True) -> tuple[np.ndarray, np.ndarray]:
  """Logits and the stream, in float64."""
  p = {path: leaf.astype(np.float64) for path, leaf in cases.flat(variables['params']).items()}
  x = np.asarray(x, np.float64).reshape(len(x), -1) @ p['stem/kernel']
  stream = [x]
  for i in range(SIZES['depth']):
    f = x - x.mean(1, keepdims=True) * (prenorm == 'layer')
    if prenorm != 'none':
      f = f / np.sqrt(np.mean(f ** 2, 1, keepdims=True))
    for name in ('stack/kernel', 'stack/second/kernel')[:block_depth]:
      f = 1.5 * np.tanh(f @ p[name][i]) if nonlinearity == 'post' else (
        (1.5 * np.tanh(f)) @ p[name][i])
    x = x + 0.7 * (f - f.mean(1, keepdims=True) * mean_subtraction)
    stream.append(x)
  return 2.0 * x @ p['head/kernel'], np.stack(stream)


@pytest.mark.parametrize('form', FORMS)
def test_the_equations(form) -> None:
  model, variables, x = _built(**form)
  logits, taps = model.apply(variables, x, train=True, mutable=['intermediates'])
  stream, = taps['intermediates']['stack']['stream']
  expected = _by_hand(variables, x, **form)
  np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(stream, expected[1], rtol=1e-4, atol=1e-5)
  for prenorm in set(deep_mlp.PRENORMS) - {form.get('prenorm', 'none')}:
    other = _by_hand(variables, x, **{**form, 'prenorm': prenorm})
    assert np.abs(np.asarray(logits) - other[0]).max() > 0.01, prenorm


def test_starts() -> None:
  """U of variance 1 / inputs, W and V of 1 / width; no other parameter."""
  model = models.build('deep_mlp', width=64, depth=8)
  params = cases.flat(cases.init(model, jnp.ones((2, 100)))['params'])
  expected = {'stem/kernel': 1 / 100, 'stack/kernel': 1 / 64, 'head/kernel': 1 / 64}
  assert params.keys() == expected.keys()
  for path, variance in expected.items():
    size = params[path].size
    assert np.var(params[path]) == pytest.approx(variance, rel=5 * (2 / size) ** 0.5), path


@pytest.mark.parametrize('remat', ['block', 'nested'])
def test_remat_changes_no_gradient(remat) -> None:
  def gradients(kind):
    model, variables, x = _built(remat=kind)
    loss = lambda params: jnp.sum(model.apply({**variables, 'params': params}, x, train=True) ** 2)
    return cases.flat(jax.jit(jax.grad(loss))(variables['params']))

  for (path, a), b in zip(gradients('none').items(), gradients(remat).values(), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max(), err_msg=path)


def test_the_shift_gives_the_gradient_of_each_preactivation() -> None:
  """dL/dW_l = x_{l-1}^T dL/dh_l, with the stream that the tap gives."""
  model, variables, x = _built()
  def loss(params, shift):
    logits, taps = model.apply(
      {**variables, 'params': params, 'perturbations': {'stack': {deep_mlp.SHIFT: shift}}}, x,
      train=True, mutable=['intermediates'])
    return jnp.sum(jnp.sin(logits)), taps['intermediates']['stack']['stream'][0]

  zero = jnp.zeros((SIZES['depth'], len(x), SIZES['width']))
  (of_params, of_shift), stream = jax.grad(loss, (0, 1), has_aux=True)(variables['params'], zero)
  expected = np.einsum('lbi,lbj->lij', stream[:-1], of_shift)
  np.testing.assert_allclose(of_params['stack']['kernel'], expected, rtol=1e-3, atol=1e-5)
  shifted = np.einsum('lbi,lbj->lij', stream[1:], of_shift)
  assert np.abs(of_params['stack']['kernel'] - shifted).max() > 0.01


def test_a_switch_is_its_branches() -> None:
  one, variables, x = _built(activation='abs')
  many, switched, _ = _built(activation='switch(relu, abs)')
  # The same parameters: the draw of the second model has one number more in front of it.
  switched = {'params': variables['params'], 'hp': set_hp(switched['hp'], activation_code=1)}
  expected = cases.logits(one, variables, x)
  np.testing.assert_allclose(cases.logits(many, switched, x), expected, rtol=1e-4, atol=1e-5)
  switched = {**switched, 'hp': set_hp(switched['hp'], activation_code=0)}
  assert np.abs(cases.logits(many, switched, x) - expected).max() > 0.01


def test_a_population_sweeps_the_branch_and_trains_the_stack_alone(tmp_path) -> None:
  optimizer = OptimizerSpec(eps=1e-12, trained=('stack/',))
  spec = ModelSpec('deep_mlp', {'width': 8, 'depth': 3, 'remat': 'nested'})
  built = engine.Engine(spec, chunk=3, steps=10, optimizer=optimizer, evaluates=False)
  runs = [Member({'run': i}, 0, 0, 0, {'learning_rate': 0.01, 'branch_scale': a,
                                       'activation_scale': 2 ** 0.5, 'readout_scale': 0.5})
          for i, a in enumerate((0.5, 2.0, 2.0))]
  trained = built.train(runs, tmp_path)
  built.population.cohort = dataclasses.replace(built.population.cohort, members=tuple(runs))
  start = cases.flat(loop.initial_chunks(built.population, built.plan)[0].params)
  for path, leaf in cases.flat(trained.state.params).items():
    np.testing.assert_array_equal(leaf[1], leaf[2])
    moved = (leaf != start[path]).any()
    assert moved == path.startswith('stack/'), path
  kernel = trained.state.params['stack']['kernel']
  assert (kernel[0] != kernel[1]).any()
  np.testing.assert_array_equal(trained.state.hp['model']['stack']['branch_scale'], [0.5, 2, 2])


def _program(depth: int, width: int, remat: str, batch: int = 64):
  """Loss and gradients as a function of the parameters, and their shapes."""
  model = models.build('deep_mlp', width=width, depth=depth, remat=remat)
  x, y = jnp.ones((batch, 64)), jnp.zeros(batch, jnp.int32)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  hp = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), variables['hp'])

  def loss(params):
    logits = model.apply({'params': params, 'hp': hp}, x, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  return jax.jit(jax.value_and_grad(loss)), variables['params']


@functools.cache
def temporaries(depth: int, remat: str, width: int = 256) -> float:
  """MiB of temporary arrays, without parameters, moments and gradients."""
  program, params = _program(depth, width, remat)
  return program.lower(params).compile().memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize('depths', [(64, 256), pytest.param((256, 1024), marks=pytest.mark.slow)])
def test_the_memory_of_nested_scans_goes_with_the_root_of_depth(depths) -> None:
  shallow, deep = depths
  assert temporaries(deep, 'nested') <= 2.3 * temporaries(shallow, 'nested')
  # Controls: a carry per block, or all of its values, go with depth.
  for remat in ('block', 'none'):
    assert temporaries(deep, remat) > 3 * temporaries(shallow, remat)


@pytest.mark.parametrize('remat', deep_mlp.REMATS)
def test_the_program_does_not_grow_with_depth(remat) -> None:
  def length(depth, **kwargs):
    program, params = _program(depth, 8, remat, **kwargs)
    return len(program.lower(params).as_text().splitlines())

  assert length(256) == length(16)


@pytest.mark.slow
def test_the_compile_time_does_not_grow_with_depth() -> None:
  def seconds(depth):
    program, params = _program(depth, 64, 'none')
    start = time.perf_counter()
    program.lower(params).compile()
    return time.perf_counter() - start

  seconds(4)  # warms up
  rounds = [(seconds(8), seconds(256)) for _ in range(7)]
  ratio = np.median([deep / shallow for shallow, deep in rounds])
  print(rounds, ratio)
  assert ratio <= 1.5


def test_the_rows_that_it_takes() -> None:
  """Those whose branches have no factor, or one and the same."""
  taken = set()
  for name in parametrization.names():
    try:
      models.build('deep_mlp', parametrization=name)
    except UserError:
      continue
    taken.add(name)
  assert taken == {'sp', 'ntk', 'mean_field', 'mup', 'tp6', 'depth_mup', 'ode', 'completep'}
  model = models.build('deep_mlp', depth=16, parametrization='depth_mup(a=3,base_depth=4)')
  assert deep_mlp.branch_rule(model.parametrization, 16, 1, 64) == (1 / 8, 1.5)


@pytest.mark.parametrize(('kwargs', 'message'), [
  ({'remat': 'nest'}, "remat='nest'; nearest: 'nested'"),
  ({'nonlinearity': 'between'}, "nonlinearity='between'"),
  ({'block_depth': 3}, 'block_depth must be 1 or 2, not 3'),
  ({'activation': 'prelu'}, "activation='prelu' is not a pointwise function"),
  ({'activation': 'swiglu'}, "activation='swiglu' is not"),
  ({'parametrization': 'rezero'}, "parametrization='rezero' needs more"),
  ({'parametrization': 'lns'}, "parametrization='lns' needs more"),
  ({'parametrization': 'gpt2'}, "parametrization='gpt2' needs more"),
  ({'norm': 'pre:rms'}, "deep_mlp has no attribute 'norm'"),
])
def test_what_makes_no_sense_is_said(kwargs, message) -> None:
  with pytest.raises(UserError, match=re.escape(message)):
    models.build('deep_mlp', **kwargs)
