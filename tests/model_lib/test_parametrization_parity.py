"""Table 8 beside microsoft/mup, on the multilayer perceptron of its examples: factor by factor."""

from __future__ import annotations

import numpy as np
import pytest

from model_lib.models import parametrized

pytestmark = pytest.mark.parity

INPUTS, CLASSES, BASE, DELTA = 48, 10, 64, 65
# Its kernels are [out, in]; fc_1 and fc_2 are torch's Linear, fc_3 is its MuReadout.
THEIRS = {'hidden_0': 'fc_1', 'hidden_1': 'fc_2', 'head': 'fc_3', 'kernel': 'weight',
          'bias': 'bias'}
RATE, DECAY = 0.125, 0.03125
COLUMNS = ('start', 'multiplier', 'adam', 'adam_decay', 'sgd', 'sgd_decay')


def network(first: int, second: int):
  import mup
  import torch
  torch.manual_seed(0)
  return torch.nn.ModuleDict({'fc_1': torch.nn.Linear(INPUTS, first),
                              'fc_2': torch.nn.Linear(first, second),
                              'fc_3': mup.MuReadout(second, CLASSES)})


def theirs(widths: tuple[int, int]) -> dict[str, dict[str, float]]:
  """Name -> factors, each read from what mup does to a network, its optimizers and its outputs."""
  import mup
  import torch

  model, before = network(*widths), network(*widths)
  mup.set_base_shapes(model, network(BASE, BASE), delta=network(DELTA, DELTA))
  found = {}
  for name, p in model.named_parameters():
    own = dict(before.named_parameters())[name]
    found[name] = {'start': float((p / own).detach().mean()), 'multiplier': 1.0}
  x = torch.ones(1, widths[1])
  with torch.no_grad():
    readout = model['fc_3']
    found['fc_3.weight']['multiplier'] = float(
      ((readout(x) - readout.bias) / (x @ readout.weight.T)).mean())
  for column, make in (('adam', mup.MuAdam), ('sgd', mup.MuSGD)):
    optimizer = make(model.parameters(), lr=RATE, weight_decay=DECAY)
    for group in optimizer.param_groups:
      for p in group['params']:
        name, = (name for name, q in model.named_parameters() if q is p)
        found[name] |= {column: group['lr'] / RATE,
                        f'{column}_decay': group['weight_decay'] / DECAY}
  return found


def ours(widths: tuple[int, int]) -> dict[str, dict[str, float]]:
  """The same of the same network here, by mup's names."""
  x, found = np.zeros((1, INPUTS), np.float32), {}
  for family in ('adam', 'sgd'):
    model = parametrized.build('mlp', {'widths': widths, 'parametrization': 'mup'},
                               {'widths': (BASE, BASE)}, {'widths': (DELTA, DELTA)}, family)
    start = model.numbers(x, train=False)['start']
    for path, f in model.factors(x, train=False).items():
      module, leaf = path.split('/')
      name = f'{THEIRS[module]}.{THEIRS[leaf]}'
      found.setdefault(name, {}).update(
        start=float(start[module][leaf]), multiplier=f.multiplier)
      found[name] |= {family: f.learning_rate, f'{family}_decay': f.decay}
  return found


@pytest.mark.parametrize('widths', [(64, 64), (256, 256), (1024, 1024), (256, 128)])
def test_every_factor_is_that_of_mup(widths) -> None:
  ours_, theirs_ = ours(widths), theirs(widths)
  assert set(ours_) == set(theirs_)
  lines = [f'{"parameter":12} {"":5}' + ''.join(f'{column:>11}' for column in COLUMNS)]
  for name in theirs_:
    for whose, values in (('mup', theirs_[name]), ('ours', ours_[name])):
      lines.append(f'{name:12} {whose:5}' + ''.join(f'{values[c]:11.6g}' for c in COLUMNS))
  print('\n'.join(lines))
  for name, expected in theirs_.items():
    for column in COLUMNS:
      if name.endswith('bias') and column in ('start', 'adam_decay', 'sgd_decay'):
        continue  # Linear's biases start as its kernels do and decay; ours start at 0 and do not
      assert ours_[name][column] == pytest.approx(expected[column], rel=1e-5), (name, column)
  assert (theirs_['fc_2.weight']['adam'] != 1) == (widths != (BASE, BASE))
