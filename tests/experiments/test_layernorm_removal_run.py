"""layernorm_removal from the command line: a smoke run, its exports, given weights, errors."""
from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
import re
import shutil

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import layernorm_removal as study
from experiments.measurements import layernorm_removal as measured
from launch import export
from launch.preemption import Preemption
from launch.study import datasets, load_run, main
from launch.study.claims import NOT_TESTABLE, REPRODUCED, read_claims
from launch.study.load import load_cohort
from launch.study.workdir import Workdir
from model_lib import models
from model_lib.analysis import language_loss
from model_lib.interop.hugging_face import load_gpt2, save_gpt2
from tests import helpers

pytestmark = pytest.mark.usefixtures('unoptimized')

# Compiling takes most of the time; nothing here compares two programs to the bit.
QUICKLY = {'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'}
FIRST_EVENT = 5  # of two blocks in 50 steps
ARMS = ('vanilla', 'ln_free', 'no_aux', 'at_once', 'keep_final', 'sham')


def run(workdir: Path, *flags: str) -> None:
  done = helpers.run_module('experiments.layernorm_removal', '--preset=smoke',
                            f'--workdir={workdir}', *flags, env=QUICKLY, timeout=900)
  assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope='module')
def smoke(tmp_path_factory) -> Path:
  """A finished run of the preset."""
  workdir = tmp_path_factory.mktemp('removal') / 'run'
  run(workdir)
  return workdir


@pytest.fixture(scope='module')
def rows(smoke) -> pd.DataFrame:
  return pd.read_csv(smoke / 'results.csv', low_memory=False)


def member(rows: pd.DataFrame, arm: str, base: int = 0, factor: float = 1.0) -> int:
  found, = rows[(rows.arm == arm) & (rows.base == base) & (rows.lr_factor == factor)].member
  return int(found)


def test_a_smoke_run_says_all_that_the_study_says(smoke, rows):
  listed = json.loads((Path(study.__file__).parent / 'paper_values/layernorm_removal.json')
                      .read_text())['claims']
  claims = read_claims(smoke / 'claims.json')
  assert [claim['id'] for claim in claims] == [claim['id'] for claim in listed]
  checks = {claim['id'] for claim in listed if claim.get('kind') == 'check'}
  # Two small bases allow no statement; the checks are decided.
  assert all((claim['verdict'] != NOT_TESTABLE) == (claim['id'] in checks) for claim in claims)
  verdict = {claim['id']: claim['verdict'] for claim in claims}
  assert {verdict[name] for name in checks - {'norm_keeps_direction'}} == {REPRODUCED}
  assert {path.stem for path in (smoke / 'figures').iterdir()} == {
      'arms_losses', 'arms_entropies', 'arms_spectrum', 'arms_gaps'}

  trained = rows[rows.phase.isin(('base', 'tuned'))]
  assert len(trained) == 2 + 2 * len(ARMS) + 2 * 2  # bases, arms, two arms at another rate
  assert (trained.diverged_step == -1).all() and np.isfinite(trained.val_loss).all()
  assert rows.phase.value_counts().to_dict().keys() == {
      'base', 'tuned', 'bigram', 'losses', 'gaps', 'swaps', 'entropies', 'card'}
  # 2 layers of 2 heads: 2 bases, and twice 2 networks at 5 marks and the end.
  assert (rows.phase == 'entropies').sum() == 4 * (2 + 2 * 2 * 6)
  values = rows[rows.measure.notna()]
  wrong = values[~np.isfinite(values.value)]
  assert set(wrong.measure) <= {'best_temperature'}, wrong
  table = (smoke / 'table.md').read_text()
  for title in ('LayerNorm removal', 'Does the gap close?', 'All norms replaced',
                'Spikes of the training loss', 'Losses of single tokens', 'Report card', 'By place',
                'GPT-2 in the paper'):
    assert f'### {title}' in table


