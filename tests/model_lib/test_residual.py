"""How branches join the stream: each placement and rule against its equation, written out."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.analysis.residual_growth import residual_variance
from model_lib.errors import UserError
from model_lib.models.admin import init_omegas
from model_lib.models.linear import Linear
from model_lib.models.residual import Stack
from model_lib.models.sphere import project
from model_lib.normalization import block
from model_lib.normalization.placement import stem_norms
from model_lib.parametrization import Branch, get_parametrization
from tests.model_lib import model_cases as cases

BLOCKS, CHANNELS, EPS = 4, 5, 1e-5


class Tanh(nn.Module):
  """tanh(x W): a branch that is not linear and not odd about its norm's shift."""

  @nn.compact
  def __call__(self, x, train):
    del train
    w = self.param('w', nn.initializers.normal(1.0), (x.shape[-1], x.shape[-1]))
    return jnp.tanh(x @ w)


class Model(nn.Module):
  """The stack alone, with a `Tanh` for attention and one for the mlp."""

  norm: str
  parametrization: str

  @nn.compact
  def __call__(self, x):
    stack = Stack(self.norm, self.parametrization, BLOCKS)
    stream = stack.start(x, False)
    for i in range(BLOCKS):
      stream = stack.block(stream, i, {'attention': Tanh(name=f'attention_{i}'),
                                       'mlp': Tanh(name=f'mlp_{i}')}, False)
    return stack.finish(stream, False)


class Reference:
  """The same parameters in float64: branches, norms and trained factors by name."""

  def __init__(self, params):
    self.p = {path: np.asarray(leaf, np.float64) for path, leaf in cases.flat(params).items()}
    self.used = set()

  def __getitem__(self, path):
    self.used.add(path)
    return self.p[path]

  def f(self, name, x):
    return np.tanh(x @ self[f'{name}/w'])

  def norm(self, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + EPS)
    return x * self[f'norm_{name}/scale'] + self[f'norm_{name}/bias']


def _unit(x):
  return x / np.sqrt((x ** 2).sum(-1, keepdims=True))


def _two(step):
  """A reference of branches that join one after another: step(r, x, block, name)."""
  def run(r, x):
    for i in range(BLOCKS):
      for kind in ('attention', 'mlp'):
        x = step(r, x, i, f'{kind}_{i}')
    return x
  return run


def _final(run):
  return lambda r, x: r.norm('final', run(r, x))


def _pre(r, x, i, n):
  return x + r.f(n, r.norm(n, x))


def _post(r, x, i, n):
  return r.norm(n, x + r.f(n, x))


def _sandwich(r, x, i, n):
  return x + r.norm(f'output_{n}', r.f(n, r.norm(f'input_{n}', x)))


def _parallel(r, x):
  for i in range(BLOCKS):
    a, m = f'attention_{i}', f'mlp_{i}'
    x = x + r.f(a, r.norm(a, x)) + r.f(m, r.norm(m, x))
  return r.norm('final', x)


def _resi_dual(r, x):
  d = x
  for i in range(BLOCKS):
    for n in (f'attention_{i}', f'mlp_{i}'):
      f = r.f(n, x)
      x, d = r.norm(n, x + f), d + f
  return x + r.norm('final', d)


def _ngpt(r, x):
  x = _unit(x)
  for i in range(BLOCKS):
    for n in (f'attention_{i}', f'mlp_{i}'):
      alpha = np.abs(r[f'residual_{n}/alpha'] * 0.05 * np.sqrt(CHANNELS))
      x = _unit(x + alpha * (_unit(r.f(n, x)) - x))
  return x


def _normformer(r, x):
  for i in range(BLOCKS):
    a, m = f'attention_{i}', f'mlp_{i}'
    x = _sandwich(r, x, i, a)
    x = r[f'residual_{m}/lambda'] * x + r.f(m, r.norm(m, x))  # no inner norm in a Tanh
  return r.norm('final', x)


def _nf(r, x):
  for i in range(BLOCKS):
    for j, n in enumerate((f'attention_{i}', f'mlp_{i}')):
      beta = np.sqrt(1 + 0.04 * (2 * i + j))
      x = x + 0.2 * r[f'residual_{n}/gain'] * r.f(n, x / beta)
  return x


