"""LayerNorm removed from a trained GPT: what it costs against fine-tuning alone, what it changes.

  python -m experiments.layernorm_removal --preset=cpu --workdir=runs/ln

Baroni et al. 2025 (arXiv:2507.02559, "Transformers Don't Need LayerNorm at Inference Time")
fine-tune GPT-2 while its LayerNorms become linear one after the other: sigma of a site is frozen at
its average, and an auxiliary loss keeps the deviations of the final stream alike. They compare with
the original and with one model that is fine-tuned without removal. Here every base model is trained
first (a seed is an initialization and a batch order of its own), and fine-tuned once per arm, with
the same batches in all arms, so that differences are paired within a base. Removal is data: all
arms with the same parts are members of one program, and the step at which a norm goes is a number.

Three parts (--config.parts=a,b runs some of them):

arms: bases of one width, then the arms of `ARMS`: fine-tuning alone (vanilla), the full recipe
(ln_free), without the auxiliary loss, all norms at once, the final norm kept, the reverse order, a
sham whose events change nothing, and so on; vanilla and ln_free at half and twice the learning rate
too, since the rate moves the loss more than the removal does. Beside them norms that are replaced
by the averages without fine-tuning, and by twice these averages. A report card of base, vanilla and
ln_free: losses with their tails on validation text, on text of another kind and on bytes that the
training text does not have; calibration; direct logit attribution against direct effects,
attribution patching, attention sinks, entropies of heads on the way, confidence neurons, and the
export without any norm.

wide: base, vanilla and ln_free of one seed at a width above the 257 tokens, where the unembedding
has a null space.

scratch: networks without norms trained from the start (Jha and Reagen 2024, arXiv:2410.13060, and
2025, arXiv:2501.03489): with LayerNorm or without, GELU, ReLU or neither, scaled branches, and an
entropy regularizer.

With --config.weights=FOLDER the base is a GPT-2 in Hugging Face's format, which decides the sizes
of the model, and nothing is trained before; the presets `paper`, `paper_medium`, `paper_large` and
`paper_xl` are the published recipes of GPT-2's sizes on a text in its tokens. `python -m
launch.export` writes what comes out as such a folder again.

Cost of cpu on two cores: arms 19 minutes, wide 9, 2.4 GB. To expect, in nats on 96 windows: ln_free
.042 [.024, .060] above vanilla at the common rate (.050 each at its best), all norms at once .015
[.012, .017] below ln_free at the end although its training loss rises by .3 over vanilla's at
first, .22 [.14, .31] more than at any staged event; the final norm kept .020 above vanilla, LoRA
.137; replaced without fine-tuning .30 [.20, .40] above the base. Heads lose entropy when queries
and keys lose their norm, and again with the final one. Claims on position 0, sinks, copying and
confidence neurons are not testable: bases of this size have none of them
(results/layernorm_removal/cpu).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path

from experiments.measurements import layernorm_removal as measured
from experiments.parts.removal_arms import (
    ARMS, ENTROPY_WEIGHT, PUBLISHED, SCRATCHED, SWEPT, schedule_text)
from launch.study import (
    DataRequest, EngineConfig, IoConfig, Measurement, Report, Run, Study, field, main)
from launch.study.claims import Claim
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec

PARTS = ('arms', 'wide', 'scratch')
SHIFTED = 'shifted'
TRAINING, TUNING, SCRATCH = 0, 1, 2  # of the seeds
MOST_BASES = 1009


@dataclasses.dataclass(frozen=True)
class Size:
  """A model, and how long it is trained and fine-tuned."""

  dim: int = field(96, 'Width.', low=1)
  depth: int = field(4, 'Blocks.', low=1)
  heads: int = field(4, 'Attention heads.', low=1)
  bases: int = field(3, 'Base models, each with seeds of its own.', low=1, high=MOST_BASES - 1)
  base_steps: int = field(1000, 'Steps of the training of a base.', low=1)
  # A fitted schedule begins at a tenth of them, and a spike is told from the 5 steps before it.
  tune_steps: int = field(100, 'Steps of the fine-tuning.', low=50)


@dataclasses.dataclass(frozen=True)
class Config:
  """The study's config."""

  seed: int = field(0, 'Shifts every seed of the study.', low=0, high=10**6)
  dataset: str = field('pystdlib', 'A prepared text.')
  shifted: str = field('pydoc_topics', 'Text of another kind in the same tokens; empty for none.')
  separated: bool = field(True, 'Put a token of its own behind every document.')
  window: int = field(128, 'Tokens per window.', low=8)
  eval_windows: int = field(192, 'Windows per evaluation.', low=1)
  parts: tuple[str, ...] = field(('arms', 'wide'), 'Parts to run.', choices=PARTS)
  weights: str = field('', "Folder of a GPT-2 in Hugging Face's format to begin from, whose sizes "
                           'count; empty to train the bases here.')
  arms: tuple[str, ...] = field(tuple(ARMS), 'Arms to run, vanilla and ln_free among them.',
                                choices=tuple(ARMS))
  rate_factors: tuple[float, ...] = field(
      (0.5, 1.0, 2.0), 'Factors of the rate for vanilla and ln_free; 1 is among them.', low=1e-6)
  small: Size = Size()
  wide: Size = Size(dim=264, bases=1, base_steps=600)
  batch_size: int = field(16, 'Windows per step.', low=1)
  micro_batches: int = field(1, 'Parts of a batch that are worked one after the other.', low=1)
  base_rate: float = field(2e-3, "Adam's largest learning rate for a base.", low=1e-8)
  tune_rate: float = field(6e-4, "Adam's largest learning rate of the fine-tuning.", low=1e-8)
  final_rate: float = field(0.5, 'Share of it that is left at the end.', low=0)
  warmup: float = field(0.08, 'Share of the fine-tuning with a rising rate.', low=0)
  weight_decay: float = field(0.01, 'Of kernels and embeddings; gains and biases have none.', low=0)
  clip: float = field(1.0, 'Largest norm of the gradient.', low=0)
  dropout: float = field(0.0, 'Of embedding, attention and branches, in training.', low=0)
  aux_weight: float = field(0.1, 'Weight of the auxiliary loss.', low=0)
  ema: float = field(0.9, 'Factor of the moving average of sigma, per part of a batch.', low=0,
                     high=1)
  schedule: str = field('', "Schedule of ln_free in place of 'staged', as 'paper(size=small)'.")
  horizon: int = field(0, 'Steps of the cosine of the fine-tuning; 0 for all.', low=0)
  card_windows: int = field(128, 'Windows of the report card.', low=8)
  remat: bool = field(False, 'Compute blocks again in the backward pass, to save memory.')
  unroll: int = field(0, 'Blocks per turn of the loop over them in training; 0 for all: fast, and '
                         'long to compile.', low=0)
  dtype: str = field('params', 'Of the products.', choices=('params', 'float32', 'bfloat16'))
  scratch_steps: int = field(1000, 'Steps of the networks without norms from the start.', low=1)
  scratch_seeds: int = field(3, 'Their seeds.', low=1, high=MOST_BASES - 1)
  engine: EngineConfig = EngineConfig(log_every=1)
  io: IoConfig = IoConfig()


