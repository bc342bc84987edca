"""Options of the programs of members side by side: no reduction goes to YNNPACK there."""
from __future__ import annotations

import jax
import jaxlib.version

from model_lib.training import population
from tests.model_lib.engine import VIT, Engine


def fusions(engine: Engine) -> int:
  return sum(compiled.as_text().count('ynn_fusion')
             for compiled in (engine.call.compiled, engine.evaluation))


def test_under_vmap_a_cpu_has_no_fusions_of_reductions(monkeypatch):
  """And would have: without the options they are there, and under map they stay."""
  if jaxlib.version.__version_info__[:2] != (0, 10):  # which compiles these gradients rightly
    assert population.side_by_side_options('vmap') is None
    return
  assert fusions(Engine(VIT, chunk=2, batching='vmap')) == 0
  assert fusions(Engine(VIT, chunk=2)) > 0
  monkeypatch.setattr(population, 'side_by_side_options', lambda batching: None)
  assert fusions(Engine(VIT, chunk=2, batching='vmap')) > 0


def test_other_versions_and_devices_take_no_options(monkeypatch):
  assert population.side_by_side_options('map') is None
  monkeypatch.setattr(jaxlib.version, '__version_info__', (0, 11, 2))
  assert population.side_by_side_options('vmap') is None
  monkeypatch.setattr(jaxlib.version, '__version_info__', (0, 10, 2))
  assert population.side_by_side_options('vmap') is not None
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert population.side_by_side_options('vmap') is None
