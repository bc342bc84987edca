"""Train / validation / test splits as index arrays: a pure function of dataset and seed."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """Example numbers (int32, ascending, disjoint) of the three parts."""

  train: np.ndarray
  val: np.ndarray
  test: np.ndarray


def make_splits(dataset: object, n: int, seed: int) -> list[Split]:
  """`n` splits of a `data.load.Dataset`, drawn from numpy's Philox under (seed, i).

  * Images with an official test set: it is the test set of every split, and validation is
    a stratified part of the official training set, min(5000, 10 %) of it.
  * Images without one (`digits`): 70 / 15 / 15 % of all examples, stratified.
  * Tokens cut into windows: the official ranges, n times the same, since neighbouring
    windows must not fall into different parts. Without an official validation range the
    last min(5000, 10 %) of the training windows are taken.

  Raises:
    ValueError: n < 1, or tokens that were not cut into windows.
  """
  if n < 1:
    raise ValueError(f'n must be at least 1, got {n}')
  if dataset.kind == 'tokens':
    if dataset.inputs.ndim != 2:
      raise ValueError('tokens are split as windows: call data.load.window_tokens first')
    return [_token_split(dataset.official)] * n
  return [_image_split(dataset, np.random.Philox(key=[seed, i])) for i in range(n)]


def stratified_part(
    labels: np.ndarray, count: int, bit_generator: np.random.BitGenerator) -> np.ndarray:
  """Boolean mask [n] of exactly `count` examples, each class in proportion.

  Class c of n_c examples gives count * n_c / n, rounded by the largest remainder (ties to
  the smaller class number).
  """
  rng = np.random.Generator(bit_generator)
  classes, sizes = np.unique(labels, return_counts=True)
  exact = count * sizes / len(labels)
  takes = np.floor(exact).astype(int)
  for c in np.argsort(takes - exact, kind='stable')[:count - takes.sum()]:
    takes[c] += 1
  mask = np.zeros(len(labels), bool)
  for c, take in zip(classes, takes):
    mask[rng.permutation(np.flatnonzero(labels == c))[:take]] = True
  return mask


def _image_split(dataset, bit_generator) -> Split:
  if 'test' in dataset.official:
    start, stop = dataset.official['train']
    candidates = np.arange(start, stop)
    test = np.arange(*dataset.official['test'])
    val_count = min(5000, round(0.1 * len(candidates)))
  else:
    everything = np.arange(len(dataset.labels))
    held = stratified_part(dataset.labels, round(0.15 * len(everything)), bit_generator)
    test, candidates = everything[held], everything[~held]
    val_count = len(test)
  held = stratified_part(dataset.labels[candidates], val_count, bit_generator)
  return _split(candidates[~held], candidates[held], test)


def _token_split(official) -> Split:
  train = np.arange(*official['train'])
  if 'validation' in official:
    val = np.arange(*official['validation'])
  else:
    cut = len(train) - max(1, min(5000, len(train) // 10))
    train, val = train[:cut], train[cut:]
  return _split(train, val, np.arange(*official['test']))


def _split(*parts) -> Split:
  return Split(*(part.astype(np.int32) for part in parts))