_TINY = {'dim': 32, 'depth': 2, 'heads': 2, 'bases': 2, 'base_steps': 60, 'tune_steps': 50}
PRESETS = {
    'smoke': {'parts': ('arms',), 'window': 32, 'eval_windows': 16, 'card_windows': 16, 'unroll': 1,
              # As many runs in both cohorts, which are so compiled once.
              'arms': (*tuple(ARMS)[:5], 'sham'), 'rate_factors': (1.0, 2.0),
              'scratch_steps': 40, 'scratch_seeds': 2,
              **{f'small.{k}': v for k, v in _TINY.items()},
              **{f'wide.{k}': v for k, v in (_TINY | {'bases': 1}).items()}},
    # What 30 minutes on two cores carry; first_batch, qk_first, every_site and derf are left out.
    # Not the seeds of the first record, after which the rule of at_once_rises was written.
    'cpu': {'seed': 1, 'eval_windows': 96, 'card_windows': 96,
            'arms': (*tuple(ARMS)[:9], 'taper', 'paper_code', 'adaptive', 'dyt', 'lora')},
    # A model of 51 million parameters in GPT-2's byte pairs.
    'gpu': {'parts': ('arms',), 'dataset': 'text-wikitext2', 'shifted': '', 'separated': False,
            'window': 512, 'batch_size': 32, 'dtype': 'bfloat16', 'arms': tuple(ARMS)[:8],
            'small.dim': 512, 'small.depth': 8, 'small.heads': 8, 'small.base_steps': 3000,
            'small.tune_steps': 300, 'base_rate': 6e-4, 'rate_factors': (0.5, 1.0, 2.0)},
    **{name: {'parts': ('arms',), 'dataset': 'text-openwebtext', 'shifted': '', 'separated': False,
              'arms': ('vanilla', 'ln_free', 'no_aux', 'at_once', 'keep_final'),
              'rate_factors': (1.0,), 'window': 1024, 'small.bases': 1, 'dropout': 0.1,
              'dtype': 'bfloat16', 'remat': True, 'unroll': 1, 'card_windows': 64, **recipe}
       for name, recipe in PUBLISHED.items()},
}


