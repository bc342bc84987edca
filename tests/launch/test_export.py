"""The export command, on a run that is handed to it: what it writes, prints and refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from launch import export
from launch.study import load
from model_lib import models
from model_lib.interop.hugging_face import load_gpt2
from model_lib.models.hyper import set_hp
from model_lib.models.removable import NEVER
from model_lib.transforms import gpt2_export
from model_lib.transforms.report import Precision, Report

pytestmark = pytest.mark.usefixtures('unoptimized')

SIZE = {'vocab': 19, 'length': 8, 'dim': 8, 'depth': 2, 'heads': 2, 'mlp_ratio': 2, 'unroll': 1}


@pytest.fixture(scope='module')
def trained():
  """(model, variables, config) as `load_run` gives them, all norms linear since step 0."""
  model = models.build('gpt2', removable=True, **SIZE)
  tokens = np.zeros((1, 8), np.int32)
  variables = jax.tree.map(np.asarray, jax.jit(
    lambda: model.init(jax.random.key(0), tokens, train=False))())
  rng = np.random.default_rng(0)
  variables['params'] = jax.tree.map(
    lambda leaf: (leaf + 0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype),
    variables['params'])
  variables['norm_state'] = {**variables['norm_state'], 'calls': np.int32(3)}
  events = {f'event_{group}': np.int32(0) for group in ('qk', 'v', 'mlp', 'final')}
  variables['hp'] = jax.tree.map(np.asarray, set_hp(variables['hp'], **{
    name: np.zeros(2, np.int32) if name != 'event_final' else step
    for name, step in events.items()}))
  return model, variables, {'model': {'name': 'gpt2'}}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys, trained):
  """Runs the command on `trained`, changed by a function: (status, stdout, stderr, folder)."""
  def run(form='fold', change=lambda run: run):
    monkeypatch.setattr(load, 'load_run', lambda workdir, member: change(trained))
    out = tmp_path / 'weights'
    status = export.main(['somewhere', '--member=3', f'--form={form}', f'--out={out}'])
    printed = capsys.readouterr()
    return status, printed.out, printed.err, out
  return run


@pytest.mark.parametrize('form, normalizing, reader', [
  ('fold', 'operations that normalize: none;', "transformers does not, as its norm is 'none'"),
  pytest.param('trick', 'in GPT2/h/ln_1, GPT2/h/ln_2, GPT2/ln_f;',
               "transformers' GPT2LMHeadModel and", marks=pytest.mark.slow)])
def test_what_is_written_is_the_trained_model(form, normalizing, reader, command, trained) -> None:
  status, out, err, folder = command(form)
  assert (status, err) == (0, '')
  assert 'float32: equal' in out and 'float64: equal' in out and normalizing in out
  assert f'wrote {folder}: ' in out and reader in out
  model, variables, _ = trained
  loaded, weights = load_gpt2(folder)
  tokens = np.random.default_rng(1).integers(0, 19, (3, 8)).astype(np.int32)
  old, new = map(np.asarray, jax.jit(lambda v, w: (
    model.apply(v, tokens, train=False), loaded.apply(w, tokens, train=False)))(variables, weights))
  assert np.abs(new - old).max() < 1e-4 * np.abs(old).max()


def _kept(run, **events):
  model, variables, config = run
  return model, {**variables, 'hp': jax.tree.map(
    np.asarray, set_hp(variables['hp'], **events))}, config


@pytest.mark.parametrize('form, change, part', [
  ('fold', lambda run: _kept(run, event_v=np.array([0, NEVER])), 'real (h.1.ln_1.v)'),
  ('trick', lambda run: _kept(run, event_final=NEVER), 'fold keeps a final norm'),
  ('fold', lambda run: (models.build('gpt'), {}, {'model': {'name': 'gpt'}}), 'is a gpt; only'),
  ('fold', lambda run: (run[0].clone(removable=False), run[1], run[2]), 'removable=True')])
def test_refusals_are_one_line(form, change, part, command) -> None:
  status, out, err, folder = command(form, change)
  assert (status, out) == (2, '') and part in err and err.count('\n') == 1
  assert not folder.exists()


@pytest.mark.parametrize('arguments, part', [
  (['--member=0', '--form=fold', '--out=x'], 'WORKDIR'),
  (['w', '--member=a', '--form=fold', '--out=x'], 'invalid int'),
  (['w', '--member=0', '--form=foldd', '--out=x'], "invalid choice: 'foldd'"),
  (['w', '--membr=0', '--form=fold', '--out=x'], 'nearest: --member'),
  (['/nowhere', '--member=0', '--form=fold', '--out=x'], '/nowhere')])
def test_mistakes_are_one_line(arguments, part, capsys) -> None:
  assert export.main(arguments) == 2
  printed = capsys.readouterr()
  assert part in printed.err and printed.err.count('\n') == 1 and not printed.out


@pytest.mark.parametrize('difference, control', [(0.1, 0.5), (0.0, 1e-6)])
def test_what_differs_or_proves_nothing_is_not_written(difference, control, command,
                                                       monkeypatch) -> None:
  """Outputs that are apart, or norms that make no difference to them."""
  single = Precision('float32', difference, (0,), difference, 1.0, 1e-4)
  report = gpt2_export.ExportReport('fold', Report((single,)), (), control, (), (), False, 1.0)
  monkeypatch.setattr(gpt2_export, 'fold',
                      lambda *args: gpt2_export.Exported(args[0], args[1], report))
  status, out, err, folder = command()
  assert status == 2 and 'nothing is written' in err and err.count('\n') == 1
  assert not out and not folder.exists()
