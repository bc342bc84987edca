"""The entropy experiments of the activation search: cohorts, and verdicts on made-up rows."""
from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from experiments import activation_search as study
from experiments.parts import eafo
from launch.study import config as config_lib
from launch.study.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from model_lib.activations import get_activation

SEEDS = 20
NAMES = [f'f{i:02}' for i in range(40)]


def config(**changes):
  return config_lib.apply_preset(study.Config(), {
      'parts': ('eafo',), **{f'eafo.{name}': value for name, value in changes.items()}})


def made_up(slope: float = 1.0, epsilon: float = 0.05, change: float = -0.02, noise: float = 0.01,
            seeds: int = SEEDS, names=NAMES, bump: int = 0, pull: float = 0.0) -> pd.DataFrame:
  """Rows in which the loss grows with the entropy by `slope`, and so on."""
  rng = np.random.default_rng(0)
  rows = []
  for i, name in enumerate(names):
    rows.append({'phase': 'criterion', 'activation': name, **dict.fromkeys(
        ('plug_in_raw', 'plug_in_rms', 'plug_in_fine_var', 'mixed_var', 'monotone_raw',
         'monotone_var'), rng.normal()), 'primary': i / len(names)})
    for factor in (1.0, 3.0):
      rows += [{'phase': 'ranking', 'activation': name, 'lr_factor': factor, 'seed': seed,
                'diverged_step': -1, 'val_loss': factor,
                'test_loss': 2 + factor + slope * i / len(names) + noise * rng.normal()}
               for seed in range(4)]
  for arm, sign in (('crrelu', 1), ('bump', bump)):
    for start in eafo.STARTS:
      for seed in range(seeds):
        rows += [{'phase': 'learned', 'arm': arm, 'start': start, 'seed': seed, 'layer': layer,
                  'epsilon': sign * epsilon + pull * start + 0.01 * rng.normal(), 'entropy': 1.0,
                  'entropy_change': sign * change + 0.002 * rng.normal()}
                 for layer in ('activation_0', 'activation_1')]
        rows.append({'phase': 'sign', 'arm': arm, 'start': start, 'seed': seed, 'test_loss': 0.1})
  return pd.DataFrame(rows)


def verdicts(rows: pd.DataFrame) -> list[str]:
  found = eafo.outcomes(config(), rows)
  return [found[key].verdict for key in (
      'entropy_criterion', 'crrelu_epsilon_positive', 'crrelu_lowers_entropy')]


def test_what_the_paper_claims_is_found_where_it_holds():
  assert verdicts(made_up()) == [REPRODUCED] * 3
  assert verdicts(made_up(slope=-1, epsilon=-0.05, change=0.02)) == [NOT_REPRODUCED] * 3
  assert verdicts(made_up(slope=0, epsilon=0, change=0))[1:] == [NOT_REPRODUCED] * 2
  # The start decides the sign; any odd function lowers the entropy as much.
  assert verdicts(made_up(pull=20))[1] == NOT_REPRODUCED
  assert verdicts(made_up(bump=1))[2] == NOT_REPRODUCED


def test_a_tau_is_that_of_the_best_rate_and_the_paper_s_sign():
  taus, control, ceiling, n = eafo.rank_agreement(config(), made_up(noise=0))
  assert taus['primary'][0] == 1 and ceiling == pytest.approx(1) and n == len(NAMES)
  assert control[1] < 0 < control[2]
  assert (eafo.losses(made_up(noise=0)) < 4.1).all().all()  # factor 1, not 3


@pytest.mark.parametrize('place, rows, reason', [
    (0, made_up(names=NAMES[:29]), '29 activations, at least 30 are needed'),
    (0, made_up(slope=0, noise=1.0), 'the split-half tau of the test losses is'),
    (1, made_up(seeds=15), '15 seeds, at least 16 are needed'),
    (2, made_up(seeds=15), '15 seeds with recorded pre-activations'),
])
def test_not_testable(place, rows, reason):
  found = list(eafo.outcomes(config(), rows).values())[place]
  assert found.verdict == NOT_TESTABLE and reason in found.note


def test_the_cohorts():
  asked = next(eafo.cohorts(config()))
  members = [m for cohort in asked for m in cohort.members]
  tags = [json.dumps(m.tags) for m in members]
  assert len(set(tags)) == len(tags)
  ranking, *signs = asked
  listed = eafo.catalogue()
  assert len(listed) > 90 and len(ranking.members) == len(listed) * 3 * 6
  # Every function once: none is the duplicate of another.
  assert not [n for n in listed if set(get_activation(n).duplicates) & set(listed)]
  for m in ranking.members:
    gain = get_activation(m.tags['activation']).moments().gain
    assert listed[m.hp['activation_code']] == m.tags['activation']
    assert m.hp['init_gain'] == pytest.approx(gain)
  # The same seeds from every start and in both arms; others than the ranking's.
  assert len({tuple(m.seed for m in cohort.members) for cohort in signs}) == 1
  assert not {m.seed for m in ranking.members} & {m.seed for m in signs[0].members}
  assert [cohort.model.arguments['activation'] for cohort in signs[:3]] == [
      'crrelu(epsilon=0.01)', 'crrelu(epsilon=0.0)', 'crrelu(epsilon=-0.01)']


def test_an_activation_without_an_entropy_is_left_out_with_its_reason():
  from experiments.measurements.entropy import measure_criterion
  ranked, left = measure_criterion(None, ['tanh', 'softmax'])
  assert ranked['phase'] == 'criterion' and ranked['activation'] == 'tanh'
  assert left['phase'] == 'left_out' and 'softmax' in left['reason']
