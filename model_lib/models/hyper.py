"""Swept numbers: the read-only variable collection `hp`.

A number that a study sweeps, or changes during a run, is a variable in `hp`, so that one
compiled program serves every value; strings and shapes are module attributes instead.
`module.init` fills the collection with defaults; `set_hp` replaces values by name, and
`module.apply({'hp': hp, 'params': params}, ...)` reads them.

Names: `activation_code` (int32, which branch of a switch), `init_gain` (float32, the
factor on a kernel's std at the start; read only in the call that creates the kernel), and the
leaves of a swept activation (`models.swept`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from model_lib.errors import UserError
from model_lib.spec import nearest


def read_hp(module: nn.Module, name: str, default: int | float) -> jax.Array:
  """The scalar `name` of the module's `hp`; `init` creates it: int32 or float32, as `default`.

  Never writes it in `apply`. Without a value given, apply raises flax's error that names the
  module and the variable: a default here would train another run than the one asked for.
  """
  dtype = jnp.int32 if isinstance(default, int) else jnp.float32
  return module.variable('hp', name, lambda: jnp.asarray(default, dtype)).value


def set_hp(hp, **values):
  """The tree `hp` with every leaf of a given name replaced, in the leaf's dtype.

  A value of shape [M] gives a leaf of shape [M]: one number per member of a population.

  Raises:
    UserError: no leaf has that name; the message names the nearest.
  """
  found = set()

  def replace(path, leaf):
    name = path[-1].key
    found.add(name)
    return jnp.asarray(values[name], leaf.dtype) if name in values else leaf

  replaced = jax.tree_util.tree_map_with_path(replace, hp)
  for name in values:
    if name not in found:
      raise UserError(f'the model has no swept number {name!r}{nearest(name, found)}; '
                      f'it has: {", ".join(sorted(found)) or "none"}')
  return replaced