CASES = {
  ('none', 'sp'): _two(lambda r, x, i, n: x + r.f(n, x)),
  ('pre:layer', 'sp'): _final(_two(_pre)),
  ('post:layer', 'sp'): _two(_post),
  ('pre+post:layer', 'sp'): _two(
    lambda r, x, i, n: r.norm(f'sum_{n}', x + r.f(n, r.norm(f'input_{n}', x)))),
  ('sandwich:layer', 'sp'): _two(_sandwich),
  ('peri:layer', 'sp'): _final(_two(_sandwich)),
  ('olmo2:layer', 'sp'): _final(_two(lambda r, x, i, n: x + r.norm(n, r.f(n, x)))),
  ('mix:layer', 'sp'): _final(_two(
    lambda r, x, i, n: _post(r, x, i, n) if i < 1 else _pre(r, x, i, n))),
  ('mix(0.5):layer', 'sp'): _final(_two(
    lambda r, x, i, n: _post(r, x, i, n) if i < 2 else _pre(r, x, i, n))),
  ('parallel:layer', 'sp'): _parallel,
  ('resi_dual:layer', 'sp'): _resi_dual,
  ('normformer:layer', 'normformer'): _normformer,
  ('ngpt', 'ngpt'): _ngpt,
  ('attention=post:layer, mlp=pre:layer, embed=layer', 'sp'): lambda r, x: _final(_two(
    lambda r, x, i, n: (_post if n[0] == 'a' else _pre)(r, x, i, n)))(r, r.norm('embed', x)),
  ('post:layer', 'deepnorm'): _two(
    lambda r, x, i, n: r.norm(n, (2 * BLOCKS) ** 0.25 * x + r.f(n, x))),
  ('post:layer', 'admin'): _two(
    lambda r, x, i, n: r.norm(n, r[f'residual_{n}/omega'] * x + r.f(n, x))),
  ('pre:layer', 'lns'): _final(_two(
    lambda r, x, i, n: x + r.f(n, r.norm(n, x) / np.sqrt(i + 1)))),
  ('pre:layer', 'layerscale'): _final(_two(
    lambda r, x, i, n: x + r[f'residual_{n}/lambda'] * r.f(n, r.norm(n, x)))),
  ('none', 'rezero'): _two(lambda r, x, i, n: x + r[f'residual_{i}/alpha'] * r.f(n, x)),
  ('none', 'skipinit'): _two(lambda r, x, i, n: x + r[f'residual_{n}/alpha'] * r.f(n, x)),
  ('none', 'fixup'): _two(lambda r, x, i, n: x + r[f'residual_{n}/scale'] * r.f(n, x)),
  ('none', 'nf'): _nf,
}


@pytest.mark.parametrize('norm, row', CASES)
def test_a_placement_is_its_equation(norm, row) -> None:
  model = Model(norm, row)
  x = np.random.default_rng(0).normal(size=(3, CHANNELS))
  variables = model.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda leaf: jnp.asarray(0.7 + 0.3 * rng.normal(size=leaf.shape),
                                                 jnp.float32), variables['params'])
  y = model.apply({**variables, 'params': params}, jnp.asarray(x, jnp.float32))
  reference = Reference(params)
  expected = CASES[norm, row](reference, x)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  assert reference.used == set(reference.p)  # no parameter that the equation has not
  if (norm, row) != ('pre:layer', 'sp'):
    other = Model('pre:layer', 'sp')
    shapes = other.init(jax.random.key(0), jnp.asarray(x, jnp.float32))['params']
    plain = jax.tree.map(lambda leaf: 0.7 * jnp.ones_like(leaf), shapes)
    wrong = other.apply({'params': {**plain, **{k: v for k, v in params.items() if k in plain}}},
                        jnp.asarray(x, jnp.float32))
    assert np.abs(wrong - expected).max() > 1e-3


