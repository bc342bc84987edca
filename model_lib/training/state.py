"""TrainState: all that a run needs to go on, and the optimizer step that moves it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from model_lib.errors import UserError
from model_lib.models.candidate import CANDIDATE
from model_lib.models.parametrized import BRANCH
from model_lib.parametrization.label import Label
from model_lib.parametrization.optax_wiring import DECAYS
from model_lib.spec import nearest
from model_lib.training import optimizers
from model_lib.training.cohort import Member, Number, OptimizerSpec

Encode = Callable[[str], Mapping[str, np.ndarray]]
_KERNELS = ('kernel', 'embedding')  # leaves that 'decayed=kernels' decays
OPTIMIZER_HP = {'learning_rate': None, 'weight_decay': 0.0}
STATES = ('batch_stats', 'norm_state')  # collections that models change as they train
LOSSES = 'losses'  # collection of further terms of the loss, which a model sows


@flax.struct.dataclass
class TrainState:
  """State of one run; in a population every leaf has the members as first axis.

  Attributes:
    step: int32, optimizer steps done.
    params: trainable variables.
    opt_state: of the optax transformation.
    hp: swept numbers: {'optimizer': {...}, 'model': the model's `hp` collection}.
    collections: further variables of the model, such as batch_stats.
    key: uint32 [2], threefry key of the run; draws of step s use fold_in(key, s).
    diverged_step: int32, the first step whose loss was not finite, or -1.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  hp: Any
  collections: Any
  key: jax.Array
  diverged_step: jax.Array


def direction(spec: OptimizerSpec,
              labels: Mapping[str, Label] | None = None) -> optax.GradientTransformation:
  """The optimizer without its learning rate, which is a swept number.

  Args:
    spec: what it is.
    labels: of the parameters of a model with factors (`models.parametrized`). The update then
      takes `gradient`, a tree of their factors of the gradient, applied after clipping.

  Raises:
    UserError: an unknown optimizer or decay, or muon without labels.
  """
  if spec.decay not in DECAYS:
    raise UserError(f'unknown decay {spec.decay!r}{nearest(spec.decay, DECAYS)}; '
                    f'known: {", ".join(DECAYS)}')
  steps = [optax.clip_by_global_norm(spec.clip)] if spec.clip else []
  if labels is not None:
    steps.append(_scale_by_gradient())
  rule = optimizers.rule(spec, labels)
  return optax.chain(*steps, rule) if steps else rule


def _scale_by_gradient() -> optax.GradientTransformationExtraArgs:
  """Multiplies by the tree `gradient` that comes with the update."""
  def update(updates, state, params=None, *, gradient, **more):
    del params, more
    return jax.tree.map(lambda g, f: (g * f).astype(g.dtype), updates, gradient), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def schedule(spec: OptimizerSpec, steps: int) -> optax.Schedule:
  """Factor of the learning rate by step, at most 1."""
  warmup = int(round(spec.warmup * steps))
  if spec.schedule == 'constant':
    after = optax.constant_schedule(1.0)
  elif spec.schedule == 'cosine':
    after = optax.cosine_decay_schedule(1.0, max(1, (spec.horizon or steps) - warmup), spec.final)
  else:
    raise UserError(f"schedule '{spec.schedule}' is unknown; there are: constant, cosine")
  if not warmup:
    return after
  # Step 0 already moves: a factor of 0 would waste it.
  rise = optax.linear_schedule(1.0 / warmup, 1.0, max(1, warmup - 1))
  return optax.join_schedules([rise, after], [warmup])


def seed_keys(members: Sequence[Member]) -> np.ndarray:
  """uint32 [members, 2]: the threefry key of each member's seed, as jax.random.key makes it."""
  seeds = np.array([m.seed for m in members], np.uint64)
  return np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


def stack_hp(members: Sequence[Member], model_hp: Mapping, encode: Encode | None = None) -> dict:
  """Swept numbers of a population, float32 or int32 [members, ...].

  Args:
    members: the runs. A name in `Member.hp` sets every model variable of that
      name (`init_gain`), or one of them by its path (`hidden_0/init_gain`). A text under
      `candidate` (or `activation_0/candidate`) sets the leaves of swept activations.
    model_hp: the model's own `hp` collection with its default values.
    encode: gives the leaves of a text, by name; None where no member has one.

  Raises:
    UserError: a name that neither the optimizer nor the model reads, a text under another name
      than `candidate`, or one that `encode` refuses.
  """
  n = len(members)
  flat = flax.traverse_util.flatten_dict(dict(model_hp), sep='/')
  stacked = {k: np.repeat(np.asarray(v)[None], n, 0) for k, v in flat.items()}
  # The factors of parameters end with the names of those: they are known by their paths alone.
  short = {p: p.rsplit('/', 1)[-1] for p in stacked if not p.startswith(f'{BRANCH}/')}
  optimizer = {k: np.zeros(n, np.float32) for k in OPTIMIZER_HP}
  for i, member in enumerate(members):
    if 'learning_rate' not in member.hp:
      raise UserError(f'member {i} of the cohort has no learning_rate in its hp')
    for name, value in _numbers(member, encode):
      if name in optimizer:
        optimizer[name][i] = value
        continue
      paths = [p for p in stacked if p == name or short.get(p) == name]
      if not paths:
        known = sorted({*optimizer, *short.values()})
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"
        raise UserError(f"hp name '{name}' is read by neither the optimizer nor the model{hint}")
      for path in paths:
        have, given = stacked[path].shape[1:], np.shape(value)
        if given not in ((), have):
          raise UserError(f"hp name '{name}' of member {i} has shape {given}; the model's {path} "
                          f'has {have}')
        stacked[path][i] = value
  return {'optimizer': optimizer, 'model': flax.traverse_util.unflatten_dict(stacked, sep='/')}


def _numbers(member: Member, encode: Encode | None) -> Iterator[tuple[str, Any]]:
  """The swept numbers of a member by name, with a candidate's leaves in place of its text."""
  for name, value in member.hp.items():
    if not isinstance(value, str):
      yield name, value
      continue
    *place, last = name.split('/')
    if last != CANDIDATE or encode is None:
      raise UserError(f"hp name '{name}' has the text {value!r}; a text is given as '{CANDIDATE}'")
    for leaf, array in encode(value).items():
      yield '/'.join([*place, leaf]), array


def projection(model):
  """The function params -> params onto the set where the model keeps them, or None for no such set.

  A model with such a set has a method `projection()` that gives it.
  """
  method = getattr(model, 'projection', None)
  return method() if method else None


def create(model, tx, example: np.ndarray, hp, key_data: jax.Array) -> TrainState:
  """Initial state of one run.

  The model's variables are created under the given swept numbers, so that an
  initialization gain in `hp` acts on the draw; then they are projected, if the model has it.
  """
  key = jax.random.wrap_key_data(key_data, impl='threefry2x32')
  _, variables = model.apply(
      {'hp': hp['model']}, example, train=False, rngs={'params': key},
      mutable=['params', *STATES])
  params = variables.pop('params')
  project = projection(model)
  if project:
    params = project(params)
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), hp=hp,
      collections=dict(variables), key=key_data,
      diverged_step=jnp.full((), -1, jnp.int32))


