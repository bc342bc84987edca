"""Activation functions compared, searched for and explained, under one honest protocol.

  python -m experiments.activation_search --preset=quick --workdir=runs/quick

Five parts (--config.parts=a,b runs some of them):

comparison: which activation functions, put into the same network at their own best learning rate,
reach a lower test log-loss than ReLU, by more than copies of ReLU differ among themselves? Every
activation is trained at {1/3, 1, 3} x a base rate; the rate with the lowest mean validation loss is
chosen, one step further out where it lies at an edge; the chosen rate is trained again with fresh
seeds over several train / validation / test splits, and only these runs are compared, paired with
ReLU's of the same seed. As many extra copies of ReLU, each with its own seeds, go through the same
selection: the largest difference among them is the line that a winner must pass. A control trains
on shuffled labels. Initialization is corrected for each activation's gain E[f(z)^2]^-1/2, else the
comparison would rediscover which functions happen to suit ReLU's initialization
(config.init_gain=false does that). A small vision transformer repeats part of it; with 8 seeds it
names no winner.

search: every valid function of a search space (Act-Bench's, of Bingham and Miikkulainen 2023, by
default) is trained in one program per 500, as a table of values in place of code, with three seeds,
each on a split of its own; table.npz holds the losses. On that table 200 searches of every
algorithm are simulated: a search sees the validation loss of one seed, and its regret is in the
test losses of the others. The same searches on losses dealt out to other functions are the control.
Proxies that need no training are held against the losses by Kendall's tau, in the direction fixed
before. Live searches train what they ask for, of one number of training steps: evolution with
PANGAEA's mutations and learnable parameters, random search in its space, EAFO's steps from known
functions, and a differentiable relaxation of the table's space. The best functions of the table,
the live winners and the luckiest of many copies of ReLU choose their learning rates, up to three
steps beyond the edge, and run again with fresh seeds (what the copies lose is the winner's curse),
then in the vision transformer and in a small language model of bytes.

eafo: Sun et al. 2024 (arXiv:2405.12954) take a lower entropy of the activated distribution for
better, and correct ReLU by epsilon x e^(-x^2/2). The catalogue's fixed pointwise functions are
ranked by that entropy (plug-in, of f / sd f, bins of 0.1) against their test loss; and CRReLU
learns its epsilon per layer from above 0, 0 and below, beside another odd function of equal norm.

children (the preset gpu, on CIFAR-10): 256 functions of the space by successive halving in a small
vision transformer, whose best go on in a ResNet-20 and in ViT-Tiny, beside known functions.

glu: gated feed-forward layers against plain ones in a language model of bytes, at equal parameters,
each at its own rate; does the order of Shazeer 2020 (arXiv:2002.05202) come out?

Cost on two CPU cores: smoke under 30 s; the comparison of cpu 16 minutes beside other work, 3.9 GB.
To expect from it on digits, in nats: ReLU .096 [.091, .101], identity worse by .030 [.026, .034],
the best (x sin x) better by .032 [.025, .038], copies of ReLU apart by up to .023
(results/activation_search/cpu; results/README.md shows the tables). Search 24 minutes, eafo 3, glu
11, 3.4 GB; to expect: in regret only halving is better than random search (.028 [.027, .030]
against .111 [.056, .166] after 100 trainings, as what is best on one seed may diverge on another);
the rank of a loss after 100 steps is the best proxy (tau .50, ceiling .66); the best finalist is
better than ReLU by .019 [.012, .025], more than copies of ReLU differ, and no better in the vision
transformer or the language model; entropy and loss agree weakly (tau .18 [.02, .33]); CRReLU's
epsilon ends above 0 from all starts; gated feed-forward layers are not told from plain ones, their
six seeds differing by .05 at the rates that one seed chose (results/activation_search/cpu-search).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from experiments.parts import children, comparison, eafo, glu_order, search
from experiments.parts.children_cohorts import Children
from experiments.parts.comparison import COMMON, IN_VIT, Arms
from experiments.parts.eafo import Eafo
from experiments.parts.glu_order import Glu
from experiments.parts.search_cohorts import TEXT, Search
from launch.study import DataRequest, EngineConfig, IoConfig, Report, Run, Study, field, main
from launch.study.claims import NOT_TESTABLE, Claim, Outcome

PARTS = {'comparison': comparison, 'search': search, 'eafo': eafo, 'children': children,
         'glu': glu_order}


@dataclasses.dataclass(frozen=True)
class Config:
  """The study's config."""

  seed: int = field(0, 'Shifts every seed of the study.', low=0, high=40)
  dataset: str = field('digits', 'A prepared data set of images.')
  splits: int = field(5, 'Different train / validation / test splits among the seeds.', low=1)
  parts: tuple[str, ...] = field(('comparison', 'search', 'eafo', 'glu'), 'Parts to run.',
                                 choices=tuple(PARTS))
  models: tuple[str, ...] = field(('mlp', 'vit'), 'Models of the comparison.',
                                  choices=('mlp', 'vit'))
  rate_factors: tuple[float, ...] = field(
      (1 / 3, 1.0, 3.0), 'Factors of the base rate, ascending.', low=1e-6)
  init_gain: bool = field(True, "Initialize with each activation's own gain; else with ReLU's.")
  mlp: Arms = Arms()
  mlp_widths: tuple[int, ...] = field((64, 64), 'Hidden widths of the MLP.', low=1)
  vit: Arms = Arms(activations=IN_VIT, selection_seeds=2, fresh_seeds=8,
                   null_copies=0, shuffled_seeds=0, steps=200, batch_size=64)
  vit_patch: int = field(2, 'Patch size of the ViT in pixels.', low=1)
  vit_dim: int = field(32, 'Width of the ViT.', low=4)
  vit_heads: int = field(4, 'Attention heads of the ViT.', low=1)
  vit_depth: int = field(2, 'Blocks of the ViT.', low=1)
  search: Search = Search()
  eafo: Eafo = Eafo()
  children: Children = Children()
  glu: Glu = Glu()
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


