"""All proxies: what each is, which sign is expected, and their values and times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import time
import types
from typing import Any

import numpy as np

from model_lib.search.expression import Expression
from model_lib.search.proxies import fisher, initialized, kernel, spectrum
from model_lib.search.proxies.fisher import Fisher
from model_lib.search.proxies.initialized import Initialized
from model_lib.search.proxies.kernel import Kernels
from model_lib.search.proxies.values import Evaluated, Task

_CHUNK = 64  # candidates at a time: about 150 MB with the Fisher factors

# stage -> (the stage it is made of, how). Proxies of one stage share its work.
_STAGES: Mapping[str, tuple[str, Callable[[Any, Task], Any]]] = types.MappingProxyType({
    'evaluated': ('', lambda expressions, task: Evaluated.of(expressions)),
    'kernels': ('evaluated', Kernels.of),
    'nngp': ('kernels', kernel.nngp),
    'ntk': ('kernels', kernel.ntk),
    'initialized': ('evaluated', Initialized.of),
    'fisher': ('initialized', Fisher.of),
})


@dataclasses.dataclass(frozen=True)
class Proxy:
  """One proxy.

  Attributes:
    about: what it is, in a sentence.
    sign: 1 if a higher value is expected to go with a better activation, else -1; fixed by an
      argument, before any result.
    stage: what it is computed from.
    function: (that, task) -> [candidate].
  """

  about: str
  sign: int
  stage: str
  function: Callable[[Any, Task], np.ndarray]


_PROXIES: Mapping[str, Proxy] = types.MappingProxyType({
    'share_mean': Proxy(
        'Share of E f^2 in the mean: it gives the Fisher matrix an outlier, so lower is better.',
        -1, 'evaluated', spectrum.share_mean),
    'share_linear': Proxy(
        'Share of E f^2 in the linear part: what keeps the input, so higher is better.',
        1, 'evaluated', spectrum.share_linear),
    'share_bent': Proxy(
        'Share of E f^2 in degrees 2 and more: what mixes inputs up, so lower is better.',
        -1, 'evaluated', spectrum.share_bent),
    'nonlinearity': Proxy(
        'Residual of the best affine fit over Var f: a smoother prior, so lower is better.',
        -1, 'evaluated', spectrum.nonlinearity),
    'chi_raw': Proxy(
        "E f'^2 / E f^2, growth of gradients per layer: lower is better.",
        -1, 'evaluated', spectrum.chi_raw),
    'chi_centred': Proxy(
        "E f'^2 / Var f, the same for standardized outputs: lower is better.",
        -1, 'evaluated', spectrum.chi_centred),
    'chi_distance': Proxy(
        '|ln chi_raw|, one over the depth scale: 0 lets gradients through, so lower is better.',
        -1, 'evaluated', spectrum.chi_distance),
    'nngp_accuracy': Proxy(
        'Validation accuracy of ridge regression with the NNGP kernel: higher is better.',
        1, 'nngp', kernel.accuracy),
    'nngp_error': Proxy(
        'Validation squared error of ridge regression with the NNGP kernel: lower is better.',
        -1, 'nngp', kernel.error),
    'ntk_accuracy': Proxy(
        'Validation accuracy of ridge regression with the NTK: higher is better.',
        1, 'ntk', kernel.accuracy),
    'ntk_error': Proxy(
        'Validation squared error of ridge regression with the NTK: lower is better.',
        -1, 'ntk', kernel.error),
    'loss_at_init': Proxy(
        'Training loss of a batch before any step: lower is better.',
        -1, 'initialized', initialized.loss),
    'gradient_norm': Proxy(
        "ln of the norm of the batch loss's gradient at init: higher is better, as published.",
        1, 'initialized', initialized.gradient_norm),
    'naswot': Proxy(
        'ln det of the kernel of slope codes of 128 examples (NASWOT): higher is better, as '
        'published.', 1, 'initialized', initialized.naswot),
    'zen': Proxy(
        'ln of the sensitivity of the last features to input noise (Zen score): higher is better, '
        'as published.', 1, 'initialized', initialized.zen),
    'jacobian_covariance': Proxy(
        "Score of the correlations of 32 examples' input gradients: higher is better, as "
        'published.', 1, 'initialized', initialized.jacobian_covariance),
    'fisher_trace': Proxy(
        "log10 of the Fisher matrix's trace at init: parameters that matter, so higher is better.",
        1, 'fisher', fisher.trace),
    'fisher_largest': Proxy(
        'log10 of the largest Fisher eigenvalue at init: it limits the learning rate, so lower is '
        'better.', -1, 'fisher', fisher.largest),
    'fisher_spread': Proxy(
        'log10 of the largest Fisher eigenvalue over their geometric mean: worse conditioned if '
        'high, so lower is better.', -1, 'fisher', fisher.spread),
})


def names() -> dict[str, Proxy]:
  """The proxies by name, with a sentence on each and its expected sign."""
  return dict(_PROXIES)


def all_proxies(
    expressions: Sequence[Expression], task: Task,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """Every proxy of every candidate.

  The matrices are small: BLAS in one thread (OPENBLAS_NUM_THREADS=1, set before the start) serves
  well, and where other programs share the cores several threads take about ten times as long.

  Args:
    expressions: the candidates.
    task: the data on which the kernels and the networks at init are looked at.

  Returns:
    values: name -> [candidate], float64; nan where something on the way is not finite.
    seconds: name -> time for all candidates if that proxy alone were wanted: its own, and that of
      the stages it needs. Proxies share stages: the sum of the column is more than the call took.
  """
  values = {name: [] for name in _PROXIES}
  own = dict.fromkeys((*_PROXIES, *_STAGES), 0.0)
  for made in _chunks(expressions, task, own):
    for name, proxy in _PROXIES.items():
      start = time.perf_counter()
      values[name].append(_quietly(proxy.function, made[proxy.stage], task))
      own[name] += time.perf_counter() - start
  return ({name: _finite_or_nan(parts) for name, parts in values.items()},
          {name: own[name] + sum(own[stage] for stage in _chain(proxy.stage))
           for name, proxy in _PROXIES.items()})


def fisher_features(
    expressions: Sequence[Expression], task: Task, bins: int = fisher.BINS,
) -> np.ndarray:
  """Cumulative histograms of the log Fisher eigenvalues, [candidate, 3 * bins].

  Rows of nan as in `all_proxies`; see `fisher.features`.
  """
  stages = _chain('fisher')
  own = dict.fromkeys(stages, 0.0)
  parts = [fisher.features(made['fisher'], bins)
           for made in _chunks(expressions, task, own, stages)]
  return np.concatenate(parts) if parts else np.empty((0, 3 * bins))


def _chunks(
    expressions: Sequence[Expression], task: Task, seconds: dict[str, float],
    stages: Iterable[str] = _STAGES,
) -> Iterator[dict[str, Any]]:
  """The stages of some candidates at a time; their times are added to `seconds`."""
  for first in range(0, len(expressions), _CHUNK):
    made = {'': expressions[first:first + _CHUNK]}
    for stage in stages:
      source, make = _STAGES[stage]
      start = time.perf_counter()
      made[stage] = _quietly(make, made[source], task)
      seconds[stage] += time.perf_counter() - start
    yield made


def _chain(stage: str) -> list[str]:
  """A stage and those it is made of, the first one first."""
  return [*_chain(_STAGES[stage][0]), stage] if stage else []


def _quietly(function: Callable[[Any, Task], Any], source: Any, task: Task) -> Any:
  """function(source, task), where a wild candidate's infinities are values like others."""
  with np.errstate(all='ignore'):
    return function(source, task)


def _finite_or_nan(parts: Sequence[np.ndarray]) -> np.ndarray:
  found = np.concatenate(parts) if parts else np.empty(0)
  return np.where(np.isfinite(found), found, np.nan)
