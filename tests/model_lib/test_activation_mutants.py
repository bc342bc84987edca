"""The test of the tests: every planted error that shows at all is caught by the value test.

An entry with weights of its own is the network behind it, and the test is its whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
import inspect

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib.activations import get_activation, names
from model_lib.activations.host import evaluate
from model_lib.models.activation_modules import MODULES
from tests.model_lib import test_activation_modules as networks
from tests.model_lib import test_activation_tensors as tensors
from tests.model_lib.activation_equivalents import EQUIVALENT
from tests.model_lib.activation_mutants import Mutant, mutants
from tests.model_lib.activation_references import (
    POINTS, REFERENCES, reference_values, relative_error)
from tests.model_lib.test_activation_values import _drawn, _inside, _settings

_ROWS = tuple(name for name in names() if get_activation(name).kind != 'module')
_VISIBLE = 1e-4  # of 1 + |f|
# A quarter of a step off all round numbers, so that a moved kink lies between two points.
_GRID = np.concatenate([np.linspace(-8, 8, 1601) + 0.0025, [-1e4, -88, -20, -10, 10, 20, 88, 1e4]])
_FINE = np.linspace(-8.03, 8.05, 135)
_GATES = {'glu': 'sigmoid', 'bilinear': 'identity', 'reglu': 'relu', 'geglu': 'gelu',
          'swiglu': 'silu', 'seglu': 'selu', 'goglu': 'golu', 'relu_squared_glu': 'relu_squared',
          'xiglu': 'xielu', 'gtu': 'sigmoid'}
# Besides the drawn settings, which may lack a branch or an order.
_SPECS = {'rrelu': ('rrelu', 'rrelu(low=0.2, high=0.6)'),
          'soft_exponential': ('soft_exponential(a=-0.2)',)}
# Where an implementation changes its form: as good as a kink when that place is moved.
_SWITCHES = {
    'soft_clipping': lambda **_: (0.5,),
    'soft_exponential': lambda a: (0.1 / a, -0.1 / a, 0.1 / a - a, -0.1 / a - a) if a else (),
}
# Inference forms.
_WITHOUT_DRAWS = {
    'rrelu': lambda x, low=1 / 8, high=1 / 3: np.where(x < 0, (low + high) / 2 * x, x),
    'probact': lambda x, sigma=0.0: np.maximum(x, 0),
    'eelu': lambda x, alpha=0.25, beta=1.0, eps=1.0: np.where(
        x < 0, max(alpha, 0) * np.expm1(max(beta, 0) * np.minimum(x, 0)), x),
    'rational_d': lambda x, noise=0.1, **settings: reference_values('rational_b', x, settings),
}


@dataclasses.dataclass(frozen=True)
class _Look:
  """One way to call an entry: f(*inputs, **settings), and what it must give.

  `fine` is where a mutant is compared with the original, `single` where the float32 value test
  looks, with the tolerance that it allows.
  """

  settings: dict
  fine: tuple[np.ndarray, ...]
  single: tuple[np.ndarray, ...]
  expected: np.ndarray
  atol: np.ndarray | float

  def call(self, function: Callable, inputs: tuple[np.ndarray, ...], x64: bool) -> np.ndarray:
    return evaluate(lambda *xs: function(*xs, **self.settings), *inputs, x64=x64)

  def error(self, function: Callable) -> float:
    """In units of the tolerance."""
    return relative_error(self.call(function, self.single, False), self.expected, 2e-5, self.atol)

  def distance(self, mutant: Callable, original: Callable) -> float:
    """The largest |mutant - f| / (1 + |f|)."""
    wrong, right = (self.call(f, self.fine, True) for f in (mutant, original))
    if wrong.shape != right.shape:
      return np.inf
    with np.errstate(invalid='ignore'):
      distance = np.where(wrong == right, 0, np.abs(wrong - right) / (1 + np.abs(right)))
    both = np.isnan(wrong) & np.isnan(right)
    return np.where(both, 0, np.where(np.isnan(distance), np.inf, distance)).max()


def _looks(name: str) -> Iterator[_Look]:
  """At the first values and, where there are settings, at two drawn ones."""
  activation = get_activation(name)
  if activation.kind in ('pointwise', 'gated', 'stochastic'):
    drawn = () if name == 'rrelu' else (name, _drawn(name, 1), _drawn(name, 2))
    specs = dict.fromkeys((*drawn, *_SPECS.get(name, ())))
    yield from (_on_points(name, spec) for spec in specs)
    return
  cases = {'ash': lambda x: tensors._ash(x, 0.0), **tensors.CASES}
  specs = [spec for spec in cases if spec.partition('(')[0] == name]
  single = tensors._X.astype(np.float32)
  for spec in specs:
    # At the first values the function's own are taken: an error may be planted in them.
    yield _Look({} if spec == name else _settings(spec), (tensors._X,), (single,),
                cases[spec](single.astype(np.float64)), 2e-6)


def _on_points(name: str, spec: str) -> _Look:
  activation, reference = get_activation(spec), _GATES.get(name, name)
  settings = _settings(spec)
  changes = [*activation.kinks, *_SWITCHES.get(name, lambda **_: ())(**settings)]
  near = [place + side * 0.004 * max(abs(place), 0.5) for place in changes for side in (-1, 1)]
  points, fine = np.array([*POINTS, *_FINE, *near], np.float32), np.concatenate([_GRID, near])
  points, fine = points[_inside(activation, points)], fine[_inside(activation, fine)]
  exact = points.astype(np.float64)
  if name in _WITHOUT_DRAWS:
    expected = _WITHOUT_DRAWS[name](exact, **settings)
  else:
    expected = reference_values(reference, points, settings)
  # A zero crossing beside a point, and a frequency times 1e4, are rounded in float32.
  step = 1e-6 * (1 + np.abs(exact))
  scalar = activation.scalar or get_activation(reference).scalar
  both = [evaluate(lambda x: scalar(x, **settings), exact + side * step) for side in (-1, 1)]
  with np.errstate(invalid='ignore'):
    slope = np.nan_to_num(np.abs(both[1] - both[0]) / (2 * step), posinf=0)
  atol = 1e-6 + 1e-6 * np.abs(exact) * np.minimum(slope, 1e3)
  strict = np.isin(points, np.array(POINTS, np.float32)) & (spec == name)
  atol = np.where(strict, 2e-36, atol)
  inputs, single = (fine,), (points,)
  if activation.kind == 'gated':
    value = np.where(np.arange(fine.size) % 2, 1.7, -0.6)
    short = np.where(np.arange(points.size) % 2, 1.7, -0.6).astype(np.float32)
    factor = np.tanh(short.astype(np.float64)) if name == 'gtu' else short.astype(np.float64)
    inputs, single, expected, atol = (fine, value), (points, short), expected * factor, 2 * atol
  settings = {} if spec == name else settings
  return _Look(settings, inputs, single, expected, atol)


def _function(name: str) -> Callable:
  function = get_activation(name).function
  if get_activation(name).kind == 'stochastic':
    return lambda x, **settings: function(x, None, **settings)
  return function


def _mutants(name: str) -> Iterator[Mutant]:
  function = get_activation(name).function
  for mutant in mutants(function):
    if get_activation(name).kind == 'stochastic':
      inner = mutant.function
      mutant = Mutant(mutant.kind, mutant.label,
                      lambda x, inner=inner, **settings: inner(x, None, **settings))
    yield mutant
  if name == 'maxout':  # its only number is a shape
    yield Mutant('number', '1.01 f', lambda x, **settings: 1.01 * function(x, **settings))


def _verdict(name: str, mutant: Mutant, looks: tuple[_Look, ...]) -> str:
  """'equivalent', 'caught', 'does not run', or how far the best look was from catching it."""
  try:
    visible = [look for look in looks
               if look.distance(mutant.function, _function(name)) >= _VISIBLE]
    if not visible:
      return 'equivalent'
    error = max(look.error(mutant.function) for look in visible)
  except (ArithmeticError, IndexError, TypeError, ValueError):
    return 'does not run'  # as with a shape that is off by 1 %: nobody could overlook it
  return 'caught' if error > 1 else f'missed: {error:.2g} of the tolerance'


def _listed(name: str) -> set[str]:
  return {label for rows in EQUIVALENT.values() for row, label in rows if row == name}


@pytest.mark.parametrize('name', _ROWS)
def test_one_planted_error_is_caught_and_the_original_passes(name):
  look, listed = next(_looks(name)), _listed(name)
  assert look.error(_function(name)) <= 1
  verdicts = ((mutant.label, _verdict(name, mutant, (look,))) for mutant in _mutants(name)
              if mutant.label not in listed)
  # One that only other settings show is for the full set.
  label, verdict = next(found for found in verdicts
                        if found[1] not in ('does not run', 'equivalent'))
  assert verdict == 'caught', label


@pytest.mark.slow
@pytest.mark.parametrize('name', _ROWS)
def test_every_planted_error_is_caught_or_listed_as_equivalent(name):
  looks = tuple(_looks(name))
  assert max(look.error(_function(name)) for look in looks) <= 1
  verdicts = {mutant.label: _verdict(name, mutant, looks) for mutant in _mutants(name)}
  assert [found for found in verdicts.items() if found[1].startswith('missed')] == []
  equivalent = {label for label, verdict in verdicts.items() if verdict == 'equivalent'}
  assert equivalent == _listed(name)
  assert 'caught' in verdicts.values()


_INFERENCE, _BOTH = (False,), (False, True)  # values of `train`


@functools.cache
def _network(
    spec: str, modes: tuple[bool, ...],
) -> tuple[nn.Module, dict, list[np.ndarray], list[np.ndarray]]:
  """The module, its variables, what the reference gives and what the module gives, by mode."""
  activation = get_activation(spec)
  module = MODULES[activation.name](**activation.constants)
  with jax.enable_x64(True):
    variables = networks.drawn_variables(module)
  weights = networks.weights_of(variables)
  expected = [networks.CASES[spec](weights, networks._X, train) for train in modes]
  return module, variables, expected, _outputs(module, variables, modes)


def _outputs(module: nn.Module, variables: dict, modes: tuple[bool, ...]) -> list[np.ndarray]:
  """One operation after the other: nothing is compiled for one mutant alone."""
  with jax.enable_x64(True):
    x = jnp.asarray(networks._X)
    return [np.asarray(module.apply(variables, x, train=train, mutable=['batch_stats'])[0])
            for train in modes]


def _network_mutants(name: str) -> Iterator[Mutant]:
  """Errors in the network's call and in the plain function that it ends with."""
  return mutants(inspect.unwrap(MODULES[name].__call__))