_TINY = dict(selection_seeds=1, fresh_seeds=2, null_copies=2, shuffled_seeds=2, steps=60)
_SMALL_SEARCH = dict(
    operators=('identity', 'relu', 'tanh', 'sigmoid', 'abs', 'add', 'mul', 'max'), steps=60,
    marks=(10, 30), live_evaluations=8, live_batch=4, eafo_starts=('tanh(x)', 'relu(x)'),
    transfer_seeds=0, searches=4, evaluations=(5, 10), copies=4, finalists=2, selection_seeds=1,
    fresh_seeds=2)
_SMALL_CHILDREN = dict(
    operators=_SMALL_SEARCH['operators'], candidates=6, rungs=(5, 10), keep=0.5, copies=2,
    finalists=1, known=('relu', 'gelu'), cnn_widths=(4,), cnn_blocks=1, steps=10, fresh_seeds=2,
    batch_size=32, cnn_rate=0.05, **{f'{vit}.{k}': v for vit in ('child', 'vit') for k, v in {
        'dim': 8, 'heads': 2, 'depth': 1, 'rate': 0.05}.items()})
PRESETS = {
    'smoke': {'parts': ('comparison',), 'models': ('mlp',), 'engine.log_every': 10,
              'io.checkpoint_interval_s': 0.0,
              'mlp.activations': ('identity', 'relu', 'gelu', 'silu', 'crrelu'),
              **{f'mlp.{k}': v for k, v in _TINY.items()},
              **{f'search.{k}': v for k, v in _SMALL_SEARCH.items()},
              'eafo.activations': ('identity', 'relu', 'gelu', 'tanh', 'sin'), 'eafo.steps': 60,
              'eafo.ranking_seeds': 2, 'eafo.sign_seeds': 2, 'eafo.recorded_seeds': 2,
              'glu.activations': ('relu', 'gelu', 'reglu'), 'glu.window': 16, 'glu.dim': 16,
              'glu.depth': 1, 'glu.base_rate': 0.05, 'glu.fresh_seeds': 2, 'glu.copies': 1,
              'glu.steps': 20,
              **{f'children.{k}': v for k, v in _SMALL_CHILDREN.items()}},
    'quick': {'parts': ('comparison',), 'models': ('mlp',), 'mlp.activations': COMMON,
              'mlp.selection_seeds': 2, 'mlp.fresh_seeds': 16, 'mlp.null_copies': 16,
              'mlp.shuffled_seeds': 8},
    'cpu': {},
    # Data and baselines of Sun et al. 2024; their schedule is not confirmed: 100 epochs of CIFAR-10
    # here, without augmentation.
    'paper': {'parts': ('comparison',), 'models': ('vit',), 'dataset': 'cifar10', 'vit_dim': 192,
              'vit_depth': 12, 'vit_heads': 3, 'vit_patch': 4, 'vit.base_rate': 1e-3,
              'vit.batch_size': 128, 'vit.steps': 35100, 'vit.selection_seeds': 1,
              'vit.fresh_seeds': 8, 'vit.activations': (
                  'relu', 'prelu', 'elu', 'celu', 'gelu', 'silu', 'mish', 'crrelu')},
    'gpu': {'parts': ('children', 'glu'), 'dataset': 'cifar10', 'engine.chunk': 32,
            'mlp.fresh_seeds': 128, 'vit.fresh_seeds': 32, 'vit_patch': 4,
            'vit.activations': COMMON[:COMMON.index('prelu')],
            'glu.activations': (*Glu().activations, 'xielu', 'polynorm'), 'glu.depth': 3,
            'glu.dim': 256, 'glu.heads': 8, 'glu.window': 256, 'glu.batch_size': 32,
            'glu.base_rate': 2e-3, 'glu.steps': 1000},
}
PRESET_NOTES = {
    'paper': (
        *comparison.TINY,
        'CIFAR-100: --config.dataset=cifar100. ImageNet-1K at 64 x 64, since images are read whole '
        'into memory: python -m data.prepare --dataset=tfds:imagenet_resized/64x64, then '
        '--config.dataset=tfds-imagenet_resized-64x64 --config.vit_patch=8 and, for 100 epochs, '
        '--config.vit.steps=1000900 (not run).'),
    'gpu': (
        'On one H100 about 20 minutes for children and 4 for glu: an estimate, not measured. '
        'Without augmentation and half precision.',
        'Children are vision transformers; there is no Mixer. glu has no gated form of what was '
        'found.'),
}


