#!/usr/bin/env bash
# Makes the environment where it is missing and runs the first study on two CPU cores, in minutes.
#
#   bash launch/quickstart.sh                        results in runs/quickstart of the clone
#   bash launch/quickstart.sh --workdir=/tmp/mine    arguments go to the study
#
# Relative paths count from the clone.
#
# The exit code is the study's: 0 done, 2 usage, 3 no run survived, 75 stopped by a signal (run it
# again to resume).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

make_environment
exec "$python" -m experiments.activation_search --preset=quick --workdir=runs/quickstart "$@"
