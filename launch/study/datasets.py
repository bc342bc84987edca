"""From a data set's name to what a cohort's program reads: task, arrays, feed, routes.

Here `data` (files, splits, feeds) meets `model_lib.training` (tasks, batch order).
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data.device import DeviceFeed
from data.load import Dataset, window_tokens
from data.load import load as load_dataset
from data.splits import Split, make_splits
from launch.study.request import DataRequest
from model_lib.errors import UserError
from model_lib.models import parametrized
from model_lib.models.parametrized import Parametrized
import model_lib.search.engines  # enters table, bytecode and expression among the activations
from model_lib.training.batch_order import BatchOrder
from model_lib.training.cohort import Cohort, ModelSpec, OptimizerSpec
from model_lib.training.optimizers import family
from model_lib.training.population import Routes
from model_lib.training.state import direction
from model_lib.training.tasks import Classification, NextToken

STREAM_FROM_BYTES = 2**30
STREAM_BLOCK_BYTES = 256 * 2**20
_KINDS = {'images': 'images', 'tokens': 'text'}  # in words
_LABEL_TABLES = 7  # keeps the label permutations' random numbers apart from the splits'


@dataclasses.dataclass
class Prepared:
  """What one cohort's program reads.

  Attributes:
    task: from model_lib.training.tasks.
    feed: index blocks and arrays of the training steps.
    arrays: the training call's arrays, or their shapes where blocks are streamed.
    constant: device arrays for the evaluation.
    routes: of the members.
    n_streams: rows of the index block.
    evaluation_sets: for each split (part of train, val, test) as rows of `constant`.
    steps_per_call: K, where the feed fixes it; 0 where it is open.
  """

  task: Any
  feed: Any
  arrays: Any
  constant: Any
  routes: Routes
  n_streams: int
  evaluation_sets: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
  steps_per_call: int = 0

  def close(self) -> None:
    """Stops reading threads."""
    self.feed.close()


class StudyData:
  """The data that all cohorts of a study share."""

  def __init__(self, request: DataRequest, data_dir: str):
    """Loads the data set; prepares the embedded ones first.

    Raises:
      DataError: not prepared, or damaged.
      UserError: text where the study reads images, or the other way round.
    """
    self.request = request
    self.data_dir = data_dir or None
    dataset = load_dataset(request.dataset, self.data_dir, request.separated)
    if dataset.kind != request.kind:
      raise UserError(f'config.dataset: {dataset.name} is {_KINDS[dataset.kind]}; this study takes '
                      f'{_KINDS[request.kind]}')
    if dataset.kind == 'tokens':
      dataset = window_tokens(dataset, request.window)
    self.dataset: Dataset = dataset
    self.splits: list[Split] = make_splits(dataset, request.splits, request.seed)
    if request.train_most:
      self.splits = [dataclasses.replace(split, train=split.train[:request.train_most])
                     for split in self.splits]
    self.beside = {name: StudyData(other, data_dir) for name, other in request.beside}

  def of(self, cohort: Cohort) -> StudyData:
    """The data that a cohort reads: these, or those beside them that it names."""
    return self.beside[cohort.data] if cohort.data else self

  def hashes(self) -> dict[str, str]:
    """Name of each data set, those beside included, and the hash of its content."""
    found = {self.dataset.name: self.dataset.sha256}
    if self.request.weights:
      found[f'weights {self.request.weights}'] = folder_sha256(self.request.weights)
    for other in self.beside.values():
      found |= other.hashes()
    return found

  def class_shares(self) -> tuple[float, ...]:
    """Share of each class among all labels; empty for text."""
    labels = np.asarray(self.dataset.labels)
    if not len(labels):
      return ()
    return tuple((np.bincount(labels, minlength=self.dataset.num_classes) / len(labels)).tolist())

  def label_tables(self, count: int) -> np.ndarray:
    """int32 [n, count + 1]: the labels, then `count` random permutations of all of them."""
    labels = np.asarray(self.dataset.labels)
    tables = [labels]
    for k in range(count):
      rng = np.random.Generator(np.random.Philox(key=[self.request.seed + _LABEL_TABLES, k]))
      tables.append(rng.permutation(labels))
    return np.stack(tables, 1).astype(np.int32)

  def complete(self, spec: ModelSpec) -> ModelSpec:
    """The model with the number of outputs that the data decides, where the study left it open."""
    if self.dataset.kind == 'tokens':
      decided = {'vocab': self.dataset.vocab, 'length': self.request.window}
      if self.request.separated and spec.name == 'gpt2':
        decided['eot'] = self.dataset.vocab - 1
    else:
      decided = {'num_classes': self.dataset.num_classes}
    return dataclasses.replace(spec, arguments={**decided, **spec.arguments})

  def build(self, spec: ModelSpec, optimizer: OptimizerSpec):
    """The model for this data: a Linen module, or one with the factors of its parametrization."""
    spec = self.complete(spec)
    return parametrized.build(spec.name, spec.arguments, spec.base, spec.delta, family(optimizer))

  def check(self, cohort: Cohort) -> None:
    """Checks that the data can serve a cohort.

    Raises:
      UserError: there is no such model or optimizer or the parametrization does not fit it, its
        vocabulary or number of classes is given and not that of the data, a member asks for a
        split that the study does not make, or a batch is larger than the training split.
    """
    model, labels = self.build(cohort.model, cohort.optimizer), None
    if isinstance(model, Parametrized):
      labels = model.labels(self.example(), train=False)
      model.factors(self.example(), train=False)
    direction(cohort.optimizer, labels)
    vocab = cohort.model.arguments.get('vocab', self.dataset.vocab)
    if vocab != self.dataset.vocab:
      raise UserError(f'cohort {cohort.name}: its model has a vocabulary of {vocab} tokens, and '
                      f'{self.dataset.name} has {self.dataset.vocab}; prepare the text in the '
                      "tokens of the model (python -m data.prepare has --tokenizer), or take another")
    classes = cohort.model.arguments.get('num_classes', self.dataset.num_classes)
    if classes != self.dataset.num_classes:
      raise UserError(f'cohort {cohort.name}: its model tells {classes} classes apart, and '
                      f'{self.dataset.name} has {self.dataset.num_classes}; set the number of '
                      'classes in the config to that of the data')
    for member in cohort.members:
      if not 0 <= member.split < len(self.splits):
        raise UserError(f'cohort {cohort.name}: split {member.split} of {len(self.splits)}')
      examples = len(self.splits[member.split].train)
      if cohort.batch_size > examples:
        raise UserError(f'cohort {cohort.name}: a batch of {cohort.batch_size} is larger than the '
                        f'training split of {self.dataset.name}, {examples} examples')

  def example(self) -> np.ndarray:
    """Two examples' inputs as a model gets them, all 0."""
    return self._task().example_inputs({'inputs': self.dataset.inputs}, 2)

  def _task(self):
    if self.dataset.kind == 'tokens':
      return NextToken()
    return Classification(float(self.dataset.mean), float(self.dataset.std))

  def prepare(self, cohort: Cohort, feed: str) -> Prepared:
    """What the cohort reads; `feed` is 'device', 'stream' or 'auto' (by the size of the data).

    Raises:
      UserError: as `check`, or text for a stream of images.
    """
    self.check(cohort)
    data = self.dataset
    pairs = list(dict.fromkeys((m.data_seed, m.split) for m in cohort.members))
    rows = {pair: i for i, pair in enumerate(pairs)}
    order = BatchOrder([(seed, self.splits[split].train) for seed, split in pairs],
                       cohort.batch_size)
    routes = Routes(*(np.array(v, np.int32) for v in zip(*(
        (rows[m.data_seed, m.split], m.labels, m.split) for m in cohort.members), strict=True)))
    task, arrays = self._task(), {'inputs': data.inputs}
    if data.kind == 'images':
      arrays['labels'] = self.label_tables(max(m.labels for m in cohort.members))
    most = self.request.eval_most or len(data.inputs)
    sets = [tuple(evenly_spaced(part, most) for part in (part_of_train(s), s.val, s.test))
            for s in self.splits]
    if feed == 'auto':
      feed = 'stream' if data.inputs.nbytes >= STREAM_FROM_BYTES else 'device'
    if feed == 'device':
      device = DeviceFeed(arrays, order)
      constant, _ = device.block(0, 1)
      return Prepared(task, device, constant, constant, routes, len(pairs), sets)
    if data.kind == 'tokens':
      raise UserError('config.engine.feed: text lies on the device; set it to device or auto')
    from data.streaming import ImageSource  # Grain, which small data does without, takes 0.7 s
    source = _LabelledSource(ImageSource(self.request.dataset, self.data_dir), arrays['labels'])
    used = np.unique(np.concatenate([part for parts in sets for part in parts]))
    constant = jax.device_put({'inputs': data.inputs[used], 'labels': arrays['labels'][used]})
    sets = [tuple(np.searchsorted(used, part).astype(np.int32) for part in parts)
            for parts in sets]
    stream = _PaddedStream(source, order, cohort, arrays)
    return Prepared(task, stream, stream.shapes, constant, routes, len(pairs), sets,
                    stream.steps_per_call)


