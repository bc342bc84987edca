"""Per-layer statistics of any Linen model, without editing it, streaming over batches.

  stats = measure(model, variables, x, targets, loss)      # one batch; pure: jit, map, vmap it
  stats = merge_trees(stats, measure(model, variables, x2, targets2, loss))
  table = rows(stats)

`run` is that loop. A site is the output of one call of a module, named by the module's path
('blocks/feed_forward_0', with '#1' behind it for a second call). Modules under a lifted
transform of flax (nn.scan, nn.remat, nn.vmap) cannot be read from outside of it.

Gradients at a site are those with respect to a zero that is added to it, so a site also has one
where its output is used several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model_lib.analysis import streaming
from model_lib.analysis.streaming import Sums, Values, merge_trees
from model_lib.errors import UserError
from model_lib.models.activation_layer import ActivationLayer, branches
from model_lib.models.attention import Attention
from model_lib.models.recording import CALL, Call, record_calls
from model_lib.models.residual import Fixed, Trained

SATURATED = 0.01  # a unit is saturated where |f'(x)| is below this


class Recording(NamedTuple):
  """All calls in the order in which they began, and the entropies of attention by site."""

  output: Any
  calls: list[Call]
  attention: dict[str, tuple[jax.Array, jax.Array]]


class Stats(NamedTuple):
  """Accumulators of a model; a pytree.

  Attributes:
    sites: site -> its output.
    stream: '000 path' -> the residual stream before that sublayer, '... end' -> after the last.
    saturated: site of an activation -> count and number of inputs with |f'| < `SATURATED`.
    entropy: site of an attention -> sums per head [H] of the entropy in nats over log of the
      number of visible positions, and of the entropy; positions that see one are left out.
    gradients: site -> number of values and sum of squares of the gradient of one example's loss.
    parameters: number of examples, and the sum of the gradients of their losses.
  """

  sites: dict[str, Values]
  stream: dict[str, Values]
  saturated: dict[str, Sums]
  entropy: dict[str, tuple[Sums, Sums]]
  gradients: dict[str, Sums]
  parameters: Sums | None


def record(model: nn.Module, variables: Mapping, x: jax.Array, train: bool = False,
           rngs: Mapping | None = None, added: Mapping[str, jax.Array] | None = None) -> Recording:
  """Applies the model as `model.apply(variables, x, train=train)` and keeps every call.

  Args:
    model, variables, x, train, rngs: of the call; changes of state are dropped.
    added: site -> array that is added to the site's output.

  Returns:
    The recording; inside a trace its arrays are tracers.
  """
  state = [name for name in variables if name not in ('params', 'hp')]

  def add(call: Call):
    more = added.get(call.site) if call.method == CALL else None
    return call.output if more is None else call.output + more

  output, calls = record_calls(
      lambda: model.apply(variables, x, train=train, rngs=rngs, mutable=state if train else False),
      (CALL, '_normalized'), add if added else None)
  attention = {call.site: _entropy(*call.output, call.module.causal) for call in calls
               if call.method == '_normalized' and isinstance(call.module, Attention)}
  return Recording(output[0] if train else output,
                   [call for call in calls if call.method == CALL], attention)


def of_module(variables: Mapping, path: Sequence[str]) -> dict[str, Any]:
  """The variables of the module at the path, as its own `apply` takes them."""
  found = {}
  for collection, tree in variables.items():
    for name in path:
      tree = tree.get(name, {}) if isinstance(tree, Mapping) else {}
    if tree:
      found[collection] = tree
  return found


def measure(model: nn.Module, variables: Mapping, x: jax.Array, targets: Any = None,
            loss: Callable[[jax.Array, Any], jax.Array] | None = None, train: bool = False,
            rngs: Mapping | None = None, sites: str = '.*') -> Stats:
  """The accumulators of one batch. Pure: inside jit, lax.map over variables, vmap.

  Args:
    model: called as `model.apply(variables, x, train=train)`.
    variables: its variables.
    x: [B, ...].
    targets: of the loss.
    loss: (output, targets) -> mean over the B examples; None: no gradients are taken.
    train: whether the norms use the batch.
    rngs: random streams of the model.
    sites: regular expression that a whole site matches to be measured.

  Returns:
    The accumulators.

  Raises:
    UserError: no site matches.
  """
  chosen = re.compile(sites)
  shapes, added = {}, None
  if loss is not None:
    def outputs():
      recording = record(model, variables, x, train, rngs)
      return {call.site: call.array for call in recording.calls
              if call.array is not None and chosen.fullmatch(call.site)}
    shapes = jax.eval_shape(outputs)
    added = {site: jnp.zeros(shape.shape, shape.dtype) for site, shape in shapes.items()
             if jnp.issubdtype(shape.dtype, jnp.inexact)}
  params = variables.get('params', {})

  def forward(params, added):
    full = {**variables, 'params': params}
    recording = record(model, full, x, train, rngs, added)
    stats = _forward_stats(recording, full, chosen)
    return (jnp.zeros(()) if loss is None else loss(recording.output, targets)), stats

  if loss is None:
    return forward(params, None)[1]
  (of_params, of_added), stats = jax.grad(forward, (0, 1), has_aux=True)(params, added)
  examples = x.shape[0]
  # The loss is a mean, so the gradient of one example's own loss is `examples` times as large.
  gradients = {site: Sums(jnp.asarray(g.size, jnp.int32),
                          jnp.sum(jnp.square(g.astype(jnp.float32) * examples)))
               for site, g in of_added.items()}
  parameters = Sums(jnp.asarray(examples, jnp.int32),
                    jax.tree.map(lambda g: g * examples, of_params))
  return stats._replace(gradients=gradients, parameters=parameters)


def run(model: nn.Module, variables: Mapping, batches: Iterable, **options) -> Stats:
  """`measure` over batches x, or (x, targets) with `loss=`, merged; one compile per batch shape.

  Raises:
    UserError: there is no batch.
  """
  step = jax.jit(lambda variables, x, targets: measure(model, variables, x, targets, **options))
  total = None
  for batch in batches:
    x, targets = batch if isinstance(batch, tuple) else (batch, None)
    part = step(variables, x, targets)
    total = part if total is None else merge_trees(total, part)
  if total is None:
    raise UserError('probes: there is no batch; give at least one')
  return total


def _forward_stats(recording: Recording, variables: Mapping, chosen: re.Pattern) -> Stats:
  calls = [call for call in recording.calls
           if call.array is not None and chosen.fullmatch(call.site)
           and jnp.issubdtype(call.array.dtype, jnp.inexact) and call.array.ndim]
  if not calls:
    known = [call.site for call in recording.calls][:5]
    raise UserError(f'probes: no site matches {chosen.pattern!r}; sites are e.g. '
                    f'{", ".join(known)}')
  saturated = {}
  for call in calls:
    slopes = _slopes(call, variables)
    if slopes is not None:
      saturated[call.site] = Sums(jnp.asarray(slopes.size, jnp.int32),
                                  jnp.sum(jnp.abs(slopes) < SATURATED).astype(jnp.int32))
  return Stats(
    _values({call.site: call.array for call in calls}),
    _values({f'{number:03d} {name}': x
             for number, (name, x) in enumerate(residual_stream(recording.calls))}),
    saturated, {site: sums for site, sums in recording.attention.items()
                if chosen.fullmatch(site)}, {}, None)


def _values(arrays: Mapping[str, jax.Array]) -> dict[str, Values]:
  """The accumulators; arrays of one shape go together, since each program is slow to compile."""
  groups: dict[Any, list[str]] = {}
  for name, x in arrays.items():
    groups.setdefault((x.shape, x.dtype), []).append(name)
  found = {}
  for names in groups.values():
    together = jax.vmap(streaming.values)(jnp.stack([arrays[name] for name in names]))
    for i, name in enumerate(names):
      found[name] = jax.tree.map(lambda leaf, i=i: leaf[i], together)
  return found


def _slopes(call: Call, variables: Mapping) -> jax.Array | None:
  """f'(x) at the inputs of a pointwise activation, with the layer's own parameters."""
  if not isinstance(call.module, ActivationLayer) or len(call.inputs) != 1:
    return None
  if any(activation.kind != 'pointwise' for activation in branches(call.module.spec)):
    return None
  own, (x,) = of_module(variables, call.path), call.inputs
  # Backwards: a program of the search's bytecode has no forward-mode derivative.
  y, back = jax.vjp(lambda x: call.module.apply(own, x), x)
  return jax.lax.stop_gradient(back(jnp.ones_like(y))[0])


def _entropy(q: jax.Array, k: jax.Array, multiplier: jax.Array | float,
             causal: bool) -> tuple[Sums, Sums]:
  """Per head, summed over examples and positions; q [B, T, H, d], k [B, S, H, d].

  Returns:
    Of the entropy over the log of the number of visible positions, and of the entropy (nats).
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bthd,bshd->bhts', q, k, preferred_element_type=wide) * multiplier
  queries, keys = logits.shape[-2:]
  seen = jnp.ones((queries, keys), bool)
  if causal:
    seen = jnp.tril(seen)
  logp = jax.nn.log_softmax(jnp.where(seen[None, None], logits, -1e30), axis=-1)
  entropy = -jnp.sum(jnp.where(seen[None, None], jnp.exp(logp) * logp, 0.0), axis=-1)  # [B, H, T]
  visible = jnp.sum(seen, axis=-1)
  counts = (visible > 1)[None, None]
  share = entropy / jnp.log(jnp.maximum(visible, 2))[None, None]
  count = q.shape[0] * jnp.sum(visible > 1)
  return tuple(jax.lax.stop_gradient(Sums(count, jnp.sum(jnp.where(counts, part, 0.0), (0, 2))))
               for part in (share, entropy))


