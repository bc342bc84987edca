"""Preparing, training, resuming and reporting where `import tensorflow` raises."""
from __future__ import annotations

import gzip
import signal

import numpy as np
import pytest

from data import digits
from tests import helpers
from tests.data.make_files import idx_bytes
from tests.launch import study_runs
from tests.launch.study_runs import Start

# Nothing here is about bits: without optimization the programs compile in a third of the time.
WITHOUT = {'PYTHONPATH': str(helpers.FAKE_TENSORFLOW), 'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'}


def test_it_raises_in_children():
  """Negative control: the package on the path is the one that raises."""
  done = helpers.run_python('import tensorflow', env=WITHOUT)
  assert done.returncode == 1 and 'TensorFlow was imported' in done.stderr


def write_idx(folder):
  """The digits as MNIST's four files."""
  content = digits.read()
  folder.mkdir()
  for prefix, split in (('train', 'train'), ('t10k', 'test')):
    for name, array in (('images-idx3', content.inputs[split]),
                        ('labels-idx1', content.labels[split].astype(np.uint8))):
      file = folder / f'{prefix}-{name}-ubyte.gz'
      file.write_bytes(gzip.compress(idx_bytes(array), mtime=0))


@pytest.mark.parametrize('dataset', [
  'mnist-tiny', pytest.param('digits', marks=pytest.mark.slow)])
def test_prepare_train_resume_report(compile_cache, tmp_path, dataset):
  data_dir = tmp_path / 'data'
  if dataset == 'digits':
    source = ('--dataset=digits',)
  else:
    write_idx(tmp_path / 'files')
    source = ('--dataset=mnist', '--variant=tiny', f'--source={tmp_path / "files"}')
  done = helpers.run_module('data.prepare', *source, f'--data_dir={data_dir}', env=WITHOUT)
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / 'run'
  options = dict(env=WITHOUT, io__data_dir=data_dir, dataset=dataset, io__figures='true',
                 mlp__activations='relu,identity')
  with Start(workdir, **options) as start:
    start.until(lambda: study_runs.steps(workdir, 'mlp-fresh-fixed'))
    assert start.signal(signal.SIGTERM).code == 75
  done = study_runs.run(workdir, **options)
  assert 'resumed mlp-fresh-fixed' in done.err
  assert done.out.startswith(f'Activations on {dataset}')
  assert len(list((workdir / 'figures').glob('*.png'))) == 4
  assert list((workdir / 'tensorboard').rglob('events.out.*'))
  assert min(float(r['test_accuracy']) for r in study_runs.rows(workdir)
             if (r['phase'], r['activation']) == ('fresh', 'relu')) > 0.5
  done = study_runs.run(workdir, **options)
  assert dataset in done.out
