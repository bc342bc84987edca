"""Admin's profiling pass: the start of the skip factors of N(omega x + f(x)).

  omega_1 = 1,  omega_i^2 = omega_{i-1}^2 + Var f_{i-1} = 1 + sum over j < i of Var f_j

Liu et al. 2020, arXiv:2004.08249. Var is taken over the features and averaged over everything
else; each f_i is measured in the network in which the omegas before it are already set.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.models.recording import Call, record_calls
from model_lib.models.residual import Trained


def init_omegas(apply: Callable[[dict], object], variables: dict) -> dict:
  """The variables with every `omega` at the value of the profiling pass.

  Args:
    apply: the forward pass on a batch, such as `lambda v: model.apply(v, x, train=False)`.
    variables: of a model with the parametrization 'admin', at their start.

  Returns:
    New variables; a pure function of the arguments, which may be compiled.

  Raises:
    UserError: the model has no omega.
  """
  outputs, omegas, square = {}, {}, 1.0

  def set_omega(call: Call):
    nonlocal square
    if not isinstance(call.module, Trained) or call.module.rule.name != 'omega':
      outputs[call.path] = call.output
      return call.output
    *holder, name = call.path
    omegas[call.path] = jnp.sqrt(jnp.asarray(square, call.output.dtype))
    branch = outputs[(*holder, name.removeprefix('residual_'))]
    square += jnp.mean(jnp.var(branch.astype(jnp.float32), axis=-1))
    return jnp.full_like(call.output, omegas[call.path])

  record_calls(lambda: apply(variables), change=set_omega)
  if not omegas:
    raise UserError("the model has no omega to start: build it with parametrization='admin'")

  def leaf(path, value):
    omega = omegas.get(tuple(key.key for key in path[:-1]))
    return value if omega is None else jnp.full_like(value, omega)

  return {**variables, 'params': jax.tree_util.tree_map_with_path(leaf, variables['params'])}
