"""Sizes of the residual stream against numpy; rows by hand."""
from __future__ import annotations

import numpy as np
import pytest

from model_lib.analysis import residual_scale as rs
from model_lib.errors import UserError
from model_lib.transforms.removal_schedules import sites
from tests.model_lib import gpt2_numpy

pytestmark = pytest.mark.usefixtures('unoptimized')


def test_sigmas_and_lengths_against_numpy():
  model, variables = gpt2_numpy.small(eps=0.1)
  tokens = gpt2_numpy.windows(5)
  found = rs.residual_scale(model, variables, tokens, batch=2)
  assert found.sigma.shape == found.norm.shape == (5, 5, 9)
  run = gpt2_numpy.forward(model, variables, tokens)
  stream = np.stack([run['resid_pre'][0], run['resid_mid'][0], run['resid_pre'][1],
                     run['resid_mid'][1], run['resid_final']], 1)
  np.testing.assert_allclose(found.sigma, np.sqrt(stream.var(-1) + 0.1), rtol=1e-4)
  np.testing.assert_allclose(found.norm, np.linalg.norm(stream, axis=-1), rtol=1e-4)
  # The mean is taken out, and eps is inside of the root.
  assert np.abs(found.sigma - np.sqrt((stream ** 2).mean(-1) + 0.1)).max() > 1e-2
  with pytest.raises(UserError, match='T >= 2'):
    rs.residual_scale(model, variables, tokens[:, :1])


def test_sigma_of_an_rms_norm_is_the_length():
  model, variables = gpt2_numpy.small(eps=0.1, norm='rms')
  found = rs.residual_scale(model, variables, gpt2_numpy.windows(2))
  rms = np.sqrt(found.norm ** 2 / 12 + 0.1)
  np.testing.assert_allclose(found.sigma, rms, rtol=1e-5)
  # A final norm of another kind has its own.
  model, variables = gpt2_numpy.small(eps=0.1, norm='layer', final_norm='rms')
  found = rs.residual_scale(model, variables, gpt2_numpy.windows(2))
  rms = np.sqrt(found.norm ** 2 / 12 + 0.1)
  np.testing.assert_allclose(found.sigma[:, -1], rms[:, -1], rtol=1e-5)
  assert np.abs(found.sigma - rms)[:, :-1].max() > 1e-2


def test_position_rows_by_hand():
  norm = np.ones((2, 3, 4))
  norm[:, 1, 0], norm[:, 1, 1:] = [30, 50], 2
  rows = rs.position_rows(rs.Scale(norm, norm))
  assert [row['place'] for row in rows] == ['h.0.ln_1', 'h.0.ln_2', 'ln_f'] == rs.places(1)
  assert rows[1] == {'place': 'h.0.ln_2', 'first': 40.0, 'others': 2.0, 'ratio': 20.0,
                     'growth_first': 40.0, 'growth_others': 2.0}
  assert rows[2]['growth_first'] == 1 / 40 and np.isnan(rows[0]['growth_others'])


def test_drift_rows_by_hand():
  sigma = np.ones((1, 3, 4))
  sigma[0, 0] = [8, 1, 2, 1]  # mean 3, sd sqrt(8.5), rest 4 / 3
  frozen = {'qk': np.array([1.5]), 'v': np.array([6.0]), 'mlp': np.array([0.5]),
            'final': np.array(1.0)}
  qk, v, mlp, final = rs.drift_rows(rs.Scale(sigma, sigma), frozen)
  assert qk == pytest.approx({'site': 'h.0.ln_1.qk', 'at_freeze': 1.5, 'now': 3.0, 'ratio': 2.0,
                              'variation': 8.5 ** 0.5 / 3, 'first_ratio': 6.0})
  assert v['ratio'] == 0.5 and v['site'] == 'h.0.ln_1.v'
  assert (mlp['site'], mlp['ratio'], mlp['variation']) == ('h.0.ln_2', 2, 0)
  assert (final['site'], final['ratio'], final['first_ratio']) == ('ln_f', 1, 1)


def test_the_sites_are_those_of_the_removal_and_hold_their_own_numbers():
  model, variables = gpt2_numpy.small(events=gpt2_numpy.FROZEN)
  found = rs.residual_scale(model, variables, gpt2_numpy.windows(2))
  rows = {row['site']: row for row in rs.drift_rows(found, rs.frozen_sigmas(variables))}
  assert set(rows) == {site.path for site in sites(model.depth)}
  state = variables['norm_state']
  for name, end in {'qk': 'ln_1.qk', 'v': 'ln_1.v', 'mlp': 'ln_2'}.items():
    for layer in range(model.depth):
      assert rows[f'h.{layer}.{end}']['at_freeze'] == state['h'][f'sigma_{name}'][layer]
  assert rows['ln_f']['at_freeze'] == state['sigma_final']
  assert len({row['at_freeze'] for row in rows.values()}) == 7
  with pytest.raises(UserError, match="no 'norm_state'"):
    rs.frozen_sigmas({'params': variables['params']})