def test_the_sham_is_vanilla_and_no_aux_is_until_its_first_event(smoke, rows):
  lines = pd.read_json(smoke / 'metrics.jsonl', lines=True)
  lines = lines[lines.split == 'train'].set_index(['member', 'step'])
  for base in range(2):
    own = {arm: lines.loc[member(rows, arm, base)].drop(columns=['run', 'auxiliary'])
           for arm in ('vanilla', 'sham', 'no_aux')}
    assert own['sham'].equals(own['vanilla'])
    apart = (own['no_aux'].loss != own['vanilla'].loss).to_numpy()
    assert apart.tolist() == [False] * FIRST_EVENT + [True] * (50 - FIRST_EVENT)
  found = load_cohort(Workdir(smoke), 'arms-tuned')
  place = {(r['arm'], r['base']): i for i, r in enumerate(found.rows)}
  for name in ('params', 'norm_state'):
    for leaf in jax.tree.leaves(found.variables[name]):
      assert np.array_equal(leaf[place['sham', 1]], leaf[place['vanilla', 1]])
  claim, = (c for c in read_claims(smoke / 'claims.json') if c['id'] == 'sham_is_vanilla')
  assert claim['ours'] == 0
  assert re.search(rf'no_aux differs in \d+, first at step {FIRST_EVENT}\.', claim['rule'])


def exported(workdir: Path, rows: pd.DataFrame, form: str, out: Path):
  """(tokens, logits of the trained ln_free, what the command says) with the folder written."""
  number = member(rows, 'ln_free')
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    assert export.main([str(workdir), f'--member={number}', f'--form={form}', f'--out={out}']) == 0
  model, variables, _ = load_run(workdir, number)
  assert model.eot == 256  # that of separated bytes, and of the folder of given weights
  tokens = np.random.default_rng(1).integers(0, 257, (3, 32)).astype(np.int32)
  return tokens, logits(model, variables, tokens), said.getvalue()


def logits(model, variables, tokens: np.ndarray) -> np.ndarray:
  return np.asarray(jax.jit(lambda v: model.apply(v, tokens, train=False))(variables))


def test_the_folder_without_norms_is_the_trained_model(smoke, rows, tmp_path):
  tokens, trained, said = exported(smoke, rows, 'fold', tmp_path / 'fold')
  assert 'operations that normalize: none' in said
  model, variables = load_gpt2(tmp_path / 'fold')
  assert model.norm == 'none' and 'ln_f' not in variables['params']
  ours = logits(model, variables, tokens)
  assert np.abs(ours - trained).max() <= 1e-4 * np.abs(trained).max()
  other, others, _ = load_run(smoke, member(rows, 'vanilla'))
  assert np.abs(logits(other, others, tokens) - ours).max() > 1e-2
  with contextlib.redirect_stderr(io.StringIO()) as said:
    assert export.main([str(smoke), f'--member={member(rows, "vanilla")}', '--form=fold',
                        f'--out={tmp_path / "none"}']) == 2
  assert 'still real' in said.getvalue() and not (tmp_path / 'none').exists()