def test_fixed_factors_are_swept_numbers() -> None:
  model = Model('post:layer', 'deepnorm')
  x = jnp.ones((1, CHANNELS))
  hp = cases.flat(model.init(jax.random.key(0), x)['hp'])
  assert set(hp) == {f'factors_{kind}_{i}/skip_scale' for kind in ('attention', 'mlp')
                     for i in range(BLOCKS)}
  assert all(leaf == np.float32((2 * BLOCKS) ** 0.25) for leaf in hp.values())
  assert 'hp' not in Model('post:layer', 'sp').init(jax.random.key(0), x)


# What a row starts from.


@pytest.mark.parametrize('row, norm, expected', [
  # std over fan_in^-1/2; square kernels: Xavier is fan_in^-1/2. Hidden is 4 wide: Xavier of
  # 'in' and 'out' is (2 / 5n)^1/2.
  ('deepnorm', 'post:layer', {'query': 1, 'key': 1, 'value': 16 ** -0.25, 'mixed': 16 ** -0.25,
                              'in': (2 / 5) ** 0.5 * 16 ** -0.25,
                              'out': (2 / 5) ** 0.5 * 16 ** -0.25}),
  ('subln', 'subln:layer', {'query': 1, 'value': np.log(4) ** 0.5, 'mixed': np.log(4) ** 0.5,
                            'in': (np.log(4) * 2 / 5) ** 0.5}),
  ('tfixup', 'none', {'query': 1, 'value': 0.67 * 2 ** -0.75, 'mixed': 0.67 * 2 ** -0.25,
                      'in': (2 / 5) ** 0.5 * 0.67 * 2 ** -0.25, 'embedding': 18 ** -0.25}),
  ('tfixup(part=decoder)', 'none', {'value': 18 ** -0.25 * 2 ** -0.5, 'mixed': 18 ** -0.25}),
  ('fixup', 'none', {'query': 4 ** -0.5, 'value': 4 ** -0.5, 'mixed': 0, 'in': 4 ** -0.5,
                     'out': 0, 'head': 0}),
  ('gpt2', 'pre:layer', {'query': 1, 'value': 1, 'mixed': 0.5, 'in': 1}),
  ('ds_init', 'post:layer', {'query': 2 ** -0.5, 'in': 2 ** -0.5, 'mixed': 2 ** -0.5}),
])
def test_the_start_of_every_labelled_kernel(row, norm, expected) -> None:
  """Measured in the second block of two."""
  dim = 64
  model = models.build('gpt', dim=dim, vocab=200, length=8, depth=2, heads=2, norm=norm,
                       parametrization=row)
  # Not compiled as a whole: the rows share the compiled operations.
  params = cases.flat(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32),
                                 train=False)['params'])
  query, key, value = np.split(params['blocks/attention_1/qkv/kernel'], 3, axis=1)
  kernels = {'query': query, 'key': key, 'value': value,
             'mixed': params['blocks/attention_1/out/kernel'],
             'in': params['blocks/feed_forward_1/in/kernel'],
             'out': params['blocks/feed_forward_1/out/kernel'],
             'embedding': params['embedding/table'], 'head': params['head/kernel']}
  for name, factor in expected.items():
    unit = dim ** -0.5 if not (name == 'out' and 'deepnorm' not in row) else (4 * dim) ** -0.5
    np.testing.assert_allclose(kernels[name].std(), factor * unit,
                               rtol=5 / np.sqrt(2 * kernels[name].size))


def test_the_profiling_pass_of_admin() -> None:
  model = Model('post:layer', 'admin')
  x = np.random.default_rng(0).normal(size=(3, CHANNELS))
  variables = model.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
  found = init_omegas(lambda v: model.apply(v, jnp.asarray(x, jnp.float32)), variables)['params']
  r, square = Reference(variables['params']), 1.0
  for i in range(BLOCKS):
    for n in (f'attention_{i}', f'mlp_{i}'):
      np.testing.assert_allclose(found[f'residual_{n}']['omega'], np.full(CHANNELS, square ** 0.5),
                                 rtol=1e-4)
      f = r.f(n, x)
      x, square = r.norm(n, square ** 0.5 * x + f), square + f.var(-1).mean()
  assert square > 2
  np.testing.assert_array_equal(found['mlp_0']['w'], variables['params']['mlp_0']['w'])
  plain = Model('post:layer', 'sp')
  with pytest.raises(UserError, match='admin'):
    init_omegas(lambda v: plain.apply(v, jnp.ones((1, CHANNELS))),
                plain.init(jax.random.key(0), jnp.ones((1, CHANNELS))))