def data(config: Config) -> DataRequest:
  """One data set, split anew for every fifth seed; for the search's language model a text."""
  def text(name: str, window: int) -> DataRequest:
    return DataRequest(name, eval_batch=128, eval_most=1024, window=window, kind='tokens')

  beside = ()
  if 'search' in config.parts and config.search.transfer_seeds:
    beside += ((TEXT, text(config.search.text, 32)),)
  if 'glu' in config.parts:
    beside += ((glu_order.TEXT, text(config.glu.text, config.glu.window)),)
  return DataRequest(config.dataset, config.splits, config.seed, beside=beside)


def cohorts(config: Config):
  """Those of the parts, one after the other."""
  for part in config.parts:
    yield from PARTS[part].cohorts(config)


def claims(config: Config) -> tuple[Claim, ...]:
  """Fixed before any run.

  The papers' own numbers are of other networks and data; only differences that are confirmed stand
  beside ours.
  """
  listed = json.loads((Path(__file__).parent / 'paper_values' / 'activation_search.json')
                      .read_text(encoding='utf-8'))
  return tuple(Claim(**entry | {'rule': f'{entry["rule"]}; {PARTS[part].testable(entry["id"])}'})
               for part in config.parts for entry in listed[part])


def report(run: Run) -> Report:
  """What the parts report, one after the other."""
  reports = [PARTS[part].report(run) for part in run.config.parts]
  found = {key: value for report in reports for key, value in report.outcomes.items()}
  for claim in claims(run.config):
    found.setdefault(claim.id, Outcome(NOT_TESTABLE, None, None, 0, 'what it is about was not run'))
  return Report([table for report in reports for table in report.tables], found,
                {key: value for report in reports for key, value in report.figures.items()},
                files={key: value for report in reports for key, value in report.files.items()})


def check(config: Config) -> None:
  """Whether every part can be run as the config says; UserError if not."""
  for part in config.parts:
    PARTS[part].check(config)


STUDY = Study(
    name='activation_search', config=Config, presets=PRESETS, preset_notes=PRESET_NOTES, data=data,
    cohorts=cohorts, report=report, claims=claims, check=check,
    extendable=('mlp.activations', 'vit.activations', 'mlp.fresh_seeds', 'vit.fresh_seeds'))

if __name__ == '__main__':
  main(STUDY)