def residual_stream(calls: Sequence[Call]) -> list[tuple[str, jax.Array]]:
  """The residual stream before each sublayer of a `models.residual.Stack`, and behind the last.

  A sublayer X is an outermost module that knows its `branch`. Its norm on the input, or else X
  itself, reads the stream (after the factor on the input of a branch, where the row has one). The
  end is what the next sibling of the last sublayer reads: the final norm, or the readout; without
  one it is the output of the module that holds the stack.
  """
  branches_at: list[tuple[str, ...]] = []
  found, last = [], 0
  for i, call in enumerate(calls):
    if (getattr(call.module, 'branch', None) is None or isinstance(call.module, (Fixed, Trained))
        or any(call.path[:len(path)] == path for path in branches_at) or not call.inputs):
      continue
    branches_at.append(call.path)
    *parent, name = call.path
    norms = [(*parent, f'norm_{name}'), (*parent, f'norm_input_{name}')]
    reader = next((before for before in calls[:i] if before.path in norms), call)
    found.append(('/'.join(call.path), reader.inputs[0]))
    last = i
  if not found:
    return found
  *parent, own = calls[last].path
  shape = found[-1][1].shape
  for call in calls[last + 1:]:
    sibling = len(call.path) == len(parent) + 1 and list(call.path[:-1]) == parent
    if sibling and call.inputs and not call.path[-1].endswith(own):
      if call.inputs[0].shape == shape:
        found.append(('end', call.inputs[0]))
      return found
  holder = next(call for call in calls if list(call.path) == parent)
  if holder.array is not None and holder.array.shape == shape:
    found.append(('end', holder.array))
  return found


