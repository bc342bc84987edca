"""Optax transformations that follow the rules, for a training loop of one's own.

The population engine computes the same update from swept numbers (`training.state`): there a row is
a value of the program, here it is written into the transformation.

With d the optimizer's direction, f its factors and s the schedule,

  w <- w - rate s(step) (f.learning_rate d + k weight_decay w)

where k says how decay and rate belong together:

  coupled      k = f.learning_rate              decays less where the rate is smaller
  compensated  k = f.learning_rate * f.decay    the table's rule
  independent  k = 1 / rate                     s(step) weight_decay w, whatever the rate

and k = 0 where f.decay = 0. The norm for clipping is that of all gradients, before anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import optax

from model_lib.errors import UserError
from model_lib.parametrization.kinds import as_tree
from model_lib.parametrization.label import Label
from model_lib.parametrization.rules import Factors
from model_lib.spec import nearest

DECAYS = ('coupled', 'compensated', 'independent')
Make = Callable[[float], optax.GradientTransformation]


def scale_by_path(values: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the update of each parameter by the value of its path."""
  def update(updates, params=None):
    del params
    return jax.tree.map(lambda u, value: u * value, updates, as_tree(values, updates))

  return optax.stateless(update)


def direction(make: Make, factors: Mapping[str, Factors], *, clip: float = 0.0,
              hidden: optax.GradientTransformation | None = None,
              labels: Mapping[str, Label] | None = None) -> optax.GradientTransformation:
  """learning_rate factor * direction of the gradient, clipped.

  Parameters with the same eps share a transformation, so that there are few of them.

  Args:
    make: the optimizer without learning rate, given the factor of its eps, such as
      `lambda eps: optax.scale_by_adam(eps=1e-8 * eps)`.
    factors: path -> factors of every parameter.
    clip: largest norm of all gradients; 0 for none.
    hidden: the transformation of hidden matrices where it is another, such as muon's.
    labels: path -> label; needed with `hidden`.

  Raises:
    UserError: `hidden` without labels; at the first use, a parameter without factors.
  """
  if hidden is not None and labels is None:
    raise UserError('an optimizer of its own for hidden matrices needs the labels; pass labels=')
  groups = {path: 'hidden' if hidden is not None and labels[path].kind == 'hidden' else repr(f.eps)
            for path, f in factors.items()}
  rules = {name: make(float(name)) for name in set(groups.values()) - {'hidden'}}
  if hidden is not None:
    rules['hidden'] = hidden
  steps = [optax.clip_by_global_norm(clip)] if clip else []
  return optax.chain(
    *steps, optax.multi_transform(rules, lambda params: as_tree(groups, params)),
    scale_by_path({path: f.learning_rate for path, f in factors.items()}))


def decay_factors(factors: Mapping[str, Factors], decay: str = 'compensated',
                  rate: jax.Array | float | None = None) -> dict[str, jax.Array | float]:
  """Path -> k, as above. `rate` > 0 is read by 'independent' alone and may be traced.

  Raises:
    UserError: an unknown decay, or 'independent' without a rate.
  """
  if decay not in DECAYS:
    raise UserError(f'unknown decay {decay!r}{nearest(decay, DECAYS)}; known: {", ".join(DECAYS)}')
  if decay == 'independent' and rate is None:
    raise UserError('independent decay divides by the learning rate; pass rate=')
  return {path: 0.0 if not f.decay else {
    'coupled': lambda f=f: f.learning_rate, 'compensated': lambda f=f: f.learning_rate * f.decay,
    'independent': lambda: 1 / rate}[decay]() for path, f in factors.items()}


def optimizer(make: Make, factors: Mapping[str, Factors], rate: jax.Array | float, *,
              schedule: optax.Schedule | None = None, weight_decay: jax.Array | float = 0.0,
              decay: str = 'compensated', clip: float = 0.0,
              hidden: optax.GradientTransformation | None = None,
              labels: Mapping[str, Label] | None = None) -> optax.GradientTransformation:
  """The whole update; arguments as of `direction` and `decay_factors`.

  Args:
    rate: learning rate of the base model.
    schedule: step -> factor of the rate, shared by all parameters; None: constant.
    weight_decay: of the base model.
  """
  ks = decay_factors(factors, decay, rate)

  def decayed(updates, params):
    return jax.tree.map(lambda u, w, k: u + k * weight_decay * w, updates, params,
                        as_tree(ks, params))

  return optax.chain(
    direction(make, factors, clip=clip, hidden=hidden, labels=labels), optax.stateless(decayed),
    optax.scale_by_learning_rate(
      rate if schedule is None else lambda step: rate * schedule(step)))