def data(config: Config) -> DataRequest:
  """The text, and one of another kind beside it."""
  common = dict(eval_batch=16, eval_most=config.eval_windows, window=config.window, kind='tokens',
                separated=config.separated)
  beside = ((SHIFTED, DataRequest(config.shifted, **common)),) if config.shifted else ()
  return DataRequest(config.dataset, beside=beside, weights=config.weights, **common)


def sized(config: Config, part: str) -> Size:
  """The size of a part; that of given weights where there are some."""
  size = config.small if part == 'arms' else config.wide
  if config.weights:
    from experiments.parts.removal_weights import attributes
    found = attributes(config.weights)
    return dataclasses.replace(size, **{name: found[name] for name in ('dim', 'depth', 'heads')})
  return size


def model(config: Config, size: Size, **changes: object) -> ModelSpec:
  """The GPT of a size, or of the weights. The data decide the vocabulary, and for separated text
  the token between documents."""
  arguments = {'dim': size.dim, 'depth': size.depth, 'heads': size.heads, 'removable': True,
               'dtype': config.dtype, 'remat': config.remat, 'dropout': config.dropout,
               'unroll': config.unroll}
  if config.weights:
    from experiments.parts.removal_weights import attributes
    arguments |= attributes(config.weights)
  return ModelSpec('gpt2', arguments | changes)


def optimizer(config: Config, warmup: float, final: float, horizon: int = 0,
              trained: tuple[str, ...] = ()) -> OptimizerSpec:
  """AdamW with a cosine, clipped."""
  return OptimizerSpec(schedule='cosine', warmup=warmup, final=final, horizon=horizon,
                       clip=config.clip, decayed='kernels', trained=trained,
                       micro_batches=config.micro_batches)


def seed(config: Config, what: int, number: int) -> int:
  """Of an initialization and a batch order."""
  return (config.seed * 3 + what) * MOST_BASES + number


def base(config: Config, part: str, size: Size) -> Cohort:
  """The models that are stripped later."""
  members = tuple(
      Member({'part': part, 'phase': 'base', 'arm': 'base', 'base': b, 'lr_factor': 1.0,
              'learning_rate': config.base_rate},
             seed(config, TRAINING, b), seed(config, TRAINING, b), 0,
             {'learning_rate': config.base_rate, 'weight_decay': config.weight_decay,
              'ema': config.ema})
      for b in range(size.bases))
  return Cohort(f'{part}-base', model(config, size), members, size.base_steps, config.batch_size,
                optimizer(config, 0.05, 0.1))


def start(config: Config, part: str) -> str:
  """Where the fine-tuning of a part begins."""
  return f'weights:{config.weights}' if config.weights else f'cohort:{part}-base'


def tuned(config: Config, part: str, size: Size, arm: str, factor: float) -> list[Member]:
  """One run of an arm per base, all from the same batches."""
  from model_lib.transforms.removal_schedules import schedule
  own = ARMS[arm]
  hp = {'learning_rate': config.tune_rate * factor, 'weight_decay': config.weight_decay}
  if own.schedule:
    events = schedule(schedule_text(arm, config.schedule), size.depth, size.tune_steps)
    hp |= {**events.hp(size.depth),
           'aux_weight': config.aux_weight * own.auxiliary, 'ema': config.ema,
           'calls_per_step': config.micro_batches, **own.numbers}
  return [Member({'part': part, 'phase': 'tuned', 'arm': arm, 'base': b, 'lr_factor': factor,
                  'learning_rate': hp['learning_rate']},
                 seed(config, TUNING, b), seed(config, TUNING, b), 0, hp,
                 start=0 if config.weights else b)
          for b in range(size.bases)]


