"""The plan of a cohort: chunk under the memory limit, steps per call under a bound."""
from __future__ import annotations

import dataclasses
import json
import math

from hypothesis import given, strategies as st
import jax
import pytest

from model_lib import models
from model_lib.training import loop, planning
from model_lib.training.cohort import ModelSpec
from model_lib.training.population import Population, call_bytes
from model_lib.training.tasks import Classification
from tests.model_lib.engine import cohort, images, members

pytestmark = pytest.mark.usefixtures('unoptimized')

N = 12
SMALL = ModelSpec('mlp', {'widths': (64,)})


@pytest.fixture(scope='module')
def population() -> Population:
  return Population(cohort(SMALL, members(N)), models.build('mlp', widths=(64,)),
                    Classification(127.0, 70.0), images(), 'vmap')


def decide(population, **options):
  return planning.decide(population, images(), 6, **options)


@given(st.integers(1, 500), st.integers(1, 500))
def test_even_chunk(n, chunk):
  found = planning.even_chunk(n, chunk)
  calls = math.ceil(n / min(chunk, n))
  assert 1 <= found <= min(chunk, n)
  assert math.ceil(n / found) == calls
  # One member less per call would need another call: no padding that could be saved.
  assert found == 1 or math.ceil(n / (found - 1)) > calls


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**5))
def test_largest_call(steps, streams, batch):
  k = planning.largest_call(steps, streams, batch)
  assert 1 <= k <= min(steps, planning.MAX_STEPS_PER_CALL)
  block = 4 * streams * batch
  assert k == 1 or k * block <= planning.INDEX_BLOCK_BYTES
  assert k in (steps, planning.MAX_STEPS_PER_CALL) or (k + 1) * block > planning.INDEX_BLOCK_BYTES


def test_the_estimate_is_the_compiler_s(population):
  """argument + output - alias + temp of the call, plus the chunks that wait."""
  plan, call = decide(population, chunk=5, steps_per_call=10, limit_mib=1000)
  m = call.memory_analysis()
  own = (m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
         + m.temp_size_in_bytes)
  assert call_bytes(call) == own and m.temp_size_in_bytes > 0
  assert m.alias_size_in_bytes > 0  # the state is donated
  state = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(population.abstract(1)))
  assert plan.state_mib_per_member == pytest.approx(state / 2**20, abs=1e-6)
  assert plan.chunk == 5  # as given, though four would need no padding
  waiting = 2 * 5 * state
  assert plan.estimate_mib == pytest.approx((own + waiting) / 2**20, abs=1e-3)


def test_the_chunk_falls_with_the_limit(population):
  all_at_once = decide(population, limit_mib=1000, steps_per_call=10)[0]
  assert all_at_once.chunk == N and all_at_once.estimate_mib <= 1000
  limit = 0.75 * all_at_once.estimate_mib
  less = decide(population, limit_mib=limit, steps_per_call=10)[0]
  assert 1 <= less.chunk < N
  assert less.estimate_mib <= limit == pytest.approx(less.limit_mib, abs=1e-3)
  assert decide(population, limit_mib=1e-3, steps_per_call=10)[0].chunk == 1


def test_what_is_given_is_honoured(population):
  """Also a chunk that exceeds the limit; K = 1 has room for more, for the sake of the bits."""
  plan, call = decide(population, chunk=6, steps_per_call=1, limit_mib=1e-3)
  assert (plan.chunk, plan.steps_per_call, plan.capacity) == (6, 1, planning.MIN_CAPACITY)
  assert (plan.batching, call.capacity) == ('vmap', planning.MIN_CAPACITY)
  assert decide(population, chunk=50, steps_per_call=3, limit_mib=1000)[0].chunk == N


def test_the_time_of_a_call_bounds_the_steps(population, monkeypatch):
  """A round over all chunks lasts CALL_SECONDS at most; the compiled room does not follow."""
  now = [0.0, 0.0]

  def perf_counter():
    now[0] += now[1]
    return now[0]

  monkeypatch.setattr(planning.time, 'perf_counter', perf_counter)
  now[1] = planning.CALL_SECONDS / 20.5  # of one step of one chunk, of two
  plan, call = decide(population, chunk=6, limit_mib=1000)
  assert (plan.steps_per_call, plan.capacity, call.capacity) == (10, 50, 50)
  for seconds, k in ((1e-6, 50), (100.0, 1)):
    now[1] = seconds
    assert planning.timed_steps(population, call, images(), 6, 50, 6, 2) == k


def test_a_plan_survives_its_file_and_gives_the_same_program(population):
  """A resume compiles for the recorded plan, K = 1 chosen by the clock included."""
  plan, call = decide(population, chunk=6, steps_per_call=7, limit_mib=1000)
  again = planning.Plan(**json.loads(json.dumps(dataclasses.asdict(plan))))
  assert again == plan
  slow = dataclasses.replace(again, steps_per_call=1)
  other = loop.compile_for(population, slow, images(), 6, 25)
  assert (other.capacity, other.rows) == (call.capacity, call.rows) == (7, 2)
  assert call_bytes(other) == call_bytes(call)


def test_lanes_share_the_members(monkeypatch):
  """Under map each lane gets several chunks; what runs side by side counts in the estimate."""
  monkeypatch.setenv('NPROC', '2')
  mapped = Population(cohort(SMALL, members(N)), models.build('mlp', widths=(64,)),
                      Classification(127.0, 70.0), images(), 'map')
  plan, call = decide(mapped, steps_per_call=10, limit_mib=1000)
  assert (plan.lanes, plan.chunk) == (2, 2)
  state = plan.state_mib_per_member
  own = call_bytes(call) / 2**20
  assert plan.estimate_mib == pytest.approx(2 * own + 4 * 2 * state, abs=1e-3)
  # A given chunk is taken as it is; with one chunk there is nothing to put side by side.
  assert decide(mapped, steps_per_call=10, limit_mib=1000, chunk=N)[0].lanes == 1
  assert decide(mapped, steps_per_call=10, limit_mib=1000, lanes=1)[0].chunk == N


def test_a_plan_of_a_run_begun_without_lanes(population):
  """config.json of such a run has no such field: its chunks go one after the other."""
  recorded = dataclasses.asdict(decide(population, chunk=6, steps_per_call=7, limit_mib=1000)[0])
  del recorded['lanes']
  assert planning.Plan(**recorded).lanes == 1


def test_defaults(monkeypatch):
  monkeypatch.setenv('NPROC', '3')
  assert (planning.default_lanes('map'), planning.default_lanes('vmap')) == (3, 1)
  assert planning.default_batching() == 'map'  # the tests run on a CPU
  assert 10 < planning.default_limit_mib() < 2**24
