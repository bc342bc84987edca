"""Entropies of activations and of networks that learned a coefficient, for the part `eafo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.study import Given

CONVENTIONS = ('primary', 'plug_in_raw', 'plug_in_rms', 'plug_in_fine_var', 'mixed_var',
               'monotone_raw', 'monotone_var')
_EXAMPLES = 512


def measure_criterion(given: Given, activations: Sequence[str]) -> list[dict[str, Any]]:
  """Entropies of every activation under N(0, 1) in all conventions.

  One without them (not finite in the range, or over more bins than there may be) gives a row of the
  phase `left_out` with the reason.
  """
  from model_lib.analysis.entropy_ranking import criterion
  from model_lib.errors import UserError
  del given
  rows = []
  for activation in activations:
    try:
      rows.append({'part': 'eafo', 'phase': 'criterion', 'activation': activation,
                   **criterion(activation).row()})
    except UserError as e:
      rows.append({'part': 'eafo', 'phase': 'left_out', 'activation': activation,
                   'reason': str(e)})
  return rows


def measure_learned(given: Given, cohorts: Sequence[str], recorded: int) -> list[dict[str, Any]]:
  """Learned coefficients by seed and layer, and entropies on recorded pre-activations.

  Args:
    cohorts: names; each of one activation with a coefficient `epsilon` per layer.
    recorded: of how many seeds the pre-activations are recorded.

  Returns:
    A row per run and layer: epsilon, and for the recorded seeds the primary entropy with epsilon and
    what epsilon changes of it.
  """
  import jax
  data = given.data.dataset
  rows = []
  for name in cohorts:
    trained = given.trained(name)
    inputs = ((data.inputs - trained.task['mean']) / trained.task['std']).astype(np.float32)
    layers = sorted((key for key in trained.variables['params'] if key.startswith('activation_')),
                    key=lambda key: int(key.rsplit('_', 1)[1]))
    for place, row in enumerate(trained.rows):
      if row['diverged_step'] >= 0:
        continue
      one = jax.tree.map(lambda leaf, place=place: leaf[place], trained.variables)
      test = given.data.splits[row['split']].test[:_EXAMPLES]
      found = (_entropies(trained.model, one, inputs[test], row['activation'], layers)
               if row['seed'] < recorded else {})
      rows += [{'part': 'eafo', 'phase': 'learned', 'arm': row['arm'], 'start': row['start'],
                'seed': row['seed'], 'layer': layer,
                'epsilon': float(one['params'][layer]['epsilon']), **found.get(layer, {})}
               for layer in layers]
  return rows


def _entropies(model, variables, inputs, spec: str, layers: Sequence[str]) -> dict[str, dict]:
  """layer -> the primary entropy with the learned coefficient, and its change from 0."""
  import functools

  from model_lib.activations import get_activation
  from model_lib.analysis.densities import preactivations, recorded
  from model_lib.analysis.entropy import entropies
  activation = get_activation(spec)
  found = {}
  for layer, samples in zip(layers, preactivations(model, variables, inputs).values(), strict=True):
    density = recorded(samples)
    with_epsilon, without = (
        entropies(functools.partial(activation.scalar, epsilon=value, **activation.constants),
                  density, activation.kinks).primary
        for value in (float(variables['params'][layer]['epsilon']), 0.0))
    found[layer] = {'entropy': with_epsilon, 'entropy_change': with_epsilon - without}
  return found
