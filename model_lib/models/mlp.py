"""A multilayer perceptron: flatten, (linear, norm, activation) per width, readout."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from model_lib.models import overrides
from model_lib.models.activation_layer import ActivationLayer, is_gated
from model_lib.models.linear import Linear
from model_lib.models.site import Site
from model_lib.models.width import matched_widths
from model_lib.normalization import block


class MLP(nn.Module):
  """x [B, ...] (flattened) -> logits [B, num_classes].

  Layer l is f(N(W x)) for norm='pre:N', N(f(W x)) for 'post:N', f(W x) for 'none'. A gated
  activation has a second kernel `gate_l` beside `hidden_l`; the widths are then those of
  `matched_widths`. Kernels behind f carry its gain, kernels behind N have gain 1.

  Sites: layers.L.norm (pre or post), layers.L.activation.
  """

  widths: Sequence[int] = (64, 64)
  num_classes: int = 10
  activation: str = 'relu'
  norm: str = 'none'
  init_gain: bool = True
  parametrization: str = 'sp'
  overrides: Sequence[str] = ()

  def sites(self) -> tuple[Site, ...]:
    """What stands where without the overrides."""
    layers = range(len(self.widths))
    return tuple(site for i in layers for site in (
      Site(f'layers.{i}.norm', 'placement', self.norm, channels=self.widths[i]),
      Site(f'layers.{i}.activation', 'activation', self.activation, channels=self.widths[i],
           second_kernel=True)))

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    specs = overrides.specs(self)
    x_bi = x.reshape(x.shape[0], -1)
    activations = [specs[f'layers.{i}.activation'] for i in range(len(self.widths))]
    gated = [is_gated(activation) for activation in activations]
    widths = tuple(self.widths)
    if any(gated):
      widths = matched_widths(x_bi.shape[-1], widths, self.num_classes, gated)
    consumes, role = None, 'input'

    def linear(features, role, name):
      return Linear(features, role, consumes, self.init_gain, self.parametrization, name=name)

    for i, width in enumerate(widths):
      placed = block(specs[f'layers.{i}.norm'], self.parametrization)
      inputs = [linear(width, role, f'hidden_{i}')(x_bi)]
      if gated[i]:
        inputs = [linear(width, role, f'gate_{i}')(x_bi), *inputs]
      if placed.placement == 'pre':
        parts = ['gate', 'hidden'] if gated[i] else ['hidden']
        inputs = [placed.norm.layer(f'norm_{part}_{i}')(h, train)
                  for part, h in zip(parts, inputs, strict=True)]
      x_bi = ActivationLayer(activations[i], name=f'activation_{i}')(*inputs, train=train)
      if placed.placement == 'post':
        x_bi = placed.norm.layer(f'norm_{i}')(x_bi, train)
      consumes, role = None if placed.placement == 'post' else activations[i], 'hidden'
    return linear(self.num_classes, 'readout', 'head')(x_bi)
