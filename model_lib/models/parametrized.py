"""A model under a parametrization: numbers per parameter that act from outside of its layers.

A parameter w starts as the module's own draw times `start` and acts as multiplier * w. So a Linen
module needs to know nothing of the parametrization, and every row of the table is the same
program with other numbers. They are swept numbers (`models.hyper`): the collection `hp` has one
branch more, of trees like `params` with a float32 scalar per parameter,

  parametrization/start          factor of the module's own draw
  parametrization/multiplier     forward factor
  parametrization/gradient       1 / factor of eps: Adam of g / f with eps is Adam of g with f eps
  parametrization/learning_rate  factor of the learning rate
  parametrization/decay          factor of the weight decay; 0: it does not decay

(and `tied`, the factor of the logits of a readout that is an embedding). Training reads the last
three. Factors of branches and of attention logits are read from the row by the model itself, where
it has them (`models.residual`, `models.attention`).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax.core.scope import in_filter
import flax.traverse_util
import jax
import jax.numpy as jnp

from model_lib import models
from model_lib.errors import UserError
from model_lib.parametrization import Parametrization, get_parametrization, report, rules
from model_lib.parametrization.kinds import STACK, label_parameters
from model_lib.parametrization.label import Label
from model_lib.parametrization.rules import Factors
from model_lib.parametrization.scaled_rows import ScaledRow
from model_lib.spec import nearest

BRANCH = 'parametrization'  # in `hp`
NUMBERS = ('start', 'multiplier', 'gradient', 'learning_rate', 'decay')
# What Linen's modules have and this has not: it would act on the parameters without their factors.
_NOT_PASSED = ('clone', 'copy', 'init_with_output', 'lazy_init', 'tabulate', 'unbind')


@dataclasses.dataclass(frozen=True, eq=False)
class Parametrized:
  """A Linen module with the factors of a row of the table; used like the module itself.

  `init`, `apply` and `bind` take and give what the module's do; all other attributes are the
  module's. No layer changes, so any module will do. What its layers cannot be told from outside
  is its own matter: the factors of residual branches (`Parametrization.branch_multiplier`) and of
  attention logits (`attention_multiplier`).

  Attributes:
    model: the module.
    base, delta: the same with the base sizes, and with every scalable dimension changed
      (`parametrization.kinds`).
    row: of the table, or its name with settings.
    family: of optimizers, one of `rules.FAMILIES`.
    stack: pattern of the paths in the residual stack (`label_parameters`).
    kinds: pattern -> kind, where the shapes do not tell.
    fan_in_power: the power of the fan-in in the module's own stds of kernels, -0.5 for most
      initializers and 0 for `normal(0.02)`; None for that of the row's rules, which the models
      of this package follow. Other stds must not depend on the width: `nn.Embed` needs an
      `embedding_init` without fan-in.
    tied: path of the embedding that is the readout as well, '' for none. The module then returns
      logits alone, with no bias, and they are multiplied (`rules.tied_multiplier`).
  """

  model: Any
  base: Any
  delta: Any
  row: Parametrization | str = 'mup'
  family: str = 'adam'
  stack: str = STACK
  kinds: Mapping[str, str] | None = None
  fan_in_power: float | None = None
  tied: str = ''

  def __post_init__(self):
    if isinstance(self.row, str):
      object.__setattr__(self, 'row', get_parametrization(self.row))

  def __getattr__(self, name: str):
    # Only for names that are not found here.
    if name.startswith('__') or name in _NOT_PASSED or 'model' not in self.__dict__:
      raise AttributeError(f'{type(self).__name__} has no attribute {name!r}')
    return getattr(self.model, name)

  # -- labels and factors: `args` as those of the module's call, of which only shapes are used ----

  def labels(self, *args, **kwargs) -> dict[str, Label]:
    """Path -> label of every parameter; UserError as `label_parameters`. Allocates nothing."""
    trees = [jax.eval_shape(lambda key, module=module: module.init(key, *args, **kwargs)['params'],
                            jax.random.key(0)) for module in (self.base, self.delta, self.model)]
    return label_parameters(*trees, stack=self.stack, kinds=self.kinds)

  def factors(self, *args, **kwargs) -> dict[str, Factors]:
    """Path -> factors of every parameter; UserError as `labels` and `rules.factors`."""
    return self._factors(self.labels(*args, **kwargs))

  def lines(self, *args, **kwargs) -> list[str]:
    """The table of labels and factors, to print (`report.lines`)."""
    labels = self.labels(*args, **kwargs)
    return report.lines(labels, self._factors(labels))

  def numbers(self, *args, **kwargs) -> dict[str, Any]:
    """The branch of `hp`: name -> tree like `params` of float32 scalars."""
    labels = self.labels(*args, **kwargs)
    values = {
      path: {'start': self._start(labels[path], f), 'multiplier': f.multiplier,
             'gradient': 1 / f.eps, 'learning_rate': f.learning_rate, 'decay': f.decay}
      for path, f in self._factors(labels).items()}
    numbers = {name: flax.traverse_util.unflatten_dict(
      {path: jnp.asarray(each[name], jnp.float32) for path, each in values.items()}, sep='/')
               for name in NUMBERS}
    if self.tied:
      if self.tied not in labels:
        raise UserError(f'tied={self.tied!r} is no parameter{nearest(self.tied, labels)}')
      numbers['tied'] = jnp.asarray(rules.tied_multiplier(self.row, labels[self.tied]), jnp.float32)
    return numbers

  def _factors(self, labels: Mapping[str, Label]) -> dict[str, Factors]:
    return {path: rules.factors(self.row, label, self.family) for path, label in labels.items()}

  def _start(self, label: Label, found: Factors) -> float:
    power = self.fan_in_power
    if power is None:
      power = self.row.rules['hidden'].fan_in_power
    absolute = isinstance(self.row, ScaledRow) and self.row.absolute
    return rules.init_gain(label, found, power, absolute)

  # -- as a Linen module ---------------------------------------------------------------------

  def init(self, rngs, *args, **kwargs) -> dict[str, Any]:
    """The variables, with the branch of `hp`; arguments as of the module's `init`."""
    variables = dict(self.model.init(rngs, *args, **kwargs))
    numbers = self.numbers(*args, **kwargs)
    return {**variables, 'params': _times(variables['params'], numbers['start']),
            'hp': {**variables.get('hp', {}), BRANCH: numbers}}

  def apply(self, variables: Mapping[str, Any], *args, mutable: Any = False, **kwargs):
    """As the module's `apply`, of multiplier * w for every parameter w.

    Where `variables` has no params and they are mutable, they are made; the output is None then,
    since it would be that of the module's own draw.

    Raises:
      UserError: `hp` has no numbers of the parametrization.
    """
    if 'params' not in variables and in_filter(mutable, 'params'):
      numbers, inner = _split(variables)
      _, made = self.model.apply(inner, *args, mutable=mutable, **kwargs)
      return None, {**made, 'params': _times(made['params'], numbers['start'])}
    found = self.model.apply(self.effective(variables), *args, mutable=mutable, **kwargs)
    if mutable is False:
      return self._logits(found, variables)
    output, updated = found
    # The module has changed neither, and what it got are not the variables.
    return self._logits(output, variables), {
      name: variables[name] if name in ('params', 'hp') else collection
      for name, collection in updated.items()}

  def _logits(self, output: Any, variables: Mapping[str, Any]) -> Any:
    if not self.tied:
      return output
    if not isinstance(output, jax.Array):
      raise UserError(f'tied={self.tied!r} is for a module that returns its logits alone, and this '
                      f'call returns a {type(output).__name__}; untie it')
    return (output * variables['hp'][BRANCH]['tied']).astype(output.dtype)

  def bind(self, variables: Mapping[str, Any], *args, **kwargs):
    """The module bound to multiplier * w for every parameter w; not for a tied one."""
    if self.tied:
      raise UserError(f'tied={self.tied!r}: the factor of the logits is applied by `apply` alone')
    return self.model.bind(self.effective(variables), *args, **kwargs)

  def effective(self, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with which the bare module computes the same, but for `tied`.

    `model.model` and they are for what changes or measures plain modules.
    """
    numbers, inner = _split(variables)
    return {**inner, 'params': _times(inner['params'], numbers['multiplier'])}


def build(name: str, arguments: Mapping[str, Any], base: Mapping[str, Any],
          delta: Mapping[str, Any], family: str = 'adam'):
  """A model of `model_lib.models` by name; with base and delta under its parametrization.

  Args:
    name, arguments: as of `models.build`. The row is arguments['parametrization'].
    base, delta: the arguments in which the base model and the delta model differ; both empty for
      the model alone, which a row with rules of width is not defined for.
    family: of optimizers, one of `rules.FAMILIES`.

  Raises:
    UserError: as `models.build`; base without delta, a row with rules of width without both, or a
      base that the row's settings do not fit.
  """
  model = models.build(name, **arguments)
  row = getattr(model, 'parametrization', None)
  if not base and not delta:
    if row is not None and isinstance(get_parametrization(row), ScaledRow):
      raise UserError(f'{name}: parametrization {row!r} gives factors relative to a base model, '
                      "and there is none; give base and delta, such as base={'width': 64} and "
                      "delta={'width': 128}")
    return model
  if not base or not delta:
    missing = 'delta' if base else 'base'
    raise UserError(f'{name}: {missing} is missing; base and delta are given together, since the '
                    'dimensions in which they differ are those that scale')
  if row is None:
    raise UserError(f'{name} takes no parametrization, so base and delta have no use; take gpt')
  base_model, delta_model = (models.build(name, **{**arguments, **changed})
                             for changed in (base, delta))
  _check_heads(name, base_model, get_parametrization(row))
  return Parametrized(model, base_model, delta_model, row, family,
                      getattr(model, 'stack_pattern', STACK))


def _check_heads(name: str, base: Any, row: Parametrization) -> None:
  """Whether the attention logits of the base model are those of the standard row."""
  if not isinstance(row, ScaledRow) or row.absolute or row.head_dim_power == -0.5 or not hasattr(
      base, 'heads'):
    return
  head_dim = base.dim // base.heads
  if row.base_head_dim != head_dim:
    raise UserError(f'{name}: the heads of the base model have size {head_dim}, but {row.name} '
                    f'says base_head_dim={row.base_head_dim:g}; make them equal')


def _split(variables: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
  """The numbers of the parametrization, and the variables without them."""
  hp = dict(variables.get('hp', {}))
  if BRANCH not in hp:
    raise UserError(f'the variables have no hp/{BRANCH}: pass what `init` of this object gave')
  numbers = hp.pop(BRANCH)
  return numbers, {**variables, 'hp': hp}


def _times(params: Any, factors: Any) -> Any:
  return jax.tree.map(lambda w, factor: (w * factor).astype(w.dtype), params, factors)