def marks(config: Config, size: Size) -> tuple[int, ...]:
  """Steps at which ln_free and vanilla are looked at: before the first event, after each group."""
  from model_lib.transforms.removal_schedules import schedule
  found = schedule(schedule_text('ln_free', config.schedule), size.depth, size.tune_steps)
  last = {}
  for step, site in found.timeline(size.depth):
    last[site.group] = step + 1
  steps = {found.timeline(size.depth)[0][0], *last.values()}
  return tuple(sorted(step for step in steps if 0 < step < size.tune_steps))


def tuning(config: Config, part: str, size: Size) -> list[Cohort]:
  """vanilla and ln_free, kept on the way; the other arms and rates; arms with other parts."""
  def cohort(name, members, arm='vanilla', keep=()):
    own = ARMS[arm]
    return Cohort(
        f'{part}-{name}', model(config, size, **own.model), tuple(members), size.tune_steps,
        config.batch_size,
        optimizer(config, config.warmup, config.final_rate, config.horizon, own.trained),
        evaluate_at=keep, keep_at=keep, start=start(config, part), fresh=own.fresh)

  shared = [arm for arm in config.arms if not ARMS[arm].model]
  # What is held against vanilla's bits runs beside it: batched members' bits belong to the chunk.
  first = SWEPT + tuple(a for a in ('no_aux', 'sham') if part == 'arms' and a in shared)
  main_runs = [m for arm in first for m in tuned(config, part, size, arm, 1.0)]
  asked = [cohort('tuned', main_runs, keep=marks(config, size))]
  if part == 'arms':
    others = [m for arm in shared if arm not in first for m in tuned(config, part, size, arm, 1.0)]
    others += [m for arm in SWEPT for factor in config.rate_factors if factor != 1
               for m in tuned(config, part, size, arm, factor)]
    if others:
      asked.append(cohort('others', others))
    asked += [cohort(arm, tuned(config, part, size, arm, 1.0), arm)
              for arm in config.arms if ARMS[arm].model]
  return asked


def cohorts(config: Config):
  """Bases; the arms; what is measured on them; networks without norms from the start."""
  for part in ('arms', 'wide'):
    if part not in config.parts:
      continue
    size = sized(config, part)
    if not config.weights:
      yield [base(config, part, size)]
    asked = tuning(config, part, size)
    yield asked
    found = {'part': part, 'base': start(config, part).removeprefix('cohort:'),
             'tuned': asked[0].name, 'windows': config.card_windows}
    yield [
        Measurement(f'{part}-bigram', measured.measure_bigram,
                    {'part': part, 'windows': config.card_windows}, seconds=2),
        Measurement(f'{part}-losses', measured.measure_losses,
                    {**found, 'others': [c.name for c in asked[1:2] if c.name.endswith('others')],
                     'shifted': bool(config.shifted)}, seconds=40),
        Measurement(f'{part}-swaps', measured.measure_swaps, found, seconds=30),
        Measurement(f'{part}-entropies', measured.measure_entropies,
                    {**found, 'steps': list(marks(config, size))}, seconds=30),
        # No claim reads the wide networks' patching, which takes longest there.
        Measurement(f'{part}-card', measured.measure_card,
                    {**found, 'pairs': 48 if part == 'arms' else 12}, seconds=90),
        *(Measurement(f'{c.name}-rule', measured.measure_rule, {'part': part, 'tuned': c.name},
                      seconds=1) for c in asked if c.model.arguments.get('adaptive'))]
  if 'scratch' in config.parts:
    yield [scratch(config, name, changes) for name, changes in SCRATCHED.items()]


