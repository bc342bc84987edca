"""depth_mup from the command line: a smoke run with its controls, the list, errors."""
from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import depth_mup as study
from experiments.measurements import depth_mup as measured
from experiments.parts import depth_cohorts
from launch.preemption import Preemption
from launch.study import load_run, main
from launch.study.claims import NOT_TESTABLE, REPRODUCED, read_claims
from tests import helpers

# Compiling takes most of the time; programs that are compared to the bit are the same but for
# numbers.
QUICKLY = {'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'}


def run(workdir: Path, *flags: str) -> None:
  done = helpers.run_module('experiments.depth_mup', '--preset=smoke', f'--workdir={workdir}',
                            *flags, env=QUICKLY, timeout=900)
  assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope='module')
def smoke(tmp_path_factory) -> Path:
  """A finished run of the preset."""
  workdir = tmp_path_factory.mktemp('depth') / 'run'
  run(workdir)
  return workdir


@pytest.fixture(scope='module')
def rows(smoke) -> pd.DataFrame:
  return pd.read_csv(smoke / 'results.csv', low_memory=False)


def test_a_smoke_run_says_all_that_the_study_says(smoke, rows):
  listed = json.loads((Path(study.__file__).parent / 'paper_values/depth_mup.json').read_text())
  claims = {claim['id']: claim for claim in read_claims(smoke / 'claims.json')}
  assert list(claims) == [claim['id'] for part in ('depth', 'width') for claim in listed[part]]
  decided = {'ode_retuned', 'relabelling_exact', 'W5'}
  assert {claims[name]['verdict'] for name in decided} == {REPRODUCED}
  for name in ('P1a', 'P1b', 'P2', 'P3', 'P5', 'features_diverse', 'W1', 'W2'):
    assert claims[name]['verdict'] == NOT_TESTABLE, claims[name]
  assert {path.stem for path in (smoke / 'figures').iterdir()} == {
      'depth_learning_rates', 'depth_lowest', 'depth_regret', 'feature_diversity', 'gradient_diversity',
      'width_learning_rates', 'width_regret', 'second_order'}
  table = (smoke / 'table.md').read_text()
  for title in ('Multiplier and learning rate at L=1', 'Best learning rate by depth',
                'Regret of a transferred learning rate', 'Before the first step',
                'Feature diversity', 'Gradient diversity', 'Initialization: moments of f(z)',
                'Best learning rate by width', 'Second-order share'):
    assert f'### {title}' in table


def test_the_last_losses_are_those_of_the_last_eighth(smoke, rows):
  lines = pd.read_json(smoke / 'metrics.jsonl', lines=True)
  own = rows[(rows.phase == 'sweep') & (rows.family == 'ode') & (rows.depth == 4)]
  last = lines[(lines.split == 'train') & (lines.step > 14)].groupby('member').loss.mean()
  assert own.last_loss.to_numpy() == pytest.approx(last[own.member].to_numpy(), rel=1e-12)


def test_only_the_blocks_are_trained(smoke, rows):
  """Runs of one seed have one stem and head, whatever they learned; the stacks differ."""
  own = rows[(rows.phase == 'sweep') & (rows.family == 'depth_mup') & (rows.depth == 4)
             & (rows.seed == 0)]
  (_, first, _), (_, last, _) = (load_run(smoke, int(m)) for m in own.member.iloc[[0, -1]])
  for name in ('stem', 'head'):
    assert np.array_equal(*(np.asarray(v['params'][name]['kernel']) for v in (first, last)))
  assert not np.array_equal(*(np.asarray(v['params']['stack']['kernel']) for v in (first, last)))


def test_the_start_is_that_of_the_trained_networks(smoke, rows):
  """At step 0 the slope of x_t - x_0 has no row, and what is measured is the drawn network."""
  own = rows[rows.phase == 'features']
  assert set(own[own.step == 0].measure) == {'slope_stream', 'distance_stream'}
  member = rows[rows.phase == 'diversity'].iloc[0]
  model, variables, _ = load_run(smoke, int(member.member))
  seed = depth_cohorts.seed_of(study.Config(), depth_cohorts.DIVERSE, 0)
  made = model.apply({'hp': variables['hp']}, np.zeros((2, 8, 8), np.float32), train=False,
                     mutable=['params'], rngs={'params': jax.random.key(seed)})[1]['params']
  for name in ('stem', 'head'):
    np.testing.assert_allclose(made[name]['kernel'], variables['params'][name]['kernel'],
                               rtol=1e-5, atol=1e-7)
  assert not np.allclose(made['stack']['kernel'], variables['params']['stack']['kernel'],
                         atol=1e-4)


def test_the_catalogue_of_the_gradient_diversity_has_no_function_twice():
  names = measured.pointwise()
  assert {'relu', 'abs', 'tanh', 'identity'} <= set(names)
  assert len(names) == len(set(names)) > 25


def answer(*flags: str) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of the command in this process."""
  out, err = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), \
      contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
    patch.setattr(Preemption, 'install', lambda self: self)
    main(study.STUDY, ['study', '--preset=smoke', *flags])
  return ended.value.code, out.getvalue(), err.getvalue()


def test_list_and_mistakes(tmp_path):
  code, out, _ = answer('--list')
  assert code == 0 and 'depth-ode-4' in out and 'width-adam-mup-16' in out
  for flags, line in ((['--config.depth.families=ode'], 'config.depth.families: depth_mup'),
                      (['--config.depth.depths=4,8'], 'config.depth.depths: at least three'),
                      (['--config.classes=7'], 'tells 7 classes apart, and digits has 10')):
    code, _, err = answer(*flags, f'--workdir={tmp_path / "run"}')
    assert code == 2 and len(err.splitlines()) == 1 and line in err, err
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_other_arms(tmp_path):
  """What the preset smoke leaves out: all families, the maps, the decay, the multiplier, gpt."""
  workdir = tmp_path / 'run'
  families = ','.join(study.FAMILIES)
  run(workdir, '--config.parts=depth,width,gpt', f'--config.depth.families={families}',
      '--config.depth.map_depths=1,4', '--config.depth.map_points=5', '--config.depth.map_steps=8',
      '--config.width.optimizers=adam,sgd', '--config.width.decay=0.5',
      '--config.width.decay_widths=8,16', '--config.width.multiplied=true',
      '--config.width.multiplier_depths=1,4', '--config.width.multipliers=5',
      '--config.gpt.dims=16,32', '--config.gpt.head_dim=8', '--config.gpt.window=16',
      '--config.gpt.rates=5', '--config.gpt.lowest=-8', '--config.gpt.seeds=2',
      '--config.gpt.steps=16', '--config.gpt.check_depths=2,4', '--config.gpt.check_steps=2')
  rows = pd.read_csv(workdir / 'results.csv', low_memory=False)
  assert set(rows[rows.phase == 'sweep'].family) == set(study.FAMILIES)
  assert {'map', 'decay', 'kept', 'multiplier', 'moves', 'second'} <= set(rows.phase)
  claims = {claim['id']: claim for claim in read_claims(workdir / 'claims.json')}
  assert 'L=1:' in claims['valley_turns']['rule']  # its note: both maps were read
  assert claims['G1']['verdict'] == claims['one_matrix_better']['verdict'] == NOT_TESTABLE
