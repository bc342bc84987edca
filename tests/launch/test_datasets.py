"""What a cohort's program reads: both feeds give the same bits; text trains; splits and routes."""
from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from data import builders
from data.content import Content
from launch.study import datasets
from launch.study.request import DataRequest
from model_lib.errors import UserError
from model_lib.training import loop, planning
from model_lib.training import population as population_lib
from model_lib.training.cohort import Cohort, Member, ModelSpec, OptimizerSpec
from model_lib.training.metrics import MetricsFile
from model_lib.training.population import Population, evaluation_index

STEPS, K = 17, 5  # the last call has two steps
MODEL = ModelSpec('mlp', {'widths': (16,)})


def member(number: int, **changes) -> Member:
  values = dict(tags={'number': number}, seed=number, data_seed=number % 2, split=number % 2,
                hp={'learning_rate': 2e-3})
  return Member(**{**values, **changes})


COHORT = Cohort('arms', MODEL, (member(0), member(1, labels=1), member(2)), STEPS, 8)

# Two streams of eight examples: 6 x 6 pixels and a row of two label tables each.
STEP_BYTES = 2 * 8 * (36 + 2 * 4)


@pytest.fixture(scope='module')
def study(tmp_path_factory) -> datasets.StudyData:
  """Blurred prototypes as a prepared data set, larger than what the splits use."""
  root = tmp_path_factory.mktemp('prepared')
  rng = np.random.default_rng(0)
  prototypes = rng.uniform(40, 215, (4, 6, 6))
  inputs, labels = {}, {}
  for split, n in (('train', 150), ('test', 30)):
    labels[split] = rng.integers(0, 4, n).astype(np.int32)
    pixels = prototypes[labels[split]] + rng.normal(0, 30, (n, 6, 6))
    inputs[split] = pixels.clip(0, 255).astype(np.uint8)
  builders.write(Content('blurred', 'images', inputs, labels, num_classes=4), root)
  return datasets.StudyData(DataRequest('blurred', splits=2, eval_batch=16), str(root))


class Training:
  """A cohort's program over one feed; trains from any step."""

  def __init__(self, study, cohort, feed: str, k: int = K, evaluates: bool = True):
    with pytest.MonkeyPatch.context() as patch:  # a stream's K follows from the bytes of a block
      patch.setattr(datasets, 'STREAM_BLOCK_BYTES', k * STEP_BYTES)
      self.prepared = prepared = study.prepare(cohort, feed)
    assert prepared.steps_per_call == (k if feed == 'stream' else 0)
    self.population = Population(cohort, study.build(cohort.model, cohort.optimizer), prepared.task,
                                 prepared.arrays, 'map')
    self.plan = planning.Plan('map', len(cohort.members), k, k, 0.0, 0.0, 0.0)
    self.call = loop.compile_for(self.population, self.plan, prepared.arrays, prepared.n_streams,
                                 5)
    pieces = [evaluation_index(parts, 16) for parts in prepared.evaluation_sets]
    self.index, self.weights = (np.stack([p[i] for p in pieces]) for i in (0, 1))
    self.sets = pieces[0][2]
    self.evaluation = evaluates and self.population.compile_evaluation(
        self.population.abstract(self.plan.chunk), prepared.constant, self.index)

  def train(self, folder, chunks=None, step: int = 0):
    """(state, lines, means) after the last step."""
    path = folder / 'metrics.jsonl'
    path.unlink(missing_ok=True)
    metrics = MetricsFile(path)
    chunks = chunks or loop.initial_chunks(self.population, self.plan)
    try:
      chunks = loop.train(self.population, self.plan, self.call, self.prepared.feed,
                          self.prepared.routes, chunks, step, run='arms', first_member=0,
                          metrics=metrics, log_every=5)
    finally:
      metrics.close()
      self.prepared.close()
    means = self.evaluation and loop.evaluate(
        self.population, self.plan, self.evaluation, chunks, self.prepared.routes,
        self.prepared.constant, self.index, self.weights, self.sets)
    state = population_lib.join_chunks(chunks, len(self.population.cohort.members))
    return jax.tree.map(np.asarray, state), path.read_bytes(), means


