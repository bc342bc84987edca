# The Python environment of test.sh and quickstart.sh: source this from the repository root.
#
#   make_environment   creates .venv with ${PYTHON:-python3}, installs the project and its test
#                      extra at the versions of launch/constraints.txt; $python is its interpreter.
#   add_parity         tries to add the frameworks that the parity tests compare with; never fails.
#
# A stamp in .venv holds a hash of everything that decides what is installed, so that a second call
# installs nothing.

python=.venv/bin/python

pip_install() {
  "$python" -m pip install -qq --disable-pip-version-check -c launch/constraints.txt "$@"
}

python_is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

environment_hash() {
  # With the directory: an editable install points to it, so a moved clone is installed again.
  { pwd -P; "$python" -VV; cat setup.cfg pyproject.toml launch/constraints.txt; } |
    cksum | tr ' ' '-'
}

make_environment() {
  local base=${PYTHON:-python3} stamp=.venv/actnorm-installed
  if [ ! -x "$python" ]; then
    if ! python_is_recent "$base"; then
      echo "error: actnorm-lab needs Python 3.11 or newer, and '$base' is" \
        "$("$base" -V 2>/dev/null || echo 'not a working Python');" \
        "set PYTHON=/path/to/python3.11" >&2
      exit 2
    fi
    "$base" -m venv .venv
  elif ! python_is_recent "$python"; then
    echo "error: .venv holds $("$python" -V 2>/dev/null || echo 'no working Python')" \
      "and Python 3.11 or newer is needed; remove .venv and run this again" >&2
    exit 2
  elif [ -n "${PYTHON:-}" ] && [ "$("$PYTHON" -V)" != "$("$python" -V)" ]; then
    echo "error: .venv holds $("$python" -V) and PYTHON asks for $("$PYTHON" -V);" \
      "remove .venv and run this again" >&2
    exit 2
  fi
  local hash
  hash=$(environment_hash)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]; then
    echo "environment: installing into .venv (a few minutes the first time)"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
    pip_install -e '.[test]'
    echo "$hash" >"$stamp"
  fi
}

add_parity() {
  local stamp=.venv/actnorm-parity hash
  hash=$(environment_hash)
  [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ] && return
  # The constraints ask for the CPU build; on Linux the general registry has only one that brings
  # CUDA along.
  local log=.venv/actnorm-parity.log
  if ! pip_install -e '.[parity]' >"$log" 2>&1 &&
    ! pip_install -e '.[parity]' --retries 1 --timeout 15 \
      --extra-index-url https://download.pytorch.org/whl/cpu >"$log" 2>&1; then
    echo "parity: skipped (pip could not install it, see $log; remove $stamp to try again)"
  # Without what it declares: torchvision, of which the general registry has only the build for CUDA,
  # breaks transformers beside a CPU build of torch, and mup imports none of it.
  elif ! pip_install --no-deps "mup>=1.0.0; python_version < '3.12'" >>"$log" 2>&1; then
    echo "parity: mup could not be installed (see $log); the parity tests are skipped"
  fi
  echo "$hash" >"$stamp"
}