def trains(spec: OptimizerSpec, path) -> bool:
  """Whether the optimizer moves the parameter at a path of `jax.tree_util`."""
  names = '/'.join(key.key for key in path)
  return not spec.trained or any(part in names for part in spec.trained)


def train_step(model, spec: OptimizerSpec, tx, factor, task, state: TrainState, inputs, targets):
  """One optimizer step of one run.

  loss = mean over the batch of task.losses; with rate = learning_rate * factor(step):
  params <- params - rate * (direction(gradient) + weight_decay * params),
  followed by the model's projection, if it has one. The gradient is that of the loss plus the
  terms that the model sows into `losses`. A model with factors of its parameters
  (`models.parametrized`) has them on gradient, direction and decay. A model whose swept numbers
  follow the loss has a method after_loss(collections, hp, loss) -> (collections, hp) of the next
  step. A loss that is not finite marks the run as diverged at this step; from then on
  its update is masked. The mask acts on the update alone: a selection over the
  whole state would cost 30 % of a step. The gradient is not tested, which would
  cost another 5 %: one that is not finite shows in the next step's loss.

  Returns:
    The new state; the loss of this batch; and a function without arguments that computes
    {'accuracy', 'grad_norm'} and, where terms are sown, {'auxiliary'}, for the steps that are
    recorded.
  """
  grads, loss, collections, extra = _gradient(model, spec, task, state, inputs, targets)
  finite = jnp.isfinite(loss + extra['auxiliary'] if 'auxiliary' in extra else loss)
  alive = finite & (state.diverged_step < 0)
  params, opt_state = _updated(model, spec, tx, factor, state, grads, alive)

  def details():
    return {**{k: v.mean() for k, v in extra.items()}, 'grad_norm': optax.tree.norm(grads)}

  swept, follow = state.hp, getattr(model, 'after_loss', None)
  if follow:
    collections, of_model = follow(collections, swept['model'], loss)
    swept = {**swept, 'model': of_model}
  state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, hp=swept,
      collections=collections,
      diverged_step=jnp.where((state.diverged_step < 0) & ~finite, state.step,
                              state.diverged_step))
  return state, loss, details