# What is refused.


@pytest.mark.parametrize('norm, residual, parts', [
  ('pre:batch', 'deepnorm', ('N(alpha x + f(x))', 'must be post', 'layer or rms')),
  ('post:batch', 'deepnorm', ('a norm of each token', 'layer or rms')),
  ('pre:layer', 'fixup', ('replaces normalization', 'must be none')),
  ('attention=none, mlp=none, final=layer', 'fixup', ('replaces normalization', 'no norm')),
  ('post:layer', 'lns', ('before a branch', 'pre or parallel')),
  ('post:layer', 'layerscale', ('takes the factor out again',)),
  ('pre:layer', 'lns+gpt2', ('one row owns', 'cancels what lns does')),
  ('pre:layer', 'deepnorm+lns', ('one row owns',)),
  ('ngpt', 'sp', ("needs residual='ngpt'",)),
  ('pre:layer', 'layerscale(init=-1)', ('number >= 0',)),
  ('pre:layer', 'layerscale(unit=1)', ("nearest: 'init'",)),
  ('none', 'tfixup(part=both)', ('encoder or decoder',)),
  ('pre:layer', 'deepnrom(1)', ("nearest: 'deepnorm'",)),
  ('pre:layer', 'sp(1)', ('no settings',)),
  ('mix(2):layer', 'sp', ('[0, 1]',)),
  ('attention=parallel:layer, mlp=pre:layer', 'sp', ('whole block',)),
  ('attention=pre:layer', 'sp', ('say mlp=',)),
  ('attention=pre:layer, mpl=pre:layer', 'sp', ("nearest: 'mlp'",)),
  ('attention=pre:layer, mlp=none, mlp=none', 'sp', ('given twice',)),
  ('attention=pre:layer, mlp=pre:layer, qk=l3', 'sp', ('unknown',)),
  ('perri:layer', 'sp', ("nearest: 'peri'",)),
])
def test_what_makes_no_sense_is_refused(norm, residual, parts) -> None:
  with pytest.raises(UserError) as info:
    block(norm, residual)
  assert '\n' not in str(info.value)
  assert all(part in str(info.value) for part in parts)


def test_a_placement_reads_back() -> None:
  for text in ('peri:rms', 'mix(0.5):layer', 'ngpt', 'attention=pre+post:layer, mlp=pre:layer',
               'attention=none, mlp=pre:rms, qk=l2, embed=rms, final=none'):
    found = block(text, 'ngpt' if text == 'ngpt' else 'sp')
    assert block(found.spec, found.residual) == found
  assert get_parametrization('layerscale(0.1)').name == 'layerscale(init=0.1)'
  assert get_parametrization('layerscale(init=1e-5)').name == 'layerscale'


@pytest.mark.parametrize('text, expected', [
  ('none', 'nn'), ('pre:layer', 'ln'), ('post:layer', 'nl'), ('dual:layer', 'll')])
def test_stem_norms(text, expected) -> None:
  assert ''.join(norm.name[0] for norm in stem_norms(text)) == expected
  with pytest.raises(UserError, match='dual'):
    stem_norms('duel:layer')


# The sphere.


