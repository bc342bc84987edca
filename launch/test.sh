#!/usr/bin/env bash
# Makes the environment where it is missing and runs the tests.
#
#   bash launch/test.sh                 the fast tier, in two processes
#   bash launch/test.sh --all           the slow tier and the benchmarks too, in one
#   bash launch/test.sh -k checkpoint   further arguments go to pytest
#   PYTHON=python3.12 bash launch/test.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

# A file stays in one process, since its tests share what they compile; the order is that of
# tests/conftest.py.
tier=(-m 'not slow and not benchmark' -n 2 --dist loadfile --no-loadscope-reorder)
arguments=()
for argument in "$@"; do
  if [ "$argument" = --all ]; then tier=(); else arguments+=("$argument"); fi
done

make_environment
add_parity
# The + form, because an empty array counts as unset before bash 4.4.
exec "$python" -m pytest ${tier[@]+"${tier[@]}"} ${arguments[@]+"${arguments[@]}"}
