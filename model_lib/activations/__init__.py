"""Activation functions: plain jnp functions, and a registry of what is known about them.

  gelu = get_activation('gelu')
  y = gelu(x)                                  # computes in float32, returns x's dtype
  gelu.moments().gain                          # 1.5335: multiplies an initialization's std
  crrelu = get_activation('crrelu(epsilon=0.02, per=channel)')
  y = crrelu(x, **crrelu.init_parameters(x.shape))

`names()` lists all. The formulas that several libraries write differently name their
convention; `Activation.source` says where a formula was taken from:

  kunc2024        Kunc & Klema 2024, "Three Decades of Activations", arXiv 2402.09092
  standard        common mathematics
  <author><year>  the paper in `Activation.paper`, or its authors' own code
  port            the code of others for that paper
  control         no paper: defined here, as what another function is compared with
  memory          no source was found: `Activation.confirmed` is False
  another word    the library of that name: jax, torch, echo, homa, torch_activation ...
"""

from model_lib.activations import (  # noqa: F401  (each import registers a family)
    bounded,
    conditioned,
    controls,
    exponential,
    fractional,
    gated_exponential,
    gated_learnable,
    gated_self,
    glu,
    learnable,
    piecewise,
    polynomial,
    rational,
    rectified,
    searched,
    selection,
    simplex,
    statistics_dependent,
    stochastic,
)
from model_lib.activations.activation import Activation, Parameter
from model_lib.activations.moments import Moments
from model_lib.activations.registry import aliases, get_activation, names

__all__ = ['Activation', 'Moments', 'Parameter', 'aliases', 'get_activation', 'names']
