"""A controller that learns to write expressions: REINFORCE, with PPO's clipping if wanted.

The policy fills the operators of a schema in the order of the text, each given the one before:

  p(a) = prod_i softmax(T_i[0] + T_i[1 + a_{i-1}])[a_i]        (i = 0: T_0[0] alone)

so T_i[0] is learned from all samples, T_i[1 + j] from those where operator j came before. This is
the tabular, first-order form of the recurrent controllers of Zoph & Le 2017, arXiv 1611.01578, and
Ramachandran, Zoph & Le 2017, arXiv 1710.05941. REINFORCE: Williams 1992; PPO: Schulman et al.
2017, arXiv 1707.06347. All constants are this project's choice.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
import bisect

import numpy as np

from model_lib.search.algorithms.algorithm import TRIES, Answer, Key, Query, generator
from model_lib.search.algorithms.mutations import with_operators
from model_lib.search.expression import Expression
from model_lib.search.operators import OPERATORS
from model_lib.search.spaces import Space

_STALE = 100  # batches in a row without a function that is new, after which the search is over


class Controller:
  """Policy gradient on batches of valid samples, which may repeat what is known already.

  Known functions cost no query: a batch is learned from as soon as the losses of all its samples
  are known. The reward is the share of the known functions that are worse, so it does not hang on
  the scale of the losses, and 'diverged' is simply the worst. The baseline is the mean reward of
  the batch. With it REINFORCE needs no correction for the samples that the filter rejects, since
  the gradient of log P(valid) has weight sum(reward - baseline) = 0; in PPO's further epochs this
  holds nearly.
  """

  def __init__(
      self, space: Space, key: Key, seed: int, batch: int = 10, learning_rate: float = 5.0,
      entropy: float = 0.02, clip: float | None = None, epochs: int = 1,
  ):
    """Args:
      space: its first schema is filled.
      key: see `algorithm.Key`.
      seed: of the samples.
      batch: samples per update of the policy.
      learning_rate: of gradient ascent.
      entropy: weight of the policy's mean entropy in nats, see `objective`.
      clip: PPO's epsilon; None for REINFORCE.
      epochs: steps of gradient ascent per batch; with more than one, `clip` should be given.
    """
    self._template = next(space.expressions(space.schemas[0]))
    self._choices = [space.of_kind(OPERATORS[node.operator].kind)
                     for _, node in self._template.walk() if node.args]
    sizes = list(map(len, self._choices))
    self._tables = [np.zeros((1 + before, size))
                    for before, size in zip([0] + sizes[:-1], sizes, strict=True)]
    self._key, self._seed, self._batch = key, seed, batch
    self._learning_rate, self._entropy, self._clip = learning_rate, entropy, clip
    self._epochs = epochs
    self._losses: dict[Hashable, float] = {}
    self._order: list[float] = []  # the known losses, sorted
    self._n_batches = 0
    self._sample_batch()

  def ask(self, n: int) -> list[Query]:
    unknown = {key: expression for key, expression in zip(self._keys, self._expressions)
               if key not in self._losses}
    return [Query(expression) for expression in list(unknown.values())[:n]]

  def tell(self, answers: Sequence[Answer]) -> None:
    for answer in answers:
      key = self._key(answer.query.expression)
      if key not in self._losses:
        self._losses[key] = np.inf if answer.diverged else answer.loss
        bisect.insort(self._order, self._losses[key])
      stale = 0
      while stale < _STALE and self._keys and all(key in self._losses for key in self._keys):
        self._update()
        self._sample_batch()
        stale += 1

  def probabilities(self) -> list[np.ndarray]:
    """Of each operator given the one before: [1, k_0], then [k_{i-1}, k_i]."""
    return [np.exp(logits) for logits in map(_log_softmax, map(_logits, self._tables))]

  def _sample_batch(self) -> None:
    """Draws the next batch; an empty one where nothing valid comes up."""
    rng = generator(self._seed, self._n_batches)
    self._n_batches += 1
    cumulative = [p.cumsum(1) / p.sum(1, keepdims=True) for p in self.probabilities()]
    self._samples, self._keys, self._expressions = [], [], []
    for _ in range(TRIES):
      sample, before = [], 0
      for table, u in zip(cumulative, rng.random(len(cumulative)), strict=True):
        before = int(np.searchsorted(table[before], u, side='right'))
        sample.append(before)
      names = (choice[a] for choice, a in zip(self._choices, sample, strict=True))
      expression = with_operators(self._template, lambda node: next(names))
      key = self._key(expression)
      if key is not None:
        self._samples.append(sample)
        self._keys.append(key)
        self._expressions.append(expression)
        if len(self._keys) == self._batch:
          break

  def _update(self) -> None:
    losses = np.array([self._losses[key] for key in self._keys])
    worse = len(self._order) - np.searchsorted(self._order, losses, side='right')
    rewards = worse / len(self._order)
    samples, advantages = np.array(self._samples), rewards - rewards.mean()
    old = log_probability(self._tables, samples)
    for _ in range(self._epochs):
      _, gradient = objective(
          self._tables, samples, advantages, old, self._clip, self._entropy)
      self._tables = [table + self._learning_rate * slope
                      for table, slope in zip(self._tables, gradient, strict=True)]


def log_probability(tables: Sequence[np.ndarray], samples: np.ndarray) -> np.ndarray:
  """log p of samples [n, slots] -> [n]."""
  return sum(_log_softmax(_logits(table))[before, chosen]
             for table, before, chosen in _slots(tables, samples))


def objective(
    tables: Sequence[np.ndarray], samples: np.ndarray, advantages: np.ndarray, old: np.ndarray,
    clip: float | None = None, entropy: float = 0.0,
) -> tuple[float, list[np.ndarray]]:
  """What the policy ascends, and its gradient with respect to the tables.

    mean_s min(r_s A_s, clamp(r_s, 1 - clip, 1 + clip) A_s)
      + entropy mean_s sum_i H(p(a_i | a_{s, i-1})),       r_s = p(a_s) / p_old(a_s)

  Without `clip`, the first term is mean_s r_s A_s, whose gradient at p = p_old is REINFORCE's. In
  the second the contexts are those of the samples; that they depend on the policy is left out.

  Args:
    tables: of each slot, [1 + k_{i-1}, k_i].
    samples: [n, slots], whole numbers.
    advantages: [n].
    old: [n], log p_old(a_s).
    clip, entropy: see above.

  Returns:
    The value, and arrays of the tables' shapes.
  """
  n = len(samples)
  ratios = np.exp(log_probability(tables, samples) - old)
  terms, active = ratios * advantages, np.ones(n, bool)
  if clip is not None:
    clamped = np.clip(ratios, 1 - clip, 1 + clip) * advantages
    active = terms <= clamped
    terms = np.minimum(terms, clamped)
  weights = active * ratios * advantages / n
  value, gradients = terms.mean(), []
  for table, before, chosen in _slots(tables, samples):
    log_p = _log_softmax(_logits(table))[before]
    p = np.exp(log_p)
    entropies = -(p * log_p).sum(1)
    value += entropy * entropies.mean()
    # d log p[a] / d logits = onehot(a) - p;  d H / d logits = -p (log p + H).
    slope = -weights[:, None] * p - entropy / n * p * (log_p + entropies[:, None])
    slope[np.arange(n), chosen] += weights
    gradient = np.zeros_like(table)
    gradient[0] = slope.sum(0)
    if len(table) > 1:
      np.add.at(gradient, 1 + before, slope)
    gradients.append(gradient)
  return float(value), gradients


def _slots(tables: Sequence[np.ndarray], samples: np.ndarray):
  """Per slot: its table, the choice before [n], which is 0 for the first slot, and its own [n]."""
  for i, table in enumerate(tables):
    yield table, samples[:, i - 1] if i else np.zeros(len(samples), int), samples[:, i]


def _logits(table: np.ndarray) -> np.ndarray:
  return table[:1] + table[1:] if len(table) > 1 else table


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  shifted = logits - logits.max(1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
