"""What the halving's first rung says of the proxies that need no training."""

from __future__ import annotations

from typing import Any

import numpy as np
import threadpoolctl

from experiments.measurements.activation_search import proxy_task
from launch.study import Given
from model_lib.analysis import statistics
from model_lib.search import parse, proxies


def measure_proxies(given: Given, cohort: str) -> list[dict[str, Any]]:
  """Kendall's tau of every proxy with the test loss after the first rung, and what a proxy costs.

  A tau is counted in the proxy's expected direction: positive where it predicts as expected.
  Functions that diverged, or of which a proxy is not finite, are left out.
  """
  rows = given.rows([cohort])
  rows = rows[(rows['copy'] == 0) & (rows.diverged_step < 0)]
  with threadpoolctl.threadpool_limits(1, 'blas'):  # many small products
    values, seconds = proxies.all_proxies([parse(text) for text in rows.activation],
                                          proxy_task(given))
  found = []
  for name, proxy in proxies.names().items():
    known = np.isfinite(values[name])
    tau, low, high = statistics.kendall_interval(
        -proxy.sign * values[name][known], rows.test_loss.to_numpy()[known])
    found.append({'part': 'children', 'phase': 'proxy', 'proxy': name, 'expected': proxy.sign,
                  'tau': tau, 'tau_low': low, 'tau_high': high, 'functions': int(known.sum()),
                  'wall_s': seconds[name]})
  return found