def folder_sha256(folder: str) -> str:
  """Hash of the names and contents of a folder's config.json and *.safetensors files.

  Raises:
    UserError: a file cannot be read.
  """
  whole = hashlib.sha256()
  path = pathlib.Path(folder)
  for file in sorted((*path.glob('config.json'), *path.glob('*.safetensors'))):
    try:
      with open(file, 'rb') as f:
        content = hashlib.file_digest(f, 'sha256').digest()
    except OSError as e:
      raise UserError(f'{file}: cannot be read ({e.strerror})') from e
    whole.update(file.name.encode() + b'\0' + content)
  return whole.hexdigest()


def load(request: DataRequest | None, data_dir: str) -> StudyData | None:
  """The data of a request; None for a study that reads none."""
  return None if request is None else StudyData(request, data_dir)


def part_of_train(split: Split) -> np.ndarray:
  """As many evenly spaced training examples as there are validation examples."""
  return evenly_spaced(split.train, len(split.val))


def evenly_spaced(examples: np.ndarray, most: int) -> np.ndarray:
  """At most so many of the examples, the first and the last among them."""
  count = min(most, len(examples))
  return examples[np.linspace(0, len(examples) - 1, count).astype(np.int64)]


class _LabelledSource:
  """Images from disk with their rows of the label tables, which stay in memory."""

  def __init__(self, source, tables: np.ndarray):
    self._source, self._tables = source, tables

  def gather(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    return {'inputs': self._source.gather(numbers)['inputs'], 'labels': self._tables[numbers]}


class _PaddedStream:
  """A StreamFeed whose blocks always have the compiled size, also in a short last call."""

  def __init__(self, source, order: BatchOrder, cohort: Cohort, arrays):
    from data.streaming import StreamFeed
    self._feed = StreamFeed(source, order)
    per_step = len(order) * order.batch_size
    example = sum(a[0].nbytes for a in arrays.values())
    self.steps_per_call = int(max(1, min(cohort.steps, 100,
                                         STREAM_BLOCK_BYTES // (per_step * example))))
    self._rows = self.steps_per_call * per_step
    self.shapes = {k: jax.ShapeDtypeStruct((self._rows, *a.shape[1:]), a.dtype)
                   for k, a in arrays.items()}

  def block(self, step: int, n: int):
    arrays, index = self._feed.block(step, n)
    padded = {}
    for name, array in arrays.items():
      fill = np.zeros((self._rows - len(array), *array.shape[1:]), array.dtype)
      padded[name] = np.concatenate([array, fill]) if len(fill) else array
    return padded, index

  def close(self) -> None:
    self._feed.close()
