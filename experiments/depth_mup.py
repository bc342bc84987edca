"""Learning rates that survive a change of depth and width: depth-muP, muP, and what they rival.

  python -m experiments.depth_mup --preset=cpu --workdir=runs/depth

Yang et al. 2023 (Tensor Programs VI, arXiv:2310.02244) scale every residual branch of one matrix by
a (L / L_b)^-1/2, and Adam's update in it by (L / L_b)^-1/2: the best learning rate of a shallow
network then is that of a deep one, and layers stay diverse. Dey et al. 2025 (CompleteP) take 1 / L
for the branches of transformers. Yang et al. 2022 (Tensor Programs V, arXiv:2203.03466) do the same
for width. The claims are about regret: what a deep or wide network loses by the learning rate of a
small one, against its own best.

Parts (--config.parts=a,b runs some of them):

depth: residual MLPs without norms or biases (nonlinearity after the weight, mean subtraction, first
and last layer frozen) memorize random labels of 1,024 images. (a, learning rate) are tuned at the
base depth once per nonlinearity, where all parametrizations are the same; then a is kept, and the
learning rate is swept at every depth. Families: depth-muP, ODE (1 / L), the standard
parametrization, abs in place of ReLU, as it is and at ReLU's variance; (1/2, 0), branches of
depth-muP with a constant update, is computed from the same runs, since it is an exact relabelling.
Beside them: diversity of the features along depth and of the gradients between neighbouring layers.

width: MLPs of several widths, standard parametrization against muP, under Adam and SGD; AdamW's
decay coupled to the scaled learning rate, compensated for it, and independent; the multiplier a
over depth; the second-order share of an update of a branch of two matrices.

gpt (of the presets gpu and paper; small in cpu, where it is asked for): the same transfer over
width in a language model of bytes, and how far its stream moves at several depths.

Cost on two CPU cores, beside other work: depth 22 minutes, width and gpt 14 each. To expect on
digits: the rate tuned at 16 blocks has no regret at 64 under depth-muP; its lowest log-loss falls
by 2.5 [1.7, 3.3] from 4 blocks to 64; ODE's features become redundant (slope .86 to .88 against .51
to .56); gradients of neighbouring layers are as alike as predicted. The update's power of depth
comes out as .67 [.59, .78] in place of 1/2; with a tuned for it at 4 blocks abs does not train from
16 on; the standard parametrization fails from 32 on but for 4 of 192 runs
(results/depth_mup/cpu-depth). The rate tuned at width 64 is the best one at 512 under muP and Adam;
in the standard parametrization it loses 2.3 nats of log-loss, though that is the better one at its
own best rate; under SGD hardly anything moves (results/depth_mup/cpu-width). In the language model
the rate tuned at width 32 is good at 128 under muP alone (results/depth_mup/cpu-gpt).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from experiments.parts import depth, gpt_width, width
from experiments.parts.depth_cohorts import Depth
from experiments.parts.depth_families import FAMILIES
from experiments.parts.gpt_width import Gpt, TEXT
from experiments.parts.width_cohorts import Width
from launch.study import DataRequest, EngineConfig, IoConfig, Report, Run, Study, field, main
from launch.study.claims import NOT_TESTABLE, Claim, Outcome
from model_lib.errors import UserError

PARTS = {'depth': depth, 'width': width, 'gpt': gpt_width}


@dataclasses.dataclass(frozen=True)
class Config:
  """The study's config."""

  seed: int = field(0, 'Shifts every seed of the study.', low=0, high=10**5)
  dataset: str = field('digits', 'A prepared data set of images.')
  classes: int = field(10, 'Its classes: what guessing costs bounds every loss that is compared.',
                       low=2)
  images: int = field(1024, 'Training images that are used, the first ones; 0 for all.', low=0)
  parts: tuple[str, ...] = field(('depth', 'width'), 'Parts to run.', choices=tuple(PARTS))
  depth: Depth = Depth()
  width: Width = Width()
  gpt: Gpt = Gpt()
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig(tensorboard=False)


_TINY_DEPTH = dict(
    width=16, depths=(1, 2, 4), families=('depth_mup', 'ode'), multipliers=(0.5, 1.0), rates=5,
    lowest=-8.0, seeds=2, steps=16, batch_size=32, diversity_arms=('depth_mup',),
    diversity_depths=(64,), diversity_marks=(2, 4), diversity_seeds=2, gradient_width=16,
    gradient_depth=8, gradient_functions=('relu', 'tanh'))
_TINY_WIDTH = dict(
    widths=(8, 16), layers=2, optimizers=('adam',), rates=5, adam_lowest=-9.0, seeds=2, steps=16,
    batch_size=32, decay=0.0, multiplied=False, second_depths=(2, 4), second_seeds=1)
_SPANNING = (  # from even functions, whose gradients are orthogonal, to the identity
    'identity', 'relu', 'leaky_relu', 'abs', 'tanh', 'erf', 'sigmoid', 'soft_sign', 'hard_tanh',
    'elu', 'selu', 'gelu', 'silu', 'mish', 'hard_silu', 'softplus', 'sin', 'gaussian', 'lisht',
    'relu_squared')
