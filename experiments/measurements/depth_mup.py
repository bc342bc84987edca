"""What the depth-muP study measures on trained networks, and on networks at their start.

Every function returns flat rows with the columns part, phase, measure and value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import math
from typing import Any

import numpy as np

from launch.study import Given
from model_lib.training.cohort import ModelSpec, OptimizerSpec

Row = dict[str, Any]


def batch(given: Given, examples: int) -> tuple[np.ndarray, np.ndarray]:
  """(standardized inputs [N, ...], the data's own labels [N]) of the first training examples."""
  from model_lib.training.tasks import Classification
  data = given.data.dataset
  chosen = given.data.splits[0].train[:examples]
  task = Classification(float(data.mean), float(data.std))
  inputs, labels = task.batch({'inputs': data.inputs, 'labels': given.data.label_tables(0)},
                              chosen, 0)
  return np.asarray(inputs), np.asarray(labels)


def measure_start(given: Given, networks: Sequence[Mapping[str, Any]], seeds: Sequence[int],
                  examples: int) -> list[Row]:
  """Loss at step 0, and the growth of the stream, rms(x_L) / rms(x_0).

  Args:
    networks: each {'family', 'depth', 'a', 'model': {'name', 'arguments', 'base', 'delta'}, 'hp'}.
    seeds: of the initializations.
    examples: of the training split, with their own labels.
  """
  import jax
  import jax.numpy as jnp
  from model_lib.models.hyper import set_hp
  from model_lib.training.tasks import cross_entropy

  inputs, labels = batch(given, examples)
  keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
  rows = []
  for network in networks:
    model = given.data.build(ModelSpec(**network['model']), OptimizerSpec())

    def start(key, model=model, network=network):
      variables = model.init(key, inputs[:2], train=False)
      variables = {**variables, 'hp': set_hp(variables['hp'], **network['hp'])}
      logits, found = model.apply(variables, inputs, train=False, mutable=['intermediates'])
      stream, = found['intermediates']['stack']['stream']
      rms = jnp.sqrt(jnp.mean(jnp.square(stream), axis=(1, 2)))
      return {'loss': cross_entropy(logits, labels).mean(), 'growth': rms[-1] / rms[0]}

    values = jax.device_get(jax.jit(lambda keys: jax.lax.map(start, keys))(keys))
    common = {'part': 'depth', 'phase': 'start', 'family': network['family'],
              'depth': network['depth'], 'a': network['a']}
    rows += [common | {'seed': i, 'measure': measure, 'value': float(value)}
             for measure, each in values.items() for i, value in enumerate(each)]
  return rows


def measure_features(given: Given, runs: Mapping[str, Sequence[int]], marks: Sequence[int],
                     examples: int) -> list[Row]:
  """Diversity of the features along depth, of networks at their start and at later steps.

  Args:
    runs: cohort -> seeds of its members' initializations; it kept its networks at all `marks` but
      the last one, which is its end.
    marks: steps, ascending.
    examples: of the training split, on which the stream is measured.

  Returns:
    Per network and step, 0 among them: `slope_stream` and `slope_change` (of log d on log eps, of
    x_t and of x_t - x_0), `moved` (rms(x_t - x_0) / rms(x_t)), and d itself with its `share`.
  """
  import jax
  from model_lib.analysis import feature_diversity as diversity

  inputs, _ = batch(given, examples)
  rows = []
  for name, seeds in runs.items():
    found = given.trained(name)

    def stream(variables, model=found.model):
      _, taps = model.apply(variables, inputs, train=False, mutable=['intermediates'])
      return taps['intermediates']['stack']['stream'][0]

    def start(args, model=found.model):
      seed, hp = args
      _, made = model.apply({'hp': hp}, inputs[:2], train=False, mutable=['params'],
                            rngs={'params': jax.random.key(seed)})
      return made['params']

    of_stream = jax.jit(stream)
    params = jax.jit(lambda args, start=start: jax.lax.map(start, args))(
        (np.array(seeds, np.uint32), found.variables['hp']))
    networks = {0: {**found.variables, 'params': params}}
    networks |= {step: given.trained(name, None if step == marks[-1] else step).variables
                 for step in marks}
    for i, row in enumerate(found.rows):
      first = None
      for step, variables in networks.items():
        x = np.asarray(of_stream(jax.tree.map(lambda leaf, i=i: leaf[i], variables)))
        common = {'part': 'depth', 'phase': 'features', 'family': row['family'],
                  'depth': row['depth'], 'seed': row['seed'], 'step': step}
        if first is None:
          first, kinds = x, {'stream': x}
        else:
          kinds = {'stream': x, 'change': x - first}
          rows.append(common | {'measure': 'moved', 'value': diversity.moved_share(x, first)})
        for kind, values in kinds.items():
          rows.append(common | {'measure': f'slope_{kind}', 'value': diversity.slope(values)})
          rows += [common | {'measure': f'distance_{kind}', 'share': share, 'value': float(d)}
                   for share, d in zip(diversity.SHARES, diversity.increments(values))]
  return rows


def pointwise() -> list[str]:
  """The catalogue's pointwise functions with a finite E f'^2 above 0, each function once.

  Of several that are the same at their parameters' first values, one without parameters.
  """
  from model_lib import activations
  found, seen = [], set()
  entries = {name: activations.get_activation(name) for name in activations.names()}
  for name, entry in sorted(entries.items(), key=lambda item: bool(item[1].parameters)):
    if entry.kind != 'pointwise' or seen & {name, *entry.duplicates}:
      continue
    if 0 < entry.moments().slope_second < math.inf:
      found.append(name)
      seen |= {name, *entry.duplicates}
  return found


def measure_gradients(given: Given, functions: Sequence[str], width: int, depth: int,
                      base_depth: int, examples: int, seed: int) -> list[Row]:
  """Cosines of the gradients of neighbouring layers at the start, and what is predicted.

  Args:
    functions: specs of pointwise functions; none for `pointwise()`.
    width, depth, base_depth: branches (L / L_b)^-1/2 f(W x), f scaled to E f'^2 = 1.
    examples: inputs.
    seed: of the draws.
  """
  del given
  from model_lib.activations import get_activation
  from model_lib.analysis import gradient_diversity

  return [{'part': 'depth', 'phase': 'gradients', 'activation': name, 'prenorm': prenorm,
           'depth': depth, 'width': width, 'measure': 'cosine',
           'predicted': float(get_activation(name).moments().slope_share),
           'value': gradient_diversity.measured(
               get_activation(name), bool(prenorm), depth, width, (depth / base_depth) ** -0.5,
               examples, seed)}
          for name in functions or pointwise() for prenorm in (1, 0)]


def measure_kept(given: Given, runs: Sequence[str], without: str, layer: str, decays: int
                 ) -> list[Row]:
  """Decay per step of a hidden kernel, from the share of its first values that is left at the end.

  The share is <w_1, w_T> / <w_1, w_1>, w_1 after the first step. Training changes it too: the
  decay is -ln of the share over that of the same run without a decay, over the steps between.

  Args:
    runs: cohorts that kept their networks at step 1.
    without: family of the runs without a decay.
    layer: name of the layer.
    decays: T - 1.
  """
  shares = {}
  for name in runs:
    first, last = (given.trained(name, step) for step in (1, None))
    before, after = (np.asarray(found.variables['params'][layer]['kernel'], np.float64)
                     for found in (first, last))
    for row, share in zip(last.rows, (before * after).sum((1, 2)) / (before ** 2).sum((1, 2)),
                          strict=True):
      shares[row['family'], row['width'], row['octave'], row['seed']] = float(share)
  rows = []
  for (family, width, octave, seed), share in shares.items():
    if family != without:
      ratio = share / shares[without, width, octave, seed]
      rows.append({'part': 'width', 'phase': 'kept', 'family': family, 'width': width,
                   'octave': octave, 'seed': seed, 'measure': 'decay',
                   'value': -math.log(ratio) / decays if ratio > 0 else math.nan})
  return rows


def measure_second_order(given: Given, depths: Sequence[int], seeds: int, alphas: Sequence[float],
                         published: Sequence[float], published_seeds: int, seed: int
                         ) -> list[Row]:
  """Second-order share of an update of a branch of two matrices, and the published measure.

  Args:
    depths: L, ascending from 2.
    seeds, published_seeds: initializations, of which the published measure takes the first ones.
    alphas, published: exponents of the branches for the share, and for the published measure.
    seed: of the first initialization.
  """
  import threadpoolctl
  from model_lib.analysis import second_order

  inputs, labels = batch(given, 128)
  x = inputs.reshape(len(inputs), -1).astype(np.float64)
  rows = []
  with threadpoolctl.threadpool_limits(1, 'blas'):  # small products: threads would wait
    for place, depth in itertools.product(range(seeds), depths):
      common = {'part': 'width', 'phase': 'second', 'depth': depth, 'seed': place}
      for alpha in alphas:
        network = second_order.Network(depth, alpha, seed=seed + place)
        rows.append(common | {'measure': 'share', 'alpha': alpha, 'value':
                              second_order.second_order_share(network, x, labels)})
      for alpha in published if place < published_seeds else ():
        network = second_order.Network(depth, alpha, 256, 'relu', seed + place, uniform_ends=True)
        rows += [common | {'measure': form, 'alpha': alpha, 'value': value} for form, value in
                 second_order.linearization_distances(network, x, labels).items()]
  return rows


def measure_moves(given: Given, rows: Mapping[str, str], dim: int, head_dim: int,
                  depths: Sequence[int], steps: int, rate: float, examples: int, seeds: int,
                  data: str) -> list[Row]:
  """How far the residual stream of language models moves in its first steps, by depth.

  Args:
    rows: name -> row of the table of parametrizations.
    dim, head_dim: sizes of the model.
    depths: its blocks; the first is the base depth.
    steps, rate: Adam's, on one batch.
    examples: windows of that batch.
    seeds: initializations.
    data: name of the text beside the study's data.
  """
  from model_lib.analysis import coordinate_check
  from model_lib.training.tasks import NextToken

  own = given.data.beside[data]
  windows = np.asarray(own.dataset.inputs[own.splits[0].train[:examples]], np.int32)
  inputs, targets = windows[:, :-1], windows[:, 1:]
  sizes = {'dim': dim, 'heads': dim // head_dim}
  wider = {'dim': 2 * dim, 'heads': 2 * dim // head_dim}
  optimizer, found = OptimizerSpec(eps=1e-12), []
  for name, row in rows.items():
    for depth in depths:
      spec = ModelSpec('gpt', {**sizes, 'depth': depth, 'parametrization': row},
                       {**sizes, 'depth': depths[0]}, {**wider, 'depth': depths[0]})
      program = coordinate_check.Program(own.build(spec, optimizer), NextToken(), inputs, targets,
                                         optimizer, steps, 'depth')
      trace = program.trace(depth, rate, range(seeds))
      found += [{'part': 'gpt', 'phase': 'moves', 'measure': 'move', 'family': name,
                 'depth': depth, 'place': place, 'step': step, 'seed': seed,
                 'value': float(values[seed, step])}
                for place, values in trace.move_rms.items()
                for seed in range(seeds) for step in sorted({1, 2, 4, steps}) if step <= steps]
  return found