def _gradient(model, spec: OptimizerSpec, task, state: TrainState, inputs, targets):
  """(gradients, loss, collections, further metrics) of a batch, in as many parts as `spec` says."""
  noise = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl='threefry2x32'), state.step)

  def gradient(collections, noise, inputs, targets):
    def mean_loss(params):
      if spec.trained:
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: p if trains(spec, path) else jax.lax.stop_gradient(p), params)
      logits, updated = model.apply(
          {'params': params, 'hp': state.hp['model'], **collections}, inputs, train=True,
          rngs={'noise': noise}, mutable=[*collections, LOSSES])
      losses, extra = task.losses(logits, targets)
      total = loss = losses.mean()
      sown = jax.tree.leaves(updated.pop(LOSSES, {}))
      if sown:
        extra = {**extra, 'auxiliary': sum(term.sum() for term in sown)}
        total = loss + extra['auxiliary']
      return total, (loss, updated, extra)

    (_, found), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    return grads, *found

  if spec.micro_batches == 1:
    return gradient(state.collections, noise, inputs, targets)
  return _accumulated(gradient, spec.micro_batches, state, noise, inputs, targets)


def _updated(model, spec: OptimizerSpec, tx, factor, state: TrainState, grads, alive):
  """(params, opt_state) after the step; the params are unchanged where `alive` is False.

  With factors of the parameters, f.learning_rate and f.decay, and k as in
  `parametrization.optax_wiring`, which is the same update for a loop of the user,

    params <- params - rate * (f.learning_rate * direction(gradient) + k * weight_decay * params).
  """
  numbers = state.hp['model'].get(BRANCH)
  scaled = {'gradient': numbers['gradient']} if numbers else {}
  updates, opt_state = tx.update(grads, state.opt_state, state.params, **scaled)
  hp = state.hp['optimizer']
  schedule = factor(state.step)
  rate = hp['learning_rate'] * schedule
  decay = hp['weight_decay']

  def move(path, p, u, learning_rate=None, own=None):
    if not trains(spec, path):
      return p
    k = decay
    if learning_rate is not None:
      u = u * learning_rate
      k = decay * {'coupled': learning_rate * (own != 0), 'compensated': learning_rate * own,
                   'independent': own != 0}[spec.decay]
    decays = spec.decayed == 'all' or path[-1].key in _KERNELS
    if decays and spec.decay != 'independent':
      u = u + k * p
    step = rate * u
    if decays and spec.decay == 'independent':
      step = step + schedule * k * p
    return p - jnp.where(alive, step, jnp.zeros_like(p)).astype(p.dtype)

  params = jax.tree_util.tree_map_with_path(
      move, state.params, updates,
      *((numbers['learning_rate'], numbers['decay']) if numbers else ()))
  project = projection(model)
  if project:
    # A projection of what lies on the set already may round: a masked run keeps its bits.
    params = jax.tree.map(lambda old, new: jnp.where(alive, new, old), state.params,
                          project(params))
  return params, opt_state


def _accumulated(gradient, parts: int, state: TrainState, noise, inputs, targets):
  """What `gradient` gives, averaged over `parts` of the batch; collections pass through them."""
  def cut(x):
    return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

  def one(carry, part):
    summed, collections = carry
    number, inputs, targets = part
    grads, loss, collections, extra = gradient(
        collections, jax.random.fold_in(noise, number), inputs, targets)
    metrics = {name: value.mean() for name, value in {'loss': loss, **extra}.items()}
    return (jax.tree.map(jnp.add, summed, grads), dict(collections)), metrics

  (grads, collections), found = jax.lax.scan(
      one, (jax.tree.map(jnp.zeros_like, state.params), state.collections),
      (jnp.arange(parts), cut(inputs), cut(targets)))
  means = {name: values.mean() for name, values in found.items()}
  return jax.tree.map(lambda g: g / parts, grads), means.pop('loss'), collections, means
