"""Cohorts under a parametrization: resumed, recorded, opened again, and refused in one line."""
from __future__ import annotations

import contextlib
import dataclasses
import io

import jax
import numpy as np
import pytest

from launch import environment
from launch.preemption import Preemption
from launch.study import DataRequest, EngineConfig, IoConfig, Study, main
from launch.study.load import load_cohort
from launch.study.records import read_finished
from launch.study.workdir import Workdir
from model_lib.errors import UserError
from model_lib.models.parametrized import BRANCH, Parametrized
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec
from model_lib.training.loop import Preempted
from tests.launch.test_cohort_runner import StopAt, data, start

MODEL = ModelSpec('mlp', {'widths': [32, 32], 'parametrization': 'mup'}, {'widths': [8, 8]},
                  {'widths': [16, 16]})


def cohort(model: ModelSpec = MODEL, name: str = 'wide', swept: bool = True, **settings) -> Cohort:
  """Two runs, number i from run i of a start; with factors of the readout of their own."""
  members = tuple(Member({'seed': i, 'cohort': name}, i, i, 0, {
    'learning_rate': 0.02, 'weight_decay': 0.1,
    **({f'{BRANCH}/multiplier/head/kernel': 0.25 * (i + 1)} if swept else {})}, start=i)
                  for i in range(2))
  return Cohort(name, model, members, 12, 16, **settings)


def test_muon_under_mup_is_resumed_to_the_bit_recorded_and_opened(tmp_path, data) -> None:
  muon = cohort(optimizer=OptimizerSpec('muon', momentum=0.9, clip=1.0))
  rows = start(tmp_path / 'whole', data, [muon])
  with pytest.raises(Preempted):
    start(tmp_path / 'cut', data, [muon], stop=StopAt(tmp_path / 'cut/metrics.jsonl', '"step": 6'))
  resumed = start(tmp_path / 'cut', data, [muon])
  assert (resumed.val_loss == rows.val_loss).all() and rows.val_loss.nunique() == 2
  whole, cut = (load_cohort(Workdir(tmp_path / name), 'wide') for name in ('whole', 'cut'))
  jax.tree.map(np.testing.assert_array_equal, whole.variables, cut.variables)

  finished = read_finished(Workdir(tmp_path / 'whole'), 'wide')
  assert finished['model']['base'] == {'widths': [8, 8]}
  line = next(line for line in finished['parametrization'] if line.startswith('hidden_1/kernel'))
  assert line.split()[1:4] == ['hidden', '8->32', '8->32']

  assert isinstance(whole.model, Parametrized)
  images = np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32)
  for i in range(2):
    own = jax.tree.map(lambda leaf, i=i: leaf[i], whole.variables)
    np.testing.assert_array_equal(
      whole.model.apply(own, images, train=False),
      whole.model.model.apply(whole.model.effective(own), images, train=False))
    assert own['hp'][BRANCH]['multiplier']['head']['kernel'] == 0.25 * (i + 1)


@dataclasses.dataclass(frozen=True)
class Settings:
  engine: EngineConfig = EngineConfig()
  io: IoConfig = IoConfig()


def test_a_start_with_other_factors_is_refused(tmp_path, data) -> None:
  """Parameters of table 8 act with other factors than the same ones of table 3."""
  table3 = changed(parametrization='mup(form=table3)')
  first, same = cohort(), cohort(name='same', start='cohort:wide')
  other = cohort(table3, 'other', swept=False, start='cohort:wide')
  start(tmp_path / 'run', data, [first], [same])
  begun, went_on = (load_cohort(Workdir(tmp_path / 'run'), name) for name in ('wide', 'same'))
  assert (begun.variables['params']['head']['kernel']
          != went_on.variables['params']['head']['kernel']).any()
  with pytest.raises(UserError, match='head/kernel acts with another factor than in cohort:wide'):
    start(tmp_path / 'run', data, [first], [same], [other])


def command(model: ModelSpec, path, *flags: str, **settings) -> tuple[int, str, str]:
  """Exit code, stdout and stderr of a study of one cohort with the model."""
  def cohorts(config):
    yield [cohort(model, **settings)]

  study = Study('made_up', Settings, {'smoke': {}}, lambda config: DataRequest('digits'), cohorts,
                lambda run: None)
  out, err = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), \
      contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
    patch.setattr(Preemption, 'install', lambda self: self)
    patch.setattr(environment, 'check_editable', lambda file: None)  # this file is no launch file
    main(study, ['study', f'--workdir={path}', '--preset=smoke', *flags])
  return ended.value.code, out.getvalue(), err.getvalue()


def changed(base=None, delta=None, **arguments) -> ModelSpec:
  return ModelSpec('mlp', {**MODEL.arguments, **arguments}, MODEL.base if base is None else base,
                   MODEL.delta if delta is None else delta)


@pytest.mark.parametrize('model, message', [
  (changed(base={}, delta={}), 'there is none; give base and delta'),
  (changed(parametrization='mean_field'), 'hidden_1/kernel: mean_field is for one hidden layer'),
  (changed(base={'widths': [8]}, delta={'widths': [16]}),
   'hidden_1/bias: the base model has no such parameter'),
  (changed(base={'widths': [8, 8]}, delta={'widths': [16, 8]}),
   'head/kernel: base shape (8, 10) does not fit shape (32, 10): axis 0 differs'),
  (changed(base={'width': 8}), "mlp has no attribute 'width'; nearest: 'widths'"),
  (changed(parametrization='mup(form=table5)'), 'form must be table3 or table8 or table9'),
])
def test_a_mistake_is_one_line_and_nothing_is_written(model, message, tmp_path, data_dir) -> None:
  code, _, err = command(model, tmp_path / 'run')
  assert code == 2 and message in err and len(err.strip().splitlines()) == 1
  assert not (tmp_path / 'run').exists()


def test_an_optimizer_that_needs_labels_is_refused_without(tmp_path, data_dir) -> None:
  code, _, err = command(ModelSpec('mlp', {'widths': [8]}), tmp_path / 'run',
                      optimizer=OptimizerSpec('muon'))
  assert code == 2 and "'muon' is for hidden kernels" in err
  assert not (tmp_path / 'run').exists()


def test_the_dry_run_shows_the_factors(tmp_path, data_dir) -> None:
  code, out, _ = command(MODEL, tmp_path / 'run', '--dry_run')
  assert code == 0 and 'Parametrization of wide, beside its base model:' in out
  line = next(line for line in out.splitlines() if line.startswith('hidden_1/kernel'))
  assert line.split()[1:3] == ['hidden', '8->32']
  assert 'Parametrization' not in command(ModelSpec('mlp', {'widths': [8]}), tmp_path / 'run',
                                          '--dry_run')[1]
