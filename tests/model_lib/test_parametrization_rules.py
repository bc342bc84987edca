"""The rules of width and depth: the published tables, computed by hand, and the refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from model_lib.errors import UserError
from model_lib.parametrization import Branch, get_parametrization
from model_lib.parametrization import scaled_rows as rows
from model_lib.parametrization.label import KINDS, Extent, Label
from model_lib.parametrization.rules import FAMILIES, Factors, factors, init_gain, tied_multiplier

# Widths 4 and 8 times the base's on the two sides of a kernel, depth 16 times.
IN, OUT, FIXED, DEPTH = Extent(8, 32), Extent(8, 64), Extent(10, 10), Extent(2, 32)


def label(kind: str, depth: Extent | None = None, fan_in=IN, fan_out=OUT, **more) -> Label:
  fans = {'input': (FIXED, fan_out), 'hidden': (fan_in, fan_out), 'output': (fan_in, FIXED),
          'vector': (Extent(1, 1), fan_out), 'scalar': (Extent(1, 1), Extent(1, 1))}[kind]
  return Label(f'{kind}/w', kind, *fans, depth, **more)


def with_base() -> dict[str, rows.ScaledRow]:
  return {'sp': rows.sp(), 'ntk': rows.ntk(), 'mean_field': rows.mean_field(),
          **{form: rows.mup(form) for form in rows.FORMS},
          'depth_mup': rows.depth_mup(base_depth=2), 'ode': rows.ode(base_depth=2),
          'completep .5': rows.completep(0.5, base_depth=2),
          'completep': rows.completep(base_depth=2), 'tp6': rows.tp6(0.3, 1.7, base_depth=2)}


def cases(row_name: str):
  for kind, depth, family in itertools.product(KINDS, (False, True), FAMILIES):
    if row_name == 'mean_field' and (kind == 'hidden' or depth):
      continue
    yield kind, depth, family


@pytest.mark.parametrize('name', with_base())
def test_all_factors_are_one_at_the_base_shape(name) -> None:
  row, moved = with_base()[name], set()
  for kind, depth, family in cases(name):
    base = Extent(8, 8)
    at_base = factors(row, label(kind, Extent(2, 2) if depth else None, base, base), family)
    # A decay of 0 says that the parameter does not decay; it is no scale.
    assert at_base == Factors(decay=1.0 if at_base.decay else 0.0), (kind, family)
    moved.add(factors(row, label(kind, DEPTH if depth else None), family))
  assert moved - {Factors(), Factors(decay=0.0)}


def found(row, kind: str, family: str, **more):
  f = factors(row, label(kind, **more), family)
  return f.init_std, f.multiplier, f.learning_rate


# Init std (the root of the table's variance), multiplier, SGD's rate, Adam's; r_in 4, r_out 8.
TABLES = {
  'table3': {'input': (1, 1, 8, 1), 'vector': (1, 1, 8, 1), 'output': (1 / 4, 1, 1 / 4, 1 / 4),
             'hidden': (1 / 2, 1, 2, 1 / 4)},
  'table8': {'input': (1, 1, 8, 1), 'vector': (1, 1, 8, 1), 'output': (1, 1 / 4, 4, 1),
             'hidden': (1 / 2, 1, 2, 1 / 4)},
  'table9': {'input': (8 ** -0.5, 8 ** 0.5, 1, 8 ** -0.5),
             'vector': (8 ** -0.5, 8 ** 0.5, 1, 8 ** -0.5),
             'output': (1 / 2, 1 / 2, 1, 1 / 2), 'hidden': (1 / 2, 1, 2, 1 / 4)},
}


@pytest.mark.parametrize('form', TABLES)
def test_the_three_tables_of_mup(form) -> None:
  for kind, (std, multiplier, sgd, adam) in TABLES[form].items():
    assert found(rows.mup(form), kind, 'sgd') == pytest.approx((std, multiplier, sgd), rel=1e-12)
    assert found(rows.mup(form), kind, 'adam') == pytest.approx((std, multiplier, adam), rel=1e-12)
    assert found(rows.mup(form), kind, 'lion') == found(rows.mup(form), kind, 'adam')
    assert found(rows.mup(form), kind, 'momentum') == found(rows.mup(form), kind, 'sgd')


def test_standard_ntk_and_mean_field_rows() -> None:
  for family in FAMILIES:
    assert found(rows.sp(), 'hidden', family) == (1 / 2, 1, 1)
    assert found(rows.sp(), 'output', family) == (1 / 2, 1, 1)
    assert found(rows.sp(), 'vector', family) == (1, 1, 1)
  assert found(rows.ntk(), 'hidden', 'sgd') == found(rows.ntk(), 'output', 'sgd') == (1, 1 / 2, 1)
  assert found(rows.ntk(), 'hidden', 'adam') == (1, 1 / 2, 1 / 2)
  # Table 1 of arXiv:2011.14522: a_out = 1, c = -1, all b 0.
  assert found(rows.mean_field(), 'input', 'sgd') == (1, 1, 8)
  assert found(rows.mean_field(), 'output', 'sgd') == (1, 1 / 4, 4)


# Width 4 times, depth 16 times the base's: row -> std, Adam's rate, eps, decay; in a block first.
M = Extent(8, 32)
DEPTHS = {
  'mup': {'hidden': (1 / 2, 1 / 4, 1 / 4, 4), 'vector': (1, 1, 1 / 4, 0)},
  'depth_mup': {'hidden': (1 / 2, 1 / 16, 1 / 16, 16), 'vector': (1, 1 / 4, 1 / 16, 0)},
  'ode': {'hidden': (1 / 2, 1 / 4, 1 / 64, 4), 'vector': (1, 1, 1 / 64, 0)},
  'completep(alpha=1)': {'hidden': (1 / 2, 1 / 4, 1 / 64, 4), 'vector': (1, 1, 1 / 64, 0)},
  'completep(alpha=0.5)': {'hidden': (1 / 2, 1 / 16, 1 / 16, 4), 'vector': (1, 1 / 4, 1 / 16, 0)},
  'completep(alpha=0.75)': {'hidden': (1 / 2, 1 / 8, 1 / 32, 4), 'vector': (1, 1 / 2, 1 / 32, 0)},
}
BRANCHES = {'mup': 1, 'depth_mup': 1 / 4, 'ode': 1 / 16, 'completep(alpha=1)': 1 / 16,
            'completep(alpha=0.5)': 1 / 4, 'completep(alpha=0.75)': 1 / 8}


def deep_row(name: str) -> rows.ScaledRow:
  maker, _, alpha = name.partition('(alpha=')
  if maker == 'mup':
    return rows.mup()
  settings = {'alpha': float(alpha[:-1])} if alpha else {}
  return rows.MAKERS[maker](base_depth=2, **settings)


@pytest.mark.parametrize('name', DEPTHS)
def test_width_and_depth_under_adam(name) -> None:
  row = deep_row(name)
  for kind, (std, rate, eps, decay) in DEPTHS[name].items():
    assert factors(row, label(kind, DEPTH, M, M)) == Factors(std, 1, rate, eps, decay)
  assert row.branch_multiplier(32) == BRANCHES[name]
  # Outside of the stack all are muP.
  thin = 1 if name.startswith('completep') else 0
  assert factors(row, label('vector', None, M, M)) == Factors(1, 1, 1, 1 / 4, thin)
  assert factors(row, label('input', None, M, M)) == Factors(1, 1, 1, 1 / 4, 1)
  assert factors(row, label('output', None, M, M)) == Factors(1, 1 / 4, 1, 1 / 4, 1)


@pytest.mark.parametrize('alpha, gamma, adam, sgd', [
  (0.5, 0.5, 1 / 4, 1), (0.5, 0, 1, 4), (0, 0, 1, 1), (1, 0, 1, 16), (0.5, 1, 1 / 16, 1 / 4)])
def test_depth_exponents_of_both_families(alpha, gamma, adam, sgd) -> None:
  row, kernel = rows.tp6(alpha, gamma, base_depth=2), label('hidden', DEPTH, FIXED, FIXED)
  for family in ('adam', 'sign', 'lion', 'adafactor', 'adafactor_scaled', 'lamb', 'muon'):
    assert factors(row, kernel, family).learning_rate == adam
  for family in ('sgd', 'momentum'):
    assert factors(row, kernel, family).learning_rate == sgd
  assert factors(row, kernel, 'sgd').eps == factors(row, kernel, 'lion').eps == 1


def test_normalized_optimizers_and_muon() -> None:
  for form in rows.FORMS:
    assert found(rows.mup(form), 'hidden', 'lamb')[2] == 1 / 2  # r_in^-1/2
    for kind in ('input', 'output', 'vector'):
      assert found(rows.mup(form), kind, 'adafactor_scaled')[2] == pytest.approx(1)
    assert found(rows.mup(form), 'hidden', 'muon')[2] == pytest.approx(2 ** 0.5)
    assert found(rows.mup(form), 'output', 'muon') == found(rows.mup(form), 'output', 'adam')
  assert factors(rows.mup(), label('hidden', None, M, M), 'muon').learning_rate == 1


def test_an_orthogonal_update_moves_features_as_in_the_base_model() -> None:
  moved = {}
  for n_in, n_out in ((8, 8), (32, 64), (64, 16)):
    x, gradient = np.ones(n_in), np.ones(n_out)  # one example, all entries of size 1
    u, _, v = np.linalg.svd(np.outer(x, gradient), full_matrices=False)
    rate = factors(rows.mup(), label('hidden', None, Extent(8, n_in), Extent(8, n_out)),
                   'muon').learning_rate
    moved[n_in, n_out] = np.abs(x @ np.outer(u[:, 0], v[0])).mean() * rate
    plain = moved[n_in, n_out] / rate
    assert n_in == n_out or abs(plain - 1) > 0.25
  np.testing.assert_allclose(list(moved.values()), 1, rtol=1e-12)


def test_rate_times_decay_does_not_change_with_width() -> None:
  for family in FAMILIES:
    for kind in ('input', 'hidden', 'output'):
      for row in (rows.mup(), rows.mup('table9'), rows.depth_mup(base_depth=2)):
        f = factors(row, label(kind, DEPTH if kind == 'hidden' else None), family)
        assert f.learning_rate * f.decay == pytest.approx(1, rel=1e-12)
  assert factors(rows.sp(), label('hidden')).decay == 1


def test_umup_takes_sizes_instead_of_ratios() -> None:
  row, deep = rows.umup(), Extent(4, 16)
  kernel = label('hidden', deep, Extent(64, 64), Extent(256, 256))
  assert found(row, 'hidden', 'adam', depth=deep, fan_in=Extent(64, 64)) == (1, 1 / 8, 1 / 32)
  assert factors(row, kernel).eps == 1
  assert found(row, 'output', 'adam', fan_in=Extent(64, 64)) == (1, 1 / 64, 1)
  assert found(row, 'vector', 'adam', depth=deep) == (1, 1, 1 / 4)
  # An embedding's rate falls with its hidden dimension, and nothing multiplies what it looks up.
  assert found(row, 'input', 'adam', fan_out=Extent(64, 64), lookup=True) == (1, 1, 1 / 8)
  assert found(row, 'input', 'sgd', fan_out=Extent(64, 64), lookup=True) == (1, 1, 1 / 8)
  scaled = rows.umup(constraint='to_output_scale')
  assert factors(scaled, kernel, 'sgd').learning_rate == 8 / 4
  assert found(scaled, 'vector', 'sgd', fan_out=Extent(64, 64))[2] == 64
  assert found(scaled, 'output', 'sgd', fan_in=Extent(64, 64))[2] == 1
  with pytest.raises(UserError, match='no rule for lion; take one of adam, sgd, momentum'):
    factors(row, kernel, 'lion')


def test_the_branches_of_umup_keep_the_streams_variance() -> None:
  row = rows.umup(residual=2.0, ratio=0.5)
  branches = [Branch(1 + i // 2, 3, ('attention', 'mlp')[i % 2], 1 + i % 2) for i in range(6)]
  for branch in branches:
    f = row.factors(branch)
    assert f['skip_scale'] ** 2 + f['branch_scale'] ** 2 == pytest.approx(1, rel=1e-12)
  # r = 2, q = 1/2: a_mlp^2 = 6.4, a_attention^2 = 1.6; S/2 = 3.
  f = row.factors(branches[3])
  assert (f['branch_scale'] / f['skip_scale']) ** 2 == pytest.approx(6.4 / (3 + 2 * 1.6 + 6.4))
  with pytest.raises(UserError, match='blocks of attention and mlp'):
    row.factors(Branch(1, 3, per_block=1))


def test_multipliers_are_read_where_those_of_all_rows_are() -> None:
  assert rows.depth_mup(a=2, base_depth=8).factors(Branch(3, 32)) == {'branch_scale': 1.0}
  assert rows.ode(base_depth=8).factors(Branch(3, 32)) == {'branch_scale': 1 / 4}
  assert rows.mup().factors(Branch(3, 32)) == {}
  assert rows.completep(base_head_dim=64).attention_multiplier(64) == 1 / 8
  assert rows.completep(base_head_dim=64).attention_multiplier(256) == 1 / 32
  assert rows.ntk().attention_multiplier(256) == 1 / 16
  row = get_parametrization('completep(alpha=0.5, base_depth=8)')
  assert row.factors(Branch(1, 32)) == {'branch_scale': 1 / 2}
  assert get_parametrization('mup(form=table3)').tensors == rows.mup('table3').tensors
  with pytest.raises(UserError, match='table3 or table8 or table9'):
    get_parametrization('mup(form=table5)')


def test_rows_without_rules_of_width_are_standard_in_it() -> None:
  for kind in KINDS:
    assert factors(get_parametrization('gpt2'), label(kind)) == factors(rows.sp(), label(kind))


def test_gain_on_a_std_that_follows_the_models_own_fan_in() -> None:
  for row, kind, expected in ((rows.sp(), 'output', 1), (rows.mup(), 'hidden', 1),
                              (rows.mup(), 'output', 2), (rows.mup('table3'), 'output', 1 / 2)):
    kernel = label(kind)
    gain = init_gain(kernel, factors(row, kernel))
    assert gain == pytest.approx(expected)
    # Fan-in 32 at std fan_in^-1/2: the base's std, 8^-1/2, times the factor.
    assert gain * 32 ** -0.5 == pytest.approx(8 ** -0.5 * factors(row, kernel).init_std)


def test_an_embedding_may_be_the_readout_where_both_have_the_same_std_and_rate() -> None:
  embedding = label('input', lookup=True)  # features 8 times the base's
  assert tied_multiplier(rows.mup(), embedding) == factors(
    rows.mup(), label('output', fan_in=OUT)).multiplier == 1 / 8
  assert tied_multiplier(rows.mup('table9'), embedding) == pytest.approx(8 ** -0.5)
  assert tied_multiplier(rows.sp(), embedding) == 1
  for row in (rows.mup('table3'), rows.ntk(), rows.umup()):
    with pytest.raises(UserError, match='input/w: .* cannot be tied; untie them or take mup'):
      tied_multiplier(row, embedding)


@pytest.mark.parametrize('make, message', [
  (lambda: factors(rows.mean_field(), label('hidden')), 'hidden/w: mean_field is for one hidden'),
  (lambda: factors(rows.mean_field(), label('vector', DEPTH)), 'take mup'),
  (lambda: factors(rows.depth_mup(base_depth=8), label('hidden', DEPTH)),
   'hidden/w: the base model has 2 blocks, but depth_mup says base_depth=8'),
  (lambda: factors(rows.mup(), label('hidden'), 'adamw'), "family 'adamw'; nearest: 'adam'"),
  (lambda: factors(rows.mup(), Label('a/b', 'hiden')), "a/b: unknown kind 'hiden'; nearest"),
  (lambda: rows.completep(0.4), 'alpha must be in'),
  (lambda: rows.completep(math.nan), 'alpha must be in'),
  (lambda: rows.ode(base_depth=0), 'base_depth must be at least 1'),
])
def test_errors_are_one_line(make, message) -> None:
  with pytest.raises(UserError) as info:
    make()
  assert message in str(info.value) and '\n' not in str(info.value)


def test_muP_takes_any_depth() -> None:
  assert factors(rows.mup(), label('hidden', DEPTH)) == factors(rows.mup(), label('hidden'))