def _network_verdict(spec: str, mutant: Mutant, modes: tuple[bool, ...]) -> str:
  """As `_verdict`, by the tolerance of the whole-tensor test."""
  module, variables, expected, right = _network(spec, modes)
  kind = type('Mutant', (type(module),), {'__call__': nn.compact(mutant.function)})
  try:
    wrong = _outputs(kind(**get_activation(spec).constants), variables, modes)
  except (ArithmeticError, IndexError, TypeError, ValueError, flax.errors.FlaxError):
    return 'does not run'
  if any(one.shape != other.shape for one, other in zip(wrong, right)):
    return 'caught'
  distance = max(np.max(np.abs(one - other) / (1 + np.abs(other)))
                 for one, other in zip(wrong, right))
  if distance < _VISIBLE:
    return 'equivalent'
  error = max(relative_error(one, other, 1e-6, 1e-9) for one, other in zip(wrong, expected))
  return 'caught' if error > 1 else f'missed: {error:.2g} of the tolerance'


@pytest.mark.parametrize('name', MODULES)
def test_one_planted_error_in_a_network_is_caught_and_the_original_passes(name):
  _, _, expected, right = _network(name, _INFERENCE)
  assert max(relative_error(one, other, 1e-6, 1e-9) for one, other in zip(right, expected)) <= 1
  listed = _listed(name)
  verdicts = ((mutant.label, _network_verdict(name, mutant, _INFERENCE))
              for mutant in _network_mutants(name) if mutant.label not in listed)
  label, verdict = next(found for found in verdicts
                        if found[1] not in ('does not run', 'equivalent'))
  assert verdict == 'caught', label