PRESETS = {
    'smoke': {**{f'depth.{k}': v for k, v in _TINY_DEPTH.items()},
              **{f'width.{k}': v for k, v in _TINY_WIDTH.items()}},
    'cpu': {'depth.families': ('depth_mup', 'ode', 'sp', 'abs_matched', 'abs_same', 'pre'),
            'depth.seeds': 8, 'depth.gradient_functions': _SPANNING, 'depth.map_depths': (2, 64),
            'width.seeds': 5, 'gpt.dims': (32, 64, 128), 'gpt.head_dim': 16, 'gpt.window': 32,
            'gpt.batch_size': 8, 'gpt.steps': 300},
    # The paper's data and width, an eighth of its steps.
    'gpu': {'parts': ('depth', 'width', 'gpt'), 'dataset': 'cifar10', 'images': 0,
            'depth.families': ('depth_mup', 'ode', 'sp', 'abs'), 'depth.random_labels': False,
            'depth.width': 256, 'depth.depths': (8, 16, 32, 64, 128, 256), 'depth.steps': 5000,
            'depth.remat': 'block', 'depth.diversity_depths': (256, 1024),
            'depth.diversity_marks': (100, 1000), 'width.random_labels': False,
            'width.widths': (64, 256, 1024), 'width.decay_widths': (64, 1024),
            'width.decay': 0.125, 'width.seeds': 4, 'width.steps': 2000, 'engine.batching': 'vmap'},
    'paper': {'parts': ('depth', 'width', 'gpt'), 'dataset': 'cifar10', 'images': 0,
              'depth.families': tuple(FAMILIES), 'depth.random_labels': False, 'depth.width': 256,
              'depth.depths': (8, 16, 32, 64, 128, 256, 512, 1024), 'depth.steps': 39000,
              'depth.lowest': -12.0, 'depth.rates': 14, 'depth.sp_lowest': -15.0,
              'depth.sp_rates': 14, 'depth.seeds': 5, 'depth.remat': 'nested',
              'depth.diversity_depths': (256, 512, 1024, 2048, 4096, 8192),
              'depth.diversity_marks': (100, 500, 1000), 'depth.diversity_seeds': 5,
              'depth.multipliers': tuple(2 ** (i / 2) for i in range(-6, 5)),
              # Fig. 7: log2 a from .5 on, log2 (rate / 1e-3) from -7 on.
              'depth.map_family': 'abs_normed_two', 'depth.map_depths': (2, 32, 1024),
              'depth.map_width': 256, 'depth.map_points': 14, 'depth.map_multiplier': 7.5,
              'depth.map_octave': -13.5, 'depth.map_step': 0.5,
              'depth.map_steps': 39000, 'width.random_labels': False, 'width.steps': 20000,
              'width.widths': (64, 128, 256, 512, 1024, 2048, 4096), 'width.seeds': 5,
              'width.decay_widths': (64, 512, 4096), 'width.decay': 0.0125,
              'gpt.dims': (64, 128, 256, 512, 1024), 'gpt.steps': 5000, 'gpt.depth': 4,
              'engine.batching': 'vmap'},
}
PRESET_NOTES = {
    'cpu': ('Blocks of two matrices have their heat maps here and no sweep over depth: two and the '
            'families with a norm are in paper alone, abs without the variance of ReLU in gpu '
            'too.',),
    'gpu': ('On one H100 about 20 minutes a part: an estimate from products, not measured.',),
    'paper': ('Not run. The networks of Yang et al. 2023, Figs. 2 to 7, 10, 11, 13 and 17 to 19; '
              'what is not given there is a guess: Adam at .9 / .999 with a constant rate, data '
              'standardized and not augmented, U of variance 1 / inputs, V of std 4 / n. Its Figs. '
              '8 and 9 (linear networks against a recursion), 12 (with a norm) and 14 to 16 '
              '(Megatron) are not here. The estimate is for two CPU cores; one H100 is about a '
              'thousand times as fast where its memory is filled.',),
}


def data(config: Config) -> DataRequest:
  """The images; the seed also decides the permutations of the labels."""
  beside = ()
  if 'gpt' in config.parts:
    beside = ((TEXT, DataRequest(config.gpt.text, eval_batch=64, eval_most=256,
                                 window=config.gpt.window, kind='tokens')),)
  return DataRequest(config.dataset, seed=config.seed, train_most=config.images, eval_most=256,
                     beside=beside)


def cohorts(config: Config):
  """Those of the parts, one after the other."""
  for part in config.parts:
    yield from PARTS[part].cohorts(config)


def claims(config: Config) -> tuple[Claim, ...]:
  """Fixed before any run."""
  listed = json.loads((Path(__file__).parent / 'paper_values' / 'depth_mup.json')
                      .read_text(encoding='utf-8'))
  return tuple(Claim(**entry) for part in config.parts for entry in listed[part])


def report(run: Run) -> Report:
  """What the parts report, one after the other."""
  reports = [PARTS[part].report(run) for part in run.config.parts]
  found = {key: value for report in reports for key, value in report.outcomes.items()}
  for claim in claims(run.config):
    found.setdefault(claim.id, Outcome(NOT_TESTABLE, None, None,
                                       None if claim.kind == 'check' else 0,
                                       'what it is about was not run'))
  return Report([table for report in reports for table in report.tables], found,
                {key: value for report in reports for key, value in report.figures.items()})


def check(config: Config) -> None:
  """Whether every part can be run as the config says; UserError if not."""
  if len(config.parts) != len(set(config.parts)):
    raise UserError('config.parts: must not repeat a part')
  for part in config.parts:
    PARTS[part].check(config)


STUDY = Study(name='depth_mup', config=Config, presets=PRESETS, preset_notes=PRESET_NOTES,
              data=data, cohorts=cohorts, report=report, claims=claims, check=check)

if __name__ == '__main__':
  main(STUDY)