def test_a_folder_holds_what_was_written_last(tmp_path):
  for norm in ('layer', 'none', 'layer'):
    write(tmp_path, norm=norm)
    assert load_gpt2(tmp_path)[0].norm == norm
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parity
def test_stock_transformers_computes_the_other_export(smoke, rows, tmp_path):
  import torch
  import transformers
  tokens, trained, _ = exported(smoke, rows, 'trick', tmp_path / 'trick')
  stock = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / 'trick').eval()
  with torch.no_grad():
    theirs = stock(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  assert np.abs(theirs - trained).max() <= 1e-4 * np.abs(trained).max()


# Given weights.


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
  """A folder with a random GPT-2 of the bytes with their separator, 48 positions."""
  folder = tmp_path_factory.mktemp('weights') / 'gpt2'
  write(folder)
  return folder


def write(folder: Path, **changes) -> None:
  model = models.build('gpt2', **{'vocab': 257, 'length': 48, 'dim': 24, 'depth': 1, 'heads': 3,
                                  'mlp_ratio': 2, 'eot': 256, **changes})
  tokens = np.zeros((1, 4), np.int32)
  variables = jax.jit(lambda: model.init(jax.random.key(0), tokens))()
  save_gpt2(folder, model, variables)


def answer(*flags: str, workdir: Path | None = None) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of the command in this process."""
  out, err = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), \
      contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
    patch.setattr(Preemption, 'install', lambda self: self)
    main(study.STUDY, ['study', '--preset=smoke', *flags,
                       *([f'--workdir={workdir}'] if workdir else [])])
  return ended.value.code, out.getvalue(), err.getvalue()


def changed_config(**changes):
  def change(folder: Path) -> None:
    config = json.loads((folder / 'config.json').read_text()) | changes
    (folder / 'config.json').write_text(json.dumps(config))
  return change


def truncated(folder: Path) -> None:
  file = folder / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize('change, line', [
    (shutil.rmtree, 'config.weights: .*there is no such folder'),
    (changed_config(model_type='llama'), "config.weights: .*model_type is 'llama'"),
    (truncated, r'config.weights: .*model.safetensors: is truncated: tensor \S+ ends'),
    (changed_config(n_embd=48), 'config.weights: .*has the shape'),
    (lambda folder: write(folder, vocab=300),
     'has a vocabulary of 300 tokens, and pystdlib has 257'),
    (lambda folder: write(folder, length=16), 'config.window: 32 tokens do not fit in the 16'),
    (lambda folder: write(folder, norm='none'), "config.weights: .*its norms are 'none'")])
def test_weights_that_do_not_fit_are_refused_in_one_line(change, line, weights, tmp_path):
  folder = tmp_path / 'weights'
  shutil.copytree(weights, folder)
  change(folder)
  code, _, err = answer(f'--config.weights={folder}', workdir=tmp_path / 'run')
  assert code == 2 and len(err.splitlines()) == 1
  assert re.search(line, err), err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('flags, line', [
    (['--config.arms=ln_free,sham'], 'config.arms: vanilla must be'),
    (['--config.schedule=staged(start=90)'], 'removes its last norm at step'),
    (['--config.small.tune_steps=20'], 'config.small.tune_steps'),
    (['--preset=gpu'], 'python -m data.prepare --dataset=text --source=PATH --variant=wikitext2')])
def test_mistakes_are_one_line(flags, line, tmp_path):
  code, _, err = answer(*flags, workdir=tmp_path / 'run')
  assert code == 2 and len(err.splitlines()) == 1 and line in err, err
  assert not (tmp_path / 'run').exists()


def test_list_and_dry_run(weights):
  for flags in (['--list'], ['--dry_run', '--preset=cpu']):
    code, out, _ = answer(*flags)
    assert code == 0 and 'arms-card' in out and 'arms-others' in out
  assert '"aux_weight": 0.1' in out and 'wide-tuned' in out
  code, out, _ = answer('--dry_run', f'--config.weights={weights}')
  assert code == 0 and 'arms-base' not in out  # nothing is trained before
  # 257 x 24 + 48 x 24 for the embeddings, 48 for the last norm; of the block 96 for the norms,
  # 24 x 72 + 72, 24 x 24 + 24, 24 x 48 + 48 and 48 x 24 + 24.
  assert f'{(257 + 48) * 24 + 48 + 96 + 1800 + 600 + 1200 + 1176}' in out
  assert 'million parameters; about' in out and 'GPT-2 xl: 1,557.6 million parameters' in out
  assert 'Published: 26 h on one GPU of 180 GB' in out


@pytest.mark.slow
def test_a_run_from_given_weights(weights, tmp_path):
  """Sizes are those of the folder; one base, so nothing but the checks is decided."""
  workdir = tmp_path / 'run'
  run(workdir, f'--config.weights={weights}', '--config.arms=vanilla,ln_free,no_aux,sham',
      '--config.rate_factors=1')
  rows = pd.read_csv(workdir / 'results.csv', low_memory=False)
  assert set(rows[rows.phase == 'tuned'].base) == {0, 1} and 'base' not in set(rows.phase)
  model, variables, config = load_run(workdir, member(rows, 'ln_free'))
  assert (model.dim, model.depth, model.length, model.mlp_ratio) == (24, 1, 48, 2)
  # The base of the card is the folder's model: its loss by the windows of the study.
  stock, given = load_gpt2(weights)
  config = dataclasses.replace(study.Config(), window=32, parts=('arms',))
  tokens = measured.validation(datasets.load(study.data(config), ''), 16)
  loss = language_loss.predict(stock, given, tokens).loss.mean()
  own = rows[(rows.phase == 'losses') & (rows.arm == 'base') & (rows.measure == 'val_mean')]
  assert own.value.to_numpy() == pytest.approx([loss], rel=1e-5)
  verdicts = {c['id']: c['verdict'] for c in read_claims(workdir / 'claims.json')}
  assert verdicts['sham_is_vanilla'] == verdicts['export_is_exact'] == REPRODUCED
  assert verdicts['removal_costs_little'] == NOT_TESTABLE
  _, _, said = exported(workdir, rows, 'fold', tmp_path / 'fold')
  assert 'operations that normalize: none' in said
