"""The differentiable relaxation of a search space: all operators at once, weighted by softmax.

For the space's candidates binary(unary(x), unary(x)), a layer computes

  y = sum_b p_b b(sum_i q_i u_i(x), sum_j r_j u_j(x))
  p, q, r = softmax(logits / temperature)

with logits of its own, which train with the weights (the continuous relaxation of Liu, Simonyan &
Yang 2019, arXiv:1806.09055, for activations and on one level). `harden` reads candidates out of
trained logits. They start at 0, where all operators are equally likely and both arguments are the
same function: a commutative operator gives q and r the same gradient, and sub, which each of the
named spaces has, makes them differ. The temperature is the swept number `temperature`, 1 where a
run sets none. Adam moves a logit by about the learning rate in a step, and a low temperature makes
that count for more. A weight decay draws the logits back to 0.

The operators are in their standard form (`standard_form`), so that none decides by its size alone.
Those without one are left out, and those whose form an earlier one has, which would only share its
probability. By space (`slots(space).left_out` has the reasons):

  act_bench, aquasurf   reciprocal, div, pow
  swish                 sqrt, log_abs, safe_div; as earlier ones scale, shift, mix
  pangaea               reciprocal, div; as earlier ones cosh, sinh

A mixture costs all of its operators, in time and in memory for the backward pass: on two CPU cores
a step of an MLP of widths 64, 64 at batch 32 takes 5 to 9 times as long as with ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from model_lib.activations.host import evaluate
from model_lib.errors import UserError
from model_lib.models.swept import Leaves, SweptActivation
from model_lib.search.engines.standard_form import Term, quadrature, same, standard
from model_lib.search.expression import Expression, X
from model_lib.search.spaces import ONE_CORE_UNIT, Space, get_space
from model_lib.spec import Call

LOGITS = ('binary_logits', 'left_logits', 'right_logits')  # in the order of an expression's text


@dataclasses.dataclass(frozen=True)
class Slots:
  """What a space's mixture is made of.

  Attributes:
    unary, binary: the terms, in the space's order.
    left_out: why each other operator of the two kinds is not among them, by name.
  """

  unary: tuple[Term, ...]
  binary: tuple[Term, ...]
  left_out: Mapping[str, str]

  @property
  def by_logits(self) -> dict[str, tuple[Term, ...]]:
    """The terms among which each of the logits chooses."""
    return dict(zip(LOGITS, (self.binary, self.unary, self.unary), strict=True))


@dataclasses.dataclass(frozen=True)
class Relaxation(SweptActivation):
  """The mixture over a space; nothing of it is data but the temperature."""

  space: Space

  @classmethod
  def from_spec(cls, call: Call) -> 'Relaxation':
    """The engine of `relaxation(act_bench)`; UserError for other settings or an unknown space."""
    if call.kwargs or len(call.args) != 1:
      raise UserError(f'{call}: write relaxation(SPACE), such as relaxation(act_bench)')
    return cls(get_space(str(call.args[0])))

  @property
  def name(self) -> str:
    return f'relaxation({self.space.name})'

  def default(self) -> Leaves:
    return {'temperature': np.float32(1)}

  def encode(self, text: str) -> Leaves:
    raise UserError(f'{self.name} is a mixture of its whole space: a candidate {text!r} needs '
                    'table() or bytecode()')

  def first(self, leaves, shape) -> dict[str, jax.Array]:
    return {name: jnp.zeros(len(terms), jnp.float32)
            for name, terms in slots(self.space).by_logits.items()}

  def apply(self, leaves: Mapping[str, jax.Array], params: Mapping[str, jax.Array],
            x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    p, q, r = (jax.nn.softmax(params[name] / leaves['temperature']) for name in LOGITS)
    terms = slots(self.space)
    a, b = _means(jnp.stack([q, r]), [term(wide) for term in terms.unary])
    return _means(p, [term(a, b) for term in terms.binary]).astype(x.dtype)

  def gain(self) -> float:
    return _first_gain(self.space)


def harden(params: Mapping, space: Space, count: int = 1) -> list[Expression]:
  """The `count` most probable expressions of trained logits, the most probable first.

  The logits are averaged over the layers, and an expression's probability is the product of its
  three operators'; so the first has the most probable operator of each slot. Equally probable ones
  are in the space's order. The expressions are the plain operators, without the mixture's divisors
  and tangents: train them anew, with the gain of their own. Some are constant or linear, or one
  function twice: `candidates(harden(params, space, 100)).valid` are those to try, in order.

  Args:
    params: of one model, or the part of one layer.
    space: of its `relaxation`.
    count: at least 1; there are as many as the mixture has combinations.

  Raises:
    UserError: params has no such logits, or not those of one member and of this space.
  """
  by_logits, means = slots(space).by_logits, []
  for name, terms in by_logits.items():
    layers = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
              if path[-1].key == name]
    shapes = {leaf.shape for leaf in layers}
    if shapes != {(len(terms),)}:
      raise UserError(f'no expression of the space {space.name!r} can be read from these params: '
                      f'{name} must be [{len(terms)}] for one member, '
                      f'not {", ".join(map(str, sorted(shapes))) or "missing"}')
    means.append(np.mean(np.array(layers, np.float64), 0))
  total = means[0][:, None, None] + means[1][:, None] + means[2]
  best = np.argsort(-total, axis=None, kind='stable')[:count]
  found = []
  for places in zip(*np.unravel_index(best, total.shape), strict=True):
    binary, left, right = (terms[place].operator.name
                           for terms, place in zip(by_logits.values(), places, strict=True))
    found.append(Expression(binary, (Expression(left, (X,)), Expression(right, (X,)))))
  return found


@functools.lru_cache(maxsize=64)
def slots(space: Space) -> Slots:
  """The terms of a space's mixture.

  Raises:
    UserError: the space has no binary(unary(x), unary(x)), or no operator of a kind is left.
  """
  if ONE_CORE_UNIT not in space.schemas:
    raise UserError(f'the relaxation is one of {ONE_CORE_UNIT}, which the space {space.name!r} '
                    f'has not; it has: {", ".join(space.schemas)}')
  kept: dict[str, list[Term]] = {}
  left_out: dict[str, str] = {}
  for kind in ('unary', 'binary'):
    kept[kind], profiles = [], []
    for name in space.of_kind(kind):
      term, profile = standard(name)
      if profile is None:
        left_out[name] = 'not finite, or too steep'
        continue
      earlier = [other.operator.name for other, seen in zip(kept[kind], profiles, strict=True)
                 if same(profile, seen)]
      if earlier:
        left_out[name] = f'the same as {earlier[0]}'
      else:
        kept[kind].append(term)
        profiles.append(profile)
    if not kept[kind]:
      raise UserError(f'the space {space.name!r} leaves its relaxation no {kind} operator; '
                      f'left out: {", ".join(left_out)}')
  return Slots(tuple(kept['unary']), tuple(kept['binary']), types.MappingProxyType(left_out))


def _means(weights: jax.Array, values: list[jax.Array]) -> jax.Array:
  """[..., n] weights and n values of one shape: [..., *shape].

  On a CPU a step takes half as long with the product of matrices as with a sum, for which XLA
  computes the operators again and again; 'highest' keeps it from rounding to fewer bits on a GPU.
  """
  return jnp.tensordot(weights, jnp.stack(values), 1, precision='highest')


@functools.lru_cache(maxsize=64)
def _first_gain(space: Space) -> float:
  """E[y^2]^-1/2 of the mixture with logits 0."""
  nodes, weights = quadrature()
  terms = slots(space)
  inner = np.mean([evaluate(term, nodes) for term in terms.unary], 0)
  outer = np.mean([evaluate(term, inner, inner) for term in terms.binary], 0)
  return float(np.sum(np.square(outer) * weights)**-0.5)
