"""The coordinate check at full size: transformers, four optimizers more, GPT over depth."""

from __future__ import annotations

import dataclasses

import pytest

from model_lib.analysis import coordinate_rules as rules
from model_lib.training import optimizers
from model_lib.training.cohort import OptimizerSpec
from tests.model_lib import coordinate_cases as cases

pytestmark = pytest.mark.slow

WIDTHS = (64, 128, 256, 512)


def transformer(name: str) -> cases.Family:
  own = {'vit': (cases.images(), {'patch': 4}),
         'gpt': (cases.tokens(), {'vocab': 64, 'length': 8})}
  batch, arguments = own[name]
  return cases.Family(name, lambda n: {'dim': n}, 16, {'dim': 32}, batch,
                      {'depth': 2, **arguments})


@pytest.mark.parametrize('name', ['vit', 'gpt'])
def test_transformers_over_width(name) -> None:
  row = 'mup(base_head_dim=4)'
  _, found = cases.traced(transformer(name), WIDTHS, 2.0 ** -11, {
    'mup': (row, None), 'sp': ('sp', None), 'no rate': (row, cases.without_rate)})
  verdict = rules.judge_width('mup', found['mup'], 'sp', found['sp'])
  assert verdict.verdict == rules.PASSED, verdict.text
  assert rules.judge_width('sp', found['sp'], 'sp', found['sp']).verdict == rules.FAILED
  assert rules.judge_width('x', found['no rate'], 'sp', found['sp']).verdict == rules.FAILED


@pytest.mark.parametrize('optimizer, rate', [(cases.ADAM, 2.0 ** -10), (cases.SGD, 0.1)])
def test_mlp_to_1024(optimizer, rate) -> None:
  control = 'ntk' if optimizer.name == 'sgd' else 'sp'
  _, found = cases.traced(cases.mlp(optimizer), (128, 256, 512, 1024), rate, {
    'mup': ('mup', None), control: (control, None)}, steps=8)
  verdict = rules.judge_width('mup', found['mup'], control, found[control])
  assert verdict.verdict == rules.PASSED, verdict.text


OTHERS = {
  'lion': (OptimizerSpec('lion', b2=0.99), 2.0 ** -10),
  'momentum': (OptimizerSpec('sgd', momentum=0.9), 0.1),
  'muon': (OptimizerSpec('muon', momentum=0.95, eps=1e-12), 2.0 ** -8),
  'adafactor': (OptimizerSpec('adafactor', eps=1e-12), 2.0 ** -12),
  'lamb': (OptimizerSpec('lamb', eps=1e-12), 2.0 ** -6)}


@pytest.mark.parametrize('name', OTHERS)
def test_other_optimizers(name) -> None:
  """All of them are flat under muP and show their control."""
  optimizer, rate = OTHERS[name]
  family = optimizers.family(optimizer)
  control = rules.width_control(family)
  _, found = cases.traced(cases.mlp(optimizer), WIDTHS, rate, {
    'mup': ('mup', None), control: (control, None)})
  verdict = rules.judge_width('mup', found['mup'], control, found[control], family=family)
  assert verdict.verdict == rules.PASSED, verdict.text
  of_control = rules.judge_width(control, found[control], control, found[control], family=family)
  assert of_control.verdict == rules.FAILED


@pytest.mark.parametrize('name', OTHERS)
def test_the_rate_of_hidden_kernels(name) -> None:
  """What hidden kernels alone move is flat with their own rate and not with another family's.

  Muon's rule is derived, not a source's. Trained with all others, a wrong rate of a hidden kernel
  may hide behind what the input layer moves.
  """
  optimizer, rate = OTHERS[name]
  hidden = ('parametrization', 'learning_rate', 'hidden_1', 'kernel')

  def wrong(numbers):
    """Adam's rate, 1 / r_in; for an optimizer that has it SGD's, which is constant."""
    per_width = float(numbers['parametrization', 'multiplier', 'head', 'kernel'])
    return {hidden: 1.0 if float(numbers[hidden]) == per_width != 1.0 else per_width}

  alone = dataclasses.replace(optimizer, trained=('hidden_1/kernel',))
  _, found = cases.traced(cases.mlp(alone), WIDTHS, rate, {
    'mup': ('mup', None), 'wrong': ('mup', wrong)})
  own, other = ([s.slope.mean for s in found[row] if s.tensor == 'hidden_1'] for row in found)
  assert len(own) == len(other) == 4
  assert max(map(abs, own)) <= 0.1, own
  assert min(map(abs, other)) >= 0.35, other


def test_gpt_over_depth() -> None:
  """No rule of depth, alpha = 1/2 and CompleteP, against the two wrong gammas."""
  own = 'base_depth=2, base_head_dim=16'
  gpt = cases.Family('gpt', lambda depth: {'depth': depth}, 2, {'depth': 2, 'dim': 128},
                     cases.tokens(), {'dim': 64, 'vocab': 64, 'length': 8}, axis='depth')
  named = {'half': f'completep(alpha=0.5, {own})', 'completep': f'completep({own})', 'sp': 'sp',
           rules.FASTER: f'tp6(alpha=0.5, gamma=0.0, {own})',
           rules.SLOWER: f'tp6(alpha=0.5, gamma=1.0, {own})'}
  traces, found = cases.traced(gpt, (2, 4, 8), 2.0 ** -12,
                               {name: (row, None) for name, row in named.items()}, steps=8)
  for row in ('half', 'completep'):
    verdict = rules.judge_depth(row, found, traces['sp'], 64, True, row == 'half')
    assert verdict.verdict == rules.PASSED, verdict.text
  for row in (rules.FASTER, rules.SLOWER, rules.PLAIN):
    assert rules.judge_depth(row, found, traces['sp'], 64, True).verdict == rules.FAILED