def rows(stats: Stats) -> list[dict[str, Any]]:
  """One row per site, in the order of the names, with the numbers of `streaming.summary` and

    saturated: share of an activation's inputs with |f'(x)| < `SATURATED`; nan elsewhere.
    gradient_rms: root mean square of an entry of the gradient of one example's loss.
    entropy, entropy_share: per head, mean entropy in nats, and over log of the visible positions.
  """
  table = []
  for site, accumulator in stats.sites.items():
    row: dict[str, Any] = {'site': site, **streaming.summary(accumulator)}
    row['saturated'] = _mean(stats.saturated.get(site))
    row['gradient_rms'] = math.sqrt(_mean(stats.gradients.get(site)))
    if site in stats.entropy:
      share, entropy = stats.entropy[site]
      row['entropy'] = np.asarray(entropy.total, np.float64) / int(entropy.count)
      row['entropy_share'] = np.asarray(share.total, np.float64) / int(share.count)
    table.append(row)
  return table


def stream_rows(stats: Stats) -> list[dict[str, Any]]:
  """The residual stream, in order: what reads it, and its statistics."""
  return [{'before': key.partition(' ')[2], **streaming.summary(stats.stream[key])}
          for key in sorted(stats.stream)]


def parameter_rows(stats: Stats, params: Mapping, learning_rate: float) -> list[dict[str, Any]]:
  """One row per parameter array w, with g the gradient of the mean loss over all of the data.

    norm, gradient_norm: |w|, |g|.
    relative_update: learning_rate |g| / |w|, a step of gradient descent.
    radial: g.w / (|g| |w|); 0 to rounding where the loss does not depend on |w|, as for a weight
      before a norm.
    effective_rate: learning_rate / |w|^2, the step on the sphere of such a weight (van Laarhoven
      2017, arXiv:1706.05350); no meaning where `radial` is not 0.

  Raises:
    UserError: the statistics were taken without a loss.
  """
  if stats.parameters is None:
    raise UserError('probes: gradients need a loss; measure with loss=')
  count = int(stats.parameters.count)
  table = []
  leaves = jax.tree_util.tree_leaves_with_path(stats.parameters.total)
  for (path, g), w in zip(leaves, jax.tree.leaves(params), strict=True):
    w, g = np.asarray(w, np.float64).ravel(), np.asarray(g, np.float64).ravel() / count
    size, slope = float(np.linalg.norm(w)), float(np.linalg.norm(g))
    table.append({
      'parameter': '/'.join(key.key for key in path), 'norm': size, 'gradient_norm': slope,
      'relative_update': learning_rate * slope / size if size else math.nan,
      'radial': float(g @ w) / (size * slope) if size and slope else math.nan,
      'effective_rate': learning_rate / size ** 2 if size else math.nan})
  return table


def _mean(sums: Sums | None) -> float:
  return math.nan if sums is None else float(sums.total) / int(sums.count)