def same(a, b) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.fixture(scope='module')
def device(study, tmp_path_factory):
  training = Training(study, COHORT, 'device')
  return training, training.train(tmp_path_factory.mktemp('device'))


def test_stream_and_device_give_the_same_bits(study, device, tmp_path):
  """State, metrics and evaluation; the last call is short, so its block is padded."""
  _, (state, lines, means) = device
  training = Training(study, COHORT, 'stream')
  streamed = training.train(tmp_path)
  assert same(streamed[0], state) and streamed[1] == lines and same(streamed[2], means)
  assert [json.loads(line)['step'] for line in lines.splitlines()[::3]] == [5, 10, 15, 17]
  assert not same(state.params, Training(
      study, dataclasses.replace(COHORT, members=COHORT.members[::-1]), 'stream',
      evaluates=False).train(tmp_path)[0].params)


def test_a_stream_started_in_the_middle(study, device, tmp_path):
  """Ten steps from the device, the rest from a stream that never saw the first ten."""
  training, (state, _, _) = device
  own = training.population.cohort
  training.population.cohort = dataclasses.replace(own, steps=10)
  try:
    half = training.train(tmp_path)[0]
  finally:
    training.population.cohort = own
  streaming = Training(study, COHORT, 'stream', evaluates=False)
  ended = streaming.train(tmp_path, [jax.tree.map(np.array, half)], 10)[0]
  assert same(ended, state)
  wrong = streaming.train(tmp_path, [jax.tree.map(np.array, half)], 9)[0]
  assert not same(wrong.params, state.params)


def test_the_stream_s_own_steps_per_call(study, monkeypatch):
  """As many as fit into a block of memory, at most the cohort's."""
  def k():
    prepared = study.prepare(COHORT, 'stream')
    prepared.close()
    assert prepared.arrays['inputs'].shape == (prepared.steps_per_call * 2 * 8, 6, 6)
    return prepared.steps_per_call
  assert k() == STEPS
  monkeypatch.setattr(datasets, 'STREAM_BLOCK_BYTES', 5 * STEP_BYTES - 1)
  assert k() == 4
  monkeypatch.setattr(datasets, 'STREAM_BLOCK_BYTES', 1)
  assert k() == 1


def test_auto_streams_what_is_large(study, monkeypatch):
  def kind():
    prepared = study.prepare(COHORT, 'auto')
    prepared.close()
    return bool(prepared.steps_per_call)
  assert not kind()
  monkeypatch.setattr(datasets, 'STREAM_FROM_BYTES', study.dataset.inputs.nbytes)
  assert kind()


def test_routes_and_streams(study):
  """Equal (data seed, split) share a row of the index block; each stream reads its own split."""
  runs = (member(0), member(1), member(2, data_seed=1, split=0), member(4, labels=2))
  prepared = study.prepare(dataclasses.replace(COHORT, members=runs), 'device')
  assert prepared.n_streams == 3
  assert prepared.routes.stacked().tolist() == [[0, 0, 0], [1, 0, 1], [2, 0, 0], [0, 2, 0]]
  _, index = prepared.feed.block(0, 40)
  for row, split in enumerate((0, 1, 0)):
    assert set(index[row].ravel()) == set(study.splits[split].train.tolist())
  assert set(index[0].ravel()) != set(index[1].ravel())


def test_label_tables(study):
  """Table 0 as it is; the others permute all labels, each in its own way, the same every time."""
  labels = np.asarray(study.dataset.labels)
  tables = study.label_tables(2)
  np.testing.assert_array_equal(tables[:, 0], labels)
  for k in (1, 2):
    np.testing.assert_array_equal(np.bincount(tables[:, k]), np.bincount(labels))
    assert (tables[:, k] == labels).mean() < 0.5
  assert (tables[:, 1] != tables[:, 2]).any()
  np.testing.assert_array_equal(study.label_tables(1), tables[:, :2])


def test_part_of_train(study):
  for split in study.splits:
    part = datasets.part_of_train(split)
    assert len(part) == len(split.val) == len(np.unique(part))
    assert set(part) <= set(split.train) and not set(part) & set(split.val)


