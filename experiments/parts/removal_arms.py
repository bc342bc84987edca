"""The arms of the study of LayerNorm removal, its networks without norms, the published recipes."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to fine-tune.

  Attributes:
    schedule: which norms go when (`model_lib.transforms.removal_schedules`).
    auxiliary: share of config.aux_weight on the deviations of the final stream.
    numbers: further swept numbers of the model.
    model: arguments of the model that differ; such an arm is a program of its own.
    fresh, trained: parts of paths of the parameters that are initialized, and that alone move.
  """

  schedule: str
  auxiliary: float = 1.0
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
  model: Mapping[str, object] = dataclasses.field(default_factory=dict)
  fresh: tuple[str, ...] = ()
  trained: tuple[str, ...] = ()


ARMS: dict[str, Arm] = {
    'vanilla': Arm('never', 0),
    'ln_free': Arm('staged'),
    'no_aux': Arm('staged', 0),
    'at_once': Arm('at_once'),
    'keep_final': Arm('keep_final(staged)'),
    'reversed': Arm('reversed'),
    'sham': Arm('sham(staged)', 0),
    'vanilla_aux': Arm('never'),
    'final_only': Arm('final_only'),
    'first_batch': Arm('staged', numbers={'ema': 1.0}),
    'qk_first': Arm('qk_first'),
    'taper': Arm('staged', numbers={'taper': 10.0}),
    'every_site': Arm('staged', numbers={'aux_every': 0.1}),
    'paper_code': Arm('staged', model={'buffer': 'paper_code'}),
    'adaptive': Arm('adaptive(staged)', model={'adaptive': 10}),
    'dyt': Arm('', 0, model={'norm': 'dyt', 'removable': False}, fresh=('ln_',)),
    'derf': Arm('', 0, model={'norm': 'derf', 'removable': False}, fresh=('ln_',)),
    'lora': Arm('staged', model={'lora_rank': 8}, fresh=('lora_',), trained=('lora_',)),
}
SWEPT = ('vanilla', 'ln_free')  # at every learning rate, and always there
SCRATCHED: dict[str, Mapping[str, object]] = {  # names are those of the papers
    'SM+LN+G': {}, 'SM+LN+R': {'activation': 'relu'}, 'SM+LN': {'activation': 'identity'},
    'SM+G': {'norm': 'none'}, 'SM+R': {'norm': 'none', 'activation': 'relu'},
    'SM': {'norm': 'none', 'activation': 'identity'},
    'SM+ScFuFFN': {'norm': 'none', 'activation': 'identity', 'ffn_scale': True},
    'SM+ScFuFFN+EReg': {'norm': 'none', 'activation': 'identity', 'ffn_scale': True,
                        'attention_temperature': True, 'entropy_regularized': True},
    'DyT': {'norm': 'dyt'},
}
# Of the entropy regularizer, whose penalty is a mean here. The published 1e-5 multiplies a sum over
# examples and queries in the authors' code, some ten thousand of them.
ENTROPY_WEIGHT = 0.1


def published(size: str, steps: int, horizon: int, warmup: int, rate: float, least: float,
              micro_batch: int, parts: int, aux_weight: float, ema: float) -> dict[str, object]:
  """The changes of a preset for a column of Tables 3 and 4 of arXiv:2507.02559."""
  return {'weights': 'gpt2' if size == 'small' else f'gpt2-{size}',
          'schedule': f'paper(size={size})', 'small.tune_steps': steps, 'horizon': horizon,
          'warmup': warmup / steps, 'tune_rate': rate, 'final_rate': least / rate,
          'batch_size': micro_batch * parts, 'micro_batches': parts, 'aux_weight': aux_weight,
          'ema': ema}


# The same numbers as in `model_lib.transforms.recipes`, which a config without jax cannot read.
PUBLISHED = {
    'paper': published('small', 300, 300, 25, 6e-4, 3e-4, 32, 16, 0.1, 0.9),
    'paper_medium': published('medium', 500, 500, 10, 6e-4, 3e-4, 22, 23, 0.1, 0.9),
    'paper_large': published('large', 600, 1200, 15, 3e-4, 4e-5, 28, 18, 0.03, 0.9 ** (28 / 32)),
    'paper_xl': published('xl', 800, 1200, 20, 1e-4, 2e-5, 18, 28, 0.01, 0.9 ** (18 / 32)),
}


def schedule_text(arm: str, given: str) -> str:
  """The text of an arm's schedule, with the given one, if any, in place of 'staged'."""
  text = ARMS[arm].schedule
  return text.replace('staged', given) if given else text
