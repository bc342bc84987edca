"""The scan of graphs for normalizations: every way to write one is found, and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from model_lib import models
from model_lib.transforms import find_normalizations
from tests.model_lib import model_cases as cases

pytestmark = pytest.mark.usefixtures('unoptimized')

X = jnp.ones((2, 3))
SQUARE = lambda x: jnp.mean(x * x, -1, keepdims=True)


@jax.custom_jvp
def _hidden(x):
  return x / jnp.sqrt(SQUARE(x))


_hidden.defjvp(lambda primals, tangents: (_hidden(*primals), tangents[0]))

NORMS = {
  'rsqrt': lambda x: x * jax.lax.rsqrt(SQUARE(x)),
  'sqrt': lambda x: x / jnp.sqrt(SQUARE(x) + 1e-5),
  'power': lambda x: x * SQUARE(x) ** -0.5,
  'integer power': lambda x: x * jax.lax.integer_pow(jnp.sum(jnp.abs(x), -1, keepdims=True), -1),
  'exp of log': lambda x: x * jnp.exp(-0.5 * jnp.log(SQUARE(x))),
  'maximum': lambda x: x / jnp.max(jnp.abs(x), -1, keepdims=True),
  'matmul': lambda x: x * jax.lax.rsqrt((x * x) @ jnp.full((3, 3), 1 / 3)),
  'jit': jax.jit(lambda x: x / jnp.sqrt(SQUARE(x))),
  'remat': jax.checkpoint(lambda x: x / jnp.sqrt(SQUARE(x))),
  'scan': lambda x: jax.lax.scan(lambda c, _: (c * jax.lax.rsqrt(SQUARE(c)), None), x, None, 2)[0],
  'scan, from the second step': lambda x: jax.lax.scan(
    lambda c, v: (v, jax.lax.rsqrt(c)), jnp.ones((3,)), x)[1],
  'scan, by what is scanned over': lambda x: jax.lax.scan(
    lambda c, v: (c, v / SQUARE(v)), jnp.ones(3), x)[1],
  'after a scan': lambda x: (lambda c: c / SQUARE(c))(
    jax.lax.scan(lambda c, v: (c + v, None), jnp.ones(3), x)[0]),
  'while': lambda x: jax.lax.while_loop(
    lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] / SQUARE(c[1])), (0, x))[1],
  'cond': lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x / SQUARE(x), x),
  'map': lambda x: jax.lax.map(lambda r: r / jnp.linalg.norm(r), x),
  'vmap': jax.vmap(lambda r: r / jnp.std(r)),
  'custom derivative': _hidden,
  'a sum of other exponentials': lambda x: jnp.exp(x) / jnp.sum(jnp.exp(2 * x), -1, keepdims=True),
  'the sum itself': lambda x: x / jnp.sum(x, -1, keepdims=True),
  'bfloat16': lambda x: jax.lax.rsqrt(x.astype(jnp.bfloat16)),
  'callback': lambda x: jax.pure_callback(lambda a: a, X, x),
}

OTHERS = {
  'softmax': lambda x: jax.nn.softmax(x, axis=-1),
  'softmax in a scan': lambda x: jax.lax.scan(
    lambda c, _: (jax.nn.softmax(c, axis=0), None), x, None, 2)[0],
  'softmax in bfloat16': lambda x: jax.nn.softmax(x.astype(jnp.bfloat16), axis=-1),
  'a constant': lambda x: x / jnp.sqrt(3.0) + jax.lax.rsqrt(jnp.arange(1.0, 4.0)).reshape(1, -1),
  'a constant through jit': lambda x: jax.jit(lambda x, d: x / d)(x, jnp.sqrt(jnp.ones((1, 3)))),
  'constants of a scan': lambda x: jax.lax.scan(
    lambda c, w: (c / w, jnp.sqrt(w)), x, jnp.arange(1.0, 5.0))[0],
  'a constant carried beside the data': lambda x: x / jnp.sqrt(jax.lax.scan(
    lambda c, w: ((c[0] + w, c[1] + w), c[1]), (x, jnp.ones(())), jnp.arange(1.0, 5.0))[1][0]),
  'a mean': lambda x: x - jnp.mean(x, -1, keepdims=True),
  'activations': lambda x: (jax.nn.gelu(x) + jax.nn.gelu(x, approximate=False) + jax.nn.silu(x)
                            + jax.nn.softplus(x) + jnp.tanh(x) + x ** 3),
  'integers': lambda x: x[jnp.argmax(x, -1) // 2],
}


@pytest.mark.parametrize('name', NORMS)
def test_found(name) -> None:
  assert find_normalizations(NORMS[name], X)


@pytest.mark.parametrize('name', OTHERS)
def test_not_found(name) -> None:
  assert find_normalizations(OTHERS[name], X) == ()


@pytest.mark.parametrize('norm, count', [
  ('pre:layer', 3), ('pre:rms', 3), ('post:layer', 2), ('pre:layer(eps=1e12)', 3),
  ('pre:batch', 3), ('pre:dyt', 0), ('none', 0)])
def test_models(norm, count) -> None:
  """One finding per norm, with its place; batch norm divides by a variable."""
  model, x = models.build('gpt', norm=norm, **cases.SIZES['gpt']), cases.inputs('gpt')
  variables = cases.numbers(model, x)
  found = find_normalizations(lambda v, x: model.apply(v, x, train=False), variables, x)
  assert len(found) == count
  assert all(f.primitive == 'rsqrt' and 'norm_' in f.scope for f in found)
