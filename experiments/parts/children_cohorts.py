"""A search with vision transformers as children: halving, then finalists in two networks.

Many functions of a search space are trained for a few steps in one small vision transformer, all in
one program; the best of them longer, and so on. The finalists choose their learning rates in a
ResNet and in a larger vision transformer, beside functions that are known, and run again with fresh
seeds. Copies of ReLU are trained at every stage: what they differ by is luck.
`experiments.activation_search` describes the protocol; `config` is that study's.

Cost, for CIFAR-10 on one H100: an estimate, not measured. A training step of batch 128 and 64
tokens takes 6 x 128 x 64 x parameters operations: 59 G for the children of 1.2 million parameters,
264 G for ViT-Tiny of 5.4 million; 31 G for ResNet-20. At 1e14 per second (TF32, a fifth of the
peak), 1e13 for the ResNet, whose convolutions become grouped ones under vmap, and half as much
again for what memory bounds, the 280 thousand steps of the children take 4 to 7 minutes, and the
77 thousand or more of each network 5; with compilation and evaluation about 20. There is no
augmentation, which the training engine does not have, and no half precision.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from experiments.parts.comparison import programs
from experiments.parts.search_cohorts import chosen_factors, gain, key, valid
from launch.study import Measurement, field
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PART = 'children'
REFERENCE, AS_EXPRESSION = 'relu', 'relu(x)'
OPTIMIZER = OptimizerSpec(schedule='cosine', warmup=0.1)
NETWORKS = {'cnn': 'resnet', 'vit': 'vit'}  # model -> its name in the claims
PHASES = {'rung': 0, 'selection': 1, 'null_selection': 1, 'fresh': 2, 'null_fresh': 2}
MOST_SEEDS, MOST_COPIES = 5003, 101  # that `member` keeps apart


@dataclasses.dataclass(frozen=True)
class Vit:
  """A vision transformer."""

  patch: int = field(4, 'Patch size in pixels.', low=1)
  dim: int = field(192, 'Width.', low=4)
  heads: int = field(3, 'Attention heads.', low=1)
  depth: int = field(12, 'Blocks.', low=1)
  rate: float = field(1e-3, "Adam's peak learning rate at factor 1.", low=1e-8)

  def model(self, activation: str, init_gain: bool) -> ModelSpec:
    return ModelSpec('vit', {'patch': self.patch, 'dim': self.dim, 'heads': self.heads,
                             'depth': self.depth, 'activation': activation,
                             'init_gain': init_gain})


@dataclasses.dataclass(frozen=True)
class Children:
  """The halving and its finalists."""

  space: str = field('act_bench', 'Search space: act_bench or swish.')
  operators: tuple[str, ...] = field((), 'The operators of the space to keep; empty for all.')
  candidates: int = field(256, 'Functions of the space, drawn at random.', low=2)
  rungs: tuple[int, ...] = field((400, 1200, 3600), 'Optimizer steps of each rung, ascending.',
                                 low=1)
  keep: float = field(0.25, 'Share of the functions that goes on to the next rung.', low=0.01,
                      high=0.99)
  copies: int = field(8, 'Copies of ReLU, each with seeds of its own, on every rung.', low=1,
                      high=MOST_COPIES - 1)
  child: Vit = Vit(dim=128, heads=4, depth=6)
  finalists: int = field(8, 'Functions of the last rung that go on.', low=1)
  known: tuple[str, ...] = field(
      ('relu', 'gelu', 'silu', 'mish', 'golu', 'crrelu', 'ash(axes=last)'),
      'Spec strings of the registry beside the finalists; ReLU must be among them.')
  vit: Vit = Vit()
  cnn_widths: tuple[int, ...] = field((16, 32, 64), "The ResNet's channels by stage.", low=1)
  cnn_blocks: int = field(3, 'Blocks per stage; 3 with three stages is ResNet-20.', low=1)
  cnn_rate: float = field(3e-3, "Adam's peak learning rate of the ResNet at factor 1.", low=1e-8)
  steps: int = field(600, 'Optimizer steps of the two networks.', low=1)
  batch_size: int = field(128, 'Images per step.', low=1)
  selection_seeds: int = field(1, 'Seeds per function, network and rate for the choice.', low=1,
                               high=MOST_SEEDS)
  fresh_seeds: int = field(5, 'Fresh seeds per function and network.', low=2, high=MOST_SEEDS)
  null_copies: int = field(1, 'Copies of ReLU in the two networks, through the same selection.',
                           low=1, high=MOST_COPIES - 1)


def drawn(config: Any) -> tuple[str, ...]:
  """The functions of the first rung, in random order; what is known stands beside them anyway."""
  from model_lib.search import canonical
  c = config.children
  found = [str(canonical(f)) for f in valid(c.space, c.operators).valid]
  found = [found[i] for i in np.random.default_rng(config.seed).permutation(len(found))]
  return tuple([text for text in found if text != AS_EXPRESSION][:c.candidates])


def member(config: Any, phase: str, model: str, activation: str, number: int, rate: float,
           hp: dict[str, Any], copy: int = 0, factor: float = 1.0,
           **tags: str | float) -> Member:
  """A run; those of equal phase, copy and number share their seeds, whatever the network."""
  factor = float(f'{factor:.6g}')
  phase = f'null_{phase}' if copy and phase != 'rung' else phase
  seed = ((config.seed * 3 + PHASES[phase]) * MOST_COPIES + copy) * MOST_SEEDS + number
  split = number % config.splits
  tags = {'part': PART, **tags, 'phase': phase, 'model': model, 'activation': activation,
          'copy': copy, 'lr_factor': factor, 'learning_rate': rate * factor, 'seed': number,
          'split': split, 'labels': 0}
  return Member(tags, seed, seed, split, {'learning_rate': rate * factor, **hp})


def candidate(config: Any, text: str) -> dict[str, Any]:
  """The swept numbers of an expression."""
  return {'candidate': text, 'init_gain': gain(text) if config.init_gain else math.sqrt(2.0)}


def kept(rows: pd.DataFrame, share: float) -> list[str]:
  """The functions with the lowest validation losses, copies of ReLU apart; at least one.

  A diverged run goes on nowhere.
  """
  own = rows[rows['copy'] == 0]
  alive = own[own.diverged_step < 0].sort_values('val_loss', kind='stable')
  return alive.activation.head(max(1, int(share * len(own) + 1e-9))).tolist()


def halving(config: Any):
  """The rungs, each a cohort; returns the functions of the last one, the best first."""
  c, texts = config.children, list(drawn(config))
  for number, steps in enumerate(c.rungs):
    runs = [(text, 0) for text in texts]
    runs += [(AS_EXPRESSION, copy) for copy in range(1, c.copies + 1)]
    rows = yield [Cohort(
        f'children-rung-{number}', c.child.model('table', config.init_gain),
        tuple(member(config, 'rung', 'child', text, 0, c.child.rate, candidate(config, text), copy,
                     rung=number) for text, copy in runs),
        steps, c.batch_size, OPTIMIZER)]
    texts = kept(rows, 1.0 if number == len(c.rungs) - 1 else c.keep)
  return texts


def finalists(config: Any, texts: list[str]) -> list[str]:
  """The first functions of a list that are different and not known."""
  found = {key(text): '' for text in (AS_EXPRESSION, 'gelu(x)', 'swish(x)', 'mish(x)')}
  for text in texts:
    found.setdefault(key(text), text)
  return [text for text in found.values() if text][:config.children.finalists]


def network(config: Any, name: str, activation: str) -> tuple[ModelSpec, float]:
  """The ResNet or the larger vision transformer, and its learning rate at factor 1."""
  c = config.children
  if name == 'vit':
    return c.vit.model(activation, config.init_gain), c.vit.rate
  return ModelSpec('cnn', {'widths': list(c.cnn_widths), 'blocks': c.cnn_blocks,
                           'activation': activation, 'init_gain': config.init_gain}), c.cnn_rate


def compare(config: Any, name: str, texts: list[str]):
  """Finalists and known functions in a network: their rates, then fresh seeds."""
  from model_lib.models.activation_layer import consumer_gains
  c = config.children
  # (name, spec, [(activation, its swept numbers)]): functions share a program where they can.
  listed = [('found', 'table', [(text, candidate(config, text)) for text in texts])]
  for part, spec, activations in programs(c.known):
    gains = consumer_gains(spec, config.init_gain)
    listed.append((part, spec, [
        (a, {'activation_code': i, 'init_gain': gains[i]} if spec.startswith('switch') else {})
        for i, a in enumerate(activations)]))

  def cohorts_of(stage: str, phase: str, factors, seeds: int) -> list[Cohort]:
    found = []
    for part, spec, activations in listed:
      model, rate = network(config, name, spec)
      members = []
      for activation, hp in activations:
        copies = c.null_copies if activation == REFERENCE else 0
        members += [member(config, phase, name, activation, number, rate, hp, copy, factor)
                    for copy in range(copies + 1) for factor in factors(activation, copy)
                    for number in range(seeds)]
      if members:
        found.append(Cohort(f'children-{name}-{stage}-{part}', model, tuple(members), c.steps,
                            c.batch_size, OPTIMIZER))
    return found

  factor = yield from chosen_factors(config, lambda stage, factors: cohorts_of(
      stage, 'selection', factors, c.selection_seeds))
  yield cohorts_of('fresh', 'fresh', lambda a, copy: (factor[a, copy],), c.fresh_seeds)


def cohorts(config: Any):
  """The halving; what its first rung says of the proxies; the finalists in both networks."""
  from experiments.measurements import children as measured
  texts = yield from halving(config)
  yield [Measurement('children-proxies', measured.measure_proxies, {'cohort': 'children-rung-0'},
                     seconds=0.05 * config.children.candidates)]
  texts = finalists(config, texts)
  for name in NETWORKS:
    yield from compare(config, name, texts)


def check(config: Any) -> None:
  """Whether the space has so many functions, and the rungs ascend; UserError if not."""
  from model_lib.activations import get_activation
  c = config.children
  if list(c.rungs) != sorted(set(c.rungs)):
    raise UserError('config.children.rungs: must ascend without repetition')
  if REFERENCE not in c.known:
    raise UserError(f'config.children.known: {REFERENCE} is missing; everything is compared with '
                    'it')
  if len({get_activation(name).spec for name in c.known}) < len(c.known):
    raise UserError('config.children.known: an activation stands there twice')
  found = valid(c.space, c.operators)
  if len(drawn(config)) < c.candidates:
    raise UserError(f'config.children.candidates: {c.space} has {len(found.valid) - 1} functions '
                    f'but ReLU, not {c.candidates}')
