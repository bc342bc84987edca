"""What a cohort is, as plain data: members that differ in numbers, not in shapes.

Nothing here imports jax, so that a study file can build its cohorts, and a
finished run can be reported, before jax is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping

Number = int | float


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """A model by name with its static arguments (strings, numbers, tuples).

  Attributes:
    name, arguments: as of `models.build`.
    base, delta: the arguments in which the base model of its parametrization and the delta model
      differ, such as {'width': 64} and {'width': 128}; empty without rules of width and depth
      (`models.parametrized`).
  """

  name: str
  arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
  base: Mapping[str, object] = dataclasses.field(default_factory=dict)
  delta: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """An optax transformation and the shape of its schedule.

  The learning rate and the weight decay are swept numbers and belong to the
  members (`Member.hp`); what stands here is the same for the whole cohort.

  Attributes:
    name: one of `training.optimizers.NAMES`, 'adam' or 'sgd' among them; the weight decay is
      decoupled in all.
    b1, b2, eps: Adam's constants (optax.scale_by_adam); see `training.optimizers` for the others'.
    momentum: heavy-ball momentum of 'sgd', and of 'muon' the beta of its mean.
    schedule: 'constant' or 'cosine' (reaches `final` after the last step); multiplies the rate.
    warmup: share of the steps with a linear rise from 1 / (steps of it) to 1.
    final: share of the rate at which 'cosine' ends.
    horizon: steps after which 'cosine' ends, 0 for the cohort's; more of them leave it early.
    clip: largest norm of the gradient of all parameters, which is scaled down to it; 0 for none.
    decayed: which parameters decay: 'all', or 'kernels' (named kernel or embedding: no biases, no
      gains).
    decay: how the decay of a parameter and the factor of its learning rate belong together, one of
      `parametrization.optax_wiring.DECAYS`; all but 'independent' are one without such factors.
    multiply_by_parameter_scale: whether 'adafactor' multiplies by the rms of the parameter.
    trained: parts of the paths of the parameters that move ('lora_'); empty for all.
    micro_batches: parts into which a batch is cut, one after the other, to save memory; their
      gradients are averaged.
  """

  name: str = 'adam'
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  momentum: float = 0.0
  schedule: str = 'constant'
  warmup: float = 0.0
  final: float = 0.0
  horizon: int = 0
  clip: float = 0.0
  decayed: str = 'all'
  decay: str = 'compensated'
  multiply_by_parameter_scale: bool = False
  trained: tuple[str, ...] = ()
  micro_batches: int = 1


@dataclasses.dataclass(frozen=True)
class Member:
  """One training run.

  Attributes:
    tags: the columns that identify the run in results.csv.
    seed: of the initialization and of every later random draw of this run.
    data_seed: of the batch order. Runs with equal seeds see equal batches.
    split: number of the train / validation / test split.
    labels: 0 for the data's own labels, k > 0 for their k-th random permutation.
    hp: swept numbers by name: optimizer's ('learning_rate', 'weight_decay') and
      the model's `hp` collection ('activation_code', 'init_gain', ...), a tuple where the variable
      is an array. 'candidate' is a text: the function of a swept activation.
    start: which run of `Cohort.start` it begins from.
  """

  tags: Mapping[str, str | Number]
  seed: int
  data_seed: int
  split: int
  hp: Mapping[str, Number | str | tuple[Number, ...]]
  labels: int = 0
  start: int = 0


@dataclasses.dataclass(frozen=True)
class Cohort:
  """Members that share one compiled program.

  Attributes:
    name: unique in its study; the `run` of its lines in metrics.jsonl.
    model, optimizer: the program.
    members: the runs, in the order of their rows.
    steps: optimizer steps of every member.
    batch_size: examples per step.
    time_by: tag by whose values the cost of a step is timed apart ('' for never).
    time_reference: value of that tag that the ratios refer to, and the model
      which holds it where it is no member of this cohort.
    evaluate_at: steps before the last, ascending, at which the members are evaluated as well;
      their rows get columns like val_loss_at_30.
    keep_at: those of them at which the networks are kept too (`launch.study.load.load_cohort`).
    data: name of further data that the study reads, which this cohort trains on; '' for the
      study's own.
    start: where the parameters come from at step 0: '' for the initialization; 'cohort:NAME' for
      the trained ones of a finished cohort (`Member.start` says whose); 'weights:FOLDER' for
      GPT-2 weights in Hugging Face's format.
    fresh: parts of the paths of the parameters that are initialized although there is a `start`.
    last_steps: number of steps before the end whose training losses are all recorded, and averaged
      in the column last_loss of the rows; 0 for none.
  """

  name: str
  model: ModelSpec
  members: tuple[Member, ...]
  steps: int
  batch_size: int
  optimizer: OptimizerSpec = OptimizerSpec()
  time_by: str = ''
  time_reference: tuple[str, ModelSpec] | None = None
  evaluate_at: tuple[int, ...] = ()
  keep_at: tuple[int, ...] = ()
  data: str = ''
  start: str = ''
  fresh: tuple[str, ...] = ()
  last_steps: int = 0

  def __post_init__(self):
    if not 0 <= self.last_steps <= self.steps:
      raise ValueError(f'cohort {self.name}: last_steps {self.last_steps} of {self.steps} steps')
    marks = (*self.evaluate_at, self.steps)
    if any(not 0 < a < b for a, b in itertools.pairwise(marks)):
      raise ValueError(f'cohort {self.name}: evaluate_at {self.evaluate_at} must ascend between 0 '
                       f'and {self.steps}')
    if not set(self.keep_at) <= set(self.evaluate_at):
      raise ValueError(f'cohort {self.name}: keep_at {self.keep_at} has steps that are not in '
                       f'evaluate_at, {self.evaluate_at}')

  def fingerprint(self) -> str:
    """SHA-256 of the cohort as a study describes it; data and plan are checked on their own."""
    described = dataclasses.asdict(self)
    # A field that came later is left out where it is not used: older checkpoints stay good.
    _drop(described, Cohort, ('evaluate_at', 'keep_at', 'data', 'start', 'fresh',
                              'last_steps'))
    _drop(described['optimizer'], OptimizerSpec,
          ('final', 'horizon', 'clip', 'decayed', 'decay', 'multiply_by_parameter_scale',
           'trained', 'micro_batches'))
    for model in (described['model'], *(described['time_reference'] or ())[1:]):
      for name in ('base', 'delta'):
        if not model[name]:
          del model[name]
    for member in described['members']:
      _drop(member, Member, ('start',))
    text = json.dumps(described, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def _drop(described: dict, owner: type, names: tuple[str, ...]) -> None:
  """Removes what has its default value."""
  defaults = {f.name: f.default for f in dataclasses.fields(owner)}
  for name in names:
    if described[name] == defaults[name]:
      del described[name]


def identity(member: Member) -> str:
  """The run's tags as one string: what `--extend` compares to find runs already done."""
  return json.dumps(dict(member.tags), sort_keys=True)
