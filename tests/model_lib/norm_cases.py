"""Specs to test each normalization at, and its variables, drawn; shared by the tests of norms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.normalization import get_norm, names

SHAPE = (4, 3, 2, 8)

# Beside the plain name: options that change the program. Where the defaults do not fit 8 channels
# they are replaced.
_MORE = {
  'rms': ['rms', 'rms(gain=one_plus)'], 'prms': ['prms(p=0.5)'],
  'lrn': ['lrn(alpha=0.3)', 'lrn(n=4, alpha=0.3, convention=torch)'],
  'divisive': ['divisive(n=3)'], 'frozen_layer': ['frozen_layer(2.0)'], 'group': ['group(4)'],
  'instance': ['instance', 'instance(affine=false)'],
  'frn': ['frn', 'frn(learned_eps=true)'],
  'batch': ['batch', 'batch(running=biased, stat_mode=ghost(2))', 'batch(stat_mode=ghost(2))',
            'batch(stat_mode=frozen)'],
  'renorm': ['renorm(ramp=0, rmax=1.2, dmax=0.3)', 'renorm(ramp=20)'],
  'batch_channel': ['batch_channel(4)'], 'whiten': ['whiten', 'whiten(groups=2, iterations=3)'],
  'unmix': ['unmix(components=3)'],
  'pointwise': [f'pointwise(f={f})' for f in ('isru', 'arctan', 'expsign', 'satursin',
                                              'smoothsign', 'linear_clip')],
  'soft_cap': ['soft_cap(2.0)'],
  **{f'evonorm_{v}': [f'evonorm_{v}(groups=4)'] for v in ('s0', 's1', 's2')},
}
SPECS = tuple(spec for name in names() for spec in _MORE.get(name, [name]))
ONE_EACH = tuple(_MORE.get(name, [name])[0] for name in names())


def inputs(shape=SHAPE, seed: int = 0, dtype=np.float64) -> np.ndarray:
  """Numbers whose examples, positions and channels differ in mean and spread."""
  rng = np.random.default_rng(seed)
  spread = rng.uniform(0.5, 1.5, (shape[0], *(1,) * (len(shape) - 2), shape[-1]))
  x = rng.normal(size=shape) * spread
  return (x + 0.7 + 0.3 * rng.normal(size=shape[-1:])).astype(dtype)


def condition(spec: str, x: np.ndarray, seed: int = 1) -> np.ndarray | None:
  """What the norm takes besides x, or None."""
  norm = get_norm(spec)
  if not norm.condition:
    return None
  rng = np.random.default_rng(seed)
  shape = {'adain': (len(x), 5, x.shape[-1]), 'spade': (*x.shape[:-1], 3)}.get(
    norm.name, (len(x), 6))
  return (1.5 * rng.normal(size=shape) + 0.5).astype(x.dtype)


def call(spec: str, variables, x, train: bool, c=None):
  """(result, state after the call); of adaln_zero the first result."""
  more = () if c is None else (jnp.asarray(c),)
  y, state = get_norm(spec).layer().apply(variables, jnp.asarray(x), train, *more,
                                          mutable=['batch_stats'])
  return (y[0] if isinstance(y, tuple) else y), state.get('batch_stats', {})


def compiled(function):
  """jit without optimizing: compiling is most of these tests' time, and optimizing most of that."""
  return jax.jit(function, compiler_options=_quick_options())


@functools.cache
def _quick_options() -> dict:
  """No optimization, and not the emitter of fusions that takes more than half of the rest."""
  level = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  quick = {**level, 'xla_cpu_use_fusion_emitters': False}
  try:
    jax.jit(lambda: 0, compiler_options=quick)()
  except jax.errors.JaxRuntimeError as error:
    if 'No such compile option' not in str(error):
      raise
    return level  # an XLA that has but one emitter
  return quick


@functools.cache
def starts(specs: tuple[str, ...] = SPECS, train: bool = False) -> dict:
  """{spec: the variables as its layer makes them}, in one program; NumPy, float32."""
  x = inputs(dtype=np.float32)
  conditions = {spec: condition(spec, x) for spec in specs}

  def init(x, conditions):
    found = {}
    for spec, c in conditions.items():
      more = () if c is None else (c,)
      found[spec] = get_norm(spec).layer().init(jax.random.key(0), x, train, *more)
    return found

  return jax.tree.map(np.asarray, compiled(init)(x, conditions))


def drawn(spec: str, dtype=np.float64, seed: int = 2) -> tuple[dict, dict]:
  """Parameters and state away from their start, NumPy."""
  rng = np.random.default_rng(seed)
  variables = starts()[spec]
  params = {k: (v + rng.uniform(-0.4, 0.4, np.shape(v))).astype(dtype)
            for k, v in variables.get('params', {}).items()}
  state = {}
  for k, v in variables.get('batch_stats', {}).items():
    noise = rng.normal(size=np.shape(v)) * 0.2 if 'mean' in k or k == 'whitener' else 0
    state[k] = (v * rng.uniform(0.8, 1.3, np.shape(v)) + noise).astype(dtype)
  if 'steps' in state:
    state['steps'] = np.asarray(7, dtype)
  return params, state
