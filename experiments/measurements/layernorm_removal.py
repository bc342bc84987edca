"""What the study of LayerNorm removal measures on its trained networks.

Rows are {'part', 'phase', 'arm', 'base', 'measure', 'value', 'low', 'high', ...}: one number each,
with its interval where it has one. `base` is the number of the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any

import numpy as np

from launch.study import Given

SHIFTED = 'shifted'
MODELS = ('base', 'vanilla', 'ln_free')
TOP, DRAWS = 3, 5  # confidence neurons, and sets of other neurons of equal norm
BYTES = (256, 257)  # sizes of a vocabulary of bytes, without and with a separator
TOGETHER, MOST_LETTERS = 24, 24  # of the copying task: pairs at a time; letters
UNSEEN_WINDOWS = 64
Row = dict[str, Any]


def precisely(compute: Callable[..., Any]) -> Callable[..., Any]:
  """The measurement with whole float32 products, which accelerators round to fewer bits."""
  @functools.wraps(compute)
  def measured(*arguments, **named):
    import jax
    with jax.default_matmul_precision('highest'):
      return compute(*arguments, **named)
  return measured


def validation(data, most: int) -> np.ndarray:
  """Windows of the validation split, int32 [N, window], evenly spaced."""
  return windows_of(data, data.splits[0].val, most)


def windows_of(data, examples: np.ndarray, most: int) -> np.ndarray:
  """At most so many of the examples as tokens [N, window]: what a model can read."""
  from launch.study.datasets import evenly_spaced  # imports jax, which a report does without
  return np.asarray(data.dataset.inputs[evenly_spaced(examples, most)], np.int32)[:, :-1]


def unseen(data, count: int, seed: int = 0) -> np.ndarray:
  """Windows of random tokens that the training split does not have, int32 [count, window].

  A text in which every token occurs gives an array of no windows.
  """
  split, inputs = data.splits[0], data.dataset.inputs
  absent = np.setdiff1d(np.arange(data.dataset.vocab), np.unique(inputs[split.train]))
  if not len(absent):
    return np.zeros((0, inputs.shape[1] - 1), np.int32)
  rng = np.random.Generator(np.random.Philox(seed))
  return rng.choice(absent, (count, inputs.shape[1] - 1)).astype(np.int32)


def networks(given: Given, base: str, tuned: str, step: int | None = None,
             ) -> Iterator[tuple[str, int, Any, dict]]:
  """(arm, base, model, variables) of the bases, and of vanilla and ln_free at their common rate.

  Args:
    base: cohort of the bases, or 'weights:FOLDER'.
    tuned: cohort of the others; `step`: as they were there.
  """
  import jax
  kind, _, folder = base.partition(':')
  own = given.trained(tuned, step)
  if kind == 'weights':
    from model_lib.interop.hugging_face import load_gpt2
    _, weights = load_gpt2(folder)
    first = member(own, 0)  # of vanilla, whose norms are real
    yield 'base', 0, exact(own.model), {
        **first, 'params': jax.tree.map(np.asarray, weights['params'])}
  for trained in ([] if kind == 'weights' else [given.trained(base)]) + [own]:
    model = exact(trained.model)
    for i, found in enumerate(trained.rows):
      if found['arm'] in MODELS:
        yield found['arm'], int(found['base']), model, member(trained, i)


def member(trained, number: int) -> dict:
  """The variables of one network, on the host: a compiled program is told apart by where its
  arguments lie."""
  import jax
  return jax.tree.map(lambda leaf: np.asarray(leaf)[number], trained.variables)


def exact(model):
  """The model as it is measured: products in float32, no dropout, one layer compiled for all."""
  return model.clone(dtype='params', dropout=0.0, remat=False, unroll=1)


def row(part: str, phase: str, arm: str, base: int, measure: str, value, interval=None,
        **more) -> Row:
  """One number; an `Interval` gives the limits."""
  found = {'part': part, 'phase': phase, 'arm': arm, 'base': base, 'measure': measure}
  if interval is not None:
    return found | {'value': float(interval.mean), 'low': float(interval.low),
                    'high': float(interval.high), **more}
  return found | {'value': float(value), **more}


def measure_bigram(given: Given, part: str, windows: int) -> list[Row]:
  """Cross-entropy of a bigram model of the training split on the windows of `measure_losses`.

  p(b | a) = (n(a, b) + 1) / (n(a) + V), n counted in the training windows. Of the V^2 pairs those
  are counted that are looked up.
  """
  split, inputs, vocab = given.data.splits[0], given.data.dataset.inputs, given.data.dataset.vocab

  def pairs(tokens):
    tokens = np.asarray(tokens, np.int64)
    return tokens[:, :-1].ravel(), tokens[:, 1:].ravel()

  first, second = pairs(validation(given.data, windows))
  wanted, place = np.unique(first * vocab + second, return_inverse=True)
  both, single = np.zeros(len(wanted)), np.zeros(vocab)
  for block in np.array_split(split.train, -(-len(split.train) // 4096)):
    a, b = pairs(inputs[block])
    single += np.bincount(a, minlength=vocab)
    at = np.searchsorted(wanted, a * vocab + b).clip(max=len(wanted) - 1)
    both += np.bincount(at[wanted[at] == a * vocab + b], minlength=len(wanted))
  loss = np.log(single[first] + vocab) - np.log(both[place.ravel()] + 1)
  return [row(part, 'bigram', 'bigram', 0, 'val_loss', loss.mean())]


@precisely
def measure_losses(given: Given, part: str, base: str, tuned: str, windows: int,
                   others: Sequence[str], shifted: bool) -> list[Row]:
  """Losses of tokens with their tails on three texts; gaps paired over the sequences of a base.

  The gap of two arms is the mean difference of their losses on the same validation windows, with
  the interval of a paired bootstrap over windows. Of the arms at other learning rates the one with
  the lowest validation loss per base and arm is compared as well (measure `best_gap`).
  """
  from model_lib.analysis import language_loss
  texts = {'val': validation(given.data, windows)}
  if shifted:
    beside = given.data.beside[SHIFTED]
    texts['shifted'] = windows_of(beside, beside.splits[0].test, windows)
  strange = unseen(given.data, UNSEEN_WINDOWS)
  if len(strange):
    texts['unseen'] = strange
  rows, losses = [], {}
  for arm, number, model, variables in networks(given, base, tuned):
    for text, tokens in texts.items():
      loss = language_loss.predict(model, variables, tokens).loss
      losses[arm, number, text] = loss
      rows += [row(part, 'losses', arm, number, f'{text}_{name}', value)
               for name, value in language_loss.summary(loss).items()]
  best = {key[:2]: loss for key, loss in losses.items() if key[2] == 'val'}
  for name in others:
    trained = given.trained(name)
    for i, found in enumerate(trained.rows):
      key = found['arm'], int(found['base'])
      if key not in best:
        continue
      loss = language_loss.predict(exact(trained.model), member(trained, i), texts['val']).loss
      if not best[key].mean() <= loss.mean():  # also where that is no number
        best[key] = loss
  for number in sorted({number for _, number, _ in losses}):
    for text in texts:
      gap = language_loss.difference(losses['ln_free', number, text],
                                     losses['vanilla', number, text])
      rows.append(row(part, 'gaps', 'ln_free', number, f'{text}_gap', 0, gap))
    rows.append(row(part, 'gaps', 'ln_free', number, 'best_gap', 0, language_loss.difference(
        best['ln_free', number], best['vanilla', number])))
  return rows


def calibrated(model, variables: Mapping, tokens: np.ndarray) -> dict:
  """The variables with every sigma at its statistic on the tokens, and all sites linear."""
  import jax
  state = jax.tree.map(np.asarray, _statistics(model)(variables, tokens))
  return {**variables, 'norm_state': state, 'hp': linear(variables['hp'])}


@functools.cache
def _statistics(model) -> Callable:
  """(variables, tokens) -> the state of the norm sites after a first training call."""
  import jax
  import jax.numpy as jnp

  def first(variables, tokens):
    before = jax.tree.map(
        lambda leaf: (jnp.zeros_like if leaf.dtype == np.int32 else jnp.ones_like)(leaf),
        dict(variables['norm_state']))
    _, found = model.apply({**variables, 'norm_state': before}, tokens, train=True,
                           mutable=['norm_state', 'losses'])
    return found['norm_state']
  return jax.jit(first)


def linear(hp: Mapping) -> dict:
  """The swept numbers with the events of all sites at step 0."""
  import jax

  def change(path, leaf):
    name = path[-1].key
    return np.zeros_like(leaf) if name.startswith('event_') or name == 'taper' else leaf
  return {**jax.tree_util.tree_map_with_path(change, dict(hp)), 'enabled': np.int32(1)}


@precisely
def measure_swaps(given: Given, part: str, base: str, tuned: str, windows: int) -> list[Row]:
  """All norms replaced at once by averages of the base, without fine-tuning; and by twice these.

  Sigma is the statistic of as many training windows as there are validation windows.
  """
  from model_lib.analysis import language_loss
  val = validation(given.data, windows)
  train = windows_of(given.data, given.data.splits[0].train, windows)
  rows = []
  for arm, number, model, variables in networks(given, base, tuned):
    if arm != 'base':
      continue
    swapped = calibrated(model, variables, train)
    doubled = {**swapped, 'hp': {**swapped['hp'], 'sigma_factor': np.float32(2)}}
    own, one, two = (language_loss.predict(model, v, val).loss
                     for v in (variables, swapped, doubled))
    rows += [row(part, 'swaps', 'zero_tuning', number, 'val_mean', one.mean()),
             row(part, 'swaps', 'zero_tuning', number, 'val_gap', 0,
                 language_loss.difference(one, own)),
             row(part, 'swaps', 'doubled_sigma', number, 'val_mean', two.mean()),
             row(part, 'swaps', 'doubled_sigma', number, 'val_gap', 0,
                 language_loss.difference(two, one))]
  return rows


def measure_rule(given: Given, part: str, tuned: str) -> list[Row]:
  """What the adaptive rule came to: norms that are still real, and how often one was put back."""
  from model_lib.models.removable import NEVER
  trained, rows = given.trained(tuned), []
  rule = trained.variables['norm_state']['rule']
  for found, event, back in zip(trained.rows, np.asarray(rule['event']),
                                np.asarray(rule['rollbacks']), strict=True):
    rows += [row(part, 'rule', found['arm'], int(found['base']), name, value, of=len(event))
             for name, value in (('left', (event == NEVER).sum()), ('rollbacks', back.sum()))]
  return rows


@precisely
def measure_entropies(given: Given, part: str, base: str, tuned: str, windows: int,
                      steps: Sequence[int]) -> list[Row]:
  """Entropy of every head of vanilla and ln_free, on the way and at the end (step -1).

  Also of the base (step 0). Relative: over log of the number of visible positions.
  """
  from model_lib.analysis import attention_patterns
  tokens = validation(given.data, windows)
  rows = []
  for at, step in ((0, None), *((s, s) for s in steps), (-1, None)):
    for arm, number, model, variables in networks(given, base, tuned, step):
      if (arm == 'base') != (at == 0):
        continue
      found = attention_patterns.patterns(model, variables, tokens)
      entropy, relative = (getattr(found, name).mean(0)
                           for name in ('entropy', 'relative_entropy'))
      rows += [row(part, 'entropies', arm, number, 'entropy', entropy[layer, head], step=at,
                   layer=layer, head=head, relative=float(relative[layer, head]))
               for layer in range(model.depth) for head in range(model.heads)]
  return rows


def measure_card(given: Given, part: str, base: str, tuned: str, windows: int,
                 pairs: int) -> list[Row]:
  """The report card of base, vanilla and ln_free; `pairs` of prompts are patched."""
  from model_lib.analysis.batches import side_by_side
  tokens = validation(given.data, windows)
  trained = {(arm, number): network for arm, number, *network in networks(given, base, tuned)}
  alone = precisely(lambda network: (list(card(*network, tokens)),
                                     patches(*network, tokens.shape[1], pairs)))
  cards = dict(zip(trained, side_by_side(alone, list(trained.values())), strict=True))
  rows = [{**found, 'part': part, 'phase': 'card', 'arm': arm, 'base': number}
          for (arm, number), (own, _) in cards.items() for found in own]

  @precisely
  def together(number: int) -> list[Row]:
    arms = [arm for arm in MODELS if (arm, number) in trained]
    return [*compared({arm: trained[arm, number] for arm in arms}, tokens),
            *patching({arm: cards[arm, number][1] for arm in arms})]

  numbers = sorted({number for _, number in trained})
  return rows + [{**found, 'part': part, 'phase': 'card', 'base': number}
                 for number, own in zip(numbers, side_by_side(together, numbers), strict=True)
                 for found in own]


def card(model, variables: Mapping, tokens: np.ndarray) -> Iterator[Row]:
  """What is measured on one network."""
  from model_lib.analysis import (
      attention_patterns, attribution, calibration, confidence_neurons, language_loss,
      norm_direction, residual_scale)

  def of(measure, value, interval=None, **more):
    return {k: v for k, v in row('', '', '', 0, measure, value, interval, **more).items()
            if k not in ('part', 'phase', 'arm', 'base')}

  found = language_loss.predict(model, variables, tokens)
  yield of('output_entropy', found.entropy.mean())
  for bins in (10, 15):
    yield of(f'ece_{bins}', calibration.expected_calibration_error(
        found.confidence, found.correct, bins))
  yield of('best_temperature', calibration.best_temperature(model, variables, tokens))

  nmae = attribution.nmae(attribution.attribute(model, variables, tokens))
  yield of('nmae_pooled', 0, nmae.pooled)
  yield of('nmae_per_head', 0, nmae.per_head)

  patterns = attention_patterns.patterns(model, variables, tokens)
  for name, rate in attention_patterns.sink_rates(patterns).items():
    yield of(f'sink_rate_{name}', 0, rate)
  bands = attention_patterns.entropy_bands(
      patterns.entropy.mean(0), attention_patterns.largest_entropy(tokens.shape[1]))
  for name, share in bands.items():
    yield of(f'heads_{name}', share)

  scale = residual_scale.residual_scale(model, variables, tokens)
  for place in residual_scale.position_rows(scale):
    yield of('position_0_ratio', place['ratio'], place=place['place'])
  if any(g < 1 for g in gates(variables).values()):
    for site in residual_scale.drift_rows(scale, residual_scale.frozen_sigmas(variables)):
      yield of('sigma_drift', site['ratio'], place=site['site'], at_freeze=site['at_freeze'],
               now=site['now'], variation=site['variation'], first_ratio=site['first_ratio'])

  for neuron in confidence_neurons.rows(model, variables, tokens, TOP, DRAWS):
    name = '+'.join(map(str, neuron['neurons']))
    yield of('neuron_entropy', 0, neuron['entropy'], place=name, size=neuron['entropy_size'],
             control=neuron['control_entropy_size'], together=len(neuron['neurons']))
    yield of('neuron_loss', 0, neuron['loss'], place=name, size=neuron['loss_size'],
             control=neuron['control_loss_size'], together=len(neuron['neurons']))
  weights = confidence_neurons.neurons(model, variables)
  spectrum = confidence_neurons.spectrum(model, variables, weights.weights[weights.order[:TOP]])
  yield of('null_directions', spectrum.null)
  yield from (of('singular_value', value, place=str(i)) for i, value in enumerate(spectrum.values))
  yield of('neurons_in_null_space', spectrum.null_share.mean())
  for place in norm_direction.direction_rows(model, variables, tokens):
    yield of(f'norm_direction_{place["functional"]}', place['cosine'], place=place['place'],
             lowest=place['lowest'], control=place['frozen'])


def gates(variables: Mapping) -> dict[str, float]:
  """1 for every norm that is there, 0 for one that has become linear."""
  from model_lib.models.removable import gates as of_model
  return of_model(variables)


def patches(model, variables: Mapping, length: int, pairs: int):
  """Both kinds of patching on letters to be copied; None where a token is no byte."""
  from model_lib.analysis import attribution_patching
  if model.vocab not in BYTES:
    return None
  prompts = attribution_patching.copy_pairs(pairs, 2 * min(MOST_LETTERS, length // 2) - 1)
  return attribution_patching.patch(model, variables, prompts, batch=TOGETHER)


def of_arm(arm: str, measure: str, value, interval=None, **more) -> Row:
  """A row of the card without part, phase and base."""
  return {k: v for k, v in row('', '', arm, 0, measure, value, interval, **more).items()
          if k not in ('part', 'phase', 'base')}


def patching(found: Mapping[str, Any]) -> Iterator[Row]:
  """Attribution patching against activation patching, of the `patches` of each arm."""
  from model_lib.analysis import attribution_patching
  if None in found.values():
    return
  for name, own in found.items():
    yield of_arm(name, 'patching_total', own.total.mean())
  for site in attribution_patching.SITES:
    for name, own in found.items():
      error = attribution_patching.error(own, site, 'all')
      yield of_arm(name, 'patching_error', error.mean(), place=site)
    paired = attribution_patching.compare(found['vanilla'], found['ln_free'], site)
    yield of_arm('ln_free', 'patching_gain', 0, paired.difference, place=site, p=paired.p)


def compared(models: Mapping[str, tuple[Any, dict]], tokens: np.ndarray) -> Iterator[Row]:
  """What is measured on several networks of one base, and on the export of ln_free."""
  from model_lib.analysis import attribution, language_loss
  from model_lib.transforms import gpt2_export
  names = list(models)
  for i, a in enumerate(names):
    for b in names[i + 1:]:
      found = language_loss.divergence(models[a], models[b], tokens)
      yield of_arm(b, 'divergence', found.mean(), place=a)
  model, variables = models['ln_free']
  exported = gpt2_export.fold(model, variables, tokens[:16], lower=())
  for dtype in ('float32', 'float64'):
    precision = exported.report.precisions[dtype]
    yield of_arm('folded', 'logit_difference', precision.max_difference / precision.largest,
                 place=dtype)
  yield of_arm('folded', 'normalizations_left', len(exported.report.findings),
               control=len(exported.report.control_findings))
  nmae = attribution.nmae(attribution.attribute(exported.model, exported.variables, tokens))
  yield of_arm('folded', 'nmae_pooled', 0, nmae.pooled)
  yield of_arm('folded', 'nmae_per_head', 0, nmae.per_head)
