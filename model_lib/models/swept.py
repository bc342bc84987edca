"""Swept activations: the function itself is data in `hp`, so one program serves every candidate.

A swept activation is named by a spec like any other (`table(limit=32)`). What it computes is
given by arrays in the `hp` collection of its `ActivationLayer`; `encode` makes them of the text of
a candidate (`models.candidate`). The package that brings an engine registers it here, and the
models know no engine.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
import functools
from typing import ClassVar

import jax
import numpy as np

from model_lib import spec as spec_lib
from model_lib.errors import UserError

Leaves = dict[str, np.ndarray]
KEPT = 1024  # candidates whose leaves an engine keeps: those of a generation, encoded ahead


class SweptActivation(abc.ABC):
  """A pointwise activation whose function is data; it stands where an `Activation` can stand.

  Attributes:
    name: the spec.
  """

  kind: ClassVar[str] = 'pointwise'
  causal: ClassVar[bool] = True
  width_factor: ClassVar[int] = 1
  name: str

  @abc.abstractmethod
  def default(self) -> Leaves:
    """The hp leaves before a candidate is set; none for a function that the spec fixes."""

  @abc.abstractmethod
  def encode(self, text: str) -> Leaves:
    """The hp leaves of a candidate, of the shapes of `default`; UserError for what is none."""

  @abc.abstractmethod
  def first(self, leaves: Mapping[str, jax.Array], shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """First values of the learnable numbers, by name; `shape` is the input's."""

  @abc.abstractmethod
  def apply(self, leaves: Mapping[str, jax.Array], params: Mapping[str, jax.Array],
            x: jax.Array) -> jax.Array:
    """f(x), of x's shape and dtype."""

  @abc.abstractmethod
  def gain(self) -> float:
    """E[f(z)^2]^-1/2, z ~ N(0, 1), before a candidate is set, which brings its `init_gain`."""


Maker = Callable[[spec_lib.Call], SweptActivation]
_MAKERS: dict[str, Maker] = {}


def register(name: str, maker: Maker) -> None:
  """Enters a swept activation; the maker reads the spec's settings (UserError for wrong ones)."""
  _MAKERS[name] = maker


def names() -> tuple[str, ...]:
  """Names of the swept activations that are registered."""
  return tuple(_MAKERS)


def find(spec: str) -> SweptActivation | None:
  """The swept activation of a spec; None where the spec names none."""
  maker = _MAKERS.get(spec_lib.parse(spec).name)
  return None if maker is None else _made(maker, spec)


@functools.lru_cache(maxsize=256)
def _made(maker: Maker, spec: str) -> SweptActivation:
  return maker(spec_lib.parse(spec))
