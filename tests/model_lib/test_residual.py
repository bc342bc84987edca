"""How branches join the stream: each placement and rule against its equation, written out."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.analysis.residual_growth import attention_variance, overlap, residual_variance
from model_lib.analysis.residual_measurement import measure_attention, measure_variance
from model_lib.errors import UserError
from model_lib.models.admin import init_omegas
from model_lib.models.residual import Stack
from model_lib.normalization import block
from model_lib.normalization.placement import stem_norms
from model_lib.parametrization import Branch, get_parametrization
from tests.model_lib import model_cases as cases
from tests.model_lib import norm_cases

pytestmark = pytest.mark.usefixtures('unoptimized')

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


DIM = 64
STARTS = {
  # std over fan_in^-1/2; square kernels: Xavier is fan_in^-1/2. Hidden is 4 wide: Xavier of
  # 'in' and 'out' is (2 / 5n)^1/2.
  ('deepnorm', 'post:layer'): {'query': 1, 'key': 1, 'value': 16 ** -0.25, 'mixed': 16 ** -0.25,
                               'in': (2 / 5) ** 0.5 * 16 ** -0.25,
                               'out': (2 / 5) ** 0.5 * 16 ** -0.25},
  ('subln', 'subln:layer'): {'query': 1, 'value': np.log(4) ** 0.5, 'mixed': np.log(4) ** 0.5,
                             'in': (np.log(4) * 2 / 5) ** 0.5},
  ('tfixup', 'none'): {'query': 1, 'value': 0.67 * 2 ** -0.75, 'mixed': 0.67 * 2 ** -0.25,
                       'in': (2 / 5) ** 0.5 * 0.67 * 2 ** -0.25, 'embedding': 18 ** -0.25},
  ('tfixup(part=decoder)', 'none'): {'value': 18 ** -0.25 * 2 ** -0.5, 'mixed': 18 ** -0.25},
  ('fixup', 'none'): {'query': 4 ** -0.5, 'value': 4 ** -0.5, 'mixed': 0, 'in': 4 ** -0.5,
                      'out': 0, 'head': 0},
  ('gpt2', 'pre:layer'): {'query': 1, 'value': 1, 'mixed': 0.5, 'in': 1},
  ('ds_init', 'post:layer'): {'query': 2 ** -0.5, 'in': 2 ** -0.5, 'mixed': 2 ** -0.5},
}


@pytest.fixture(scope='module')
def kernels():
  """{(row, norm): {label: its kernel}} of the second block of two, in one program."""
  def start(row, norm):
    model = models.build('gpt', dim=DIM, vocab=200, length=8, depth=2, heads=2, norm=norm,
                         parametrization=row)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), train=False)['params']
    attention, mlp = (params['blocks'][f'{name}_1'] for name in ('attention', 'feed_forward'))
    query, key, value = jnp.split(attention['qkv']['kernel'], 3, axis=1)
    found = {'query': query, 'key': key, 'value': value, 'mixed': attention['out']['kernel'],
             'in': mlp['in']['kernel'], 'out': mlp['out']['kernel'],
             'embedding': params['embedding']['table'], 'head': params['head']['kernel']}
    return {label: found[label] for label in STARTS[row, norm]}

  return norm_cases.compiled(lambda: {case: start(*case) for case in STARTS})()


@pytest.mark.parametrize('row, norm', STARTS)
def test_the_start_of_every_labelled_kernel(row, norm, kernels) -> None:
  for name, factor in STARTS[row, norm].items():
    kernel = np.asarray(kernels[row, norm][name])
    unit = DIM ** -0.5 if not (name == 'out' and 'deepnorm' not in row) else (4 * DIM) ** -0.5
    np.testing.assert_allclose(kernel.std(), factor * unit, rtol=5 / np.sqrt(2 * kernel.size))


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


# The variance of the stream.


BLOCKS_OF_VARIANCE, WIDTH, INPUTS, SEEDS = 48, 256, 64, 8
ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': lambda h: jax.nn.gelu(h, approximate=False)}
# (a) ReLU, W2 with variance 2 / fan_in; (b) GELU, both matrices 1 / fan_in.
GAINS = {'relu': 2.0, 'gelu': 1.0}
VARIANCES = {
  'relu': {'pre': 49, 'peri': 49, 'lns': 5.459, 'post': 2},
  'gelu': {'pre': 21.41, 'peri': 49, 'lns': 2.490, 'post': 1.4252},
}


class TwoMatrices(nn.Module):
  """W2 phi(W1 x) of matrices that are handed to it."""

  activation: str
  matrices: tuple[jax.Array, jax.Array]

  def __call__(self, x, train):
    w1, w2 = self.matrices
    return ACTIVATIONS[self.activation](x @ w1) @ w2


class OneBlock(nn.Module):
  """The first of 48 blocks of one branch."""

  norm: str
  residual: str
  activation: str

  @nn.compact
  def __call__(self, x, matrices):
    stack = Stack(self.norm, self.residual, BLOCKS_OF_VARIANCE, per_block=1)
    branch = TwoMatrices(self.activation, matrices, name='mlp_0')
    return stack.block(stack.start(x, False), 0, {'mlp': branch}, False).x, x + branch(x, False)


def _stack(name: str) -> tuple[str, str]:
  """Placement and row."""
  return (f'{"pre" if name == "lns" else name}:layer(eps=0.0)', 'lns' if name == 'lns' else 'sp')


@pytest.fixture(scope='module')
def measured():
  """{activation: {stack: variance of the last stream, or with post of the last sum}}.

  One program, and the same draws for all stacks: drawing takes the time.
  """
  def factors(residual):
    row = get_parametrization(residual)
    found = [row.factors(Branch(i + 1, BLOCKS_OF_VARIANCE, per_block=1))
             for i in range(BLOCKS_OF_VARIANCE)]
    return {name: jnp.asarray([f[name] for f in found], jnp.float32) for name in found[0]}

  stacks = [(activation, name) for activation in VARIANCES for name in VARIANCES[activation]]
  hp = {name: factors(_stack(name)[1]) for _, name in stacks}

  def join(streams, block):
    key, hp = block
    drawn = jax.random.normal(key, (2, WIDTH, WIDTH)) * WIDTH ** -0.5
    outputs = {}
    for activation, name in stacks:
      model = OneBlock(*_stack(name), activation)
      outputs[activation, name], _ = model.apply(
        {'hp': {'factors_mlp_0': hp[name]}}, streams[activation, name],
        (drawn[0], drawn[1] * GAINS[activation] ** 0.5), rngs={'params': key}, mutable=['params'])
    moments = {stack: [jnp.var(y, axis=-1).mean() for y in pair] for stack, pair in outputs.items()}
    return {stack: y for stack, (y, _) in outputs.items()}, moments

  def one(key):
    x = jax.random.normal(key, (INPUTS, WIDTH))
    keys = jax.random.split(jax.random.fold_in(key, 1), BLOCKS_OF_VARIANCE)
    moments = jax.lax.scan(join, {stack: x for stack in stacks}, (keys, hp))[1]
    return jax.tree.map(lambda leaf: leaf[-1], moments)

  found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), SEEDS))
  last = {stack: [float(part.mean()) for part in pair] for stack, pair in found.items()}
  for activation in VARIANCES:
    np.testing.assert_allclose(last[activation, 'post'][0], 1, rtol=1e-5)
  return {activation: {name: last[activation, name][name == 'post']
                       for name in VARIANCES[activation]} for activation in VARIANCES}


@pytest.mark.parametrize('activation', VARIANCES)
def test_predicted_and_measured_variance_of_the_stream(activation, measured) -> None:
  found = measured[activation]
  for name, value in VARIANCES[activation].items():
    predicted = residual_variance(*_stack(name), activation, 48, (1, GAINS[activation])).sums[-1]
    np.testing.assert_allclose(predicted, value, rtol=1e-3)
    assert abs(found[name] / predicted - 1) < 0.1, (name, found[name])
  if activation == 'gelu':
    # Unit variance of every branch, and a homogeneous activation, predict something else.
    homogeneous = 1 + sum(0.42522 / l for l in range(1, 49))
    np.testing.assert_allclose(homogeneous, 2.896, atol=1e-3)
    for name, wrong in (('pre', 49), ('lns', 5.459), ('lns', homogeneous)):
      assert abs(found[name] / wrong - 1) > 0.1


def test_what_the_library_measures_is_predicted() -> None:
  """Its own kernels and factors, in a smaller stack: every block; another gain is noticed."""
  stack = 'pre:layer(eps=0.0)', 'lns', 'relu'
  found, = measure_variance([stack[:2]], 'relu', gained=True, blocks=8, width=128, seeds=4)
  predicted = np.array(residual_variance(*stack, 8, (1, 2)).sums)
  np.testing.assert_allclose(found.stream, predicted, rtol=0.1)
  np.testing.assert_allclose(found.normed, [1, *predicted[:-1]], rtol=0.1)
  assert found.correlation is None
  assert abs(found.stream[-1] / residual_variance(*stack, 8).sums[-1] - 1) > 0.2


@pytest.mark.parametrize('stack, message', [
    (('post:layer', 'deepnorm'), "no variance is measured for 'deepnorm'"),
    (('pre:rms', 'sp'), "measured for 'pre:rms': not every branch"), (('none', 'sp'), "'none'")])
def test_what_the_library_does_not_measure_is_refused(stack, message) -> None:
  with pytest.raises(UserError, match=message):
    measure_variance([stack], 'relu', gained=True, blocks=1, width=8, seeds=1)


@pytest.mark.parametrize('norm, row', [('ngpt', 'ngpt'), ('resi_dual:layer', 'sp')])
def test_no_variance_is_predicted_where_the_formula_does_not_hold(norm, row) -> None:
  with pytest.raises(UserError, match='no variance is predicted'):
    residual_variance(norm, row, 'relu', 2)


# Attention.


def test_the_overlap_of_attention_weights() -> None:
  """Against drawn logits: softmax weights of two queries whose logits have a correlation."""
  rng = np.random.default_rng(0)
  for tokens, spread, r in ((64, 0.5, 1.0), (64, 0.5, 0.5), (32, 0.2, 1.0), (16, 1.0, 0.0)):
    first, other = rng.normal(size=(2, 20000, tokens))
    second = r * first + np.sqrt(1 - r * r) * other
    a, b = (w / w.sum(1, keepdims=True) for w in np.exp(spread ** 0.5 * np.stack([first, second])))
    measured = (a * b).sum(1).mean()
    np.testing.assert_allclose(overlap(spread, r, tokens), measured, rtol=0.02)
    if r:
      assert abs(1 / tokens / measured - 1) > 0.05  # weights that are uniform
  assert overlap(0.7, 0.3, 1) == 1


def test_attention_measured_beside_predicted() -> None:
  """No bound is promised; here one that a prediction without the tokens misses."""
  stacks = [('post:layer(eps=0.0)', 'sp'), ('pre:layer(eps=0.0)', 'sp')]
  measured = measure_attention(stacks, 'relu', gained=True, blocks=4, width=128, heads=2,
                               tokens=16, inputs=8, seeds=4)
  for stack, found, sums in zip(stacks, measured, (measured[0].normed, measured[1].stream)):
    predicted = attention_variance(*stack, 'relu', 4, 16, 64, (1, 2))
    np.testing.assert_allclose(sums, predicted.sums, rtol=0.1)
    np.testing.assert_allclose(found.correlation, predicted.correlation, atol=0.05)
  stack = *stacks[1], 'relu'
  tokenless = residual_variance(*stack, 4, (1, 2), per_block=2).sums
  assert abs(measured[1].stream[-1] / tokenless[-1] - 1) > 0.2
  # Tokens that are the same stay so, and attention is two more matrices for them.
  alike = attention_variance(*stack, 4, 16, 64, (1, 2), start=(1.0, 1.0))
  np.testing.assert_allclose(alike.correlation, 1)
  np.testing.assert_allclose(alike.sums, tokenless)
  with pytest.raises(UserError, match='queries and keys are normalized'):
    attention_variance('attention=pre:layer, mlp=pre:layer, qk=rms', 'sp', 'relu', 2, 16, 64)