@pytest.mark.slow
@pytest.mark.parametrize('name', MODULES)
def test_every_planted_error_in_a_network_is_caught_or_listed_as_equivalent(name):
  specs = [spec for spec in networks.CASES if spec.partition('(')[0] == name]
  for spec in specs:
    _, _, expected, right = _network(spec, _BOTH)
    assert max(relative_error(one, other, 1e-6, 1e-9) for one, other in zip(right, expected)) <= 1
  verdicts = {}
  for mutant in _network_mutants(name):
    found = [_network_verdict(spec, mutant, _BOTH) for spec in specs]
    verdicts[mutant.label] = next((v for v in found if v not in ('equivalent', 'does not run')),
                                  found[0])
  assert [found for found in verdicts.items() if found[1].startswith('missed')] == []
  assert {label for label, v in verdicts.items() if v == 'equivalent'} == _listed(name)
  assert 'caught' in verdicts.values()


def _sigmoid(x):
  return jax.nn.sigmoid(x)


# Forms that libraries or summaries print instead.
_WRONG = [
    ('gelu', lambda x: jax.nn.gelu(x, approximate=True)),
    ('gelu_tanh', lambda x: jax.nn.gelu(x, approximate=False)),
    ('quick_gelu', lambda x: jax.nn.gelu(x, approximate=False)),
    ('hard_sigmoid', lambda x: jnp.clip(0.2 * x + 0.5, 0, 1)),
    ('cloglog', lambda x: 1 - jnp.exp(-jnp.exp(-x))),
    ('symexp', lambda x: jnp.expm1(jnp.abs(x))),
    ('symlog', lambda x: jnp.log1p(jnp.abs(x))),
    ('sinc', jnp.sinc),
    ('blu', lambda x, beta=0.0: beta * jnp.sqrt(x**2 + 1) - 1 + x),
    ('hard_elish', lambda x: jnp.where(
        x < 0, 1 + jnp.exp(-x), x) * jnp.clip((x + 1) / 2, 0, 1)),
    ('srs', lambda x, a=2.0, b=3.0: x / (1 + jnp.exp(-x / b))**(1 / a)),
    ('pdelu', lambda x, a=1.0, t=0.9: jnp.where(
        x < 0, a * jnp.maximum(1 + (1 - t) * x, 0)**(1 / (1 - t)) - 1, x)),
    ('soft_exponential', lambda x, a=0.0: jnp.where(
        a > 0, jnp.expm1(x) / jnp.where(a > 0, a, 1) + a, x)),
    ('e_swish', lambda x, beta=1.375: jnp.exp(-x) * _sigmoid(x)),
    ('double_silu', lambda x: x * _sigmoid(-x * _sigmoid(x))),
    ('penalized_tanh', lambda x, slope=0.25: jnp.where(x > 0, jnp.tanh(x), jnp.tanh(x) / slope)),
    ('crrelu', lambda x, epsilon=0.01: jax.nn.relu(x) - epsilon * x * jnp.exp(-x**2 / 2)),
    ('msilu@homa', lambda x: x * _sigmoid(x) + jnp.exp(-x**2 / 4)),
    ('msilu@torch_activation', lambda x: x * _sigmoid(x) + jnp.exp(-x**2 - 1) / 4),
    ('celu', lambda x, alpha=1.0: jnp.where(x > 0, x, alpha * jnp.expm1(x))),
    ('rrelu', lambda x, low=1 / 8, high=1 / 3: jnp.where(x >= 0, x, x / ((low + high) / 2))),
    ('ash', lambda x, z=0.0, alpha=1.0, axes='sample', stop_gradient=False, eps=1e-5:
        x * _sigmoid(-2 * alpha * (x - x.mean((1, 2), keepdims=True)))),
]


@pytest.mark.parametrize('name, wrong', _WRONG)
def test_known_wrong_forms_are_caught(name, wrong):
  assert max(look.error(wrong) for look in _looks(name)) > 1
