"""The optimizers of `OptimizerSpec`, without learning rate, decay and clipping.

  name        optax                                         family of its rules of width and depth
  adam        scale_by_adam(b1, b2, eps)                    adam
  sgd         trace(momentum), or nothing                   sgd, momentum
  lion        scale_by_lion(b1, b2)                         lion
  lamb        scale_by_adam, then scale_by_trust_ratio      lamb
  adafactor   scale_by_factored_rms, clip_by_block_rms(1),  adafactor; adafactor_scaled with it
              scale_by_param_block_rms where asked for
  muon        contrib.scale_by_muon of hidden kernels,      muon
              scale_by_adam of all others

Lion's and Adafactor's own defaults are b2 = 0.99, and eps = 1e-15 (whose square is added to the
squared gradient). The weight decay is added afterwards, so that LAMB's trust ratio does not see
it. For the trust ratio and the rms a scanned stack is one tensor; for Muon it is its matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from model_lib.errors import UserError
from model_lib.parametrization.kinds import as_tree
from model_lib.parametrization.label import Label
from model_lib.training.cohort import OptimizerSpec

NAMES = ('adam', 'sgd', 'lion', 'lamb', 'adafactor', 'muon')
HIDDEN, OTHER = 'hidden', 'other'


def family(spec: OptimizerSpec) -> str:
  """The family of rules of width and depth (`parametrization.rules.FAMILIES`)."""
  if spec.name == 'sgd' and spec.momentum:
    return 'momentum'
  if spec.name == 'adafactor' and spec.multiply_by_parameter_scale:
    return 'adafactor_scaled'
  return spec.name


def rule(spec: OptimizerSpec,
         labels: Mapping[str, Label] | None = None) -> optax.GradientTransformation:
  """The transformation of the gradients.

  Args:
    spec: its name and constants.
    labels: path -> label of every parameter; muon finds the hidden kernels by them.

  Raises:
    UserError: an unknown name, or muon without labels.
  """
  adam = optax.scale_by_adam(b1=spec.b1, b2=spec.b2, eps=spec.eps)
  if spec.name == 'adam':
    return adam
  if spec.name == 'sgd':
    return optax.trace(decay=spec.momentum) if spec.momentum else optax.identity()
  if spec.name == 'lion':
    return optax.scale_by_lion(b1=spec.b1, b2=spec.b2)
  if spec.name == 'lamb':
    return optax.chain(adam, optax.scale_by_trust_ratio())
  if spec.name == 'adafactor':
    steps = [optax.scale_by_factored_rms(epsilon=spec.eps ** 2), optax.clip_by_block_rms(1.0)]
    if spec.multiply_by_parameter_scale:
      steps.append(optax.scale_by_param_block_rms())
    return optax.chain(*steps)
  if spec.name == 'muon':
    return _muon(spec, adam, labels)
  raise UserError(f"optimizer '{spec.name}' is unknown; there are: {', '.join(NAMES)}")


def _muon(spec: OptimizerSpec, adam: optax.GradientTransformation,
          labels: Mapping[str, Label] | None) -> optax.GradientTransformation:
  if labels is None:
    raise UserError("optimizer 'muon' is for hidden kernels, which only base and delta of the "
                    'model tell from the others; give both')
  groups = {path: HIDDEN if label.kind == HIDDEN else OTHER for path, label in labels.items()}

  def axes(update, label: Label) -> MuonDimensionNumbers:
    # In front of a kernel's own axes stands that of the layers, where they are scanned.
    first, last = update.ndim - len(label.shape), update.ndim - 1
    return MuonDimensionNumbers(tuple(range(first, last)), last)

  muon = scale_by_muon(
    beta=spec.momentum, eps=spec.eps,
    weight_dimension_numbers=lambda updates: jax.tree.map(axes, updates, as_tree(labels, updates)))
  return optax.multi_transform({HIDDEN: muon, OTHER: adam}, lambda tree: as_tree(groups, tree))
