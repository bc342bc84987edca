"""The coordinate check on networks: what passes, and the same with a mistake, which must fail."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model_lib import models
from model_lib.analysis import coordinate_check as check
from model_lib.analysis import coordinate_rules as rules
from model_lib.errors import UserError
from model_lib.models.parametrized import Parametrized
from tests.model_lib import coordinate_cases as cases

WIDTHS = (64, 128, 256)


@pytest.fixture(scope='module')
def adam():
  return cases.traced(cases.mlp(), WIDTHS, 2.0 ** -10, {
    'mup': ('mup', None), 'sp': ('sp', None), 'no rate': ('mup', cases.without_rate),
    'zero': ('mup', cases.zero_head)})


def test_mlp_over_width_under_adam(adam) -> None:
  traces, found = adam
  assert rules.judge_width('mup', found['mup'], 'sp', found['sp']).verdict == rules.PASSED
  # The control is no accident of one tensor: all that it says holds.
  judged, out = rules.outside(rules.GROWS, found['sp'])
  assert not out and {s.tensor for _, s in judged} == {'hidden_0', 'hidden_1', 'logits'}
  assert rules.judge_width('sp', found['sp'], 'sp', found['sp']).verdict == rules.FAILED
  assert traces['mup'][0].loss[:, -1].mean() < traces['mup'][0].loss[:, 0].mean()


def test_a_hidden_learning_rate_without_its_factor_fails(adam) -> None:
  found = adam[1]
  verdict = rules.judge_width('broken', found['no rate'], 'sp', found['sp'])
  assert verdict.verdict == rules.FAILED, verdict.text
  outside = rules.outside(rules.FLAT, found['no rate'])[1]
  # What is in front of the mistake is as it was.
  assert {slope.tensor for _, slope in outside} >= {'hidden_1', 'activation_1'}
  assert not {slope.tensor for _, slope in outside} & {'hidden_0', 'activation_0'}


def test_raw_values_would_hide_that_mistake(adam) -> None:
  """The largest change of log2 rms(z_1) over width is small beside that of the move."""
  traces = adam[0]['no rate']
  raw = np.log2(traces[-1].rms['hidden_1'][:, 1] / traces[0].rms['hidden_1'][:, 1]).mean()
  moves = np.log2(traces[-1].move_rms['hidden_1'][:, 1] / traces[0].move_rms['hidden_1'][:, 1])
  assert abs(raw) < 0.1 and moves.mean() > 0.7


def test_a_readout_of_zeros_leaves_the_first_step_out(adam) -> None:
  traces, found = adam
  assert rules.zero_readout(traces['zero']) and not rules.zero_readout(traces['mup'])
  own = {(s.tensor, s.step): s for s in found['zero']}
  assert own['hidden_1', 1].moves == (0, 0, 0) and own['hidden_1', 2].moves[0] > 0
  verdict = rules.judge_width('mup', found['zero'], 'sp', found['sp'], zero_readout=True)
  assert verdict.verdict == rules.PASSED, verdict.text


def test_mlp_over_width_under_sgd() -> None:
  _, found = cases.traced(cases.mlp(cases.SGD), WIDTHS, 0.1, {
    'mup': ('mup', None), 'ntk': ('ntk', None)})
  assert rules.judge_width('mup', found['mup'], 'ntk', found['ntk']).verdict == rules.PASSED
  assert not rules.outside(rules.FADES, found['ntk'])[1]
  assert rules.judge_width('ntk', found['ntk'], 'ntk', found['ntk']).verdict == rules.FAILED


def test_residual_mlp_over_depth() -> None:
  named = {'depth_mup': 'depth_mup(base_depth=4)', 'ode': 'ode(base_depth=4)', 'sp': 'sp',
           rules.FASTER: 'tp6(alpha=0.5, gamma=0.0, base_depth=4)',
           rules.SLOWER: 'tp6(alpha=0.5, gamma=1.0, base_depth=4)'}
  traces, found = cases.traced(cases.deep(), (8, 32, 128), 2.0 ** -12, {
    name: (row, cases.scaled) for name, row in named.items()}, steps=8)

  def judged(row, half=True):
    return rules.judge_depth(row, found, traces['sp'], 64, False, half)

  verdict = judged('depth_mup')
  assert verdict.verdict == rules.PASSED, verdict.text
  assert judged('ode', half=False).verdict == rules.PASSED, judged('ode', half=False).text
  for wrong in (rules.FASTER, rules.SLOWER, rules.PLAIN):
    assert judged(wrong).verdict == rules.FAILED, judged(wrong).text
  # L = 8 to 32, as the rule has it.
  assert rules.stream_ratio_over_depth(traces['sp'][:2]) > rules.GROWTH
  assert rules.stream_ratio_over_depth(traces['depth_mup'][:2]) < 4


class Own(nn.Module):
  """A network of someone else: Flax's own layers."""

  width: int

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.tanh(nn.Dense(self.width, name='first')(x.reshape(x.shape[0], -1)))
    x = nn.tanh(nn.Dense(self.width, name='second')(x))
    return nn.Dense(10, kernel_init=nn.initializers.zeros, name='last')(x)