def scratch(config: Config, name: str, changes: Mapping[str, object]) -> Cohort:
  """One network of the part `scratch`."""
  rate = config.base_rate
  hp = {'learning_rate': rate, 'weight_decay': config.weight_decay}
  if changes.get('entropy_regularized'):
    hp['entropy_weight'] = ENTROPY_WEIGHT
  members = tuple(
      Member({'part': 'scratch', 'phase': 'scratch', 'arm': name, 'base': s, 'lr_factor': 1.0,
              'learning_rate': rate}, seed(config, SCRATCH, s), seed(config, SCRATCH, s), 0, hp)
      for s in range(config.scratch_seeds))
  return Cohort(f'scratch-{name}', model(config, config.small, removable=False, **changes), members,
                config.scratch_steps, config.batch_size, optimizer(config, 0.05, 0.1))


def claims(config: Config) -> tuple[Claim, ...]:
  """Fixed before any run."""
  listed = json.loads((Path(__file__).parent / 'paper_values' / 'layernorm_removal.json')
                      .read_text(encoding='utf-8'))
  return tuple(Claim(**entry) for entry in listed['claims'])


def report(run: Run) -> Report:
  """Tables, verdicts and figures (`experiments.parts.removal`)."""
  from experiments.parts import removal
  return removal.report(run, claims(run.config), {
      part: sized(run.config, part) for part in ('arms', 'wide') if part in run.config.parts})


def check(config: Config) -> None:
  """Refuses what cannot be compared, schedules that do not fit, and weights that cannot be read."""
  missing = [arm for arm in SWEPT if arm not in config.arms]
  if missing:
    raise UserError(f'config.arms: {" and ".join(missing)} must be among them: all arms are '
                    'compared with fine-tuning alone, and with the full recipe')
  if 1.0 not in config.rate_factors:
    raise UserError('config.rate_factors: 1 must be among them')
  if config.engine.log_every != 1:
    raise UserError(f'config.engine.log_every: {config.engine.log_every} leaves steps out, and the '
                    'losses around an event are looked for in every step; it must be 1')
  if config.batch_size % config.micro_batches:
    raise UserError(f'config.micro_batches: a batch of {config.batch_size} cannot be cut into '
                    f'{config.micro_batches} equal parts')
  if config.weights:
    from experiments.parts.removal_weights import check_weights
    if 'wide' in config.parts or 'scratch' in config.parts:
      raise UserError('config.weights: weights have one size; take config.parts=arms')
    check_weights(config.weights, config.window)
  for part in ('arms', 'wide'):
    if part in config.parts:
      check_schedules(config, part)


def check_schedules(config: Config, part: str) -> None:
  """Whether the removals fit the runs of a part, and ln_free's takes every norm."""
  from model_lib.transforms.removal_schedules import Schedule, schedule, sites
  size = sized(config, part)
  where = 'config.schedule' if config.schedule else f'config.{"small" if part == "arms" else part}'
  for arm in config.arms if part == 'arms' else SWEPT:
    if ARMS[arm].schedule:
      try:
        found = schedule(schedule_text(arm, config.schedule), size.depth, size.tune_steps)
      except UserError as error:
        raise UserError(f'{where}: {error}') from None
      if arm == 'ln_free' and not (
          isinstance(found, Schedule) and found.enabled
          and len(found.timeline(size.depth)) == len(sites(size.depth))):
        raise UserError(f'{where}: ln_free is the model without any norm, and {config.schedule!r} '
                        'does not take every one at a given step; take staged(...), reversed, '
                        'qk_first, at_once or paper(size=...)')


def notes(config: Config) -> list[str]:
  """What fine-tuning takes: for given weights, and for the published recipes beside them."""
  if not config.weights:
    return []
  from experiments.parts.removal_weights import estimates, recipes
  from model_lib import models
  size = sized(config, 'arms')
  own = model(config, size)
  built = models.build(own.name, **own.arguments | {'length': config.window, 'unroll': 1})
  parts = config.micro_batches
  return estimates({config.weights: (built, config.batch_size // parts, parts, size.tune_steps)}
                   ) + recipes()


STUDY = Study(name='layernorm_removal', config=Config, presets=PRESETS, data=data,
              cohorts=cohorts, report=report, claims=claims, check=check, notes=notes)

if __name__ == '__main__':
  main(STUDY)