def test_a_split_that_is_not_made(study):
  wrong = dataclasses.replace(COHORT, members=(member(0, split=2),))
  with pytest.raises(UserError, match='cohort arms: split 2 of 2'):
    study.prepare(wrong, 'device')


def test_a_batch_that_the_training_split_does_not_hold(study):
  examples = len(study.splits[0].train)
  study.check(dataclasses.replace(COHORT, batch_size=examples))
  with pytest.raises(UserError, match=f'cohort arms: a batch of {examples + 1} is larger than the '
                                      f'training split of blurred, {examples} examples$'):
    study.prepare(dataclasses.replace(COHORT, batch_size=examples + 1), 'device')


def test_data_of_the_other_kind(study, data_dir):
  with pytest.raises(UserError, match='config.dataset: pystdlib is text; this study takes images$'):
    datasets.StudyData(DataRequest('pystdlib'), str(data_dir))
  with pytest.raises(UserError, match='config.dataset: blurred is images; this study takes text$'):
    datasets.StudyData(DataRequest('blurred', kind='tokens'), study.data_dir)
  with pytest.raises(ValueError, match="kind must be 'images' or 'tokens', got 'text'"):
    DataRequest('pystdlib', kind='text')


def test_the_data_decides_the_outputs(study):
  assert study.build(MODEL, OptimizerSpec()).num_classes == 4
  assert study.build(ModelSpec('mlp', {'num_classes': 7}), OptimizerSpec()).num_classes == 7


def test_text(data_dir, tmp_path):
  """A small language model learns more of the standard library than how frequent its bytes are."""
  study = datasets.StudyData(DataRequest('pystdlib', window=32, kind='tokens'), str(data_dir))
  model = ModelSpec('gpt', {'dim': 32, 'depth': 1, 'heads': 2, 'mlp_ratio': 2})
  runs = (member(0, split=0, hp={'learning_rate': 1e-2}),
          member(0, split=0, hp={'learning_rate': 0.0}))
  cohort = Cohort('text', model, runs, 80, 16)
  built = study.build(model, cohort.optimizer)
  assert built.vocab == 256 and built.length == 32
  with pytest.raises(UserError, match='config.engine.feed: text lies on the device'):
    study.prepare(cohort, 'stream')
  training = Training(study, cohort, 'device', k=40, evaluates=False)
  _, lines, _ = training.train(tmp_path)
  rows = [json.loads(line) for line in lines.splitlines()]
  losses = {m: [r['loss'] for r in rows if r['member'] == m] for m in (0, 1)}
  counts = np.bincount(np.asarray(study.dataset.inputs)[:, 1:].ravel(), minlength=256)
  share = counts[counts > 0] / counts.sum()
  entropy = -(share * np.log(share)).sum()
  assert 3.0 < entropy < 3.5  # nats per byte; a uniform guess costs log 256 = 5.5
  assert losses[0][-1] < entropy - 0.3 and losses[0][-1] < losses[0][0] - 0.5
  assert min(losses[1]) > 5.0  # without a learning rate nothing is learned


def test_given_weights_count_as_data(data_dir, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'model.safetensors').write_bytes(b'weights')
  (tmp_path / 'README.md').write_text('other')
  request = DataRequest('digits', weights=str(tmp_path))
  first = datasets.load(request, '').hashes()
  assert first.keys() == {'digits', f'weights {tmp_path}'}
  (tmp_path / 'README.md').write_text('another')
  assert datasets.load(request, '').hashes() == first
  (tmp_path / 'model.safetensors').write_bytes(b'weightz')
  assert datasets.load(request, '').hashes() != first


def test_the_first_examples_of_the_training_split(data_dir):
  whole = datasets.StudyData(DataRequest('digits'), str(data_dir))
  part = datasets.StudyData(DataRequest('digits', train_most=100), str(data_dir))
  assert part.splits[0].train.tolist() == whole.splits[0].train[:100].tolist()
  assert part.splits[0].test.tolist() == whole.splits[0].test.tolist()
