"""How fast the search's table engine trains candidates: against jits, PyTorch and plain ReLU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import importlib.util
import json
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np

from launch.benchmark import candidates
from launch.benchmark import measure

CANDIDATES, STEPS, SAMPLE = 256, 300, 32
_EAGER_PROCESSES = 2  # one thread each, side by side
_FEWER_COMPILED = 4  # a quarter of the sample for the slowest side


def write_candidates(path: Path, count: int) -> None:
  """Valid random expressions of the space act_bench, with their gains."""
  from model_lib.errors import UserError
  from model_lib.search import ValidityFilter, get_space
  from model_lib.search.engines import gain
  rng, judge, found = np.random.default_rng(0), ValidityFilter(), {}
  space = get_space('act_bench')
  while len(found) < count:
    expression = space.sample(rng)
    if judge(expression).valid:
      try:
        found[str(expression)] = gain(expression)
      except UserError:  # without one it is no candidate here
        continue
  path.write_text(json.dumps(list(found.items())), encoding='utf-8')


def search(pairs: int, full: bool = False, count: int = CANDIDATES, steps: int = STEPS,
           sample: int = SAMPLE) -> list[dict[str, Any]]:
  """Candidates per second, compilation and evaluation included; cost of a step; memory.

  Each side is a process of its own that is timed after its imports. Of the slow sides `sample`
  candidates are timed and the time is scaled to all; `full` trains all of them once.
  PyTorch, where it is installed, runs in two processes with one thread each: the time is the
  longer one's.
  """
  from launch.benchmark import engine
  sample = min(sample, count)
  peaks: list[float] = []
  with tempfile.TemporaryDirectory() as directory:
    file, data = Path(directory) / 'candidates.json', Path(directory) / 'digits.npz'
    write_candidates(file, count)
    engine.write_plain_data(data)

    def population() -> float:
      taken, peak = candidates.seconds('population', file, data, 0, count, steps)
      peaks.append(peak)
      return taken

    def apart(n: int) -> float:
      return candidates.seconds('apart', file, data, 0, n, steps)[0] * count / n

    def eager() -> float:
      ends = np.linspace(0, sample, _EAGER_PROCESSES + 1).astype(int).tolist()
      with ThreadPoolExecutor(_EAGER_PROCESSES) as pool:
        parts = pool.map(lambda part: candidates.seconds('eager', file, data, *part, steps)[0],
                         zip(ends[:-1], ends[1:], strict=True))
        return max(parts) * count / sample

    def plain() -> float:
      return candidates.seconds('plain', file, data, 0, count, steps)[0]

    few = max(1, sample // _FEWER_COMPILED)

    def compiled(n: int) -> float:
      return candidates.seconds('compiled', file, data, 0, n, steps)[0] * count / n

    kinds = {'population': population, 'apart': lambda: apart(sample), 'plain': plain,
             'compiled': lambda: compiled(few)}
    if importlib.util.find_spec('torch') is not None:
      kinds['eager'] = eager
    seconds = measure.interleave(kinds, pairs)
    records = [
        measure.ratio('one jit per candidate, engine expression / population',
                      seconds['compiled'], seconds['population'], at_least=25.0,
                      timed=few, scaled_to=count),
        measure.ratio('one jit per candidate, by hand / population', seconds['apart'],
                      seconds['population'], at_least=25.0, timed=sample, scaled_to=count),
        measure.ratio('one jit per candidate, by hand / as many plain ReLUs', seconds['apart'],
                      seconds['plain'], timed=sample, scaled_to=count)]
    if full:
      for name, side in (('engine expression', compiled), ('by hand', apart)):
        records.append(measure.ratio(f'the same, all {count} jits run, {name}', [side(count)],
                                     [population()], at_least=25.0))
    if 'eager' in kinds:
      records.append(measure.ratio('PyTorch eager / population', seconds['eager'],
                                   seconds['population'], at_least=3.5, timed=sample,
                                   scaled_to=count, processes=_EAGER_PROCESSES))
    records.append(measure.record('candidates per second, population',
                                  [count / s for s in seconds['population']], '1 / s'))
    records.append(measure.record('peak resident memory of the population',
                                  [peak * 2**20 / 1e9 for peak in peaks], 'GB', at_most=1.0))
    loaded = [(text, gain) for text, gain in json.loads(file.read_text(encoding='utf-8'))]
    return records + _steps(loaded, pairs, steps)


def _steps(loaded: list[candidates.Candidate], pairs: int, steps: int) -> list[dict[str, Any]]:
  """Training alone, compiled before: the candidates against as many plain ReLUs."""
  import jax

  from launch.benchmark import engine
  from model_lib.training import loop
  from model_lib.training.metrics import MetricsFile
  with tempfile.TemporaryDirectory() as directory:
    metrics = MetricsFile(Path(directory) / 'metrics.jsonl')

    def timed(setting: engine.Setting):
      def seconds() -> float:
        chunks = loop.initial_chunks(setting.population, setting.plan)
        jax.block_until_ready(chunks)
        start = time.perf_counter()
        jax.block_until_ready(setting.train(chunks, metrics))
        return time.perf_counter() - start
      return seconds

    kinds = {name: timed(engine.prepare(candidates.cohort(runs, steps)))
             for name, runs in (('table', loaded), ('relu', len(loaded)))}
    measure.interleave(kinds, 1)  # warms up
    seconds = measure.interleave(kinds, pairs)
    metrics.close()
  total = len(loaded) * steps
  return [
      measure.ratio('candidate-step, table / plain ReLU', seconds['table'], seconds['relu'],
                    at_most=2.0),
      *(measure.record(f'candidate-step, {name}', [1e6 * s / total for s in seconds[name]], 'us')
        for name in kinds)]