def test_the_projection_of_ngpt() -> None:
  rng = np.random.default_rng(0)
  params = {'in': {'kernel': rng.normal(size=(4, 6)), 'bias': np.ones(6)},
            'out': {'kernel': rng.normal(size=(6, 4))}, 'e': {'table': rng.normal(size=(9, 4))}}
  params = jax.tree.map(jnp.asarray, params)
  projected = project(params)
  np.testing.assert_allclose(np.linalg.norm(projected['in']['kernel'], axis=0), 1, rtol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(projected['out']['kernel'], axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(projected['e']['table'], axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(projected['in']['bias'], params['in']['bias'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), projected,
               project(projected))


# The variance of the stream.


class OneBlock(nn.Module):
  """The first of 48 blocks of a two-matrix branch without biases, on a stream of 256 features."""

  norm: str
  residual: str
  activation: str
  he: bool

  @nn.compact
  def __call__(self, x):
    stack = Stack(self.norm, self.residual, 48, per_block=1)
    branch = TwoMatrices(self.activation, self.he, name='mlp_0')
    return stack.block(stack.start(x, False), 0, {'mlp': branch}, False).x


class TwoMatrices(nn.Module):
  """W2 phi(W1 x); W2 by He where `he`, else N(0, 1/fan_in)."""

  activation: str
  he: bool

  @nn.compact
  def __call__(self, x, train):
    h = Linear(256, 'hidden', use_bias=False, name='in')(x)
    h = {'relu': jax.nn.relu, 'gelu': lambda h: jax.nn.gelu(h, approximate=False)}[
      self.activation](h)
    return Linear(256, 'hidden', self.activation if self.he else None, False, use_bias=False,
                  name='out')(h)


def _measured(norm: str, residual: str, activation: str, he: bool) -> tuple[float, float]:
  """Mean over 8 seeds and 64 inputs: the last stream's variance, the input's of the last norm."""
  model, row = OneBlock(norm, residual, activation, he), get_parametrization(residual)
  # One program for all blocks: what differs between them is a swept number.
  factors = [row.factors(Branch(i + 1, 48, per_block=1)) for i in range(48)]
  hp = {name: jnp.asarray([f[name] for f in factors], jnp.float32) for name in factors[0]}
  seen = []

  def watch(run, args, kwargs, context):
    if type(context.module).__name__ == 'LayerNorm':
      seen.append(args[0])
    return run(*args, **kwargs)

  def join(x, block):
    key, hp = block
    y, _ = model.apply({'hp': {'factors_mlp_0': hp}}, x, rngs={'params': key},
                       mutable=['params', 'hp'])
    return y, jnp.var(seen[-1], axis=-1).mean()

  def one(key):
    x = jax.random.normal(key, (64, 256))
    keys = jax.random.split(jax.random.fold_in(key, 1), 48)
    y, entering = jax.lax.scan(join, x, (keys, hp))
    return jnp.var(y, axis=-1).mean(), entering[-1]

  with nn.intercept_methods(watch):
    last, entering = jax.jit(lambda keys: jax.lax.map(one, keys))(
      jax.random.split(jax.random.key(0), 8))
  return float(last.mean()), float(entering.mean())


@pytest.mark.parametrize('activation, he, expected', [
  ('relu', True, {'pre': 49, 'peri': 49, 'lns': 5.459, 'post': 2}),
  ('gelu', False, {'pre': 21.41, 'peri': 49, 'lns': 2.490, 'post': 1.4252}),
])
def test_predicted_and_measured_variance_of_the_stream(activation, he, expected) -> None:
  predicted, measured = {}, {}
  for name in expected:
    norm = f'{"pre" if name == "lns" else name}:layer(eps=0.0)'
    residual = 'lns' if name == 'lns' else 'sp'
    growth = residual_variance(norm, residual, activation, 48, (1, 2 if he else 1))
    last, entering = _measured(norm, residual, activation, he)
    if name == 'post':
      np.testing.assert_allclose(last, 1, rtol=1e-5)
    predicted[name] = growth.sums[-1]
    measured[name] = entering if name == 'post' else last
  for name, value in expected.items():
    np.testing.assert_allclose(predicted[name], value, rtol=1e-3)
    assert abs(measured[name] / predicted[name] - 1) < 0.1, (name, measured[name])
  if activation == 'gelu':
    # Unit variance of every branch, and a homogeneous activation, predict something else.
    homogeneous = 1 + sum(0.42522 / l for l in range(1, 49))
    np.testing.assert_allclose(homogeneous, 2.896, atol=1e-3)
    for name, wrong in (('pre', 49), ('lns', 5.459), ('lns', homogeneous)):
      assert abs(measured[name] / wrong - 1) > 0.1


@pytest.mark.parametrize('norm, row', [('ngpt', 'ngpt'), ('resi_dual:layer', 'sp')])
def test_no_variance_is_predicted_where_the_formula_does_not_hold(norm, row) -> None:
  with pytest.raises(UserError, match='no variance is predicted'):
    residual_variance(norm, row, 'relu', 2)