def test_a_model_of_the_user() -> None:
  task, inputs, targets = cases.images()
  traces, role = {'mup': [], 'sp': []}, {}
  for width in WIDTHS:
    for row, found in traces.items():
      model = Parametrized(Own(width), Own(16), Own(32), row=row)
      program = check.Program(model, task, inputs, targets, cases.ADAM, steps=4)
      found.append(program.trace(width, 2.0 ** -10, (0, 1)))
      role = check.roles(model.labels(inputs), list(found[0].rms))
  assert role == {'first': 'input', 'second': 'hidden', 'logits': 'logits'}
  mup, sp = (check.slopes(found, role) for found in traces.values())
  assert rules.zero_readout(traces['mup'])
  assert rules.judge_width('mup', mup, 'sp', sp, True).verdict == rules.PASSED
  assert rules.judge_width('sp', sp, 'sp', sp, True).verdict == rules.FAILED


def test_what_is_read_of_a_transformer() -> None:
  task, tokens, targets = cases.tokens()
  del task, targets
  model = models.build('gpt', dim=16, depth=1, vocab=64, length=8)
  variables = model.init(jax.random.key(0), tokens, train=False)
  found = check.by_module(model, variables, tokens)
  bound = model.bind(variables)
  output = bound(tokens, train=False)
  np.testing.assert_allclose(found['logits'], output, rtol=1e-6)
  # No tensor twice: of a module that gives what another gave it, the inner one.
  assert 'head' not in found and 'blocks/feed_forward_0' not in found
  assert {'embedding', 'position', 'blocks/attention_0/qkv', 'blocks/attention_0/out',
          'blocks/feed_forward_0/in', 'blocks/feed_forward_0/activation',
          'blocks/feed_forward_0/out', 'blocks/norm_final'} <= set(found)
  q, k, _ = (part.reshape(2, 8, 4, 4)
             for part in jnp.split(found['blocks/attention_0/qkv'], 3, axis=-1))
  np.testing.assert_allclose(found['blocks/attention_0/logits'],
                             jnp.einsum('bthd,bshd->bhts', q, k) / 2, rtol=1e-5, atol=1e-6)
  role = check.roles(Parametrized(model, model.clone(dim=8), model).labels(tokens, train=False),
                     list(found))
  assert {name for name, kind in role.items() if kind == 'hidden'} == {
    'blocks/attention_0/qkv', 'blocks/attention_0/out', 'blocks/feed_forward_0/in',
    'blocks/feed_forward_0/out'}
  assert {name for name, kind in role.items() if kind == 'input'} == {'embedding', 'position'}
  assert role['blocks/attention_0/logits'] == 'attention'
  stream = check.by_depth(model, variables, tokens)
  assert list(stream) == [*check.STREAM, 'logits']
  embedded = found['embedding'][tokens] + found['position'][None]
  np.testing.assert_allclose(stream['stream start'], embedded, rtol=1e-6)
  np.testing.assert_allclose(
    stream['stream end'], embedded + found['blocks/attention_0/out']
    + found['blocks/feed_forward_0/out'], rtol=1e-5, atol=1e-5)


def test_a_scanned_stack_is_read_at_its_quarters() -> None:
  model = models.build('deep_mlp', width=8, depth=8)
  _, inputs, _ = cases.images(3)
  variables = model.init(jax.random.key(0), inputs, train=False)
  _, sown = model.apply(variables, inputs, train=False, mutable=['intermediates'])
  stream, = sown['intermediates']['stack']['stream']
  found = check.by_depth(model, variables, inputs)
  for name, at in zip(check.STREAM, (0, 2, 4, 6, 8), strict=True):
    np.testing.assert_array_equal(found[name], stream[at])
  with pytest.raises(UserError, match='needs a residual stream'):
    mlp = models.build('mlp')
    check.by_depth(mlp, mlp.init(jax.random.key(0), inputs, train=False), inputs)
  with pytest.raises(UserError, match="axis is 'size'"):
    check.Program(model, None, inputs, inputs, axis='size')


def test_the_rms_of_what_overflows_when_squared() -> None:
  z = jnp.asarray([[3e30, -4e30]])
  np.testing.assert_allclose(check._rms(z), 12.5 ** 0.5 * 1e30, rtol=1e-6)
  assert check._rms(jnp.zeros((2, 2))) == 0
